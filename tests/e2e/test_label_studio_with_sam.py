"""The real Label Studio once more, with a small Segment Anything of random weights behind it.

Which masks random weights make says nothing; that they are regions Label Studio keeps, the same
ones for the same click, from an image that is encoded once, does.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("torch")
import requests

from clickmask.images.fetch import Fetcher
from clickmask.images.source import ImageSource
from clickmask.masks.regions import mask_iou
from clickmask.reports.clicks import central_point
from clickmask_adapters.tools.label_studio.client import LabelStudioClient
from clickmask_adapters.tools.label_studio.connect import connect
from e2e.test_label_studio import config, plain, saved_masks
from support.checkpoints import TINY, write_checkpoint
from support.clicking import chromium
from support.label_studio_server import LabelingPage, LabelStudioServer
from support.pictures import to_base64
from support.scenes import drawn_scene
from support.serve_checkpoint import server_of
from support.served import Server

pytestmark = pytest.mark.slow

CLICK = re.compile(r"label_studio: image \w{8}, sam:vit_b, embedding (kept|made) in")


@pytest.fixture(scope="module")
def sam_server(studio: LabelStudioServer, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    folder: Path = tmp_path_factory.mktemp("sam")
    checkpoint = write_checkpoint(folder / "sam_vit_b_random.pth", TINY)
    server = server_of(
        checkpoint, folder / "home", LABEL_STUDIO_URL=studio.url, LABEL_STUDIO_API_KEY=studio.token
    )
    # The first click on a checkpoint waits for its export; a browser does not wait so long.
    body = {
        "image": {"data": to_base64(np.zeros((40, 60, 3), np.uint8))},
        "prompt": {"foreground": [[30, 20]]},
    }
    requests.post(f"{server.url}/v1/proposals", json=body, timeout=600).raise_for_status()
    yield server
    server.stop()


def cache(server: Server) -> dict[str, Any]:
    return requests.get(f"{server.url}/v1/status", timeout=10).json()["cache"]


def values(answer: Any) -> list[Any]:
    """Type and value of each region, without ids and scores."""
    return [(region["type"], region["value"]) for region in answer.json()["data"]["result"]]


def test_equal_clicks_on_sam_give_equal_regions_and_encode_the_image_once(
    studio: LabelStudioServer, sam_server: Server
) -> None:
    pixels, truths = drawn_scene(1)
    height, width = pixels.shape[:2]
    at = central_point(truths[2])
    assert at
    project = studio.new_project("with SAM", config("both"))
    tasks = [studio.upload(project, *plain(pixels)) for _ in range(2)]
    read = ImageSource(Fetcher(trusted_origins=[studio.url])).identify
    list(connect(LabelStudioClient(studio.url, studio.token), str(project), sam_server.url, None, read))
    with chromium() as browser:
        annotator = LabelingPage(browser.new_page(viewport={"width": 1400, "height": 900}), studio)
        annotator.log_in()
        regions = []
        for task in tasks:  # of the same image, so that nothing was pointed at yet in either
            annotator.open(project, task, width)
            annotator.choose("Thing", -2)
            annotator.take("key-point-tool")
            before = cache(sam_server)
            answer = annotator.click(*at)
            assert answer.ok, answer.text()
            after = cache(sam_server)
            regions.append(values(answer))
            annotator.accept()
            annotator.submit()

    assert regions[0] == regions[1]
    assert CLICK.findall(sam_server.output)[1:] == ["kept"]
    assert (after["hits"], after["misses"]) == (before["hits"] + 1, before["misses"])
    assert after["entries"] == 2, "one of the fixture's picture, one of the scene"
    for task in tasks:
        (annotation,) = studio.annotations(task)
        masks = saved_masks(annotation["result"], (height, width))
        assert set(masks) == {"brush", "polygon"}
        assert 0.05 <= masks["brush"].mean() <= 0.95
        assert mask_iou(masks["polygon"], masks["brush"]) >= 0.9
