"""What the assistance was worth: what was proposed, beside what was accepted.

A session is one annotator's work on one object: proposals on one image whose prompts extend each
other, or take the last marks back. What was accepted belongs to a session by the id of its proposal;
else, for a tool that sends no ids, by the greatest IoU with a session's last answer. Of several
regions that came of one proposal (the parts of an object, as polygons) the union counts.

Proposals do not know their project. Those on an image that two projects share are looked at in both.
"""

from __future__ import annotations

import json
import statistics
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Literal, cast

from pycocotools import mask as coco

from clickmask.labels import AcceptedLabel, Geometry, Polygon
from clickmask.masks import Rle
from clickmask.simplify import GRID
from clickmask.store import RememberedProposal, Store

UNTOUCHED = 0.99  # IoU; the tool may have encoded the mask anew
OUTLINED = 0.95  # the same of an outline in few points that nobody has moved a vertex of
SAME_OBJECT = 0.5  # IoU from which an accepted object may be what a session was about
SKEW = 300.0  # seconds by which the tool's clock may be behind ours

Outcome = Literal["untouched", "edited", "unassisted", "rejected", "open"]
Axis = Literal["category", "segmenter", "week"]
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


@dataclass(frozen=True)
class Entry:
    """What came of one session, or how one object came about."""

    outcome: Outcome  # of a session without an object: rejected, or open while its image is not submitted
    category: str  # empty for a session without an object
    segmenter: str  # empty for an object without a session
    at: float  # when it was accepted, else last proposed; seconds since 1970
    first_iou: float | None  # of the session's first proposal with what was accepted
    last_iou: float | None  # of its last, or of the one that was accepted
    clicks: int | None  # marks of the last prompt, a box being one
    seconds: float | None  # from the first to the last proposal


@dataclass(frozen=True)
class Summary:
    """Of entries that share a category, a segmenter or a week; None: there is nothing to average."""

    name: str
    objects: int  # that were accepted
    untouched: int
    edited: int
    unassisted: int
    rejected: int  # sessions
    first_iou: float | None  # means
    last_iou: float | None
    clicks: float | None
    seconds: float | None  # median


def sessions(proposals: Iterable[RememberedProposal]) -> list[Session]:
    """The sessions on one image, by their beginnings; `proposals` are oldest first.

    Annotators may take turns: a proposal goes on with the session, of those whose prompt it extends,
    that was used last.
    """
    growing: list[tuple[list[list[RememberedProposal]], Marks]] = []
    used: list[int] = []  # indices of `growing`, the one used last at the end
    for proposal in proposals:
        marks = _marks(proposal)
        index = next((n for n in reversed(used) if _goes_on(growing[n][1], marks)), None)
        if index is None:
            index = len(growing)
            growing.append(([[proposal]], marks))
        else:
            steps, before = growing[index]
            used.remove(index)
            if marks == before and proposal.segmenter == steps[-1][0].segmenter:
                steps[-1].append(proposal)
            else:
                steps.append([proposal])
            growing[index] = (steps, marks)
        used.append(index)
    return [Session(tuple(tuple(step) for step in steps)) for steps, _ in growing]


def match(
    proposals: Sequence[RememberedProposal], labels: Sequence[AcceptedLabel], submitted: bool
) -> list[Entry]:
    """What came of the proposals on one image, and how the objects on it came about.

    `labels` are those of every annotator; `submitted`: whether any has submitted the image, if only
    to say that there is nothing on it.
    """
    found = sessions(proposals)
    by_id = {each.id: n for n, session in enumerate(found) for step in session.steps for each in step}
    entries: list[Entry] = []
    taken: set[int] = set()
    unnamed: list[_Object] = []
    for made in _objects(labels):
        if made.label.proposal in by_id:
            index = by_id[made.label.proposal]
            taken.add(index)
            entries.append(_accepted(made, found[index].up_to(made.label.proposal), made.label.proposal))
        else:
            unnamed.append(made)
    pairs = [
        (-iou, place, index)
        for place, made in enumerate(unnamed)
        for index, session in enumerate(found)
        if index not in taken and session.first.created_at <= made.label.accepted_at + SKEW
        if (iou := max(_iou(each.rle, made.rle) for each in session.steps[-1])) >= SAME_OBJECT
    ]
    answered: dict[int, int] = {}
    for _, place, index in sorted(pairs):
        if place not in answered and index not in taken:
            answered[place] = index
            taken.add(index)
    for place, made in enumerate(unnamed):
        entries.append(_accepted(made, found[answered[place]] if place in answered else None, None))
    until = float("inf") if submitted else float("-inf")
    if labels:
        until = max(label.accepted_at for label in labels)
    entries += [_unaccepted(session, until) for n, session in enumerate(found) if n not in taken]
    return entries


