from __future__ import annotations

from collections.abc import Iterator

import pytest

from support.label_studio_server import LabelStudioServer, label_studio


@pytest.fixture(scope="session")
def studio(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LabelStudioServer]:
    """The real Label Studio, started once."""
    with label_studio(tmp_path_factory.mktemp("label-studio")) as server:
        yield server


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """One worker runs all tests with Label Studio: starting it takes a minute."""
    for item in items:
        if "studio" in getattr(item, "fixturenames", ()):
            item.add_marker(pytest.mark.xdist_group("label-studio"))
