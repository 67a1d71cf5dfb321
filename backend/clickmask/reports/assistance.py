"""What the assistance was worth: what was proposed, beside what was accepted.

`clickmask.reports.matching` says which object came of which proposals.

Proposals do not know their project. Those on an image that two projects share are looked at in both.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Literal

from clickmask.labels.submissions import AcceptedLabel
from clickmask.masks.rle import rle_iou
from clickmask.reports.matching import MAX_CLOCK_SKEW_S, AcceptedObject, Session, marks, pair
from clickmask.store import PrelabelledObject, RememberedProposal, Store

UNTOUCHED = 0.99  # IoU; the tool may have encoded the mask anew
OUTLINED = 0.95  # the same of an outline in few points that nobody has moved a vertex of

Outcome = Literal["untouched", "edited", "unassisted", "rejected", "open"]
Axis = Literal["category", "segmenter", "week"]


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


def match(
    proposals: Sequence[RememberedProposal],
    labels: Sequence[AcceptedLabel],
    submitted: bool,
    preannotated: Sequence[PrelabelledObject] = (),
) -> list[Entry]:
    """What came of the proposals on one image, and how the objects on it came about.

    `labels` are those of every annotator; `submitted`: whether any has submitted the image, if only
    to say that there is nothing on it.
    """
    found = pair(proposals, preannotated, labels)
    until = float("inf") if submitted else float("-inf")
    if labels:
        until = max(label.accepted_at for label in labels)
    return [_accepted(*made) for made in found.made] + [_unaccepted(each, until) for each in found.unaccepted]


def read(store: Store, tool: str, project: str) -> list[Entry]:
    """The entries of a project."""
    labels: dict[str, list[AcceptedLabel]] = {image.digest: [] for image in store.images(tool, project)}
    for label in store.labels(tool, project, all_annotations=True):
        labels.setdefault(label.image, []).append(label)
    return [
        entry
        for digest, own in sorted(labels.items())
        for entry in match(store.proposals(digest), own, True, store.prelabels(digest))
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


def _accepted(made: AcceptedObject, session: Session | None, proposal: str | None) -> Entry:
    category, at = made.label.category, made.label.accepted_at
    if session is None:
        return Entry("unassisted", category, "", at, None, None, None, None)
    step = session.steps[-1]
    if proposal:
        last = next(each for each in step if each.id == proposal)
    else:
        last = max(step, key=lambda each: rle_iou(each.rle, made.rle))
    last_iou = rle_iou(last.rle, made.rle)
    # An outline in few points was less than the mask when it was shown.
    untouched = last_iou >= UNTOUCHED or (made.outlined and last_iou >= OUTLINED)
    return Entry(
        "untouched" if untouched else "edited",
        category,
        last.segmenter,
        at,
        rle_iou(session.first.rle, made.rle),
        last_iou,
        _clicks(last),
        last.created_at - session.first.created_at,
    )


def _unaccepted(session: Session, until: float) -> Entry:
    last = session.last
    outcome: Outcome = "rejected" if last.created_at <= until + MAX_CLOCK_SKEW_S else "open"
    seconds = last.created_at - session.first.created_at
    return Entry(outcome, "", last.segmenter, last.created_at, None, None, _clicks(last), seconds)


def _clicks(proposal: RememberedProposal) -> int:
    foreground, background, box = marks(proposal)
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
