"""Labels that programs bring: POST /v1/projects/{tool}/{project}/labels."""

import hashlib
import json
import math
import time
from collections.abc import Collection, Iterable, Iterator, Sequence
from itertools import chain
from typing import Annotated, Any

from fastapi import APIRouter, Response
from pydantic import BaseModel, ConfigDict, Field, WithJsonSchema

from clickmask.errors import Conflict, InvalidInput, NotFound, StoreUnavailable
from clickmask.ingest.apply import MAX_RUN_LENGTHS, Ingester
from clickmask.labels.geometry import (
    Brush,
    Ellipse,
    Geometry,
    Polygon,
    Rectangle,
    geometry_from_json,
    geometry_to_json,
    geometry_to_rle,
)
from clickmask.labels.submissions import Region, Submission, require_project_name
from clickmask.masks.rle import Rle, as_rle, rle_toggles
from clickmask.store.accepted import IMPORTED
from clickmask.types import Size
from clickmask.workbench import Workbench
from clickmask_adapters.api import ProjectName, ToolName, json_response
from clickmask_adapters.api.proposals import FRAME, ImageIn, ImageOut, Number, Strict
from clickmask_adapters.server.openapi import EXAMPLE_PNG, IMAGE_ERRORS, raises

MAX_LABELS = 10_000  # of one image
MAX_NAME = 1000
MAX_TIME = 2.0**33  # seconds since 1970
Name = Annotated[str, Field(min_length=1, max_length=MAX_NAME)]
_NUMBER = {"type": "number"}
_POINT = {"type": "array", "items": _NUMBER, "minItems": 2, "maxItems": 2}


def _shape(kind: str, required: str, **members: Any) -> dict[str, Any]:
    return {
        "type": "object",
        "properties": {"kind": {"const": kind}, **members},
        "required": ["kind", *required.split()],
        "additionalProperties": False,
    }


# Pydantic would make an error of each wrong one of a million numbers; `_drawn` stops at the first.
GeometryIn = Annotated[
    dict[str, Any],
    WithJsonSchema(
        {
            "description": f"As /v1/projects lists it. {FRAME}",
            "oneOf": [
                _shape(
                    "polygon", "rings", rings={"type": "array", "items": {"type": "array", "items": _POINT}}
                ),
                _shape(
                    "rectangle",
                    "box",
                    box={"type": "array", "items": _NUMBER, "minItems": 4, "maxItems": 4},
                    rotation=_NUMBER,
                ),
                _shape("ellipse", "centre radii", centre=_POINT, radii=_POINT, rotation=_NUMBER),
                _shape(
                    "brush",
                    "rle",
                    rle={
                        "type": "object",
                        "description": "COCO's compressed run lengths",
                        "properties": {
                            "size": {
                                "type": "array",
                                "items": {"type": "integer"},
                                "minItems": 2,
                                "maxItems": 2,
                            },
                            "counts": {"type": "string"},
                        },
                        "required": ["size", "counts"],
                        "additionalProperties": False,
                    },
                ),
            ],
        }
    ),
]


class LabelIn(Strict):
    category: Name
    geometry: GeometryIn
    proposal: str | None = Field(None, max_length=MAX_NAME, description="The id of the proposal it came from")


