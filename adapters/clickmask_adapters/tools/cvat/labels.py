"""What CVAT's API says of an accepted job, in the domain's words. Pure; as CVAT 2.73.0 has it.

What a webhook of CVAT means for accepted labels. Pure; as CVAT 2.73.0 sends them.

An event carries no annotation. It says that a job changed, and every save of an annotator is one: only
where the job is accepted now are its labels worth fetching.
"""

from __future__ import annotations

import logging
import re
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from itertools import zip_longest
from pathlib import PurePosixPath
from typing import Any, cast

from clickmask.errors import InvalidRequest
from clickmask.labels.geometry import Brush, Ellipse, Geometry, Polygon, Rectangle
from clickmask.labels.submissions import (
    AnnotationDeleted,
    Deleted,
    ProjectDeleted,
    Region,
    Submission,
    TaskDeleted,
    Unreadable,
)
from clickmask.masks.rle import mask_to_rle
from clickmask.types import Size
from clickmask_adapters.tools.cvat.mask_points import points_to_mask

log = logging.getLogger(__name__)
AREAS = frozenset({"mask", "polygon", "rectangle", "ellipse"})
MAX_COORDINATE_PX = 1e9  # pixels; beyond any image that is decoded
COUNTED_JOBS = frozenset({None, "annotation", "ground_truth"})  # a consensus replica is no result yet
Json = Mapping[str, Any]


@dataclass(frozen=True)
class JobContent:
    """The answers of CVAT's API about one job, as they came."""

    job: Json
    meta: Json
    labels: Sequence[Json]
    annotations: Json


@dataclass(frozen=True)
class Frame:
    """`number` counts in the task, as shapes do; `size` is upright, as displayed."""

    number: int
    name: str
    size: Size
    deleted: bool
    of_video: bool


def readable(content: JobContent) -> Sequence[Submission | Unreadable]:
    """Its submissions, else why there are none: what one job holds must not keep the others out."""
    name = f"job {str(content.job.get('id'))[:40]}"
    try:
        return submissions(content)
    except InvalidRequest as error:
        return [Unreadable(f"{name}: {error}")]
    except Exception as error:  # CVAT says what nobody has thought of
        log.exception("%s: %s cannot be read", TOOL, name)
        return [Unreadable(f"{name} cannot be read ({type(error).__name__}); clickmask's log says why")]


def submissions(content: JobContent) -> list[Submission | Unreadable]:
    """One Submission for each frame of an accepted job, also where nothing was marked on it.

    A job that is not accepted gives nothing at all, so neither what a model drew into it. Skipped, so
    that nothing stands of what was accepted before, are: all frames of a rejected job; deleted ones;
    those on which a track is seen without a keyframe (CVAT keeps the keyframes alone, and an image
    that lacks an object would teach that there is none); and of a video those without a shape, which
    are thousands and like their neighbours. What marks no area (points, lines, cuboids, skeletons)
    is left out, and logged. A frame on which a shape is damaged is Unreadable: a part of its labels
    would teach that there is nothing else on it.
    """
    job = content.job
    if (
        not (is_accepted(job) or is_rejected(job))
        or job.get("type") not in COUNTED_JOBS
        or job.get("dimension") == "3d"
    ):
        return []
    names = {label["id"]: str(label["name"]) for label in content.labels}
    shapes, incomplete = _shapes(content.annotations, job["stop_frame"])
    left_out = Counter[str]()
    found: list[Submission | Unreadable] = []
    for frame in frames(content):
        drawn = shapes[frame.number]
        unclear = frame.deleted or frame.number in incomplete or (frame.of_video and not drawn)
        skipped = unclear or is_rejected(job)
        try:
            regions = () if skipped else tuple(_regions(drawn, names, frame.size, left_out))
        except InvalidRequest as error:
            found.append(Unreadable(f"job {job['id']}, frame {frame.number}: {error}"))
        else:
            found.append(_submission(job, frame, regions, skipped))
    if left_out:
        log.info("%s: job %s: left out %s", TOOL, job["id"], dict(left_out))
    return found


def project_of(row: Json) -> str:
    """The project of a job or a task, `task-<id>` where there is none."""
    project = row.get("project_id")
    return str(project) if project is not None else f"task-{row.get('task_id', row.get('id'))}"


def frame_address(job: int, frame: int) -> str:
    """Where CVAT gives the frame as it was uploaded, turned upright."""
    return f"/api/jobs/{job}/data?type=frame&number={frame}&quality=original"


