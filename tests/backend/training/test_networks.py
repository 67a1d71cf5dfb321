"""What every network does: it learns, it answers in ONNX as in torch, and it starts from what it is given."""

from __future__ import annotations

import copy
import hashlib
import math
import subprocess
import sys
from collections.abc import Callable, Iterator
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import cv2
import numpy as np
import pytest

pytest.importorskip("torch")
import torch
from safetensors.torch import save_file
from torch import nn

from clickmask.errors import InvalidRequest, NotReady
from clickmask.inference.sessions import open_session
from clickmask.metrics.confusion import confusion_matrix, miou
from clickmask.models.labeller import LOGITS, PIXELS, Labeller
from clickmask.models.versions import TOLERANCE
from clickmask.training import networks
from clickmask.training.crops import IGNORED
from clickmask.training.fit import predict
from clickmask.training.losses import class_weights
from clickmask.training.networks import _efficientnet_lite as lite
from clickmask.training.networks import deeplabv3plus, fcn, mask2former
from clickmask.training.networks._weights import FrozenBatchNorm
from clickmask.training.segmentation import SegmentationNetwork, build, export

NAMES = networks.names()
ON_LITE0 = ["deeplabv3plus", "fcn", "unet_lite"]
IN_TRANSFORMERS = ["mask2former", "segformer"]
SIDE = 96
MAX_STEPS = 120
RATE = 2e-3


def require(name: str) -> None:
    if name in IN_TRANSFORMERS:
        pytest.importorskip("transformers")
        pytest.importorskip("scipy")


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    yield
    torch.set_num_threads(before)


@pytest.fixture(params=NAMES)
def name(request: pytest.FixtureRequest) -> str:
    require(request.param)
    return request.param


def drawn(categories: int) -> tuple[np.ndarray, np.ndarray]:
    """A picture with a disc, and a rectangle if there are two categories; and the class of each pixel."""
    pixels, labels = np.full((SIDE, SIDE, 3), 60, np.uint8), np.zeros((SIDE, SIDE), np.uint8)
    for picture, disc, rectangle in ((pixels, (200, 60, 60), (60, 90, 200)), (labels, 1, 2)):
        cv2.circle(picture, (30, 34), 17, disc, -1)
        if categories > 1:
            cv2.rectangle(picture, (54, 50), (84, 82), rectangle, -1)
    noise = np.random.default_rng(0).integers(-15, 16, pixels.shape)
    return (pixels + noise).clip(0, 255).astype(np.uint8), labels


def overfit(name: str, categories: int) -> tuple[SegmentationNetwork, float]:
    """A network after at most MAX_STEPS on one picture, and its mIoU there."""
    pixels, labels = drawn(categories)
    network = build(name, categories + 1)
    given = torch.tensor(pixels).permute(2, 0, 1)[None].float() / 255
    weights = class_weights(np.bincount(labels.ravel(), minlength=categories + 1))
    optimiser: Any = torch.optim.AdamW(network.parameter_groups(RATE), RATE)
    peaks, found = [group["lr"] for group in optimiser.param_groups], 0.0
    for step in range(MAX_STEPS):
        for group, peak in zip(optimiser.param_groups, peaks, strict=True):
            group["lr"] = peak * min(1, (step + 1) / 10) * (1 + math.cos(math.pi * step / MAX_STEPS)) / 2
        network.train()
        optimiser.zero_grad()
        network.loss(given, torch.tensor(labels)[None].long(), weights).backward()
        nn.utils.clip_grad_norm_(network.parameters(), 1.0)
        optimiser.step()
        if step % 5 == 4:
            found = float(miou(confusion_matrix(labels, predict(network.eval(), pixels), categories + 1)))
            if found >= 0.95:
                break
    return network.eval(), found


