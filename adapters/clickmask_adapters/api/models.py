"""Trainings and models of projects, under /v1/projects and /v1/jobs."""

from __future__ import annotations

from dataclasses import asdict
from http import HTTPStatus
from typing import Any

from fastapi import APIRouter, Response

from clickmask.errors import NotFound
from clickmask.models.labeller import ProjectModels
from clickmask.models.versions import Models, ModelVersion
from clickmask.workbench import Workbench
from clickmask_adapters.api._json import json_response


def router(workbench: Workbench, models: ProjectModels) -> APIRouter:
    routes = APIRouter(prefix="/v1")

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
        described = [_described(version) for version in kept.versions()]
        return json_response({"served": served.id if served else None, "versions": described})

    @routes.post("/projects/{tool}/{project}/rollback", summary="Serve the model that was served before")
    def rollback(tool: str, project: str) -> Response:
        return json_response({"served": of(tool, project).roll_back().id})

    @routes.get("/jobs/{id}", summary="How far a training is")
    def job(id: str) -> Response:  # noqa: A002 - the path's word
        return json_response(asdict(workbench.job(id)))

    @routes.delete("/jobs/{id}", summary="Cancel a training")
    def cancel(id: str) -> Response:  # noqa: A002 - the path's
        return json_response(asdict(workbench.cancel_job(id)))

    return routes


def describe_report(models: Models) -> dict[str, Any]:
    """The served version's report as JSON. Raises NotFound if there is none."""
    served = models.served()
    if served is None:
        raise NotFound("no model of this project is served yet: train one")
    return {"version": served.id, "dataset": served.provenance.dataset_digest, **served.provenance.report}


def _described(version: ModelVersion) -> dict[str, Any]:
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
