from __future__ import annotations

import ctypes
import platform

import pytest

from clickmask_adapters.memory import keep_memory_warm


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="only glibc has arenas")
def test_threads_share_memory_where_glibc_hands_it_out() -> None:
    assert keep_memory_warm()


def test_another_c_library_is_left_as_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ctypes, "CDLL", lambda name: object())
    assert not keep_memory_warm()
