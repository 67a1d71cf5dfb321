"""What is read from CVAT, in the domain's words."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from clickmask.labels.geometry import Brush, Ellipse, Polygon, Rectangle, rasterise
from clickmask.labels.submissions import Submission, Unreadable
from clickmask.masks.rle import rle_to_mask
from clickmask_adapters.tools.cvat import labels as accepted_module
from clickmask_adapters.tools.cvat.labels import (
    JobContent,
    frame_address,
    frames,
    geometry,
    readable,
    submissions,
)
from clickmask_adapters.tools.cvat.mask_points import mask_to_points
from support.cvat_server import CvatServer, picture

SIZE = (60, 80)


def content(cvat: CvatServer, number: int) -> JobContent:
    labels = [row for row in cvat.labels.values() if row["name"] in {"cat", "dog"}]
    return JobContent(cvat.jobs[number], cvat.metas[number], labels, cvat.annotations[number])


def accepted(cvat: CvatServer, number: int) -> list[Submission]:
    cvat.complete(number)
    found = submissions(content(cvat, number))
    return [each for each in found if isinstance(each, Submission)]


def shape(kind: str, points: list[float], **fields: Any) -> dict[str, Any]:
    return {"id": 1, "type": kind, "points": points, "rotation": 0.0, **fields}


# --- submissions


def test_each_frame_of_an_accepted_job_is_a_submission(cvat: CvatServer) -> None:
    cvat.add_job(3, frames=[picture(), picture(80), picture(90, (48, 64))], first=5)
    drawn = cvat.draw(3, "rectangle", [10, 10, 30, 20], frame=6)
    empty, marked, small = accepted(cvat, 3)
    assert [submission.item for submission in (empty, marked, small)] == [5, 6, 7]
    assert not empty.regions
    assert not empty.skipped  # nothing was there: that is an answer too
    assert (marked.tool, marked.project, marked.task, marked.annotation) == ("cvat", "1", "30", "3")
    assert marked.address == frame_address(3, 6)
    assert marked.name == "frame_6.png"  # images/3/frame_6.png in CVAT
    assert marked.author == "annotator"
    (region,) = marked.regions
    assert (region.id, region.category) == (str(drawn["id"]), "cat")
    assert region.geometry == Rectangle((10, 10, 30, 20))
    assert small.size == (48, 64)


def test_a_task_without_a_project_is_its_own(cvat: CvatServer) -> None:
    cvat.add_job(3, project=None)
    (submission,) = accepted(cvat, 3)
    assert submission.project == "task-30"


def test_a_job_that_is_not_accepted_gives_nothing_and_so_nothing_that_a_model_drew(cvat: CvatServer) -> None:
    cvat.add_job(3, stage="annotation", state="in progress")
    cvat.draw(3, "rectangle", [10, 10, 30, 20], source="auto")
    cvat.draw(3, "rectangle", [10, 10, 30, 20])
    assert submissions(content(cvat, 3)) == []
    (submission,) = accepted(cvat, 3)
    assert len(submission.regions) == 2  # whoever accepts the job accepts what the model drew


@pytest.mark.parametrize("fields", [{"type": "replica"}, {"dimension": "3d"}])
def test_jobs_that_are_no_result_give_nothing(cvat: CvatServer, fields: dict[str, str]) -> None:
    cvat.add_job(3, **fields)
    assert accepted(cvat, 3) == []


def test_a_ground_truth_job_is_marked_and_has_the_frames_that_were_chosen(cvat: CvatServer) -> None:
    cvat.add_job(3, frames=[picture(), picture(80), picture(90)], first=4, type="ground_truth")
    # Every second image was taken from the 100th on: CVAT counts these frames in the uploaded data.
    cvat.metas[3] |= {"start_frame": 108, "frame_filter": "step=2", "included_frames": [108, 112]}
    found = accepted(cvat, 3)
    assert [submission.item for submission in found] == [4, 6]
    assert all(submission.ground_truth for submission in found)


def test_deleted_frames_are_skipped(cvat: CvatServer) -> None:
    cvat.add_job(3, frames=[picture(), picture(80)])
    cvat.draw(3, "rectangle", [10, 10, 30, 20], frame=1)
    cvat.metas[3]["deleted_frames"] = [1]
    kept, deleted = accepted(cvat, 3)
    assert not kept.skipped
    assert deleted.skipped
    assert not deleted.regions


def test_a_frame_of_impossible_size_is_named_and_the_others_are_read(cvat: CvatServer) -> None:
    cvat.add_job(3, frames=[picture(), picture(80), picture(90)])
    for frame in range(3):
        cvat.draw(3, "rectangle", [10, 10, 30, 20], frame=frame)
    for height in (0, -1, 10**9, "60", None):
        cvat.metas[3]["frames"][1]["height"] = height
        judged = content(cvat, 3)
        judged.job.update(state="completed", stage="acceptance")
        first, damaged, last = submissions(judged)
        assert isinstance(first, Submission) and isinstance(last, Submission)
        assert [(each.item, len(each.regions)) for each in (first, last)] == [(0, 1), (2, 1)]
        assert isinstance(damaged, Unreadable)
        assert damaged.reason.startswith("job 3, frame 1: ")
        assert [frame.number for frame in frames(judged)] == [0, 2]


def test_frames_of_a_video_share_a_description_and_get_names_of_their_own(cvat: CvatServer) -> None:
    cvat.add_job(3, frames=[picture(), picture(80)], first=10, mode="interpolation")
    cvat.metas[3]["frames"] = [{"name": "clips/walk.mp4", "width": 80, "height": 60}]
    assert [(frame.number, frame.name, frame.size) for frame in frames(content(cvat, 3))] == [
        (10, "walk-000010.png", SIZE),
        (11, "walk-000011.png", SIZE),
    ]
    cvat.draw(3, "rectangle", [10, 10, 30, 20], frame=11)
    assert [submission.skipped for submission in accepted(cvat, 3)] == [True, False]


def test_what_marks_no_area_is_left_out_and_counted(cvat: CvatServer) -> None:
    cvat.add_job(3)
    cvat.draw(3, "points", [1, 1])
    cvat.draw(3, "points", [2, 2])
    cvat.draw(3, "skeleton", [])
    kept = cvat.draw(3, "rectangle", [1, 1, 9, 9])
    (submission,) = accepted(cvat, 3)
    assert [region.id for region in submission.regions] == [str(kept["id"])]
    assert submission.left_out == {"points": 2, "skeleton": 1}


def test_a_damaged_shape_is_named_and_those_beside_it_are_taken(cvat: CvatServer) -> None:
    cvat.add_job(3, frames=[picture(shade) for shade in range(5)], first=6)
    for frame in range(6, 11):
        cvat.draw(3, "rectangle", [1, 1, 9, 9], frame=frame)
    mask = cvat.draw(3, "mask", [0, 100, 70, 50, 80, 60], frame=7)  # an exclusive box, as CVAT 2.73 takes it
    polygon = cvat.draw(3, "polygon", [1, 1, 9, 9], frame=8)
    unnamed = cvat.draw(3, "rectangle", [1, 1, 9, 9], frame=9, label_id=99)
    cvat.complete(3)
    found = submissions(content(cvat, 3))
    out = "is damaged and left out"
    box = "the box (70, 50, 80, 60) is not in the 80x60 image"
    label = "it has a label that its job does not have"
    assert [each for each in found if isinstance(each, Unreadable)] == [
        Unreadable(f"job 3, frame 7: mask {mask['id']} {out}: {box}"),
        Unreadable(f"job 3, frame 8: polygon {polygon['id']} {out}: a polygon of 4 numbers"),
        Unreadable(f"job 3, frame 9: rectangle {unnamed['id']} {out}: {label}"),
    ]
    taken = [each for each in found if isinstance(each, Submission)]
    assert [(each.item, len(each.regions)) for each in taken] == [(item, 1) for item in range(6, 11)]
    assert [each.left_out for each in taken[1:3]] == [{"damaged mask": 1}, {"damaged polygon": 1}]


def test_polygons_of_one_group_and_label_are_one_object(cvat: CvatServer) -> None:
    cvat.add_job(3)
    left = [5.0, 5.0, 20.0, 5.0, 20.0, 20.0, 5.0, 20.0]
    right = [40.0, 5.0, 60.0, 5.0, 60.0, 20.0, 40.0, 20.0]
    first = cvat.draw(3, "polygon", left, group=7)
    cvat.draw(3, "polygon", right, group=7, z_order=2)
    alone = cvat.draw(3, "polygon", right)
    other = cvat.draw(3, "rectangle", [1, 1, 9, 9], group=7)
    (submission,) = accepted(cvat, 3)
    regions = {region.id: region for region in submission.regions}
    assert set(regions) == {str(each["id"]) for each in (first, alone, other)}
    one = regions[str(first["id"])]
    assert isinstance(one.geometry, Polygon)
    assert [len(ring) for ring in one.geometry.rings] == [4, 4]
    assert (rasterise(one.geometry, SIZE).sum(), one.layer) == (15 * 15 + 20 * 15, 2)


def test_polygons_of_a_group_that_overlap_cover_what_either_covers(cvat: CvatServer) -> None:
    cvat.add_job(3)
    cvat.draw(3, "polygon", [5, 5, 25, 5, 25, 25, 5, 25], group=1)
    cvat.draw(3, "polygon", [10, 10, 20, 10, 20, 20, 10, 20], group=1)
    (submission,) = accepted(cvat, 3)
    (region,) = submission.regions
    assert rasterise(region.geometry, SIZE).sum() == 400


def test_the_layers_and_the_names_are_cvats_own(cvat: CvatServer) -> None:
    cvat.add_job(3)
    cvat.draw(3, "rectangle", [1, 1, 9, 9], z_order=5)
    cvat.draw(3, "rectangle", [1, 1, 9, 9], z_order=-1)
    (submission,) = accepted(cvat, 3)
    assert [region.layer for region in submission.regions] == [-1, 5]
    assert (submission.name, submission.known_as) == ("frame_0.png", "images/3/frame_0.png")


@pytest.mark.parametrize("kind", [{"media_type": "video"}, {"media_type": None, "mode": "interpolation"}])
def test_a_video_of_one_frame_is_a_video(cvat: CvatServer, kind: dict[str, str | None]) -> None:
    cvat.add_job(3)
    cvat.jobs[3] |= kind
    cvat.metas[3]["frames"][0]["name"] = "clip.mp4"
    cvat.draw(3, "rectangle", [1, 1, 9, 9])
    (submission,) = accepted(cvat, 3)
    assert (submission.name, submission.known_as) == ("clip-000000.png", "frame_000000.png")


def test_a_damaged_shape_hides_no_frame_on_which_nothing_counts(cvat: CvatServer) -> None:
    cvat.add_job(3, frames=[picture(), picture(80)])
    cvat.draw(3, "polygon", [1, 1, 9, 9], frame=1)
    cvat.metas[3]["deleted_frames"] = [1]
    assert [submission.skipped for submission in accepted(cvat, 3)] == [False, True]
    cvat.metas[3]["deleted_frames"] = []
    cvat.update_job(3, state="rejected")
    assert all(isinstance(each, Submission) and each.skipped for each in submissions(content(cvat, 3)))


def test_a_job_that_nobody_has_thought_of_is_unreadable(
    cvat: CvatServer, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    cvat.add_job(3)
    cvat.complete(3)
    assert len(readable(content(cvat, 3))) == 1

    def surprised(*_: object) -> None:
        raise RuntimeError("at /home/secret")

    with monkeypatch.context() as patched:
        patched.setattr(accepted_module, "_described", surprised)
        reason = "job 3 cannot be read (RuntimeError); clickmask's log says why"
        assert readable(content(cvat, 3)) == [Unreadable(reason)]
        assert "at /home/secret" in caplog.text
    cvat.jobs[3]["updated_date"] = "yesterday"
    assert readable(content(cvat, 3)) == [
        Unreadable("job 3: CVAT does not say when it was updated: 'yesterday'")
    ]


def test_what_lies_above_comes_after(cvat: CvatServer) -> None:
    cvat.add_job(3)
    above = cvat.draw(3, "rectangle", [1, 1, 9, 9], z_order=1)
    below = cvat.draw(3, "rectangle", [1, 1, 9, 9], z_order=-1)
    (submission,) = accepted(cvat, 3)
    assert [region.id for region in submission.regions] == [str(below["id"]), str(above["id"])]


# --- tracks


def test_keyframes_of_tracks_are_regions_and_frames_between_them_are_skipped(cvat: CvatServer) -> None:
    cvat.add_job(3, frames=[picture(shade) for shade in range(8)])
    box = [1.0, 1.0, 9.0, 9.0]
    track = cvat.draw_track(
        3,
        [
            {"frame": 1, "points": box},
            {"frame": 4, "points": box},
            {"frame": 5, "points": box, "outside": True},
        ],
    )
    found = accepted(cvat, 3)
    assert [submission.skipped for submission in found] == [
        False,
        False,
        True,
        True,
        False,
        False,
        False,
        False,
    ]
    assert [len(submission.regions) for submission in found] == [0, 1, 0, 0, 1, 0, 0, 0]
    ids = [f"track-{keyframe['id']}" for keyframe in track["shapes"]]
    assert [region.id for submission in found for region in submission.regions] == ids[:2]
    assert found[1].regions[0].category == "dog"


def test_a_track_without_an_end_goes_on_to_the_end_of_the_job(cvat: CvatServer) -> None:
    cvat.add_job(3, frames=[picture(shade) for shade in range(4)])
    cvat.draw_track(3, [{"frame": 1, "points": [1.0, 1.0, 9.0, 9.0]}])
    assert [submission.skipped for submission in accepted(cvat, 3)] == [False, False, True, True]


def test_a_keyframe_is_not_taken_for_the_shape_of_its_number(cvat: CvatServer) -> None:
    cvat.add_job(3)
    drawn = cvat.draw(3, "rectangle", [1, 1, 9, 9])
    cvat.draw_track(3, [{"frame": 0, "points": [1.0, 1.0, 9.0, 9.0], "id": drawn["id"]}])
    (submission,) = accepted(cvat, 3)
    assert len({region.id for region in submission.regions}) == 2


def test_tracks_that_cover_each_other_hide_each_frame_once(cvat: CvatServer) -> None:
    cvat.add_job(3, frames=[picture(shade) for shade in range(6)])
    for keyframes in ((0, 3), (1, 2), (1, 10**15), (-(10**15), 0)):
        cvat.draw_track(3, [{"frame": frame, "points": [1.0, 1.0, 9.0, 9.0]} for frame in keyframes])
    cvat.draw_track(3, [{"frame": 0, "points": [1.0, 1.0, 9.0, 9.0]}, {"frame": 5, "points": [1.0] * 4}])
    assert [submission.skipped for submission in accepted(cvat, 3)] == [False] + [True] * 5


@pytest.mark.parametrize("changes", [{"stop_frame": 10**15}, {"start_frame": "0"}, {"stop_frame": None}])
def test_a_job_of_more_frames_than_anybody_annotates_is_unreadable(
    cvat: CvatServer, changes: dict[str, Any]
) -> None:
    cvat.add_job(3)
    cvat.complete(3)
    cvat.jobs[3] |= changes
    (unreadable,) = readable(content(cvat, 3))
    assert "frames from 0 to" in str(unreadable) or "_frame of a job" in str(unreadable)


def test_values_nested_too_deeply_to_be_written_down_are_named_by_their_kind(cvat: CvatServer) -> None:
    deep: list[Any] = []
    for _ in range(1020):
        deep = [deep]
    cvat.add_job(3)
    cvat.complete(3)
    drawn = cvat.draw(3, "rectangle", [1, 1, 9, 9])
    for member in ("id", "type"):
        cvat.annotations[3]["shapes"] = [{**drawn, member: deep}]
        assert "RecursionError" not in str(readable(content(cvat, 3)))


def test_parts_that_cannot_be_joined_are_damaged_and_keep_no_other_out(cvat: CvatServer) -> None:
    cvat.add_job(3, frames=[picture(size=(4000, 4000))])
    zigzag = [float(value) for n in range(600) for value in (n % 7, 4000 * (n % 2))]
    for points in (zigzag, [1.0, 1.0, 9.0, 1.0, 9.0, 9.0]):
        cvat.draw(3, "polygon", points, group=4)
    good = cvat.draw(3, "rectangle", [1, 1, 9, 9])
    cvat.complete(3)
    found, damaged = readable(content(cvat, 3))
    assert isinstance(found, Submission) and "cross 2400000 rows" in str(damaged)
    assert [region.id for region in found.regions] == [str(good["id"])]


def test_tracks_of_points_hide_no_frame(cvat: CvatServer) -> None:
    cvat.add_job(3, frames=[picture(), picture(80)])
    cvat.draw_track(3, [{"frame": 0, "points": [1.0, 1.0], "type": "points"}])
    cvat.annotations[3]["tracks"].append(
        {"id": 1, "label_id": 1, "shapes": []}
    )  # of a skeleton: its elements have them
    assert not any(submission.skipped for submission in accepted(cvat, 3))


# --- geometry


@given(bits=st.lists(st.booleans(), min_size=12, max_size=12), given_as=st.sampled_from([int, float]))
def test_masks_arrive_pixel_by_pixel(bits: list[bool], given_as: type) -> None:
    mask = np.array(bits).reshape(3, 4)
    drawn = geometry(shape("mask", list(map(given_as, mask_to_points(mask)))), (3, 4))
    assert isinstance(drawn, Brush)
    assert np.array_equal(rle_to_mask(drawn.rle), mask)


def test_a_polygon_is_one_ring_in_our_frame() -> None:
    drawn = geometry(shape("polygon", [10, 10, 20, 10, 20, 30.5, 10, 30.5]), SIZE)
    assert drawn == Polygon((((10, 10), (20, 10), (20, 30.5), (10, 30.5)),))
    mask = rasterise(drawn, SIZE)
    assert mask[10:30, 10:20].all()  # a whole pixel each: no half pixel is lost on the way
    assert mask.sum() == 200


def test_a_rectangle_keeps_its_rotation_clockwise_about_its_centre() -> None:
    drawn = geometry(shape("rectangle", [10, 20, 50, 30], rotation=90.0), SIZE)
    assert drawn == Rectangle((10, 20, 50, 30), 90)
    expected = np.zeros(SIZE, bool)
    expected[5:45, 25:35] = True
    assert np.array_equal(rasterise(drawn, SIZE), expected)
    tilted = geometry(shape("rectangle", [10, 20, 50, 30], rotation=30.0), SIZE)
    rows, columns = np.nonzero(rasterise(tilted, SIZE))
    assert rows[columns.argmax()] > 25  # y down: clockwise, the right end goes down


def test_an_ellipse_is_its_centre_its_right_and_its_top() -> None:
    drawn = geometry(shape("ellipse", [40, 30, 60, 20], rotation=10.0), SIZE)
    assert drawn == Ellipse((40, 30), (20, 10), 10)
    upright = geometry(shape("ellipse", [40, 30, 60, 20]), SIZE)
    assert rasterise(upright, SIZE).sum() == pytest.approx(np.pi * 20 * 10, rel=0.01)


@pytest.mark.parametrize(
    ("kind", "points"),
    [
        ("polygon", []),
        ("polygon", [1, 1, 2, 2]),
        ("polygon", [1, 1, 2, 2, 3, 1, 4]),
        ("polygon", [1, 1, 2, 2, 1e300, 1]),
        ("polygon", [1, 1, 2, 2, "3", 1]),
        ("rectangle", [1, 1, 9]),
        ("ellipse", [40, 30]),
        ("mask", []),
        ("mask", [0, 4, 0, 0, 1]),
        ("mask", [0, 4.5, 0, 0, 1, 1]),
        ("mask", [0, 4, 79, 59, 80, 60]),
        ("mask", None),
    ],
)
def test_what_is_damaged_is_refused(kind: str, points: list[float]) -> None:
    with pytest.raises((ValueError, TypeError)):
        geometry(shape(kind, points), SIZE)


@pytest.mark.parametrize(
    ("kind", "points"),
    [
        ("polygon", [1, 1, 5, 5, 9, 9]),
        ("rectangle", [1, 1, 1, 9]),
        ("ellipse", [40, 30, 40, 20]),
        ("mask", [4, 0, 0, 1, 1]),  # all background: CVAT stores and draws nothing
    ],
)
def test_what_covers_nothing_is_a_label_that_covers_nothing(kind: str, points: list[float]) -> None:
    """As one of Label Studio's is: `clickmask stats` names it."""
    assert not rasterise(geometry(shape(kind, points), SIZE), SIZE).any()


def test_corners_may_come_in_any_order() -> None:
    assert geometry(shape("rectangle", [30, 20, 10, 10]), SIZE) == Rectangle((10, 10, 30, 20))
