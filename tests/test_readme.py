"""What the README and the guide show works."""

from __future__ import annotations

import importlib
import re
from pathlib import Path

import numpy as np
import pytest

from clickmask import segmenters
from clickmask.inference.catalogue import Catalogue
from clickmask.inference.weights import WeightsFolder
from clickmask.types import Image, Prompt
from clickmask_adapters.api.proposals import ProposalsIn
from clickmask_adapters.settings import Settings
from support import settings_page

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()
GUIDE = sorted((ROOT / "adapters" / "clickmask_adapters" / "docs").glob("*.md"))
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "SECURITY.md", *GUIDE]


def test_the_segmenter_in_one_file_is_found_and_answers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (example,) = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    (tmp_path / "brighter.py").write_text(example)
    monkeypatch.setattr(segmenters, "__path__", [*segmenters.__path__, str(tmp_path)])
    importlib.invalidate_caches()
    segmenter = Catalogue(segmenters, WeightsFolder(tmp_path)).get("brighter")
    pixels = np.zeros((20, 30, 3), np.uint8)
    pixels[5:10, 5:15] = 200
    embedding = segmenter.encode(Image(pixels, "digest"))
    (prediction,) = segmenter.decode(embedding, Prompt(foreground=((10.0, 7.0),)))
    assert np.array_equal(prediction.mask, pixels[..., 0] > 0)
    assert embedding.nbytes > 0


def test_the_request_is_one_that_the_api_takes() -> None:
    (body,) = re.findall(r"-d '(\{.*?\})'", README, re.DOTALL)
    assert ProposalsIn.model_validate_json(body).min_iou == 0.98


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_variable_named_is_read(page: Path) -> None:
    known = {settings_page.variable(name, field) for name, field in Settings.model_fields.items()}
    named = set(re.findall(r"(?:CLICKMASK|LABEL_STUDIO|CVAT)_[A-Z_]*[A-Z]\b", page.read_text()))
    of_cvat_itself = {name for name in named if name.startswith("CVAT_NUCLIO_")}
    assert named - of_cvat_itself <= known


def test_the_page_of_settings_is_what_the_settings_are() -> None:
    said = settings_page.PAGE.read_text()
    assert said == settings_page.page(), "run `python -m support.settings_page` in tests/"
    assert all(field.description for field in Settings.model_fields.values())


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_link_leads_to_a_file(page: Path) -> None:
    for target in re.findall(r"\]\(([^)#:]+)\)", page.read_text()):
        assert (page.parent / target).resolve().exists(), target


def test_every_page_of_the_guide_is_linked_from_the_readme() -> None:
    assert {f"(adapters/clickmask_adapters/docs/{page.name})" for page in GUIDE} <= set(
        re.findall(r"\([\w/.-]+\)", README)
    )


def test_the_readme_is_read_in_one_sitting() -> None:
    assert len(README.split()) <= 1500
