"""The client against a stand-in that answers as CVAT 2.73 does; cvat-sdk checks the stand-in."""

from __future__ import annotations

import base64

import numpy as np
import pytest

from clickmask.errors import Refused
from clickmask.images.fetch import Fetcher
from clickmask.images.source import ImageSource
from clickmask.labels.submissions import Submission
from clickmask_adapters.settings import Settings
from clickmask_adapters.tools._client import ToolError
from clickmask_adapters.tools.cvat import client as client_module
from clickmask_adapters.tools.cvat.client import CvatClient, client_of
from clickmask_adapters.tools.cvat.connect import EVENTS
from clickmask_adapters.tools.cvat.labels import frame_address, submissions
from clickmask_adapters.tools.cvat.mask_points import points_to_mask
from support.cvat_server import TOKEN, CvatServer, picture
from support.scripted_server import scripted_server

BEARER = f"Bearer {TOKEN}"


@pytest.fixture
def client(cvat: CvatServer) -> CvatClient:
    return CvatClient(f"{cvat.url}/", BEARER)


def paths(cvat: CvatServer) -> list[str]:
    return [path.partition("?")[0] for _, path, _ in cvat.asked]


# --- reading


def test_a_job_is_read_with_its_frames_labels_and_annotations(cvat: CvatServer, client: CvatClient) -> None:
    cvat.add_job(3, frames=[picture(), picture(80)])
    cvat.draw(3, "polygon", [1, 2, 3, 4, 5, 6])
    content = client.read_job(3)
    assert content.job["id"] == 3
    assert [label["name"] for label in content.labels] == ["cat", "dog"]
    assert [frame["width"] for frame in content.meta["frames"]] == [80, 80]
    assert content.annotations["shapes"][0]["points"] == [1.0, 2.0, 3.0, 4.0, 5.0, 6.0]
    assert paths(cvat)[0] == "/api/jobs/3"  # before its annotations, so that its date is never newer


def test_all_pages_are_read_and_no_address_of_a_page_is_followed(
    cvat: CvatServer, client: CvatClient
) -> None:
    cvat.add_project(2, tuple(f"class {number}" for number in range(250)))
    assert len(client.labels({"project_id": 2})) == 250
    assert paths(cvat) == ["/api/labels"] * 3


