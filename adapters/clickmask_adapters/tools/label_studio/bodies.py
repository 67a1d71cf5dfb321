"""The JSON of Label Studio's calls, for the description at /v1/openapi.json alone: `clicks` and
`label_config` read bodies, `clicks` and `prelabel` make answers. What is not listed here is ignored."""

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from clickmask_adapters.server.openapi import EXAMPLE_PNG

Project = Annotated[
    str | int, Field(description="Its number; Label Studio adds the time it was made: 1.1795370196")
]
Side = Annotated[int, Field(gt=0, description="Pixels of the image, as displayed")]


class ExtraParams(BaseModel):
    segmenter: Annotated[str | None, Field(description="A name from /versions; null: the default")] = None
    controls: Annotated[
        dict[str, Any] | None,
        Field(description="Wishes about the masks, as `controls` of /v1/proposals takes them"),
    ] = None


class SetupIn(BaseModel):
    project: Project
    extra_params: Annotated[
        ExtraParams | str | None, Field(description="Of the backend's settings; JSON, or its text")
    ] = None


class Out(BaseModel):
    """An answer with names that begin with `model_`, which older versions of pydantic keep for themselves."""

    model_config = ConfigDict(protected_namespaces=())


class SetupOut(Out):
    model_version: Annotated[str, Field(description="The segmenter, and the served model's version if any")]


class HealthOut(Out):
    status: Literal["UP"]
    model_class: Literal["clickmask"]


class VersionsOut(BaseModel):
    versions: Annotated[list[str], Field(description="The segmenters that are ready")]


class Task(BaseModel):
    id: int
    data: Annotated[dict[str, Any], Field(description="Holds the image's address, as the label config says")]


class Mark(BaseModel):
    """A smart point or rectangle, or the `labels` of one with the same id."""

    type: Annotated[str, Field(description="keypoint, keypointlabels, rectangle, rectanglelabels or labels")]
    value: Annotated[dict[str, Any], Field(description="x, y, width, height in percent; the labels")]
    to_name: str
    from_name: str
    original_width: Side
    original_height: Side
    id: str = ""
    is_positive: Annotated[bool | None, Field(description="False: the point is not on the object")] = None
    item_index: Annotated[int | None, Field(ge=0, description="Among several images of a task")] = None


class Context(BaseModel):
    result: list[Mark]


class Params(BaseModel):
    context: Annotated[Context | None, Field(description="Null: nobody clicked, predictions are wanted")] = (
        None
    )


class PredictIn(BaseModel):
    project: Project
    label_config: Annotated[str, Field(description="The project's labeling interface, XML")]
    tasks: Annotated[list[Task], Field(min_length=1, description="One if somebody clicked")]
    params: Params | None = None


class RegionOut(BaseModel):
    id: str
    type: Annotated[str, Field(description="brushlabels, polygonlabels, bitmasklabels, rectanglelabels …")]
    from_name: str
    to_name: str
    original_width: int
    original_height: int
    image_rotation: float
    score: float
    value: Annotated[dict[str, Any], Field(description="As Label Studio stores regions of this type")]
    item_index: int | None = None


class PredictionOut(Out):
    result: Annotated[list[RegionOut], Field(description="Empty: nothing was found")]
    score: float
    model_version: str


class PredictOut(BaseModel):
    results: Annotated[
        list[PredictionOut], Field(description="One for each task; empty if no model predicts yet")
    ]


class EventIn(BaseModel):
    """Any JSON object. It is kept as it came, and read later."""


class KeptOut(BaseModel):
    status: Literal["kept"]


class TrainingOut(KeptOut):
    job: Annotated[str, Field(description="Its id, for /v1/jobs")]


LABEL_CONFIG = (
    '<View><Image name="image" value="$image"/>'
    '<BrushLabels name="brush" toName="image"><Label value="Square"/></BrushLabels>'
    '<KeyPointLabels name="point" toName="image" smart="true"><Label value="Square"/></KeyPointLabels></View>'
)
TASK = {"id": 1, "data": {"image": f"data:image/png;base64,{EXAMPLE_PNG}"}}
CLICK = {
    "type": "keypointlabels",
    "value": {"x": 50, "y": 50, "width": 0.3, "keypointlabels": ["Square"]},
    "to_name": "image",
    "from_name": "point",
    "original_width": 64,
    "original_height": 48,
    "id": "a",
    "is_positive": True,
}
SETUP = {"project": "1.1795370196", "extra_params": '{"segmenter": "builtin"}'}
OPENED = {"project": "1.1795370196", "label_config": LABEL_CONFIG, "tasks": [TASK]}
CLICKED = {**OPENED, "params": {"context": {"result": [CLICK]}}}
EVENT = {"action": "ANNOTATION_CREATED", "project": {"id": 1}, "annotation": {"id": 7}, "task": {"id": 1}}
