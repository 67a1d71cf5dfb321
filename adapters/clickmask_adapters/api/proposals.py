"""Prompts, images and whole annotations over HTTP, as clickmask's own page uses them."""

from dataclasses import asdict
from typing import Annotated, Any, Literal, cast

from fastapi import APIRouter, Response
from pydantic import BaseModel, ConfigDict, Field, model_validator

from clickmask.errors import InvalidInput, InvalidRequest, NotFound, NotReady
from clickmask.masks.controls import MAX_SMOOTH, Controls
from clickmask.masks.polygons import group_rings
from clickmask.masks.regions import mask_area, mask_box
from clickmask.masks.rle import mask_to_rle, rle_to_mask
from clickmask.masks.simplify import simplify_mask
from clickmask.types import ImageRef, Mask, Prediction, Prompt, Size, one_by_one
from clickmask.workbench import Workbench
from clickmask_adapters.api import json_response
from clickmask_adapters.server.openapi import EXAMPLE_PNG, IMAGE_ERRORS, raises
from clickmask_adapters.settings import Settings

# Each wrong one of more would become an error, by the thread that answers everybody: 330,000 took 11 s.
MAX_POINTS = 10_000
MAX_MEMBERS = 100
MAX_COUNTS = 2**21  # characters of run lengths: a ragged mask of 12 megapixels has a tenth
FRAME = "Pixels of the upright image from its top-left corner, x right, y down."
Number = Annotated[float, Field(strict=True)]  # no text, no truth value
Count = Annotated[int, Field(strict=True)]
XY = tuple[Number, Number]
Box = tuple[Number, Number, Number, Number]
FORMATS = "JPEG, PNG, WebP, BMP, TIFF, GIF, AVIF, HEIC"


def _example(*bodies: dict[str, Any]) -> ConfigDict:
    return ConfigDict(json_schema_extra={"examples": [*bodies]})


class Strict(BaseModel):
    model_config = ConfigDict(extra="forbid")

    @model_validator(mode="before")
    @classmethod
    def _few_members(cls, given: object) -> object:
        """Pydantic would make an error of each unknown one."""
        if isinstance(given, dict) and len(cast("dict[str, object]", given)) > MAX_MEMBERS:
            raise ValueError(f"it has more than {MAX_MEMBERS} members")
        return cast("object", given)


class ImageIn(Strict):
    """An image: exactly one of its bytes, its address, or the digest that an earlier answer named."""

    model_config = ConfigDict(
        json_schema_extra={
            "oneOf": [
                {"required": [name], "properties": {name: {"type": "string"}}}
                for name in ("data", "url", "digest")
            ]
        }
    )
    data: Annotated[str, Field(json_schema_extra={"format": "byte"})] | None = Field(
        None, description=f"The file, base64 ({FORMATS})"
    )
    url: str | None = Field(
        None, description="http(s):// or file:// under a configured folder", max_length=4096
    )
    digest: str | None = Field(None, description="Of an image sent before; 410 if it is not known any more")

    def ref(self) -> ImageRef:
        named = (("data:;base64,", self.data), ("", self.url), ("digest:", self.digest))
        given = [scheme + value for scheme, value in named if value is not None]
        if len(given) != 1:
            raise InvalidRequest("an image is given by exactly one of data, url and digest")
        return ImageRef(given[0])


class RleIn(Strict):
    """A mask of the whole image, as answers give it."""

    size: Annotated[tuple[Count, Count], Field(description="height, width of the upright image")]
    counts: Annotated[
        str, Field(max_length=MAX_COUNTS, description="COCO's compressed run lengths, column by column")
    ]

    def mask(self, size: Size) -> Mask:
        """The mask. Raises InvalidInput unless it is one of an image of `size`, with a pixel."""
        (rows, columns), (height, width) = self.size, size
        if (rows, columns) != (height, width):
            raise InvalidInput(f"a mask of {columns}x{rows} pixels does not fit the {width}x{height} image")
        try:
            mask = rle_to_mask({"size": [rows, columns], "counts": self.counts})
        except ValueError as error:
            raise InvalidInput(f"the mask cannot be read: {error}") from error
        if not mask.any():
            raise InvalidInput("the mask has no pixel")
        return mask


class PromptIn(Strict):
    """At least one foreground point, a box or a mask, all of it inside the image."""

    foreground: list[XY] = Field([], max_length=MAX_POINTS, description=f"Points on the object. {FRAME}")
    background: list[XY] = Field([], max_length=MAX_POINTS, description="Points that are not on it.")
    box: Box | None = Field(None, description="x0, y0, x1, y1")
    mask: RleIn | None = Field(None, description="An existing region, to be refined")