@pytest.mark.parametrize("categories", [2, pytest.param(1, marks=pytest.mark.slow)])
def test_a_network_overfits_a_picture_and_onnx_answers_as_torch_does(name: str, categories: int) -> None:
    network, found = overfit(name, categories)
    assert found >= 0.95
    session = open_session(export(network), "onnxruntime", threads=1)
    for height, width in ((1, 1), (33, 70), (SIDE, SIDE), (160, 128)):
        pixels = np.resize(drawn(categories)[0], (height, width, 3)).astype(np.float32)
        given = pixels.transpose(2, 0, 1)[None] / np.float32(255)
        with torch.inference_mode():
            expected = network(torch.tensor(given)).numpy()
        logits = session.run({PIXELS: given})[LOGITS]
        assert logits.shape == expected.shape == (1, categories + 1, height, width)
        assert np.allclose(logits, expected, rtol=TOLERANCE, atol=TOLERANCE)
    sure = Labeller(session).predict(drawn(categories)[0])
    assert sure.confidence.mean() > 0.5, "else nothing is drawn"


def test_a_network_takes_200_categories_and_one_pixel(name: str) -> None:
    network = build(name, 201)
    with torch.inference_mode():
        assert network.eval()(torch.rand(1, 3, 40, 70)).shape == (1, 201, 40, 70)
        assert network(torch.rand(2, 3, 1, 1)).shape == (2, 201, 1, 1)


def test_no_network_normalises_by_the_few_crops_of_a_step(name: str) -> None:
    for each in build(name, 2).train().modules():
        assert not isinstance(each, nn.modules.batchnorm._BatchNorm) or not each.training


def test_what_is_ignored_teaches_a_network_nothing(name: str) -> None:
    network = build(name, 3).eval()
    pixels, labels = torch.rand(2, 3, 64, 64), torch.zeros(2, 64, 64, dtype=torch.long)
    labels[0, :32] = 1
    labels[1] = IGNORED
    weights = torch.ones(3)
    losses = list[torch.Tensor]()
    for number in (1, 2):
        torch.manual_seed(1)
        losses.append(network.loss(pixels[:number], labels[:number], weights))
    assert losses[0] > 0.1
    assert torch.allclose(*losses, rtol=1e-3)
    nothing = network.loss(pixels[1:], labels[1:], weights)
    nothing.backward()
    assert nothing == 0


def test_every_weight_of_a_network_learns(name: str) -> None:
    network = build(name, 3).train()
    labels = torch.zeros(2, 64, 64, dtype=torch.long)
    labels[:, 8:30, 8:30], labels[:, 40:60, 40:60] = 1, 2
    network.loss(torch.rand(2, 3, 64, 64), labels, torch.ones(3)).backward()
    idle = {name for name, each in network.named_parameters() if each.grad is None or not each.grad.any()}
    assert not {each for each in idle if not each.startswith("network.encoder.")} - WAITING, idle


# It only moves where a deformable attention looks, whose weights for that begin as zero.
WAITING = {"network.model.model.pixel_level_module.decoder.level_embed"}


def test_checkpoints_tell_networks_and_their_starts_apart(name: str) -> None:
    network = build(name, 2)
    assert f"started_from={network.started_from!r}" in repr(network)


@pytest.mark.parametrize("name", ON_LITE0)
def test_an_encoder_of_imagenet_is_used_if_its_package_is_there(name: str) -> None:
    network = build(name, 2)
    if find_spec(lite.PACKAGE) is None:
        assert network.started_from == networks.RANDOM
        return
    assert network.started_from == lite.SOURCE
    rates = {group["lr"]: len(group["params"]) for group in network.parameter_groups(1.0)}
    assert set(rates) == {0.25, 1.0}
    assert sum(rates.values()) == len(list(network.parameters()))


@pytest.mark.parametrize("name", ON_LITE0)
def test_without_the_package_a_network_starts_at_random_says_so_and_learns(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lite, "PACKAGE", "no_such_package")
    assert build(name, 2).started_from == networks.RANDOM
    assert overfit(name, 1)[1] >= 0.95


