"""SAM's attention over the whole image, in less memory."""

from typing import Any

import torch

from clickmask.segmenters._sam.torch_networks import import_segment_anything

_encoder: Any = import_segment_anything().modeling.image_encoder


class AttentionByHead(_encoder.Attention):
    """SAM's attention of n x n places, one head after another on a CPU. A head's weights of 64 x 64 places
    take 64 MiB, of which two copies live at a time; all heads' of ViT-H take 1 GiB, of which three did. The
    same numbers are added and multiplied in the same order, so the answers are equal to the bit."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(1, n, n, C) -> (1, n, n, C)."""
        if x.device.type != "cpu":  # a GPU is faster in few large steps
            return _encoder.Attention.forward(self, x)
        side, width = int(x.shape[1]), int(x.shape[3])  # numbers, so that an export holds no sums of shapes
        places, heads = side**2, int(self.num_heads)
        qkv = self.qkv(x).reshape(places, 3, heads, width // heads).permute(1, 2, 0, 3)
        tall, wide = (_encoder.get_rel_pos(side, side, each) for each in (self.rel_pos_h, self.rel_pos_w))
        found: list[torch.Tensor] = []
        for query, key, value in zip(*(each.split(1) for each in qkv.unbind(0)), strict=True):
            weights = ((query * self.scale) @ key.transpose(1, 2)).view(1, side, side, side, side)
            rows = query.reshape(1, side, side, -1)
            weights += torch.einsum("bhwc,hkc->bhwk", rows, tall)[:, :, :, :, None]
            weights += torch.einsum("bhwc,wkc->bhwk", rows, wide)[:, :, :, None, :]
            found.append(weights.view(1, places, places).softmax(dim=-1) @ value)
        joined = torch.cat(found)  # (heads, n * n, C / heads)
        return self.proj(joined.transpose(0, 1).reshape(1, side, side, width))
