from __future__ import annotations

import random
import shutil
import tempfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from clickmask.datasets.snapshot import Dataset, Sample, class_map, create_dataset, folds, snapshot
from clickmask.errors import InvalidRequest
from clickmask.images.decode import decode_image
from clickmask.labels.split import Assigned, Fingerprint, Side, fingerprint, neighbours
from clickmask.labels.submissions import (
    AcceptedLabel,
    AnnotationDeleted,
    LabelledImage,
    ProjectDescribed,
    TaskDeleted,
)
from clickmask.masks.rle import rle_to_mask
from clickmask.store import Store
from clickmask.types import Pixels
from support.drawn import disc, rectangle
from support.labelled import (
    PROJECT,
    SIZE,
    TOOL,
    FilesInMemory,
    accepted,
    brush,
    digest_of,
    labelled,
    noise,
    png,
    polygon,
    submit,
)

SQUARE = polygon((10, 10), (30, 10), (30, 30), (10, 30))
HERE = {"tool": TOOL, "project": PROJECT}


def kept(names: Sequence[str]) -> FilesInMemory:
    return FilesInMemory({name: png(picture(name)) for name in names})


def picture(name: str) -> Pixels:
    """`name` and `name'` are near duplicates."""
    pixels = noise(ord(name[0]))
    return np.clip(pixels + 6.0 * name.count("'"), 0, 255).astype(np.uint8)


def placed(name: str, side: Side) -> Assigned:
    return Assigned(digest_of(name), side, fingerprint(picture(name)))


def dataset(
    images: Sequence[LabelledImage], labels: Sequence[AcceptedLabel] = (), sides: Sequence[Assigned] = ()
) -> Dataset:
    return create_dataset(images, labels, sides, **HERE)


def test_a_snapshot_is_named_by_what_is_in_it_not_by_its_order() -> None:
    images = [labelled("b"), labelled("a", task="2")]
    labels = [accepted("a", SQUARE, region=region, task="2") for region in "xyz"]
    one = dataset(images, labels)
    assert dataset(images[::-1], labels[::-1]) == one
    assert [sample.name for sample in one.samples] == ["a.png", "b.png"]
    assert [label.key.region for label in one.samples[0].labels] == ["x", "y", "z"]
    assert one.samples[1].labels == ()


@pytest.mark.parametrize(
    "other",
    [
        dataset([labelled("a")], [accepted("a", SQUARE, "nucleus")]),
        dataset([labelled("a")], [accepted("a", polygon((10, 10), (30, 10), (30, 30)))]),
        dataset([labelled("a")], [accepted("a", brush(disc()))]),
        dataset([labelled("a", name="other.png")], [accepted("a", SQUARE)]),
        dataset([labelled("a"), labelled("b")], [accepted("a", SQUARE)]),
        dataset([labelled("a")], [accepted("a", SQUARE)], [placed("a", "train")]),
        create_dataset([labelled("a")], [accepted("a", SQUARE)], unlabelled="ignore", **HERE),
        create_dataset([labelled("a")], [accepted("a", SQUARE)], declared=["nucleus"], **HERE),
    ],
    ids=["category", "ring", "mask", "name", "image", "side", "unlabelled", "categories"],
)
def test_another_content_has_another_digest(other: Dataset) -> None:
    assert dataset([labelled("a")], [accepted("a", SQUARE)]).digest != other.digest


def test_submitting_the_same_again_or_having_the_pictures_changes_no_digest() -> None:
    one = dataset([labelled("a")], [accepted("a", SQUARE, at=1.0)])
    again = create_dataset([labelled("a")], [accepted("a", SQUARE, at=2.0)], pictures=kept("a"), **HERE)
    assert again.digest == one.digest


def test_categories_are_the_tools_in_its_order_and_then_those_of_labels() -> None:
    labels = [accepted("a", SQUARE, category, region=category) for category in ("zebra", "cell", "ant")]
    made = create_dataset([labelled("a")], labels, declared=["nucleus", "cell"], **HERE)
    assert made.categories == ("nucleus", "cell", "ant", "zebra")


