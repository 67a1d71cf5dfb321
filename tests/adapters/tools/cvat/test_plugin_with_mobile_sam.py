"""CVAT's own Segment Anything plugin on MobileSAM's embeddings, with published weights."""

from __future__ import annotations

import base64
import io
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import PIL.Image
import pytest
from fastapi.testclient import TestClient

pytest.importorskip("torch")

from clickmask.inference.catalogue import SegmenterStatus
from clickmask.masks.regions import mask_iou
from clickmask.reports.clicks import central_point
from clickmask.segmenters import mobile_sam
from clickmask.segmenters._sam.segmenter import Sam
from clickmask.types import Mask, Point
from clickmask.workbench import Workbench
from clickmask_adapters.app import create_app
from clickmask_adapters.home import Home
from clickmask_adapters.settings import Settings
from clickmask_adapters.tools.cvat.functions import SAM_PLUGIN
from conftest import OneSegmenter
from support.cvat_standin import Cvat
from support.photographs import outlined_objects
from support.real_weights import BROWSER_DECODER, require_real_weights


class WithMobileSam(OneSegmenter):
    def statuses(self) -> list[SegmenterStatus]:
        decoder = mobile_sam.VARIANTS["vit_t"].sam_decoder
        return [SegmenterStatus(self._segmenter.name, True, "", decoder)]


def decoded(decoder: Any, blob: str, size: tuple[int, int], clicks: list[Point]) -> Mask:
    """The mask as CVAT's page makes it of the server's answer (cvat-ui/plugins/sam, read in CVAT 2.73.0)."""
    scale = 1024 / max(size)
    points = np.array([*clicks, (0, 0)], np.float32)[None] * np.float32(scale)
    embedding = np.frombuffer(base64.b64decode(blob), "<f4").reshape(1, 256, 64, 64)
    masks, *_ = decoder.run(
        None,
        {
            "image_embeddings": embedding,
            "point_coords": points,
            "point_labels": np.array([*[1] * len(clicks), -1], np.float32)[None],
            "mask_input": np.zeros((1, 1, 256, 256), np.float32),
            "has_mask_input": np.zeros(1, np.float32),
            "orig_im_size": np.array(size, np.float32),
        },
    )
    return masks[0, 0] > 0


@pytest.mark.slow
def test_the_pages_decoder_draws_outlined_objects_on_its_embeddings(
    workbench: Workbench, published_mobile_sam: Sam, tmp_path: Path
) -> None:
    workbench._catalogue = WithMobileSam(published_mobile_sam)  # pyright: ignore[reportPrivateUsage]
    decoder = onnxruntime.InferenceSession(str(require_real_weights() / BROWSER_DECODER))
    clicked = {"astronaut: mission patch", "chelsea: cat", "coins: largest coin", "coins: top right coin"}
    things = [thing for thing in outlined_objects() if thing.name in clicked]
    assert len(things) == len(clicked)
    blobs: dict[str, str] = {}
    home = Home(Settings(home=tmp_path / "home"), workbench)
    with TestClient(create_app(home), "http://127.0.0.1:9090", client=("127.0.0.1", 5000)) as client:
        cvat = Cvat(client)
        assert (
            cvat.models()[SAM_PLUGIN].name
            == "Segment Anything in the browser (embeddings of mobile_sam:vit_t)"
        )
        for thing in things:
            if thing.photograph not in blobs:
                raw = io.BytesIO()
                PIL.Image.fromarray(thing.pixels).save(raw, "png")
                blobs[thing.photograph] = cvat.click(SAM_PLUGIN, raw.getvalue())["blob"]
    for thing in things:
        click = central_point(thing.mask)
        assert click is not None
        found = decoded(decoder, blobs[thing.photograph], thing.mask.shape[:2], [click])
        assert mask_iou(found, thing.mask) > 0.9, thing.name
