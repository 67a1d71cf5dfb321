from __future__ import annotations

import json
import time
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from clickmask.masks.rle import mask_to_rle
from clickmask.reports.assistance import Entry, match, read, summarise
from clickmask.reports.matching import prompt_sessions
from clickmask.store import PrelabelledObject, RememberedProposal, Store
from clickmask.types import Mask, Point, Prediction, Prompt
from support.drawn import disc, rectangle
from support.labelled import PROJECT, SIZE, TOOL, accepted, brush, digest_of, submit

pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")
LEFT, RIGHT = disc(centre=(16.0, 24.0), radius=12.0), disc(centre=(48.0, 24.0), radius=12.0)
A, B, C = (16.0, 24.0), (20.0, 30.0), (48.0, 24.0)


def proposal(
    name: str,
    mask: Mask,
    foreground: Sequence[Point] = (A,),
    background: Sequence[Point] = (),
    box: Sequence[float] | None = None,
    at: float = 100.0,
    segmenter: str = "disc",
) -> RememberedProposal:
    prompt = json.dumps({"foreground": foreground, "background": background, "box": box})
    return RememberedProposal(name, at, digest_of("a"), segmenter, 0.9, prompt, mask_to_rle(mask))


def ids(proposals: Sequence[RememberedProposal]) -> list[list[list[str]]]:
    return [[[each.id for each in step] for step in session.steps] for session in prompt_sessions(proposals)]


def shrunk(mask: Mask, columns: int) -> Mask:
    """Without its first columns."""
    smaller = mask.copy()
    smaller[:, : np.flatnonzero(mask.any(axis=0))[0] + columns] = False
    return smaller


def test_proposals_whose_prompts_extend_each_other_are_one_session() -> None:
    made = [
        proposal("1", LEFT),
        proposal("2", LEFT, (A, B)),
        proposal("3", LEFT, (A, B), (C,)),
        proposal("4", LEFT, (A, B), (C,), (0, 0, 60, 40)),
        proposal("5", RIGHT, (C,)),
    ]
    assert ids(made) == [[["1"], ["2"], ["3"], ["4"]], [["5"]]]


def test_the_candidates_of_one_answer_are_one_step_and_another_segmenters_are_not() -> None:
    made = [proposal("1", LEFT), proposal("2", LEFT), proposal("3", LEFT, segmenter="sam")]
    assert ids(made) == [[["1", "2"], ["3"]]]


def test_a_click_that_is_taken_back_stays_in_its_session() -> None:
    made = [
        proposal("1", LEFT),
        proposal("2", LEFT, (A, C)),
        proposal("3", LEFT),
        proposal("4", LEFT, (A, B)),
    ]
    assert ids(made) == [[["1"], ["2"], ["3"], ["4"]]]


def test_annotators_who_take_turns_have_sessions_of_their_own() -> None:
    made = [
        proposal("1", LEFT, (A,)),
        proposal("2", RIGHT, (C,)),
        proposal("3", LEFT, (A, B)),
        proposal("4", RIGHT, (C, B)),
    ]
    assert ids(made) == [[["1"], ["3"]], [["2"], ["4"]]]


def test_another_box_is_another_object() -> None:
    made = [proposal("1", LEFT, (), box=(0, 0, 30, 40)), proposal("2", RIGHT, (), box=(30, 0, 60, 40))]
    assert ids(made) == [[["1"]], [["2"]]]


def test_what_was_accepted_as_proposed_is_untouched() -> None:
    made = [proposal("1", shrunk(LEFT, 6), at=100), proposal("2", LEFT, (A, B), at=107.5)]
    (entry,) = match(made, [accepted("a", LEFT, proposal="2")], True)
    assert (entry.outcome, entry.category, entry.segmenter) == ("untouched", "cell", "disc")
    assert entry.last_iou == 1
    assert entry.first_iou == pytest.approx(shrunk(LEFT, 6).sum() / LEFT.sum())
    assert (entry.clicks, entry.seconds, entry.at) == (2, 7.5, 1000.0)


