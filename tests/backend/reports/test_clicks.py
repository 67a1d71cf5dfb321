"""The click protocol, by hand: where the simulated annotator clicks, and what is made of the answers."""

from __future__ import annotations

import logging
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from clickmask.datasets.coco_reader import CocoObject, sample_objects
from clickmask.inference.refinement import replay
from clickmask.masks.controls import Controls
from clickmask.reports.clicks import (
    Click,
    Trial,
    central_point,
    evaluate,
    intervals,
    next_click,
    summarise,
    summarise_categories,
)
from clickmask.types import Image, Logits, Mask, Point, Prediction, Prompt
from support.coco_folders import flat, write_dataset, write_picture
from support.drawn import disc, empty, full, line, rectangle

SIZE = (20, 40)


class Recorded:
    """Answers each prompt with the next of `answers`, the last one again and again; keeps the prompts."""

    name = "recorded"

    def __init__(self, *answers: Mask) -> None:
        self.answers = list(answers)
        self.prompts: list[Prompt] = []
        self.encoded: list[str] = []

    def encode(self, image: Image) -> NDArray[np.uint8]:
        self.encoded.append(image.digest)
        return image.pixels

    def decode(self, embedding: NDArray[np.uint8], prompt: Prompt) -> list[Prediction]:
        self.prompts.append(prompt)
        answer = self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]
        return [Prediction(answer, 0.9, self.name), Prediction(~answer, 0.1, self.name)]


class Blind(Recorded):
    """Sees nothing anywhere, whatever it is asked."""

    def __init__(self) -> None:
        super().__init__(np.zeros(SIZE, np.bool_))


def objects_of(folder: Path, *masks: Mask) -> list[CocoObject]:
    return list(sample_objects(write_dataset(folder, [(flat(masks[0].shape), masks)]), smallest=1).objects)


@pytest.mark.parametrize(
    ("mask", "point"),
    [
        (rectangle(SIZE, (10, 5, 21, 16)), (15.5, 10.5)),  # 11 x 11: its centre
        (rectangle(SIZE, (10, 5, 20, 15)), (14.5, 9.5)),  # 10 x 10: the first of the four in the middle
        (rectangle(SIZE, (0, 5, 7, 12)), (3.5, 8.5)),  # at the edge: what lies beyond is outside
        (disc((48, 64), (30.5, 24.5), 15.0), (30.5, 24.5)),
        (rectangle(SIZE, (0, 0, 9, 9)) | rectangle(SIZE, (20, 2, 31, 13)), (25.5, 7.5)),  # the larger part
        (line(), (4.5, 9.5)),
        (full(), (5.5, 5.5)),  # 12 x 17
        (empty(), None),
    ],
    ids=["odd", "even", "cut", "disc", "parts", "line", "full", "empty"],
)
def test_the_first_click_is_where_the_object_is_deepest(mask: Mask, point: Point | None) -> None:
    assert central_point(mask) == point


def test_the_next_click_is_in_the_larger_error_and_says_which_it_is() -> None:
    truth = rectangle(SIZE, (5, 4, 16, 15))  # 11 x 11
    nothing = np.zeros_like(truth)
    wrong = rectangle(SIZE, (24, 4, 33, 13))  # 9 x 9
    assert next_click(nothing, truth) == Click((10.5, 9.5), True)
    assert next_click(wrong, truth) == Click((10.5, 9.5), True), "11 px missed are more than 9 wrong"
    assert next_click(truth | wrong, truth) == Click((28.5, 8.5), False)
    assert next_click(truth, truth) is None
    assert next_click(nothing, nothing) is None
    strip = truth & ~rectangle(SIZE, (5, 4, 8, 15))  # 3 px of the left are missed, 5 px wrong on the right
    assert next_click(strip | rectangle(SIZE, (16, 4, 21, 15)), truth) == Click((18.5, 6.5), False)
    assert next_click(strip, truth) == Click((6.5, 5.5), True)


def test_an_error_that_is_missed_comes_before_an_equal_one_that_is_wrong() -> None:
    truth, found = rectangle(SIZE, (20, 5, 25, 10)), rectangle(SIZE, (4, 5, 9, 10))
    assert next_click(found, truth) == Click((22.5, 7.5), True)


