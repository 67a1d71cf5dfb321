"""MobileSAM: Segment Anything with a small image encoder, distilled from ViT-H's. Zhang et al., "Faster
Segment Anything", arXiv 2306.14289. Its prompt encoder and mask decoder are ViT-H's, weights included
(https://github.com/ChaoningZhang/MobileSAM/issues/1), so that ViT-H's decoder reads its embeddings."""

from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType

from clickmask.inference.catalogue import Host
from clickmask.inference.onnx_exports import Progress
from clickmask.plugins import About, Checkpoint, Variant
from clickmask.segmenters._sam import loading
from clickmask.segmenters._sam.segmenter import Sam

VIT_T = Checkpoint(
    "https://raw.githubusercontent.com/ChaoningZhang/MobileSAM/f706ad9c4eb7f219c00d9050e46328518ffb65d2/"
    "weights/mobile_sam.pt",
    40_728_226,
    "6dbb90523a35330fedd7f1d3dfc66f995213d81b29a5ca8108dbcdd4e37d6c2f",
    "Apache-2.0",
)
ABOUT = About("MobileSAM", "Zhang 2023, arXiv 2306.14289", 9_808_452, loading.PROMPTS, 3)
VARIANTS: Mapping[str, Variant] = MappingProxyType(
    {"vit_t": Variant(VIT_T, sam_decoder="sam:vit_h", sweeps=True, about=ABOUT)}
)


def missing(variant: str, host: Host) -> str:
    return loading.missing(f"mobile_sam:{variant}", host)


def load(variant: str, host: Host) -> Sam:
    return loading.load(f"mobile_sam:{variant}", host)


def export(variant: str, host: Host, progress: Progress = lambda share, what: None) -> Path | None:
    return loading.export(f"mobile_sam:{variant}", host, progress)