def test_of_a_picture_in_two_tasks_the_one_labelled_last_counts() -> None:
    images = [labelled("a", task="3", at=5), labelled("a", task="4", name="A copy.png", at=6)]
    labels = [accepted("a", SQUARE, region=region, task=region[0]) for region in ("3a", "4a", "4b", "3b")]
    (sample,) = dataset(images, labels).samples
    assert [label.key.region for label in sample.labels] == ["4a", "4b"]
    assert sample.name == "A copy.png"
    assert [image.name for image in sample.shown_as] == ["a.png", "A copy.png"]


def test_of_a_picture_on_two_pages_of_a_task_one_pages_labels_count() -> None:
    images = [labelled("a", item=0, name="one.png"), labelled("a", item=1, name="two.png")]
    labels = [accepted("a", SQUARE, region=f"{item}", item=item) for item in (0, 1)]
    (sample,) = dataset(images, labels).samples
    assert [label.key.region for label in sample.labels] == ["1"]
    assert {image.name for image in sample.shown_as} == {"one.png", "two.png"}


def test_of_pages_that_were_saved_at_one_time_the_last_on_which_something_is_counts() -> None:
    images = [labelled("a", item=item) for item in range(3)]
    (sample,) = dataset(
        images, [accepted("a", SQUARE, region=f"{item}", item=item) for item in (0, 1)]
    ).samples
    assert [label.key.region for label in sample.labels] == ["1"]
    pointed = [labelled("a", item=0, left_out={"points": 2}), labelled("a", item=1)]
    assert dataset(pointed).samples == ()


def test_a_later_task_in_which_nothing_was_found_replaces_an_earlier_ones_labels() -> None:
    images = [labelled("a", task="3", at=5), labelled("a", task="4", at=6)]
    (sample,) = dataset(images, [accepted("a", SQUARE, task="3", at=5)]).samples
    assert sample.labels == ()


def test_a_ground_truth_counts_before_newer_labels_of_the_picture_elsewhere() -> None:
    images = [labelled("a", item=0, at=5, ground_truth=True), labelled("a", item=7, at=6)]
    labels = [accepted("a", SQUARE, region=f"{item}", item=item) for item in (0, 7)]
    (sample,) = dataset(images, labels).samples
    assert [label.key.region for label in sample.labels] == ["0"]


def test_an_image_with_nothing_but_regions_that_are_no_labels_is_no_example() -> None:
    images = [labelled("a", left_out={"point": 2}), labelled("b", left_out={"point": 1}), labelled("c")]
    made = dataset(images, [accepted("b", SQUARE)])
    assert [(sample.name, len(sample.labels)) for sample in made.samples] == [("b.png", 1), ("c.png", 0)]
    assert (made.left_out, made.unclear) == ({"point": 3}, 1)


def test_a_label_of_a_higher_layer_lies_on_those_below_whatever_their_sizes() -> None:
    large, small = rectangle(SIZE, (5, 5, 40, 40)), rectangle(SIZE, (20, 20, 45, 45))
    labels = [accepted("a", large, "large", region="1", layer=1), accepted("a", small, "small", region="2")]
    (sample,) = (made := dataset([labelled("a")], labels)).samples
    classes = class_map(sample, ("large", "small"), "background")
    assert np.array_equal(classes == 1, large)
    flat = dataset([labelled("a")], [replace(label, layer=0) for label in labels])
    assert flat.digest != made.digest


