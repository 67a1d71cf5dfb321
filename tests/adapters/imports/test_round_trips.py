"""A project is exported and imported into a new home: the same dataset, as far as the format can tell it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from clickmask import plugins
from clickmask.datasets.snapshot import Dataset, snapshot
from clickmask.images.source import ImageIdentity
from clickmask.ingest.imports import (
    ImportedDataset,
    ImportedImage,
    ImportedLabel,
    ImportProgress,
    take_in,
)
from clickmask.labels.geometry import Ellipse, Geometry, Polygon, Rectangle, geometry_to_rle
from clickmask.labels.submissions import ProjectDescribed, Region, Submission
from clickmask.masks.rle import rle_iou, unite
from clickmask_adapters import exports, imports
from clickmask_adapters.home import Home
from clickmask_adapters.settings import read_settings
from support.drawn import disc, ring, two_parts
from support.labelled import SIZE, brush, noise, png

TOOL, PROJECT = "label_studio", "7"
SHAPES: list[tuple[str, Geometry]] = [
    ("cell", brush(disc())),
    ("cell", brush(ring())),
    ("nucleus", brush(two_parts())),
    ("cell", Polygon((((10.25, 10.5), (30.125, 12.0), (20.0, 40.75)),))),
    ("nucleus", Polygon((((5.0, 5.0), (40.0, 5.0), (40.0, 40.0)), ((36.0, 8.0), (38.0, 8.0), (38.0, 20.0))))),
    ("cell", Polygon((((50.0, 30.0), (90.0, 30.0), (90.0, 60.0)),))),  # reaches out of the picture
    ("nucleus", Rectangle((3.5, 4.0, 20.0, 30.0))),
    ("cell", Rectangle((20.0, 10.0, 50.0, 30.0), 30.0)),
    ("nucleus", Ellipse((30.0, 20.0), (15.0, 8.0), 20.0)),
]


@pytest.fixture
def homes(tmp_path: Path) -> Iterator[tuple[Home, Home]]:
    with (
        closing(Home(read_settings(home=tmp_path / "one"))) as one,
        closing(Home(read_settings(home=tmp_path / "two"))) as two,
    ):
        yield one, two


def fill(home: Home, pictures: int = 20, layered: bool = True) -> Dataset:
    """Pictures of every shape, two of a name, several pages a task; the first has nothing on it."""
    described = ProjectDescribed(TOOL, PROJECT, "Cells", ("nucleus", "cell", "unused"))
    home.store.describe_project(described)
    for number in range(pictures):
        raw = png(noise(number))
        image = home.images.load_bytes(raw)
        home.archive.keep(image.digest, raw)
        some = [SHAPES[(number + step) % len(SHAPES)] for step in range(number and 1 + number % 3)]
        regions = tuple(
            Region(f"r/{place}", category, geometry, None, place if layered else 0)
            for place, (category, geometry) in enumerate(some)
        )
        name = "same.png" if number in (2, 3) else f"{number}.png"
        task, annotation, item = f"{number // 2}", f"{100 + number // 2}", number % 2
        submission = Submission(
            TOOL, PROJECT, task, annotation, f"https://x/{number}", name, SIZE, regions, 1000.0, item=item
        )
        drawn = [(region, geometry_to_rle(region.geometry, SIZE)) for region in regions]
        assert home.store.accept(submission, ImageIdentity(image.digest, SIZE), drawn)
    return snapshot(home.store, TOOL, PROJECT, home.archive)


def take(home: Home, form: str, place: Path, project: str = PROJECT) -> tuple[ImportProgress, Dataset]:
    read = plugins.load(imports, form).read(place)
    *_, done = take_in(read, TOOL, project, home.store, home.images, home.archive)
    return done, snapshot(home.store, TOOL, project, home.archive)


@pytest.mark.parametrize("unlabelled", ["background", "ignore"])
def test_coco_gives_back_the_same_dataset(homes: tuple[Home, Home], tmp_path: Path, unlabelled: str) -> None:
    one, two = homes
    made = fill(one)
    one.store.set_unlabelled(TOOL, PROJECT, "ignore" if unlabelled == "ignore" else "background")
    made = snapshot(one.store, TOOL, PROJECT, one.archive)
    plugins.load(exports, "coco").write(made, tmp_path / "out")
    done, back = take(two, "coco", tmp_path / "out")
    assert (done.taken, done.known, done.left_out) == (20, 0, ())
    assert back.digest == made.digest
    again, _ = take(two, "coco", tmp_path / "out")
    assert (again.taken, again.known) == (0, 20)


@pytest.mark.parametrize("form", ["yolo", "voc", "png"])
def test_every_format_gives_back_pictures_names_sides_and_what_it_can_of_the_masks(
    homes: tuple[Home, Home], tmp_path: Path, form: str
) -> None:
    one, two = homes
    made = fill(one, layered=False)
    plugins.load(exports, form).write(made, tmp_path / "out")
    done, back = take(two, form, tmp_path / "out")
    assert (done.taken, done.left_out) == (20, ())
    assert back.categories == made.categories
    assert {each.image: each.side for each in back.samples} == {
        each.image: each.side for each in made.samples
    }
    labels = {each.image: each.labels for each in back.samples}
    for sample in made.samples:
        for category in made.categories:
            meant = [each.rle for each in sample.labels if each.category == category]
            found = [each.rle for each in labels[sample.image] if each.category == category]
            assert bool(meant) >= bool(found)
            if form == "yolo":
                assert len(meant) == len(found)
            if meant and (form == "yolo" or len({each.category for each in sample.labels}) == 1):
                assert rle_iou(unite(meant), unite(found)) > (0.94 if form == "yolo" else 0.999)


@pytest.mark.parametrize("form", ["coco", "yolo", "voc", "png"])
def test_a_second_round_trip_changes_nothing(homes: tuple[Home, Home], tmp_path: Path, form: str) -> None:
    one, two = homes
    write = plugins.load(exports, form).write
    write(fill(one), tmp_path / "first")
    first = take(two, form, tmp_path / "first", "8")[1]
    write(first, tmp_path / "second")
    (tmp_path / "first").rename(tmp_path / "apart")
    (tmp_path / "second").rename(tmp_path / "first")
    second = take(two, form, tmp_path / "first", "9")[1]
    assert [(each.image, each.name, each.side) for each in second.samples] == [
        (each.image, each.name, each.side) for each in first.samples
    ]
    for before, after in zip(first.samples, second.samples, strict=True):
        assert [each.category for each in before.labels] == [each.category for each in after.labels]
        ious = [rle_iou(a.rle, b.rle) for a, b in zip(before.labels, after.labels, strict=True)]
        assert min(ious, default=1) > (0.94 if form == "yolo" else 0.999)


def test_what_a_tool_says_replaces_an_import_and_an_import_never_what_a_tool_said(
    homes: tuple[Home, Home], tmp_path: Path
) -> None:
    one, two = homes
    made = fill(one)
    plugins.load(exports, "coco").write(made, tmp_path / "out")
    assert take(one, "coco", tmp_path / "out")[0].known == 20
    take(two, "coco", tmp_path / "out")
    corrected = made.samples[-1]
    shown = corrected.shown_as[0]
    region = Region("r/0", "cell", brush(disc()))
    submission = Submission(
        TOOL,
        PROJECT,
        shown.task,
        shown.annotation,
        "https://x",
        shown.name,
        SIZE,
        (region,),
        500.0,
        item=shown.item,
    )
    assert two.store.is_news(submission)
    drawn = [(region, geometry_to_rle(region.geometry, SIZE))]
    assert two.store.accept(submission, ImageIdentity(corrected.image, SIZE), drawn)
    done, back = take(two, "coco", tmp_path / "out")
    assert (done.taken, done.known) == (0, 20)
    (kept,) = (each for each in back.samples if each.image == corrected.image)
    assert [each.geometry for each in kept.labels] == [region.geometry]
    assert (shown.task, shown.annotation) in two.store.annotations(TOOL, PROJECT)
    assert len(two.store.annotations(TOOL, PROJECT)) == 1  # a pull asks the tool about no import


def test_labels_of_the_tool_on_an_image_count_before_an_import_of_any_date(
    homes: tuple[Home, Home], tmp_path: Path
) -> None:
    _, home = homes
    raw = png(noise(1))
    image = home.images.load_bytes(raw)
    region = Region("r", "cell", brush(disc()))
    submission = Submission(TOOL, PROJECT, "1", "1", "https://x", "1.png", SIZE, (region,), 5.0)
    drawn = [(region, geometry_to_rle(region.geometry, SIZE))]
    home.store.accept(submission, ImageIdentity(image.digest, SIZE), drawn)
    (tmp_path / "1.png").write_bytes(raw)
    picture = ImportedImage(tmp_path / "1.png", "1.png", [ImportedLabel("dog", Rectangle((1, 1, 9, 9)))])
    dataset = ImportedDataset("drawn", 2.0**33, ("dog",), [lambda: picture])
    *_, done = take_in(dataset, TOOL, PROJECT, home.store, home.images, home.archive)
    assert done.taken == 1
    assert [label.category for label in home.store.labels(TOOL, PROJECT)] == ["cell"]
    assert [label.category for label in home.store.labels(TOOL, PROJECT, True)] == ["cell", "dog"]
    (sample,) = snapshot(home.store, TOOL, PROJECT, home.archive).samples
    assert [label.category for label in sample.labels] == ["cell"]
