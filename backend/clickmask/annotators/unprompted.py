"""The objects that a segmenter finds by itself, one variant for each segmenter that says their `labels`. An
image is encoded once for this and for clicks."""

from collections.abc import Mapping
from typing import Any

from clickmask.annotators._catalogue import Host
from clickmask.errors import NotReady
from clickmask.inference import driver
from clickmask.inference.embeddings import BATCH, EmbeddingCache, EmbeddingKey
from clickmask.plugins import Variant
from clickmask.types import Image, Prediction, Unprompted


class UnpromptedAnnotator:
    """An annotator that keeps nothing of an image but its embedding, in the cache that clicks use."""

    def __init__(
        self, name: str, labels: tuple[str, ...], segmenter: Unprompted[Any], cache: EmbeddingCache
    ) -> None:
        self.name = name
        self.labels = labels
        self._segmenter = segmenter
        self._embeddings = cache

    def annotate(self, image: Image) -> list[tuple[str, Prediction]]:
        """Label the objects. Raises Busy while too many other images wait to be encoded."""
        segmenter = self._segmenter
        key = EmbeddingKey(segmenter.name, image.digest)
        embedding, _ = self._embeddings.get(key, lambda: driver.encode(segmenter, image), BATCH)
        found = segmenter.find(embedding)
        return [(label, Prediction(each.mask, each.score, self.name)) for label, each in found]


def variants(host: Host) -> Mapping[str, Variant]:
    return {name: Variant() for name, variant in host.segmenters.variants().items() if variant.labels}


def missing(variant: str, host: Host) -> str:
    try:
        host.segmenters.require_ready(variant)
    except NotReady as error:
        return str(error)
    return ""


def labels(variant: str, host: Host) -> tuple[str, ...]:
    return host.segmenters.variants()[variant].labels


def load(variant: str, host: Host) -> UnpromptedAnnotator:
    """Load the segmenter. Raises NotFound and NotReady."""
    segmenter = host.segmenters.get(variant)
    if not isinstance(segmenter, Unprompted):
        raise NotReady(f"{variant} cannot find objects without a prompt")
    return UnpromptedAnnotator(f"unprompted:{variant}", labels(variant, host), segmenter, host.embeddings)