def frames(content: JobContent) -> Iterator[Frame]:
    """The frames of the job. A video is described once for all of them; a job may lack some in between."""
    job, meta = content.job, content.meta
    first, last = job["start_frame"], job["stop_frame"]
    described = meta["frames"]
    of_video = len(described) == 1 and last > first
    included = _included(meta, first)
    deleted: set[int] = set(meta.get("deleted_frames") or ())
    for number in range(first, last + 1):
        if included is not None and number not in included:
            continue
        about = described[0 if of_video else number - first]
        path = PurePosixPath(about["name"])
        name = f"{path.stem}-{number:06d}.png" if of_video else path.name
        yield Frame(number, name, (about["height"], about["width"]), number in deleted, of_video)


def _included(meta: Json, first: int) -> set[int] | None:
    """Which frames a job has that has not all; CVAT counts these in the uploaded data, before its step."""
    included = meta.get("included_frames")
    if included is None:
        return None
    stepped = re.search(r"step=(\d+)", meta.get("frame_filter") or "")
    step = int(stepped[1]) if stepped else 1
    return {first + (number - meta["start_frame"]) // step for number in included}


def _shapes(annotations: Json, last: int) -> tuple[dict[int, list[Json]], set[int]]:
    """Shapes and keyframes by frame, and the frames on which a track is seen without a keyframe."""
    found: defaultdict[int, list[Json]] = defaultdict(list)
    incomplete: set[int] = set()
    for shape in annotations.get("shapes") or ():
        found[shape["frame"]].append({**shape, "id": str(shape["id"])})
    for track in annotations.get("tracks") or ():
        keyframes: list[Json] = sorted(track.get("shapes") or (), key=lambda shape: shape["frame"])
        for keyframe, after in zip_longest(keyframes, keyframes[1:]):
            if keyframe.get("outside") or keyframe["type"] not in AREAS:
                continue
            # Keyframes are numbered apart from shapes, so that one number may stand for both.
            named = {"id": f"track-{keyframe['id']}", "label_id": track["label_id"]}
            found[keyframe["frame"]].append({**keyframe, **named})
            incomplete.update(range(keyframe["frame"] + 1, after["frame"] if after else last + 1))
    return found, incomplete


def _submission(job: Json, frame: Frame, regions: tuple[Region, ...], skipped: bool) -> Submission:
    assignee: Json | None = job.get("assignee")
    return Submission(
        tool=TOOL,
        project=project_of(job),
        task=str(job["task_id"]),
        annotation=str(job["id"]),
        address=frame_address(job["id"], frame.number),
        name=frame.name,
        size=frame.size,
        regions=regions,
        updated_at=timestamp(job),
        author=assignee["username"] if assignee else "",
        item=frame.number,
        ground_truth=job.get("type") == "ground_truth",
        skipped=skipped,
    )


def _regions(
    shapes: Sequence[Json], names: Mapping[int, str], size: Size, left_out: Counter[str]
) -> Iterator[Region]:
    """Lowest first: what lies above another in CVAT comes after it. Raises InvalidRequest."""
    for shape in sorted(shapes, key=lambda shape: shape.get("z_order") or 0):
        kind = str(shape["type"])
        if kind not in AREAS:
            left_out[kind] += 1
            continue
        category = names.get(shape["label_id"])
        if category is None:
            raise InvalidRequest(f"{kind} {shape['id']} has a label that its job has not")
        try:
            drawn = geometry(shape, size)
        except (ValueError, TypeError, LookupError) as error:
            raise InvalidRequest(f"{kind} {shape['id']} is damaged: {error}") from error
        yield Region(shape["id"], category, drawn)


def geometry(shape: Json, size: Size) -> Geometry:
    """What was drawn, in an image of `size`; it may cover no pixel.

    CVAT's coordinates are in our frame already: pixels from the outer corner of the image's first.
    Raises ValueError, TypeError or LookupError where it is damaged: CVAT 2.73 stores a wrong box of a
    mask as it comes, for one.
    """
    kind, points = shape["type"], shape["points"]
    if kind == "mask":
        return Brush(mask_to_rle(points_to_mask(points, size)))
    rotation = float(shape.get("rotation") or 0.0)
    if not all(abs(number) < MAX_COORDINATE_PX for number in (*points, rotation)):
        raise ValueError("it has a number that is none of an image")
    match kind, points:
        case "polygon", [_, _, _, _, _, _, *_] if len(points) % 2 == 0:
            return Polygon((tuple(zip(points[::2], points[1::2], strict=True)),))
        case "rectangle", [x0, y0, x1, y1]:
            return Rectangle((min(x0, x1), min(y0, y1), max(x0, x1), max(y0, y1)), rotation)
        case "ellipse", [x, y, right, top]:
            return Ellipse((x, y), (abs(right - x), abs(y - top)), rotation)
        case _:
            raise ValueError(f"a {kind} of {len(points)} numbers")


TOOL = "cvat"


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
