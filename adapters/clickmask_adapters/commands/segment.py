"""`clickmask segment IMAGE`: one picture and one prompt become a mask, without a server."""

import io
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, cast

import cv2
import numpy as np
import PIL.Image
import typer

from clickmask.errors import InvalidRequest
from clickmask.images.decode import decode_image
from clickmask.inference import driver, second_look
from clickmask.inference.refinement import Refinement
from clickmask.masks.controls import KINDS, read_controls
from clickmask.masks.regions import mask_area, mask_box
from clickmask.masks.rle import mask_to_rle, rle_area, rle_box
from clickmask.types import Image, Prediction, Prompt, Unprompted
from clickmask_adapters.commands._console import console, open_home

Output = Literal["mask", "coco", "overlay"]

ENDINGS: dict[Output, tuple[str, ...]] = {
    "mask": (".png",),
    "coco": (".json",),
    "overlay": (".jpg", ".jpeg", ".webp", ".png"),
}
COLOUR = (255, 40, 120)  # of an overlay
OPACITY = 0.4  # of the colour inside the outline

cli = typer.Typer()


@cli.command()
def segment(
    image: Annotated[
        Path, typer.Argument(metavar="IMAGE", exists=True, dir_okay=False, help="A picture's file.")
    ],
    out: Annotated[
        Path, typer.Option("--out", metavar="FILE", help="mask.png, coco.json or overlay.jpg; see --as.")
    ],
    point: Annotated[
        list[str] | None, typer.Option("--point", metavar="X,Y", help="On the object; repeat for more.")
    ] = None,
    negative: Annotated[
        list[str] | None,
        typer.Option("--negative", "--background", metavar="X,Y", help="Not on the object; repeat for more."),
    ] = None,
    box: Annotated[
        list[str] | None,
        typer.Option("--box", metavar="X0,Y0,X1,Y1", help="Around the object; repeat for more objects."),
    ] = None,
    segmenter: Annotated[str | None, typer.Option(help="Default: CLICKMASK_SEGMENTER.")] = None,
    control: Annotated[
        list[str] | None,
        typer.Option(
            "--control",
            metavar="NAME=VALUE",
            help=f"What the mask shall be: {', '.join(KINDS)}, as in /v1/proposals; repeat for more.",
        ),
    ] = None,
    output: Annotated[
        Output | None,
        typer.Option("--as", help="Default: by FILE's ending, .png mask, .json coco, .jpg or .webp overlay."),
    ] = None,
) -> None:
    """Segment one object of a picture by points or a box, or one object by each of several boxes.

    Without any of them, a segmenter that needs no prompt, such as selfie or salient, gives all that it finds.
    Coordinates are pixels of the upright picture, from its top-left corner: EXIF's orientation is applied. A
    mask is a PNG of the upright picture's size, 255 on the objects and 0 elsewhere.
    """
    ending = out.suffix.lower()
    fitting: list[Output] = [kind for kind, endings in ENDINGS.items() if ending in endings]
    chosen = output or next(iter(fitting), None)
    if chosen not in fitting:
        known = "; ".join(f"{kind}: {', '.join(endings)}" for kind, endings in ENDINGS.items())
        raise typer.BadParameter(f"{out.name} ends with none of these ({known})")
    if out.exists() and out.samefile(image):
        raise typer.BadParameter("--out would replace the picture itself")
    foreground, background = (
        tuple((x, y) for x, y in (_numbers(each, "X,Y") for each in given or ()))
        for given in (point, negative)
    )
    boxes = [_numbers(each, "X0,Y0,X1,Y1") for each in box or ()]
    if len(boxes) > 1 and (foreground or background):
        raise typer.BadParameter("several boxes are several objects: give points for one object at a time")
    with open_home() as home:
        controls = read_controls(control or ())
        name = segmenter or home.settings.segmenter
        home.segmenters.require_ready(name)
        prompts = [Prompt(foreground, background, (x0, y0, x1, y1)) for x0, y0, x1, y1 in boxes]
        finds = bool(home.segmenters.variants()[name].labels) and not (foreground or background or prompts)
        if not (prompts or finds):
            prompts = [Prompt(foreground, background)]
        picture = decode_image(image.read_bytes(), home.limits)
        for prompt in prompts:
            prompt.require_inside(picture.size)
        loaded = home.segmenters.get(name)
        embedding, refinement = driver.encode(loaded, picture), Refinement()
        found = [
            second_look.decode(loaded, refinement, embedding, picture, prompt, controls)[0]
            for prompt in prompts
        ]
        if finds:
            with driver.blaming(name):
                objects = [each for _, each in cast("Unprompted[Any]", loaded).find(embedding)]
            if not objects:
                raise InvalidRequest(f"{name} finds nothing in this picture")
            checked = driver.check_predictions(name, objects, picture.size)
            found = [controls.applied(each) for each in checked]
        if not all(mask_area(each.mask) for each in found):
            raise InvalidRequest(f"{name} finds nothing there: try another point or a box")
        try:
            out.write_bytes(_written(picture, found, chosen, image.name, ending))
        except OSError as error:
            raise InvalidRequest(f"{out} cannot be written: {error.strerror}") from error
    for each in found:
        edges = ",".join(f"{edge:g}" for edge in mask_box(each.mask) or ())
        said = f"{mask_area(each.mask)} pixels in the box {edges}"
        console.print(f"{out}: {said}, predicted IoU {each.score:.2f}, {name}", markup=False)


def _numbers(text: str, form: str) -> list[float]:
    """The numbers in `text`, as many as in `form`. Raises BadParameter."""
    try:
        numbers = [float(each) for each in text.split(",")]
    except ValueError:
        numbers = []
    if len(numbers) != form.count(",") + 1:
        raise typer.BadParameter(f"{text[:40]!r} is not {form}, in pixels")
    return numbers


def _written(image: Image, found: Sequence[Prediction], output: Output, name: str, ending: str) -> bytes:
    """The file's content."""
    union = np.logical_or.reduce([each.mask for each in found])
    match output:
        case "coco":
            return json.dumps(_coco(image, found, name), indent=1).encode()
        case "mask":
            picture = PIL.Image.fromarray(union.astype(np.uint8) * 255)
        case "overlay":
            pixels, colour = image.pixels.copy(), np.array(COLOUR)
            pixels[union] = np.rint((1 - OPACITY) * pixels[union] + OPACITY * colour)
            for each in found:
                shape = np.ascontiguousarray(each.mask).view(np.uint8)
                thick = 1 + max(image.size) // 500
                outlines = cv2.findContours(shape, cv2.RETR_CCOMP, cv2.CHAIN_APPROX_NONE)[0]
                cv2.drawContours(pixels, outlines, -1, COLOUR, thick)
            picture = PIL.Image.fromarray(pixels)
    written = io.BytesIO()
    picture.save(written, PIL.Image.registered_extensions()[ending], quality=95)
    return written.getvalue()


def _coco(image: Image, found: Sequence[Prediction], name: str) -> dict[str, Any]:
    """COCO instances of one image and one category, with exact masks as compressed run lengths."""
    height, width = image.size
    annotations: list[dict[str, Any]] = []
    for number, each in enumerate(found, 1):
        rle = mask_to_rle(each.mask)
        about = {"id": number, "image_id": 1, "category_id": 1, "iscrowd": 0, "score": each.score}
        annotations.append({**about, "segmentation": rle, "area": rle_area(rle), "bbox": rle_box(rle)})
    return {
        "images": [{"id": 1, "file_name": name, "width": width, "height": height}],
        "categories": [{"id": 1, "name": "object", "supercategory": ""}],
        "annotations": annotations,
    }