def test_weights_that_are_not_the_official_ones_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "models").mkdir()
    (tmp_path / lite.PACKAGED).write_bytes(b"cos\nsystem\n(S'true'\ntR.")
    spec = SimpleNamespace(submodule_search_locations=[str(tmp_path)])
    monkeypatch.setattr("importlib.util.find_spec", lambda _: spec)
    with pytest.raises(NotReady, match="not the official ones: install it again"):
        build("fcn", 2)


def saved(state: dict[str, torch.Tensor], path: Path) -> Path:
    save_file({name: tensor.contiguous() for name, tensor in state.items()}, path)
    return path


@pytest.mark.parametrize("name", ON_LITE0)
def test_a_file_of_the_encoders_weights_is_used_and_named(name: str, tmp_path: Path) -> None:
    torch.manual_seed(5)
    theirs = lite.Encoder(lite.LITE0)
    path = saved(theirs.state_dict(), tmp_path / "mine.safetensors")
    network = build(name, 2, path)
    digest = hashlib.sha256((tmp_path / "mine.safetensors").read_bytes()).hexdigest()[:12]
    assert network.started_from == f"mine.safetensors (SHA-256 {digest}…; 240 of 240 tensors of the encoder)"
    ours = network.network.encoder.state_dict()
    assert all(torch.equal(ours[key], tensor) for key, tensor in theirs.state_dict().items())
    assert any(isinstance(each, FrozenBatchNorm) for each in network.modules())


def test_what_of_a_file_does_not_fit_is_said(tmp_path: Path) -> None:
    whole = lite.Encoder(lite.LITE0).state_dict()
    state = {f"encoder.{key}": each for key, each in whole.items() if not key.startswith("stem")}
    state["encoder.blocks.0.project.weight"] = torch.zeros(3)
    state["classifier.weight"] = torch.zeros(5)
    said = build("fcn", 2, saved(state, tmp_path / "part.safetensors")).started_from
    assert said.partition("; ")[2].startswith("234 of 240 tensors of the encoder; random, since it has none ")
    assert said.endswith("that fit: stem.convolution.weight, stem_norm.weight, stem_norm.bias, …)")


@pytest.mark.parametrize(
    ("write", "said"),
    [
        (
            lambda path: saved({"a.b": torch.zeros(2)}, path),
            r"no tensor of x\.safetensors fits .* has a\.b, …",
        ),
        (lambda path: path.write_bytes(b"{}"), r"x\.safetensors is no safetensors file"),
        (
            lambda path: torch.save({"stem.convolution.weight": torch.zeros(3)}, path),
            "is no safetensors file",
        ),
        (lambda path: None, r"x\.safetensors cannot be read: No such file"),
        (lambda path: path.mkdir(), r"x\.safetensors cannot be read: it is no file"),
    ],
)
@pytest.mark.parametrize("name", [*ON_LITE0, *IN_TRANSFORMERS])
def test_a_file_that_is_no_encoder_is_refused(
    name: str, write: Callable[[Path], object], said: str, tmp_path: Path
) -> None:
    require(name)
    path = tmp_path / "x.safetensors"
    write(path)
    with pytest.raises(InvalidRequest, match=said):
        build(name, 2, path)


RESNET18 = {"depths": [2] * 4, "hidden_sizes": [64, 128, 256, 512], "layer_type": "basic"}


@pytest.mark.parametrize(
    ("name", "kind", "options"),
    [
        ("segformer", "Segformer", {}),
        (
            "mask2former",
            "ResNet",
            {"depths": [2] * 4, "hidden_sizes": [64, 128, 256, 512], "layer_type": "basic"},
        ),
    ],
)
def test_files_of_the_packages_classifiers_give_their_encoders(
    name: str, kind: str, options: dict[str, Any], tmp_path: Path
) -> None:
    transformers = pytest.importorskip("transformers")
    require(name)
    theirs = getattr(transformers, f"{kind}ForImageClassification")(
        getattr(transformers, f"{kind}Config")(**options)
    )
    theirs.save_pretrained(tmp_path)
    path = tmp_path / "model.safetensors"
    network = build(name, 2, path)
    count = sum(not key.endswith("tracked") for key in network.network.encoder.state_dict())
    assert f"; {count} of {count} tensors of the encoder)" in network.started_from
    assert len(list(network.parameter_groups(1.0))) == 2


