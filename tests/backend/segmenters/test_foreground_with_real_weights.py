"""The published weights of `selfie` and `salient`, on photographs whose outlines were drawn by hand."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import PIL.Image
import pytest

pytest.importorskip("torch")
pytest.importorskip("ai_edge_litert")
from clickmask import annotators, plugins, segmenters
from clickmask.annotators._catalogue import AnnotatorCatalogue
from clickmask.inference import driver
from clickmask.inference.catalogue import Catalogue
from clickmask.inference.embeddings import EmbeddingCache
from clickmask.inference.sessions import RUNTIMES, Runtimes
from clickmask.inference.weights import WeightsFolder
from clickmask.masks.regions import mask_iou
from clickmask.segmenters import salient
from clickmask.types import Image, Mask, Prompt
from support.hosts import host_of
from support.photographs import outlined_objects, tight_box
from support.real_weights import require_real_weights

pytestmark = pytest.mark.slow

OBJECTS = {each.name: each for each in outlined_objects()}
WEARING = OBJECTS["astronaut: astronaut"].mask | OBJECTS["astronaut: helmet"].mask  # what she holds is hers


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> WeightsFolder:
    """The official files as a user fetches them, from a mirror."""
    mirror = str(require_real_weights())
    folder = WeightsFolder(tmp_path_factory.mktemp("weights"), mirror, plugins.checkpoints(segmenters))
    for name in ("selfie", "salient"):
        folder.fetch(name)
    return folder


@pytest.fixture(scope="module")
def catalogue(weights: WeightsFolder) -> Iterator[AnnotatorCatalogue]:
    embeddings = EmbeddingCache(2**26)
    yield AnnotatorCatalogue(annotators, Catalogue(segmenters, weights), embeddings)
    embeddings.close()


def picture(name: str) -> Image:
    return Image(OBJECTS[name].pixels, name.partition(":")[0])


@pytest.mark.parametrize(
    ("annotator", "name", "truth", "iou"),
    [
        ("selfie", "astronaut: astronaut", WEARING, 0.95),
        ("selfie", "camera: man", OBJECTS["camera: man"].mask, 0.9),
        ("salient", "astronaut: astronaut", WEARING, 0.95),
        ("salient", "chelsea: cat", OBJECTS["chelsea: cat"].mask, 0.88),
        ("salient", "rocket: rocket", OBJECTS["rocket: rocket"].mask, 0.82),
    ],
)
def test_without_a_prompt_the_person_or_the_object_is_found(
    catalogue: AnnotatorCatalogue, annotator: str, name: str, truth: Mask, iou: float
) -> None:
    found = driver.annotate(catalogue.get(f"unprompted:{annotator}"), picture(name))
    label, best = found[0]
    print(
        f"{annotator} on {name}: {mask_iou(best.mask, truth):.3f}, score {best.score:.3f}, {len(found)} found"
    )
    assert label == {"selfie": "person", "salient": "object"}[annotator]
    assert mask_iou(best.mask, truth) > iou


@pytest.mark.parametrize("name", ["selfie", "salient"])
def test_a_click_and_a_box_on_the_person_are_the_person(catalogue: AnnotatorCatalogue, name: str) -> None:
    segmenter: Any = catalogue._host.segmenters.get(name)
    embedding = segmenter.encode(picture("astronaut: astronaut"))
    for prompt in (Prompt(((250.0, 400.0),)), Prompt(box=tight_box(WEARING))):
        found = segmenter.decode(embedding, prompt)
        assert len(found) == 3
        assert mask_iou(found[0].mask, WEARING) > 0.95
    assert not segmenter.decode(embedding, Prompt(((30.0, 30.0),)))[0].mask.any()  # the flag behind her


def test_a_rocket_is_no_person(catalogue: AnnotatorCatalogue) -> None:
    assert driver.annotate(catalogue.get("unprompted:selfie"), picture("rocket: rocket")) == []


@pytest.mark.parametrize("runtime", RUNTIMES)
def test_u2net_s_map_is_the_one_that_rembg_makes(weights: WeightsFolder, runtime: str) -> None:
    import onnxruntime

    pixels = OBJECTS["chelsea: cat"].pixels
    small = np.array(PIL.Image.fromarray(pixels).resize((320, 320), PIL.Image.Resampling.LANCZOS))
    chw = (small / small.max() - salient.MEAN) / salient.DEVIATION
    session = onnxruntime.InferenceSession(str(weights.find("salient")))
    fused = session.run(None, {"input.1": chw.transpose(2, 0, 1)[None].astype(np.float32)})[0][0, 0]
    expected = (fused - fused.min()) / (fused.max() - fused.min())
    segmenter = salient.load("", host_of(weights, Runtimes(runtime)))
    found = segmenter.encode(picture("chelsea: cat")).probabilities
    np.testing.assert_allclose(found, expected, atol=2e-3)
    assert mask_iou(found > 0.5, expected > 0.5) > 0.999
