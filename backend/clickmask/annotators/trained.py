"""The served version of the model trained on a project's accepted labels, `trained:TOOL-PROJECT`.

Each pixel has one class, so an object is a connected part of a category. Its score is the network's mean
probability over its pixels. With a refiner, each object keeps the better of two outlines; see `_refine`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from functools import partial

import cv2
import numpy as np

from clickmask.annotators._catalogue import Host
from clickmask.annotators._refine import refine
from clickmask.errors import Failed, NotReady
from clickmask.models.labeller import Labelling
from clickmask.models.versions import ProjectModels
from clickmask.plugins import Variant
from clickmask.types import Image, Mask, Prediction

Refiner = Callable[[Image, list[tuple[str, Prediction]]], list[tuple[str, Prediction]]]

MIN_AREA_SHARE = 1e-4  # of the image's area; a smaller part is a speck
MIN_MEAN_PROBABILITY = 0.5  # over its pixels; below it a part is a fringe between surer classes


class Trained:
    """An annotator that labels each image with the version of the project's model served at that moment."""

    def __init__(self, name: str, folder: str, models: ProjectModels, refiner: Refiner | None = None) -> None:
        self.name = name
        self._folder = folder
        self._models = models
        self._refiner = refiner

    @property
    def labels(self) -> tuple[str, ...]:
        """Categories of the served version. Raises Failed."""
        version = self._models.named(self._folder).served()
        return version.provenance.categories if version else ()

    def annotate(self, image: Image) -> list[tuple[str, Prediction]]:
        """Label the objects. Raises Failed, NotReady and, with a refiner, Busy."""
        version, labeller = self._models.served(self._folder)
        found = list(_objects(labeller.predict(image.pixels), version.provenance.categories, self.name))
        found.sort(key=lambda each: -each[1].score)
        return self._refiner(image, found) if self._refiner else found


def variants(host: Host) -> Mapping[str, Variant]:
    return {name: Variant() for name in host.models.names()} if host.models else {}


def labels(variant: str, host: Host) -> tuple[str, ...]:
    return Trained("", variant, _models(host)).labels


def missing(variant: str, host: Host) -> str:
    try:
        _models(host).named(variant).served()
        if host.refiner:
            host.segmenters.require_ready(host.refiner)
    except (Failed, NotReady) as error:
        return str(error)
    return ""


def load(variant: str, host: Host) -> Trained:
    """Load the annotator. Raises NotFound or NotReady if the refiner is unknown or cannot run."""
    refiner = None
    if host.refiner:
        segmenter = host.segmenters.get(host.refiner)
        refiner = partial(refine, segmenter=segmenter, embeddings=host.embeddings)
    return Trained(f"trained:{variant}", variant, _models(host), refiner)


def _models(host: Host) -> ProjectModels:
    if host.models is None:
        raise NotReady("this process knows no trained models")
    return host.models


def _objects(
    labelling: Labelling, categories: tuple[str, ...], name: str
) -> Iterator[tuple[str, Prediction]]:
    min_area = MIN_AREA_SHARE * labelling.classes.size
    for number, category in enumerate(categories, 1):
        of_category = np.asarray(labelling.classes == number).view(np.uint8)
        count, labels = cv2.connectedComponents(of_category, connectivity=8)
        parts = np.asarray(labels, np.int32)
        areas = np.bincount(parts.ravel(), minlength=count)
        for part in range(1, count):
            if areas[part] < min_area:
                continue
            mask: Mask = parts == part
            score = min(float(labelling.confidence[mask].mean()), 1.0)
            if score >= MIN_MEAN_PROBABILITY:
                yield category, Prediction(mask, score, name)