class LabelsIn(Strict):
    """Everything that is on one image; an empty list says that nothing is."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {
                    "key": "batch 7, image 1",
                    "image": {"data": EXAMPLE_PNG},
                    "name": "square.png",
                    "labels": [
                        {
                            "category": "square",
                            "geometry": {
                                "kind": "polygon",
                                "rings": [[[20, 12], [44, 12], [44, 36], [20, 36]]],
                            },
                        }
                    ],
                }
            ]
        }
    )
    key: Annotated[
        str, Field(min_length=1, max_length=MAX_NAME, description="Your own name for this image's labels")
    ]
    image: ImageIn
    name: Annotated[Name, Field(description="The picture's file name, as exports write it")]
    labels: list[LabelIn] = Field(max_length=MAX_LABELS)
    accepted_at: Number | None = Field(None, ge=0, le=MAX_TIME, description="Seconds since 1970; null: now")


class TakenOut(BaseModel):
    changed: Annotated[bool, Field(description="False: the same labels were there under this key already")]
    image: ImageOut
    labels: int


def router(workbench: Workbench, ingester: Ingester, tools: Collection[str]) -> APIRouter:
    """`tools` are the names under which projects may be made."""
    routes = APIRouter(prefix="/v1", tags=["labels"])

    @routes.post(
        "/projects/{tool}/{project}/labels",
        response_model=TakenOut,
        summary="Bring the labels of one image, without a labeling tool",
        responses=raises(*IMAGE_ERRORS, NotFound, Conflict, StoreUnavailable),
        operation_id="bring_labels",
    )
    def bring(tool: ToolName, project: ProjectName, brought: LabelsIn) -> Response:
        """The labels are accepted once this is answered: exported, trained on, measured. The same key again
        replaces them, the same labels again change nothing. `page` in the tool's place is for projects of
        clickmask's own, under any name. An image that is named by its digest must have labels already."""
        if tool not in tools:
            raise NotFound(f"projects are of {', '.join(sorted(tools))}, not of {tool[:40]!r}")
        require_project_name(project)
        ref = ingester.with_bytes(brought.image.ref())
        identity = workbench.identify(ref)
        regions = tuple(_regions(brought.labels, identity.size))
        named = hashlib.sha256(json.dumps([project, brought.key]).encode()).hexdigest()[:20]
        content = brought.model_dump_json(exclude={"image", "accepted_at"}) + identity.digest
        submission = Submission(
            tool,
            project,
            f"api-{named}",
            f"api-{named}",
            address=hashlib.sha256(content.encode()).hexdigest(),
            name=brought.name,
            size=identity.size,
            regions=regions,
            updated_at=time.time() if brought.accepted_at is None else brought.accepted_at,
            author=f"{IMPORTED}api {named}",
        )
        changed = ingester.accept(submission, ref)
        height, width = identity.size
        image = {"digest": identity.digest, "width": width, "height": height}
        return json_response({"changed": changed, "image": image, "labels": len(regions)})

    return routes


def _regions(labels: Sequence[LabelIn], size: Size) -> Iterator[Region]:
    """The labels on an image of `size`. Raises InvalidInput if one is none or does not fit, and if all
    together take too much room."""
    room = MAX_RUN_LENGTHS
    for number, each in enumerate(labels):
        geometry, rle = _drawn(each.geometry, size, number)
        room -= len(rle["counts"])
        if room < 0:
            raise InvalidInput(f"the labels have run lengths of more than {MAX_RUN_LENGTHS} bytes")
        yield Region(f"{number}", each.category, geometry, each.proposal)


def _drawn(given: dict[str, Any], size: Size, number: int) -> tuple[Geometry, Rle]:
    """The shape, and its mask of an image of `size`. Raises InvalidInput if it is none, or does not fit."""
    try:
        geometry = geometry_from_json({"rotation": 0.0} | given)
        if isinstance(geometry, Brush):
            geometry = Brush(as_rle(geometry.rle))
            rle_toggles(geometry.rle)
        written = geometry_to_json(geometry)
        if written | given != written:  # it has more, which may be nothing that JSON can hold
            raise TypeError
        for value in _numbers(geometry):
            if type(value) not in (int, float):
                raise TypeError
            if not math.isfinite(value):
                raise ValueError("a number that is not finite")
        return geometry, geometry_to_rle(geometry, size)
    except (LookupError, TypeError, ValueError, AttributeError, OverflowError, RecursionError) as error:
        said = str(error) if type(error) is ValueError else "a member is missing or of another kind"
        raise InvalidInput(
            f"the geometry of label {number} is no shape on this image: {said[:200]}"
        ) from error


def _numbers(geometry: Geometry) -> Iterable[Any]:
    """Everything that stands for a number, except in a brush."""
    match geometry:
        case Brush():
            return ()
        case Polygon(rings):
            return chain.from_iterable(chain.from_iterable(rings))
        case Rectangle(box, rotation):
            return *box, rotation
        case Ellipse(centre, radii, rotation):
            return *centre, *radii, rotation