@pytest.mark.parametrize(("missing", "outcome"), [(0, "untouched"), (3, "untouched"), (9, "edited")])
def test_from_an_iou_of_point_99_on_nothing_was_edited(missing: int, outcome: str) -> None:
    changed = LEFT.copy()
    changed[tuple(np.argwhere(LEFT)[:missing].T)] = False
    (entry,) = match([proposal("1", LEFT)], [accepted("a", changed, proposal="1")], True)
    assert entry.outcome == outcome
    assert (entry.last_iou >= 0.99) == (outcome == "untouched")


def test_an_earlier_answer_that_was_accepted_ends_the_session_there() -> None:
    made = [proposal("1", LEFT, at=100), proposal("2", RIGHT, (A, B), at=150)]
    (entry,) = match(made, [accepted("a", LEFT, proposal="1")], True)
    assert (entry.outcome, entry.clicks, entry.seconds) == ("untouched", 1, 0)


def test_the_second_candidate_may_be_the_accepted_one() -> None:
    made = [proposal("1", shrunk(LEFT, 8)), proposal("2", LEFT)]
    for label in (accepted("a", LEFT, proposal="2"), accepted("a", LEFT)):
        (entry,) = match(made, [label], True)
        assert entry.outcome == "untouched"


def test_polygons_of_one_proposal_are_one_object() -> None:
    both = LEFT | RIGHT
    labels = [accepted("a", part, region=f"1-{n}", proposal="1") for n, part in enumerate((LEFT, RIGHT))]
    (entry,) = match([proposal("1", both)], labels, True)
    assert (entry.outcome, entry.last_iou) == ("untouched", 1)


def test_without_ids_the_best_iou_decides_and_each_session_answers_once() -> None:
    made = [proposal("1", LEFT, (A,)), proposal("2", RIGHT, (C,))]
    labels = [
        accepted("a", shrunk(RIGHT, 2), "right", region="x"),
        accepted("a", shrunk(RIGHT, 4), "twice", region="y"),
        accepted("a", LEFT, "left", region="z"),
        accepted("a", rectangle(SIZE, (0, 40, 64, 48)), "by hand", region="w"),
    ]
    found = {entry.category: entry.outcome for entry in match(made, labels, True)}
    assert found == {"right": "edited", "twice": "unassisted", "left": "untouched", "by hand": "unassisted"}


def test_a_proposal_made_after_the_label_is_not_what_it_came_from() -> None:
    late = proposal("1", LEFT, at=2000.0)
    assert [entry.outcome for entry in match([late], [accepted("a", LEFT, at=1000.0)], True)] == [
        "unassisted",
        "open",
    ]


def test_a_proposal_that_was_forgotten_is_matched_by_its_mask() -> None:
    (entry,) = match([proposal("2", LEFT)], [accepted("a", LEFT, proposal="1")], True)
    assert entry.outcome == "untouched"


def test_two_annotators_may_accept_the_same_proposal() -> None:
    labels = [accepted("a", LEFT, proposal="1", annotation=name) for name in "12"]
    assert [entry.outcome for entry in match([proposal("1", LEFT)], labels, True)] == ["untouched"] * 2


def test_what_was_not_accepted_is_rejected_once_its_image_is_submitted() -> None:
    made = [proposal("1", LEFT, at=100), proposal("2", RIGHT, (C,), at=110)]
    outcomes = [entry.outcome for entry in match(made, [accepted("a", LEFT, proposal="1")], True)]
    assert outcomes == ["untouched", "rejected"]
    assert [entry.outcome for entry in match(made, [], True)] == ["rejected", "rejected"]
    assert [entry.outcome for entry in match(made, [], False)] == ["open", "open"]


def test_masks_of_another_size_are_not_compared() -> None:
    label = accepted("a", disc((20, 20), (10, 10), 5), size=(20, 20), proposal="1")
    (entry,) = match([proposal("1", LEFT)], [label], True)
    assert (entry.outcome, entry.last_iou) == ("edited", 0)


prompts = st.tuples(
    st.lists(st.sampled_from([A, B, C]), max_size=3), st.lists(st.sampled_from([A, B]), max_size=2)
)


