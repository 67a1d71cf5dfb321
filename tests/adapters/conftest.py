from __future__ import annotations

from collections.abc import Iterator

import pytest

from support.cvat_server import CvatServer


@pytest.fixture
def cvat() -> Iterator[CvatServer]:
    """With an empty project 1."""
    server = CvatServer()
    server.add_project(1)
    yield server
    server.close()


@pytest.fixture(autouse=True)
def tools_that_are_busy_are_asked_again_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("clickmask_adapters.tools._client.BACKOFF_S", 0.0)
