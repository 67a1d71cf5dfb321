"""`clickmask prelabel cvat`: shapes for the jobs of a project that nobody has touched."""

from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any

from clickmask.masks.polygons import group_rings
from clickmask.masks.regions import mask_box
from clickmask.masks.simplify import simplify_mask
from clickmask.types import Mask, Prediction
from clickmask.workbench import Workbench
from clickmask_adapters.tools._client import ToolError
from clickmask_adapters.tools._json import Json
from clickmask_adapters.tools._prelabel import UNREADABLE, Step, draw, require_annotator
from clickmask_adapters.tools.cvat.client import CvatClient
from clickmask_adapters.tools.cvat.labels import TOOL, frame_address, frames
from clickmask_adapters.tools.cvat.mask_points import mask_to_points
from clickmask_adapters.tools.cvat.pull import container_of

MASKS = frozenset({"mask", "any", "unknown"})  # label types that take a mask; `unknown` is old
DRAWN = MASKS | {"polygon", "rectangle"}


def prelabel(
    workbench: Workbench, client: CvatClient, project: str, min_iou: float, annotator: str | None = None
) -> Iterator[Step]:
    """Give each new job without annotations the objects that the served model, or `annotator`, finds on its
    frames.

    A job gets all its shapes in one request or, if interrupted or begun by somebody, none. Videos are left
    out, as people use tracks there. Raises InvalidRequest if `project` is not a name, NotFound, NotReady and
    ToolError.
    """
    container = container_of(project)
    require_annotator(workbench, TOOL, project, annotator)
    # Read all of them first: each upload moves its job to the end of the pages.
    rows = {row["id"]: row for row, _ in client.jobs(container)}
    remaining = sum(row["frame_count"] for row in rows.values())
    for number, row in sorted(rows.items()):
        remaining -= row["frame_count"]
        if not _is_new(row):
            yield Step(remaining, images=row["frame_count"], untouched=1)
            continue
        try:
            yield from _prelabel_job(workbench, client, project, number, remaining, min_iou, annotator)
        except ToolError as error:
            if not error.is_about_this:
                raise
            yield Step(remaining, left_out=(f"job {number}: {error}",))


def _prelabel_job(
    workbench: Workbench,
    client: CvatClient,
    project: str,
    job: int,
    later: int,
    min_iou: float,
    annotator: str | None,
) -> Iterator[Step]:
    """One step per frame, and one for the upload. `later` counts the images of the jobs after this one.
    Polygons of one object share a group; they have as few points as an IoU of `min_iou` allows."""
    content = client.read_job(job)
    wanted = [frame for frame in frames(content) if not frame.deleted]
    left = len(wanted)
    if not _is_new(content.job) or _has_shapes(content.annotations):
        yield Step(later, images=left, untouched=1)
        return
    if any(frame.of_video for frame in wanted):
        yield Step(later, images=left, left_out=(f"job {job}: it is of a video",))
        return
    typed = ((label, str(label.get("type") or "any")) for label in content.labels)
    labels = {str(label["name"]): (label["id"], kind) for label, kind in typed if kind in DRAWN}
    without: set[str] = set()

    def can_be_drawn(label: str, _: Prediction) -> bool:  # others are not stored as shown
        if label not in labels:
            without.add(label)
        return label in labels

    shapes: list[dict[str, Any]] = []
    objects = 0
    for frame in wanted:
        left -= 1
        chosen, _ = require_annotator(workbench, TOOL, project, annotator)
        locate = partial(client.image_ref, frame_address(job, frame.number))
        try:
            made = draw(workbench, locate, chosen, TOOL, can_be_drawn)
        except UNREADABLE as error:
            sentence = f"job {job}, frame {frame.number}: {error}"
            yield Step(later + left, images=1, left_out=(sentence,))
            continue
        for name, proposal in made:
            objects += 1
            label, kind = labels[name]
            parts = _points(proposal.prediction.mask, kind, min_iou)
            common: dict[str, Any] = {
                "type": "mask" if kind in MASKS else kind,
                "label_id": label,
                "frame": frame.number,
                "group": objects if len(parts) > 1 else 0,
                "source": "auto",
                "score": proposal.prediction.score,
                "occluded": False,
                "attributes": [],
            }
            shapes += [common | {"points": points} for points in parts]
        yield Step(later + left, images=1)
    names = ", ".join(sorted(without))
    left_out = (f"job {job}: it has no label to draw {names} with",) if without else ()
    # Check again: the frames have taken a while.
    if not _is_new(client.job(job)) or _has_shapes(client.annotations(job)):
        yield Step(later, untouched=1, left_out=left_out)
        return
    if shapes:
        client.add_shapes(job, shapes)
    yield Step(later, containers=1, objects=objects, left_out=left_out)


def _points(mask: Mask, kind: str, min_iou: float) -> Sequence[Sequence[float]]:
    """The points of each part of a mask that a label of type `kind` marks."""
    if kind in MASKS:
        return [mask_to_points(mask)]
    if kind == "rectangle":
        return [mask_box(mask) or ()]
    rings = simplify_mask(mask, min_iou).rings  # CVAT's polygons have no holes
    return [outer.reshape(-1).tolist() for outer, _ in group_rings(rings)]


def _is_new(job: Json) -> bool:
    """Whether the job is new, 2D and an ordinary one, not one by which others are judged."""
    described = (job["state"], job["stage"], job.get("type", "annotation"), job.get("dimension", "2d"))
    return described == ("new", "annotation", "annotation", "2d")


def _has_shapes(annotations: Json) -> bool:
    return any(annotations.get(kind) for kind in ("shapes", "tracks", "tags", "intervals"))