@given(st.lists(prompts, max_size=12), st.lists(st.sampled_from(["", *map(str, range(12))]), max_size=6))
def test_every_object_and_every_session_is_accounted_for_once(
    drawn: list[tuple[list[Point], list[Point]]], from_: list[str]
) -> None:
    made = [proposal(str(n), LEFT if n % 2 else RIGHT, *marks) for n, marks in enumerate(drawn)]
    found = prompt_sessions(made)
    assert sorted(each.id for session in found for step in session.steps for each in step) == sorted(
        each.id for each in made
    )
    labels = [
        accepted("a", LEFT, region=str(n), annotation=str(n), proposal=name or None)
        for n, name in enumerate(from_)
    ]
    entries = match(made, labels, True)
    outcomes = [entry.outcome for entry in entries]
    assert len(entries) - outcomes.count("rejected") == len(labels)
    assert outcomes.count("rejected") <= len(found)
    assert sum(summary.objects for summary in summarise(entries, "category")) == len(labels)


def entry(category: str = "cell", at: float = 0.0, **more: object) -> Entry:
    values = {
        "outcome": "edited",
        "segmenter": "sam",
        "first_iou": 0.5,
        "last_iou": 0.9,
        "clicks": 2,
        "seconds": 4.0,
    }
    return Entry(category=category, at=at, **(values | more))


def test_a_summary_averages_what_was_assisted() -> None:
    entries = [
        entry(),
        entry(outcome="untouched", first_iou=0.9, last_iou=1.0, clicks=1, seconds=0.0),
        entry(seconds=20.0),
        entry(outcome="unassisted", segmenter="", first_iou=None, last_iou=None, clicks=None, seconds=None),
        entry("", outcome="rejected", first_iou=None, last_iou=None, clicks=9, seconds=99.0),
        entry("", outcome="open", first_iou=None, last_iou=None),
    ]
    (all_of_it,) = summarise(entries)
    assert (all_of_it.objects, all_of_it.untouched, all_of_it.edited) == (4, 1, 2)
    assert (all_of_it.unassisted, all_of_it.rejected) == (1, 1)
    assert all_of_it.first_iou == pytest.approx(1.9 / 3)
    assert all_of_it.last_iou == pytest.approx(2.8 / 3)
    assert (all_of_it.clicks, all_of_it.seconds) == (pytest.approx(5 / 3), 4.0)
    rejected, cell = summarise(entries, "category")
    assert (rejected.name, rejected.objects, rejected.rejected, rejected.clicks) == ("", 0, 1, None)
    assert cell.objects == 4
    assert [summary.name for summary in summarise(entries, "segmenter")] == ["", "sam"]


def test_weeks_are_those_of_iso_8601() -> None:
    new_year_2027 = 1798761600.0  # a Friday
    found = summarise([entry(at=new_year_2027), entry(at=new_year_2027 + 3 * 86400)], "week")
    assert [summary.name for summary in found] == ["2026-W53", "2027-W01"]
    assert summarise([])[0].objects == 0
    assert summarise([], "week") == []


def test_the_ledger_of_a_project_is_read_from_the_store(store: Store) -> None:
    for name, mask, point in (("1", LEFT, A), ("2", RIGHT, C)):
        store.remember_proposal(
            name, digest_of("a"), Prompt(foreground=(point,)), Prediction(mask, 0.9, "disc")
        )
    submit(store, "a", {"1": ("cell", brush(LEFT))}, task="1", at=time.time(), proposals=["1"])
    submit(store, "b", {"x": ("cell", brush(LEFT))}, task="2", at=time.time())
    submit(store, "c", {}, task="3", at=time.time())
    store.remember_proposal("3", digest_of("c"), Prompt(foreground=(A,)), Prediction(LEFT, 0.9, "disc"))
    (summary,) = summarise(read(store, TOOL, PROJECT))
    assert (summary.objects, summary.untouched, summary.unassisted, summary.rejected) == (2, 1, 1, 2)


