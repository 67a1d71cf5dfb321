"""Measures how much the assistance helped, by comparing proposals with accepted labels.

`matching` pairs them. Proposals do not know their project; on an image that two share, they count in both.
"""

from __future__ import annotations

import statistics
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Literal

from clickmask.labels.submissions import AcceptedLabel
from clickmask.masks.rle import rle_iou
from clickmask.reports.matching import MAX_CLOCK_SKEW_S, marks, pair
from clickmask.store import PrelabelledObject, RememberedProposal, Store

UNTOUCHED_IOU = 0.99  # the tool may have encoded the mask again
OUTLINED_IOU = 0.95  # the same for an outline with few points if nobody moved a vertex

Outcome = Literal["untouched", "edited", "unassisted", "rejected", "open"]
Axis = Literal["category", "segmenter", "week"]


@dataclass(frozen=True)
class Entry:
    """An accepted object with its session, an object without one, or a session without an object."""

    outcome: Outcome  # a session without an object is rejected, or open until its image is submitted
    category: str  # empty for a session without an object
    segmenter: str  # empty for an object without a session
    at: float  # time of acceptance, else of the last proposal; seconds since 1970
    first_iou: float | None  # IoU of the session's first proposal with the accepted object
    last_iou: float | None  # IoU of the last or the accepted proposal with the accepted object
    clicks: int | None  # marks in the last prompt; a box counts as one
    seconds: float | None  # from the first to the last proposal


@dataclass(frozen=True)
class Summary:
    """Summary of entries with the same category, segmenter or week. None means nothing to average."""

    name: str
    objects: int  # accepted
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
    prelabels: Sequence[PrelabelledObject] = (),
) -> list[Entry]:
    """Entries for the objects and sessions on one image.

    `labels` are from all annotators; `submitted` means that one submitted the image, even without labels.
    """
    paired, unaccepted = pair(proposals, prelabels, labels)
    entries: list[Entry] = []
    for accepted, session in paired:
        category, at = accepted.label.category, accepted.label.accepted_at
        if session is None:
            entries.append(Entry("unassisted", category, "", at, None, None, None, None))
            continue
        first, step = session.first, session.steps[-1]
        named = [each for each in step if each.id == accepted.label.proposal]
        last = named[0] if named else max(step, key=lambda each: rle_iou(each.rle, accepted.rle))
        first_iou, last_iou = rle_iou(first.rle, accepted.rle), rle_iou(last.rle, accepted.rle)
        # An outline with few points already differed from the mask when it was shown.
        untouched = last_iou >= (OUTLINED_IOU if accepted.outlined else UNTOUCHED_IOU)
        outcome: Outcome = "untouched" if untouched else "edited"
        seconds = last.created_at - first.created_at
        entries.append(
            Entry(outcome, category, last.segmenter, at, first_iou, last_iou, _clicks(last), seconds)
        )
    never = float("inf") if submitted else float("-inf")
    until = max((label.accepted_at for label in labels), default=never) + MAX_CLOCK_SKEW_S
    for session in unaccepted:
        last, seconds = session.last, session.last.created_at - session.first.created_at
        outcome = "rejected" if last.created_at <= until else "open"
        entries.append(
            Entry(outcome, "", last.segmenter, last.created_at, None, None, _clicks(last), seconds)
        )
    return entries


def read(store: Store, tool: str, project: str) -> list[Entry]:
    """All entries of a project."""
    labels: dict[str, list[AcceptedLabel]] = {image.digest: [] for image in store.images(tool, project)}
    for label in store.labels(tool, project, all_annotations=True):
        labels.setdefault(label.image, []).append(label)
    return [
        entry
        for digest, own in sorted(labels.items())
        for entry in match(store.proposals(digest), own, True, store.prelabels(digest))
    ]


def summarise(entries: Iterable[Entry], by: Axis | None = None) -> list[Summary]:
    """Summaries by category, segmenter or ISO 8601 week (UTC), sorted by name; a single one without `by`."""
    groups: dict[str, list[Entry]] = {} if by else {"": []}
    for entry in entries:
        year, week, _ = datetime.fromtimestamp(entry.at, UTC).isocalendar()
        names = {"category": entry.category, "segmenter": entry.segmenter, "week": f"{year}-W{week:02}"}
        groups.setdefault(names[by] if by else "", []).append(entry)
    return [_summary(name, groups[name]) for name in sorted(groups)]


def _clicks(proposal: RememberedProposal) -> int:
    foreground, background, box = marks(proposal)
    return len(foreground) + len(background) + (box is not None)


def _summary(name: str, entries: Sequence[Entry]) -> Summary:
    outcomes = Counter(entry.outcome for entry in entries)
    assisted = [entry for entry in entries if entry.outcome in ("untouched", "edited")]

    def averaged(average: Callable[[list[float]], float], values: Iterable[float | None]) -> float | None:
        there = [value for value in values if value is not None]
        return average(there) if there else None

    return Summary(
        name,
        len(assisted) + outcomes["unassisted"],
        outcomes["untouched"],
        outcomes["edited"],
        outcomes["unassisted"],
        outcomes["rejected"],
        averaged(statistics.fmean, (entry.first_iou for entry in assisted)),
        averaged(statistics.fmean, (entry.last_iou for entry in assisted)),
        averaged(statistics.fmean, (entry.clicks for entry in assisted)),
        averaged(statistics.median, (entry.seconds for entry in assisted)),
    )
