"""TinyViT, the image encoder of MobileSAM. Its tensors have the names of the published files.

Wu et al., "TinyViT", ECCV 2022, arXiv 2207.10666: four stages, the first of convolutions, the others of
attention in windows. Changed as in Zhang et al., "Faster Segment Anything", arXiv 2306.14289: the last stage
keeps stride 16, and SAM's neck follows.
"""

import math
from collections import OrderedDict
from collections.abc import Mapping, Sequence

import torch
from torch import nn
from torch.nn import functional

State = Mapping[str, torch.Tensor]

SIDE = 1024  # of the input of every published one; no tensor shows it
FEATURES = 256  # channels of SAM's features
GROWTH = 4  # of the channels inside of a block
CLASSIFIER = ("norm_head.", "head.")  # what the files keep of the training on ImageNet


class Convolution(nn.Sequential):
    def __init__(self, inputs: int, outputs: int, kernel: int = 1, stride: int = 1, groups: int = 1) -> None:
        convolution = nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, groups=groups, bias=False)
        super().__init__(OrderedDict(c=convolution, bn=nn.BatchNorm2d(outputs)))


class Inverted(nn.Module):
    """MBConv: expand, convolve each channel, project; all of it added."""

    def __init__(self, width: int) -> None:
        super().__init__()
        inner = GROWTH * width
        self.conv1, self.conv2 = Convolution(width, inner), Convolution(inner, inner, 3, groups=inner)
        self.conv3 = Convolution(inner, width)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        inside = functional.gelu(self.conv2(functional.gelu(self.conv1(x))))
        return functional.gelu(x + self.conv3(inside))


class Attention(nn.Module):
    """Of (n, places, C) tokens of n windows, with a bias for each head and distance of two places."""

    def __init__(self, width: int, heads: int, window: int) -> None:
        super().__init__()
        self.heads, self.window, self.norm = heads, window, nn.LayerNorm(width)
        self.qkv, self.proj = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.attention_biases = nn.Parameter(torch.zeros(heads, window**2))  # by rows and columns apart

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        count, places, width = x.shape
        qkv = self.qkv(self.norm(x)).reshape(count, places, self.heads, 3, width // self.heads)
        query, key, value = qkv.permute(3, 0, 2, 1, 4)  # (n, heads, places, C / heads)
        line = torch.arange(self.window, device=x.device)
        apart = (line[:, None] - line).abs()  # (window, window)
        index = apart[:, None, :, None] * self.window + apart[None, :, None]  # (y, x, y, x)
        bias = self.attention_biases[:, index.reshape(places, places)]
        weights = query @ key.transpose(2, 3) * (width // self.heads) ** -0.5 + bias
        return self.proj((weights.softmax(3) @ value).transpose(1, 2).reshape(count, places, width))


class Perceptron(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.fc1, self.fc2 = nn.Linear(width, GROWTH * width), nn.Linear(GROWTH * width, width)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.fc2(functional.gelu(self.fc1(self.norm(x))))


class Block(nn.Module):
    """Attention in windows, a convolution of each channel, and a perceptron, on one square (1, C, H, H)."""

    def __init__(self, width: int, heads: int, window: int) -> None:
        super().__init__()
        self.window, self.attn = window, Attention(width, heads, window)
        self.local_conv, self.mlp = Convolution(width, width, 3, groups=width), Perceptron(width)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        (_, width, side, _), window = x.shape, self.window
        beyond = -side % window
        across = (side + beyond) // window
        tokens = functional.pad(x, (0, beyond, 0, beyond)).reshape(width, across, window, across, window)
        tokens = tokens.permute(1, 3, 2, 4, 0).reshape(across**2, window**2, width)
        back = self.attn(tokens).reshape(across, across, window, window, width).permute(4, 0, 2, 1, 3)
        x = x + back.reshape(1, width, across * window, across * window)[:, :, :side, :side]
        x = self.local_conv(x)
        return x + self.mlp(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


class Merging(nn.Module):
    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.conv1 = Convolution(inputs, outputs)
        self.conv2 = Convolution(outputs, outputs, 3, stride, groups=outputs)
        self.conv3 = Convolution(outputs, outputs)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.conv3(functional.gelu(self.conv2(functional.gelu(self.conv1(x)))))


class Normed(nn.Module):
    """Over the channels, as SAM's LayerNorm2d."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight, self.bias = nn.Parameter(torch.ones(width)), nn.Parameter(torch.zeros(width))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        last = functional.layer_norm(x.permute(0, 2, 3, 1), self.weight.shape, self.weight, self.bias, 1e-6)
        return last.permute(0, 3, 1, 2)


class Stage(nn.Module):
    def __init__(self, blocks: Sequence[nn.Module], downsample: nn.Module | None) -> None:
        super().__init__()
        self.blocks, self.downsample = nn.ModuleList(blocks), downsample

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for block in self.blocks:
            x = block(x)
        return x if self.downsample is None else self.downsample(x)


class TinyViT(nn.Module):
    """(1, 3, side, side) -> (1, 256, side / 16, side / 16). The sizes are given by stage; the first, of
    convolutions, has neither heads nor windows."""

    img_size = SIDE

    def __init__(
        self,
        widths: Sequence[int] = (64, 128, 160, 320),
        depths: Sequence[int] = (2, 2, 6, 2),
        heads: Sequence[int] = (0, 4, 5, 10),
        windows: Sequence[int] = (0, 7, 14, 7),
    ) -> None:
        super().__init__()
        half = widths[0] // 2
        stem = nn.Sequential(Convolution(3, half, 3, 2), nn.GELU(), Convolution(half, widths[0], 3, 2))
        self.patch_embed = nn.Sequential(OrderedDict(seq=stem))
        stages: list[nn.Module] = []
        for number, width in enumerate(widths):
            blocks = [
                Block(width, heads[number], windows[number]) if number else Inverted(width)
                for _ in range(depths[number])
            ]
            last = number == len(widths) - 1
            stride = 1 if number == len(widths) - 2 else 2  # the last stage keeps stride 16
            stages.append(Stage(blocks, None if last else Merging(width, widths[number + 1], stride)))
        self.layers = nn.ModuleList(stages)
        self.neck = nn.Sequential(
            nn.Conv2d(widths[-1], FEATURES, 1, bias=False),
            Normed(FEATURES),
            nn.Conv2d(FEATURES, FEATURES, 3, padding=1, bias=False),
            Normed(FEATURES),
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.neck(self.stages(x)[-1])

    def stages(self, x: torch.Tensor) -> list[torch.Tensor]:
        """What each stage gives; from the second on, (1, C, side / 16, side / 16)."""
        found = [self.layers[0](self.patch_embed(x))]
        for stage in self.layers[1:]:
            found.append(stage(found[-1]))
        return found


def tiny_vit_like(state: State) -> TinyViT:
    """A TinyViT of the sizes of the tensors in `state`. Raises KeyError."""
    stages = range(len({name.split(".")[1] for name in state if name.startswith("layers.")}))
    depths = [
        len({name.split(".")[3] for name in state if name.startswith(f"layers.{stage}.blocks.")})
        for stage in stages
    ]
    widths = [state["patch_embed.seq.2.c.weight"].shape[0]]
    widths += [state[f"layers.{stage}.downsample.conv3.c.weight"].shape[0] for stage in stages[:-1]]
    biases = [state[f"layers.{stage}.blocks.0.attn.attention_biases"].shape for stage in stages[1:]]
    heads, windows = [count for count, _ in biases], [math.isqrt(places) for _, places in biases]
    return TinyViT(widths, depths, [0, *heads], [0, *windows])
