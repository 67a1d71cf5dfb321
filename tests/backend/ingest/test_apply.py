from __future__ import annotations

import base64
import random
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from clickmask.errors import Gone, ImageUnavailable, InvalidRequest, StoreUnavailable
from clickmask.images.archive import ImageArchive
from clickmask.images.decode import decode_image
from clickmask.images.fetch import Fetcher
from clickmask.images.source import ImageSource
from clickmask.ingest.apply import Ingester
from clickmask.labels.geometry import Brush, Polygon, Rectangle, rasterise
from clickmask.labels.split import fingerprint
from clickmask.labels.submissions import (
    AnnotationDeleted,
    Change,
    ProjectDeleted,
    ProjectDescribed,
    Region,
    Submission,
    TaskDeleted,
    Unreadable,
    Unsized,
)
from clickmask.masks.polygons import mask_to_polygons
from clickmask.masks.rle import mask_to_rle, rle_to_mask
from clickmask.store import Store
from clickmask.types import Prediction, Prompt, Size
from support.accepting import OTHER, TOOL, FakeTool, box, submitted
from support.drawn import disc
from support.labelled import digest_of, noise, png
from support.pictures import SIZE


@pytest.fixture
def tool() -> FakeTool:
    return FakeTool()


@pytest.fixture
def kept(tmp_path: Path, store: Store) -> ImageArchive:
    return ImageArchive(tmp_path / "images", 2**20, store.is_labelled)


@pytest.fixture
def ingester(store: Store, kept: ImageArchive) -> Ingester:
    return Ingester(store, ImageSource(Fetcher()), kept)


def regions_of(store: Store) -> list[str]:
    return [label.key.region for label in store.labels(TOOL, "1")]


def test_a_submission_becomes_labels_with_their_masks(
    store: Store, ingester: Ingester, tool: FakeTool
) -> None:
    ring = Polygon((((5.0, 5.0), (20.5, 5.0), (5.0, 20.5)),))
    drawn = Region("poly", "dog", ring)
    assert ingester.apply(submitted(box(3), drawn), tool)
    first, second = store.labels(TOOL, "1")
    assert (first.category, first.geometry, first.size) == ("cat", box(3).geometry, SIZE)
    assert np.array_equal(rle_to_mask(first.rle), rasterise(box(3).geometry, SIZE))
    assert second.geometry == ring
    assert np.array_equal(rle_to_mask(second.rle), rasterise(ring, SIZE))
    assert first.accepted_at == 1.0


