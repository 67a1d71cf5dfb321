"""Segment everything against its reference, SamAutomaticMaskGenerator, on the same checkpoint file."""

from __future__ import annotations

import importlib
import math
import tracemalloc
from collections.abc import Iterator
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest import mock

import cv2
import numpy as np
import pytest

pytest.importorskip("torch")
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from clickmask import annotators, segmenters
from clickmask.annotators._catalogue import AnnotatorCatalogue
from clickmask.annotators.everything import (
    Grid,
    SegmentEverything,
    crops,
    distinct,
    fits,
    grid,
    without_small_regions,
)
from clickmask.errors import NotReady
from clickmask.inference import driver
from clickmask.inference.catalogue import Catalogue
from clickmask.inference.embeddings import EmbeddingCache, EmbeddingKey
from clickmask.inference.weights import WeightsFolder
from clickmask.masks.regions import mask_iou
from clickmask.plugins import Variant
from clickmask.segmenters import sam
from clickmask.segmenters._sam.segmenter import Sam
from clickmask.segmenters._sam.torch_networks import batched_nms, import_segment_anything
from clickmask.types import Image, Mask, Pixels, Size
from support.checkpoints import TINY, random_sam, weights_of, write_checkpoint
from support.coloured import ColourSegmenter, painted
from support.drawn import MASKS, disc, rectangle
from support.hosts import host_of
from support.scenes import drawn_scene

# Random weights believe in nothing, and draw masks without firm outlines all over the image.
# This keeps a part of them.
LENIENT = Grid(
    points_per_side=6,
    points_per_batch=10,
    stability_score_thresh=0.7,
    stability_score_offset=0.002,
    box_nms_thresh=1.0,
    min_mask_region_area=0,
)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_checkpoint(tmp_path_factory.mktemp("tiny") / "tiny.pth", TINY)


@pytest.fixture(scope="module")
def segmenter(checkpoint: Path) -> Sam:
    return sam.load("vit_b", host_of(weights_of(checkpoint)))


@pytest.fixture(scope="module")
def reference(checkpoint: Path) -> Any:
    network = random_sam(TINY, seed=99)  # other weights, until it has those of the file
    network.load_state_dict(torch.load(checkpoint, weights_only=True))
    return network


@pytest.fixture
def embeddings() -> Iterator[EmbeddingCache]:
    cache = EmbeddingCache(100 * 2**20)
    yield cache
    cache.close()


def picture(size: Size, seed: int = 2) -> Image:
    pixels = cv2.resize(drawn_scene(seed)[0], size[::-1], interpolation=cv2.INTER_AREA)
    pixels.flags.writeable = False
    return Image(pixels, f"scene {seed} of {size}")


