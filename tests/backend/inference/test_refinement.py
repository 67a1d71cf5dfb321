"""Clicks that correct the answer before them, and repeated clicks that ask for another."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from clickmask.inference.refinement import (
    MAX_REPLAY_STEPS,
    LogitsCache,
    Refinement,
    replay,
    steps,
    without_repeats,
)
from clickmask.types import ImageRef, Logits, Mask, Point, Prediction, Prompt, Refinable
from clickmask.workbench import Workbench
from support.fakes import DiscSegmenter, disc_mask
from support.pictures import png_data_uri

SIZE = (60, 80)
EMBEDDING = np.zeros(SIZE, np.uint8)
A, B, C = (10.0, 10.0), (40.0, 30.0), (70.0, 50.0)


class Rememberer:
    """Its logits are a hash of all that it was shown, so equal answers had equal conversations."""

    name = "rememberer"

    def __init__(self) -> None:
        self.asked: list[tuple[int, bool]] = []  # points, and whether there were logits

    def encode(self, image: object) -> NDArray[np.uint8]:
        return EMBEDDING

    def decode(self, embedding: NDArray[np.uint8], prompt: Prompt) -> list[Prediction]:
        return replay(self, embedding, prompt)

    def decode_from(
        self, embedding: NDArray[np.uint8], prompt: Prompt, logits: Logits | None
    ) -> tuple[list[Prediction], Logits]:
        self.asked.append((len(prompt.foreground) + len(prompt.background), logits is not None))
        shown = [
            prompt.foreground,
            prompt.background,
            prompt.box,
            logits if logits is None else logits.tolist(),
        ]
        if logits is None and prompt.mask is not None:
            shown.append(prompt.mask.tolist())
        random = np.random.default_rng(list(hashlib.sha256(repr(shown).encode()).digest()))
        count = 3 if logits is None and len(prompt.foreground) == 1 and prompt.box is None else 1
        made = random.normal(size=(count, 6, 8)).astype(np.float32)
        for x, y in prompt.foreground:
            made[:, int(y) // 10, int(x) // 10] = 1.0
        masks = [np.kron(candidate > 0, np.ones((10, 10), np.bool_)) for candidate in made]
        return [Prediction(mask, 0.9 - 0.1 * n, self.name) for n, mask in enumerate(masks)], made


def answer(prompt: Prompt, refinement: Refinement | None = None, digest: str = "image") -> list[Prediction]:
    return (refinement or Refinement()).decode(Rememberer(), EMBEDDING, prompt, digest, SIZE)


def same(predictions: Sequence[Prediction], others: Sequence[Prediction]) -> bool:
    return len(predictions) == len(others) and all(
        np.array_equal(one.mask, other.mask) and one.score == other.score
        for one, other in zip(predictions, others, strict=True)
    )


def test_a_segmenter_that_refines_is_told_from_one_that_does_not() -> None:
    assert isinstance(Rememberer(), Refinable)
    assert not isinstance(DiscSegmenter(), Refinable)


def test_each_click_corrects_the_mask_of_those_before_it() -> None:
    segmenter = Rememberer()
    Refinement().decode(segmenter, EMBEDDING, Prompt((A, B), (C,), (5.0, 5.0, 60.0, 40.0)), "image", SIZE)
    assert segmenter.asked == [(0, False), (1, True), (2, True), (3, True)]


def test_the_next_click_costs_one_decode() -> None:
    segmenter, refinement = Rememberer(), Refinement()
    for prompt in (Prompt((A,)), Prompt((A, B)), Prompt((A, B), (C,))):
        segmenter.asked.clear()
        refinement.decode(segmenter, EMBEDDING, prompt, "image", SIZE)
        assert len(segmenter.asked) == 1


def test_each_repeat_of_a_click_costs_one_decode() -> None:
    segmenter, refinement = Rememberer(), Refinement()
    first, *_ = (refinement.decode(segmenter, EMBEDDING, Prompt((A,) * n), "image", SIZE) for n in (1, 2, 3))
    assert [count for count, _ in segmenter.asked] == [1, 1, 1]
    assert same(first, answer(Prompt((A,))))


def test_a_click_taken_back_costs_one_decode() -> None:
    segmenter, refinement = Rememberer(), Refinement()
    for prompt in (Prompt((A, B)), Prompt((A, B, C)), Prompt((A, B))):
        segmenter.asked.clear()
        refinement.decode(segmenter, EMBEDDING, prompt, "image", SIZE)
    assert len(segmenter.asked) == 1


POINTS = st.sampled_from([A, B, C, (11.0, 11.0), (41.5, 30.0), (70.0, 10.0)])
MASK = np.zeros(SIZE, np.bool_)
MASK[20:40, 20:40] = True
PROMPTS = st.builds(
    Prompt,
    st.lists(POINTS, min_size=1, max_size=5).map(tuple),
    st.lists(POINTS, max_size=2).map(tuple),
    st.sampled_from([None, (5.0, 5.0, 60.0, 40.0), (5.0, 5.0, 60.0, 41.0)]),
    st.sampled_from([None, MASK, ~MASK]),
)


@settings(deadline=None)
@given(st.lists(PROMPTS, min_size=1, max_size=8), st.sampled_from([0, 500, 2000, 64 * 2**20]))
def test_an_answer_never_depends_on_what_was_asked_before(prompts: list[Prompt], capacity: int) -> None:
    refinement = Refinement(LogitsCache(capacity))
    for prompt in prompts:
        assert same(answer(prompt, refinement), answer(prompt))


def test_two_images_share_no_logits() -> None:
    segmenter, refinement = Rememberer(), Refinement()
    for digest in ("one", "other"):
        refinement.decode(segmenter, EMBEDDING, Prompt((A, B)), digest, SIZE)
    assert [had_logits for _, had_logits in segmenter.asked] == [False, True] * 2


def test_threads_on_two_images_get_the_serial_answers() -> None:
    prompts = [Prompt(points) for points in ((A,), (A, B), (A, B, C), (B,), (B, A), (A, A, B), (C, B, A))]
    jobs = [(prompt, digest) for prompt in prompts for digest in ("one", "other")] * 5
    shared = Refinement(LogitsCache(1000))
    with ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(lambda job: answer(job[0], shared, job[1]), jobs))
    assert all(same(got, answer(prompt)) for got, (prompt, _) in zip(answers, jobs, strict=True))


def test_decode_is_the_replay_without_a_cache() -> None:
    prompt = Prompt((A, B), (C,))
    assert same(Rememberer().decode(EMBEDDING, prompt), answer(prompt))


def test_a_mask_counts_at_the_first_step_and_tells_prompts_apart() -> None:
    refinement = Refinement()
    with_mask = answer(Prompt((A, B), mask=MASK), refinement)
    assert not same(with_mask, answer(Prompt((A, B)), refinement))
    assert not same(with_mask, answer(Prompt((A, B), mask=~MASK), refinement))
    assert same(answer(Prompt(mask=MASK), refinement), answer(Prompt(mask=MASK)))
    assert len(answer(Prompt(background=(B,), mask=MASK), refinement)) == 1


def test_a_repeated_click_asks_for_the_next_candidate_and_then_for_the_first_again() -> None:
    first, second, third = answer(Prompt((A,)))
    assert same(answer(Prompt((A, A))), [second, third, first])
    assert same(answer(Prompt((A, A, (12.0, 12.0)))), [third, first, second])
    assert same(answer(Prompt((A, A, A, A))), [first, second, third])


def test_the_click_after_a_repeated_one_corrects_the_candidate_that_was_chosen() -> None:
    plain, cycled = answer(Prompt((A, B))), answer(Prompt((A, A, B)))
    assert not same(plain, cycled)
    segmenter = Rememberer()
    _, candidates = segmenter.decode_from(EMBEDDING, Prompt((A,)), None)
    predictions, _ = segmenter.decode_from(EMBEDDING, Prompt((A, B)), candidates[1:2])
    assert same(cycled, predictions)


def test_a_background_click_keeps_the_candidate_that_was_chosen() -> None:
    segmenter = Rememberer()
    _, candidates = segmenter.decode_from(EMBEDDING, Prompt((A,)), None)
    predictions, _ = segmenter.decode_from(EMBEDDING, Prompt((A,), (C,)), candidates[2:3])
    assert same(answer(Prompt((A, A, A), (C,))), predictions)


def test_a_segmenter_that_does_not_refine_cycles_too() -> None:
    class Three(DiscSegmenter):
        def decode(self, embedding: NDArray[np.uint8], prompt: Prompt) -> list[Prediction]:
            assert len(prompt.foreground) == 1
            mask = super().decode(embedding, prompt)[0].mask
            return [Prediction(mask, score, self.name) for score in (0.9, 0.5, 0.1)]

    def scores(prompt: Prompt) -> list[float]:
        predictions = Refinement().decode(Three(), EMBEDDING, prompt, "image", SIZE)
        return [prediction.score for prediction in predictions]

    assert scores(Prompt((A,))) == [0.9, 0.5, 0.1]
    assert scores(Prompt((A, A))) == [0.5, 0.1, 0.9]
    assert scores(Prompt((A, A), (C,))) == [0.9, 0.5, 0.1]  # its last click is no repeated one


def three_that_cover(mask: Mask) -> Callable[[Prompt, Sequence[int]], list[Prediction]]:
    candidates = [Prediction(mask, score, "three") for score in (0.9, 0.5, 0.1)]
    return lambda prompt, turns: candidates


def test_a_near_click_beside_the_mask_is_a_click_and_so_is_one_where_there_is_no_other_candidate() -> None:
    mask = np.zeros(SIZE, np.bool_)
    mask[:, :11] = True  # up to x = 11
    inside, beside = (10.5, 10.0), (11.5, 10.0)
    for point, turns in ((inside, (1,)), (beside, (0, 0))):
        assert without_repeats(Prompt((A, point)), SIZE, three_that_cover(mask))[1] == turns
    one = Prediction(np.ones(SIZE, np.bool_), 0.9, "one")
    assert without_repeats(Prompt((A, A)), SIZE, lambda prompt, turns: [one])[1] == (0, 0)
    # The click after the one beside the mask repeats that one.
    whole = three_that_cover(np.ones(SIZE, np.bool_))

    def answer(prompt: Prompt, turns: Sequence[int]) -> list[Prediction]:
        return (three_that_cover(mask) if len(prompt.foreground) == 1 else whole)(prompt, turns)

    assert without_repeats(Prompt((A, beside, beside)), SIZE, answer)[1] == (0, 1)


def test_a_repeated_click_is_judged_by_the_candidate_that_was_shown() -> None:
    empty, whole = np.zeros(SIZE, np.bool_), np.ones(SIZE, np.bool_)
    candidates = [Prediction(mask, 0.5, "two") for mask in (whole, empty)]
    # The second candidate does not cover the click, so the third click there is no repeated one.
    assert without_repeats(Prompt((A, A, A)), SIZE, lambda *_: candidates)[1] == (1, 0)


def test_a_prompt_of_a_thousand_near_clicks_asks_a_bounded_number_of_times() -> None:
    asked: list[Prompt] = []

    def answer(prompt: Prompt, turns: Sequence[int]) -> list[Prediction]:
        asked.append(prompt)
        return three_that_cover(np.zeros(SIZE, np.bool_))(prompt, turns)

    prompt, *_ = without_repeats(Prompt((A,) * 1000), SIZE, answer)
    assert len(asked) <= 16
    assert len(prompt.foreground) == 1000


def test_a_near_click_that_background_clicks_left_out_of_the_mask_is_a_click() -> None:
    class Halves(DiscSegmenter):
        """A click selects everything; with a background click, only what is left of the last click."""

        def decode(self, embedding: NDArray[np.uint8], prompt: Prompt) -> list[Prediction]:
            mask = np.ones(SIZE, np.bool_)
            if prompt.background:
                mask[:, int(prompt.foreground[-1][0]) + 1 :] = False
            return [Prediction(mask, score, self.name) for score in (0.9, 0.5)]

    def shown(*points: tuple[float, float]) -> Mask:
        return Refinement().decode(Halves(), EMBEDDING, Prompt(points, (C,)), "image", SIZE)[0].mask

    assert not shown((10.5, 10.0))[10, 12]
    assert shown((10.5, 10.0), (12.5, 10.0))[10, 12]


def test_clicks_that_are_far_apart_ask_nothing() -> None:
    without_repeats(Prompt((A, B, C)), SIZE, lambda *_: pytest.fail("it was asked"))


WHOLE = three_that_cover(np.ones(SIZE, np.bool_))


@pytest.mark.parametrize(
    ("size", "offset", "repeated"),
    [
        ((60, 80), 3.0, True),  # at most 3 px
        ((60, 80), 3.01, False),
        ((2000, 1000), 9.9, True),  # 0.5 % of the long side are 10 px
        ((2000, 1000), 10.1, False),
    ],
)
def test_how_near_a_repeated_click_is(size: tuple[int, int], offset: float, repeated: bool) -> None:
    prompt, turns, _ = without_repeats(
        Prompt(((20.0, 20.0), (20.0, 20.0 + offset))), size, three_that_cover(np.ones(size, np.bool_))
    )
    assert (len(prompt.foreground), turns) == ((1, (1,)) if repeated else (2, (0, 0)))


def test_repeats_are_measured_from_the_click_that_counts() -> None:
    """So a row of close clicks along a thin thing is no single click that wandered."""
    row = tuple((10.0 + 2 * n, 10.0) for n in range(4))
    prompt, turns, _ = without_repeats(Prompt(row), SIZE, WHOLE)
    assert (prompt.foreground, turns) == ((row[0], row[2]), (1, 1))


def test_a_click_at_an_earlier_place_is_a_new_one() -> None:
    assert without_repeats(Prompt((A, B, A)), SIZE, WHOLE)[1] == (0, 0, 0)


def test_background_clicks_and_the_rest_of_a_prompt_are_left_alone() -> None:
    given_prompt = Prompt((A, A), (B, B), (5.0, 5.0, 60.0, 40.0), MASK)
    prompt, turns, _ = without_repeats(given_prompt, SIZE, WHOLE)
    assert (prompt.foreground, turns) == ((A,), (1,))
    assert (prompt.background, prompt.box) == ((B, B), given_prompt.box)
    assert prompt.mask is MASK


def test_the_order_is_box_then_foreground_then_background() -> None:
    box = (5.0, 5.0, 60.0, 40.0)
    beginnings = [step.prompt for step in steps(Prompt((A, B), (C,), box))]
    assert [(each.box, each.foreground, each.background) for each in beginnings] == [
        (box, (), ()),
        (box, (A,), ()),
        (box, (A, B), ()),
        (box, (A, B), (C,)),
    ]


def test_a_thousand_points_are_not_a_thousand_decodes() -> None:
    row: tuple[Point, ...] = tuple((4.0 * (n % 2), 0.06 * n) for n in range(1000))
    segmenter = Rememberer()
    Refinement().decode(segmenter, EMBEDDING, Prompt(row), "image", SIZE)
    assert len(segmenter.asked) <= MAX_REPLAY_STEPS


def test_clicks_beyond_the_longest_replay_still_cost_one_decode_each() -> None:
    segmenter, refinement = Rememberer(), Refinement()
    row: tuple[Point, ...] = tuple((4.0 * (n % 2), float(n)) for n in range(2 * MAX_REPLAY_STEPS + 3))
    for count in range(1, len(row) + 1):
        segmenter.asked.clear()
        refinement.decode(segmenter, EMBEDDING, Prompt(row[:count]), "image", SIZE)
        assert len(segmenter.asked) == 1


def test_kept_logits_are_bounded_and_the_least_used_go_first() -> None:
    logits = np.zeros((1, 8, 8), np.float32)  # 256 bytes
    cache = LogitsCache(700)
    cache.put("a", logits)
    cache.put("b", logits)
    assert cache.get("a") is not None
    cache.put("c", logits)
    assert [cache.get(key) is None for key in "abc"] == [False, True, False]
    for _ in range(5):
        cache.put("c", logits)  # the same key again takes no more room
    assert cache.get("a") is not None


def test_kept_logits_do_not_keep_the_other_candidates_alive() -> None:
    candidates = np.zeros((3, 8, 8), np.float32)
    cache = LogitsCache()
    cache.put("a", candidates[1:2])
    kept = cache.get("a")
    assert kept is not None and kept.base is None


def test_the_workbench_proposes_the_next_candidate_where_a_click_is_repeated(
    workbench: Workbench, disc: DiscSegmenter, monkeypatch: pytest.MonkeyPatch
) -> None:
    def three(embedding: NDArray[np.uint8], prompt: Prompt) -> list[Prediction]:
        mask = disc_mask(embedding.shape, prompt.foreground)
        return [Prediction(mask, score, disc.name) for score in (0.9, 0.5, 0.1)]

    monkeypatch.setattr(disc, "decode", three)
    clicks = ((40.0, 30.0), (41.0, 31.0), (39.0, 30.0))
    for count, expected in [(1, [0.9, 0.5, 0.1]), (2, [0.5, 0.1, 0.9]), (3, [0.1, 0.9, 0.5])]:
        proposals = workbench.propose(ImageRef(png_data_uri()), Prompt(clicks[:count]))
        assert [proposal.prediction.score for proposal in proposals] == expected
        assert np.array_equal(proposals[0].prediction.mask, disc_mask((60, 80), clicks[:1]))


def test_the_workbench_keeps_the_logits_of_an_image(
    workbench: Workbench, disc: DiscSegmenter, monkeypatch: pytest.MonkeyPatch
) -> None:
    segmenter = Rememberer()
    monkeypatch.setattr(disc, "decode_from", segmenter.decode_from, raising=False)
    for points in ((A,), (A, B)):
        workbench.propose(ImageRef(png_data_uri()), Prompt(points))
    workbench.propose(ImageRef(png_data_uri(shade=7)), Prompt((A, B)))
    assert segmenter.asked == [(1, False), (2, True), (1, False), (2, True)]
