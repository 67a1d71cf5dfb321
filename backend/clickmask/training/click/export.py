"""Export of the network as two ONNX files that need no torch, and import from them.

Weights are stored as float16 and cast when loaded. Batch normalisations are folded into the preceding
convolutions. On import, the convolution and the normalisation's bias hold all of it, with neutral statistics:
the answers match the files. `Trainer.calibrate` prepares such a network for more training.
"""

from collections.abc import Iterable
from importlib import resources
from itertools import pairwise
from pathlib import Path
from typing import Any, cast

import numpy as np
import onnx
import torch
from onnx import TensorProto, helper, numpy_helper
from torch import Tensor, nn

from clickmask.errors import InvalidRequest
from clickmask.training.click.network import EMBEDDED, MAPS, ClickFPN, PromptDecoder
from clickmask.training.segmentation import export_onnx

ENCODER, DECODER = "encoder.onnx", "decoder.onnx"
HALF = " half"  # suffix of tensors stored in half precision
MIN_HALVED_ELEMENTS = 64  # smaller tensors are not worth halving


class _Decoder(nn.Module):
    """The decoder with its features as separate arguments, as an ONNX graph needs them."""

    def __init__(self, decoder: PromptDecoder) -> None:
        super().__init__()
        self.decoder = decoder

    def forward(self, maps: Tensor, *embedded: Tensor) -> tuple[Tensor, Tensor]:
        return self.decoder(embedded, maps)


def export(network: ClickFPN, folder: Path) -> None:
    """Write ENCODER and DECODER into `folder`, for one image at a time with sides in multiples of 32."""
    folder.mkdir(parents=True, exist_ok=True)
    network = network.float().cpu().eval()
    image, maps = torch.zeros(1, 3, 64, 96), torch.zeros(1, MAPS, 32, 48)
    with torch.no_grad():
        embedded = network.encoder(image)
    arrays = cast("Any", numpy_helper)
    for file, half, example, inputs, outputs in (
        (ENCODER, network.encoder, (image,), ["image"], list(EMBEDDED)),
        (DECODER, _Decoder(network.decoder), (maps, *embedded), ["maps", *EMBEDDED], ["logits", "worth"]),
    ):
        free = [name for name in inputs + outputs if name != "worth"]
        axes = {name: {2: f"{name} height", 3: f"{name} width"} for name in free}
        model = onnx.ModelProto.FromString(export_onnx(half, example, inputs, outputs, axes))
        casts: list[onnx.NodeProto] = []  # from float16 back to float32, before everything else
        for tensor in model.graph.initializer:
            name, array = tensor.name, arrays.to_array(tensor)
            if tensor.data_type != TensorProto.FLOAT or array.size < MIN_HALVED_ELEMENTS:
                continue
            halved = array.astype(np.float16)
            if np.isfinite(halved).all():  # no weight exceeds 65504
                tensor.CopyFrom(arrays.from_array(halved, name + HALF))
                casts.append(helper.make_node("Cast", [name + HALF], [name], to=TensorProto.FLOAT))
        for node in reversed(casts):
            model.graph.node.insert(0, node)
        (folder / file).write_bytes(model.SerializeToString())


def shipped_network() -> ClickFPN:
    """The built-in segmenter's network, on the CPU in evaluation mode."""
    folder = resources.files("clickmask.weights_builtin")
    return read_network((folder / ENCODER).read_bytes(), (folder / DECODER).read_bytes())


def read_network(encoder: bytes, decoder: bytes) -> ClickFPN:
    """The exported network, exactly, on the CPU in evaluation mode. Raises InvalidRequest for other files."""
    network = ClickFPN().eval()
    for half, content in ((network.encoder, encoder), (network.decoder, decoder)):
        found = _folded_state(half, content)
        wanted = {name: tensor.shape for name, tensor in half.state_dict().items()}
        if {name: tensor.shape for name, tensor in found.items()} != wanted:
            raise InvalidRequest("the ONNX files are not those of the built-in segmenter's network")
        half.load_state_dict(found)
    return network


def _folded_state(half: nn.Module, content: bytes) -> dict[str, Tensor]:
    """The state of `half` from its ONNX graph's initialisers."""
    graph = onnx.ModelProto.FromString(content).graph
    to_array = cast("Any", numpy_helper).to_array
    arrays = {
        each.name.removesuffix(HALF): torch.tensor(np.array(to_array(each), np.float32))
        for each in graph.initializer
    }
    for node in graph.node:
        if node.op_type == "Identity" and node.input[0] in arrays:  # equal tensors are stored once
            arrays[node.output[0]] = arrays[node.input[0]]
    state: dict[str, Tensor] = {}
    norm_after: dict[str, str] = {}  # convolution -> the normalisation right after it
    previous = ""
    for name, module in cast("Iterable[tuple[str, nn.Module]]", half.named_modules()):
        if isinstance(module, nn.BatchNorm2d):
            norm_after[previous], previous = name, ""
            neutral = nn.BatchNorm2d(module.num_features).state_dict()
            neutral["running_var"] -= module.eps
            state |= {f"{name}.{each}": tensor for each, tensor in neutral.items()}
        if isinstance(module, nn.Conv2d):
            previous = name if module.bias is None else ""
    # unchanged tensors keep their names
    state |= {name.removeprefix("decoder."): array for name, array in arrays.items() if "::" not in name}
    for node in graph.node:
        # `/laterals.8/laterals.8.0/Conv` is of `laterals.8.0`: a name in a list includes the list's
        path = pairwise(node.name.strip("/").split("/"))
        layer = ".".join(part for part, after in path if not after.startswith(f"{part}."))
        layer = layer.removeprefix("decoder.")
        given = [arrays[name] for name in node.input if name in arrays]
        if node.op_type in ("Conv", "MatMul") and given:
            state[f"{layer}.weight"] = given[0].T if node.op_type == "MatMul" else given[0]
        if node.op_type == "Conv" and len(given) > 1:
            state[f"{norm_after.get(layer, layer)}.bias"] = given[1]
    return state