def test_regions_that_were_refined_are_objects_of_their_own(store: Store) -> None:
    """Without a point, all of them would be one session, which every later click goes on with."""
    prompts = Prompt(mask=LEFT), Prompt((B,), mask=LEFT), Prompt(mask=RIGHT), Prompt((C,))
    for name, (prompt, mask) in enumerate(zip(prompts, (LEFT, LEFT, RIGHT, RIGHT), strict=True)):
        store.remember_proposal(f"{name}", digest_of("a"), prompt, Prediction(mask, 0.9, "disc"))
    assert ids(store.proposals(digest_of("a"))) == [[["0"], ["1"]], [["2"]], [["3"]]]
    submit(store, "a", {"1": ("cell", brush(LEFT))}, task="1", at=time.time(), proposals=["1"])
    entry = next(each for each in read(store, TOOL, PROJECT) if each.outcome == "untouched")
    assert entry.clicks == 2  # the region, and the point


def preannotated(name: str, mask: Mask, batch: str = "first", at: float = 100.0) -> PrelabelledObject:
    return PrelabelledObject(name, batch, at, "trained:label_studio-7", "cell", 0.9, mask_to_rle(mask))


def outcomes(entries: Sequence[Entry]) -> list[tuple[str, str]]:
    return [(entry.outcome, entry.segmenter) for entry in entries]


def test_what_a_model_drew_is_judged_as_a_session_without_a_click() -> None:
    drawn = [
        preannotated("kept", LEFT),
        preannotated("changed", RIGHT),
        preannotated("thrown away", LEFT | RIGHT),
    ]
    labels = [
        accepted("a", LEFT, region="kept-0", proposal="kept"),
        accepted("a", shrunk(RIGHT, 4), region="changed-0", proposal="changed"),
    ]
    found = match([], labels, True, drawn)
    model = "trained:label_studio-7"
    assert outcomes(found) == [("untouched", model), ("edited", model), ("rejected", model)]
    assert [entry.clicks for entry in found] == [0, 0, 0]


def test_a_tool_that_keeps_no_ids_is_asked_by_overlap() -> None:
    found = match(
        [], [accepted("a", shrunk(LEFT, 2))], True, [preannotated("1", LEFT), preannotated("2", RIGHT)]
    )
    assert [entry.outcome for entry in found] == ["edited", "rejected"]


def test_clicks_go_on_with_no_object_that_a_model_drew() -> None:
    found = match(
        [proposal("1", RIGHT)], [accepted("a", RIGHT, proposal="1")], True, [preannotated("2", LEFT)]
    )
    assert outcomes(found) == [("untouched", "disc"), ("rejected", "trained:label_studio-7")]
    assert found[0].clicks == 1


def test_what_another_look_replaced_is_not_rejected() -> None:
    looks = [
        preannotated("1", LEFT, "first"),
        preannotated("2", LEFT, "second", at=200.0),
        preannotated("3", RIGHT, "second", at=200.0),
        preannotated("4", RIGHT, "after it was submitted", at=5000.0),
    ]
    found = match([], [accepted("a", LEFT, proposal="2", at=1000.0)], True, looks)
    assert [entry.outcome for entry in found] == ["untouched", "rejected", "open"]
    # A look that gave nothing replaces as well.
    nothing = replace(preannotated("5", LEFT & RIGHT, "third", at=300.0), label="")
    found = match([], [accepted("a", RIGHT, at=1000.0)], True, [looks[0], nothing])
    assert [entry.outcome for entry in found] == ["unassisted"]
    # What was accepted of an earlier look was.
    found = match([], [accepted("a", LEFT, proposal="1", at=1000.0)], True, looks)
    assert [entry.outcome for entry in found] == ["untouched", "rejected", "rejected", "open"]


def test_a_projects_entries_know_what_its_model_drew(store: Store) -> None:
    drawn = {"kept": Prediction(LEFT, 0.9, "unet"), "gone": Prediction(RIGHT, 0.8, "unet")}
    shown = [(name, "cell", prediction) for name, prediction in drawn.items()]
    store.remember_prelabels(digest_of("a"), SIZE, "unet", shown)
    submit(store, "a", {"kept": ("cell", brush(LEFT))}, task="1", at=time.time(), proposals=["kept"])
    (of_model,) = summarise(read(store, TOOL, PROJECT), "segmenter")[1:] or summarise(
        read(store, TOOL, PROJECT), "segmenter"
    )
    assert (of_model.name, of_model.untouched, of_model.rejected) == ("unet", 1, 1)
