"""SAM-HQ: Segment Anything with one more token, whose mask is drawn on finer features and added to SAM's. Ke
et al., "Segment Anything in High Quality", arXiv 2306.01567. SAM's own weights are unchanged in the files;
vit_tiny has MobileSAM's image encoder. A click has three candidates; the best is the reference's answer."""

from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType

from clickmask.inference.catalogue import Host
from clickmask.inference.onnx_exports import Progress
from clickmask.plugins import About, Checkpoint, Variant
from clickmask.segmenters._sam import loading
from clickmask.segmenters._sam.segmenter import Sam

_PUBLISHED = (  # by the authors of the paper: variant, parameters, bytes, SHA-256
    ("vit_tiny", 10_256_964, 42_526_881, "0f32c075ccdd870ae54db2f7630e7a0878ede5a2b06d05d6fe02c65a82fb7196"),
    ("vit_b", 94_806_576, 379_335_069, "14a9d662cd6f5a9c2dba6d40ab0058d88d287e4a18fd6fdc6ad5fb1a3fdeaa57"),
)


def _variant(name: str, parameters: int, size: int, sha256: str) -> Variant:
    address = f"https://huggingface.co/lkeab/hq-sam/resolve/main/sam_hq_{name}.pth"
    about = About("SAM-HQ", "Ke 2023, arXiv 2306.01567", parameters, loading.PROMPTS, 3)
    return Variant(Checkpoint(address, size, sha256, "Apache-2.0"), sweeps=True, about=about)


VARIANTS: Mapping[str, Variant] = MappingProxyType({row[0]: _variant(*row) for row in _PUBLISHED})


def missing(variant: str, host: Host) -> str:
    return loading.missing(f"sam_hq:{variant}", host)


def load(variant: str, host: Host) -> Sam:
    return loading.load(f"sam_hq:{variant}", host)


def export(variant: str, host: Host, progress: Progress = lambda share, what: None) -> Path | None:
    return loading.export(f"sam_hq:{variant}", host, progress)
