"""A COCO export is what a real Label Studio holds, mask by mask, as pycocotools reads it."""

from __future__ import annotations

import contextlib
import io
import json
import zipfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import requests
from PIL import Image
from pycocotools.coco import COCO

from clickmask.images.fetch import Fetcher
from clickmask.images.source import ImageSource
from clickmask_adapters.tools.label_studio.client import LabelStudioClient
from clickmask_adapters.tools.label_studio.connect import connect
from e2e.test_label_studio_accepted import (
    KINDS,
    SIZE,
    TOOL,
    XML,
    Clickmask,
    Masks,
    annotate,
    held_by_label_studio,
    one_of_each,
    phone_jpeg,
    png,
    same,
)
from support.label_studio_server import LabelStudioServer
from support.scenes import drawn_scene

pytestmark = [
    pytest.mark.slow,
    # pycocotools 2.0.x returns arrays in a way that numpy 2 is going to drop.
    pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning"),
]


@pytest.fixture
def running(studio: LabelStudioServer, tmp_path: Path) -> Iterator[Clickmask]:
    clickmask = Clickmask(tmp_path / "home", studio)
    yield clickmask
    clickmask.server.stop()


def read(path: Path) -> tuple[Masks, COCO]:
    """The masks by task, annotation, region and category, as `held_by_label_studio` has them."""
    with contextlib.redirect_stdout(io.StringIO()):
        loaded = COCO(str(path))
    masks: Masks = {}
    for each in loaded.anns.values():
        _, _, task, annotation, region = each["attributes"]["region"].split("/", 4)
        category = loaded.cats[each["category_id"]]["name"]
        masks[task, annotation, region, category] = loaded.annToMask(each).astype(bool)
        assert each["area"] == masks[task, annotation, region, category].sum()
    return masks, loaded


def only(held: Masks, *annotations: int) -> Masks:
    return {key: mask for key, mask in held.items() if int(key[1]) in annotations}


def test_the_export_is_what_label_studio_holds_mask_by_mask(
    studio: LabelStudioServer, running: Clickmask, tmp_path: Path
) -> None:
    project = studio.new_project("to export", XML)
    images = ImageSource(Fetcher(trusted_origins=[studio.url]))
    list(
        connect(LabelStudioClient(studio.url, studio.token), str(project), running.url, None, images.identify)
    )
    pictures = [drawn_scene(number)[0] for number in (1, 2, 3)]
    plain, phone, third = (
        studio.upload(project, *encode(pixels))
        for encode, pixels in zip((png, phone_jpeg, png), pictures, strict=True)
    )
    first, upright = annotate(studio, plain, *one_of_each()), annotate(studio, phone, *one_of_each())
    annotate(studio, third, *one_of_each(), was_cancelled=True)
    second = annotate(studio, plain, *one_of_each()[:3])  # the newest counts
    running.read_all()
    running.kill()
    running.start()

    out = tmp_path / "out"

    def export(*options: str) -> tuple[Masks, COCO]:
        done = running.run("export", "coco", "label-studio", str(project), "--out", str(out), *options)
        assert done.returncode == 0, done.stderr
        return read(out / "annotations" / "instances.json")

    held = held_by_label_studio(studio, project)
    exact, loaded = export("--polygons", "exact")
    assert same(exact, only(held, second, upright))
    assert [category["name"] for category in loaded.dataset["categories"]] == list(KINDS.values())
    for image in loaded.dataset["images"]:
        assert (image["height"], image["width"]) == SIZE
        with Image.open(out / "images" / image["file_name"]) as picture:
            assert picture.size == SIZE[::-1]
            assert 0x0112 not in picture.getexif()
    assert sorted(image["file_name"] for image in loaded.dataset["images"]) == ["phone.jpg", "plain.png"]

    drawn, loaded = export()
    assert drawn.keys() == exact.keys()
    for key, mask in drawn.items():
        truth = exact[key]
        alike = (mask & truth).sum() / (mask | truth).sum()
        assert alike == 1 or (key[3] in ("Outlined", "Boxed") and alike > 0.97), key
    (ring,) = next(a for a in loaded.anns.values() if a["attributes"]["region"].endswith(f"{second}/ring"))[
        "segmentation"
    ]
    corners = np.array([[50.1, 60.3], [80.7, 62.2], [66.6, 95.5]]) * (SIZE[1] / 100, SIZE[0] / 100)
    assert np.allclose(np.reshape(ring, (3, 2)), corners)

    answer = requests.get(f"{running.url}/v1/projects/{TOOL}/{project}/export/coco", timeout=60)
    with zipfile.ZipFile(io.BytesIO(answer.content)) as archive:
        for name in archive.namelist():
            assert archive.read(name) == (out / name).read_bytes()

    # What clickmask was not told of is pulled first.
    running.kill()
    studio.api("DELETE", f"/api/annotations/{second}/")
    pulled, _ = export("--pull", "--polygons", "exact")
    held = held_by_label_studio(studio, project)
    assert same(pulled, only(held, first, upright))
    assert len(pulled) == 12
    stats = json.loads(running.run("stats", "label-studio", str(project), "--json").stdout)
    assert (stats["images"], stats["labels"], stats["flaw_count"]) == (2, 12, 0)
    running.start()
