"""Projects of the labeling tools, their accepted labels, trainings and models: /v1/projects and /v1/jobs."""

from dataclasses import asdict
from http import HTTPStatus
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Path, Query, Response
from pydantic import BaseModel, ConfigDict, Field

from clickmask.errors import Conflict, Failed, InvalidRequest, NotFound, NotReady, StoreUnavailable
from clickmask.labels.geometry import geometry_to_json
from clickmask.labels.submissions import AcceptedLabel
from clickmask.masks.rle import rle_area, rle_box
from clickmask.models.versions import Models, ModelVersion, ProjectModels
from clickmask.store import Project
from clickmask.store.jobs import Job
from clickmask.training import networks
from clickmask.workbench import Workbench
from clickmask_adapters.api import ProjectName, ToolName, json_response
from clickmask_adapters.api.proposals import Box, RleOut
from clickmask_adapters.server.openapi import raises

MAX_LABELS = 10_000
MAX_OFFSET = 2**53  # beyond any number of labels, and within what JSON can write
PROJECT = "/projects/{tool}/{project}"
# From the answer of a training's start to the operations on its job, by their ids.
JOB_LINKS = {
    name: {"operationId": name, "parameters": {"id": "$response.body#/job"}} for name in ("job", "cancel_job")
}
Point = tuple[float, float]
JobId = Annotated[str, Path(description="As the answer of a training's start names it")]


class ProjectsOut(BaseModel):
    projects: list[Project]


class BrushOut(BaseModel):
    kind: Literal["brush"]
    rle: RleOut


class RingsOut(BaseModel):
    """Even-odd rule: a hole is a ring inside a ring."""

    kind: Literal["polygon"]
    rings: list[list[Point]]


class RectangleOut(BaseModel):
    """A box that is turned clockwise about its centre."""

    kind: Literal["rectangle"]
    box: Box
    rotation: Annotated[float, Field(description="Degrees")]


class EllipseOut(BaseModel):
    """An ellipse that is turned clockwise about its centre."""

    kind: Literal["ellipse"]
    centre: Point
    radii: Annotated[tuple[float, float], Field(description="Semi-axes along x and y")]
    rotation: Annotated[float, Field(description="Degrees")]


class LabelOut(BaseModel):
    tool: str
    project: str
    task: str
    annotation: str
    region: Annotated[str, Field(description="Tells the labels of an annotation apart")]
    image: Annotated[str, Field(description="Digest")]
    size: Annotated[tuple[int, int], Field(description="height, width")]
    category: str
    area: Annotated[int, Field(description="Pixels")]
    box: Annotated[Box | None, Field(description="x0, y0, x1, y1; null: no pixel")]
    geometry: Annotated[
        BrushOut | RingsOut | RectangleOut | EllipseOut, Field(description="As it was drawn, in pixels")
    ]
    rle: Annotated[RleOut, Field(description="The pixels that the geometry covers")]
    accepted_at: Annotated[float, Field(description="Seconds since 1970, by the tool's clock")]
    proposal: Annotated[str | None, Field(description="The proposal that it came from, if any")]


class LabelsOut(BaseModel):
    total: int
    offset: int
    labels: list[LabelOut]


class TrainingOut(BaseModel):
    job: Annotated[str, Field(description="Its id, for /v1/jobs")]


class ServedOut(BaseModel):
    served: Annotated[str, Field(description="Id of the version that is served now")]


class IntervalOut(BaseModel):
    """A measured value, and percentiles of what other images of the same kind would have given."""

    estimate: float | None
    low: float | None
    high: float | None


class MeasuresOut(BaseModel):
    """Null: nothing to measure. Values by category leave out the absent ones."""

    images: int
    miou: Annotated[float | None, Field(description="From one confusion matrix over all images")]
    interval: IntervalOut
    miou_with_background: float | None
    per_image_miou: float | None
    iou: dict[str, float | None]
    dice: dict[str, float | None]
    pixel_accuracy: float | None
    boundary_f1: float | None
    boundary_iou: float | None
    absent: Annotated[list[str], Field(description="Categories without any measure")]
    boundary_tolerance: Annotated[float, Field(description="Of boundary F1, as a share of the diagonal")]