def test_accepted_labels_leave_one_line_in_the_log(
    ingester: Ingester, tool: FakeTool, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", "clickmask.ingest.apply")
    for _ in range(2):  # the second time nothing is new
        ingester.apply(submitted(box(3)), tool)
    assert [each.message for each in caplog.records if "accepted" in each.message] == [
        f"{TOOL} 1: task 1, annotation 1: accepted labels: 1"
    ]


def test_the_image_is_kept_as_it_was_sent(
    store: Store, ingester: Ingester, tool: FakeTool, kept: ImageArchive
) -> None:
    ingester.apply(submitted(box()), tool)
    (image,) = store.images(TOOL, "1")
    assert (image.name, image.size, image.task, image.item) == ("grey.png", SIZE, "1", 0)
    assert kept.read(image.digest)[:4] == b"\x89PNG"


def test_an_image_has_its_side_as_soon_as_it_is_accepted(
    store: Store, ingester: Ingester, tool: FakeTool, kept: ImageArchive
) -> None:
    """Before anything was trained, measured or exported."""
    assert not ingester.apply(ProjectDescribed(TOOL, "1", "Pets", ("cat",)), tool)
    assert ingester.apply(submitted(box()), tool)
    (image,) = store.images(TOOL, "1")
    (placed,) = store.sides(TOOL, "1")
    assert (placed.digest, placed.side) == (image.digest, "train")
    assert placed.fingerprint == fingerprint(decode_image(kept.read(image.digest)).pixels)


def test_a_skip_and_what_does_not_fit_get_no_side(store: Store, ingester: Ingester, tool: FakeTool) -> None:
    ingester.apply(submitted(skipped=True), tool)
    with pytest.raises(InvalidRequest):
        ingester.apply(submitted(box(), annotation="2", size=(1, 1)), tool)
    assert store.sides(TOOL, "1") == []


def coarse(seed: int) -> str:
    return f"data:image/png;base64,{base64.b64encode(png(noise(seed))).decode()}"


@pytest.mark.parametrize("seed", range(3))
def test_no_side_changes_whatever_is_accepted_later_in_whatever_order(
    store: Store, ingester: Ingester, tool: FakeTool, seed: int
) -> None:
    rng = random.Random(seed)
    events: list[Change] = [
        submitted(
            box(region=str(time), category=rng.choice(["cat", "dog"])),
            annotation=str(number),
            task=str(number),
            at=float(time),
            address=coarse(number),
            size=None,
            skipped=time == 2,
        )
        for number in range(20)
        for time in (1, 2, 3)
    ]
    events += [TaskDeleted(TOOL, str(number)) for number in (3, 8)]
    rng.shuffle(events)
    first: dict[str, str] = {}
    for event in events:
        ingester.apply(event, tool)
        for placed in store.sides(TOOL, "1"):
            assert first.setdefault(placed.digest, placed.side) == placed.side
        assert {image.digest for image in store.images(TOOL, "1")} <= first.keys()
    assert Counter(first.values())["train"] >= 10
    assert len(set(first.values())) == 3


def test_an_image_that_there_was_no_room_for_gets_its_side_from_memory(
    store: Store, tool: FakeTool, tmp_path: Path
) -> None:
    full = ImageArchive(tmp_path / "full", 1, store.is_labelled)
    Ingester(store, ImageSource(Fetcher()), full).apply(submitted(box()), tool)
    assert len(store.sides(TOOL, "1")) == 1


def test_an_image_that_is_known_but_not_at_hand_gets_its_side_when_it_is(
    store: Store, tool: FakeTool, kept: ImageArchive, monkeypatch: pytest.MonkeyPatch
) -> None:
    def gone(*_: object) -> None:
        raise Gone("gone")

    ingester = Ingester(store, ImageSource(Fetcher()), kept)
    with monkeypatch.context() as patched:
        patched.setattr(ImageSource, "load_digest", gone)
        patched.setattr(ImageArchive, "read", gone)
        assert ingester.apply(submitted(box()), tool)
    assert store.sides(TOOL, "1") == []
    restarted = Ingester(store, ImageSource(Fetcher()), kept)
    assert restarted.apply(submitted(box(), at=2.0), tool)
    assert len(store.sides(TOOL, "1")) == 1
    assert len(tool.located) == 1


def test_a_side_that_cannot_be_stored_keeps_its_labels_waiting(
    store: Store, ingester: Ingester, tool: FakeTool, monkeypatch: pytest.MonkeyPatch
) -> None:
    def away(*_: object, **__: object) -> None:
        raise StoreUnavailable("no room")

    with monkeypatch.context() as patched:
        patched.setattr(store, "assign_side", away)
        with pytest.raises(StoreUnavailable):
            ingester.apply(submitted(box()), tool)
    assert store.labels(TOOL, "1") == []
    assert ingester.apply(submitted(box()), tool)
    assert len(store.sides(TOOL, "1")) == 1


def test_an_image_is_fetched_once_for_all_annotations_also_after_a_restart(
    store: Store, ingester: Ingester, tool: FakeTool, kept: ImageArchive
) -> None:
    ingester.apply(submitted(box()), tool)
    ingester.apply(submitted(box(1), at=2.0), tool)
    ingester.apply(submitted(box(2), annotation="2"), tool)
    restarted = Ingester(store, ImageSource(Fetcher()), kept)
    restarted.apply(submitted(box(3), at=3.0), tool)
    assert len(tool.located) == 1
    restarted.apply(submitted(box(3), at=4.0, address=OTHER), tool)
    assert len(tool.located) == 2
    by_annotation = {label.key.annotation: label.image for label in store.labels(TOOL, "1", True)}
    assert by_annotation["1"] != by_annotation["2"]


def test_what_is_known_already_asks_for_nothing(store: Store, ingester: Ingester, tool: FakeTool) -> None:
    assert ingester.apply(submitted(box()), tool)
    tool.failing = ImageUnavailable("gone")
    assert not ingester.apply(submitted(box()), tool)
    assert not ingester.apply(submitted(box(), at=0.5, address=OTHER), tool)


def test_a_skip_is_no_label_and_needs_no_image(store: Store, ingester: Ingester, tool: FakeTool) -> None:
    tool.failing = ImageUnavailable("gone")
    assert ingester.apply(submitted(box(), skipped=True), tool)
    assert store.labels(TOOL, "1") == []
    assert store.images(TOOL, "1") == []


def test_a_skip_withdraws_and_a_later_submission_stands_again(
    store: Store, ingester: Ingester, tool: FakeTool
) -> None:
    ingester.apply(submitted(box()), tool)
    ingester.apply(submitted(skipped=True, at=2.0), tool)
    assert regions_of(store) == []
    ingester.apply(submitted(box(region="again"), at=3.0), tool)
    assert regions_of(store) == ["again"]


def test_an_image_of_another_size_than_was_annotated_is_refused(
    store: Store, ingester: Ingester, tool: FakeTool
) -> None:
    with pytest.raises(InvalidRequest, match="80x60 pixels, but it was annotated as one of 60x80"):
        ingester.apply(submitted(box(), size=SIZE[::-1]), tool)
    assert store.labels(TOOL, "1") == []
    assert ingester.apply(submitted(box(), size=None), tool)


def test_a_brush_that_does_not_fit_is_refused(ingester: Ingester, tool: FakeTool) -> None:
    with pytest.raises(InvalidRequest, match="region 'b'"):
        ingester.apply(submitted(Region("b", "cat", Brush(mask_to_rle(disc())))), tool)


def test_brush_and_polygon_of_one_proposal_are_one_label(
    store: Store, ingester: Ingester, tool: FakeTool
) -> None:
    painted = disc(SIZE)
    image = ingester._images.identify(tool.locate(submitted()))
    store.remember_proposal("p", image.digest, Prompt(((1, 1),)), Prediction(painted, 0.5, "drawn"))
    brush = Region("p-0", "cat", Brush(mask_to_rle(painted)), "p")
    middle = np.argwhere(painted).mean(axis=0)
    corners = ((middle[1] + dx, middle[0] + dy) for dx, dy in ((-3, -3), (3, -3), (3, 3)))
    within = Region("p-1", "cat", Polygon((tuple(corners),)), "p")
    ingester.apply(submitted(within, brush, box(region="other")), tool)
    assert regions_of(store) == ["p-0", "other"]
    moved = Region("p-1", "cat", Rectangle((0, 0, 4, 4)), "p")
    for at, changed in enumerate((moved, replace(within, category="dog")), 4):
        ingester.apply(submitted(changed, brush, at=at), tool)
        assert sorted(regions_of(store)) == ["p-0", "p-1"]
    ingester.apply(submitted(within, brush, box(region="other"), at=6.0), tool)
    (label, _) = store.labels(TOOL, "1")
    assert label.proposal == "p"
    assert np.array_equal(rle_to_mask(label.rle), painted)


@pytest.mark.parametrize("elsewhere", [False, True], ids=["unknown", "of another image"])
def test_regions_that_only_look_like_a_proposals_are_dropped_only_if_they_fill_the_brush(
    store: Store, ingester: Ingester, tool: FakeTool, elsewhere: bool
) -> None:
    painted = disc(SIZE)
    if elsewhere:
        store.remember_proposal(
            "p", digest_of("another"), Prompt(((1, 1),)), Prediction(painted, 0.5, "drawn")
        )
    brush = Region("p-0", "cat", Brush(mask_to_rle(painted)), "p")
    x, y = np.argwhere(painted).mean(axis=0)[::-1]
    within = Polygon((tuple((x + dx, y + dy) for dx, dy in ((-3, -3), (3, -3), (3, 3))),))
    (around,) = (Polygon((tuple(map(tuple, ring)),)) for ring in mask_to_polygons(painted))
    beside = [Region("p-2", "cat", Rectangle((0, 0, 4, 4)), "p"), Region("q-0", "cat", within, "q")]
    ingester.apply(submitted(brush, Region("p-1", "cat", around, "p"), *beside), tool)
    assert regions_of(store) == ["p-0", "p-2", "q-0"]
    for at, (shape, category) in enumerate([(within, "cat"), (around, "dog")], 2):
        ingester.apply(submitted(brush, Region("p-1", category, shape, "p"), *beside, at=at), tool)
        assert regions_of(store) == ["p-0", "p-1", "p-2", "q-0"]
    assert {label.proposal for label in store.labels(TOOL, "1")} == {None}


def test_a_region_that_does_not_fit_is_named_and_the_others_are_stored(
    store: Store, ingester: Ingester, tool: FakeTool
) -> None:
    with pytest.raises(InvalidRequest, match="region 'b'"):
        ingester.apply(submitted(box(), Region("b", "cat", Brush(mask_to_rle(disc())))), tool)
    assert len(store.labels(TOOL, "1")) == 1
    (image,) = store.images(TOOL, "1")
    assert image.left_out == {"damaged": 1}


def test_of_many_damaged_regions_a_few_are_named_and_the_others_counted(
    store: Store, ingester: Ingester, tool: FakeTool
) -> None:
    unfit = [Region(f"b{number}", "cat", Brush(mask_to_rle(disc()))) for number in range(30)]
    with pytest.raises(InvalidRequest, match=r"region 'b9': [^;]*; and 20 more$"):
        ingester.apply(submitted(box(), *unfit), tool)


def test_regions_that_take_too_much_room_together_are_refused(
    monkeypatch: pytest.MonkeyPatch, store: Store, ingester: Ingester, tool: FakeTool
) -> None:
    monkeypatch.setattr("clickmask.ingest.apply.MAX_RUN_LENGTHS", 100)
    with pytest.raises(InvalidRequest, match="run lengths of more than 100 bytes"):
        ingester.apply(submitted(*[box()] * 50), tool)
    assert regions_of(store) == []


def test_a_submission_without_a_size_is_read_for_its_images(
    store: Store, ingester: Ingester, tool: FakeTool
) -> None:
    given = submitted(size=None)

    def read(size: Size) -> list[Submission | Unreadable]:
        assert size == SIZE
        return [replace(given, regions=(box(),)), Unreadable("region 'b' is damaged")]

    with pytest.raises(InvalidRequest, match="region 'b'"):
        ingester.apply(Unsized(given, read), tool)
    assert len(store.labels(TOOL, "1")) == 1
    fetched = len(tool.located)
    with pytest.raises(InvalidRequest, match="region 'b'"):  # it is as damaged as before
        ingester.apply(Unsized(given, read), tool)
    assert not ingester.apply(Unsized(given, lambda size: read(size)[:1]), tool)
    assert len(tool.located) == fetched


def test_deletions_and_descriptions_are_taken_in(store: Store, ingester: Ingester, tool: FakeTool) -> None:
    ingester.apply(submitted(box(), annotation="1"), tool)
    ingester.apply(submitted(box(), annotation="2", task="2"), tool)
    assert ingester.apply(AnnotationDeleted(TOOL, "1"), tool)
    assert [label.key.annotation for label in store.labels(TOOL, "1")] == ["2"]
    assert ingester.apply(TaskDeleted(TOOL, "2"), tool)
    assert store.labels(TOOL, "1") == []
    ingester.apply(submitted(box(), annotation="3", task="3"), tool)
    assert ingester.apply(ProjectDeleted(TOOL, "1"), tool)
    assert store.images(TOOL, "1") == []
    assert not ingester.apply(ProjectDescribed(TOOL, "1", "Pets", ("dog", "cat")), tool)
    assert store.categories(TOOL, "1") == ("dog", "cat")
