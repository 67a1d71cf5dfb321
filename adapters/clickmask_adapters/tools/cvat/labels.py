"""CVAT's jobs as submissions, and its events as changes, as of CVAT 2.73.0. Pure. Events carry no annotation:
every save sends one, and labels are worth fetching only if the job is accepted."""

import logging
import re
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from itertools import zip_longest
from pathlib import PurePosixPath

import numpy as np

from clickmask.errors import InvalidRequest
from clickmask.labels.geometry import Brush, Ellipse, Geometry, Polygon, Rectangle, rasterise
from clickmask.labels.submissions import (
    AnnotationDeleted,
    Deleted,
    ProjectDeleted,
    Region,
    Submission,
    TaskDeleted,
    Unreadable,
)
from clickmask.masks.regions import mask_area
from clickmask.masks.rle import mask_to_rle
from clickmask.types import Size
from clickmask_adapters.tools._json import Json, as_id, as_object, as_size, text_of
from clickmask_adapters.tools.cvat.mask_points import points_to_mask

log = logging.getLogger(__name__)
TOOL = "cvat"
AREAS = frozenset({"mask", "polygon", "rectangle", "ellipse"})
MAX_COORDINATE_PX = 1e9  # beyond any image that is decoded
MAX_FRAMES = 10**6  # of a job: nine hours of video
COUNTED_JOBS = frozenset({None, "annotation", "ground_truth"})  # a consensus replica is not a result yet
# Only webhooks of an organization tell of a deleted project.
DELETED = {"job": AnnotationDeleted, "task": TaskDeleted, "project": ProjectDeleted}


@dataclass(frozen=True)
class JobJudged:
    """A job that was accepted, whose labels are to be fetched, or rejected, which withdraws them until it is
    accepted again. A repeated delivery equals the first."""

    job: int
    updated_at: float  # seconds since 1970, by CVAT's clock


@dataclass(frozen=True)
class JobContent:
    """The answers of CVAT's API about one job, as they came."""

    job: Json
    meta: Json
    labels: Sequence[Json]
    annotations: Json


@dataclass(frozen=True)
class Frame:
    """A frame of a job. `number` counts in the task, as shapes do; `size` is upright, as displayed."""

    number: int
    name: str
    known_as: str  # in CVAT's own exports and imports
    size: Size
    deleted: bool
    of_video: bool


def readable(content: JobContent) -> Sequence[Submission | Unreadable]:
    """The submissions of a job. An unreadable job is one Unreadable, and does not keep the others out."""
    name = f"job {text_of(content.job.get('id'))[:40]}"
    try:
        return submissions(content)
    except InvalidRequest as error:
        return [Unreadable(f"{name}: {error}")]
    except Exception as error:  # CVAT may send something unforeseen
        log.exception("%s: %s cannot be read", TOOL, name)
        return [Unreadable(f"{name} cannot be read ({type(error).__name__}); clickmask's log says why")]


def submissions(content: JobContent) -> list[Submission | Unreadable]:
    """One Submission per frame of an accepted job, even if nothing was marked on it.

    A job that is neither accepted nor rejected gives nothing, not even shapes that a model drew in it.
    Skipping a frame withdraws what was accepted on it before. These are skipped:
    - frames of a rejected job, and deleted frames;
    - frames where a track has no keyframe: CVAT keeps only keyframes, and the frame would lack the object;
    - frames of a video without a shape: there are thousands, all like their neighbours.
    Shapes without an area (points, lines, cuboids, skeletons) are left out and counted. So are damaged ones;
    each gets an Unreadable as well.
    """
    job = content.job
    judged = is_accepted(job) or is_rejected(job)
    if not judged or job.get("type") not in COUNTED_JOBS or job.get("dimension") == "3d":
        return []
    names = {label["id"]: text_of(label["name"]) for label in content.labels}
    first, last = _range(job)
    shapes, incomplete = _shapes(content.annotations, first, last)
    number, updated_at = as_id(job.get("id"), "the id of a job"), timestamp(job)
    found: list[Submission | Unreadable] = []
    for frame in _described(content):
        if isinstance(frame, Unreadable):
            found.append(Unreadable(f"job {number}, {frame.reason}"))
            continue
        drawn = shapes[frame.number]
        unclear = frame.deleted or frame.number in incomplete or (frame.of_video and not drawn)
        skipped = unclear or is_rejected(job)
        regions, left_out, damaged = _regions(() if skipped else drawn, names, frame.size)
        found.append(
            Submission(
                tool=TOOL,
                project=project_of(job),
                task=text_of(job["task_id"]),
                annotation=str(number),
                address=frame_address(number, frame.number),
                name=frame.name,
                size=frame.size,
                regions=tuple(regions),
                updated_at=updated_at,
                author=text_of(job["assignee"]["username"]) if job.get("assignee") else "",
                item=frame.number,
                ground_truth=job.get("type") == "ground_truth",
                skipped=skipped,
                left_out=left_out,
                known_as=frame.known_as,
            )
        )
        found += (Unreadable(f"job {number}, frame {frame.number}: {reason}") for reason in damaged)
    return found