def read(store: Store, tool: str, project: str) -> list[Entry]:
    """The entries of a project."""
    labels: dict[str, list[AcceptedLabel]] = {image.digest: [] for image in store.images(tool, project)}
    for label in store.labels(tool, project, all_annotations=True):
        labels.setdefault(label.image, []).append(label)
    return [
        entry for digest, own in sorted(labels.items()) for entry in match(store.proposals(digest), own, True)
    ]


def summarise(entries: Iterable[Entry], by: Axis | None = None) -> list[Summary]:
    """By name; None: one summary, of all. A rejected session has no category, and "" for a name there.

    A week is one of ISO 8601, in UTC.
    """
    groups: dict[str, list[Entry]] = {} if by else {"": []}
    for entry in entries:
        name = {"category": entry.category, "segmenter": entry.segmenter, "week": _week(entry.at), None: ""}[
            by
        ]
        groups.setdefault(name, []).append(entry)
    return [_summary(name, groups[name]) for name in sorted(groups)]


def _marks(proposal: RememberedProposal) -> Marks:
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


@dataclass(frozen=True)
class _Object:
    """What was accepted as one object: its label, the first of them if it has several."""

    label: AcceptedLabel
    rle: Rle
    outlined: bool  # by outlines that nobody has moved a vertex of


def _objects(labels: Sequence[AcceptedLabel]) -> list[_Object]:
    """Regions of one proposal are one object."""
    parts: dict[tuple[str, ...], list[AcceptedLabel]] = {}
    for label in labels:
        key = label.key
        of = ("proposal", label.proposal) if label.proposal else ("region", key.region)
        parts.setdefault((key.tool, key.project, key.task, key.annotation, *of), []).append(label)
    return [
        _Object(
            own[0],
            own[0].rle if len(own) == 1 else _union([label.rle for label in own]),
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


def _accepted(made: _Object, session: Session | None, proposal: str | None) -> Entry:
    category, at = made.label.category, made.label.accepted_at
    if session is None:
        return Entry("unassisted", category, "", at, None, None, None, None)
    step = session.steps[-1]
    if proposal:
        last = next(each for each in step if each.id == proposal)
    else:
        last = max(step, key=lambda each: _iou(each.rle, made.rle))
    last_iou = _iou(last.rle, made.rle)
    # An outline in few points was less than the mask when it was shown.
    untouched = last_iou >= UNTOUCHED or (made.outlined and last_iou >= OUTLINED)
    return Entry(
        "untouched" if untouched else "edited",
        category,
        last.segmenter,
        at,
        _iou(session.first.rle, made.rle),
        last_iou,
        _clicks(last),
        last.created_at - session.first.created_at,
    )


def _unaccepted(session: Session, until: float) -> Entry:
    last = session.last
    outcome: Outcome = "rejected" if last.created_at <= until + SKEW else "open"
    seconds = last.created_at - session.first.created_at
    return Entry(outcome, "", last.segmenter, last.created_at, None, None, _clicks(last), seconds)


def _clicks(proposal: RememberedProposal) -> int:
    foreground, background, box = _marks(proposal)
    return len(foreground) + len(background) + (box is not None)


def _summary(name: str, entries: Sequence[Entry]) -> Summary:
    outcomes = [entry.outcome for entry in entries]
    assisted = [entry for entry in entries if entry.outcome in ("untouched", "edited")]

    def averaged(average: Callable[[list[float]], float], values: Iterable[float | None]) -> float | None:
        there = [value for value in values if value is not None]
        return average(there) if there else None

    return Summary(
        name,
        len(assisted) + outcomes.count("unassisted"),
        outcomes.count("untouched"),
        outcomes.count("edited"),
        outcomes.count("unassisted"),
        outcomes.count("rejected"),
        averaged(statistics.fmean, (entry.first_iou for entry in assisted)),
        averaged(statistics.fmean, (entry.last_iou for entry in assisted)),
        averaged(statistics.fmean, (entry.clicks for entry in assisted)),
        averaged(statistics.median, (entry.seconds for entry in assisted)),
    )


def _week(at: float) -> str:
    year, week, _ = datetime.fromtimestamp(at, UTC).isocalendar()
    return f"{year}-W{week:02}"


def _iou(one: Rle, other: Rle) -> float:
    """0 for masks of different sizes, which are not of one picture."""
    if one["size"] != other["size"]:
        return 0.0
    return float(cast("Any", coco).iou([_as_bytes(one)], [_as_bytes(other)], [0])[0, 0])


def _union(rles: Sequence[Rle]) -> Rle:
    merged = cast("Any", coco).merge([_as_bytes(rle) for rle in rles])
    return {"size": list(rles[0]["size"]), "counts": merged["counts"].decode("ascii")}


def _as_bytes(rle: Rle) -> Any:
    return {"size": rle["size"], "counts": rle["counts"].encode("ascii")}
