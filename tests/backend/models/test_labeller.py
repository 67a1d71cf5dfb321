"""What a trained network said at its own size, brought to the picture's."""

from __future__ import annotations

import cv2
import numpy as np
import pytest

from clickmask.models import labeller
from clickmask.types import Size


class Saying:
    """A session that answers with the same logits each time."""

    def __init__(self, logits: np.ndarray) -> None:
        self._logits = logits

    def run(self, feeds: object) -> dict[str, np.ndarray]:
        return {labeller.LOGITS: self._logits}


@pytest.mark.parametrize("size", [(90, 120), (400, 30), (31, 1000)])
@pytest.mark.parametrize("rows", [1, 7, 1000])
def test_classes_of_a_large_picture_are_drawn_a_few_rows_at_a_time(
    size: Size, rows: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(labeller, "MAX_SIDE_PX", 24)
    monkeypatch.setattr(labeller, "PIXELS_AT_ONCE", rows * size[1])
    height, width = labeller.working_size(size)
    logits = np.random.default_rng(0).normal(size=(1, 3, 32, 32)).astype(np.float32)
    found = labeller.Labeller(Saying(logits)).predict(np.zeros((*size, 3), np.uint8))
    shown = [cv2.resize(plane[:height, :width], size[::-1]) for plane in logits[0]]
    assert (found.classes == np.argmax(shown, axis=0)).mean() > 0.999
    assert found.confidence.shape == (height, width)
