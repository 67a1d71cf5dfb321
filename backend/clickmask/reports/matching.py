"""Matches accepted objects to the proposals that they came from.

A session is one annotator's work on one object: proposals on one image whose prompts extend each other, or
take the last marks back. An accepted object belongs to a session by the id of its proposal; for a tool
that sends no ids, by the greatest IoU with a session's last answer. If several regions came from one
proposal (parts of an object, as polygons), their union counts.

An object that a model drew before anybody clicked is a session without a click. If a model has run over an
image several times, only the last run can be rejected: the others were replaced, not judged.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from clickmask.labels.geometry import Geometry, Polygon
from clickmask.labels.submissions import AcceptedLabel
from clickmask.masks.rle import Rle, rle_iou, unite
from clickmask.masks.simplify import GRID
from clickmask.store import PrelabelledObject, RememberedProposal

SAME_OBJECT_IOU = 0.5  # with a session's last answer, for an accepted object to match it
MAX_CLOCK_SKEW_S = 300.0  # by which the tool's clock may be behind ours
NO_MARKS = '{"foreground": [], "background": [], "box": null}'
Marks = tuple[tuple[tuple[float, ...], ...], tuple[tuple[float, ...], ...], tuple[float, ...] | None]


@dataclass(frozen=True)
class Session:
    """`steps` are the answers in turn, each with its candidates, best first."""

    steps: tuple[tuple[RememberedProposal, ...], ...]

    @property
    def first(self) -> RememberedProposal:
        return self.steps[0][0]

    @property
    def last(self) -> RememberedProposal:
        return self.steps[-1][0]

    def up_to(self, proposal: str) -> Session:
        """The session up to the step with `proposal`, an id."""
        place = next(n for n, step in enumerate(self.steps) if any(each.id == proposal for each in step))
        return Session(self.steps[: place + 1])


def prompt_sessions(proposals: Iterable[RememberedProposal]) -> list[Session]:
    """Sessions on one image, in the order of their beginnings; `proposals` are oldest first.

    Annotators may take turns: a proposal continues the session used last among those it extends.
    """
    growing: list[tuple[list[list[RememberedProposal]], Marks]] = []
    used: list[int] = []  # indices of `growing`, last used at the end
    for proposal in proposals:
        pointed = marks(proposal)
        index = next(
            (n for n in reversed(used) if _extends(m := growing[n][1], pointed) or _extends(pointed, m)), None
        )
        if index is None:
            index = len(growing)
            growing.append(([[proposal]], pointed))
        else:
            steps, before = growing[index]
            used.remove(index)
            if pointed == before and proposal.segmenter == steps[-1][0].segmenter:
                steps[-1].append(proposal)
            else:
                steps.append([proposal])
            growing[index] = (steps, pointed)
        used.append(index)
    return [Session(tuple(tuple(step) for step in steps)) for steps, _ in growing]


@dataclass(frozen=True, eq=False)
class AcceptedObject:
    label: AcceptedLabel  # the first one, if the object has several
    rle: Rle  # the union of all
    outlined: bool  # drawn by outlines of which nobody has moved a vertex


@dataclass(frozen=True, eq=False)
class Pairing:
    """Objects accepted on one image, and the sessions that nothing was accepted from.

    Each object comes with its session, if any, and the proposal's id, if the tool has kept that.
    """

    accepted: list[tuple[AcceptedObject, Session | None, str | None]]
    unaccepted: list[Session]


def pair(
    proposals: Sequence[RememberedProposal],
    prelabels: Sequence[PrelabelledObject],
    labels: Sequence[AcceptedLabel],
) -> Pairing:
    """Pair what is on one image. `proposals` are answers to clicks; `labels` are every annotator's."""
    sessions = prompt_sessions(proposals)
    for drawn in prelabels:
        if drawn.label:
            known = (drawn.id, drawn.created_at, "", drawn.annotator, drawn.score)
            sessions.append(Session(((RememberedProposal(*known, NO_MARKS, drawn.rle),),)))
    by_id = {each.id: n for n, session in enumerate(sessions) for step in session.steps for each in step}
    paired: list[tuple[AcceptedObject, Session | None, str | None]] = []
    taken: set[int] = set()
    unnamed: list[AcceptedObject] = []
    for accepted in _objects(labels):
        name = accepted.label.proposal
        if name in by_id:
            taken.add(by_id[name])
            paired.append((accepted, sessions[by_id[name]].up_to(name), name))
        else:
            unnamed.append(accepted)
    matched = _match_by_iou(unnamed, sessions, taken)
    for place, accepted in enumerate(unnamed):
        paired.append((accepted, sessions[matched[place]] if place in matched else None, None))
    taken |= set(matched.values())
    # Prelabels of runs that another run of the same annotator replaced before the image was submitted.
    replaced = {each.id for each in prelabels if each.created_at <= _until(labels)}
    replaced -= {each.id for drawn in shown(prelabels, labels).values() for each in drawn}
    rest = [each for n, each in enumerate(sessions) if n not in taken and each.first.id not in replaced]
    return Pairing(paired, rest)


def shown(
    prelabels: Sequence[PrelabelledObject], labels: Sequence[AcceptedLabel]
) -> dict[str, list[PrelabelledObject]]:
    """Objects of each annotator's last run before the labels were accepted; nobody saw later runs."""
    seen = [each for each in prelabels if each.created_at <= _until(labels)]
    last = {each.annotator: each.batch for each in seen}
    return {
        annotator: [each for each in seen if each.batch == batch and each.label]
        for annotator, batch in last.items()
    }


def _until(labels: Sequence[AcceptedLabel]) -> float:
    return max((label.accepted_at for label in labels), default=float("inf")) + MAX_CLOCK_SKEW_S


def _match_by_iou(
    objects: Sequence[AcceptedObject], sessions: Sequence[Session], taken: set[int]
) -> dict[int, int]:
    """Match objects to sessions greedily by IoU. Returns {object index: session index}."""
    pairs = [
        (-overlap, place, index)
        for place, accepted in enumerate(objects)
        for index, session in enumerate(sessions)
        if index not in taken and session.first.created_at <= accepted.label.accepted_at + MAX_CLOCK_SKEW_S
        if (overlap := max(rle_iou(each.rle, accepted.rle) for each in session.steps[-1])) >= SAME_OBJECT_IOU
    ]
    matched: dict[int, int] = {}
    for _, place, index in sorted(pairs):
        if place not in matched and index not in matched.values():
            matched[place] = index
    return matched


def marks(proposal: RememberedProposal) -> Marks:
    prompt = json.loads(proposal.prompt)
    points = (tuple(tuple(point) for point in prompt[kind]) for kind in ("foreground", "background"))
    return next(points), next(points), tuple(prompt["box"]) if prompt["box"] else None


def _extends(before: Marks, after: Marks) -> bool:
    """Whether `after` has all marks of `before`, in their order, and nothing before them."""
    points = all(
        later[: len(earlier)] == earlier for earlier, later in zip(before[:2], after[:2], strict=True)
    )
    return points and before[2] in (None, after[2])


def _objects(labels: Sequence[AcceptedLabel]) -> list[AcceptedObject]:
    """Labels joined to objects: regions of one proposal are one object."""
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
    """Whether all vertices are where `simplify_mask` puts them, except those of bridges, which occur twice.

    A vertex that was dragged lands there with a chance of one in thousands.
    """
    if not isinstance(geometry, Polygon):
        return False
    points = Counter(point for ring in geometry.rings for point in ring)
    return all(
        count > 1 or all(abs(value * GRID - round(value * GRID)) < 1e-3 for value in point)
        for point, count in points.items()
    )
