from __future__ import annotations

import base64
import io
import re
import signal
import sqlite3
from pathlib import Path

import numpy as np
import PIL.Image
import requests
from typer.testing import CliRunner

from clickmask_adapters.cli import app
from served import serving


def picture() -> str:
    """Base64 of a light square on dark noise."""
    pixels = np.random.default_rng(0).integers(0, 60, (120, 160, 3), dtype=np.uint8)
    pixels[40:80, 50:110] += 150
    raw = io.BytesIO()
    PIL.Image.fromarray(pixels).save(raw, "png")
    return base64.b64encode(raw.getvalue()).decode()


def test_serve_prints_its_address_when_it_answers_and_no_other(tmp_path: Path) -> None:
    with serving(tmp_path / "home", LABEL_STUDIO_URL="http://localhost:8080") as server:
        assert requests.get(server.url + "/health", timeout=5).json()["status"] == "UP"
        body = {"image": {"data": picture()}, "prompt": {"foreground": [[80, 60]]}}
        answer = requests.post(server.url + "/v1/proposals", json=body, timeout=30)
        (best, *_) = answer.json()["proposals"]
        assert abs(best["area"] - 40 * 60) < 240
        requests.get(server.url + "/nowhere", timeout=5)
        server.stop()
        assert re.findall(r"https?://[^/\s]+:\d+", server.output) == [server.url]
        assert "Traceback" not in server.output
        assert re.search(r"api: image [0-9a-f]{8}, grabcut, embedding made", server.output)


def test_everything_that_is_written_lies_in_the_home(tmp_path: Path) -> None:
    home = tmp_path / "home"
    with serving(home) as server:
        webhook = requests.post(server.url + "/webhook", json={"action": "TEST"}, timeout=5)
        assert webhook.status_code == 200
    assert {path.name for path in home.iterdir()} >= {"store.sqlite", "inbox.sqlite"}
    with sqlite3.connect(home / "inbox.sqlite") as connection:
        assert connection.execute("SELECT count(*) FROM events").fetchone() == (1,)
    connection.close()


def test_an_interrupt_ends_the_server_without_a_traceback(tmp_path: Path) -> None:
    with serving(tmp_path / "home") as server:
        server.stop(signal.SIGINT)
        assert "Traceback" not in server.output


def test_a_segmenter_that_is_not_installed_is_refused_with_those_that_are(tmp_path: Path) -> None:
    result = CliRunner().invoke(
        app, ["serve", "--segmenter", "nothing"], env={"CLICKMASK_HOME": str(tmp_path / "home")}
    )
    assert result.exit_code == 2
    assert "grabcut" in result.output
    assert "Traceback" not in result.output


def test_segmenters_are_listed() -> None:
    result = CliRunner().invoke(app, ["segmenters"])
    assert re.search(r"grabcut\s+yes", result.output)