class ModelReportOut(MeasuresOut):
    """How good a model was when it was trained, on images that it was not trained on."""

    model_config = ConfigDict(extra="allow")  # as an older or a newer clickmask wrote it
    split: Annotated[str, Field(description="test or cross-validation: what it was measured on")]
    too_few: Annotated[str, Field(description="Why these numbers say little")] = ""
    validation: Annotated[MeasuresOut | None, Field(description="On the images that chose the step")] = None
    decision: Annotated[str, Field(description="Why it is served, or why not")] = ""
    promoted: bool = False
    step: Annotated[int, Field(description="Whose weights were kept")] = 0
    stopped: Annotated[str, Field(description="Why the training ended")] = ""
    parameters: Annotated[int | None, Field(description="Number of the network's weights")] = None
    started_from: Annotated[str, Field(description="Weights before the training, with their licence")] = ""
    device: Annotated[str, Field(description="cpu, cuda or mps: what trained it")] = ""


class ReportOut(ModelReportOut):
    version: Annotated[str, Field(description="The version that is served")]
    network: Annotated[str, Field(description="Its name, as in CLICKMASK_NETWORK")]
    dataset: Annotated[str, Field(description="Digest of the dataset it was trained on")]


class VersionOut(BaseModel):
    version: str
    made_at: Annotated[str, Field(description="ISO 8601, UTC")]
    network: str
    categories: list[str]
    dataset: Annotated[str, Field(description="Digest of the dataset it was trained on")]
    images: Annotated[dict[str, int], Field(description="Numbers of images by side of the split")]
    parent: Annotated[str | None, Field(description="The version that was served when this one was made")]
    seed: int
    packages: Annotated[dict[str, str], Field(description="Versions of the packages that trained it")]
    report: dict[str, Any]


class VersionsOut(BaseModel):
    served: Annotated[str | None, Field(description="Null: none is served yet")]
    versions: list[VersionOut]


