"""Small networks to be saved, and writers of them that can be killed, as processes of their own."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from onnx import TensorProto, helper

from clickmask.metrics.report import measure, report_to_json
from clickmask.models.versions import Models, Provenance, UnsavedModel
from support.drawn import disc

PIXELS = np.random.default_rng(0).random((1, 3, 4, 5), np.float32)


def network(weight: float) -> bytes:
    """ONNX that multiplies pixels by `weight`."""
    graph = helper.make_graph(
        [helper.make_node("Mul", ["pixels", "weight"], ["logits"])],
        "network",
        [helper.make_tensor_value_info("pixels", TensorProto.FLOAT, [1, 3, "height", "width"])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, [1, 3, "height", "width"])],
        [helper.make_tensor("weight", TensorProto.FLOAT, [1], [weight])],
    )
    opset = [helper.make_opsetid("", 17)]
    return helper.make_model(graph, opset_imports=opset, ir_version=8).SerializeToString()


def draft(weight: float = 2.0) -> UnsavedModel:
    return UnsavedModel(
        Provenance(
            network="unet",
            categories=("cell", "nucleus"),
            dataset_digest="d" * 64,
            split={"train": ["a", "b"], "validation": ["c"], "test": []},
            report={"miou": 0.5, "weight": weight},
            seed=7,
        ),
        {"weight": np.array([weight], np.float32)},
        network(weight),
        {"pixels": PIXELS},
        {"logits": PIXELS * np.float32(weight)},
    )


def measured_draft(weight: float) -> UnsavedModel:
    """With the report that a training writes."""
    classes = disc().astype(np.uint8)
    report = report_to_json(measure([(classes, classes)], ["disc", "absent"]).report)
    about = {"split": "test", **report, "validation": report, "decision": "promoted: good", "promoted": True}
    made = draft(weight)
    return replace(made, provenance=replace(made.provenance, report=about))


def save_and_promote(folder: Path, weight: float, death: int | None = None) -> None:
    """With `death`: killed -9 at that one of the changes to the disk, counted from 0."""
    if death is not None:
        _die_at(death)
    kept = Models(folder)
    kept.promote(kept.save(draft(weight)).id)
    kept.prune(newest=2)


def _die_at(death: int) -> None:
    left = [death]

    def before(change: Callable[..., Any]) -> Callable[..., Any]:
        def counted(*arguments: Any, **named: Any) -> Any:
            left[0] -= 1
            if left[0] < 0:
                os.kill(os.getpid(), signal.SIGKILL)
            return change(*arguments, **named)

        return counted

    os.fsync = before(os.fsync)
    for name in ("rename", "replace", "mkdir", "open"):
        setattr(Path, name, before(getattr(Path, name)))