def believed(segmenter: Sam, image: Image, sweep: Grid) -> Grid:
    """`sweep` with its threshold in a gap between this network's scores, so that no rounding decides."""
    _, scores = segmenter.decode_clicks(
        segmenter.encode(image), grid(sweep.points_per_side) * image.size[::-1]
    )
    ordered = np.sort(scores[scores > 0])
    gap = int(np.argmax(np.diff(ordered[: len(ordered) // 2])))
    return replace(sweep, pred_iou_thresh=float(ordered[gap : gap + 2].mean()))


def generate(network: Any, image: Image, sweep: Grid) -> list[tuple[Mask, float]]:
    """What the reference gives, best first, for the same points in the same pixels."""
    size = np.array(image.size[::-1])
    scale = network.image_encoder.img_size / max(image.size)
    generator = generator_of(network, sweep, [grid(sweep.points_per_side) - 0.5 / scale / size])
    records = sorted(generator.generate(image.pixels), key=lambda record: -record["predicted_iou"])
    return [(record["segmentation"], record["predicted_iou"]) for record in records]


def generator_of(network: Any, sweep: Grid, grids: list[NDArray[np.float64]]) -> Any:
    """The reference, clicking on one of `grids` in each layer. It adds half a pixel of SAM's input twice."""
    return importlib.import_module("segment_anything").SamAutomaticMaskGenerator(
        network,
        points_per_side=None,
        point_grids=grids,
        points_per_batch=sweep.points_per_batch,
        pred_iou_thresh=sweep.pred_iou_thresh,
        stability_score_thresh=sweep.stability_score_thresh,
        stability_score_offset=sweep.stability_score_offset,
        box_nms_thresh=sweep.box_nms_thresh,
        crop_n_layers=len(grids) - 1,
        crop_nms_thresh=sweep.crop_nms_thresh,
        min_mask_region_area=sweep.min_mask_region_area,
    )


@pytest.mark.filterwarnings("ignore:__array__ implementation doesn't accept a copy:DeprecationWarning")
@pytest.mark.parametrize(
    ("size", "sweep"),
    [
        ((240, 320), LENIENT),
        ((320, 250), LENIENT),
        ((97, 131), replace(LENIENT, min_mask_region_area=40)),
    ],
    ids=["landscape", "portrait", "small regions"],
)
def test_masks_are_those_of_the_reference(
    segmenter: Sam, reference: Any, embeddings: EmbeddingCache, size: Size, sweep: Grid
) -> None:
    image = picture(size)
    sweep = believed(segmenter, image, sweep)
    expected = generate(reference, image, sweep)
    found = SegmentEverything("everything", segmenter, embeddings, sweep).annotate(image)
    assert len(expected) > 10
    assert len(found) == len(expected)
    for (_, ours), (mask, score) in zip(found, expected, strict=True):
        assert mask_iou(ours.mask, mask) > 0.999
        assert ours.score == pytest.approx(score, abs=1e-4)


def test_large_images_are_judged_at_the_networks_size_and_cut_out_at_their_own(
    segmenter: Sam, reference: Any, embeddings: EmbeddingCache
) -> None:
    image = picture((900, 1400))
    sweep = believed(segmenter, image, replace(LENIENT, points_per_side=3))
    expected = [mask for mask, _ in generate(reference, image, sweep)]
    found = SegmentEverything("everything", segmenter, embeddings, sweep).annotate(image)
    assert len(found) == len(expected) > 1
    for (_, ours), mask in zip(found, expected, strict=True):
        assert mask_iou(ours.mask, mask) > 0.999


CROPPED = Grid(points_per_side=16, min_mask_region_area=10, whole_side=400, crop_side=256, crop_overlap=96)


def scattered(size: Size, radius: float) -> list[Mask]:
    """Discs of about `radius`, one in each cell of a lattice, some of them cut by the image's edge."""
    chance = np.random.default_rng(0)
    step = 2.6 * radius
    centres = [(x, y) for y in np.arange(0, size[0], step) for x in np.arange(0, size[1], step)]
    discs = [
        disc(size, (x + chance.uniform(0, 0.4) * radius, y), radius * chance.uniform(0.7, 1.0))
        for x, y in centres
    ]
    return [each for each in discs if np.count_nonzero(each) > 100]


def test_each_object_of_a_large_image_is_found_once_wherever_crops_begin_and_end(
    embeddings: EmbeddingCache,
) -> None:
    size = (570, 730)
    objects = [each for each in scattered(size, 17) if not each[100:480, 250:600].any()]
    objects.append(rectangle(size, (280, 130, 570, 450)))  # in no crop as a whole
    pixels = painted(size, objects)
    segmenter = ColourSegmenter()
    found = SegmentEverything("everything", segmenter, embeddings, CROPPED).annotate(Image(pixels, "drawn"))
    assert segmenter.encoded == [size] + [(256, 256)] * 12
    masks = [prediction.mask for _, prediction in found]
    hits = [[index for index, mask in enumerate(masks) if mask_iou(mask, each) > 0.8] for each in objects]
    assert all(len(each) == 1 for each in hits)
    assert len(masks) == len(objects) > 100


def test_crops_cover_the_image_and_overlap_enough() -> None:
    for size in ((401, 30), (640, 730), (255, 5000), (256, 401)):
        whole, *parts = crops(size, CROPPED)
        assert whole == (0, 0, *size[::-1])
        for start, end, length in ((0, 2, size[1]), (1, 3, size[0])):
            spans = sorted({(each[start], each[end]) for each in parts})
            assert (spans[0][0], spans[-1][1]) == (0, length)
            assert all(last - first == min(length, 256) for first, last in spans)
            assert all(one[1] - other[0] >= 96 for one, other in pairwise(spans))
            assert len(spans) == max(1, -(-(length - 96) // 160)), "no more than are needed"
    assert len(crops((400, 400), CROPPED)) == 1


class ReferencesPredictor:
    """A `SamPredictor` for the reference that is a `ColourSegmenter`."""

    device, model = "cpu", SimpleNamespace(mask_threshold=0.0)
    transform = SimpleNamespace(apply_coords=lambda points, size: points)

    def __init__(self) -> None:
        self.segmenter = ColourSegmenter()

    def set_image(self, pixels: Pixels) -> None:
        self.embedding = self.segmenter.encode(Image(pixels, "a crop"))

    def reset_image(self) -> None:
        del self.embedding

    def predict_torch(self, points: Any, labels: Any, **asked: bool) -> tuple[Any, Any, None]:
        logits, scores = self.segmenter.decode_clicks(self.embedding, points[:, 0].numpy())
        size = self.embedding.shape[::-1]
        large = [[cv2.resize(each, size, interpolation=cv2.INTER_LINEAR) for each in some] for some in logits]
        return torch.tensor(np.array(large)), torch.tensor(scores), None


def test_crops_give_the_masks_of_the_reference_but_for_what_is_left_to_the_crops(
    reference: Any, embeddings: EmbeddingCache
) -> None:
    size = (410, 450)
    image = Image(painted(size, [*scattered(size, 17), rectangle(size, (100, 100, 400, 390))]), "drawn")
    whole, *parts = crops(size, CROPPED)
    generator = generator_of(reference, CROPPED, [grid(CROPPED.points_per_side)] * 2)
    generator.predictor = ReferencesPredictor()
    boxes = [list(each) for each in (whole, *parts)], [0] + [1] * len(parts)
    with mock.patch("segment_anything.automatic_mask_generator.generate_crop_boxes", return_value=boxes):
        records = generator.generate(image.pixels)

    def is_left_to_the_crops(record: dict[str, Any]) -> bool:
        x, y, width, height = record["bbox"]
        box = np.array([x, y, x + width, y + height])
        return record["crop_box"] == [0, 0, *size[::-1]] and any(fits(box, part, size) for part in parts)

    expected = [each for each in records if not is_left_to_the_crops(each)]
    expected.sort(key=lambda record: -record["predicted_iou"])
    assert 30 < len(expected) <= len(records)
    found = SegmentEverything("everything", ColourSegmenter(), embeddings, CROPPED).annotate(image)
    assert [ours.score for _, ours in found] == [record["predicted_iou"] for record in expected]
    for (_, ours), record in zip(found, expected, strict=True):
        assert mask_iou(ours.mask, record["segmentation"]) == 1


def test_hundreds_of_masks_of_a_large_image_take_the_memory_of_a_few(embeddings: EmbeddingCache) -> None:
    size = (760, 1060)
    pixels = painted(size, scattered(size, 20))
    sweep = replace(CROPPED, whole_side=1000, crop_side=600, crop_overlap=200)
    annotator = SegmentEverything("everything", ColourSegmenter(), embeddings, sweep)
    image = Image(pixels, "drawn")
    tracemalloc.start()
    try:
        found = driver.annotate(annotator, image)
        areas = [np.count_nonzero(prediction.mask) for _, prediction in found]
        held, most = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    mask = math.prod(size)
    assert len(areas) > 150 and min(areas) > 100
    assert held < 6 * mask, "the embedding, of four bytes a pixel, and little else"
    assert most < len(areas) * mask / 2


def test_crops_leave_the_embeddings_of_others_in_memory_and_on_disk(embeddings: EmbeddingCache) -> None:
    segmenter, size = ColourSegmenter(), (500, 500)
    image = Image(painted(size, [disc(size, (250, 250), 40)]), "drawn")
    SegmentEverything("everything", segmenter, embeddings, CROPPED).annotate(image)
    assert len(segmenter.encoded) == 10
    assert embeddings.status().entries == 1
    assert embeddings.holds(EmbeddingKey(segmenter.name, "drawn"))


def test_networks_that_take_one_click_at_a_time_give_the_same(segmenter: Sam) -> None:
    class OneAtATime:
        """Without `decode_clicks`."""

        def __init__(self, networks: sam.Networks) -> None:
            self.side, self.precision = networks.side, networks.precision
            self.encode, self.place, self.decode = networks.encode, networks.place, networks.decode

    image = picture((97, 131))
    points = grid(3) * image.size[::-1]
    alone = Sam(segmenter.name, OneAtATime(segmenter._networks))
    embedding = segmenter.encode(image)
    for one, many in zip(
        alone.decode_clicks(embedding, points), segmenter.decode_clicks(embedding, points), strict=True
    ):
        np.testing.assert_allclose(one, many, atol=1e-5)


def test_the_image_is_encoded_once_for_clicks_and_for_everything(
    segmenter: Sam, embeddings: EmbeddingCache, monkeypatch: pytest.MonkeyPatch
) -> None:
    image = picture((97, 131))
    embeddings.get(EmbeddingKey(segmenter.name, image.digest), lambda: segmenter.encode(image))
    monkeypatch.setattr(segmenter, "encode", None)  # calling it would raise
    SegmentEverything("everything", segmenter, embeddings, replace(LENIENT, points_per_side=1)).annotate(
        image
    )


def test_it_stands_on_every_segmenter_that_can_be_swept_and_is_ready_with_it(
    checkpoint: Path, embeddings: EmbeddingCache
) -> None:
    catalogue = AnnotatorCatalogue(annotators, Catalogue(segmenters, weights_of(checkpoint)), embeddings)
    statuses = {status.name: status for status in catalogue.statuses()}
    ready = statuses["everything:sam:vit_b"]
    assert (ready.ready, ready.labels) == (True, ("object",))
    unready = statuses["everything:sam:vit_h"]
    assert (unready.ready, unready.labels) == (False, ())
    assert unready.reason.startswith("sam:vit_h cannot run: ")
    assert not any("grabcut" in name for name in statuses)
    assert catalogue.get("everything:sam:vit_b").name == "everything:sam:vit_b"
    with pytest.raises(NotReady, match="everything:sam:vit_h cannot run: "):
        catalogue.get("everything:sam:vit_h")


def test_a_segmenter_that_only_says_that_it_can_be_swept_is_refused(
    tmp_path: Path, embeddings: EmbeddingCache, monkeypatch: pytest.MonkeyPatch
) -> None:
    grabcut = importlib.import_module("clickmask.segmenters.grabcut")
    monkeypatch.setattr(grabcut, "VARIANTS", {"": Variant(sweeps=True)}, raising=False)
    catalogue = AnnotatorCatalogue(annotators, Catalogue(segmenters, WeightsFolder(tmp_path)), embeddings)
    with pytest.raises(NotReady, match="grabcut cannot be clicked all over"):
        catalogue.get("everything:grabcut")


boxes = st.lists(
    st.tuples(*[st.integers(0, 12)] * 4).map(
        lambda sides: (min(sides[::2]), min(sides[1::2]), max(sides[::2]), max(sides[1::2]))
    ),
    max_size=12,
)


@settings(max_examples=200, deadline=None)
@given(boxes=boxes, iou=st.sampled_from([0.2, 0.5, 0.7, 1.0]), data=st.data())
def test_boxes_are_suppressed_as_torchvision_does_it(
    boxes: list[tuple[int, ...]], iou: float, data: st.DataObject
) -> None:
    scores = data.draw(st.lists(st.sampled_from([0.1, 0.5, 0.9]), min_size=len(boxes), max_size=len(boxes)))
    array = np.array(boxes, np.float64).reshape(-1, 4)
    expected = batched_nms(torch.tensor(array), torch.tensor(scores), torch.zeros(len(scores)), iou)
    assert distinct(array, np.array(scores), iou) == expected.tolist()


@settings(max_examples=200, deadline=None)
@given(
    seed=st.integers(0, 10**6),
    height=st.integers(1, 14),
    width=st.integers(1, 14),
    margins=st.tuples(*[st.sampled_from([0, 0, 1, 5, 40])] * 4),
    filled=st.floats(0, 1),
    area=st.integers(0, 30),
)
def test_small_regions_go_as_the_reference_removes_them(
    seed: int, height: int, width: int, margins: tuple[int, ...], filled: float, area: int
) -> None:
    import_segment_anything()
    amg = importlib.import_module("segment_anything.utils.amg")
    drawn = np.random.default_rng(seed).random((height, width)) < filled
    mask = np.pad(drawn, (margins[:2], margins[2:]))
    without_holes, _ = amg.remove_small_regions(mask, area, mode="holes")
    if not without_holes.any():
        return  # the reference fails where nothing is left to keep the largest of
    expected, _ = amg.remove_small_regions(without_holes, area, mode="islands")
    assert (without_small_regions(mask, area) == expected).all()


@pytest.mark.parametrize("name", MASKS)
def test_a_mask_without_small_regions_is_itself(name: str) -> None:
    mask = MASKS[name]()
    assert without_small_regions(mask, 0) is mask


def test_specks_and_pinholes_are_no_part_of_an_object() -> None:
    whole = disc((60, 60), (30, 30), 20)
    spoilt = (whole & ~rectangle((60, 60), (28, 28, 31, 31))) | rectangle((60, 60), (2, 2, 5, 5))
    assert (without_small_regions(spoilt, 10) == whole).all()