def test_the_smaller_label_lies_on_the_larger_and_of_equals_the_later_key() -> None:
    large, small = rectangle(SIZE, (5, 5, 40, 40)), rectangle(SIZE, (20, 20, 45, 45))
    labels = [
        accepted("a", small, "small", region="1", at=1),
        accepted("a", large, "large", region="2", at=2),
        accepted("a", small, "later", region="3", at=0),
    ]
    (sample,) = dataset([labelled("a")], labels).samples
    classes = class_map(sample, ("large", "small", "later"), "background")
    assert classes.dtype == np.uint8
    assert np.array_equal(classes == 3, small)
    assert np.array_equal(classes == 1, large & ~small)
    assert np.array_equal(classes == 0, ~large & ~small)
    # Nothing was taken from the labels themselves.
    assert np.array_equal(rle_to_mask(sample.labels[1].rle), large)


def test_unlabelled_area_and_foreign_categories_can_be_ignored() -> None:
    (sample,) = dataset([labelled("a")], [accepted("a", disc(), "cell")]).samples
    assert np.array_equal(class_map(sample, ("cell",), "ignore"), np.where(disc(), 1, 255))
    assert np.array_equal(class_map(sample, ("nucleus",), "background"), np.where(disc(), 255, 0))
    with pytest.raises(ValueError, match="254"):
        class_map(sample, [str(number) for number in range(255)], "background")


def test_neighbours_on_two_sides_are_exported_but_neither_trained_on_nor_measured() -> None:
    names = ["a", "a'", "b", "c"]
    sides = [placed("a", "train"), placed("a'", "test"), placed("b", "train")]
    made = dataset([labelled(name, task=name) for name in names], [], sides)
    assert [sample.quarantined for sample in made.samples] == [True, True, False, False]
    assert [sample.side for sample in made.samples] == ["test", "train", "train", None]  # ' before .
    assert [sample.name for sample in made.split("train")] == ["b.png"]
    assert made.split("test") == []
    assert made.samples[0].group == made.samples[1].group == min(digest_of("a"), digest_of("a'"))
    assert not made.samples[3].usable


def test_a_project_without_labels_is_refused(store: Store) -> None:
    with pytest.raises(InvalidRequest, match="label studio project '7' has no accepted labels"):
        snapshot(store, TOOL, PROJECT)


def test_a_snapshot_of_the_store_says_what_the_project_says(store: Store) -> None:
    submit(store, "a", {"r": ("cell", SQUARE)}, task="1")
    submit(store, "b", {}, task="2")
    submit(store, "c", {"r": ("cell", SQUARE)}, task="3", skipped=True)
    store.describe_project(ProjectDescribed(TOOL, PROJECT, "cells", ("nucleus", "cell")))
    store.set_unlabelled(TOOL, PROJECT, "ignore")
    made = snapshot(store, TOOL, PROJECT, kept("ab"))
    assert (made.categories, made.unlabelled) == (("nucleus", "cell"), "ignore")
    assert [(sample.name, len(sample.labels)) for sample in made.samples] == [("a.png", 1), ("b.png", 0)]
    assert all(sample.usable for sample in made.samples)
    assert made.too_few


def test_a_picture_that_is_not_at_hand_waits_for_its_side(store: Store) -> None:
    submit(store, "a", {"r": ("cell", SQUARE)}, task="1")
    pictures = kept("a")
    pictures.missing = {digest_of("a")}
    assert not snapshot(store, TOOL, PROJECT, pictures).samples[0].usable
    pictures.missing = set()
    assert snapshot(store, TOOL, PROJECT, pictures).samples[0].side == "train"
    assert snapshot(store, TOOL, PROJECT).samples[0].side == "train"


NAMES = [letter + mark for letter in "abcdefghijklmnopqr" for mark in ("", "'")]
histories = st.lists(
    st.tuples(
        st.sampled_from(["accept", "accept", "accept", "relabel", "withdraw", "delete"]),
        st.sampled_from(NAMES),
    ),
    min_size=20,
    max_size=40,
)


@pytest.fixture(scope="module")
def files() -> dict[str, bytes]:
    return {name: png(picture(name)) for name in NAMES}


