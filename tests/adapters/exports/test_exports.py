"""What every export promises, those that are yet to be written too."""

from __future__ import annotations

import hashlib
from pathlib import Path
from types import ModuleType

import pytest

from clickmask import plugins
from clickmask.datasets.snapshot import Dataset, create_dataset
from clickmask.errors import InvalidInput, InvalidRequest
from clickmask.labels.geometry import Ellipse, Rectangle
from clickmask_adapters import exports
from support.drawn import disc, ring, two_parts
from support.labelled import FilesInMemory, accepted, digest_of, labelled, noise, png, polygon

NAMES = plugins.names(exports)


def drawn_dataset(*, with_labels: bool = True) -> Dataset:
    """Every kind of geometry, an image without labels, and one whose file is not kept."""
    labels = [
        accepted("a", polygon((10.5, 10), (30, 10.25), (28, 30)), "cell", region="polygon"),
        accepted("a", Rectangle((30, 5, 50, 20), 15.0), "cell", region="rectangle"),
        accepted("a", Ellipse((20, 35), (12, 6), 30.0), "nucleus", region="ellipse"),
        accepted("b", disc(), "nucleus", region="disc"),
        accepted("b", ring(), "cell", region="ring"),
        accepted("b", two_parts(), "cell", region="parts"),
        accepted("b", polygon((90, 90), (95, 90), (95, 95)), "cell", region="outside"),
        accepted("d", disc(), "cell", region="lost"),
    ]
    return create_dataset(
        [labelled(name, task=name) for name in "abcd"],
        labels if with_labels else [],
        tool="label_studio",
        project="7",
        declared=["cell", "nucleus", "unused"],
        pictures=FilesInMemory({name: png(noise(ord(name))) for name in "abc"}),
    )


def contents(folder: Path) -> dict[str, str]:
    files = (path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


@pytest.fixture(params=NAMES)
def export(request: pytest.FixtureRequest) -> ModuleType:
    return plugins.load(exports, request.param)


def test_coco_is_an_export() -> None:
    assert "coco" in NAMES


def test_a_picture_without_an_ending_gets_that_of_its_bytes(export: ModuleType, tmp_path: Path) -> None:
    """Readers of YOLO and VOC pass over other files."""
    names = {"a": "download", "b": "scan.2024", "c": "c.JPG", "d": "get.php", "e": ".."}
    made = create_dataset(
        [labelled(image, task=image, name=name) for image, name in names.items()],
        [accepted("a", disc())],
        tool="label_studio",
        project="7",
        pictures=FilesInMemory({name: png(noise(ord(name))) for name in names}),
    )
    export.write(made, tmp_path / "out")
    found = {path.name for path in (tmp_path / "out").rglob("*") if path.is_file()}
    assert found >= {"download.png", "scan.2024.png", "c.JPG", "get.php.png", f"{digest_of('e')[:8]}.png"}
    assert any(loss.startswith("4 images have another file name") for loss in export.losses(made))


def test_the_same_dataset_gives_the_same_bytes(export: ModuleType, tmp_path: Path) -> None:
    one, other = tmp_path / "one", tmp_path / "other"
    main = export.write(drawn_dataset(), one)
    assert main.exists()
    assert main.is_relative_to(one)
    export.write(drawn_dataset(), other)
    assert contents(one) == contents(other)


def test_an_earlier_export_is_replaced_whole(export: ModuleType, tmp_path: Path) -> None:
    folder = tmp_path / "deep" / "out"
    export.write(drawn_dataset(), folder)
    export.write(drawn_dataset(with_labels=False), folder)
    export.write(drawn_dataset(with_labels=False), tmp_path / "fresh")
    assert contents(folder) == contents(tmp_path / "fresh")
    assert [path.name for path in folder.parent.iterdir()] == ["out"]


@pytest.mark.parametrize("file", ["notes.txt", "images/mine.png", "annotations/train.json"])
def test_nothing_of_somebody_else_is_ever_removed(export: ModuleType, tmp_path: Path, file: str) -> None:
    folder = tmp_path / "out"
    export.write(drawn_dataset(), folder)
    (folder / file).parent.mkdir(exist_ok=True)
    (folder / file).write_text("mine")
    before = contents(folder)
    with pytest.raises(InvalidRequest, match="which is no export's"):
        export.write(drawn_dataset(), folder)
    assert contents(folder) == before


def test_a_failure_leaves_the_earlier_export(export: ModuleType, tmp_path: Path) -> None:
    folder = tmp_path / "out"
    export.write(drawn_dataset(), folder)
    before = contents(folder)
    broken = drawn_dataset()
    assert isinstance(broken.pictures, FilesInMemory)
    broken.pictures.files = dict.fromkeys(broken.pictures.files, b"damaged")
    with pytest.raises(InvalidInput, match="damaged"):
        export.write(broken, folder)
    assert contents(folder) == before
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_a_dataset_without_any_label_is_exported(export: ModuleType, tmp_path: Path) -> None:
    assert export.write(drawn_dataset(with_labels=False), tmp_path / "out").exists()


def test_what_is_lost_is_said_in_sentences(export: ModuleType) -> None:
    said = export.losses(drawn_dataset())
    assert any("1 images are not kept" in sentence for sentence in said)