def test_a_trial_gathers_the_clicks_and_counts_by_hand(tmp_path: Path) -> None:
    truth = rectangle(SIZE, (4, 4, 15, 15))  # 121 px
    half = rectangle(SIZE, (4, 4, 15, 9))  # 55 px, all inside
    more = truth | rectangle(SIZE, (15, 4, 26, 15))  # 242 px
    boxed = rectangle(SIZE, (4, 4, 15, 14))  # 110 px
    segmenter = Recorded(half, more, truth, boxed)
    (trial,) = evaluate(segmenter, objects_of(tmp_path, truth), clicks=5)
    assert trial.ious == (55 / 121, 0.5, 1.0, 1.0, 1.0)
    assert trial.box_iou == 110 / 121
    first, missed, wrong = (9.5, 9.5), (6.5, 11.5), (20.5, 9.5)  # 6 rows are missed: 3 px deep
    asked = [(prompt.foreground, prompt.background, prompt.box) for prompt in segmenter.prompts]
    assert asked == [
        ((first,), (), None),
        ((first, missed), (), None),
        ((first, missed), (wrong,), None),  # the third answer is exact: no more clicks
        ((), (), (4.0, 4.0, 15.0, 15.0)),
    ]
    assert len(trial.decode_ms) == 4
    assert trial.clicks_to(0.85) == trial.clicks_to(1.0) == 3
    assert trial.clicks_to(0.4) == 1


def test_an_oracle_needs_one_click_and_a_blind_segmenter_never_gets_there(tmp_path: Path) -> None:
    truth = rectangle(SIZE, (4, 4, 15, 15))
    oracle = summarise(list(evaluate(Recorded(truth), objects_of(tmp_path, truth), clicks=4)))
    assert oracle.miou == (1.0,) * 4
    assert oracle.box_miou == 1.0
    assert oracle.noc == {0.85: 1.0, 0.9: 1.0}
    assert oracle.failures == {0.85: 0, 0.9: 0}
    blind = summarise(list(evaluate(Blind(), objects_of(tmp_path, truth), clicks=4)))
    assert blind.miou == (0.0,) * 4
    assert blind.box_miou == 0.0
    assert blind.noc == {0.85: 4.0, 0.9: 4.0}
    assert blind.failures == {0.85: 1, 0.9: 1}


def test_a_picture_is_encoded_once_for_all_its_objects(tmp_path: Path) -> None:
    masks = [rectangle(SIZE, (x, 2, x + 9, 12)) for x in (1, 12, 24)]
    dataset = write_dataset(tmp_path, [(flat(SIZE), masks), (flat(SIZE) + 1, masks[:1])])
    segmenter = Blind()
    trials = list(evaluate(segmenter, sample_objects(dataset).objects, clicks=1))
    assert len(segmenter.encoded) == 2
    assert [trial.encode_ms is None for trial in trials] == [False, True, True, False]


