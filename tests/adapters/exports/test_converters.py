"""Label Studio's own COCO converters on the project that clickmask exports exactly."""

from __future__ import annotations

from pathlib import Path

import pytest

from support import exported_project as exported

pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning"),
]


def test_every_object_of_a_label_studio_project_comes_out_of_clickmask(tmp_path: Path) -> None:
    found = exported.outcomes(exported.by_clickmask(tmp_path))
    assert found.keys() == exported.OBJECTS.keys()
    for name, outcome in found.items():
        exact = 1.0 if not name.startswith(("polygon", "rectangle, rotated")) else 0.99  # pycocotools' raster
        assert outcome.annotations == 1, name
        assert outcome.iou is not None, name
        assert outcome.iou >= exact, name
        assert not outcome.boxes, name


@pytest.mark.parametrize(
    ("converter", "lost"),
    [
        ("COCO", {"brush", "brush with a hole", "bit mask", "ellipse"}),
        ("BRUSH_TO_COCO", {"brush, a line", "bit mask", "ellipse"}),
    ],
)
def test_label_studios_own_converters_lose_objects_of_the_same_project(
    converter: str, lost: set[str], tmp_path: Path
) -> None:
    found = exported.outcomes(exported.by_converter(converter, tmp_path))
    assert lost <= {name for name, outcome in found.items() if outcome.iou is None}
    right = [
        name for name, outcome in found.items() if (outcome.iou or 0) >= 0.99 and outcome.annotations == 1
    ]
    assert len(right) <= 4
