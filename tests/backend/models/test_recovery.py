from __future__ import annotations

from pathlib import Path

import pytest

from clickmask.errors import Failed
from clickmask.files import DamagedFiles
from clickmask.models import versions
from clickmask.models.recovery import mend_models
from clickmask.models.versions import Models, ModelVersion, ProjectModels
from support.model_drafts import draft


@pytest.fixture
def served(tmp_path: Path) -> ModelVersion:
    models = Models(tmp_path / "models" / "page-7")
    return models.promote(models.save(draft()).id)


@pytest.mark.parametrize("name", [versions.GOLDEN, versions.WEIGHTS])
def test_a_model_whose_proof_is_damaged_is_served_on_and_that_is_said(
    tmp_path: Path, served: ModelVersion, name: str
) -> None:
    damaged = DamagedFiles(tmp_path)
    mend_models(tmp_path / "models", damaged)
    assert damaged.troubles() == []
    (served.path / name).write_bytes(b"")
    mend_models(tmp_path / "models", damaged)
    (said,) = damaged.troubles()
    assert said.startswith(f"models/page-7/versions/{served.id}/{name} is not what was saved: ")
    assert damaged.all() == []
    assert Models(tmp_path / "models" / "page-7").served() == served


def test_a_served_network_that_cannot_be_loaded_is_a_damaged_model(
    tmp_path: Path, served: ModelVersion
) -> None:
    served.network.write_bytes(b"no network")
    with pytest.raises(Failed, match=f"the network of the model {served.id} cannot be loaded"):
        ProjectModels(tmp_path / "models").served("page-7")
