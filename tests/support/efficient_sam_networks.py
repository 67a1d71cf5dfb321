"""Networks of EfficientSAM's genuine signature, which draw what they are asked for.

They are written after upstream's `onnx_models.py`: the image is stretched to 1024 pixels and normalised;
points are scaled by the size that is given, padded to six and shifted by half a pixel; masks are enlarged to
that size. Instead of what was learned, the decoder draws three discs of the radii 60, 120 and 180 around the
foreground points, cut to the box if there is one; the image moves their outlines by up to a pixel.
"""

from __future__ import annotations

import hashlib
import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch.nn import functional

from clickmask.plugins import Checkpoint
from clickmask.segmenters import efficient_sam

RADII = (60.0, 120.0, 180.0)  # of 1024 pixels


class Encoder(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.patches = torch.nn.Conv2d(3, 256, 16, 16)

    def forward(self, batched_images: torch.Tensor) -> torch.Tensor:
        x = functional.interpolate(batched_images, (1024, 1024), mode="bilinear")
        mean, deviation = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
        return self.patches((x - mean[:, None, None]) / deviation[:, None, None])


class Decoder(torch.nn.Module):
    def forward(
        self,
        image_embeddings: torch.Tensor,  # (1, 256, 64, 64)
        batched_point_coords: torch.Tensor,  # (1, 1, n, 2)
        batched_point_labels: torch.Tensor,  # (1, 1, n)
        orig_im_size: torch.Tensor,  # (2,)
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        height, width = orig_im_size[0], orig_im_size[1]
        scaled = torch.stack(
            [batched_point_coords[..., 0] * 1024 / width, batched_point_coords[..., 1] * 1024 / height],
            dim=-1,
        )
        beyond = 6 - batched_point_coords.shape[2]
        points = functional.pad(scaled, (0, 0, 0, beyond), value=-1.0)[0, 0] + 0.5  # (6, 2)
        labels = functional.pad(batched_point_labels, (0, beyond), value=-1.0)[0, 0]  # (6,)
        centres = (torch.arange(256) + 0.5) * 4
        x, y = centres[None, :], centres[:, None]
        away = torch.sqrt((x - points[:, 0, None, None]) ** 2 + (y - points[:, 1, None, None]) ** 2)
        nearest = torch.where(labels[:, None, None] == 1, away, torch.full_like(away, 1e4)).amin(0)
        low = torch.tensor(RADII)[:, None, None] - nearest  # (3, 256, 256)
        low = torch.where((labels == 1).any(), low, torch.full_like(low, 1e3))
        corner = labels[:, None]
        first = torch.where(corner == 2, points, torch.full_like(points, 1e4)).amin(0)
        last = torch.where(corner == 3, points, torch.full_like(points, -1e4)).amax(0)
        inside = torch.minimum(
            torch.minimum(x - first[0], last[0] - x), torch.minimum(y - first[1], last[1] - y)
        )
        low = torch.where((labels == 2).any(), torch.minimum(low, inside), low)
        low = (low + torch.tanh(functional.interpolate(image_embeddings[:, :1], (256, 256))[0]))[None]
        masks = functional.interpolate(low, (height, width), mode="bilinear")
        scores = torch.tensor([[[0.5, 1.2, 0.8]]])
        return masks[:, None], scores, low[:, None]


def write_efficient_sam(folder: Path) -> Checkpoint:
    """Both files of vit_t in `folder`, as if they were the official ones."""
    official = efficient_sam.VARIANTS["vit_t"].checkpoint
    assert official is not None
    encoder, decoder = (folder / each.file for each in official.files)
    example = (
        torch.zeros(1, 256, 64, 64),
        torch.zeros(1, 1, 2, 2),
        torch.ones(1, 1, 2),
        torch.tensor([300, 400]),
    )
    names = ["image_embeddings", "batched_point_coords", "batched_point_labels", "orig_im_size"]
    free: dict[str, Any] = {name: {2: "points"} for name in names[1:3]}
    export: Any = torch.onnx.export
    with warnings.catch_warnings(), torch.random.fork_rng(devices=[]):
        warnings.simplefilter("ignore")
        export(
            Encoder(),
            (torch.zeros(1, 3, 300, 400),),
            encoder,
            input_names=["batched_images"],
            output_names=["image_embeddings"],
            dynamic_axes={"batched_images": {2: "height", 3: "width"}},
            opset_version=17,
            dynamo=False,
        )
        export(
            Decoder(),
            example,
            decoder,
            input_names=names,
            output_names=["output_masks", "iou_predictions", "low_res_masks"],
            dynamic_axes=free,
            opset_version=17,
            dynamo=False,
        )

    def own(file: Checkpoint) -> Checkpoint:
        raw = (folder / file.file).read_bytes()
        return replace(file, bytes=len(raw), sha256=hashlib.sha256(raw).hexdigest())

    return replace(own(official), beside=tuple(own(file) for file in official.beside))
