"""One picture and one prompt, without a server."""

from __future__ import annotations

import contextlib
import io
from pathlib import Path

import numpy as np
import PIL.Image
import pytest
from click.testing import Result
from pycocotools.coco import COCO
from typer.testing import CliRunner

from clickmask.masks.controls import Controls
from clickmask.masks.regions import mask_iou
from clickmask.masks.rle import as_rle, rle_to_mask
from clickmask.types import ImageRef, Mask, Prompt
from clickmask_adapters.cli import app
from clickmask_adapters.home import Home
from clickmask_adapters.settings import Settings
from support.drawn import disc, rectangle
from support.foreground_networks import offer_salient

SIZE = (60, 90)
DISC, SQUARE = disc(SIZE, (25, 30), 12), rectangle(SIZE, (60, 20, 80, 45))


@pytest.fixture(autouse=True)
def photo(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A white disc and a white square on black, stored turned by 90 degrees with EXIF's word for it."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("CLICKMASK_HOME", str(tmp_path / "home"))
    grey = ((DISC | SQUARE) * np.uint8(255))[..., None].repeat(3, axis=2)
    exif = PIL.Image.Exif()
    exif[0x0112] = 6  # to be turned clockwise to be upright
    turned = PIL.Image.fromarray(np.ascontiguousarray(np.rot90(grey)))
    turned.save(tmp_path / "photo.png", exif=exif)
    return tmp_path / "photo.png"


def segment(*words: str, by: str = "threshold") -> Result:
    return CliRunner().invoke(app, ["segment", "photo.png", *words, "--segmenter", by])


def written(name: str = "mask.png") -> Mask:
    with PIL.Image.open(name) as opened:
        assert opened.mode == "L"
        pixels = np.asarray(opened)
    assert set(np.unique(pixels)) <= {0, 255}
    return pixels > 0


def test_a_point_becomes_the_mask_of_the_upright_picture() -> None:
    done = segment("--point", "25,30", "--out", "mask.png")
    assert done.exit_code == 0, done.output
    assert mask_iou(written(), DISC) > 0.97
    assert done.stdout.startswith(
        f"mask.png: {written().sum()} pixels in the box 13,18,37,42, predicted IoU "
    )
    assert done.stdout.endswith(", threshold\n")


def test_several_boxes_are_several_objects() -> None:
    boxes = ("--box", "10,15,40,45", "--box", "58,18,82,47")
    assert segment(*boxes, "--out", "mask.png").exit_code == 0
    assert mask_iou(written(), DISC | SQUARE) > 0.97
    assert segment(*boxes, "--out", "coco.json").exit_code == 0
    with contextlib.redirect_stdout(io.StringIO()):
        read = COCO("coco.json")
    assert read.loadImgs(1)[0] == {"id": 1, "file_name": "photo.png", "width": 90, "height": 60}
    for number, truth in ((1, DISC), (2, SQUARE)):
        annotation = read.anns[number]
        mask = rle_to_mask(as_rle(read.annToRLE(annotation)))
        assert np.array_equal(mask, written() & truth)
        assert annotation["area"] == mask.sum()
    assert read.anns[2]["bbox"] == [60, 20, 20, 25]


def test_without_a_prompt_a_segmenter_that_needs_none_gives_what_it_finds(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    offer_salient(tmp_path / "home", monkeypatch)
    done = segment("--out", "mask.png", by="salient")
    assert done.exit_code == 0, done.output
    assert mask_iou(written(), DISC | SQUARE) > 0.95
    assert segment("--point", "25,30", "--out", "mask.png", by="salient").exit_code == 0
    assert mask_iou(written(), DISC) > 0.95
    PIL.Image.new("RGB", (40, 30)).save("photo.png")
    nothing = segment("--out", "other.png", by="salient")
    assert (nothing.exit_code, nothing.stderr) == (1, "salient finds nothing in this picture\n")
    assert not Path("other.png").exists()


@pytest.mark.parametrize("words", [("overlay.jpg",), ("overlay.webp",), ("overlay.png", "--as", "overlay")])
def test_an_overlay_shows_the_object_on_the_upright_picture(words: tuple[str, ...]) -> None:
    assert segment("--point", "25,30", "--out", *words).exit_code == 0
    with PIL.Image.open(words[0]) as opened:
        shown = np.asarray(opened.convert("RGB")).astype(int)
    assert shown.shape == (*SIZE, 3)
    red, green, _ = np.moveaxis(shown, 2, 0)
    assert (red - green)[30, 25] > 50
    assert abs(red - green)[30, 70] < 20, "the square is as it was"


def test_controls_shape_the_mask() -> None:
    both = ("--point", "25,30", "--point", "70,30", "--out", "mask.png")
    assert segment(*both, by="grabcut").exit_code == 0
    plain = written()
    assert segment(*both, "--control", "max_parts=1", "--control", "smooth=1.5", by="grabcut").exit_code == 0
    assert np.array_equal(written(), Controls(smooth=1.5, max_parts=1).apply(plain))
    assert not np.array_equal(written(), plain)
    assert "there is no control 'sharp'" in segment(*both, "--control", "sharp=1").stderr


def test_all_points_and_the_default_segmenter_count_as_on_the_server(photo: Path) -> None:
    asked = ("--point", "25,30", "--point", "30,30", "--negative", "70,30", "--box", "10,15,40,45")
    done = CliRunner().invoke(app, ["segment", "photo.png", *asked, "--out", "mask.png"])
    assert done.exit_code == 0, done.output
    assert ", builtin\n" in done.stdout
    workbench = Home(Settings(image_roots=(photo.parent,))).workbench
    prompt = Prompt(((25.0, 30.0), (30.0, 30.0)), ((70.0, 30.0),), (10.0, 15.0, 40.0, 45.0))
    first = workbench.propose(ImageRef(photo.as_uri()), prompt)[0].prediction.mask
    workbench.close()
    assert np.array_equal(written(), first)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--out", "mask.png"), "a prompt needs a foreground point, a box or a mask"),
        (("--negative", "3,3", "--out", "mask.png"), "a prompt needs a foreground point"),
        (("--point", "25,300", "--out", "mask.png"), "point (25, 300) lies outside the 90x60 image"),
        (("--point", "25;30", "--out", "mask.png"), "'25;30' is not X,Y, in pixels"),
        (("--box", "1,2,3", "--out", "mask.png"), "'1,2,3' is not X0,Y0,X1,Y1, in pixels"),
        (("--point", "25,30", "--out", "mask.gif"), "mask.gif ends with none of these"),
        (("--point", "25,30", "--as", "mask", "--out", "mask.jpg"), "mask.jpg ends with none of these"),
        (("--point", "25,30", "--out", "photo.png"), "--out would replace the picture itself"),
        (("--point", "25,30", "--out", "no/mask.png"), "no/mask.png cannot be written: No such file"),
        (("--box", "1,1,9,9", "--box", "2,2,9,9", "--point", "3,3", "--out", "mask.png"), "several boxes"),
    ],
)
def test_a_mistake_is_a_sentence(words: tuple[str, ...], said: str) -> None:
    done = segment(*words)
    assert done.exit_code in (1, 2)
    assert said in " ".join(done.stderr.replace("\u2502", " ").split())
    assert "Traceback" not in done.output
    assert not Path("mask.png").exists()


def test_an_unknown_segmenter_and_a_file_that_is_no_picture_are_said() -> None:
    assert "there is no segmenter 'none'" in segment("--point", "3,3", "--out", "mask.png", by="none").stderr
    Path("photo.png").write_bytes(b"no picture")
    assert "this is not an image" in segment("--point", "3,3", "--out", "mask.png").stderr
