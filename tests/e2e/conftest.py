from __future__ import annotations

from collections.abc import Iterator

import pytest

from support.label_studio_server import LabelStudioServer, label_studio


@pytest.fixture(scope="session")
def studio(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LabelStudioServer]:
    """The real Label Studio, started once."""
    with label_studio(tmp_path_factory.mktemp("label-studio")) as server:
        yield server