def test_a_broken_picture_and_one_of_another_size_are_left_out_and_logged(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    truth = rectangle(SIZE, (4, 4, 15, 15))
    dataset = write_dataset(tmp_path, [(flat(SIZE), [truth]) for _ in range(3)])
    (tmp_path / "images" / "1.png").write_bytes(b"no picture")
    write_picture(tmp_path / "images" / "2.png", flat((21, 40)))
    with caplog.at_level(logging.WARNING):
        trials = list(evaluate(Recorded(truth), sample_objects(dataset).objects))
    assert len(trials) == 1
    assert "1.png is left out: this is not an image" in caplog.text
    assert "2.png is left out: its size is (21, 40), not (20, 40)" in caplog.text


def test_a_refining_segmenter_is_handed_its_own_logits_and_computes_no_step_twice(tmp_path: Path) -> None:
    class Growing:
        """Adds a pixel of logits a step, so that the logits tell how many steps there were."""

        name = "growing"
        steps = 0

        def encode(self, image: Image) -> NDArray[np.uint8]:
            return image.pixels

        def decode(self, embedding: NDArray[np.uint8], prompt: Prompt) -> list[Prediction]:
            return replay(self, embedding, prompt)

        def decode_from(
            self, embedding: NDArray[np.uint8], prompt: Prompt, logits: Logits | None
        ) -> tuple[list[Prediction], Logits]:
            self.steps += 1
            grown = np.full((1, 1, 1), 1 if logits is None else logits[0, 0, 0] + 1, np.float32)
            mask = rectangle(SIZE, (0, 0, int(grown[0, 0, 0]), 1))
            return [Prediction(mask, 0.5, self.name)], grown

    segmenter = Growing()
    truth = rectangle(SIZE, (0, 0, 40, 1))
    (trial,) = evaluate(segmenter, objects_of(tmp_path, truth), clicks=4)
    assert trial.ious == (1 / 40, 2 / 40, 3 / 40, 4 / 40)
    assert segmenter.steps == 4 + 1, "four clicks, one box"


def test_a_summary_is_what_a_pencil_makes_of_the_trials() -> None:
    trials = [
        Trial("cup", (0.2, 0.86, 0.95), 0.9, 12.0, (1.0, 2.0, 3.0, 4.0)),
        Trial("cup", (0.6, 0.7, 0.87), 0.5, None, (10.0, 20.0, 30.0, 40.0)),
        Trial("dog", (0.9, 0.9, 0.9), 0.1, 18.0, (5.0,)),
    ]
    summary = summarise(trials)
    assert summary.objects == 3
    assert summary.miou == pytest.approx(((0.2 + 0.6 + 0.9) / 3, 2.46 / 3, 2.72 / 3))
    assert summary.box_miou == pytest.approx(0.5)
    assert summary.noc == pytest.approx({0.85: (2 + 3 + 1) / 3, 0.9: (3 + 3 + 1) / 3})
    assert summary.failures == {0.85: 0, 0.9: 1}
    assert summary.encode_ms == 15.0
    assert summary.decode_ms == 5.0
    by_category = summarise_categories(trials)
    assert list(by_category) == ["cup", "dog"]
    assert by_category["cup"].miou[0] == pytest.approx(0.4)
    assert by_category["dog"].encode_ms == 18.0
    assert summarise(trials[1:2]).encode_ms is None
    with pytest.raises(ValueError, match="nothing was tried"):
        summarise([])


def test_the_annotator_sees_and_corrects_what_the_controls_make_of_a_mask(tmp_path: Path) -> None:
    truth, speck = rectangle(SIZE, (3, 3, 15, 15)), rectangle(SIZE, (30, 5, 33, 8))
    segmenter = Recorded(truth | speck)
    (trial,) = evaluate(segmenter, objects_of(tmp_path, truth), clicks=2, controls=Controls(max_parts=1))
    assert (trial.ious, trial.box_iou) == ((1.0, 1.0), 1.0)
    assert len(segmenter.prompts) == 2  # one click and the box: the speck was never shown


def test_a_second_look_encodes_each_crop_once(tmp_path: Path) -> None:
    truth = rectangle((900, 1200), (600, 400, 640, 440))
    segmenter = Recorded(truth)
    corner = rectangle((256, 256), (0, 0, 20, 20))
    answers = iter([truth, corner] * 3)
    segmenter.decode = lambda embedding, prompt: [Prediction(next(answers), 0.9, "recorded")]  # type: ignore[method-assign]
    (trial,) = evaluate(segmenter, objects_of(tmp_path, truth), 2, Controls(second_look=True))
    assert trial.ious == (0.0, 0.0)  # what the crop shows counts
    assert len(segmenter.encoded) == 2


def trials_of(*pictures: list[float]) -> list[Trial]:
    """One trial for each IoU after the one click; a box has half of it."""
    return [
        Trial("thing", (iou,), iou / 2, None, (1.0,), f"{number}.png")
        for number, ious in enumerate(pictures)
        for iou in ious
    ]


def test_an_interval_is_of_pictures_and_not_of_their_objects() -> None:
    alike = intervals(trials_of([0.2] * 50, [0.6] * 50))
    assert alike is not None
    assert alike.tolist() == pytest.approx(np.array([[0.2, 0.6], [0.1, 0.3]])), "either picture twice"
    normal = np.random.default_rng(0).normal(0.5, 0.1, 400).tolist()
    many = intervals(trials_of(*([iou] for iou in normal)))
    assert many is not None
    assert many[0] == pytest.approx(np.mean(normal) + np.array([-1.96, 1.96]) * 0.1 / 20, abs=1.5e-3)
    assert intervals(trials_of([0.2, 0.3, 0.9])) is None


def test_what_both_find_hard_widens_no_interval_of_their_difference() -> None:
    hard = [[0.1], [0.9], [0.5], [0.3]]
    better = [[iou + 0.05 for iou in ious] for ious in hard]
    found = intervals(trials_of(*better), trials_of(*hard))
    assert found is not None
    assert found == pytest.approx(np.array([[0.05, 0.05], [0.025, 0.025]]))