def project_of(row: Json) -> str:
    """The project of a job or task; `task-<id>` if it has none."""
    project = row.get("project_id")
    return text_of(project) if project is not None else f"task-{text_of(row.get('task_id', row.get('id')))}"


def frame_address(job: int, frame: int) -> str:
    """The path of a frame as it was uploaded, turned upright."""
    return f"/api/jobs/{job}/data?type=frame&number={frame}&quality=original"


def frames(content: JobContent) -> Iterator[Frame]:
    """The frames of the job, which may have gaps, without those of impossible size. Raises InvalidRequest."""
    return (each for each in _described(content) if isinstance(each, Frame))


def _described(content: JobContent) -> Iterator[Frame | Unreadable]:
    """The frames of the job. One of impossible size is Unreadable. A video is described once for all its
    frames; if its size is impossible, InvalidRequest is raised."""
    (first, last), meta = _range(job := content.job), content.meta
    described = meta["frames"]
    is_video = job["media_type"] == "video" if job.get("media_type") else job.get("mode") == "interpolation"
    of_video = is_video or (len(described) == 1 and last > first)
    numbers = set(range(first, last + 1))
    if (included := meta.get("included_frames")) is not None:
        # CVAT numbers these in the uploaded data, before its step.
        stepped = re.search(r"step=([0-9]{1,9})", meta.get("frame_filter") or "")
        step = int(stepped[1]) if stepped else 1
        numbers &= {first + (number - meta["start_frame"]) // step for number in included}
    deleted: set[int] = set(meta.get("deleted_frames") or ())
    for number in sorted(numbers):
        about = described[0 if of_video else number - first]
        path = PurePosixPath(about["name"])
        name = f"{path.stem}-{number:06d}.png" if of_video else path.name
        known_as = f"frame_{number:06d}.png" if of_video else about["name"]
        try:
            size = as_size(about["height"], about["width"])
        except InvalidRequest as error:
            if of_video:
                raise
            yield Unreadable(f"frame {number}: {error}")
            continue
        yield Frame(number, name, known_as, size, number in deleted, of_video)


def _range(job: Json) -> tuple[int, int]:
    """The numbers of the job's first and last frame. Raises InvalidRequest."""
    first, last = (as_id(job.get(name), f"the {name} of a job") for name in ("start_frame", "stop_frame"))
    if not -1 <= last - first < MAX_FRAMES:
        raise InvalidRequest(f"a job has frames from {first} to {last}: at most {MAX_FRAMES} are read")
    return first, last


def _shapes(annotations: Json, first: int, last: int) -> tuple[dict[int, list[Json]], set[int]]:
    """Shapes and keyframes by frame, and the frames on which a track is visible without a keyframe."""
    found: defaultdict[int, list[Json]] = defaultdict(list)
    spans: list[tuple[int, int]] = []  # frames without a keyframe: the first, and the one after the last
    for shape in annotations.get("shapes") or ():
        found[shape["frame"]].append({**shape, "id": text_of(shape["id"])})
    for track in annotations.get("tracks") or ():
        keyframes: list[Json] = sorted(track.get("shapes") or (), key=lambda shape: shape["frame"])
        for keyframe, after in zip_longest(keyframes, keyframes[1:]):
            if keyframe.get("outside"):
                continue
            # Keyframes and shapes are numbered separately, so their numbers may collide.
            named = {"id": f"track-{text_of(keyframe['id'])}"} | {
                name: track.get(name) for name in ("label_id", "group")
            }
            found[keyframe["frame"]].append({**keyframe, **named})
            if keyframe["type"] not in AREAS:
                continue
            spans.append((keyframe["frame"] + 1, after["frame"] if after else last + 1))
    incomplete: set[int] = set()
    unseen = first  # spans may cover each other: each frame is added once
    for start, end in sorted(spans):
        incomplete.update(range(max(start, unseen), min(end, last + 1)))
        unseen = max(unseen, end)
    return found, incomplete


def _regions(
    shapes: Sequence[Json], names: Mapping[int, str], size: Size
) -> tuple[list[Region], dict[str, int], list[str]]:
    """The regions of `shapes` in CVAT's order, lowest first; what was left out, and what is damaged of it.

    As in CVAT's own exports, the polygons and masks of one group and label are one object.
    """
    left_out, damaged = Counter[str](), list[str]()
    objects: dict[object, list[tuple[Json, Geometry]]] = {}
    for shape in sorted(shapes, key=lambda shape: shape.get("z_order") or 0):
        kind = text_of(shape["type"])
        if kind not in AREAS:
            left_out[kind] += 1
            continue
        try:
            if shape["label_id"] not in names:
                raise ValueError("it has a label that its job does not have")
            drawn = geometry(shape, size)
        except (ValueError, TypeError, LookupError) as error:
            left_out[f"damaged {kind}"] += 1
            damaged.append(f"{kind} {shape['id']} is damaged and left out: {error}")
            continue
        alone = not shape.get("group") or kind not in ("polygon", "mask")
        key = shape["id"] if alone else (shape["group"], shape["label_id"])
        objects.setdefault(key, []).append((shape, drawn))
    regions: list[Region] = []
    for parts in objects.values():
        named, layer = parts[0][0], max(shape.get("z_order") or 0 for shape, _ in parts)
        try:
            whole = joined([drawn for _, drawn in parts], size)
        except ValueError as error:
            left_out[f"damaged {named['type']}"] += len(parts)
            damaged.append(f"{named['type']} {named['id']} is damaged and left out: {error}")
            continue
        regions.append(Region(named["id"], names[named["label_id"]], whole, layer=layer))
    return regions, dict(left_out), damaged


def joined(parts: Sequence[Geometry], size: Size) -> Geometry:
    """The parts of one object as one geometry: polygons that share no pixel stay polygons."""
    if len(parts) == 1:
        return parts[0]
    union, area = np.zeros(size, np.bool_), 0
    for part in parts:
        mask = rasterise(part, size)
        area += mask_area(mask)
        union |= mask
    rings = [ring for part in parts if isinstance(part, Polygon) for ring in part.rings]
    if len(rings) >= len(parts) and mask_area(union) == area:
        return Polygon(tuple(rings))
    return Brush(mask_to_rle(union))


def geometry(shape: Json, size: Size) -> Geometry:
    """The geometry of a shape on an image of `size`; it may cover no pixel. Raises ValueError, TypeError or
    LookupError for damage: CVAT 2.73, for one, stores masks with wrong boxes."""
    kind, points = shape["type"], shape["points"]
    if kind == "mask":
        return Brush(mask_to_rle(points_to_mask(points, size)))
    rotation = float(shape.get("rotation") or 0.0)
    if not all(abs(number) < MAX_COORDINATE_PX for number in (*points, rotation)):
        raise ValueError("it has a number that no image has")
    match kind, points:
        case "polygon", [_, _, _, _, _, _, *_] if len(points) % 2 == 0:
            return Polygon((tuple(zip(points[::2], points[1::2], strict=True)),))
        case "rectangle", [x0, y0, x1, y1]:
            return Rectangle((min(x0, x1), min(y0, y1), max(x0, x1), max(y0, y1)), rotation)
        case "ellipse", [x, y, right, top]:
            return Ellipse((x, y), (abs(right - x), abs(y - top)), rotation)
        case _:
            raise ValueError(f"a {kind} of {len(points)} numbers")


def is_accepted(job: Json) -> bool:
    """Whether a job's labels count: it was completed, or is in acceptance and was not rejected. Either is
    enough: the UI can set one back and leave the other (cvat-ai/cvat#7206)."""
    return job.get("state") == "completed" or (job.get("stage") == "acceptance" and not is_rejected(job))


def is_rejected(job: Json) -> bool:
    return job.get("state") == "rejected"


def meaning(event: Json) -> JobJudged | Deleted | None:
    """The effect of an event on accepted labels, None if there is none. Raises InvalidRequest."""
    match text_of(event.get("event"))[:80].split(":"):
        case ["update", "job"]:
            job = as_object(event.get("job"), "the job of the event")
            changed = event.get("changes") or event.get("before_update")
            judged = isinstance(changed, dict) and bool({"state", "stage"} & changed.keys())
            if is_accepted(job) or (is_rejected(job) and judged):
                return JobJudged(as_id(job.get("id"), "the id of something of CVAT's"), timestamp(job))
        case ["delete", resource] if resource in DELETED:
            row = as_object(event.get(resource), f"the {resource} of the event")
            return DELETED[resource](TOOL, str(as_id(row.get("id"), "the id of something of CVAT's")))
        case _:
            pass
    return None


def timestamp(row: Json) -> float:
    """Time of a row's last update, in seconds since 1970. Raises InvalidRequest if there is none."""
    try:
        return datetime.fromisoformat(row["updated_date"]).timestamp()
    except (KeyError, TypeError, ValueError, OverflowError) as error:
        written = text_of(row.get("updated_date"))[:40]
        raise InvalidRequest(f"CVAT does not say when it was updated: {written!r}") from error
