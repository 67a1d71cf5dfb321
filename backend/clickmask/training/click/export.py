"""The trained network as two ONNX files, weights in half precision, that need no torch to run.

Weights are stored as float16 and cast when a runtime loads them; it computes in what it likes,
float32 on a CPU. Batch normalisation is folded into the convolutions before it.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

import numpy as np
import onnx
import torch
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper
from torch import nn

from clickmask.training.click.network import EMBEDDED, MAPS, ClickFPN, PromptDecoder

ENCODER, DECODER = "encoder.onnx", "decoder.onnx"
OPSET = 17
MIN_HALVED_ELEMENTS = 64  # elements of a tensor that is worth halving


class _Decoder(nn.Module):
    """The decoder with its features as separate arguments, which an ONNX graph has."""

    def __init__(self, decoder: PromptDecoder) -> None:
        super().__init__()
        self.decoder = decoder

    def forward(self, maps: torch.Tensor, *embedded: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return self.decoder(embedded, maps)


def export(network: ClickFPN, folder: Path) -> None:
    """Write ENCODER and DECODER into `folder`: sides are free, as multiples of 32; one image at a time."""
    folder.mkdir(parents=True, exist_ok=True)
    network = network.float().cpu().eval()
    image = torch.zeros(1, 3, 64, 96)
    with torch.no_grad():
        embedded = network.encoder(image)
    maps = torch.zeros(1, MAPS, 32, 48)
    _write(network.encoder, (image,), folder / ENCODER, ["image"], list(EMBEDDED))
    decoder = _Decoder(network.decoder)
    _write(decoder, (maps, *embedded), folder / DECODER, ["maps", *EMBEDDED], ["logits", "worth"])


def _write(
    module: nn.Module,
    example: tuple[torch.Tensor, ...],
    path: Path,
    inputs: Sequence[str],
    outputs: Sequence[str],
) -> None:
    sides = {
        name: {2: f"{name} height", 3: f"{name} width"} for name in [*inputs, *outputs] if name != "worth"
    }
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the exporter warns of itself, and of sizes that it traces rightly
        cast("Any", torch.onnx).export(
            module.eval(),
            example,
            str(path),
            input_names=list(inputs),
            output_names=list(outputs),
            dynamic_axes=sides,
            opset_version=OPSET,
            dynamo=False,
        )
    model = onnx.ModelProto.FromString(path.read_bytes())
    _halve(model)
    path.write_bytes(model.SerializeToString())


def _halve(model: onnx.ModelProto) -> None:
    """Store the weights of `model` as float16, each followed by a cast to float32."""
    arrays = cast("Any", numpy_helper)
    casts: list[onnx.NodeProto] = []
    for tensor in model.graph.initializer:
        array: NDArray[np.float32] = arrays.to_array(tensor)
        if tensor.data_type != TensorProto.FLOAT or array.size < MIN_HALVED_ELEMENTS:
            continue
        name = tensor.name
        half = array.astype(np.float16)
        if not np.isfinite(half).all():  # a weight beyond 65504 stays as it is
            continue
        tensor.CopyFrom(arrays.from_array(half, f"{name} half"))
        casts.append(helper.make_node("Cast", [f"{name} half"], [name], to=TensorProto.FLOAT))
    for node in reversed(casts):
        model.graph.node.insert(0, node)
