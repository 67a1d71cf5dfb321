"""Matches accepted objects to the proposals they came from.

A session is one annotator's work on one object: proposals on one image whose prompts extend each other, or
take back the last marks. An accepted object belongs to a session by its proposal's id, or, if the tool sends
no ids, by the greatest IoU with a session's last answer. Regions from one proposal count as their union.

An object that a model drew is a session without a click. If a model ran several times over an image, only its
last run can be rejected: the others were replaced, not judged.
"""

import json
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from clickmask.labels.geometry import Geometry, Polygon
from clickmask.labels.submissions import AcceptedLabel
from clickmask.masks.rle import Rle, rle_iou, unite
from clickmask.masks.simplify import GRID
from clickmask.store import PrelabelledObject, RememberedProposal

SAME_OBJECT_IOU = 0.5  # minimum with a session's last answer for an accepted object to match it
MAX_CLOCK_SKEW_S = 300.0  # the tool's clock may lag ours by this much
NO_MARKS = '{"foreground": [], "background": [], "box": null}'
Points = tuple[tuple[float, ...], ...]
Marks = tuple[Points, Points, tuple[float, ...] | None, str | None]  # two kinds of points, box, mask


@dataclass(frozen=True)
class Session:
    """One annotator's work on an object. `steps` are answers in order, with candidates, best first."""

    steps: tuple[tuple[RememberedProposal, ...], ...]

    @property
    def first(self) -> RememberedProposal:
        return self.steps[0][0]

    @property
    def last(self) -> RememberedProposal:
        return self.steps[-1][0]

    def up_to(self, proposal: str) -> "Session":
        """The session up to the step that contains the proposal with this id."""
        place = next(n for n, step in enumerate(self.steps) if any(each.id == proposal for each in step))
        return Session(self.steps[: place + 1])


def prompt_sessions(proposals: Iterable[RememberedProposal]) -> list[Session]:
    """Sessions on one image, by their start. `proposals` are oldest first."""
    # Annotators may alternate: a proposal continues the most recently used session that it extends.
    growing: list[tuple[list[list[RememberedProposal]], Marks]] = []
    used: list[int] = []  # indices into `growing`, most recently used last
    for proposal in proposals:
        pointed = marks(proposal)
        for index in reversed(used):
            steps, before = growing[index]
            if _extends(before, pointed) or _extends(pointed, before):
                used.remove(index)
                if pointed == before and proposal.segmenter == steps[-1][0].segmenter:
                    steps[-1].append(proposal)
                else:
                    steps.append([proposal])
                growing[index] = (steps, pointed)
                break
        else:
            index = len(growing)
            growing.append(([[proposal]], pointed))
        used.append(index)
    return [Session(tuple(tuple(step) for step in steps)) for steps, _ in growing]


@dataclass(frozen=True, eq=False)
class AcceptedObject:
    label: AcceptedLabel  # the first, if the object has several
    rle: Rle  # union of all labels
    outlined: bool  # drawn as outlines in which nobody moved a vertex


def pair(
    proposals: Sequence[RememberedProposal],
    prelabels: Sequence[PrelabelledObject],
    labels: Sequence[AcceptedLabel],
) -> tuple[list[tuple[AcceptedObject, Session | None]], list[Session]]:
    """Accepted objects on one image, each with its session up to its proposal, and the other sessions."""
    sessions = prompt_sessions(proposals)
    for drawn in prelabels:
        if drawn.label:
            known = (drawn.id, drawn.created_at, "", drawn.annotator, drawn.score)
            sessions.append(Session(((RememberedProposal(*known, NO_MARKS, drawn.rle),),)))
    by_id = {each.id: n for n, session in enumerate(sessions) for step in session.steps for each in step}
    paired: list[tuple[AcceptedObject, Session | None]] = []
    taken: set[int] = set()
    unnamed: list[AcceptedObject] = []
    for accepted in _objects(labels):
        name = accepted.label.proposal
        if name in by_id:
            taken.add(by_id[name])
            paired.append((accepted, sessions[by_id[name]].up_to(name)))
        else:
            unnamed.append(accepted)
    # Match the others to sessions greedily by IoU.
    overlaps = [
        (-overlap, place, index)
        for place, accepted in enumerate(unnamed)
        for index, session in enumerate(sessions)
        if index not in taken and session.first.created_at <= accepted.label.accepted_at + MAX_CLOCK_SKEW_S
        if (overlap := max(rle_iou(each.rle, accepted.rle) for each in session.steps[-1])) >= SAME_OBJECT_IOU
    ]
    matched: dict[int, int] = {}  # indices of objects and their sessions
    for _, place, index in sorted(overlaps):
        if place not in matched and index not in taken:
            matched[place] = index
            taken.add(index)
    for place, accepted in enumerate(unnamed):
        paired.append((accepted, sessions[matched[place]] if place in matched else None))
    # Prelabels of runs that the same annotator replaced before the image was submitted.
    replaced = {each.id for each in prelabels if each.created_at <= _until(labels)}
    replaced -= {each.id for drawn in shown(prelabels, labels).values() for each in drawn}
    rest = [each for n, each in enumerate(sessions) if n not in taken and each.first.id not in replaced]
    return paired, rest


def shown(
    prelabels: Sequence[PrelabelledObject], labels: Sequence[AcceptedLabel]
) -> dict[str, list[PrelabelledObject]]:
    """Objects from each annotator's last run before the labels were accepted. Nobody saw later runs."""
    seen = [each for each in prelabels if each.created_at <= _until(labels)]
    last = {each.annotator: each.batch for each in seen}
    return {
        annotator: [each for each in seen if each.batch == batch and each.label]
        for annotator, batch in last.items()
    }


def _until(labels: Sequence[AcceptedLabel]) -> float:
    return max((label.accepted_at for label in labels), default=float("inf")) + MAX_CLOCK_SKEW_S


def marks(proposal: RememberedProposal) -> Marks:
    prompt = json.loads(proposal.prompt)
    points = (tuple(tuple(point) for point in prompt[kind]) for kind in ("foreground", "background"))
    return next(points), next(points), tuple(prompt["box"]) if prompt["box"] else None, prompt.get("mask")


def _extends(before: Marks, after: Marks) -> bool:
    """Whether `after` starts with all marks of `before`, in the same order, and from the same mask."""
    points = zip(before[:2], after[:2], strict=True)
    same = before[2] in (None, after[2]) and before[3] == after[3]
    return same and all(new[: len(old)] == old for old, new in points)


def _objects(labels: Sequence[AcceptedLabel]) -> list[AcceptedObject]:
    """Labels joined into objects. Regions of one proposal form one object."""
    parts: dict[tuple[str, ...], list[AcceptedLabel]] = {}
    for label in labels:
        key = label.key
        of = ("proposal", label.proposal) if label.proposal else ("region", key.region)
        parts.setdefault((key.tool, key.project, key.task, key.annotation, *of), []).append(label)
    return [
        AcceptedObject(
            own[0],
            own[0].rle if len(own) == 1 else unite([label.rle for label in own]),
            all(_is_outline(label.geometry) for label in own),
        )
        for own in parts.values()
    ]


def _is_outline(geometry: Geometry) -> bool:
    """Whether all vertices lie where `simplify_mask` puts them. One in thousands of dragged ones does too."""
    if not isinstance(geometry, Polygon):
        return False
    points = Counter(point for ring in geometry.rings for point in ring)
    # The vertices of bridges occur twice.
    once = (point for point, count in points.items() if count == 1)
    return all(abs(value * GRID - round(value * GRID)) < 1e-3 for point in once for value in point)