def test_jobs_come_oldest_update_first_and_each_once(
    cvat: CvatServer, client: CvatClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(client_module, "PAGE_SIZE", 3)
    for number in range(1, 9):
        cvat.add_job(number)
    cvat.add_project(2)
    cvat.add_job(20, project=2)
    assert [job["id"] for job, _ in client.jobs({"project_id": 1})] == list(range(1, 9))
    since = cvat.jobs[5]["updated_date"]
    assert [job["id"] for job, _ in client.jobs({"project_id": 1}, since)] == [5, 6, 7, 8]


def test_how_many_jobs_are_left_is_said_across_pages(
    cvat: CvatServer, client: CvatClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(client_module, "PAGE_SIZE", 3)
    for number in range(1, 9):
        cvat.add_job(number)
    assert [left for _, left in client.jobs({"project_id": 1})] == [7, 6, 5, 4, 3, 2, 1, 0]


def test_a_job_that_moves_while_pages_are_read_hides_no_other(
    cvat: CvatServer, client: CvatClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(client_module, "PAGE_SIZE", 3)
    for number in range(1, 9):
        cvat.add_job(number)
    found: list[int] = []
    for job, _ in client.jobs({"project_id": 1}):
        if len(found) == 2:
            cvat.save(1)  # it goes to the end, and by number every later page would lose one
        found.append(job["id"])
    assert found == [1, 2, 3, 4, 5, 6, 7, 8, 1]


def test_more_jobs_than_a_page_holds_may_be_of_one_time(
    cvat: CvatServer, client: CvatClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(client_module, "PAGE_SIZE", 2)
    for number in range(1, 8):
        cvat.add_job(number, updated_date="2026-11-22T18:00:00.000000Z")
    assert [job["id"] for job, _ in client.jobs({"project_id": 1})] == list(range(1, 8))


def test_jobs_of_a_task_without_a_project_are_found(cvat: CvatServer, client: CvatClient) -> None:
    cvat.add_job(4, project=None)
    cvat.add_job(5)
    assert [job["id"] for job, _ in client.jobs({"task_id": 40})] == [4]
    assert [label["name"] for label in client.labels({"task_id": 40})] == ["cat", "dog"]


# --- credentials


def test_an_access_token_wins_over_a_password(cvat: CvatServer) -> None:
    both = Settings.model_validate(
        {
            "cvat_url": cvat.url,
            "cvat_access_token": f" {TOKEN}\n",
            "cvat_username": "annotator",
            "cvat_password": "password",
        }
    )
    client_of(both).project(1)
    client_of(both.model_copy(update={"cvat_access_token": None})).project(1)
    basic = "Basic " + base64.b64encode(b"annotator:password").decode()
    assert [authorization for *_, authorization in cvat.asked] == [BEARER, basic]


def test_the_version_is_said(client: CvatClient) -> None:
    assert client.version() == "2.73.0"


# --- images


def test_a_frame_is_read_as_it_was_uploaded(cvat: CvatServer, client: CvatClient) -> None:
    cvat.add_job(3, frames=[picture(80, (48, 64))], first=7)
    images = ImageSource(Fetcher(trusted_origins=[cvat.url]))
    identity = images.identify(client.image_ref(frame_address(3, 7)))
    assert identity.size == (48, 64)
    assert cvat.asked[-1][2] == BEARER


@pytest.mark.parametrize(
    "address",
    [
        "",
        "/api/jobs/3/data",
        "/api/jobs/3/data?type=frame&number=0&quality=compressed",
        "/api/jobs/3/data?type=frame&number=0&quality=original&org=x",
        "/api/jobs/../users/self?type=frame&number=0&quality=original",
        "/api/jobs/3/data?type=frame&number=0&quality=original\n",
        "//evil.example/api/jobs/3/data?type=frame&number=0&quality=original",
        "http://evil.example/api/jobs/3/data?type=frame&number=0&quality=original",
        "@evil.example/api/jobs/3/data?type=frame&number=0&quality=original",
        "/api/users/self",
    ],
)
def test_nothing_but_a_frame_is_read_with_our_token(client: CvatClient, address: str) -> None:
    with pytest.raises(Refused, match="not the address of a frame"):
        client.image_ref(address)


def test_frames_need_a_cvat_and_credentials() -> None:
    for client in (CvatClient(None, None), CvatClient("http://cvat.example", None), CvatClient(None, BEARER)):
        with pytest.raises(Refused, match="set CVAT_URL and CVAT_ACCESS_TOKEN"):
            client.image_ref(frame_address(1, 0))


# --- refusals


def test_what_is_no_page_is_not_cvats_api() -> None:
    with scripted_server() as server, pytest.raises(ToolError, match="not CVAT's API"):
        server.script((200, [{"id": 3}]))
        CvatClient(server.url, BEARER).labels({"project_id": 1})


# --- the SDK as oracle


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning")
def test_cvat_sdk_reads_the_same_from_the_stand_in(cvat: CvatServer, client: CvatClient) -> None:
    """Its models check every answer of the stand-in against the API's schema, and it decodes the masks."""
    from cvat_sdk import make_client, masks

    rng = np.random.default_rng(0)
    drawn = rng.random((60, 80)) < 0.4
    cvat.add_job(3, frames=[picture(), picture(80)])
    cvat.draw(3, "mask", list(masks.encode_mask(drawn)))
    cvat.draw(3, "polygon", [10.5, 10, 30, 12.25, 22, 40])
    cvat.draw(3, "rectangle", [10, 10, 30, 20], rotation=30.0)
    cvat.draw(3, "ellipse", [40, 30, 50, 25])
    cvat.draw_track(
        3, [{"frame": 0, "points": [1.0, 2.0, 30.0, 40.0]}, {"frame": 1, "points": [2.0, 2.0, 3.0, 4.0]}]
    )
    cvat.complete(3)
    ours = client.read_job(3)
    hook = {"type": "project", "project_id": 1, "target_url": "http://127.0.0.1:1/", "events": list(EVENTS)}
    client.add_webhook({**hook, "secret": "s", "enable_ssl": False}, None)
    with make_client(cvat.url, access_token=TOKEN) as sdk:
        webhooks, _ = sdk.api_client.webhooks_api.list(project_id=1)
        jobs, _ = sdk.api_client.jobs_api.list(filter='{"and": [{"==": [{"var": "project_id"}, 1]}]}')
        job = sdk.jobs.retrieve(3)
        meta, annotations = job.get_meta(), job.get_annotations()
        labels = {label.id: label.name for label in job.get_labels()}
        frame = job.get_frame(0, quality="original").read()
    assert [str(event) for event in webhooks.results[0].events] == list(EVENTS)
    assert [job.id for job in jobs.results] == [3]
    assert frame == cvat.images[3, 0]
    assert (job.stage, job.state) == (ours.job["stage"], ours.job["state"])
    assert [(frame.name, frame.width, frame.height) for frame in meta.frames] == [
        (frame["name"], frame["width"], frame["height"]) for frame in ours.meta["frames"]
    ]
    assert labels == {label["id"]: label["name"] for label in ours.labels}
    for theirs, own in zip(annotations.shapes, ours.annotations["shapes"], strict=True):
        assert (str(theirs.type), theirs.points, theirs.rotation) == (
            own["type"],
            own["points"],
            own["rotation"],
        )
        if own["type"] == "mask":
            decoded = masks.decode_mask(theirs.points, image_width=80, image_height=60)
            assert np.array_equal(decoded, drawn)
            assert np.array_equal(points_to_mask(own["points"], (60, 80)), decoded)
    assert [len(track.shapes) for track in annotations.tracks] == [2]
    first, second = submissions(ours)
    assert isinstance(first, Submission)
    assert isinstance(second, Submission)
    assert [region.category for region in first.regions] == ["cat", "cat", "cat", "cat", "dog"]
    assert [region.category for region in second.regions] == ["dog"]
