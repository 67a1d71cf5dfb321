"""ClickFPN: encodes an image once, and decodes clicks, a box and a mask into masks.

Prompts enter late, as maps at each stride of a feature pyramid, so the slow part depends on the image alone.
The decoder also sees how much each place resembles what was clicked, what was rejected, and the inside and
outside of the current mask: GrabCut's colour models with learned features. Coordinates are pixels of the
network's input, which is zero-padded to multiples of 32.
"""

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from clickmask.segmenters._builtin import BOX, CLICKED, MAPS, MIDDLE, REGION, REJECTED
from clickmask.training.networks._efficientnet_lite import LITE2, Encoder

CHANNELS = {2: 16, 4: 24, 8: 48, 16: 120, 32: 352}  # of the encoder's features, by stride
STRIDES = (32, 16, 8, 4, 2)
WIDTHS = {32: 192, 16: 144, 8: 80, 4: 48, 2: 24}  # of the pyramid
BLOCKS = {32: 2, 16: 2, 8: 1, 4: 1, 2: 1}  # residual blocks of the decoder
SIMILARITIES = {16: 32, 8: 24, 4: 16}  # channels of the compared features
ALIKE = 4  # likenesses: to what was clicked, what was rejected, the current mask, and its outside
TOLD = {32: (16,), 16: (16,), 8: (8, 16), 4: (4, 8, 16), 2: (4,)}  # stride -> strides of its likenesses
MASKS = 4  # the answer, and three guesses (a part, the whole, in between) for a lone click
MIN_VARIANCE = 1e-6  # of a normalisation's input; a channel below it never changes
EMBEDDED = (*(f"features{stride}" for stride in STRIDES), *(f"similar{stride}" for stride in SIMILARITIES))


