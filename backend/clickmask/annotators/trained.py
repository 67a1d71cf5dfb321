"""The model that was trained on a project's accepted labels, `trained:TOOL-PROJECT`: whichever is served.

Every pixel has one class, so an object is what of a category hangs together. Its score is how sure
the network is of its pixels, on average. With a `refiner`, the name of a segmenter, each object has the
better outline of two; see `_refined`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial

import cv2
import numpy as np

from clickmask.annotators._refine import refine
from clickmask.errors import ModelDamaged, SegmenterNotReady
from clickmask.inference.catalogue import Catalogue
from clickmask.inference.embeddings import EmbeddingCache
from clickmask.models.labeller import Labelling, ProjectModels
from clickmask.models.versions import ModelVersion
from clickmask.types import Image, Mask, Prediction

Refiner = Callable[[Image, list[tuple[str, Prediction]]], list[tuple[str, Prediction]]]

MIN_AREA_SHARE = 1e-4  # of the picture's area; less is a speck, and no object
MIN_MEAN_PROBABILITY = 0.5  # of its pixels, on average; less are fringes between what the network is surer of


class UNet:
    """Follows the project's pointer: the next picture is labelled by what is served by then."""

    def __init__(self, name: str, folder: str, models: ProjectModels, refiner: Refiner | None = None) -> None:
        self.name = name
        self._folder = folder
        self._models = models
        self._refiner = refiner

    @property
    def labels(self) -> tuple[str, ...]:
        version = self._models.named(self._folder).served()
        return version.provenance.categories if version else ()

    def annotate(self, image: Image) -> list[tuple[str, Prediction]]:
        """Raises ModelDamaged, SegmenterNotReady and, with a refiner, Busy."""
        return self.annotate_by(image)[1]

    def annotate_by(self, image: Image) -> tuple[ModelVersion, list[tuple[str, Prediction]]]:
        """As `annotate`, with the version that it was."""
        version, labeller = self._models.served(self._folder)
        found = list(_objects(labeller.label(image.pixels), version.provenance.categories, self.name))
        found.sort(key=lambda each: -each[1].score)
        return version, self._refiner(image, found) if self._refiner else found


def variants(models: ProjectModels | None) -> tuple[str, ...]:
    return tuple(models.names()) if models else ()


def labels(variant: str, models: ProjectModels) -> tuple[str, ...]:
    return UNet("", variant, models).labels


def missing(variant: str, models: ProjectModels, segmenters: Catalogue, refiner: str | None) -> str:
    try:
        models.named(variant).served()
        if refiner:
            segmenters.require_ready(refiner)
    except (ModelDamaged, SegmenterNotReady) as error:
        return str(error)
    return ""


def load(
    variant: str,
    models: ProjectModels,
    segmenters: Catalogue,
    embeddings: EmbeddingCache,
    refiner: str | None,
) -> UNet:
    """Raises UnknownSegmenter and SegmenterNotReady, of the refiner."""
    refining = None
    if refiner:
        refining = partial(refine, segmenter=segmenters.get(refiner), embeddings=embeddings)
    return UNet(f"trained:{variant}", variant, models, refining)


def _objects(
    labelling: Labelling, categories: tuple[str, ...], name: str
) -> Iterator[tuple[str, Prediction]]:
    smallest = MIN_AREA_SHARE * labelling.classes.size
    for number, category in enumerate(categories, 1):
        there = np.asarray(labelling.classes == number).view(np.uint8)
        count, places = cv2.connectedComponents(there, connectivity=8)
        numbers = np.asarray(places, np.int32)
        areas = np.bincount(numbers.ravel(), minlength=count)
        for part in range(1, count):
            if areas[part] < smallest:
                continue
            mask: Mask = numbers == part
            score = min(float(labelling.confidence[mask].mean()), 1.0)
            if score >= MIN_MEAN_PROBABILITY:
                yield category, Prediction(mask, score, name)
