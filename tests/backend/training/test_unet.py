from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("torch")
import torch

from clickmask.errors import InvalidRequest
from clickmask.inference.sessions import RUNTIMES, open_session
from clickmask.masks.regions import mask_iou
from clickmask.models.labeller import LOGITS, PIXELS, to_input
from clickmask.training.networks import unet
from clickmask.training.segmentation import SegmentationNetwork, export
from support.scenes import scene_image


@pytest.fixture(autouse=True)
def same_numbers() -> None:
    torch.manual_seed(0)


def test_it_is_the_paper_with_a_quarter_of_its_channels() -> None:
    network = unet.build(2, None)
    assert [block[0].out_channels for block in network.contracting] == [16, 32, 64, 128, 256]
    assert [block[0].in_channels for block in network.expanding] == [256, 128, 64, 32]
    weights = sum(parameter.numel() for parameter in network.parameters())
    assert weights == 1_942_594
    # With 64 channels it has the paper's 31 million (without the normalisation's and with biases).
    assert sum(p.numel() for p in unet.UNet(2, base=64).parameters()) == pytest.approx(31.0e6, rel=0.01)


def test_weights_of_an_encoder_are_refused() -> None:
    with pytest.raises(InvalidRequest, match=r"cannot take those of other\.pt"):
        unet.build(2, Path("other.pt"))


def test_every_weight_takes_part() -> None:
    network = unet.build(2, None)
    network(torch.rand(2, 3, 32, 32)).square().mean().backward()
    for name, parameter in network.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.abs().sum() > 0, name


def test_the_same_seed_gives_the_same_weights() -> None:
    first = unet.build(2, None).state_dict()
    torch.manual_seed(0)
    again = unet.build(2, None).state_dict()
    assert all(torch.equal(first[name], again[name]) for name in first)


def test_every_runtime_answers_as_torch_does() -> None:
    network = unet.build(4, None).eval()
    pictures = [
        to_input(scene_image(size, seed).pixels)
        for seed, size in enumerate([(96, 128), (113, 90), (64, 64), (128, 96), (80, 200)] * 2)
    ]
    with torch.inference_mode():
        means = torch.stack([network(torch.from_numpy(each)).mean((0, 2, 3)) for each in pictures])
        network.classifier.bias -= means.mean(0)  # else one class is everywhere
        expected = [network(torch.from_numpy(each)).numpy() for each in pictures]
    exported = export(SegmentationNetwork(network, unet.STRIDE))
    for runtime in RUNTIMES:
        session = open_session(exported, runtime)
        ious: list[float] = []
        for given, logits in zip(pictures, expected, strict=True):
            found = session.run({PIXELS: given})[LOGITS]
            assert np.abs(found - logits).max() < 1e-4 * np.abs(logits).max(), runtime
            for number in range(4):
                mask = logits[0].argmax(0) == number
                if 0.05 < mask.mean() < 0.95:
                    ious.append(mask_iou(found[0].argmax(0) == number, mask))
        assert len(ious) >= 27
        assert min(ious) >= 0.999