@pytest.fixture(scope="module")
def empty_store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Migrating takes longer than a history."""
    path = tmp_path_factory.mktemp("store") / "store.sqlite"
    Store(path).close()
    return path


@settings(max_examples=6, deadline=None)
@given(history=histories, missing=st.sets(st.sampled_from(NAMES)), rng=st.randoms(use_true_random=False))
def test_no_image_ever_changes_sides_whatever_the_order_of_events(
    empty_store: Path,
    files: dict[str, bytes],
    history: list[tuple[str, str]],
    missing: set[str],
    rng: random.Random,
) -> None:
    pictures = FilesInMemory(files)
    pictures.missing = {digest_of(name) for name in missing}
    with tempfile.TemporaryDirectory() as folder:
        store = Store(Path(shutil.copy(empty_store, folder)))
        try:
            follow(store, history, pictures, rng)
        finally:
            store.close()


def follow(store: Store, history: list[tuple[str, str]], pictures: FilesInMemory, rng: random.Random) -> None:
    first: dict[str, Side] = {}
    once_quarantined: set[str] = set()
    for time, (event, name) in enumerate(history):
        category = rng.choice(["cell", "nucleus"])
        if event in ("accept", "relabel"):
            submit(store, name, {"r": (category, SQUARE)}, task=name, at=time)
        elif event == "withdraw":
            submit(store, name, {}, task=name, at=time, skipped=True)
        else:
            store.delete(AnnotationDeleted(TOOL, name) if rng.random() < 0.5 else TaskDeleted(TOOL, name))
        if rng.random() < 0.3:
            pictures.missing.clear()
        if rng.random() < 0.5 or not store.images(TOOL, PROJECT):
            continue
        made = snapshot(store, TOOL, PROJECT, pictures)
        for sample in made.samples:
            if sample.side is not None:
                assert first.setdefault(sample.image, sample.side) == sample.side
            assert sample.image not in once_quarantined or sample.quarantined
            once_quarantined |= {sample.image} if sample.quarantined else set()
        require_no_neighbours_across(made, pictures)


def require_no_neighbours_across(made: Dataset, pictures: FilesInMemory) -> None:
    held_out = [*made.split("validation"), *made.split("test")]
    prints = [shown(pictures, sample) for sample in held_out]
    for sample in made.split("train"):
        assert neighbours(shown(pictures, sample), prints) == []


def shown(pictures: FilesInMemory, sample: Sample) -> Fingerprint:
    return fingerprint(decode_image(pictures.files[sample.image]).pixels)


def many(count: int) -> Dataset:
    names = [letter + mark for letter in "abcdefghijklmnopqrstuvwxyz" for mark in ("", "'")][:count]
    sides: list[Side] = ["train", "validation", "test"]
    images = [labelled(name, task=name) for name in names]
    return dataset(images, [], [placed(name, sides[ord(name[0]) % 3]) for name in names])


@pytest.mark.parametrize("count", [3, 4, 9, 15])
def test_few_images_are_cross_validated_each_measured_once_neighbours_together(count: int) -> None:
    made = many(count)
    assert made.too_few
    divided = folds(made)
    assert sorted(sample.image for _, fold in divided for sample in fold) == sorted(
        s.image for s in made.samples
    )
    for train, held_out in divided:
        assert train
        assert not {sample.group for sample in train} & {sample.group for sample in held_out}
        assert len(train) + len(held_out) == count
    assert len(divided) == min(5, (count + 1) // 2)


def test_one_picture_alone_cannot_be_cross_validated() -> None:
    assert folds(many(2)) == []
    assert folds(many(1)) == []


def test_from_sixteen_images_on_a_split_is_enough_if_each_side_has_its_three() -> None:
    assert not many(26).too_few
    crowded = [placed(name, "train") for name in (letter + "" for letter in "abcdefghijklmnopqrst")]
    images = [labelled(letter, task=letter) for letter in "abcdefghijklmnopqrst"]
    assert dataset(images, [], crowded).too_few
