"""The projects of the labeling tools and their accepted labels, under /v1/projects."""

from __future__ import annotations

from dataclasses import asdict
from typing import Annotated, Any

from fastapi import APIRouter, Query, Response

from clickmask.labels.geometry import geometry_to_json
from clickmask.labels.submissions import AcceptedLabel
from clickmask.masks.regions import mask_area, mask_box
from clickmask.masks.rle import rle_to_mask
from clickmask.workbench import Workbench
from clickmask_adapters.api._json import json_response

MAX_LABELS = 10_000


def router(workbench: Workbench) -> APIRouter:
    routes = APIRouter(prefix="/v1/projects")

    @routes.get("", summary="The projects whose labels are kept here")
    def projects() -> Response:
        return json_response({"projects": [asdict(project) for project in workbench.projects()]})

    @routes.get("/{tool}/{project}/labels", summary="The accepted labels of a project")
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
        page = [_written(label) for label in found[offset : offset + limit]]
        return json_response({"total": len(found), "offset": offset, "labels": page})

    return routes


def _written(label: AcceptedLabel) -> dict[str, Any]:
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
