from __future__ import annotations

import ctypes
import gc
import platform

import pytest

from clickmask_adapters.server.memory import freeze_gc, share_malloc_arena


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="only glibc has arenas")
def test_threads_share_memory_where_glibc_hands_it_out() -> None:
    assert share_malloc_arena()


def test_another_c_library_is_left_as_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ctypes, "CDLL", lambda name: object())
    assert not share_malloc_arena()


def test_the_garbage_collector_spares_what_is_loaded() -> None:
    loaded: list[object] = [[]]
    loaded.append(loaded)  # of the kind that the collector goes through
    try:
        freeze_gc()
        assert not any(each is loaded for each in gc.get_objects())
    finally:
        gc.unfreeze()
    assert any(each is loaded for each in gc.get_objects())