def router(workbench: Workbench, models: ProjectModels) -> APIRouter:
    routes = APIRouter(prefix="/v1")
    reads, serves = raises(NotFound, StoreUnavailable), raises(NotFound, StoreUnavailable, Failed)

    @routes.get(
        "/projects",
        response_model=ProjectsOut,
        tags=["labels"],
        summary="The projects whose labels are kept here",
        responses=raises(StoreUnavailable),
    )
    def projects() -> Response:
        """Every project of which a labeling tool has sent or shown anything, with the size of its labels."""
        return json_response({"projects": [asdict(project) for project in workbench.projects()]})

    @routes.get(
        PROJECT + "/labels",
        response_model=LabelsOut,
        tags=["labels"],
        summary="The accepted labels of a project",
        responses=reads,
    )
    def labels(
        tool: ToolName,
        project: ProjectName,
        all_annotations: Annotated[
            bool, Query(description="Every annotator's; else the ground truth's, or the newest one's.")
        ] = False,
        offset: Annotated[int, Query(ge=0, le=MAX_OFFSET, description="Labels to leave out")] = 0,
        limit: Annotated[int, Query(ge=1, le=MAX_LABELS, description="At most so many")] = 1000,
    ) -> Response:
        """A page of the labels, each as it was drawn and as pixels. An image that several annotators have
        labelled has the labels of one of them, unless all are asked for."""
        found = workbench.labels(tool, project, all_annotations)
        page = [_described_label(label) for label in found[offset : offset + limit]]
        return json_response({"total": len(found), "offset": offset, "labels": page})

    def of(tool: str, project: str) -> Models:
        workbench.require_project(tool, project)
        return models.of(tool, project)

    @routes.post(
        PROJECT + "/train",
        status_code=HTTPStatus.ACCEPTED,
        response_model=TrainingOut,
        tags=["training"],
        summary="Train a model on the accepted labels",
        responses=raises(NotFound, NotReady, StoreUnavailable, InvalidRequest, Conflict)
        | {202: {"links": JOB_LINKS}},
    )
    def train(
        tool: ToolName,
        project: ProjectName,
        network: Annotated[
            str,
            Query(
                description="Name of a network, such as unet_lite; empty: the one of the settings",
                json_schema_extra={"enum": ["", *networks.names()]},
            ),
        ] = "",
    ) -> Response:
        """The answer comes at once, with the id of the job: a new one, or the one that is under way already;
        409 if that trains another network. The model is served if it is not notably worse than the one
        before."""
        return json_response({"job": workbench.retrain(tool, project, network).id}, HTTPStatus.ACCEPTED)

    @routes.get(
        PROJECT + "/report",
        response_model=ReportOut,
        tags=["training"],
        summary="How good the model in service is",
        responses=serves,
    )
    def report(tool: ToolName, project: ProjectName) -> Response:
        """Measures on images that the model was not trained on. 404 if no model is served yet."""
        return json_response(describe_report(of(tool, project)))

    @routes.get(
        PROJECT + "/versions",
        response_model=VersionsOut,
        tags=["training"],
        summary="Every model of the project, oldest first",
        responses=serves,
    )
    def versions(tool: ToolName, project: ProjectName) -> Response:
        """The versions that are kept, with what each was trained on, its report, and which one is served."""
        kept = of(tool, project)
        served = kept.served()
        described = [_described_model(version) for version in kept.versions()]
        return json_response({"served": served.id if served else None, "versions": described})

    @routes.post(
        PROJECT + "/rollback",
        response_model=ServedOut,
        tags=["training"],
        summary="Serve the model that was served before",
        responses=serves,
    )
    def rollback(tool: ToolName, project: ProjectName) -> Response:
        """Each call goes back one more version. 404 if none was served before."""
        return json_response({"served": of(tool, project).roll_back().id})

    @routes.get(
        "/jobs/{id}",
        response_model=Job,
        tags=["training"],
        summary="How far a training is",
        responses=reads,
        operation_id="job",
    )
    def job(id: JobId) -> Response:  # noqa: A002 - the path's word
        """State, step, loss and the time that is left. Old jobs that ended are forgotten."""
        return json_response(asdict(workbench.supervisor.jobs.get(id)))

    @routes.delete(
        "/jobs/{id}",
        response_model=Job,
        tags=["training"],
        summary="Cancel a training",
        responses=reads,
        operation_id="cancel_job",
    )
    def cancel(id: JobId) -> Response:  # noqa: A002 - the path's
        """The answer is the job as it is now; one that is running ends a moment later. A job that ended
        already is not changed."""
        return json_response(asdict(workbench.supervisor.jobs.cancel(id)))

    return routes


def describe_report(models: Models) -> dict[str, Any]:
    """The served version's report as JSON. Raises NotFound if there is none."""
    served = models.served()
    if served is None:
        raise NotFound(f"no model of this project is served yet: {models.why_not_served()}")
    provenance = served.provenance
    about = {"version": served.id, "network": provenance.network, "dataset": provenance.dataset_digest}
    return {**about, **provenance.report}


def _described_model(version: ModelVersion) -> dict[str, Any]:
    provenance = version.provenance
    return {
        "version": version.id,
        "made_at": version.made_at,
        "network": provenance.network,
        "categories": provenance.categories,
        "dataset": provenance.dataset_digest,
        "images": {side: len(images) for side, images in provenance.split.items()},
        "parent": version.parent,
        "seed": provenance.seed,
        "packages": version.packages,
        "report": provenance.report,
    }


def _described_label(label: AcceptedLabel) -> dict[str, Any]:
    area = rle_area(label.rle)  # without drawing the mask: there may be thousands of large ones
    left, top, width, height = rle_box(label.rle)
    return {
        **asdict(label.key),
        "image": label.image,
        "size": label.size,
        "category": label.category,
        "area": area,
        "box": [left, top, left + width, top + height] if area else None,
        "geometry": geometry_to_json(label.geometry),
        "rle": label.rle,
        "accepted_at": label.accepted_at,
        "proposal": label.proposal,
    }
