"""Clicks after the first: each corrects the previous mask, and a repeated click asks for another mask.

SAM was trained to be corrected: with each new click it gets its previous mask back, as low-resolution logits.
Here that mask is recomputed from the prompt alone, prefix by prefix, in a canonical order (not all tools send
one): box, foreground points, background points. The cache of logits only saves work and changes no answer.
"""

import hashlib
import math
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, replace

import numpy as np

from clickmask.caches import Lru
from clickmask.errors import Failed
from clickmask.inference import driver
from clickmask.types import EmbeddingT, Logits, Point, Prediction, Prompt, Refinable, Segmenter, Size

MAX_LOGITS_BYTES = 64 * 2**20  # one step of SAM takes 256 KiB
REPEAT_PIXELS, REPEAT_SHARE = 3.0, 0.005  # how near (share: of the long side) a repeated click is
MAX_REPLAY_STEPS = 16  # limits the time that a prompt of a thousand points takes


@dataclass(frozen=True, eq=False)
class Step:
    """A prefix of a prompt, and the candidate that repeats of its last click ask for."""

    prompt: Prompt
    turns: tuple[int, ...]  # the candidate at each prefix up to this one; 0 is the best

    def key(self, mask: bytes) -> Hashable:
        return self.prompt.box, self.prompt.foreground, self.prompt.background, self.turns, mask


class LogitsCache(Lru[Hashable, Logits]):
    """Logits by segmenter, image and step; the least recently used go first. For any thread."""

    def __init__(self, max_bytes: int = MAX_LOGITS_BYTES) -> None:
        super().__init__(max_bytes=max_bytes, size=lambda logits: logits.nbytes)

    def put(self, key: Hashable, value: Logits) -> Logits | None:
        return super().put(key, value.copy())  # a view would keep all candidates alive


class Refinement:
    """A decoder that answers a prompt as the last step of a conversation. For any thread."""

    def __init__(self, cache: LogitsCache | None = None) -> None:
        self._cache = LogitsCache() if cache is None else cache

    def decode(
        self, segmenter: Segmenter[EmbeddingT], embedding: EmbeddingT, prompt: Prompt, digest: str, size: Size
    ) -> list[Prediction]:
        """The candidates from best to worst, cyclically, starting at the one that was asked for."""

        def answer(distinct: Prompt, turns: Sequence[int]) -> list[Prediction]:
            if not isinstance(segmenter, Refinable):
                predictions = driver.decode(segmenter, embedding, distinct, size)
                return _rotated(predictions, steps(distinct, turns)[-1].turns[-1])
            with driver.blaming(segmenter.name):
                predictions = replay(segmenter, embedding, distinct, turns, self._cache, digest)
                return driver.check_predictions(segmenter.name, predictions, size)

        distinct, turns, shown = without_repeats(prompt, size, answer)
        predictions = shown if shown and not prompt.background else answer(distinct, turns)
        # Nobody says whether a near click came before or after the background clicks. If they leave it out of
        # the mask, it came after them and means its own pixel.
        repeated = [point for point in prompt.foreground if point not in distinct.foreground]
        if repeated and prompt.background and not all(_covers(predictions[0], point) for point in repeated):
            return answer(prompt, (0,) * len(prompt.foreground))
        return predictions


def replay(
    segmenter: Refinable[EmbeddingT],
    embedding: EmbeddingT,
    prompt: Prompt,
    turns: Sequence[int] = (),
    cache: LogitsCache | None = None,
    digest: str = "",
) -> list[Prediction]:
    """Answer `prompt`, correcting each step by the next. `turns`: see `without_repeats`. Steps whose logits
    are in `cache` under the image's `digest` are not computed again."""
    mask = b"" if prompt.mask is None else hashlib.sha256(np.packbits(prompt.mask).tobytes()).digest()
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
        if not 0 < len(predictions) == len(candidates):
            raise Failed(f"{segmenter.name} gave {len(predictions)} predictions and {len(candidates)} logits")
        turn = step.turns[-1] % len(predictions)
        predictions, logits = _rotated(predictions, turn), candidates[turn : turn + 1]
        if cache is not None:
            cache.put(key, logits)
    return predictions


def without_repeats(
    prompt: Prompt, size: Size, answer: Callable[[Prompt, Sequence[int]], list[Prediction]]
) -> tuple[Prompt, tuple[int, ...], list[Prediction]]:
    """`prompt` without repeated foreground clicks, how often each remaining one was repeated, and, if the
    last one is a repeat, the candidates for the foreground clicks, the one that it asks for first.

    A click repeats the one before it if it is near, in the mask that it was shown, and there are other
    candidates. Any other click means its own pixel: a prompt that dropped it would be answered the same for
    ever. `answer` gives the candidates, the one shown first; it is asked at most MAX_REPLAY_STEPS times.
    """
    reach = max(REPEAT_PIXELS, REPEAT_SHARE * max(size))
    points: list[Point] = []
    turns: list[int] = []
    shown: list[Prediction] = []
    asked = 0
    for point in prompt.foreground:
        near = bool(points) and math.dist(point, points[-1]) <= reach
        if near and not shown and asked < MAX_REPLAY_STEPS:
            asked += 1
            shown = answer(replace(prompt, foreground=tuple(points), background=()), turns)
        if near and len(shown) > 1 and _covers(shown[0], point):
            turns[-1] += 1
            shown = _rotated(shown, 1)
        else:
            points.append(point)
            turns.append(0)
            shown = []
    return replace(prompt, foreground=tuple(points)), tuple(turns), shown


def steps(prompt: Prompt, turns: Sequence[int] = ()) -> list[Step]:
    """The prefixes of `prompt` in canonical order, the whole prompt last. The mask is part of each. `turns`
    has a number for each foreground point, or is empty. There are at most MAX_REPLAY_STEPS steps, so the
    first step of a longer prompt has several points. Their number depends only on the number of clicks, so
    that the next click continues from this one's logits."""
    foreground, background = prompt.foreground, prompt.background
    boxes = 0 if prompt.box is None else 1
    every_turn = (0,) * boxes + (tuple(turns) or (0,) * len(foreground)) + (0,) * len(background)
    if not every_turn:  # a mask alone
        return [Step(prompt, (0,))]

    def beginning(count: int) -> Prompt:
        clicks = max(0, count - boxes)
        after = max(0, clicks - len(foreground))
        return replace(prompt, foreground=foreground[:clicks], background=background[:after])

    first = (len(every_turn) - 1) // MAX_REPLAY_STEPS * MAX_REPLAY_STEPS + 1
    return [Step(beginning(count), every_turn[:count]) for count in range(first, len(every_turn) + 1)]


def _covers(prediction: Prediction, point: Point) -> bool:
    mask = prediction.mask
    return bool(mask[min(int(point[1]), mask.shape[0] - 1), min(int(point[0]), mask.shape[1] - 1)])


def _rotated(predictions: list[Prediction], turn: int) -> list[Prediction]:
    first = turn % len(predictions)
    return predictions[first:] + predictions[:first]
