"""MobileSAM's image encoder, TinyViT-5M, with random weights: for its time, not for its answers.

Wu et al., "TinyViT", ECCV 2022, and Zhang et al., "Faster Segment Anything", 2023: four stages, the
first of convolutions, the others of attention in windows; the last one keeps stride 16; then SAM's neck.
"""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional

WIDTHS, DEPTHS, HEADS, WINDOWS = (64, 128, 160, 320), (2, 2, 6, 2), (2, 4, 5, 10), (7, 7, 14, 7)
GROWTH = 4  # of the channels inside of a block


class Convolution(nn.Sequential):
    def __init__(self, inputs: int, outputs: int, kernel: int = 1, stride: int = 1, groups: int = 1) -> None:
        super().__init__(
            nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, groups=groups, bias=False),
            nn.BatchNorm2d(outputs),
        )


class Inverted(nn.Module):
    """MBConv: expand, convolve each channel, project; all of it added."""

    def __init__(self, width: int) -> None:
        super().__init__()
        inner = GROWTH * width
        self.expand, self.project = Convolution(width, inner), Convolution(inner, width)
        self.depthwise = Convolution(inner, inner, 3, groups=inner)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        inside = functional.gelu(self.depthwise(functional.gelu(self.expand(x))))
        return functional.gelu(x + self.project(inside))


class Attention(nn.Module):
    """Of (B, n, C) tokens of a window, with a bias for each head and pair of places."""

    def __init__(self, width: int, heads: int, window: int) -> None:
        super().__init__()
        self.heads, self.norm = heads, nn.LayerNorm(width)
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.register_buffer("bias", torch.randn(heads, window**2, window**2))  # of a small table

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        count, places, width = x.shape
        qkv = self.qkv(self.norm(x)).reshape(count, places, self.heads, 3, width // self.heads)
        query, key, value = qkv.permute(3, 0, 2, 1, 4)  # (B, heads, n, C / heads)
        weights = query @ key.transpose(2, 3) * (width // self.heads) ** -0.5 + self.bias
        return self.out((weights.softmax(3) @ value).transpose(1, 2).reshape(count, places, width))


class Block(nn.Module):
    def __init__(self, width: int, heads: int, window: int) -> None:
        super().__init__()
        self.window, self.attention = window, Attention(width, heads, window)
        self.local = Convolution(width, width, 3, groups=width)
        self.mlp = nn.Sequential(
            nn.LayerNorm(width),
            nn.Linear(width, GROWTH * width),
            nn.GELU(),
            nn.Linear(GROWTH * width, width),
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        (_, width, side, _), window = x.shape, self.window  # square
        beyond = -side % window
        across = (side + beyond) // window
        tokens = functional.pad(x, (0, beyond, 0, beyond)).reshape(width, across, window, across, window)
        tokens = tokens.permute(1, 3, 2, 4, 0).reshape(across**2, window**2, width)
        back = self.attention(tokens).reshape(across, across, window, window, width).permute(4, 0, 2, 1, 3)
        x = x + back.reshape(1, width, across * window, across * window)[:, :, :side, :side]
        x = self.local(x)
        return x + self.mlp(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


class Merging(nn.Module):
    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.first, self.last = Convolution(inputs, outputs), Convolution(outputs, outputs)
        self.middle = Convolution(outputs, outputs, 3, stride, groups=outputs)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.last(functional.gelu(self.middle(functional.gelu(self.first(x)))))


class Normed(nn.Module):
    """Over the channels, as SAM's LayerNorm2d."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.norm(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


def tiny_vit() -> nn.Module:
    """(1, 3, 1024, 1024) -> (1, 256, 64, 64)."""
    layers: list[nn.Module] = [Convolution(3, WIDTHS[0] // 2, 3, 2), nn.GELU()]
    layers += [Convolution(WIDTHS[0] // 2, WIDTHS[0], 3, 2)]
    layers += [Inverted(WIDTHS[0]) for _ in range(DEPTHS[0])]
    for stage in (1, 2, 3):
        layers.append(Merging(WIDTHS[stage - 1], WIDTHS[stage], 1 if stage == 3 else 2))
        layers += [Block(WIDTHS[stage], HEADS[stage], WINDOWS[stage]) for _ in range(DEPTHS[stage])]
    neck = [nn.Conv2d(WIDTHS[3], 256, 1, bias=False), Normed(256)]
    neck += [nn.Conv2d(256, 256, 3, padding=1, bias=False), Normed(256)]
    return nn.Sequential(*layers, *neck).eval()
