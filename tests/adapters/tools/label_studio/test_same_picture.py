"""One picture on several pages and in several tasks: whose labels are listed at /v1/projects."""

from __future__ import annotations

import base64
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from fastapi.testclient import TestClient
from pydantic import SecretStr

from clickmask.images.fetch import Fetcher
from clickmask.images.source import ImageSource
from clickmask.workbench import Workbench
from clickmask_adapters.app import create_app
from clickmask_adapters.home import Home
from clickmask_adapters.settings import Settings
from support.label_studio_standin import TOKEN, LabelStudioStandin, label_studio_standin, rectangle
from support.pictures import png_base64
from support.waiting import until

PAGES = (
    '<View><Image name="image" valueList="$images"/>'
    '<RectangleLabels name="box" toName="image"><Label value="Car"/><Label value="Road"/>'
    "</RectangleLabels></View>"
)


@pytest.fixture
def studio() -> Iterator[LabelStudioStandin]:
    """Tasks 7 and 8 show one picture, 9 another."""
    with label_studio_standin() as standin:
        for task in (7, 8, 9):
            standin.add_task(task)
        standin.pictures = dict.fromkeys((7, 8), base64.b64decode(png_base64(1)))
        yield standin


@pytest.fixture
def client(workbench: Workbench, studio: LabelStudioStandin, tmp_path: Path) -> Iterator[TestClient]:
    workbench.images = ImageSource(Fetcher(trusted_origins=[studio.url]))
    settings = Settings(home=tmp_path, label_studio_url=studio.url, label_studio_api_key=SecretStr(TOKEN))
    app = create_app(Home(settings, workbench))
    with TestClient(app, "http://127.0.0.1:9090", client=("127.0.0.1", 5000)) as client:
        yield client


def tell(client: TestClient, *events: dict[str, Any]) -> None:
    for event in events:
        assert client.post("/webhook", json=event).status_code == 200
    until(lambda: client.get("/v1/status").json()["intake"]["waiting"] == 0)


def listed(client: TestClient, **query: Any) -> list[str]:
    answer = client.get("/v1/projects/label_studio/3/labels", params=query).json()
    assert answer["total"] == len(answer["labels"])
    return [label["region"] for label in answer["labels"]]


@pytest.mark.parametrize(
    ("marked", "expected"),
    [
        ({"a": 0, "b": 1, "c": 2}, ["b", "c"]),
        ({"a": 0, "b": 1}, ["a", "b"]),  # the last page was left as it was
        ({"c": 2}, ["c"]),
        ({}, []),
    ],
)
def test_a_picture_that_is_two_pages_of_a_task_has_the_labels_of_one(
    client: TestClient, studio: LabelStudioStandin, marked: dict[str, int], expected: list[str]
) -> None:
    studio.xml = PAGES
    pages = [f"/data/upload/3/0123abcd-picture {number}.png" for number in (7, 9, 8)]  # the first again last
    studio.tasks[7]["data"] = {"images": pages}
    regions = [rectangle(name, item_index=item) for name, item in marked.items()]
    tell(client, studio.event("ANNOTATION_CREATED", studio.annotation(7, *regions)))
    assert listed(client) == expected
    assert client.get("/v1/projects/label_studio/3/stats").json()["images"] == 2


@pytest.mark.parametrize("late", [False, True])
def test_a_picture_in_two_tasks_has_the_labels_of_the_newer_annotation_be_it_empty(
    client: TestClient, studio: LabelStudioStandin, late: bool
) -> None:
    older, newer = studio.annotation(7, rectangle("a")), studio.annotation(8)
    events = [studio.event("ANNOTATION_CREATED", each) for each in (older, newer)]
    tell(client, *(reversed(events) if late else events))
    assert listed(client) == []
    assert listed(client, all_annotations=True) == ["a"]
    deleted = {**studio.event("ANNOTATIONS_DELETED", newer), "annotations": [{"id": newer["id"]}]}
    tell(client, deleted)
    assert listed(client) == ["a"]


def test_a_ground_truth_counts_before_the_newer_annotation_of_another_task(
    client: TestClient, studio: LabelStudioStandin
) -> None:
    truth = studio.annotation(7, rectangle("truth"), ground_truth=True)
    skipped, newer = studio.annotation(8, was_cancelled=True), studio.annotation(8, rectangle("newer"))
    for each in (truth, skipped, newer):
        tell(client, studio.event("ANNOTATION_CREATED", each))
    assert listed(client) == ["truth"]


def test_a_task_that_is_skipped_says_nothing_of_its_picture(
    client: TestClient, studio: LabelStudioStandin
) -> None:
    for each in (studio.annotation(7, rectangle("a")), studio.annotation(8, was_cancelled=True)):
        tell(client, studio.event("ANNOTATION_CREATED", each))
    assert listed(client) == ["a"]
