"""Projects of the labeling tools, their accepted labels, trainings and models: /v1/projects and /v1/jobs."""

from dataclasses import asdict
from http import HTTPStatus
from typing import Annotated, Any

from fastapi import APIRouter, Query, Response

from clickmask.errors import NotFound
from clickmask.labels.geometry import geometry_to_json
from clickmask.labels.submissions import AcceptedLabel
from clickmask.masks.regions import mask_area, mask_box
from clickmask.masks.rle import rle_to_mask
from clickmask.models.versions import Models, ModelVersion, ProjectModels
from clickmask.workbench import Workbench
from clickmask_adapters.api import json_response

MAX_LABELS = 10_000


def router(workbench: Workbench, models: ProjectModels) -> APIRouter:
    routes = APIRouter(prefix="/v1")

    @routes.get("/projects", summary="The projects whose labels are kept here")
    def projects() -> Response:
        return json_response({"projects": [asdict(project) for project in workbench.projects()]})

    @routes.get("/projects/{tool}/{project}/labels", summary="The accepted labels of a project")
    def labels(
        tool: str,
        project: str,
        all_annotations: Annotated[
            bool, Query(description="Every annotator's; else the ground truth's, or the newest one's.")
        ] = False,
        offset: Annotated[int, Query(ge=0)] = 0,
        limit: Annotated[int, Query(ge=1, le=MAX_LABELS)] = 1000,
    ) -> Response:
        found = workbench.labels(tool, project, all_annotations)
        page = [_described_label(label) for label in found[offset : offset + limit]]
        return json_response({"total": len(found), "offset": offset, "labels": page})

    def of(tool: str, project: str) -> Models:
        workbench.require_project(tool, project)
        return models.of(tool, project)

    @routes.post(
        "/projects/{tool}/{project}/train",
        status_code=HTTPStatus.ACCEPTED,
        summary="Train a model on the accepted labels; the id of the job, which may be under way already",
    )
    def train(tool: str, project: str) -> Response:
        return json_response({"job": workbench.retrain(tool, project).id}, HTTPStatus.ACCEPTED)

    @routes.get("/projects/{tool}/{project}/report", summary="How good the model in service is")
    def report(tool: str, project: str) -> Response:
        return json_response(describe_report(of(tool, project)))

    @routes.get("/projects/{tool}/{project}/versions", summary="Every model of the project, oldest first")
    def versions(tool: str, project: str) -> Response:
        kept = of(tool, project)
        served = kept.served()
        described = [_described_model(version) for version in kept.versions()]
        return json_response({"served": served.id if served else None, "versions": described})

    @routes.post("/projects/{tool}/{project}/rollback", summary="Serve the model that was served before")
    def rollback(tool: str, project: str) -> Response:
        return json_response({"served": of(tool, project).roll_back().id})

    @routes.get("/jobs/{id}", summary="How far a training is")
    def job(id: str) -> Response:  # noqa: A002 - the path's word
        return json_response(asdict(workbench.supervisor.jobs.get(id)))

    @routes.delete("/jobs/{id}", summary="Cancel a training")
    def cancel(id: str) -> Response:  # noqa: A002 - the path's
        return json_response(asdict(workbench.supervisor.jobs.cancel(id)))

    return routes


def describe_report(models: Models) -> dict[str, Any]:
    """The served version's report as JSON. Raises NotFound if there is none."""
    served = models.served()
    if served is None:
        raise NotFound(f"no model of this project is served yet: {models.why_not_served()}")
    return {"version": served.id, "dataset": served.provenance.dataset_digest, **served.provenance.report}


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
    mask = rle_to_mask(label.rle)
    return {
        **asdict(label.key),
        "image": label.image,
        "size": label.size,
        "category": label.category,
        "area": mask_area(mask),
        "box": mask_box(mask),
        "geometry": geometry_to_json(label.geometry),
        "rle": label.rle,
        "accepted_at": label.accepted_at,
        "proposal": label.proposal,
    }
