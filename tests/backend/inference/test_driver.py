"""What a plugin gives is checked before it is trusted."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from clickmask.errors import Busy, Failed, OutOfMemory
from clickmask.inference import driver
from clickmask.inference.refinement import Refinement
from clickmask.types import Image, Prediction, Prompt

SIZE = (20, 30)
CLICK = Prompt(foreground=((10.0, 7.0),))
IMAGE = Image(np.zeros((*SIZE, 3), np.uint8), "digest")
MASK = np.ones(SIZE, np.bool_)


class Odd:
    """A plugin that gives what it is told to give: a value, or what a function returns or raises."""

    name = "odd"
    labels = ("cell",)

    def __init__(self, gives: Any) -> None:
        self._gives = gives

    def encode(self, image: Image) -> Any:
        return self._gives() if callable(self._gives) else self._gives

    def decode(self, embedding: Any, prompt: Prompt) -> Any:
        return self._gives() if callable(self._gives) else self._gives

    def annotate(self, image: Image) -> Any:
        return self._gives() if callable(self._gives) else self._gives


class OddlyRefined(Odd):
    """As `Odd`, with logits."""

    def decode_from(self, embedding: Any, prompt: Prompt, logits: Any) -> Any:
        return self.decode(embedding, prompt)


def prediction(mask: Any = MASK, score: float = 0.5) -> Prediction:
    return Prediction(mask, score, "odd")


def raising(error: Exception) -> Callable[[], Any]:
    def fail() -> Any:
        raise error

    return fail


WRONG_PREDICTIONS = {
    "none": ([], "odd gave no prediction"),
    "no prediction at all": (None, "odd gave no prediction"),
    "a mask alone": ([MASK], "odd gave a ndarray instead of a Prediction"),
    "another size": (
        [prediction(MASK.T)],
        r"odd gave a mask of shape \(30, 20\) and type bool for the 30x20 image",
    ),
    "another type": ([prediction(MASK.astype(np.uint8))], r"of shape \(20, 30\) and type uint8"),
    "three dimensions": ([prediction(MASK[..., None])], r"of shape \(20, 30, 1\) and type bool"),
    "no array": ([prediction([[True]])], "of shape None and type list"),
    "a lazy mask of another size": ([prediction(lambda: MASK.T)], r"of shape \(30, 20\)"),
    "a lazy mask that fails": ([prediction(raising(OSError("/a/path")))], r"odd failed \(OSError\)"),
    "a score above 1": (lambda: [prediction(score=1.5)], r"odd failed \(ValueError\)"),
    "a score that is no number": (lambda: [prediction(score=float("nan"))], r"odd failed \(ValueError\)"),
    "an error": (raising(KeyError("/a/path")), r"odd failed \(KeyError\); clickmask's log has the details"),
}


@pytest.mark.parametrize(("gives", "says"), WRONG_PREDICTIONS.values(), ids=WRONG_PREDICTIONS)
def test_a_wrong_answer_to_a_click_is_a_sentence_and_never_a_mask(
    gives: Any, says: str, caplog: pytest.LogCaptureFixture
) -> None:
    with pytest.raises(Failed, match=says) as failed:
        _ = Refinement().decode(Odd(gives), MASK, CLICK, "digest", SIZE)[0].mask
    assert "/a/path" not in str(failed.value)
    assert ("failed (" in str(failed.value)) == ("odd failed" in caplog.text)


@pytest.mark.parametrize(
    ("gives", "says"),
    [
        (([], np.zeros((0, 4, 4))), "odd gave 0 predictions and 0 logits"),
        (([prediction()], np.zeros((3, 4, 4))), "odd gave 1 predictions and 3 logits"),
        (([prediction(MASK.T)], np.zeros((1, 4, 4))), r"of shape \(30, 20\)"),
        (prediction(), r"odd failed \(TypeError\)"),
    ],
)
def test_a_wrong_refinement_is_a_sentence_and_never_a_mask(gives: Any, says: str) -> None:
    with pytest.raises(Failed, match=says):
        _ = Refinement().decode(OddlyRefined(gives), MASK, CLICK, "digest", SIZE)[0].mask


def test_masks_stay_lazy_and_are_computed_once() -> None:
    computed: list[int] = []

    def compute() -> Any:
        computed.append(1)
        return MASK

    answers = Refinement().decode(
        Odd([prediction(compute), prediction(compute, 0.25)]), MASK, CLICK, "", SIZE
    )
    assert [(each.score, each.segmenter) for each in answers] == [(0.5, "odd"), (0.25, "odd")]
    assert computed == []
    assert answers[0].mask is MASK
    assert answers[0].mask is MASK
    assert computed == [1]


@pytest.mark.parametrize("embedding", [object(), SimpleNamespace(nbytes="7"), SimpleNamespace(nbytes=-1)])
def test_an_embedding_without_a_size_is_refused(embedding: Any) -> None:
    with pytest.raises(Failed, match="odd gave an embedding whose nbytes is"):
        driver.encode(Odd(embedding), IMAGE)


def test_an_encoder_that_fails_is_named() -> None:
    with pytest.raises(Failed, match=r"odd failed \(OverflowError\)"):
        driver.encode(Odd(raising(OverflowError())), IMAGE)


def test_a_lack_of_memory_is_no_failure_of_the_plugin() -> None:
    with pytest.raises(OutOfMemory, match="odd needs more memory"):
        driver.encode(Odd(raising(RuntimeError("DefaultCPUAllocator: can't allocate memory"))), IMAGE)


def test_what_clickmask_raises_on_purpose_passes() -> None:
    for run in (driver.encode, driver.annotate):
        with pytest.raises(Busy):
            run(Odd(raising(Busy("later"))), IMAGE)
    with pytest.raises(Busy):
        driver.decode(Odd(raising(Busy("later"))), MASK, CLICK, SIZE)


@pytest.mark.parametrize(
    ("gives", "says"),
    [
        ([("dog", prediction())], "odd gave the label 'dog', which is none of its labels"),
        ([("cell", MASK)], "odd gave a ndarray instead of a Prediction"),
        ([("cell", prediction(MASK.T))], r"of shape \(30, 20\)"),
        ([prediction()], r"odd failed \(TypeError\)"),
        (raising(RuntimeError("it is odd")), r"odd failed \(RuntimeError\)"),
    ],
)
def test_a_wrong_annotation_is_a_sentence_and_never_a_mask(gives: Any, says: str) -> None:
    with pytest.raises(Failed, match=says):
        driver.annotate(Odd(gives), IMAGE)


def test_a_right_annotation_passes_unchanged() -> None:
    found = [("cell", prediction())]
    assert driver.annotate(Odd(found), IMAGE) == found
    assert driver.annotate(Odd([]), IMAGE) == []
    assert driver.annotate(Odd([*found, ("cell", prediction(MASK & ~MASK))]), IMAGE) == found


def test_labels_of_a_model_that_is_promoted_meanwhile_are_right() -> None:
    class Following(Odd):
        labels = ("cell",)

        def annotate(self, image: Image) -> Any:
            self.labels = ("cell", "nucleus")
            return [("nucleus", prediction())]

    assert driver.annotate(Following(None), IMAGE)[0][0] == "nucleus"
