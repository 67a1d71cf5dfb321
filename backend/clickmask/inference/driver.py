"""Calls to segmenters and annotators, whose results are checked before they are trusted. A plugin that fails
or breaks its contract in `clickmask.types` raises Failed with its name. It never causes a wrong mask and
never shows the text of a foreign error."""

import logging
from collections.abc import Generator
from contextlib import contextmanager
from functools import partial
from typing import Any

import numpy as np

from clickmask.errors import NEEDS_MEMORY, ClickmaskError, Failed, OutOfMemory, is_out_of_memory
from clickmask.types import Annotator, EmbeddingT, Image, Mask, Prediction, Prompt, Segmenter, Size

log = logging.getLogger(__name__)


def encode(segmenter: Segmenter[EmbeddingT], image: Image) -> EmbeddingT:
    """Encode the image, and check that the size of the embedding is known."""
    with blaming(segmenter.name):
        embedding = segmenter.encode(image)
        nbytes: Any = getattr(embedding, "nbytes", None)
        if not isinstance(nbytes, int | np.integer) or nbytes < 0:
            raise Failed(f"{segmenter.name} gave an embedding whose nbytes is {nbytes!r}")
        return embedding


def decode(
    segmenter: Segmenter[EmbeddingT], embedding: EmbeddingT, prompt: Prompt, size: Size
) -> list[Prediction]:
    """At least one prediction for an image of `size`, checked by `check_predictions`."""
    with blaming(segmenter.name):
        return check_predictions(segmenter.name, segmenter.decode(embedding, prompt), size)


def annotate(annotator: Annotator, image: Image) -> list[tuple[str, Prediction]]:
    """Each object with one of the annotator's labels. Masks are computed; empty ones are left out."""
    name = annotator.name
    with blaming(name):
        labels = annotator.labels
        found: list[tuple[str, Prediction]] = []
        for label, prediction in annotator.annotate(image):
            if label not in labels and label not in annotator.labels:  # a model may be promoted in between
                raise Failed(f"{name} gave the label {label[:80]!r}, which is none of its labels")
            _require_prediction(name, prediction)
            if _checked_mask(name, prediction, image.size).any():
                found.append((label, prediction))
    return found


def check_predictions(name: str, predictions: list[Prediction], size: Size) -> list[Prediction]:
    """`predictions` with masks that are checked when first read, since most are never read."""
    if not predictions:
        raise Failed(f"{name} gave no prediction")
    checked: list[Prediction] = []
    for each in predictions:
        _require_prediction(name, each)
        checked.append(Prediction(partial(_checked_mask, name, each, size), each.score, each.segmenter))
    return checked


@contextmanager
def blaming(name: str) -> Generator[None]:
    """Turn every foreign error into Failed with the plugin's name, and log the original."""
    try:
        yield
    except ClickmaskError:
        raise
    except Exception as error:  # a plugin may raise anything
        if is_out_of_memory(error):
            raise OutOfMemory(f"{name} {NEEDS_MEMORY}") from error
        log.exception("%s failed", name)
        kind = type(error).__name__
        raise Failed(f"{name} failed ({kind}); clickmask's log has the details") from error


def _require_prediction(name: str, prediction: object) -> None:
    """Check the type. `Prediction` itself refuses scores outside [0, 1]."""
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
