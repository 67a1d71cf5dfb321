"""Segmenters and annotators are run here, and what they give is checked before it is trusted.

A plugin that fails, or gives something else than its contract in `clickmask.types` says, answers with
Failed and its name: never with a wrong mask, and never with the text of a foreign error.
"""

from __future__ import annotations

import logging
from collections.abc import Generator
from contextlib import contextmanager
from functools import partial
from typing import Any

import numpy as np

from clickmask.errors import ClickmaskError, Failed
from clickmask.types import Annotator, EmbeddingT, Image, Mask, Prediction, Prompt, Segmenter, Size

log = logging.getLogger(__name__)


def encode(segmenter: Segmenter[EmbeddingT], image: Image) -> EmbeddingT:
    """The embedding, whose size is known."""
    with blaming(segmenter.name):
        embedding = segmenter.encode(image)
        nbytes: Any = getattr(embedding, "nbytes", None)
        if not isinstance(nbytes, int | np.integer) or nbytes < 0:
            raise Failed(f"{segmenter.name} gave an embedding whose nbytes is {nbytes!r}")
        return embedding


def decode(
    segmenter: Segmenter[EmbeddingT], embedding: EmbeddingT, prompt: Prompt, size: Size
) -> list[Prediction]:
    """At least one prediction for an image of `size`, as `check_predictions` gives them."""
    with blaming(segmenter.name):
        return check_predictions(segmenter.name, segmenter.decode(embedding, prompt), size)


def annotate(annotator: Annotator, image: Image) -> list[tuple[str, Prediction]]:
    """Each object with one of the annotator's labels. Masks are computed and are not empty."""
    name = annotator.name
    with blaming(name):
        labels = annotator.labels
        found = list(annotator.annotate(image))
        for label, prediction in found:
            if label not in labels and label not in annotator.labels:  # a model may be promoted meanwhile
                raise Failed(f"{name} gave the label {label[:80]!r}, which is none of its labels")
            _require_prediction(name, prediction)
            if not _checked_mask(name, prediction, image.size).any():
                raise Failed(f"{name} gave an empty mask")
    return found


def check_predictions(name: str, predictions: list[Prediction], size: Size) -> list[Prediction]:
    """`predictions`, whose masks are checked when they are first looked at: most never are."""
    if not predictions:
        raise Failed(f"{name} gave no prediction")
    checked: list[Prediction] = []
    for each in predictions:
        _require_prediction(name, each)
        checked.append(Prediction(partial(_checked_mask, name, each, size), each.score, each.segmenter))
    return checked


@contextmanager
def blaming(name: str) -> Generator[None]:
    """Every foreign error as Failed with the plugin's name; the log has the error."""
    try:
        yield
    except ClickmaskError:
        raise
    except Exception as error:
        log.exception("%s failed", name)
        kind = type(error).__name__
        raise Failed(f"{name} failed ({kind}); clickmask's log has the details") from error


def _require_prediction(name: str, prediction: object) -> None:
    """`Prediction` itself refuses scores outside [0, 1]."""
    if not isinstance(prediction, Prediction):
        raise Failed(f"{name} gave a {type(prediction).__name__} instead of a Prediction")


def _checked_mask(name: str, prediction: Prediction, size: Size) -> Mask:
    with blaming(name):
        mask = prediction.mask
    given: Any = mask
    shape, kind = getattr(given, "shape", None), getattr(given, "dtype", type(given).__name__)
    if shape != size or kind != np.bool_ or not isinstance(given, np.ndarray):
        height, width = size
        raise Failed(f"{name} gave a mask of shape {shape} and type {kind} for the {width}x{height} image")
    return mask