class ClickFPN(nn.Module):
    """The two halves, `encoder` and `decoder`, which never call each other."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = ImageEncoder()
        self.decoder = PromptDecoder()


def channels_last(x: Tensor) -> Tensor:
    """`x` with adjacent channels, which is twice as fast. Repeating and adding lose this layout."""
    return x.contiguous(memory_format=torch.channels_last)


def calibrate(network: ClickFPN, run: Callable[[], object]) -> None:
    """Give each normalisation the statistics of its input during `run`, without changing any answer. `run`
    must feed the network, then in evaluation mode, with batches like those of the training."""
    sums: dict[Any, Tensor] = {}  # (3, C): number of pixels, their sum, and the sum of their squares

    def add(norm: nn.Module, given: tuple[Tensor]) -> None:
        x = given[0].detach().double().transpose(0, 1).flatten(1)  # (B, C, h, w) -> (C, B h w)
        sums[norm] = sums.get(norm, 0) + torch.stack([torch.ones_like(x).sum(1), x.sum(1), (x * x).sum(1)])

    norms = (module for module in network.modules() if isinstance(module, nn.BatchNorm2d))
    hooks = [norm.register_forward_pre_hook(add) for norm in norms]
    network.eval()
    run()
    for hook in hooks:
        hook.remove()
    with torch.no_grad():
        for norm, (count, total, squares) in sums.items():
            mean = total / count
            variance = (squares / count - mean.square()).clamp(min=MIN_VARIANCE)
            slope = norm.weight.double() / (norm.running_var.double() + norm.eps).sqrt()
            norm.bias += slope * (mean - norm.running_mean)
            norm.weight.copy_(slope * (variance + norm.eps).sqrt())
            norm.running_mean.copy_(mean)
            norm.running_var.copy_(variance)


class ImageEncoder(nn.Module):
    """The slow half: from an image to the arrays named in EMBEDDED."""

    def __init__(self) -> None:
        super().__init__()
        self.backbone = Encoder(LITE2)
        self.laterals = _by_stride(lambda stride: _Conv(CHANNELS[stride], WIDTHS[stride], 1))
        self.descents = _by_stride(lambda stride: _Conv(WIDTHS[2 * stride], WIDTHS[stride], 1), STRIDES[1:])
        self.mixers = _by_stride(lambda stride: _Conv(WIDTHS[stride], WIDTHS[stride], 3), STRIDES[1:])
        self.similar = _by_stride(
            lambda stride: nn.Conv2d(WIDTHS[stride], SIMILARITIES[stride], 1), SIMILARITIES
        )

    def forward(self, image: Tensor) -> list[Tensor]:
        """(B, 3, H, W) in [-1, 1] -> (B, WIDTHS[s], H / s, W / s) for each stride, then the similarities."""
        found = self.backbone(image)
        above = self.laterals["32"](found[32])
        pyramid = [above]
        for stride in STRIDES[1:]:
            lateral = self.laterals[str(stride)](found[stride])
            above = self.mixers[str(stride)](lateral + _scaled(self.descents[str(stride)](above)))
            pyramid.append(above)
        compared = [
            functional.normalize(self.similar[str(stride)](features).float(), dim=1)
            for stride, features in zip(STRIDES, pyramid, strict=True)
            if stride in SIMILARITIES
        ]
        return pyramid + compared


class PromptDecoder(nn.Module):
    """The fast half: from the encoder's arrays and a prompt's maps to logits and estimated IoUs."""

    def __init__(self) -> None:
        super().__init__()
        self.prompts = _by_stride(
            lambda stride: nn.Conv2d(MAPS + ALIKE * len(TOLD[stride]), WIDTHS[stride], 3, padding=1)
        )
        self.descents = _by_stride(lambda stride: _Conv(WIDTHS[2 * stride], WIDTHS[stride], 1), STRIDES[1:])
        self.norms = _by_stride(lambda stride: nn.BatchNorm2d(WIDTHS[stride]))
        self.blocks = _by_stride(
            lambda stride: nn.Sequential(*[_Residual(WIDTHS[stride]) for _ in range(BLOCKS[stride])])
        )
        self.gate = nn.Linear(WIDTHS[32], WIDTHS[32])
        self.masks = nn.Conv2d(WIDTHS[2], MASKS, 1)
        if self.masks.bias is not None:
            nn.init.constant_(self.masks.bias, -1.0)  # most of an image is not the object
        told = WIDTHS[32] + WIDTHS[16] + WIDTHS[4] + 2
        self.worth = nn.Sequential(nn.Linear(told, 96), nn.ReLU(), nn.Linear(96, 1))

    def forward(self, embedded: Sequence[Tensor], maps: Tensor) -> tuple[Tensor, Tensor]:
        """EMBEDDED, and (B, MAPS, H / 2, W / 2) -> logits (B, MASKS, H / 2, W / 2), IoUs (B, MASKS)."""
        pyramid = dict(zip(STRIDES, embedded[: len(STRIDES)], strict=True))
        compared = dict(zip(SIMILARITIES, embedded[len(STRIDES) :], strict=True))
        pooled = {2: maps}
        for stride in reversed(STRIDES[:-1]):
            pooled[stride] = functional.avg_pool2d(pooled[stride // 2], 2)
        alike = {stride: likeness(compared[stride], pooled[stride]) for stride in SIMILARITIES}
        levels: dict[int, Tensor] = {}
        for stride in STRIDES:
            alikes = [_scaled(alike[other], other / stride) for other in TOLD[stride]]
            x = pyramid[stride] + self.prompts[str(stride)](torch.cat([pooled[stride], *alikes], 1))
            if stride < 32:
                x = x + _scaled(self.descents[str(stride)](levels[2 * stride]))
            x = self.blocks[str(stride)](functional.relu(self.norms[str(stride)](x)))
            if stride == 32:
                x = x * torch.sigmoid(self.gate(x.mean((2, 3))))[:, :, None, None]
            levels[stride] = x
        logits = self.masks(levels[2])
        # estimate the IoU of each mask from the scene, the area it covers and its certainty
        covered = torch.sigmoid(logits.detach().float())  # (B, M, h, w)
        sure = (covered > 0.5).float()
        agreed = torch.minimum(covered, sure).sum((2, 3))
        certainty = agreed / (torch.maximum(covered, sure).sum((2, 3)) + 1)
        weights = functional.avg_pool2d(covered, 2).flatten(2)  # (B, M, hw)
        inside = torch.matmul(weights, levels[4].float().flatten(2).transpose(1, 2))  # (B, M, C)
        inside = inside / (weights.sum(2, keepdim=True) + 1)
        scene = torch.cat([levels[32].mean((2, 3)), levels[16].mean((2, 3))], 1).float()
        scenes = scene[:, None].expand(-1, MASKS, -1)
        told = torch.cat([scenes, inside, certainty[..., None], covered.mean((2, 3))[..., None]], 2)
        return logits, torch.sigmoid(self.worth(told)[..., 0].float())


def likeness(features: Tensor, maps: Tensor) -> Tensor:
    """Cosines (B, ALIKE, h, w) between unit `features` (B, C, h, w) and the means of the regions of ALIKE.
    The regions come from `maps` (B, MAPS, h, w). The cosines of an empty region are 0."""
    maps = maps.float()
    inside = functional.relu(maps[:, REGION]) + maps[:, MIDDLE]
    outside = functional.relu(-maps[:, REGION]) + functional.relu(-maps[:, BOX])
    weights = torch.stack([maps[:, CLICKED], maps[:, REJECTED], inside, outside], 1).flatten(2)
    flat = features.float().flatten(2)  # (B, C, hw)
    means = functional.normalize(torch.matmul(weights, flat.transpose(1, 2)), dim=2, eps=1e-4)
    return torch.matmul(means, flat).reshape(-1, ALIKE, features.shape[2], features.shape[3])


class _Conv(nn.Sequential):
    def __init__(self, inputs: int, outputs: int, kernel: int) -> None:
        super().__init__(
            nn.Conv2d(inputs, outputs, kernel, padding=kernel // 2, bias=False),
            nn.BatchNorm2d(outputs),
            nn.ReLU(),
        )


class _Residual(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.first = _Conv(channels, channels, 3)
        self.second = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(channels)

    def forward(self, x: Tensor) -> Tensor:
        return functional.relu(x + self.norm(self.second(self.first(x))))


def _by_stride(build: Callable[[int], nn.Module], strides: Iterable[int] = STRIDES) -> nn.ModuleDict:
    return nn.ModuleDict({str(stride): build(stride) for stride in strides})


def _scaled(x: Tensor, factor: float = 2.0) -> Tensor:
    """`x` (B, C, h, w) at `factor` times its size."""
    if factor < 1:
        return functional.avg_pool2d(x, round(1 / factor))
    return x if factor == 1 else functional.interpolate(x, scale_factor=factor, mode="bilinear")
