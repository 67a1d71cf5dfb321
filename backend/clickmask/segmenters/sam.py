"""Segment Anything, from the official checkpoints. Kirillov et al., "Segment Anything", arXiv 2304.02643."""

from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType

from clickmask.inference.catalogue import Host
from clickmask.inference.onnx_exports import Progress
from clickmask.plugins import About, Checkpoint, Variant
from clickmask.segmenters._sam import loading
from clickmask.segmenters._sam.segmenter import Sam

_OFFICIAL = (  # published by the authors of the paper: variant, end of the file's name, bytes, SHA-256
    ("vit_b", "01ec64", 375_042_383, "ec2df62732614e57411cdcf32a23ffdf28910380d03139ee0f4fcbe91eb8c912"),
    ("vit_l", "0b3195", 1_249_524_607, "3adcc4315b642a4d2101128f611684e8734c41232a17c648ed1693702a49a622"),
    ("vit_h", "4b8939", 2_564_550_879, "a7bf3b02f3ebf1267aba913ff637d9a2d5c33d3173bb679e46d9f338c26f262e"),
)
_PARAMETERS = {"vit_b": 93_735_472, "vit_l": 312_342_832, "vit_h": 641_090_608}


def _variant(name: str, suffix: str, size: int, sha256: str) -> Variant:
    address = f"https://dl.fbaipublicfiles.com/segment_anything/sam_{name}_{suffix}.pth"
    decoder = "sam:vit_h" if name == "vit_h" else ""  # CVAT's page has the decoder of ViT-H only
    about = About(
        "Segment Anything", "Kirillov 2023, arXiv 2304.02643", _PARAMETERS[name], loading.PROMPTS, 3
    )
    return Variant(Checkpoint(address, size, sha256, "Apache-2.0"), decoder, sweeps=True, about=about)


VARIANTS: Mapping[str, Variant] = MappingProxyType({row[0]: _variant(*row) for row in _OFFICIAL})


def missing(variant: str, host: Host) -> str:
    return loading.missing(f"sam:{variant}", host)


def load(variant: str, host: Host) -> Sam:
    return loading.load(f"sam:{variant}", host)


def export(variant: str, host: Host, progress: Progress = lambda share, what: None) -> Path | None:
    return loading.export(f"sam:{variant}", host, progress)
