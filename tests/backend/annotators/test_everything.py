"""Segment everything against its reference, SamAutomaticMaskGenerator, on the same checkpoint file."""

from __future__ import annotations

import importlib
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

pytest.importorskip("torch")
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from clickmask import annotators, segmenters
from clickmask.annotators._catalogue import AnnotatorCatalogue
from clickmask.annotators.everything import Grid, SegmentEverything, distinct, grid, without_small_regions
from clickmask.errors import NotReady
from clickmask.inference.catalogue import Catalogue
from clickmask.inference.embeddings import EmbeddingCache, EmbeddingKey
from clickmask.inference.weights import WeightsFolder
from clickmask.masks.regions import mask_iou
from clickmask.plugins import Variant
from clickmask.segmenters import sam
from clickmask.segmenters._sam.segmenter import Sam
from clickmask.segmenters._sam.torch_networks import batched_nms, import_segment_anything
from clickmask.types import Image, Mask, Size
from support.checkpoints import TINY, random_sam, weights_of, write_checkpoint
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
    generator = importlib.import_module("segment_anything").SamAutomaticMaskGenerator(
        network,
        points_per_side=None,
        point_grids=[grid(sweep.points_per_side) - 0.5 / scale / size],  # it adds that half twice
        points_per_batch=sweep.points_per_batch,
        pred_iou_thresh=sweep.pred_iou_thresh,
        stability_score_thresh=sweep.stability_score_thresh,
        stability_score_offset=sweep.stability_score_offset,
        box_nms_thresh=sweep.box_nms_thresh,
        crop_n_layers=0,
        min_mask_region_area=sweep.min_mask_region_area,
    )
    records = sorted(generator.generate(image.pixels), key=lambda record: -record["predicted_iou"])
    return [(record["segmentation"], record["predicted_iou"]) for record in records]


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
    filled=st.floats(0, 1),
    area=st.integers(0, 30),
)
def test_small_regions_go_as_the_reference_removes_them(
    seed: int, height: int, width: int, filled: float, area: int
) -> None:
    import_segment_anything()
    amg = importlib.import_module("segment_anything.utils.amg")
    mask = np.random.default_rng(seed).random((height, width)) < filled
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
