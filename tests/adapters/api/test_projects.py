"""From a webhook of Label Studio to /v1/projects."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from fastapi.testclient import TestClient
from pydantic import SecretStr

from clickmask.errors import Conflict
from clickmask.images.fetch import Fetcher
from clickmask.images.source import ImageIdentity, ImageSource
from clickmask.workbench import Workbench
from clickmask_adapters.app import create_app
from clickmask_adapters.home import Home
from clickmask_adapters.settings import Settings
from support.accepting import box, submitted
from support.label_studio_standin import TOKEN, LabelStudioStandin, label_studio_standin, rectangle
from support.pictures import SIZE
from support.waiting import until


@pytest.fixture
def studio() -> Iterator[LabelStudioStandin]:
    with label_studio_standin() as standin:
        yield standin


@pytest.fixture
def settings(studio: LabelStudioStandin, tmp_path: Path) -> Settings:
    key = SecretStr(TOKEN)
    return Settings(home=tmp_path, label_studio_url=studio.url, label_studio_api_key=key)


@pytest.fixture
def client(settings: Settings, workbench: Workbench, studio: LabelStudioStandin) -> Iterator[TestClient]:
    workbench.images = ImageSource(Fetcher(trusted_origins=[studio.url]))
    app = create_app(Home(settings, workbench))
    with TestClient(app, "http://127.0.0.1:9090", client=("127.0.0.1", 5000)) as client:
        yield client


def tell(client: TestClient, event: dict[str, Any]) -> None:
    assert client.post("/webhook", json=event).status_code == 200
    until(lambda: client.get("/v1/status").json()["intake"]["waiting"] == 0)


def get(client: TestClient, path: str, **query: Any) -> Any:
    answer = client.get(f"/v1/projects{path}", params=query)
    assert answer.status_code == 200, answer.text
    return answer.json()


def test_what_an_annotator_submits_is_listed(client: TestClient, studio: LabelStudioStandin) -> None:
    studio.add_task(7)
    tell(client, studio.event("ANNOTATION_CREATED", studio.annotation(7, rectangle("r", 50, "Road"))))
    (listed,) = get(client, "")["projects"]
    assert (listed["tool"], listed["project"], listed["title"]) == ("label_studio", "3", "Streets")
    assert (listed["categories"], listed["images"], listed["labels"]) == (["Car", "Road"], 1, 1)
    found = get(client, "/label_studio/3/labels")
    assert (found["total"], found["offset"]) == (1, 0)
    (label,) = found["labels"]
    assert {name: label[name] for name in ("tool", "project", "task", "annotation", "region")} == {
        "tool": "label_studio",
        "project": "3",
        "task": "7",
        "annotation": "101",
        "region": "r",
    }
    assert (label["category"], label["size"], label["area"]) == ("Road", [60, 80], 48)
    assert label["box"] == [40, 0, 48, 6]
    assert label["geometry"] == {"kind": "rectangle", "box": [40, 0, 48, 6], "rotation": 0}
    assert label["rle"]["size"] == [60, 80]
    assert label["proposal"] is None


def test_labels_come_in_pages_and_of_every_annotator_where_asked(
    client: TestClient, studio: LabelStudioStandin
) -> None:
    studio.add_task(7)
    tell(client, studio.event("ANNOTATION_CREATED", studio.annotation(7, rectangle("old"))))
    many = [rectangle(str(number), number) for number in range(5)]
    tell(client, studio.event("ANNOTATION_CREATED", studio.annotation(7, *many)))
    page = get(client, "/label_studio/3/labels", offset=1, limit=2)
    assert (page["total"], [label["region"] for label in page["labels"]]) == (5, ["1", "2"])
    everyone = get(client, "/label_studio/3/labels", all_annotations=True)
    assert everyone["total"] == 6


def test_deletions_withdraw(client: TestClient, studio: LabelStudioStandin) -> None:
    studio.add_task(7)
    made = studio.annotation(7, rectangle("r"))
    tell(client, studio.event("ANNOTATION_CREATED", made))
    tell(client, {"action": "ANNOTATIONS_DELETED", "annotations": [{"id": made["id"]}]})
    assert get(client, "/label_studio/3/labels")["labels"] == []
    assert get(client, "")["projects"][0]["labels"] == 0


@pytest.mark.parametrize("path", ["/label_studio/99/labels", "/cvat/3/labels", "/paint/3/labels"])
def test_a_project_that_is_not_known_is_not_found(
    client: TestClient, studio: LabelStudioStandin, path: str
) -> None:
    studio.add_task(7)
    tell(client, studio.event("ANNOTATION_CREATED", studio.annotation(7)))
    assert client.get(f"/v1/projects{path}").status_code == 404


def test_the_status_names_what_could_not_be_taken_in(client: TestClient, studio: LabelStudioStandin) -> None:
    studio.add_task(7)
    damaged = studio.annotation(7, rectangle("r", value={"rectanglelabels": ["Car"]}))
    tell(client, studio.event("ANNOTATION_CREATED", damaged))
    tell(client, studio.event("ANNOTATION_CREATED", studio.annotation(7, rectangle("whole"))))
    intake = client.get("/v1/status").json()["intake"]
    assert intake["set_aside"] == 1
    (aside,) = intake["newest_set_aside"]
    assert (aside["tool"], aside["attempts"], aside["retry_at"]) == ("label_studio", 1, None)
    why = "task 7, annotation 101: region 'r' is damaged and left out: its value is incomplete"
    assert aside["reason"].startswith(why)
    assert intake["kept_images"]["images"] == 1
    assert get(client, "/label_studio/3/labels")["total"] == 1


def test_an_accepted_answer_is_one_label_of_its_proposal(
    client: TestClient, studio: LabelStudioStandin, workbench: Workbench
) -> None:
    labels = '<Label value="Car"/>'
    xml = f"""<View><Image name="image" value="$image"/>
        <BrushLabels name="brush" toName="image">{labels}</BrushLabels>
        <PolygonLabels name="polygon" toName="image">{labels}</PolygonLabels>
        <KeyPointLabels name="point" toName="image" smart="true">{labels}</KeyPointLabels></View>"""
    task = studio.add_task(7)
    point = rectangle("prompt") | {
        "type": "keypointlabels",
        "from_name": "point",
        "value": {"x": 50, "y": 50, "width": 0.3, "keypointlabels": ["Car"]},
    }
    asked = {
        "project": "3.17",
        "label_config": xml,
        "tasks": [task],
        "params": {"context": {"result": [point]}},
    }
    answer = client.post("/predict", json=asked)
    assert answer.status_code == 200, answer.text
    regions = answer.json()["results"][0]["result"]
    assert sorted(region["type"] for region in regions) == ["brushlabels", "polygonlabels"]
    told = studio.event("ANNOTATION_CREATED", studio.annotation(7, *regions))
    told["project"] = {**studio.project, "label_config": xml}
    tell(client, told)
    (label,) = get(client, "/label_studio/3/labels")["labels"]
    proposal = workbench.store.proposal(label["proposal"])
    assert proposal is not None
    assert proposal.digest == label["image"]
    assert label["rle"] == proposal.rle
    assert label["geometry"]["kind"] == "brush"


def test_a_server_of_another_label_studio_does_not_start(
    client: TestClient, studio: LabelStudioStandin, settings: Settings, workbench: Workbench
) -> None:
    studio.add_task(7)
    tell(client, studio.event("ANNOTATION_CREATED", studio.annotation(7)))
    elsewhere = settings.model_copy(update={"label_studio_url": "http://elsewhere"})
    with pytest.raises(Conflict, match="not of http://elsewhere"):
        create_app(Home(elsewhere, workbench))


def test_a_server_of_another_cvat_does_not_start(settings: Settings, workbench: Workbench) -> None:
    workbench.store.require_origin("cvat", "http://first")
    workbench.store.accept(submitted(box(), tool="cvat"), ImageIdentity("d" * 64, SIZE), [])
    elsewhere = settings.model_copy(update={"cvat_url": "http://elsewhere"})
    with pytest.raises(Conflict, match="the labels of http://first, not of http://elsewhere"):
        create_app(Home(elsewhere, workbench))


def test_a_tool_may_be_written_with_a_hyphen(client: TestClient, studio: LabelStudioStandin) -> None:
    studio.add_task(7)
    tell(client, studio.event("ANNOTATION_CREATED", studio.annotation(7, rectangle("a"))))
    for path in ("labels", "stats", "assist", "segmenters", "versions", "export/coco"):
        one, other = (
            client.get(f"/v1/projects/{tool}/3/{path}") for tool in ("label-studio", "label_studio")
        )
        assert (one.status_code, one.content) == (200, other.content)
