"""Networks that find what is green or blue, as MediaPipe's selfie segmentation and U2-Net-p are called."""

from __future__ import annotations

import hashlib
import struct
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from clickmask.inference.weights import WeightsFolder
from clickmask.plugins import Checkpoint
from clickmask.segmenters import salient

CHANNELS = np.array([0.0, 0.5, 0.5], np.float32)  # of red, green and blue, the weights
STEEPNESS, MIDDLE = 40.0, 0.4  # of the selfie's sigmoid over the weighted channels


def write_salient(folder: Path) -> Checkpoint:
    """Seven maps, as the official file gives: the first one counts."""
    from onnx import TensorProto, helper, save

    given = helper.make_tensor_value_info("input.1", TensorProto.FLOAT, [1, 3, 320, 320])
    names = [str(1959 + number) for number in range(7)]
    maps = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [1, 1, 320, 320]) for name in names]
    weights = helper.make_tensor("w", TensorProto.FLOAT, [1, 3, 1, 1], CHANNELS)
    nodes = [
        helper.make_node("Conv", ["input.1", "w"], ["cool"]),
        helper.make_node("Sigmoid", ["cool"], names[:1]),
    ]
    nodes += [helper.make_node("Neg", ["cool"], [name]) for name in names[1:]]
    graph = helper.make_graph(nodes, "u2netp", [given], maps, [weights])
    opsets = [helper.make_opsetid("", 11)]
    save(helper.make_model(graph, opset_imports=opsets, ir_version=6), folder / "u2netp.onnx")
    return _described(folder / "u2netp.onnx")


def offer_salient(home: Path, patch: pytest.MonkeyPatch) -> None:
    """The drawn network in the place of the official one, in the home's folder of weights. Skips the test if
    it cannot be written."""
    pytest.importorskip("onnx")
    (home / "weights").mkdir(parents=True)
    checkpoint = write_salient(home / "weights")
    WeightsFolder(home / "weights", checkpoints={"salient": checkpoint}).verify("salient")
    patch.setattr(salient, "VARIANTS", {"": replace(salient.VARIANTS[""], checkpoint=checkpoint)})


def write_selfie(folder: Path) -> Checkpoint:
    """2x2 pixels are one, enlarged again by MediaPipe's operation, which is named and set as in the official
    file."""
    import flatbuffers
    from ai_edge_litert import schema_py_generated as schema

    to_half = STEEPNESS / 4 * np.tile(CHANNELS, (1, 2, 2, 1))
    constants: list[np.ndarray] = [
        to_half,
        np.array([-STEEPNESS * MIDDLE]),
        np.ones((1, 2, 2, 1)),
        np.zeros(1),
    ]
    shapes = {
        "input_1": (1, 256, 256, 3),
        **{name: each.shape for name, each in zip(("w", "b", "v", "c"), constants, strict=True)},
        "half": (1, 128, 128, 1),
        "whole": (1, 256, 256, 1),
        "activation_10": (1, 256, 256, 1),
    }
    number = {name: place for place, name in enumerate(shapes)}
    model, graph = schema.ModelT(), schema.SubGraphT()
    model.version, model.subgraphs = 3, [graph]
    model.buffers = [schema.BufferT() for _ in range(1 + len(constants))]
    for buffer, constant in zip(model.buffers[1:], constants, strict=True):
        buffer.data = np.frombuffer(constant.astype(np.float32).tobytes(), np.uint8)
    graph.tensors, graph.operators = [], []
    for name, shape in shapes.items():
        tensor = schema.TensorT()
        tensor.name, tensor.shape, tensor.type = name, list(shape), schema.TensorType.FLOAT32
        tensor.buffer = number[name] if name in "wbvc" else 0
        graph.tensors.append(tensor)
    graph.inputs, graph.outputs = [number["input_1"]], [number["activation_10"]]

    def operator(code: int, inputs: list[str], output: str) -> Any:
        made = schema.OperatorT()
        made.opcodeIndex, made.inputs = code, [number[name] for name in inputs]
        made.outputs = [number[output]]
        graph.operators.append(made)
        return made

    convolution = operator(0, ["input_1", "w", "b"], "half")
    convolution.builtinOptionsType = schema.BuiltinOptions.Conv2DOptions
    convolution.builtinOptions = schema.Conv2DOptionsT()
    convolution.builtinOptions.strideW = convolution.builtinOptions.strideH = 2
    enlarged = operator(1, ["half", "v", "c"], "whole")
    enlarged.customOptions = list(struct.pack("<iii", 1, 2, 2))  # padding SAME, strides
    operator(2, ["whole"], "activation_10")
    kinds = schema.BuiltinOperator
    model.operatorCodes = []
    for kind in (kinds.CONV_2D, kinds.CUSTOM, kinds.LOGISTIC):
        code = schema.OperatorCodeT()
        code.builtinCode, code.deprecatedBuiltinCode, code.version = kind, min(kind, 127), 1
        model.operatorCodes.append(code)
    model.operatorCodes[1].customCode = "Convolution2DTransposeBias"
    builder = flatbuffers.Builder(1024)
    builder.Finish(model.Pack(builder), b"TFL3")
    (folder / "selfie_segmentation.tflite").write_bytes(bytes(builder.Output()))
    return _described(folder / "selfie_segmentation.tflite")


def _described(path: Path) -> Checkpoint:
    content = path.read_bytes()
    return Checkpoint(f"https://x/{path.name}", len(content), hashlib.sha256(content).hexdigest(), "none")
