"""The JSON of CVAT's calls, for the description at /v1/openapi.json alone: `prompts` reads bodies, `answers`
and `functions` make answers. What is not listed here is ignored."""

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from clickmask_adapters.server.openapi import EXAMPLE_PNG
from clickmask_adapters.tools.cvat.prompts import MAX_BOXES, MAX_POINTS

Number = Annotated[float, Field(strict=True)]
Pair = tuple[Number, Number]
MASK = "Run lengths of the box, row by row, zeros first; then left, top, right, bottom, inclusive"


class Metadata(BaseModel):
    name: Annotated[str, Field(description="The function's id")]
    namespace: str
    labels: dict[str, str]
    annotations: Annotated[dict[str, str], Field(description="What CVAT shows, and which prompts it offers")]


class Spec(BaseModel):
    description: str


class State(BaseModel):
    state: Literal["ready"]
    http_port: Annotated[int, Field(alias="httpPort")]


class FunctionOut(BaseModel):
    """A segmenter or an annotator, described as nuclio's dashboard describes its functions."""

    metadata: Metadata
    spec: Spec
    status: State


class InvocationIn(BaseModel):
    """Detectors read the image and the threshold, and ignore points and boxes."""

    image: Annotated[
        str, Field(min_length=1, description="The file, base64", json_schema_extra={"format": "byte"})
    ]
    pos_points: Annotated[
        list[Pair] | None, Field(max_length=MAX_POINTS, description="On the object, pixels")
    ] = None
    neg_points: Annotated[list[Pair] | None, Field(max_length=MAX_POINTS, description="Not on it")] = None
    obj_bbox: Annotated[
        list[Pair] | None, Field(max_length=2 * MAX_BOXES, description="Two opposite corners of each box")
    ] = None
    threshold: Annotated[Number | None, Field(description="Masks of a lower score are left out")] = None


class Attribute(BaseModel):
    spec_id: Annotated[Literal[0], Field(description="The confidence")]
    value: str


class ShapeOut(BaseModel):
    type: Literal["mask"]
    points: Annotated[list[int], Field(description=MASK)]
    attributes: list[Attribute]


class ShapesOut(BaseModel):
    """An interactor's answer, since CVAT 2.60."""

    shapes: Annotated[list[ShapeOut], Field(description="Empty: nothing was found")]


class DenseOut(BaseModel):
    """An interactor's answer for an older CVAT, or a caller that names no version in User-Agent."""

    mask: Annotated[list[list[int]], Field(description="The whole image, row by row: 0 or 1")]


class EmbeddingOut(BaseModel):
    """What CVAT's own Segment Anything decodes in the browser."""

    blob: Annotated[str, Field(description="Base64 of 256x64x64 little-endian floats")]


class DetectionOut(BaseModel):
    """One connected part of an object, which CVAT takes as a mask or as a polygon."""

    confidence: str
    label: str
    type: Literal["mask"]
    points: Annotated[list[float], Field(description="The outline: x, y, x, y …")]
    mask: Annotated[
        list[int], Field(description="The box, row by row: 0 or 1; then left, top, right, bottom, inclusive")
    ]
    group_id: Annotated[int | None, Field(description="The same for all parts of one object")] = None


InvocationOut = ShapesOut | DenseOut | EmbeddingOut | list[DetectionOut]


class EventIn(BaseModel):
    """Other events than `ping` are kept as they came, and read later."""

    event: Annotated[str, Field(description="update:job, for instance")]


class KeptOut(BaseModel):
    status: Literal["kept"]


class HeardOut(BaseModel):
    model_config = ConfigDict(json_schema_extra={"description": "The answer to a ping."})
    status: Literal["clickmask hears CVAT"]


CLICKED: dict[str, Any] = {"image": EXAMPLE_PNG, "pos_points": [[32, 24]], "neg_points": [[5, 5]]}
BOXED: dict[str, Any] = {"image": EXAMPLE_PNG, "obj_bbox": [[19, 11], [45, 37]], "threshold": 0.1}
EVENT: dict[str, Any] = {"event": "update:job", "job": {"id": 3, "task_id": 3, "project_id": 1}}
