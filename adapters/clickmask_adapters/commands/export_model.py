"""`clickmask export-model`: a project's model as an ONNX file that runs with onnxruntime alone."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import typer

from clickmask import files
from clickmask.errors import NotFound
from clickmask.models.labeller import (
    CLIPPED_PERCENT,
    LOGITS,
    MAX_SIDE_PX,
    MIN_VALUE_RANGE,
    MULTIPLE,
    PIXELS,
)
from clickmask.models.versions import NETWORK, ModelVersion, verify
from clickmask_adapters.commands._console import ProjectName, ToolName, console, find_project, open_home
from clickmask_adapters.exports import _folder

CARD, TEXT, EXAMPLE = "model.json", "README.md", "example.py"
SCRIPT = f'''"""The class of each pixel: python {EXAMPLE} picture.npy classes.npy

picture.npy is (H, W, 3) uint8, RGB, upright, of sides up to {MAX_SIDE_PX}. Pillow makes one of a file:
np.save("picture.npy", PIL.ImageOps.exif_transpose(PIL.Image.open("picture.jpg")).convert("RGB"))
"""

import sys

import numpy as np
import onnxruntime

pixels = np.load(sys.argv[1])
height, width = pixels.shape[:2]
low, high = np.percentile(pixels, ({CLIPPED_PERCENT}, {100 - CLIPPED_PERCENT}))
stretched = np.rint((pixels - low) / max(high - low, {MIN_VALUE_RANGE}) * 255).clip(0, 255) / 255
padded = np.pad(stretched, ((0, -height % {MULTIPLE}), (0, -width % {MULTIPLE}), (0, 0)), mode="edge")
session = onnxruntime.InferenceSession("{NETWORK}", providers=["CPUExecutionProvider"])
(logits,) = session.run(["{LOGITS}"], {{"{PIXELS}": padded.transpose(2, 0, 1)[None].astype(np.float32)}})
np.save(sys.argv[2], logits[0, :, :height, :width].argmax(axis=0).astype(np.uint8))
'''

cli = typer.Typer()


@cli.command("export-model")
def export_model(
    tool: ToolName,
    project: ProjectName,
    out: Annotated[Path, typer.Option("--out", metavar="DIR", help="A new folder, or an earlier export.")],
) -> None:
    """Write a project's model as ONNX, with a card and an example that needs onnxruntime alone.

    The card says labels, preprocessing, measures with 95 % intervals, the dataset's digest, and what the
    weights started from, with its licence.
    """
    with open_home() as home:
        find_project(home.store, tool, project)
        models = home.models.of(tool, project)
        with models.lock_served() as served:
            if served is None:
                raise NotFound(f"no model of this project is served yet: {models.why_not_served()}")
            verify(served)
            network = files.read(served.network)
        card = describe(served)
        with _folder.replacing(out) as new:
            (new / NETWORK).write_bytes(network)
            (new / CARD).write_text(json.dumps(card, indent=1))
            (new / TEXT).write_text(written(card))
            (new / EXAMPLE).write_text(SCRIPT)
    console.print(f"{out / NETWORK}: model {served.id}, {len(network) / 1e6:.1f} MB", markup=False)
    console.print(f"cd {out} && python {EXAMPLE} picture.npy classes.npy", markup=False)


def describe(version: ModelVersion) -> dict[str, Any]:
    """The card as JSON."""
    provenance = version.provenance
    report = provenance.report
    measures = ("split", "images", "miou", "interval", "iou", "dice", "pixel_accuracy", "boundary_f1")
    return {
        "version": version.id,
        "network": provenance.network,
        "parameters": report.get("parameters"),
        "classes": {"0": "background"} | {f"{k}": name for k, name in enumerate(provenance.categories, 1)},
        "started_from": report.get("started_from", ""),
        "dataset": provenance.dataset_digest,
        "images": {side: len(images) for side, images in provenance.split.items()},
        "measures": {name: report[name] for name in measures if name in report},
        "made_at": version.made_at,
        "packages": dict(version.packages),
        "input": {
            "name": PIXELS,
            "shape": ["1", "3", "H", "W"],
            "colours": "RGB, float32 in [0, 1], of the upright picture",
            "clipped_percent": CLIPPED_PERCENT,
            "min_value_range": MIN_VALUE_RANGE,
            "multiple": MULTIPLE,
            "max_side_px": MAX_SIDE_PX,
        },
        "output": {"name": LOGITS, "shape": ["1", "classes", "H", "W"]},
    }


def written(card: Mapping[str, Any]) -> str:
    """The card for people, as Markdown."""
    measures, seen = card["measures"], card["input"]
    miou = "not measured"
    if measures.get("miou") is not None:
        low, high = (measures["interval"][name] for name in ("low", "high"))
        miou = f"{measures['miou']:.3f}" + (f" (95 %: {low:.3f} to {high:.3f})" if low is not None else "")
    rows: list[str] = []
    for number, name in card["classes"].items():
        found = (measures.get(kind, {}).get(name) for kind in ("iou", "dice"))
        cells = ("" if value is None else f"{value:.3f}" for value in found)
        rows.append(f"| {number} | {name} | {' | '.join(cells)} |")
    classes = "\n".join(rows)
    return f"""# Model {card["version"]}

{card["network"]}, {card["parameters"] or "an unknown number of"} parameters, made {card["made_at"]} of the
dataset {card["dataset"]}. Its weights started from: {card["started_from"] or "not told"}.

mIoU {miou}, on {measures.get("images", 0)} images it was not trained on
({measures.get("split", "not told")}).

| class | name | IoU | Dice |
|---:|---|---:|---:|
{classes}

**Input** `{PIXELS}`: (1, 3, H, W), {seen["colours"]}. Values are stretched: the darkest and the brightest
{CLIPPED_PERCENT} % of a picture's become 0 and 1, over a range of at least {MIN_VALUE_RANGE:g} of 255.
Sides are edge-padded to multiples of {MULTIPLE}; sides over {MAX_SIDE_PX} px are scaled down before.

**Output** `{LOGITS}`: (1, classes, H, W); the class of a pixel is the largest.

`{EXAMPLE}` does all that with onnxruntime alone; `{CARD}` is this page for programs.
"""
