"""What a webhook of CVAT means for accepted labels. Pure; as CVAT 2.73.0 sends them.

An event carries no annotation. It says that a job changed, and every save of an annotator is one: only
where the job is accepted now are its labels worth fetching.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any, cast

from clickmask.errors import InvalidRequest
from clickmask.labels import AnnotationDeleted, Deleted, ProjectDeleted, TaskDeleted

TOOL = "cvat"

Json = Mapping[str, Any]


@dataclass(frozen=True)
class JobAccepted:
    """The labels of a job are to be fetched; a delivery that is repeated is equal to the first."""

    job: int
    updated_at: float  # seconds since 1970, by CVAT's clock


@dataclass(frozen=True)
class JobRejected:
    """What was accepted of a job is withdrawn, until it is accepted anew."""

    job: int
    updated_at: float  # seconds since 1970, by CVAT's clock


Meaning = JobAccepted | JobRejected | Deleted


def is_accepted(job: Json) -> bool:
    """Whether the labels of a job count: its annotator completed it, or it is in acceptance.

    Both are looked at: the UI can set one back and leave the other (cvat-ai/cvat#7206). A rejected
    job counts in no stage.
    """
    return job.get("state") == "completed" or (job.get("stage") == "acceptance" and not is_rejected(job))


def is_rejected(job: Json) -> bool:
    return job.get("state") == "rejected"


def meaning(event: Json) -> Meaning | None:
    """What an event of a webhook means for accepted labels; None: nothing.

    Raises InvalidRequest where an event that would mean something lacks what it must have.
    """
    match event.get("event"):
        case "update:job":
            job = described(event, "job")
            if is_accepted(job):
                return JobAccepted(number(job), timestamp(job))
            changed = event.get("changes") or event.get("before_update")
            judged = isinstance(changed, dict) and bool({"state", "stage"} & changed.keys())
            if is_rejected(job) and judged:
                return JobRejected(number(job), timestamp(job))
            return None
        case "delete:job":
            return AnnotationDeleted(TOOL, str(number(described(event, "job"))))
        case "delete:task":
            return TaskDeleted(TOOL, str(number(described(event, "task"))))
        case "delete:project":  # only webhooks of an organization are told
            return ProjectDeleted(TOOL, str(number(described(event, "project"))))
        case _:
            return None


def timestamp(row: Json) -> float:
    """When a row of CVAT was updated, in seconds since 1970. Raises InvalidRequest where it does not say."""
    try:
        return datetime.fromisoformat(row["updated_date"]).timestamp()
    except (KeyError, TypeError, ValueError) as error:
        raise InvalidRequest(f"CVAT does not say when it was updated: {row.get('updated_date')!r}") from error


def number(row: Json) -> int:
    found = row.get("id")
    if not isinstance(found, int) or isinstance(found, bool):
        raise InvalidRequest(f"CVAT names something by {found!r}, not by a number")
    return found


def described(event: Json, resource: str) -> Json:
    row = event.get(resource)
    if not isinstance(row, dict):
        raise InvalidRequest(f"an event of CVAT lacks its {resource}")
    return cast("Json", row)
