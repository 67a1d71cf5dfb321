"""`clickmask predict FOLDER`: a model draws in every picture of a folder, without a labeling tool."""

import io
import json
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import PIL.Image
import typer
from rich.progress import BarColumn, MofNCompleteColumn, TimeRemainingColumn

from clickmask import annotators, files, plugins
from clickmask.datasets.snapshot import IGNORED
from clickmask.errors import ClickmaskError, InvalidRequest
from clickmask.images.decode import decode_image, readable_formats
from clickmask.inference import driver
from clickmask.masks.rle import mask_to_rle, rle_area, rle_box, rle_to_mask
from clickmask.models.versions import folder_name
from clickmask.types import Image, Prediction, Prompt, Size, one_by_one
from clickmask_adapters.commands._console import end, open_home, progress, tool_name
from clickmask_adapters.commands.prepare import folder_images
from clickmask_adapters.exports._class_maps import palette
from clickmask_adapters.home import Home

OUTPUTS = ("mask", "coco", "overlay")
COCO, KEPT = "predictions.json", ".predicted"  # of the results of each picture, from which COCO is made
OPACITY = 0.45  # of an overlay's colours

cli = typer.Typer()


@dataclass(frozen=True)
class Predictor:
    """What draws. `version` changes with all that changes what it draws."""

    version: str
    labels: Sequence[str]
    predict: Callable[[Image], Sequence[tuple[str, Prediction]]]


@dataclass(frozen=True)
class Drawn:
    """What was drawn on a picture, best first."""

    version: str
    file: Sequence[int]  # the picture's bytes, and its time of change
    size: Size
    objects: Sequence[Mapping[str, Any]]  # label, score, and mask as COCO RLE


@cli.command()
def predict(
    folder: Annotated[
        Path, typer.Argument(metavar="FOLDER", exists=True, file_okay=False, help="Pictures, in folders too.")
    ],
    out: Annotated[Path, typer.Option("--out", metavar="DIR", help="A folder for the results.")],
    project: Annotated[
        tuple[str, str] | None,
        typer.Option("--project", metavar="TOOL PROJECT", help="The project whose model draws."),
    ] = None,
    by: Annotated[
        str | None, typer.Option("--with", metavar="NAME", help="Instead: an annotator or a segmenter.")
    ] = None,
    output: Annotated[
        list[str] | None,
        typer.Option("--as", metavar="mask|coco|overlay", help="Repeat for several. Default: all three."),
    ] = None,
) -> None:
    """Draw in every picture of a folder: masks as PNG, COCO, and overlays to look at.

    `masks` has a PNG of classes for each picture, 0 where nothing is, and `labels.json` names the numbers;
    `overlays` has JPEGs; `predictions.json` is COCO with scores. A segmenter is shown the whole picture as a
    box. What the same model drew already is not drawn again: the same command goes on where it stopped.
    """
    wanted = tuple(output or OUTPUTS)
    if unknown := set(wanted) - {*OUTPUTS}:
        raise typer.BadParameter(f"--as is one of {', '.join(OUTPUTS)}, not {min(unknown)[:40]!r}")
    if (project is None) == (by is None):
        raise typer.BadParameter("give either --project TOOL PROJECT or --with NAME")
    with open_home() as home:
        name = f"trained:{folder_name(tool_name(project[0]), project[1])}" if project else by or ""
        model = _predictor(home, name)
        if "mask" in wanted and len(model.labels) >= IGNORED:
            raise InvalidRequest(
                f"a PNG has room for {IGNORED - 1} labels, not {len(model.labels)}: give --as coco"
            )
        listed = [each.name for each in folder_images(folder)]
        names = [each for each in listed if not (folder / each).resolve().is_relative_to(out.resolve())]
        if not names:
            raise InvalidRequest(f"there is no image here; clickmask reads {', '.join(readable_formats())}")
        failed, counts, interrupted = list[str](), Counter[str](), False
        columns = (BarColumn(20), MofNCompleteColumn(), TimeRemainingColumn(), "{task.description}")
        stems = Counter(str(Path(each).with_suffix("")) for each in names)
        found: dict[str, Drawn] = {}
        try:
            with progress(*columns) as show:
                for done, each in enumerate(names, 1):
                    stem = str(Path(each).with_suffix(""))
                    place = stem if stems[stem] == 1 else each
                    try:
                        found[each], is_new = _draw(model, home, folder / each, out / KEPT / f"{each}.json")
                        _write(found[each], model, home, folder / each, out, place, wanted, is_new)
                        counts["drawn" if is_new else "known"] += 1
                        counts["objects"] += len(found[each].objects)
                    except ClickmaskError as error:
                        failed.append(f"{each}: {error}")
                    except OSError as error:
                        if str(error.filename) != str(folder / each):
                            raise
                        failed.append(f"{each}: it cannot be read: {error.strerror}")
                    show(done, len(names), _summary(counts, failed))
        except KeyboardInterrupt:
            interrupted = True
        except OSError as error:
            raise InvalidRequest(f"{out} cannot be written: {error.strerror}") from error
        if "coco" in wanted and not interrupted:
            files.write(out / COCO, json.dumps(_coco(found, model), indent=1).encode(), durable=False)
    end(_summary(counts, failed), failed, interrupted)


