from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from clickmask.datasets.snapshot import Dataset, create_dataset
from clickmask.labels.geometry import Ellipse, Geometry, Polygon, Rectangle
from clickmask.labels.split import Assigned, Side, fingerprint
from clickmask.labels.submissions import AcceptedLabel
from clickmask.reports.statistics import count, find_flaws
from support.drawn import disc, line, rectangle, stairs
from support.labelled import SIZE, accepted, digest_of, labelled, noise, polygon

pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")
SQUARE = polygon((10, 10), (30, 10), (30, 30), (10, 30))


def dataset(labels: list[AcceptedLabel], images: str = "a", sides: str = "", **more: Any) -> Dataset:
    full: dict[str, Side] = {"t": "train", "v": "validation", "x": "test"}
    placed = [
        Assigned(digest_of(name), full[side], fingerprint(noise(ord(name))))
        for name, side in zip(images, sides, strict=False)
    ]
    shown = [labelled(name) for name in images]
    return create_dataset(shown, labels, placed, tool="cvat", project="1", **more)


def kinds(geometry: Geometry | np.ndarray, size: tuple[int, int] = SIZE) -> list[str]:
    made = create_dataset(
        [labelled("a", size=size)], [accepted("a", geometry, size=size)], tool="cvat", project="1"
    )
    return [flaw.kind for flaw in find_flaws(made) if flaw.kind != "unplaced"]


def test_labels_are_counted_by_category_with_their_sizes_and_points() -> None:
    labels = [
        accepted("a", SQUARE, "cell", region="1"),
        accepted(
            "a", Polygon((((0, 0), (40, 0), (40, 40)), ((20, 5), (30, 5), (30, 9)))), "cell", region="2"
        ),
        accepted("b", rectangle(SIZE, (0, 0, 40, 40)), "cell", region="3"),
        accepted("b", disc(), "nucleus", region="4"),
    ]
    made = count(dataset(labels, "abc", "tvx", declared=["nucleus", "cell", "unused"]))
    nucleus, cell, unused = made.categories
    assert (cell.labels, cell.images) == (3, 2)
    assert cell.areas is not None
    assert (cell.areas[0], cell.areas[2]) == (400, 1600)
    assert abs(cell.areas[1] - 780) < 25  # half of 40 x 40, less the hole
    assert (cell.small, cell.medium, cell.large) == (2, 1, 0)
    assert cell.points == 5  # of 4 and 6
    assert nucleus.points is None
    assert (unused.labels, unused.areas) == (0, None)
    assert (made.images, made.unlabelled_images, made.labels) == (3, 1, 4)
    assert made.sides == {"train": 1, "validation": 1, "test": 1, "quarantined": 0, "unplaced": 0}
    assert made.too_few


def test_sound_labels_have_no_flaws() -> None:
    for geometry in (SQUARE, disc(), Ellipse((30, 20), (9, 6), 20.0), Rectangle((0, 0, 64, 48))):
        assert kinds(geometry) == []


@pytest.mark.parametrize(
    ("mask", "sliver"),
    [
        (line(), True),
        (stairs(), True),
        (rectangle((20, 30), (4, 9, 25, 11)), True),
        (rectangle((20, 30), (4, 9, 25, 12)), False),
        (rectangle((20, 30), (4, 9, 6, 11)), True),
        (rectangle((20, 30), (4, 9, 7, 12)), False),
    ],
)
def test_a_sliver_is_nowhere_three_pixels_wide(mask: np.ndarray, sliver: bool) -> None:
    assert kinds(mask, mask.shape) == ["sliver"] * sliver


@pytest.mark.parametrize(
    ("geometry", "expected"),
    [
        (polygon((-0.9, 10), (30, 10), (30, 30)), []),
        (polygon((-3, 10), (30, 10), (30, 30)), ["outside"]),
        (polygon((100, 100), (130, 100), (130, 130)), ["empty", "outside"]),
        (Rectangle((50, 30, 66, 45)), ["outside"]),
        (Rectangle((44, 20, 64, 40), 45.0), ["outside"]),
        (Ellipse((56, 24), (10, 3), 0.0), ["outside"]),
        (Ellipse((56, 24), (10, 3), 90.0), []),
        (Polygon(()), ["empty"]),
    ],
)  # fmt: skip
def test_what_leaves_the_image_or_covers_nothing_is_a_flaw(geometry: Geometry, expected: list[str]) -> None:
    assert kinds(geometry) == expected


def test_the_same_object_twice_is_a_flaw_of_the_second() -> None:
    labels = [
        accepted("a", rectangle(SIZE, (5, 5, 40, 40)), "cell", region="1"),
        accepted("a", rectangle(SIZE, (5, 5, 40, 41)), "cell", region="2"),
        accepted("a", rectangle(SIZE, (5, 5, 40, 41)), "nucleus", region="3"),
        accepted("a", rectangle(SIZE, (5, 5, 40, 30)), "cell", region="4"),
    ]
    found = list(find_flaws(dataset(labels, "a", "t")))
    assert [(flaw.kind, flaw.label and flaw.label.region) for flaw in found] == [("duplicate", "2")]
    assert "as region 1 of task 1 too" in found[0].sentence


def test_many_labels_of_one_object_are_a_flaw_each_and_not_one_a_pair() -> None:
    square = rectangle(SIZE, (5, 5, 40, 40))
    labels = [accepted("a", square, "cell", region=f"{number:03}") for number in range(300)]
    found = list(find_flaws(dataset(labels, "a", "t")))
    assert [flaw.kind for flaw in found] == ["duplicate"] * 299
    assert all("as region 000 of task 1 too" in flaw.sentence for flaw in found)


def test_a_category_that_a_side_lacks_is_a_flaw_once_there_are_enough_images() -> None:
    images = "abcdefghijklmnop"
    labels = [accepted(name, SQUARE, "cell") for name in images]
    labels += [accepted("a", disc(), "rare", region="rare")]
    found = list(find_flaws(dataset(labels, images, "t" * 10 + "vvvxxx")))
    assert [flaw.sentence for flaw in found] == ["rare has no label on: validation, test"]
    assert not any(flaw.kind == "absent" for flaw in find_flaws(dataset(labels[:3], "abc", "tvx")))


def test_images_that_are_not_used_are_named_with_the_reason() -> None:
    near = [
        Assigned(digest_of("a"), "train", fingerprint(noise(1))),
        Assigned(digest_of("b"), "test", fingerprint(noise(1))),
    ]
    made = create_dataset([labelled(n, task=n) for n in "abc"], [], near, tool="cvat", project="1")
    assert [flaw.kind for flaw in find_flaws(made)] == ["quarantined", "quarantined", "unplaced"]
    assert count(made).sides["quarantined"] == 2
