"""Clicks after the first: each corrects the mask before it, and a repeated one asks for another.

SAM was trained to be corrected: with each new click it is handed its previous mask again, as
logits of low resolution. Which mask that was is recomputed here from the prompt alone: what was
pointed at is taken in one canonical order (the tools do not all send one), the box first, then
the foreground points, then the background points, and each beginning of it is answered in turn.
A cache of the logits only saves work: an answer never depends on what was asked before.
"""

from __future__ import annotations

import hashlib
import math
import threading
from collections import OrderedDict
from collections.abc import Hashable, Sequence
from dataclasses import dataclass, replace

import numpy as np

from clickmask.types import EmbeddingT, Logits, Mask, Point, Prediction, Prompt, Refinable, Segmenter, Size

CAPACITY = 64 * 2**20  # bytes of logits; a prefix takes SAM 256 KiB
REPEAT_PIXELS, REPEAT_SHARE = 3.0, 0.005  # a click this near (share: of the long side) is a repeated one
MAX_REPLAY_STEPS = 16  # steps; bounds the time that a prompt of a thousand points takes


@dataclass(frozen=True, eq=False)
class Step:
    """A beginning of a prompt, and which of its candidates was asked for by repeating its last click."""

    prompt: Prompt
    turns: tuple[int, ...]  # of each beginning until here, this one's last; 0 is the best candidate

    def key(self, mask: bytes) -> Hashable:
        return self.prompt.box, self.prompt.foreground, self.prompt.background, self.turns, mask


class LogitsCache:
    """Logits by image, segmenter and step: least recently used out first. For any thread."""

    def __init__(self, capacity: int = CAPACITY) -> None:
        self._capacity = capacity
        self._kept: OrderedDict[Hashable, Logits] = OrderedDict()
        self._bytes = 0
        self._lock = threading.Lock()

    def get(self, key: Hashable) -> Logits | None:
        with self._lock:
            if key in self._kept:
                self._kept.move_to_end(key)
            return self._kept.get(key)

    def keep(self, key: Hashable, logits: Logits) -> None:
        own = logits.copy()  # a view would keep all the candidates alive
        with self._lock:
            replaced = self._kept.pop(key, None)
            self._bytes += own.nbytes - (0 if replaced is None else replaced.nbytes)
            self._kept[key] = own
            while self._bytes > self._capacity:
                _, oldest = self._kept.popitem(last=False)
                self._bytes -= oldest.nbytes


class Refinement:
    """What turns a segmenter's answers into those of a conversation; see the module. For any thread."""

    def __init__(self, cache: LogitsCache | None = None) -> None:
        self._cache = cache or LogitsCache()

    def decode(
        self, segmenter: Segmenter[EmbeddingT], embedding: EmbeddingT, prompt: Prompt, digest: str, size: Size
    ) -> list[Prediction]:
        """The candidate that was asked for first, then the others, best first, those before it last."""
        distinct, turns = without_repeats(prompt, size)
        if isinstance(segmenter, Refinable):
            return replay(segmenter, embedding, distinct, turns, self._cache, digest)
        predictions = segmenter.decode(embedding, distinct)
        return _from(predictions, steps(distinct, turns)[-1].turns[-1])


def replay(
    segmenter: Refinable[EmbeddingT],
    embedding: EmbeddingT,
    prompt: Prompt,
    turns: Sequence[int] = (),
    cache: LogitsCache | None = None,
    digest: str = "",
) -> list[Prediction]:
    """The answer to `prompt`, each step of it corrected by the next. `turns`: see `without_repeats`.

    Steps whose logits are in `cache`, under the image's `digest`, are not computed again.
    """
    mask = b"" if prompt.mask is None else _mask_digest(prompt.mask)
    pending = steps(prompt, turns)
    keys = [(segmenter.name, digest, step.key(mask)) for step in pending]
    logits, begin = None, 0
    for index in reversed(range(len(pending) - 1)):
        if cache is not None and (logits := cache.get(keys[index])) is not None:
            begin = index + 1
            break
    predictions: list[Prediction] = []
    for step, key in zip(pending[begin:], keys[begin:], strict=True):
        predictions, candidates = segmenter.decode_from(embedding, step.prompt, logits)
        turn = step.turns[-1] % len(predictions)
        predictions, logits = _from(predictions, turn), candidates[turn : turn + 1]
        if cache is not None:
            cache.keep(key, logits)
    return predictions


def without_repeats(prompt: Prompt, size: Size) -> tuple[Prompt, tuple[int, ...]]:
    """`prompt` without repeated foreground clicks, and how often each of those left was repeated."""
    reach = max(REPEAT_PIXELS, REPEAT_SHARE * max(size))
    points: list[Point] = []
    turns: list[int] = []
    for point in prompt.foreground:
        if points and math.dist(point, points[-1]) <= reach:
            turns[-1] += 1
        else:
            points.append(point)
            turns.append(0)
    return replace(prompt, foreground=tuple(points)), tuple(turns)


def steps(prompt: Prompt, turns: Sequence[int] = ()) -> list[Step]:
    """The beginnings of `prompt` in canonical order, the whole of it last; the mask is part of each.

    `turns` has a number for each foreground point, or none. At most MAX_REPLAY_STEPS steps: of a
    longer prompt, all but the last stretch is the first step. Where a stretch begins depends on
    the number of clicks alone, so the next click goes on from this one's logits.
    """
    foreground, background = prompt.foreground, prompt.background
    boxes = 0 if prompt.box is None else 1
    every_turn = (0,) * boxes + (tuple(turns) or (0,) * len(foreground)) + (0,) * len(background)
    if not every_turn:  # a mask alone
        return [Step(prompt, (0,))]

    def beginning(count: int) -> Prompt:
        clicks = max(0, count - boxes)
        return replace(
            prompt, foreground=foreground[:clicks], background=background[: max(0, clicks - len(foreground))]
        )

    first = (len(every_turn) - 1) // MAX_REPLAY_STEPS * MAX_REPLAY_STEPS + 1
    return [Step(beginning(count), every_turn[:count]) for count in range(first, len(every_turn) + 1)]


def _from(predictions: list[Prediction], turn: int) -> list[Prediction]:
    first = turn % len(predictions)
    return predictions[first:] + predictions[:first]


def _mask_digest(mask: Mask) -> bytes:
    return hashlib.sha256(np.packbits(mask).tobytes()).digest()
