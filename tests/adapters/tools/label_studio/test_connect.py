from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import pytest

from clickmask.errors import ImageUnavailable
from clickmask.types import ImageRef
from clickmask_adapters.tools._client import ToolError
from clickmask_adapters.tools.label_studio.client import LabelStudioClient
from clickmask_adapters.tools.label_studio.connect import connect

CLICKMASK = "http://10.0.0.5:9090"
SECRET = "not to be said"
CONFIG = """<View><Image name="image" value="$image"/>
<KeyPointLabels name="kp" toName="image" smart="true"><Label value="Car"/></KeyPointLabels>
<BrushLabels name="brush" toName="image"><Label value="Car"/></BrushLabels></View>"""


class FakeLabelStudio(LabelStudioClient):
    """Rows in memory. As in 1.23.2, adding a backend adds its webhook, unless webhooks are blocked:
    then the answer is a 403, and the backend is there all the same."""

    def __init__(self, webhooks_blocked: bool = False, reachable: bool = True) -> None:
        super().__init__("http://labels.example", "0" * 40)
        self.webhooks_blocked, self.reachable = webhooks_blocked, reachable
        self.rows: list[dict[str, Any]] = []
        self.hooks: list[dict[str, Any]] = []
        self.found_tasks = [{"id": 7, "data": {"image": "/data/upload/1/a.png"}}]

    def version(self) -> str:
        return "1.23.2"

    def project(self, project: int) -> dict[str, Any]:
        return {"id": project, "title": "Cars", "label_config": CONFIG}

    def all_tasks(self, project: int, page_size: int = 200) -> Iterator[dict[str, Any]]:
        yield from self.found_tasks

    def backends(self, project: int) -> list[dict[str, Any]]:
        state = {"state": "CO" if self.reachable else "DI", "readable_state": "Disconnected"}
        return [{**row, **state, "model_version": "clickmask-1"} for row in self.rows]

    def add_backend(self, backend: Mapping[str, Any]) -> dict[str, Any]:
        self.rows.append({"id": len(self.rows), **backend})
        self.add_webhook({"url": backend["url"] + "/webhook", "send_for_all_actions": True, "headers": {}})
        return self.rows[-1]

    def change_backend(self, backend: int, changes: Mapping[str, Any]) -> dict[str, Any]:
        assert {"url", "project"} <= set(changes)
        row = next(row for row in self.rows if row["id"] == backend)
        row.update(changes)
        return row

    def remove_backend(self, backend: int) -> None:
        self.rows = [row for row in self.rows if row["id"] != backend]

    def webhooks(self, project: int) -> list[dict[str, Any]]:
        return self.hooks

    def add_webhook(self, webhook: Mapping[str, Any]) -> dict[str, Any]:
        if self.webhooks_blocked:
            raise ToolError("Label Studio answers 403: URL resolves to a reserved address", 403)
        full = {"id": len(self.hooks), "send_payload": True, "is_active": True, **webhook}
        self.hooks.append(full)
        return full

    def change_webhook(self, webhook: int, changes: Mapping[str, Any]) -> dict[str, Any]:
        row = next(row for row in self.hooks if row["id"] == webhook)
        row.update(changes)
        return row

    def remove_webhook(self, webhook: int) -> None:
        self.hooks = [row for row in self.hooks if row["id"] != webhook]


def sentences(fake: FakeLabelStudio, secret: str | None = None) -> str:
    return "\n".join(connect(fake, "3", f"{CLICKMASK}/", secret, read=lambda ref: None))


def test_a_new_project_gets_backend_and_webhook() -> None:
    fake = FakeLabelStudio()
    said = sentences(fake, SECRET)
    (backend,), (webhook,) = fake.rows, fake.hooks
    assert backend["url"] == CLICKMASK
    assert backend["is_interactive"] is True
    assert (backend["basic_auth_user"], backend["basic_auth_pass"]) == ("clickmask", SECRET)
    assert webhook["url"] == f"{CLICKMASK}/webhook"
    assert webhook["headers"] == {"Authorization": f"Token {SECRET}"}
    assert "reads the image of task 7" in said
    assert SECRET not in said


def test_connecting_again_changes_nothing() -> None:
    fake = FakeLabelStudio()
    sentences(fake, SECRET)
    before = ([dict(row) for row in fake.rows], [dict(row) for row in fake.hooks])
    said = sentences(fake, SECRET)
    assert (fake.rows, fake.hooks) == before
    assert said.count("is there already") == 2


def test_what_was_connected_by_hand_is_mended() -> None:
    fake = FakeLabelStudio()
    for _ in range(2):
        fake.rows.append({"id": len(fake.rows), "url": f"{CLICKMASK}/", "is_interactive": False})
    fake.hooks = [
        {"id": 0, "url": "http://elsewhere/webhook", "headers": {}},
        {"id": 1, "url": f"{CLICKMASK}/webhook", "send_for_all_actions": False, "headers": {"X-Kept": "1"}},
        {"id": 2, "url": f"{CLICKMASK}/webhook", "send_for_all_actions": True, "headers": {}},
    ]
    said = sentences(fake, SECRET)
    assert said.count("was there twice") == 2
    (backend,) = fake.rows
    assert backend["is_interactive"] is True
    elsewhere, ours = fake.hooks
    assert elsewhere == {"id": 0, "url": "http://elsewhere/webhook", "headers": {}}
    assert ours["send_for_all_actions"] is True
    assert ours["is_active"] is True
    assert ours["headers"] == {"X-Kept": "1", "Authorization": f"Token {SECRET}"}


def test_a_secret_that_is_gone_is_taken_away() -> None:
    fake = FakeLabelStudio()
    sentences(fake, SECRET)
    sentences(fake, None)
    assert fake.rows[0]["auth_method"] == "NONE"
    assert fake.hooks[0]["headers"] == {}


def test_blocked_webhooks_are_noticed_though_the_backend_is_there() -> None:
    fake = FakeLabelStudio(webhooks_blocked=True)
    for _ in range(2):
        with pytest.raises(ToolError, match=r"accepted labels never arrive.*SSRF_PROTECTION_ENABLED=false"):
            sentences(fake)
        assert len(fake.rows) == 1


def test_a_label_studio_that_cannot_reach_us_is_said() -> None:
    with pytest.raises(ToolError, match=r"does not reach clickmask at http://10\.0\.0\.5:9090"):
        sentences(FakeLabelStudio(reachable=False))


def test_an_image_that_cannot_be_read_is_said() -> None:
    def read(ref: ImageRef) -> object:
        raise ImageUnavailable("labels.example answered 404")

    with pytest.raises(ToolError, match=r"cannot read the image of task 7: labels\.example answered 404"):
        list(connect(FakeLabelStudio(), "3", CLICKMASK, None, read))


def test_a_project_without_tasks_connects() -> None:
    fake = FakeLabelStudio()
    fake.found_tasks = []
    assert "no task with an image yet" in sentences(fake)