class WantedIn(Strict):
    want: list[Literal["rle", "polygons"]] = Field(["rle", "polygons"], max_length=MAX_MEMBERS)
    min_iou: Number | None = Field(
        None,
        gt=0,
        le=1,
        description="The IoU with the mask that polygons must reach; 1: exact. Null: the server's",
    )
    max_points: Count | None = Field(None, ge=3, description="At most so many points, whatever the IoU")


class ControlsIn(Strict):
    """Wishes about the masks; without any they are the segmenter's own."""

    smooth: Number = Field(
        default=0,
        ge=0,
        le=MAX_SMOOTH,
        description="Radius in pixels of the disc whose majority decides on a pixel",
    )
    fill_holes: Count = Field(default=0, ge=0, description="Holes of at most so many pixels are filled")
    min_part_share: Number = Field(
        default=0, ge=0, le=1, description="Parts of a smaller share of the mask's area are left out"
    )
    max_parts: Count | None = Field(default=None, ge=1, description="At most so many parts, the largest")
    second_look: Annotated[bool, Field(strict=True)] = Field(
        default=False, description="Encode a crop around a small object too, once, and answer from there"
    )


class ProposalsIn(WantedIn):
    model_config = _example(
        {"image": {"data": EXAMPLE_PNG}, "prompt": {"foreground": [[32, 24]], "background": [[5, 5]]}},
        {
            "image": {"data": EXAMPLE_PNG},
            "prompt": {"box": [19, 11, 45, 37]},
            "want": ["polygons"],
            "min_iou": 0.95,
            "max_points": 100,
        },
    )
    image: ImageIn
    prompt: PromptIn
    segmenter: str | None = Field(None, description="A name from /v1/segmenters; null: the default")
    controls: ControlsIn = ControlsIn()


class AnnotationsIn(WantedIn):
    model_config = _example(
        {"image": {"data": EXAMPLE_PNG}, "annotator": "everything:sam:vit_b", "min_score": 0.5}
    )
    image: ImageIn
    annotator: str = Field(description="A name from /v1/annotators")
    min_score: Number = Field(0, ge=0, le=1, description="Objects of a lower score are left out")


class ImagesIn(Strict):
    model_config = _example({"image": {"data": EXAMPLE_PNG}})
    image: ImageIn
    segmenter: str | None = Field(None, description="A name from /v1/segmenters; null: the default")


class ImageOut(BaseModel):
    digest: Annotated[str, Field(description="Names the image in later requests, while it is kept")]
    width: int
    height: int


class RleOut(BaseModel):
    size: Annotated[tuple[int, int], Field(description="height, width")]
    counts: Annotated[str, Field(description="COCO's compressed run lengths, column by column")]


class PolygonOut(BaseModel):
    outer: list[XY]
    holes: list[list[XY]]


class MaskOut(BaseModel):
    score: Annotated[float, Field(ge=0, le=1, description="The segmenter's own estimate of the IoU")]
    area: Annotated[int, Field(description="Pixels")]
    box: Annotated[Box | None, Field(description="Null: nothing was found")]
    rle: RleOut | None = None
    polygons: list[PolygonOut] | None = None
    iou: Annotated[float | None, Field(description="Of the polygons with the mask")] = None
    points: Annotated[int | None, Field(description="Of all polygons together")] = None


class ProposalOut(MaskOut):
    id: str


class ProposalsOut(BaseModel):
    model_config = _example(
        {
            "image": {"digest": "9f2c…", "width": 451, "height": 300},
            "segmenter": "builtin",
            "proposals": [
                {
                    "id": "wT3kq0mXn1ZrB2aS",
                    "score": 0.81,
                    "area": 21034,
                    "box": [120, 40, 330, 280],
                    "rle": {"size": [300, 451], "counts": "Pgc14…"},
                    "polygons": [{"outer": [[120, 44.5], [330, 51], [201, 280]], "holes": []}],
                    "iou": 0.983,
                    "points": 3,
                }
            ],
        }
    )
    image: ImageOut
    segmenter: str
    proposals: Annotated[list[ProposalOut], Field(min_length=1, description="Best first")]


class ObjectOut(MaskOut):
    label: str


class AnnotationsOut(BaseModel):
    image: ImageOut
    annotator: str
    objects: Annotated[list[ObjectOut], Field(description="Best first; maybe none")]


class SegmenterOut(BaseModel):
    name: str
    ready: bool
    reason: Annotated[str, Field(description="Why it is not ready; empty if it is")]


class SegmentersOut(BaseModel):
    default: str
    segmenters: list[SegmenterOut]


class AnnotatorOut(SegmenterOut):
    labels: Annotated[list[str], Field(description="What it finds; none while it is not ready")]


class AnnotatorsOut(BaseModel):
    annotators: list[AnnotatorOut]


def router(workbench: Workbench, settings: Settings) -> APIRouter:
    routes = APIRouter(prefix="/v1", tags=["masks"])
    models_run = raises(*IMAGE_ERRORS, NotFound, NotReady)

    @routes.post(
        "/proposals",
        response_model=ProposalsOut,
        summary="A prompt becomes masks, best first",
        responses=models_run,
    )
    def proposals(asked: ProposalsIn) -> Response:
        """Points, a box and a mask to be refined, all on one image, become at least one mask. The first
        request with an image encodes it, later ones are fast. Repeating the last foreground point asks for
        the next candidate. An empty mask means that nothing was found."""
        given, ref = asked.prompt, asked.image.ref()
        mask = given.mask and given.mask.mask(workbench.identify(ref).size)
        prompt = Prompt(tuple(given.foreground), tuple(given.background), given.box, mask)
        controls = Controls(**asked.controls.model_dump())
        made = workbench.propose(ref, prompt, asked.segmenter, controls=controls)
        segmenter, first = made[0].prediction.segmenter, made[0].prediction.mask
        image = _image(made[0].digest, first.shape)
        del first  # as below
        found = [
            {"id": each.id} | _described(each.prediction, asked, settings.min_iou)
            for each in one_by_one(made)
        ]
        return json_response({"image": image, "segmenter": segmenter, "proposals": found})

    @routes.post(
        "/annotations",
        response_model=AnnotationsOut,
        summary="Every object in an image, without a prompt",
        responses=models_run,
    )
    def annotations(asked: AnnotationsIn) -> Response:
        """Takes seconds to minutes. A few images are annotated at a time; others are refused with 503."""
        ref = asked.image.ref()
        identity = workbench.identify(ref)
        image = _image(identity.digest, identity.size)
        objects = [
            {"label": label} | _described(prediction, asked, settings.min_iou)
            for label, prediction in workbench.annotate(ref, asked.annotator)
            if prediction.score >= asked.min_score
        ]
        return json_response({"image": image, "annotator": asked.annotator, "objects": objects})

    @routes.get(
        "/annotators",
        response_model=AnnotatorsOut,
        summary="What annotates whole images",
        responses=raises(),
    )
    def annotators() -> Response:
        """The annotators that are installed and the models of projects, which of them are ready, and the
        labels that each gives."""
        return json_response({"annotators": [asdict(status) for status in workbench.annotators()]})

    @routes.post(
        "/images",
        response_model=ImageOut,
        summary="Make an image known, and encode it ahead of the clicks",
        responses=models_run,
    )
    def images(asked: ImagesIn) -> Response:
        """The answer comes before the image is encoded. Later requests may name the image by its digest."""
        ref = asked.image.ref()
        identity = workbench.identify(ref)
        workbench.prepare(ref, asked.segmenter)
        return json_response(_image(identity.digest, identity.size))

    @routes.get(
        "/segmenters",
        response_model=SegmentersOut,
        summary="What is installed, and what is ready",
        responses=raises(),
    )
    def segmenters() -> Response:
        """The segmenters that answer prompts, and the one that answers if a request names none."""
        all_of_them = workbench.segmenters()
        found = [{"name": each.name, "ready": each.ready, "reason": each.reason} for each in all_of_them]
        return json_response({"default": workbench.default_segmenter, "segmenters": found})

    return routes


def _image(digest: str, size: tuple[int, ...]) -> dict[str, Any]:
    height, width = size
    return {"digest": digest, "width": width, "height": height}


def _described(prediction: Prediction, asked: WantedIn, min_iou: float) -> dict[str, Any]:
    """The prediction as a `MaskOut`; its mask is computed here, at full size."""
    mask = prediction.mask
    described: dict[str, Any] = {"score": prediction.score, "area": mask_area(mask), "box": mask_box(mask)}
    if "rle" in asked.want:
        described["rle"] = mask_to_rle(mask)
    if "polygons" in asked.want:
        simplified = simplify_mask(mask, asked.min_iou or min_iou, max_points=asked.max_points)
        described |= {
            "polygons": [{"outer": outer, "holes": holes} for outer, holes in group_rings(simplified.rings)],
            "iou": simplified.iou,
            "points": simplified.points,
        }
    return described
