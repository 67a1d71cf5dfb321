"""Labels out of CVAT, by its events and all at once."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from clickmask.errors import InvalidRequest, NotFound
from clickmask.images.archive import ImageArchive
from clickmask.images.fetch import Fetcher
from clickmask.images.source import ImageSource
from clickmask.ingest.apply import Ingester, Page
from clickmask.ingest.inbox import Inbox
from clickmask.ingest.reader import InboxReader
from clickmask.labels.submissions import (
    AnnotationDeleted,
    LabelKey,
    ProjectDeleted,
    ProjectDescribed,
    Submission,
    TaskDeleted,
    Unreadable,
)
from clickmask.masks.rle import rle_to_mask
from clickmask.store import Store
from clickmask_adapters.tools._client import ToolError
from clickmask_adapters.tools.cvat import client as client_module
from clickmask_adapters.tools.cvat.client import CvatClient
from clickmask_adapters.tools.cvat.mask_points import mask_to_points
from clickmask_adapters.tools.cvat.pull import MAX_REMEMBERED_JOBS, CvatLabels, container_of, project_images
from support.cvat_server import TOKEN, CvatServer, picture
from support.waiting import until

SIZE = (60, 80)


@pytest.fixture
def labels(cvat: CvatServer) -> CvatLabels:
    return CvatLabels(CvatClient(cvat.url, f"Bearer {TOKEN}"))


def raw(event: dict[str, Any]) -> bytes:
    return json.dumps(event).encode()


def reads(cvat: CvatServer) -> int:
    return sum(path.endswith("/annotations/") for _, path, _ in cvat.asked)


def job_of(pulled: Page) -> int:
    (job,) = {change.annotation for change in pulled.changes if isinstance(change, Submission)}
    return int(job)


# --- events


def test_an_accepted_job_is_read_and_described(cvat: CvatServer, labels: CvatLabels) -> None:
    cvat.add_job(3, frames=[picture(), picture(80)])
    cvat.draw(3, "rectangle", [10, 10, 30, 20])
    project, first, second = labels.changes(raw(cvat.complete(3)))
    assert project == ProjectDescribed("cvat", "1", "project 1", ("cat", "dog"))
    assert isinstance(first, Submission)
    assert isinstance(second, Submission)
    assert [len(first.regions), len(second.regions)] == [1, 0]
    assert labels.locate(first).uri == f"{cvat.url}/api/jobs/3/data?type=frame&number=0&quality=original"
    assert labels.origin == cvat.url


def test_tags_and_skeletons_are_no_categories(cvat: CvatServer, labels: CvatLabels) -> None:
    cvat.add_job(3)
    for row, kind in zip(cvat.labels.values(), ("mask", "tag"), strict=True):
        row["type"] = kind
    project, *_ = labels.changes(raw(cvat.complete(3)))
    assert isinstance(project, ProjectDescribed)
    assert project.categories == ("cat",)


def test_a_save_is_no_reason_to_ask_cvat_anything(cvat: CvatServer, labels: CvatLabels) -> None:
    cvat.add_job(3)
    assert list(labels.changes(raw(cvat.save(3)))) == []
    assert cvat.asked == []


def test_a_save_after_the_acceptance_is_read_again(cvat: CvatServer, labels: CvatLabels) -> None:
    cvat.add_job(3)
    *_, before = labels.changes(raw(cvat.complete(3)))
    cvat.draw(3, "rectangle", [10, 10, 30, 20])
    *_, after = labels.changes(raw(cvat.save(3)))
    assert isinstance(before, Submission)
    assert isinstance(after, Submission)
    assert after.updated_at > before.updated_at
    assert len(after.regions) == 1


def test_an_event_that_comes_twice_or_late_is_read_once(cvat: CvatServer, labels: CvatLabels) -> None:
    cvat.add_job(3)
    accepted, saved = cvat.complete(3), cvat.save(3)
    assert len(list(labels.changes(raw(accepted)))) == 2
    for event in (accepted, saved, accepted):  # what was read first held the save already
        assert list(labels.changes(raw(event))) == []
    assert reads(cvat) == 1


def test_what_was_not_taken_to_its_end_is_read_again(cvat: CvatServer, labels: CvatLabels) -> None:
    cvat.add_job(3)
    event = raw(cvat.complete(3))
    assert next(iter(labels.changes(event)))  # and then its reader failed
    assert len(list(labels.changes(event))) == 2
    assert reads(cvat) == 2


def test_what_was_taken_in_part_is_read_again_when_asked_for(cvat: CvatServer, labels: CvatLabels) -> None:
    cvat.add_job(3)
    event = raw(cvat.complete(3))
    assert len(list(labels.changes(event))) == 2
    assert len(list(labels.changes(event, retry=True))) == 2
    assert reads(cvat) == 2


def test_what_is_remembered_is_bounded(cvat: CvatServer, labels: CvatLabels) -> None:
    cvat.add_job(3)
    remembered = labels._taken
    for number in range(100, 100 + MAX_REMEMBERED_JOBS):
        remembered.put(number, 1.0)
    assert list(labels.changes(raw(cvat.complete(3))))
    assert len(remembered) == MAX_REMEMBERED_JOBS
    assert 3 in remembered and 100 not in remembered


def test_a_job_that_was_reopened_meanwhile_gives_nothing(cvat: CvatServer, labels: CvatLabels) -> None:
    cvat.add_job(3)
    event = cvat.complete(3)
    cvat.update_job(3, stage="annotation", state="in progress")
    assert list(labels.changes(raw(event))) == []


def test_deletions_are_passed_on(cvat: CvatServer, labels: CvatLabels) -> None:
    assert list(labels.changes(b'{"event": "delete:job", "job": {"id": 3}}')) == [
        AnnotationDeleted("cvat", "3")
    ]
    assert list(labels.changes(b'{"event": "delete:task", "task": {"id": 4}}')) == [TaskDeleted("cvat", "4")]
    gone = ProjectDeleted("cvat", "5")
    assert list(labels.changes(b'{"event": "delete:project", "project": {"id": 5}}')) == [gone]
    assert cvat.asked == []


def test_a_job_that_is_gone_is_nothing(cvat: CvatServer, labels: CvatLabels) -> None:
    cvat.add_job(3)
    event = cvat.complete(3)
    del cvat.jobs[3]
    assert list(labels.changes(raw(event))) == []


def test_a_cvat_that_is_away_is_an_error_that_may_pass(cvat: CvatServer) -> None:
    cvat.add_job(3)
    event = raw(cvat.complete(3))
    for client in (
        CvatClient("http://127.0.0.1:1", "Bearer x"),
        CvatClient(None, None),
        CvatClient(cvat.url, "Bearer x"),
    ):
        with pytest.raises(ToolError):
            list(CvatLabels(client).changes(event))


@pytest.mark.parametrize("event", [b"", b"{", b"[]", b"3"])
def test_what_is_no_event_is_refused(labels: CvatLabels, event: bytes) -> None:
    with pytest.raises(InvalidRequest):
        list(labels.changes(event))


# --- all at once


def test_a_pull_gives_the_accepted_jobs_of_a_project(cvat: CvatServer, labels: CvatLabels) -> None:
    cvat.add_project(2)
    for number in range(1, 6):
        cvat.add_job(number, project=2 if number == 2 else 1)
    for number in (4, 2, 1):
        cvat.complete(number)
    assert [job_of(pulled) for pulled in labels.pull("1") if pulled.changes] == [4, 1]
    assert [part.remaining for part in labels.pull("1")] == [3, 2, 1, 0]  # of all of its jobs
    *_, last = labels.pull("1")
    assert [type(change) for change in last.changes] == [ProjectDescribed, Submission]


def test_a_task_without_a_project_can_be_pulled(cvat: CvatServer, labels: CvatLabels) -> None:
    cvat.add_job(4, project=None)
    cvat.complete(4)
    (pulled,) = labels.pull("task-40")
    described, submission = pulled.changes
    assert described == ProjectDescribed("cvat", "task-40", "task 40", ("cat", "dog"))
    assert isinstance(submission, Submission)
    assert submission.project == "task-40"


def test_a_pull_goes_on_where_it_was_stopped(
    cvat: CvatServer, labels: CvatLabels, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(client_module, "PAGE_SIZE", 2)
    for number in range(1, 8):
        cvat.add_job(number)
        cvat.complete(number)
    position, found = None, list[int]()
    while True:
        pulled = next((pulled for pulled in labels.pull("1", position) if job_of(pulled) not in found), None)
        if pulled is None:
            break
        found.append(job_of(pulled))
        position = pulled.position  # and stopped there
    assert found == list(range(1, 8))
    assert [job_of(pulled) for pulled in labels.pull("1", position)] == [7]


def test_a_pull_says_how_much_is_left(cvat: CvatServer, labels: CvatLabels) -> None:
    for number in (1, 2, 3):
        cvat.add_job(number)
        cvat.complete(number)
    assert [part.remaining for part in labels.pull("1")] == [2, 1, 0]


def test_a_job_that_goes_or_makes_no_sense_while_it_is_pulled_holds_up_no_other(
    cvat: CvatServer, labels: CvatLabels
) -> None:
    for number in (1, 2, 3, 4):
        cvat.add_job(number)
        cvat.complete(number)
    parts = labels.pull("1")
    next(parts)
    del cvat.jobs[2]  # between its listing and its reading
    cvat.metas[3]["frames"] = []
    gone, strange, whole = parts
    assert gone.changes == []
    assert strange.changes == [Unreadable("job 3 cannot be read (IndexError); clickmask's log says why")]
    assert job_of(whole) == 4


@pytest.mark.parametrize(
    ("project", "said"), [("9", "CVAT has no project 9"), ("task-9", "CVAT has no task 9")]
)
def test_a_project_that_never_was_is_said(labels: CvatLabels, project: str, said: str) -> None:
    with pytest.raises(NotFound, match=said):
        next(labels.pull(project))


def test_a_job_that_is_reopened_while_it_is_pulled_gives_nothing(
    cvat: CvatServer, labels: CvatLabels
) -> None:
    for number in (1, 2):
        cvat.add_job(number)
        cvat.complete(number)
    parts = labels.pull("1")
    next(parts)
    cvat.jobs[2]["state"], cvat.jobs[2]["stage"] = "new", "annotation"  # between its listing and its reading
    assert [list(part.changes) for part in parts] == [[]]


def test_what_cvat_no_longer_has_is_gone(cvat: CvatServer, labels: CvatLabels) -> None:
    for number in (1, 2, 3):
        cvat.add_job(number)
    del cvat.jobs[2], cvat.jobs[3], cvat.tasks[30]
    known = [("10", "1"), ("20", "2"), ("30", "3")]
    assert list(labels.gone(known, "1")) == [AnnotationDeleted("cvat", "2"), TaskDeleted("cvat", "30")]
    assert list(labels.gone([], "1")) == []


def test_what_cannot_be_asked_is_not_gone(cvat: CvatServer) -> None:
    with pytest.raises(ToolError):
        list(CvatLabels(CvatClient(cvat.url, "Bearer wrong")).gone([("10", "1")], "1"))


@pytest.mark.parametrize("project", ["", "x", "task-", "-1", "1.5", "task-1-2", "1" * 10, "1\n"])
def test_a_project_that_is_none_is_refused(labels: CvatLabels, project: str) -> None:
    with pytest.raises(InvalidRequest):
        next(labels.pull(project))


def test_projects_are_named_as_the_labels_name_them() -> None:
    assert container_of("3") == {"project_id": 3}
    assert container_of("task-7") == {"task_id": 7}


# --- into the store


@pytest.fixture
def ingester(cvat: CvatServer, store: Store, tmp_path: Path) -> Ingester:
    images = ImageSource(Fetcher(trusted_origins=[cvat.url]))
    return Ingester(store, images, ImageArchive(tmp_path / "images", 2**20, store.is_labelled))


def take(ingester: Ingester, labels: CvatLabels, event: dict[str, Any]) -> list[bool]:
    return [ingester.apply(change, labels) for change in labels.changes(raw(event))]


def test_what_cvat_holds_is_what_is_stored_mask_by_mask(
    cvat: CvatServer, labels: CvatLabels, ingester: Ingester, store: Store
) -> None:
    cvat.add_job(3, frames=[picture(), picture(80)])
    blob = np.random.default_rng(0).random(SIZE) < 0.3
    cvat.draw(3, "mask", list(mask_to_points(blob)))
    cvat.draw(3, "polygon", [10, 10, 20, 10, 20, 30, 10, 30], frame=1)
    cvat.draw(3, "rectangle", [10, 20, 50, 30], rotation=90.0, frame=1)
    assert take(ingester, labels, cvat.complete(3)) == [False, True, True]
    mask, polygon, rectangle = store.labels("cvat", "1")
    assert mask.key == LabelKey("cvat", "1", "30", "3", str(cvat.annotations[3]["shapes"][0]["id"]))
    assert np.array_equal(rle_to_mask(mask.rle), blob)
    expected = np.zeros(SIZE, bool)
    expected[10:30, 10:20] = True
    assert np.array_equal(rle_to_mask(polygon.rle), expected)
    expected[:] = False
    expected[5:45, 25:35] = True
    assert np.array_equal(rle_to_mask(rectangle.rle), expected)
    assert store.categories("cvat", "1") == ("cat", "dog")
    assert [image.name for image in store.images("cvat", "1")] == ["frame_0.png", "frame_1.png"]


def test_a_later_save_replaces_the_whole_set_and_an_older_event_does_not(
    cvat: CvatServer, labels: CvatLabels, ingester: Ingester, store: Store
) -> None:
    cvat.add_job(3)
    cvat.draw(3, "rectangle", [10, 10, 30, 20])
    accepted = cvat.complete(3)
    take(ingester, labels, accepted)
    cvat.annotations[3]["shapes"].clear()
    kept = cvat.draw(3, "ellipse", [40, 30, 50, 25])
    take(ingester, labels, cvat.save(3))
    assert take(ingester, CvatLabels(CvatClient(cvat.url, f"Bearer {TOKEN}")), accepted) == [False, False]
    (label,) = store.labels("cvat", "1")
    assert label.key.region == str(kept["id"])


def test_a_damaged_shape_is_reported_as_by_label_studio_and_costs_nothing_beside_it(
    cvat: CvatServer, labels: CvatLabels, ingester: Ingester, store: Store, inbox: Inbox
) -> None:
    cvat.add_job(3, frames=[picture(), picture(80)])
    before = [cvat.draw(3, "rectangle", [10, 10, 30, 20], frame=frame) for frame in (0, 1)]
    take(ingester, labels, cvat.complete(3))
    broken = cvat.draw(3, "mask", [0, 100, 70, 50, 80, 60], frame=1)
    kept = cvat.draw(3, "ellipse", [40, 30, 50, 25], frame=0)
    inbox.keep("cvat", raw(cvat.save(3)))
    reader = InboxReader(inbox, store, ingester, {"cvat": labels})
    reader.start()
    until(lambda: store.read_to(inbox.id) == 1, 60)
    (aside,) = reader.status().newest_set_aside
    reader.close()
    box = "the box (70, 50, 80, 60) is not in the 80x60 image"
    sentence = f"job 3, frame 1: mask {broken['id']} is damaged and left out: {box}"
    assert aside.reason == f"{sentence} (of the event's submissions 2 were taken in, 1 not)"
    *_, done = ingester.pull("cvat", labels, "1")
    assert (done.left_out, done.known, done.gone) == ((sentence,), 2, 0)
    standing = [label.key.region for label in store.labels("cvat", "1")]
    assert standing == [str(drawn["id"]) for drawn in (before[0], kept, before[1])]
    cvat.annotations[3]["shapes"].remove(broken)
    assert take(ingester, labels, cvat.save(3)) == [False, True, True]
    assert len(store.labels("cvat", "1")) == 3
    inbox.close()


@pytest.mark.parametrize("by_event", [True, False])
def test_a_rejected_job_is_withdrawn_until_it_is_accepted_anew(
    cvat: CvatServer, labels: CvatLabels, ingester: Ingester, store: Store, by_event: bool
) -> None:
    cvat.add_job(3)
    cvat.draw(3, "rectangle", [10, 10, 30, 20])
    take(ingester, labels, cvat.complete(3))
    rejected = cvat.update_job(3, stage="annotation", state="rejected")
    if by_event:
        take(ingester, labels, rejected)
    else:
        for part in labels.pull("1"):
            for change in part.changes:
                ingester.apply(change, labels)
    assert store.labels("cvat", "1") == []
    take(ingester, labels, cvat.complete(3))
    assert len(store.labels("cvat", "1")) == 1


def test_a_deleted_task_leaves_nothing(
    cvat: CvatServer, labels: CvatLabels, ingester: Ingester, store: Store
) -> None:
    cvat.add_job(3)
    cvat.draw(3, "rectangle", [10, 10, 30, 20])
    event = cvat.complete(3)
    take(ingester, labels, event)
    take(ingester, labels, {"event": "delete:task", "task": {"id": 30}})
    assert store.labels("cvat", "1") == []
    again = CvatLabels(CvatClient(cvat.url, f"Bearer {TOKEN}"))
    assert take(ingester, again, event) == [False, False]


def held(cvat: CvatServer) -> set[tuple[str, str]]:
    """Job and shape of all that CVAT holds as accepted."""
    accepted = [number for number, job in cvat.jobs.items() if job["state"] == "completed"]
    return {(str(job), str(shape["id"])) for job in accepted for shape in cvat.annotations[job]["shapes"]}


def happen(cvat: CvatServer, rng: random.Random) -> dict[str, Any]:
    """What somebody does in CVAT, and the event of it."""
    job = rng.choice(list(cvat.jobs))
    shapes = cvat.annotations[job]["shapes"]
    match rng.randrange(12):
        case 0 | 1 | 2 | 3:
            cvat.draw(job, "rectangle", [10, 10, 30, 20], frame=rng.randrange(2))
            return cvat.save(job)
        case 4 | 5 if shapes:
            shapes.remove(rng.choice(shapes))
            return cvat.save(job)
        case 6:
            return cvat.update_job(job, state="rejected", stage="annotation")
        case 7 if len(cvat.jobs) > 1:
            del cvat.jobs[job], cvat.tasks[10 * job]
            return {"event": "delete:task", "task": {"id": 10 * job}}
        case _:
            return cvat.complete(job)


@pytest.mark.parametrize("seed", range(3))
def test_whatever_order_events_arrive_in_what_cvat_holds_is_what_is_stored(
    cvat: CvatServer, labels: CvatLabels, ingester: Ingester, store: Store, seed: int
) -> None:
    """Late, twice and out of order; some never, so that a pull has to find them; with restarts in between."""
    rng = random.Random(seed)
    for number in (1, 2, 3):
        cvat.add_job(number, frames=[picture(), picture(80)])
    under_way: list[dict[str, Any]] = []
    for _ in range(40):
        under_way.append(happen(cvat, rng))
        rng.shuffle(under_way)
        for _ in range(rng.randrange(3)):
            if under_way:
                event = under_way[-1] if rng.random() < 0.3 else under_way.pop()
                take(ingester, labels, event)
        if rng.random() < 0.2:
            labels = CvatLabels(CvatClient(cvat.url, f"Bearer {TOKEN}"))
    last = rng.choice(list(cvat.jobs))
    cvat.draw(last, "rectangle", [10, 10, 30, 20])
    under_way.append(cvat.complete(last))
    for event in rng.sample(under_way, len(under_way) // 2):
        take(ingester, labels, event)
    assert [done.left_out for done in ingester.pull("cvat", labels, "1")][-1] == ()
    standing = store.labels("cvat", "1", all_annotations=True)
    assert {(label.key.annotation, label.key.region) for label in standing} == held(cvat)
    for event in under_way:  # and those that come after all
        take(ingester, labels, event)
    standing = store.labels("cvat", "1", all_annotations=True)
    assert {(label.key.annotation, label.key.region) for label in standing} == held(cvat) != set()


# --- images


def names(cvat: CvatServer, project: str) -> list[str]:
    return [image.name for image in project_images(CvatClient(cvat.url, f"Bearer {TOKEN}"), project)]


def test_every_frame_of_a_project_is_listed_with_where_it_is(cvat: CvatServer) -> None:
    cvat.add_job(4, frames=[picture(), picture(80)], first=5)
    cvat.add_job(3)
    cvat.save(4)
    cvat.add_project(2)
    cvat.add_job(9, project=2)
    assert names(cvat, "1") == ["job 3, frame 0", "job 4, frame 5", "job 4, frame 6"]
    *_, last = project_images(CvatClient(cvat.url, f"Bearer {TOKEN}"), "1")
    ref = last.locate()
    assert ref.uri == f"{cvat.url}/api/jobs/4/data?type=frame&number=6&quality=original"
    assert ImageSource(Fetcher(trusted_origins=[cvat.url])).identify(ref).size == SIZE


def test_a_frame_that_several_jobs_show_is_listed_once(cvat: CvatServer) -> None:
    cvat.add_job(3, frames=[picture(), picture(80)])
    cvat.add_job(4, frames=[picture(80), picture(90)], first=1)["task_id"] = 30
    assert names(cvat, "1") == ["job 3, frame 0", "job 3, frame 1", "job 4, frame 2"]


def test_deleted_frames_and_point_clouds_are_not_listed(cvat: CvatServer) -> None:
    cvat.add_job(3, frames=[picture(), picture(80)])
    cvat.metas[3]["deleted_frames"] = [0]
    cvat.add_job(4, dimension="3d")
    assert names(cvat, "1") == ["job 3, frame 1"]


def test_the_images_of_a_task_without_a_project_are_listed(cvat: CvatServer) -> None:
    cvat.add_job(4, project=None)
    assert names(cvat, "task-40") == ["job 4, frame 0"]
    with pytest.raises(InvalidRequest, match="neither the number of a CVAT project"):
        names(cvat, "streets")
