"""What the README shows works."""

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

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()


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


def test_every_variable_is_read_and_every_default_right() -> None:
    aliases = {
        str(field.validation_alias) for field in Settings.model_fields.values() if field.validation_alias
    }
    known = aliases | {f"CLICKMASK_{name.upper()}" for name in Settings.model_fields}
    assert set(re.findall(r"(?:CLICKMASK|LABEL_STUDIO)_[A-Z_]+", README)) <= known
    assert f"| `CLICKMASK_MIN_IOU` | {Settings.model_fields['min_iou'].default} |" in README


def test_every_link_leads_to_a_file() -> None:
    for target in re.findall(r"\]\(([^)#:]+)\)", README):
        assert (ROOT / target).exists(), target
