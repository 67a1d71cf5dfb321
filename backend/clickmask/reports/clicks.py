"""Measures a segmenter with a simulated annotator.

The protocol is that of Xu et al., "Deep Interactive Object Selection", CVPR 2016. Click 1 is where the true
mask is deepest. Click k is where the larger error of the previous answer is deepest: foreground if it was
missed, background if it is wrong. Depth is the Euclidean distance to everything else, including the outside
of the image; ties go to the first pixel by rows, and to missed before wrong. A box is the tight box of the
true mask, without a click. The first prediction counts.

NoC@t is the mean number of clicks until an object's IoU reaches t. An object that never does is a failure and
counts with all its clicks. An exactly answered object gets no further clicks.
"""

import itertools
import logging
import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache, partial

import cv2
import numpy as np
from numpy.typing import NDArray

from clickmask.datasets.coco_reader import CocoObject
from clickmask.errors import InvalidInput, TooLarge
from clickmask.images.decode import decode_image
from clickmask.inference.refinement import LogitsCache, replay
from clickmask.inference.second_look import Crop, encode_crop, look_again
from clickmask.masks.controls import AS_IT_IS, Controls
from clickmask.masks.regions import mask_box, mask_iou
from clickmask.types import EmbeddingT, Mask, Point, Prompt, Refinable, Segmenter

log = logging.getLogger(__name__)

TARGETS = (0.85, 0.90)  # IoU targets of NoC@t
RESAMPLES = 4000  # of the bootstrap


@dataclass(frozen=True)
class Click:
    point: Point  # a pixel's centre
    foreground: bool


@dataclass(frozen=True)
class Trial:
    """The results for one object."""

    category: str
    ious: tuple[float, ...]  # after 1, 2, … clicks
    box_iou: float
    encode_ms: float | None  # None if the picture was already encoded for another object
    decode_ms: tuple[float, ...]  # of each answered prompt
    picture: str = ""  # the name of its file

    def clicks_to(self, target: float) -> int | None:
        """The number of clicks until the IoU reached `target`; None if it never did."""
        return next((count for count, iou in enumerate(self.ious, 1) if iou >= target), None)


@dataclass(frozen=True)
class Summary:
    """Means over objects; times are medians in ms."""

    objects: int
    miou: tuple[float, ...]  # after 1, 2, … clicks
    box_miou: float
    noc: Mapping[float, float]  # target -> mean number of clicks
    failures: Mapping[float, int]  # target -> objects that never reached it
    encode_ms: float | None  # None if no picture was encoded for these objects
    decode_ms: float


def central_point(mask: Mask) -> Point | None:
    """Centre of the first pixel of `mask` that is furthest from everything else; None if it is empty."""
    found = _deepest(mask)
    return found[1] if found else None


def next_click(found: Mask, truth: Mask) -> Click | None:
    """The next click of an annotator who wants `truth` and sees `found`; None if they are equal."""
    missed, wrong = _deepest(truth & ~found), _deepest(found & ~truth)
    if missed and (not wrong or missed[0] >= wrong[0]):
        return Click(missed[1], True)
    return Click(wrong[1], False) if wrong else None


def evaluate(
    segmenter: Segmenter[EmbeddingT],
    objects: Sequence[CocoObject],
    clicks: int = 5,
    controls: Controls = AS_IT_IS,
) -> Iterator[Trial]:
    """Yield one trial per object, in order (grouped by picture). Logs and skips unusable pictures. The
    annotator sees masks as `controls` ask."""
    for picture, group in itertools.groupby(objects, key=lambda each: each.picture):
        try:
            image = decode_image(picture.read_bytes())
        except (InvalidInput, TooLarge) as error:
            log.warning("%s is left out: %s", picture.name, error)
            continue
        started = time.perf_counter()
        embedding = segmenter.encode(image)
        encode_ms: float | None = 1000 * (time.perf_counter() - started)
        embed = lru_cache(partial(encode_crop, segmenter, image))
        for each in group:
            if image.size != each.size:
                log.warning("%s is left out: its size is %s, not %s", picture.name, image.size, each.size)
                continue
            logits = LogitsCache()  # a refining segmenter keeps its logits between prompts about one object
            truth = each.mask()
            found = np.zeros_like(truth)
            foreground: list[Point] = []
            background: list[Point] = []
            ious: list[float] = []
            decode_ms: list[float] = []
            for _ in range(clicks):
                if click := next_click(found, truth):
                    (foreground if click.foreground else background).append(click.point)
                    prompt = Prompt(tuple(foreground), tuple(background))
                    found, ms = _answer(segmenter, embedding, prompt, logits, controls, embed)
                    decode_ms.append(ms)
                ious.append(mask_iou(found, truth))
            boxed, ms = _answer(segmenter, embedding, Prompt(box=mask_box(truth)), logits, controls, embed)
            box_iou = mask_iou(boxed, truth)
            yield Trial(each.category, tuple(ious), box_iou, encode_ms, (*decode_ms, ms), picture.name)
            encode_ms = None


