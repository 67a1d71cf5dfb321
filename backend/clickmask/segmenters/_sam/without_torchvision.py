"""segment-anything without torchvision.

`import segment_anything` takes four functions from torchvision: two that resize an image and two for
non-maximum suppression. torchvision is 10 MB and must match the installed torch's version, so it stays
optional: if it is missing, these stand in for it during that import.
"""

from __future__ import annotations

import importlib
import importlib.util
import sys
from importlib.machinery import ModuleSpec
from types import ModuleType

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image as PillowImage


def import_segment_anything() -> ModuleType:
    """The package `segment_anything`. Afterwards `sys.modules` holds no stand-in for torchvision."""
    if "segment_anything" in sys.modules or importlib.util.find_spec("torchvision") is not None:
        return importlib.import_module("segment_anything")
    functional = _module("torchvision.transforms.functional", resize=resize, to_pil_image=to_pil_image)
    boxes = _module("torchvision.ops.boxes", box_area=box_area, batched_nms=batched_nms)
    transforms = _module("torchvision.transforms", functional=functional)
    ops = _module("torchvision.ops", boxes=boxes)
    whole = _module("torchvision", transforms=transforms, ops=ops)
    stand_ins = {module.__name__: module for module in (whole, transforms, functional, ops, boxes)}
    sys.modules.update(stand_ins)
    try:
        return importlib.import_module("segment_anything")
    finally:
        for name in stand_ins:
            sys.modules.pop(name, None)


def to_pil_image(pixels: NDArray[np.uint8]) -> PillowImage.Image:
    return PillowImage.fromarray(pixels)


def resize(image: PillowImage.Image, size: tuple[int, int]) -> PillowImage.Image:
    """`image` at (height, width), like torchvision's default: bilinear, antialiased."""
    height, width = size
    return image.resize((width, height), PillowImage.Resampling.BILINEAR)


def box_area(boxes: torch.Tensor) -> torch.Tensor:
    """(N,) areas of (N, 4) boxes."""
    return (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])


def batched_nms(
    boxes: torch.Tensor, scores: torch.Tensor, idxs: torch.Tensor, iou_threshold: float
) -> torch.Tensor:
    """Indices of the boxes to keep, best first: those that overlap no better one of their category."""
    areas = box_area(boxes)
    waiting = scores.argsort(descending=True, stable=True)
    kept: list[torch.Tensor] = []
    while waiting.numel():
        best, waiting = waiting[0], waiting[1:]
        kept.append(best)
        top_left = torch.maximum(boxes[best, :2], boxes[waiting, :2])
        sides = (torch.minimum(boxes[best, 2:], boxes[waiting, 2:]) - top_left).clamp(min=0)
        shared = sides.prod(dim=1)
        overlaps = shared / (areas[best] + areas[waiting] - shared) > iou_threshold
        waiting = waiting[~overlaps | (idxs[waiting] != idxs[best])]
    return torch.stack(kept) if kept else waiting


def _module(name: str, **contents: object) -> ModuleType:
    module = ModuleType(name)
    module.__spec__ = ModuleSpec(name, None)  # without a spec, find_spec raises
    vars(module).update(contents)
    return module
