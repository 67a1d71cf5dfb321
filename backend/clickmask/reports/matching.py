"""Which accepted object came of which proposals.

A session is one annotator's work on one object: proposals on one image whose prompts extend each
other, or take the last marks back. What was accepted belongs to a session by the id of its proposal;
else, for a tool that sends no ids, by the greatest IoU with a session's last answer. Of several
regions that came of one proposal (the parts of an object, as polygons) the union counts.

An object that a model drew before anybody clicked is a session without a click. Of several looks of
one model at an image only the last can be rejected: the others were replaced, not judged.
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

SAME_OBJECT = 0.5  # IoU from which an accepted object may be what a session was about
MAX_CLOCK_SKEW_S = 300.0  # seconds by which the tool's clock may be behind ours

NOTHING_POINTED_AT = '{"foreground": [], "background": [], "box": null}'
Marks = tuple[tuple[tuple[float, ...], ...], tuple[tuple[float, ...], ...], tuple[float, ...] | None]


@dataclass(frozen=True)
class Session:
    """`steps` are the answers, each with its candidates, best first."""

    steps: tuple[tuple[RememberedProposal, ...], ...]

    @property
    def first(self) -> RememberedProposal:
        return self.steps[0][0]

    @property
    def last(self) -> RememberedProposal:
        return self.steps[-1][0]

    def up_to(self, proposal: str) -> Session:
        """The session as it was when the proposal was made."""
        place = next(n for n, step in enumerate(self.steps) if any(each.id == proposal for each in step))
        return Session(self.steps[: place + 1])


def prompt_sessions(proposals: Iterable[RememberedProposal]) -> list[Session]:
    """The prompt_sessions on one image, by their beginnings; `proposals` are oldest first.

    Annotators may take turns: a proposal goes on with the session, of those whose prompt it extends,
    that was used last.
    """
    growing: list[tuple[list[list[RememberedProposal]], Marks]] = []
    used: list[int] = []  # indices of `growing`, the one used last at the end
    for proposal in proposals:
        pointed = marks(proposal)
        index = next((n for n in reversed(used) if _goes_on(growing[n][1], pointed)), None)
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
    """What was accepted as one object: its label, the first of them if it has several, and its mask."""

    label: AcceptedLabel
    rle: Rle
    outlined: bool  # by outlines that nobody has moved a vertex of


@dataclass(frozen=True, eq=False)
class Pairing:
    """Objects accepted on one image, each with the session it came from, and the sessions left over."""

    made: list[
        tuple[AcceptedObject, Session | None, str | None]
    ]  # and the proposal's id, where the tool has kept it
    unaccepted: list[Session]


def pair(
    proposals: Sequence[RememberedProposal],
    preannotated: Sequence[PrelabelledObject],
    labels: Sequence[AcceptedLabel],
) -> Pairing:
    """Of one image; `proposals` are what clicks were answered with, `labels` those of every annotator."""
    found = prompt_sessions(proposals) + [_unasked(each) for each in preannotated if each.label]
    by_id = {each.id: n for n, session in enumerate(found) for step in session.steps for each in step}
    paired: list[tuple[AcceptedObject, Session | None, str | None]] = []
    taken: set[int] = set()
    unnamed: list[AcceptedObject] = []
    for made in _objects(labels):
        name = made.label.proposal
        if name in by_id:
            taken.add(by_id[name])
            paired.append((made, found[by_id[name]].up_to(name), name))
        else:
            unnamed.append(made)
    answered = _answered(unnamed, found, taken)
    for place, made in enumerate(unnamed):
        paired.append((made, found[answered[place]] if place in answered else None, None))
    taken |= set(answered.values())
    replaced = _replaced(preannotated, labels)
    left = [session for n, session in enumerate(found) if n not in taken and session.first.id not in replaced]
    return Pairing(paired, left)


def shown(
    preannotated: Sequence[PrelabelledObject], labels: Sequence[AcceptedLabel]
) -> dict[str, list[PrelabelledObject]]:
    """By annotator what its last look gave before the labels were accepted; later ones nobody saw."""
    seen = [each for each in preannotated if each.created_at <= _until(labels)]
    last = {each.annotator: each.batch for each in seen}
    return {
        annotator: [each for each in seen if each.batch == batch and each.label]
        for annotator, batch in last.items()
    }


def _unasked(drawn: PrelabelledObject) -> Session:
    known = (drawn.id, drawn.created_at, "", drawn.annotator, drawn.score)
    return Session(((RememberedProposal(*known, NOTHING_POINTED_AT, drawn.rle),),))


def _replaced(preannotated: Sequence[PrelabelledObject], labels: Sequence[AcceptedLabel]) -> set[str]:
    """Those of looks that another one of the same annotator followed, before it was submitted."""
    seen = {each.id for each in preannotated if each.created_at <= _until(labels)}
    return seen - {each.id for drawn in shown(preannotated, labels).values() for each in drawn}


def _until(labels: Sequence[AcceptedLabel]) -> float:
    return max((label.accepted_at for label in labels), default=float("inf")) + MAX_CLOCK_SKEW_S


def _answered(unnamed: Sequence[AcceptedObject], found: Sequence[Session], taken: set[int]) -> dict[int, int]:
    """By the place of an object the place of its session: the greatest IoUs first, each once."""
    pairs = [
        (-overlap, place, index)
        for place, made in enumerate(unnamed)
        for index, session in enumerate(found)
        if index not in taken and session.first.created_at <= made.label.accepted_at + MAX_CLOCK_SKEW_S
        if (overlap := max(rle_iou(each.rle, made.rle) for each in session.steps[-1])) >= SAME_OBJECT
    ]
    answered: dict[int, int] = {}
    for _, place, index in sorted(pairs):
        if place not in answered and index not in answered.values():
            answered[place] = index
    return answered


def marks(proposal: RememberedProposal) -> Marks:
    prompt = json.loads(proposal.prompt)
    points = (tuple(tuple(point) for point in prompt[kind]) for kind in ("foreground", "background"))
    return next(points), next(points), tuple(prompt["box"]) if prompt["box"] else None


def _goes_on(before: Marks, after: Marks) -> bool:
    return _extends(before, after) or _extends(after, before)


def _extends(before: Marks, after: Marks) -> bool:
    """Whether `after` has all marks of `before`, in their order, and nothing before them."""
    points = all(
        later[: len(earlier)] == earlier for earlier, later in zip(before[:2], after[:2], strict=True)
    )
    return points and before[2] in (None, after[2])


def _objects(labels: Sequence[AcceptedLabel]) -> list[AcceptedObject]:
    """Regions of one proposal are one object."""
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
    """Whether all vertices are where `simplify_mask` puts them, but for those of bridges, which are there
    twice; a vertex that was dragged is there by a chance of 1 in thousands."""
    if not isinstance(geometry, Polygon):
        return False
    points = Counter(point for ring in geometry.rings for point in ring)
    off_grid = (count for point, count in points.items() if not all(map(_is_on_grid, point)))
    return all(count > 1 for count in off_grid)


def _is_on_grid(coordinate: float) -> bool:
    return abs(coordinate * GRID - round(coordinate * GRID)) < 1e-3
