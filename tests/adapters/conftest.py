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