def summarise(trials: Sequence[Trial]) -> Summary:
    """The means over `trials`. Raises ValueError if there are none."""
    if not trials:
        raise ValueError("nothing was tried")
    encodes = [trial.encode_ms for trial in trials if trial.encode_ms is not None]
    return Summary(
        len(trials),
        tuple(statistics.fmean(after) for after in zip(*(trial.ious for trial in trials), strict=True)),
        statistics.fmean(trial.box_iou for trial in trials),
        {at: statistics.fmean(each.clicks_to(at) or len(each.ious) for each in trials) for at in TARGETS},
        {at: sum(each.clicks_to(at) is None for each in trials) for at in TARGETS},
        statistics.median(encodes) if encodes else None,
        statistics.median(ms for trial in trials for ms in trial.decode_ms),
    )


def summarise_categories(trials: Sequence[Trial]) -> dict[str, Summary]:
    """Summaries by category, most frequent first."""
    of: dict[str, list[Trial]] = {}
    for trial in trials:
        of.setdefault(trial.category, []).append(trial)
    return {name: summarise(of[name]) for name in sorted(of, key=lambda name: (-len(of[name]), name))}


def intervals(trials: Sequence[Trial], others: Sequence[Trial] | None = None) -> NDArray[np.float64] | None:
    """(clicks + 1, 2): the 95 % interval of the mIoU after 1, 2, ... clicks and, last, by box; or of what it
    is more than `others`, of another segmenter and the same objects. Bootstrap over pictures, since the
    objects of one are alike; None if there is only one. The same trials give the same intervals."""
    ious = np.array([(*trial.ious, trial.box_iou) for trial in trials])
    if others is not None:
        ious -= np.array([(*trial.ious, trial.box_iou) for trial in others])
    pictures, of = np.unique([trial.picture for trial in trials], return_inverse=True)
    if len(pictures) < 2:
        return None
    sums, counts = np.zeros((len(pictures), ious.shape[1])), np.bincount(of)
    np.add.at(sums, of, ious)
    drawn = np.random.default_rng(0).integers(len(pictures), size=(RESAMPLES, len(pictures)))
    means = sums[drawn].sum(axis=1) / counts[drawn].sum(axis=1)[:, None]
    return np.quantile(means, (0.025, 0.975), axis=0).T


def _answer(
    segmenter: Segmenter[EmbeddingT],
    embedding: EmbeddingT,
    prompt: Prompt,
    logits: LogitsCache,
    controls: Controls,
    embed: Callable[[Crop], EmbeddingT],
) -> tuple[Mask, float]:
    """The first prediction, and the ms that it took."""
    started = time.perf_counter()
    if isinstance(segmenter, Refinable):
        predictions = replay(segmenter, embedding, prompt, cache=logits)
    else:
        predictions = segmenter.decode(embedding, prompt)
    if controls.second_look:
        predictions[0] = look_again(segmenter, prompt, predictions[0], embed)
    ms = 1000 * (time.perf_counter() - started)
    return controls.apply(predictions[0].mask), ms


def _deepest(mask: Mask) -> tuple[float, Point] | None:
    """The largest distance from a pixel in `mask` to the outside, and that pixel's centre."""
    if not mask.any():
        return None
    surrounded = np.pad(mask, 1).view(np.uint8)
    depth = cv2.distanceTransform(surrounded, cv2.DIST_L2, cv2.DIST_MASK_PRECISE)
    row, column = np.unravel_index(int(depth.argmax()), depth.shape)
    return float(depth[row, column]), (float(column) - 0.5, float(row) - 0.5)
