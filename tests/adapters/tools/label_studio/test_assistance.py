"""What the ledger makes of answers as Label Studio gets them, keeps them and sends them back."""

from __future__ import annotations

import json
from typing import Any

import pytest

from clickmask.labels.geometry import rasterise
from clickmask.labels.submissions import AcceptedLabel, LabelKey
from clickmask.masks.rle import mask_to_rle
from clickmask.reports.assistance import Entry, match
from clickmask.store import RememberedProposal
from clickmask.types import Mask, Prediction
from clickmask_adapters.tools.label_studio import clicks, label_config
from clickmask_adapters.tools.label_studio import labels as accepted
from support import drawn

XML = """<View><Image name="image" value="$image"/>
<KeyPointLabels name="point" toName="image" smart="true"><Label value="Cell"/></KeyPointLabels>
<BrushLabels name="brush" toName="image"><Label value="Cell"/></BrushLabels>
<PolygonLabels name="polygon" toName="image"><Label value="Cell"/></PolygonLabels></View>"""
PROPOSAL = "Abc-ef_hIjKlMnOp"
SIZE = (240, 320)
MASKS = {
    "disc": drawn.disc(SIZE, (120.0, 100.0), 61.3),
    "ring": drawn.ring(SIZE, (160.0, 120.0), 90.0, 41.0),
    "two parts": drawn.disc(SIZE, (80.0, 60.0), 41.0) | drawn.ellipse(SIZE, (220, 170), (50, 31), 20),
}


def answered(mask: Mask, kind: str) -> list[dict[str, Any]]:
    """The regions of the answer to a click, of one control, as JSON brings them back."""
    value = {"x": 40, "y": 40, "width": 0.3, "keypointlabels": ["Cell"]}
    prompt = {
        "id": "p", "type": "keypointlabels", "from_name": "point", "to_name": "image", "value": value,
        "original_width": SIZE[1], "original_height": SIZE[0], "image_rotation": 0, "is_positive": True,
    }  # fmt: skip
    asked = clicks.request({"result": [prompt]}, label_config.parse(XML))
    made = clicks.regions(PROPOSAL, Prediction(mask, 0.9, "disc"), asked, 0.98)[0]
    chosen = [region for region in made if region["from_name"] == kind]
    return json.loads(json.dumps(chosen, default=lambda array: array.tolist()))


def ledger(mask: Mask, regions: list[dict[str, Any]]) -> list[Entry]:
    annotation = {"id": 1, "result": regions, "updated_at": "2026-11-22T10:00:00Z", "project": 7}
    task = {"id": 2, "project": 7, "data": {"image": "/data/upload/7/a.png"}}
    (submission,) = accepted.submissions(annotation, task, label_config.parse(XML))
    key = (submission.tool, submission.project, submission.task, submission.annotation)
    labels = [
        AcceptedLabel(
            LabelKey(*key, region.id), "digest", SIZE, region.category, region.geometry,
            mask_to_rle(rasterise(region.geometry, SIZE)), submission.updated_at, region.proposal,
        )
        for region in submission.regions
    ]  # fmt: skip
    prompt = json.dumps({"foreground": [[128, 96]], "background": [], "box": None})
    proposal = RememberedProposal(PROPOSAL, 1.0, "digest", "disc", 0.9, prompt, mask_to_rle(mask))
    return match([proposal], labels, True)


@pytest.mark.parametrize("kind", ["brush", "polygon"])
@pytest.mark.parametrize("name", MASKS)
def test_an_answer_that_was_accepted_as_it_was_is_untouched(name: str, kind: str) -> None:
    (entry,) = ledger(MASKS[name], answered(MASKS[name], kind))
    assert entry.outcome == "untouched"
    assert entry.last_iou is not None
    assert entry.last_iou >= 0.975


@pytest.mark.parametrize("name", MASKS)
def test_a_vertex_that_was_dragged_is_an_edit(name: str) -> None:
    regions = answered(MASKS[name], "polygon")
    regions[0]["value"]["points"][1][0] += 0.137
    (entry,) = ledger(MASKS[name], regions)
    assert entry.outcome == "edited"


def test_half_an_outline_is_an_edit() -> None:
    regions = answered(MASKS["disc"], "polygon")
    del regions[0]["value"]["points"][::2]
    (entry,) = ledger(MASKS["disc"], regions)
    assert entry.outcome == "edited"


def test_a_part_that_was_thrown_away_is_an_edit() -> None:
    (entry,) = ledger(MASKS["two parts"], answered(MASKS["two parts"], "polygon")[:1])
    assert entry.outcome == "edited"