def _predictor(home: Home, name: str) -> Predictor:
    """The annotator of this name, else the segmenter. Raises NotFound and NotReady."""
    if name.partition(":")[0] in plugins.names(annotators):
        annotator, version = home.annotators.get(name), name
        served = home.models.named(name.partition(":")[2]).served() if name.startswith("trained:") else None
        if served:
            version = f"{name} {served.id} {home.settings.segmenter if home.settings.refine else ''}"
        return Predictor(version, tuple(annotator.labels), partial(driver.annotate, annotator))
    segmenter = home.segmenters.get(name)

    def whole(image: Image) -> list[tuple[str, Prediction]]:
        height, width = image.size
        box = Prompt(box=(0.0, 0.0, float(width), float(height)))
        best = driver.decode(segmenter, driver.encode(segmenter, image), box, image.size)[0]
        return [("object", best)] if best.mask.any() else []

    return Predictor(name, ("object",), whole)


def _draw(model: Predictor, home: Home, picture: Path, record: Path) -> tuple[Drawn, bool]:
    """What is on the picture, and whether it was drawn now: `record` keeps it."""
    status = picture.stat()
    file = [status.st_size, status.st_mtime_ns]
    with suppress(OSError, ValueError, TypeError):
        known = Drawn(**json.loads(record.read_bytes()))
        if (known.version, list(known.file)) == (model.version, file):
            return known, False
    image = decode_image(picture.read_bytes(), home.limits)
    objects = [
        {"label": label, "score": round(each.score, 4), "rle": mask_to_rle(each.mask)}
        for label, each in one_by_one(list(model.predict(image)))
    ]
    drawn = Drawn(model.version, file, image.size, objects)
    record.parent.mkdir(parents=True, exist_ok=True)
    files.write(record, json.dumps(asdict(drawn)).encode(), durable=False)
    return drawn, True


def _write(
    drawn: Drawn,
    model: Predictor,
    home: Home,
    picture: Path,
    out: Path,
    place: str,
    wanted: Sequence[str],
    is_new: bool,
) -> None:
    """The files of one picture, those that are there already only if it was drawn anew."""
    classes = np.zeros(drawn.size, np.uint8)
    for each in reversed(drawn.objects):  # the best on top
        classes[rle_to_mask(each["rle"])] = model.labels.index(each["label"]) + 1 if "mask" in wanted else 1
    mask, overlay = out / "masks" / f"{place}.png", out / "overlays" / f"{place}.jpg"
    if "mask" in wanted and (is_new or not mask.exists()):
        png = PIL.Image.fromarray(classes, "L")
        png.putpalette(palette())
        _save(png, mask, "PNG")
        named = dict(enumerate(model.labels, 1))
        files.write(out / "masks" / "labels.json", json.dumps(named, indent=1).encode(), durable=False)
    if "overlay" in wanted and (is_new or not overlay.exists()):
        pixels = decode_image(picture.read_bytes(), home.limits).pixels.copy()
        colours = np.frombuffer(palette(), np.uint8).reshape(256, 3)
        for number in range(1, classes.max(initial=0) + 1):
            there = classes == number
            pixels[there] = (1 - OPACITY) * pixels[there] + OPACITY * colours[number]
        _save(PIL.Image.fromarray(pixels), overlay, "JPEG")


def _save(picture: PIL.Image.Image, path: Path, kind: str) -> None:
    written = io.BytesIO()
    picture.save(written, kind, quality=92)
    path.parent.mkdir(parents=True, exist_ok=True)
    files.write(path, written.getvalue(), durable=False)


def _coco(found: Mapping[str, Drawn], model: Predictor) -> dict[str, Any]:
    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    numbers = {label: number for number, label in enumerate(model.labels, 1)}
    for image, (name, drawn) in enumerate(found.items(), 1):
        height, width = drawn.size
        images.append({"id": image, "file_name": name, "width": width, "height": height})
        for each in drawn.objects:
            rle = each["rle"]
            annotations.append(
                {
                    "id": len(annotations) + 1,
                    "image_id": image,
                    "category_id": numbers[each["label"]],
                    "segmentation": rle,
                    "area": rle_area(rle),
                    "bbox": rle_box(rle),
                    "iscrowd": 0,
                    "score": each["score"],
                }
            )
    categories = [{"id": number, "name": name, "supercategory": ""} for name, number in numbers.items()]
    info = {"description": f"predictions of {model.version}"}
    return {"info": info, "images": images, "categories": categories, "annotations": annotations}


def _summary(counts: Mapping[str, int], failed: Sequence[str]) -> str:
    drawn, known = counts.get("drawn", 0), counts.get("known", 0)
    objects = counts.get("objects", 0)
    return f"{drawn} pictures drawn, {known} there already, {objects} objects, {len(failed)} failed"