@pytest.mark.parametrize("name", IN_TRANSFORMERS)
def test_a_missing_extra_is_named_with_its_command(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda _: None)
    with pytest.raises(NotReady, match=r"needs transformers.*: pip install 'clickmask\[transformers\]'"):
        networks.load(name).build(2, None)


def test_the_heads_have_the_papers_shapes() -> None:
    shapes = dict[str, tuple[int, ...]]()

    def note(key: str) -> Callable[..., None]:
        return lambda _module, _given, found: shapes.__setitem__(key, tuple(found.shape[1:]))

    for name in ("fcn", "deeplabv3plus"):
        network = build(name, 5)
        for key, module in network.network.named_children():
            if key != "encoder":
                module.register_forward_hook(note(key))
        network.eval()(torch.zeros(1, 3, 128, 192))
    assert shapes == {
        "fc6": (256, 4, 6),
        "fc7": (256, 4, 6),
        "score_fr": (5, 4, 6),
        "score_pool4": (5, 8, 12),
        "score_pool3": (5, 16, 24),
        "upscore2": (5, 8, 12),
        "upscore_pool4": (5, 16, 24),
        "aspp": (256, 8, 12),  # output stride 16
        "low_level": (48, 32, 48),
        "decoder": (256, 32, 48),
        "classifier": (5, 32, 48),
    }
    pyramid = deeplabv3plus.AtrousSpatialPyramidPooling(8)
    assert [getattr(each[0], "dilation", (1, 1))[0] for each in pyramid.branches] == [1, 6, 12, 18]


def test_the_upsamplings_of_fcn_begin_as_bilinear() -> None:
    scores = torch.rand(1, 3, 6, 7)
    found = fcn._bilinear(3)(scores)
    expected = nn.functional.interpolate(scores, scale_factor=2, mode="bilinear")
    assert torch.allclose(found[:, :, 1:-1, 1:-1], expected[:, :, 1:-1, 1:-1], atol=1e-6)


def test_a_dilated_encoder_sees_the_same_weights_at_twice_the_resolution() -> None:
    torch.manual_seed(0)
    plain = lite.Encoder(lite.LITE0).eval()
    dilated = lite.Encoder(lite.LITE0, output_stride=16).eval()
    dilated.load_state_dict(plain.state_dict())
    pixels = torch.rand(1, 3, 64, 96)
    assert dilated(pixels)[16].shape == (1, 320, 4, 6)
    assert plain(pixels)[32].shape == (1, 320, 2, 3)
    assert torch.equal(dilated(pixels)[8], plain(pixels)[8])


def test_mask2former_looks_where_its_package_does() -> None:
    require("mask2former")
    network = build("mask2former", 3).eval()
    model = copy.deepcopy(network.network.model)
    encoder = model.model.pixel_level_module.decoder.encoder
    del encoder.get_reference_points  # the package's own again
    pixels = torch.rand(2, 3, 64, 96)
    with torch.inference_mode():
        theirs = model(pixels).masks_queries_logits
        ours = network.network.model(pixels).masks_queries_logits
    assert encoder.get_reference_points is not mask2former.reference_points
    assert torch.allclose(ours, theirs, atol=1e-5)


def test_importing_networks_imports_neither_torch_nor_transformers() -> None:
    code = "import sys, clickmask.training.networks as n; n.names(); "
    code += "assert not {'torch', 'transformers'} & set(sys.modules), sorted(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True, env={"PYTHONPATH": ":".join(sys.path)})
