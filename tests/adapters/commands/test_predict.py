"""`clickmask predict FOLDER`."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import pytest
from pycocotools.coco import COCO
from typer.testing import CliRunner, Result

from clickmask.images.decode import DEFAULT_LIMITS, ImageLimits, readable_formats
from clickmask.masks.regions import mask_iou
from clickmask.masks.rle import as_rle, rle_to_mask
from clickmask.types import Image
from clickmask_adapters.cli import app
from clickmask_adapters.commands import predict as command
from clickmask_adapters.home import Home
from clickmask_adapters.settings import read_settings
from support.drawn import scene


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("CLICKMASK_HOME", str(tmp_path / "home"))
    folder = tmp_path / "photos"
    (folder / "more").mkdir(parents=True)
    for name in ("a.png", "more/a.png", "more/a.bmp"):
        PIL.Image.fromarray(scene().pixels).save(folder / name)
    (folder / "more" / "broken.jpg").write_bytes(b"nonsense")
    return folder


def run(folder: Path, *arguments: str) -> Result:
    return CliRunner().invoke(app, ["predict", str(folder), "--out", str(folder / "out"), *arguments])


def test_every_picture_has_a_mask_an_overlay_and_its_objects_in_coco(folder: Path) -> None:
    result = run(folder, "--with", "threshold")
    assert result.exit_code == 1
    known = ", ".join(readable_formats())
    assert result.stderr == (
        f"more/broken.jpg: this is not an image that clickmask reads; it reads {known}\n"
    )
    assert result.stdout == "3 pictures drawn, 0 there already, 3 objects, 1 failed\n"
    out = folder / "out"
    assert sorted(str(path.relative_to(out)) for path in out.glob("[!.]*/**/*.*")) == [
        *("masks/a.png", "masks/labels.json", "masks/more/a.bmp.png", "masks/more/a.png.png"),
        *("overlays/a.jpg", "overlays/more/a.bmp.jpg", "overlays/more/a.png.jpg"),
    ]
    assert json.loads((out / "masks" / "labels.json").read_text()) == {"1": "object"}
    with PIL.Image.open(out / "masks" / "a.png") as opened:
        mask = np.asarray(opened) == 1
    read = COCO(str(out / "predictions.json"))
    assert [each["file_name"] for each in read.dataset["images"]] == ["a.png", "more/a.bmp", "more/a.png"]
    assert np.array_equal(rle_to_mask(as_rle(read.annToRLE(read.anns[1]))), mask)
    assert 0 < mask.mean() < 1
    overlay = np.asarray(PIL.Image.open(out / "overlays" / "a.jpg"), int)
    changed = np.abs(overlay - scene().pixels).max(axis=2) > 30
    assert mask_iou(changed, mask) > 0.8


def test_what_was_drawn_is_not_drawn_again_unless_model_or_picture_changed(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (folder / "more" / "broken.jpg").unlink()
    assert run(folder, "--with", "threshold", "--as", "coco").exit_code == 0
    written = (folder / "out" / "predictions.json").read_bytes()
    PIL.Image.fromarray(255 - scene().pixels).save(folder / "a.png")
    again = run(folder, "--with", "threshold")
    assert again.stdout == "1 pictures drawn, 2 there already, 3 objects, 0 failed\n"
    assert len(list((folder / "out" / "masks").rglob("*.png"))) == 3
    assert (folder / "out" / "predictions.json").read_bytes() != written
    assert run(folder, "--with", "contours").stdout.startswith("3 pictures drawn")

    def stop(*_: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(command, "decode_image", stop)
    stopped = run(folder, "--with", "region_growing")
    assert (stopped.exit_code, stopped.stderr) == (130, "interrupted; the same command goes on from there\n")


def test_a_projects_model_draws_under_its_version(folder: Path) -> None:
    (folder / "more" / "broken.jpg").unlink()
    drafts: Any = pytest.importorskip("support.model_drafts")  # needs onnx
    home = Home(read_settings())
    models = home.models.of("label_studio", "7")
    first = models.promote(models.save(drafts.measured_draft(2.0)).id)
    home.close()
    assert run(folder, "--project", "label-studio", "7").exit_code == 0
    described = json.loads((folder / "out" / "predictions.json").read_text())
    assert first.id in described["info"]["description"]
    assert [each["name"] for each in described["categories"]] == list(first.provenance.categories)
    assert run(folder, "--project", "label-studio", "7").stdout.startswith("0 pictures drawn, 3 there")


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ((), "give either --project TOOL PROJECT or --with NAME"),
        (("--with", "threshold", "--as", "video"), "--as is one of mask, coco, overlay"),
        (("--with", "nothing"), "there is no segmenter 'nothing'"),
        (("--with", "trained:label_studio-1"), "trained has no variant 'label_studio-1'"),
        (("--project", "paint", "1"), "there is no tool 'paint'"),
    ],
)
def test_what_cannot_draw_is_said_in_a_sentence(folder: Path, arguments: tuple[str, ...], said: str) -> None:
    result = run(folder, *arguments)
    assert result.exit_code in (1, 2)
    assert said in " ".join(result.stderr.replace("│", " ").split())
    assert not (folder / "out").exists()


def test_a_picture_that_cannot_be_read_keeps_no_other_out(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    listed = list(command.folder_images(folder))
    gone = replace(listed[0], name="gone.png")
    monkeypatch.setattr(command, "folder_images", lambda _: [gone, *listed])  # it was removed since
    result = run(folder, "--with", "threshold", "--as", "mask")
    assert result.stderr.startswith("gone.png: it cannot be read: No such file or directory\n")
    assert result.stdout == "3 pictures drawn, 0 there already, 3 objects, 2 failed\n"


def test_overlays_are_made_of_pictures_as_large_as_the_settings_allow(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CLICKMASK_MAX_IMAGE_PIXELS", "123000000")
    given: list[int] = []
    decode = command.decode_image

    def decoded(raw: bytes, limits: ImageLimits = DEFAULT_LIMITS) -> Image:
        given.append(limits.max_pixels)
        return decode(raw, limits)

    monkeypatch.setattr(command, "decode_image", decoded)
    run(folder, "--with", "threshold")
    assert set(given) == {123_000_000}


def test_a_folder_without_pictures_is_said(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    assert "there is no image here" in run(tmp_path / "empty", "--with", "threshold").stderr
