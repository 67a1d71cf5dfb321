"""The real server beside the stand-in CVAT: connect, click through CVAT, accept, kill, look at the labels."""

from __future__ import annotations

import signal
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import requests
from typer.testing import CliRunner

from clickmask.store import Store
from clickmask_adapters.cli import app
from clickmask_adapters.tools.cvat.client import CvatClient
from support.cvat_server import TOKEN, CvatServer, picture
from support.served import serving
from support.waiting import until

SECRET = "a secret of their own"


def labels(url: str) -> list[dict[str, Any]]:
    answer = requests.get(f"{url}/v1/projects/cvat/1/labels", timeout=10)
    return answer.json()["labels"] if answer.ok else []


def test_a_click_and_an_accepted_job_go_all_the_way(cvat: CvatServer, tmp_path: Path) -> None:
    environment = {"CVAT_URL": cvat.url, "CVAT_ACCESS_TOKEN": TOKEN, "CVAT_WEBHOOK_SECRET": SECRET}
    cvat._now = datetime.now(UTC)  # what was accepted long before a click did not come of it
    cvat.add_job(3, frames=[picture(), picture(80)])
    with serving(tmp_path / "home", **environment) as server:
        cvat.nuclio = server.url
        connected = CliRunner().invoke(
            app, ["connect", "cvat", "1", "--clickmask-url", server.url], env=environment
        )
        assert connected.exit_code == 0, connected.output
        assert "was answered" in connected.output
        assert "clickmask reads frame 0 of job 3" in connected.output

        cvat.draw(3, "rectangle", [20, 15, 60, 45])
        cvat.save(3)
        assert cvat.deliveries[-1]["status_code"] == 202
        cvat.complete(3)
        assert cvat.deliveries[-1]["status_code"] == 202
        until(lambda: len(labels(server.url)) == 1)
        (label,) = labels(server.url)
        assert (label["tool"], label["task"], label["annotation"]) == ("cvat", "30", "3")
        assert (label["category"], label["area"]) == ("cat", 40 * 30)

        cvat.draw(3, "ellipse", [40, 30, 50, 25], frame=1)
        cvat.save(3)
        until(lambda: len(labels(server.url)) == 2)

        clicked = {"job": 3, "frame": 1, "pos_points": [[40, 30]], "neg_points": [], "obj_bbox": []}
        answer = CvatClient(cvat.url, f"Bearer {TOKEN}").interact("clickmask-threshold", clicked)
        cvat.draw(3, "mask", answer["shapes"][0]["points"], frame=1)
        cvat.save(3)
        until(lambda: len(labels(server.url)) == 3)
        # CVAT names neither task nor user with a click: what it came to is known by its overlap alone.
        assist = requests.get(f"{server.url}/v1/projects/cvat/1/assist", timeout=10).json()
        by_name = {row["name"]: row for row in assist["segmenter"]}
        assert by_name["threshold"]["untouched"] == 1, assist
        server.stop(signal.SIGKILL)
        assert "Traceback" not in server.output
        assert SECRET not in server.output
        assert TOKEN not in server.output
    with serving(tmp_path / "home", **environment) as server:
        kept = labels(server.url)
        assert len(kept) == 3

    elsewhere = {**environment, "CLICKMASK_HOME": str(tmp_path / "another home")}
    pulled = CliRunner().invoke(app, ["pull", "cvat", "1"], env=elsewhere)
    assert pulled.exit_code == 0, pulled.output
    store = Store(tmp_path / "another home" / "store.sqlite")
    found = store.labels("cvat", "1")
    store.close()
    # What nobody heard of comes by the same way.
    assert [(label.key.region, label.image, label.rle) for label in found] == [
        (label["region"], label["image"], label["rle"]) for label in kept
    ]


def test_what_is_accepted_while_cvat_is_away_is_taken_in_later(cvat: CvatServer, tmp_path: Path) -> None:
    cvat.add_job(3)
    cvat.draw(3, "rectangle", [20, 15, 60, 45])
    home = tmp_path / "home"
    with serving(home, CVAT_URL=cvat.url, CVAT_ACCESS_TOKEN="expired", CVAT_WEBHOOK_SECRET=SECRET) as server:
        cvat.hooks[1] = {
            "id": 1, "project_id": 1, "is_active": True, "events": ["update:job"],
            "target_url": f"{server.url}/webhooks/cvat",
        }  # fmt: skip
        cvat.secrets[1] = SECRET
        cvat.complete(3)
        assert cvat.deliveries[-1]["status_code"] == 202
        until(lambda: any(path == "/api/jobs/3" for _, path, _ in cvat.asked))
    with serving(home, CVAT_URL=cvat.url, CVAT_ACCESS_TOKEN=TOKEN) as server:  # mended, and started again
        until(lambda: len(labels(server.url)) == 1)
