"""schemathesis runs over the description of a server: its own API, the pages, and both tools' calls."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
import uvicorn

from clickmask.images.archive import ImageArchive
from clickmask.training import supervisor
from clickmask.workbench import Workbench
from clickmask_adapters.app import create_app
from clickmask_adapters.home import Home
from clickmask_adapters.server import authentication
from clickmask_adapters.server.uvicorn import ReadTimeouts
from clickmask_adapters.settings import Settings
from support.drawn_projects import accept_drawings
from support.labelled import PROJECT, TOOL
from support.waiting import until

pytestmark = pytest.mark.slow

SUPPORT = Path(__file__).parent.parent / "support"
SECRETS = {"SERVER_SECRET": "the-servers-secret", "SIGNING_SECRET": "the-secret-of-CVAT"}


@pytest.fixture
def url(workbench: Workbench, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """A server with accepted labels, two models, and trainings that do nothing; its segmenter draws discs."""
    worker = (sys.executable, "-c", "import sys; sys.stdin.read()")
    monkeypatch.setitem(supervisor.Supervisor.__init__.__kwdefaults__, "worker", worker)
    monkeypatch.setattr(authentication, "MAX_DELAY_S", 0.0)  # of answers to wrong secrets
    accept_drawings(workbench.store, ImageArchive(tmp_path / "images", 2**24, lambda digest: True), 2)
    settings = Settings(
        home=tmp_path,
        token=SECRETS["SERVER_SECRET"],
        cvat_webhook_secret=SECRETS["SIGNING_SECRET"],
        cvat_direct_function="clickmask-disc",
    )
    drafts = pytest.importorskip("support.model_drafts")  # needs onnx
    home = Home(settings, workbench)
    models = home.models.of(TOOL, PROJECT)
    for weight in (2.0, 3.0):
        models.promote(models.save(drafts.measured_draft(weight)).id)
    config = uvicorn.Config(create_app(home), http=ReadTimeouts, log_level="critical", server_header=False)
    server = uvicorn.Server(config)
    with socket.create_server(("127.0.0.1", 0)) as bound:
        thread = threading.Thread(target=server.run, kwargs={"sockets": [bound]})
        thread.start()
        until(lambda: server.started)
        yield f"http://127.0.0.1:{bound.getsockname()[1]}"
        server.should_exit = True
        thread.join(30)


def test_nothing_that_is_described_is_answered_otherwise(url: str, tmp_path: Path) -> None:
    arguments = ["--config-file", str(SUPPORT / "schemathesis.toml"), "run", f"{url}/v1/openapi.json"]
    # DELETE cancels a training, which stays to be read: use_after_free would call that a fault.
    arguments += ["--checks", "all", "--exclude-checks", "use_after_free", "--no-color"]
    arguments += ["--header", f"Authorization: Bearer {SECRETS['SERVER_SECRET']}"]
    done = subprocess.run(
        [sys.executable, "-m", "schemathesis.cli", *arguments],
        env={**os.environ, **SECRETS, "PYTHONPATH": os.pathsep.join(sys.path)},
        cwd=tmp_path,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr
