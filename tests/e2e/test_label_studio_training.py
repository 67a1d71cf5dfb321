"""The loop with a real Label Studio: what annotators submit trains a model, which draws the next tasks."""

from __future__ import annotations

import base64
import signal
import socket
import statistics
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import requests

from clickmask.images.fetch import Fetcher
from clickmask.images.source import ImageSource
from clickmask.types import Mask
from clickmask_adapters.tools.label_studio.client import LabelStudioClient
from clickmask_adapters.tools.label_studio.connect import connect
from support.drawn_projects import drawn_picture
from support.label_studio_sdk_oracle import decode_rle, mask2rle
from support.label_studio_server import LabelStudioServer
from support.labelled import png
from support.served import Server
from support.waiting import until

pytestmark = pytest.mark.slow

SIZE = (96, 128)
LABELLED, FREE = 24, 2
SECONDS = 1200  # of training at most: it stops when it no longer improves
SHORT = 0.05  # seconds: what takes less, anything else on the machine makes many times longer
XML = (
    '<View><Image name="image" value="$image"/><BrushLabels name="brush" toName="image">'
    '<Label value="disc"/><Label value="square"/></BrushLabels></View>'
)


class Clickmask:
    """One that can be killed and started again at the same address."""

    def __init__(self, home: Path, studio: LabelStudioServer) -> None:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self._port = str(probe.getsockname()[1])
        self._home = home
        self._environment = {
            "LABEL_STUDIO_URL": studio.url,
            "LABEL_STUDIO_API_KEY": studio.token,
            "CLICKMASK_TRAIN_SECONDS": str(SECONDS),
            "CLICKMASK_TRAIN_AFTER": "0",
        }
        self.start()

    def start(self) -> None:
        self.server = Server(self._home, self._environment, ["--port", self._port])

    def kill(self) -> None:
        self.server.stop(signal.SIGKILL)

    def get(self, path: str) -> Any:
        answer = requests.get(self.server.url + path, timeout=60)
        assert answer.ok, answer.text
        return answer.json()

    def waits(self) -> tuple[float, float]:
        """Seconds of a health check, and of a click with GrabCut on a picture that it has seen."""
        image = {"data": base64.b64encode(png(drawn_picture(0, SIZE)[0])).decode()}
        body = {"image": image, "prompt": {"foreground": [[32, 48]]}, "segmenter": "grabcut"}
        started = time.perf_counter()
        self.get("/health")
        healthy = time.perf_counter()
        answer = requests.post(f"{self.server.url}/v1/proposals", json=body, timeout=60)
        assert answer.ok, answer.text
        return healthy - started, time.perf_counter() - healthy


@pytest.fixture
def clickmask(studio: LabelStudioServer, tmp_path: Path) -> Iterator[Clickmask]:
    running = Clickmask(tmp_path / "home", studio)
    yield running
    running.server.stop()


def region(label: str, mask: Mask) -> dict[str, Any]:
    rle = mask2rle(mask.astype(np.uint8) * 255)
    return {
        "id": label,
        "type": "brushlabels",
        "from_name": "brush",
        "to_name": "image",
        "original_width": SIZE[1],
        "original_height": SIZE[0],
        "image_rotation": 0,
        "value": {"brushlabels": [label], "format": "rle", "rle": rle},
    }


def upload(studio: LabelStudioServer, project: int, seed: int) -> int:
    return studio.upload(project, f"{seed}.png", png(drawn_picture(seed, SIZE)[0]))


def backend(studio: LabelStudioServer, project: int) -> dict[str, Any]:
    (found,) = studio.api("GET", "/api/ml", params={"project": project})
    return found


def retrieve_predictions(studio: LabelStudioServer, project: int) -> None:
    action = {"id": "retrieve_tasks_predictions", "project": project}
    chosen = {"selectedItems": {"all": True, "excluded": []}, "ordering": []}
    studio.api("POST", "/api/dm/actions", params=action, json=chosen)


def found_in(studio: LabelStudioServer, task: int, version: str) -> dict[str, Mask]:
    """The union of the regions of each label that Label Studio holds of this model."""
    made = [
        each
        for each in studio.api("GET", "/api/predictions/", params={"task": task})
        if each["model_version"] == version
    ]
    masks: dict[str, Mask] = {}
    for each in made:
        for result in each["result"]:
            label = result["value"]["brushlabels"][0]
            mask = decode_rle(result["value"]["rle"]).reshape(*SIZE, 4)[:, :, 3] >= 128
            masks[label] = masks.get(label, np.zeros(SIZE, bool)) | mask
    return masks


def test_submitted_labels_become_a_model_that_draws_the_next_tasks(
    studio: LabelStudioServer, clickmask: Clickmask
) -> None:
    project = studio.new_project("trained", XML)
    of = f"/v1/projects/label_studio/{project}"
    client = LabelStudioClient(studio.url, studio.token)
    list(connect(client, str(project), clickmask.server.url, None, ImageSource(Fetcher()).identify))
    for seed in range(LABELLED):
        task = upload(studio, project, seed)
        drawn = [region(label, mask) for label, mask in drawn_picture(seed, SIZE)[1].items()]
        studio.api("POST", f"/api/tasks/{task}/annotations/", json={"result": drawn})
    free = {seed: upload(studio, project, seed) for seed in range(LABELLED, LABELLED + FREE)}
    before = backend(studio, project)["model_version"]
    clickmask.waits()  # the first click loads and decodes
    quiet = [clickmask.waits() for _ in range(5)]

    studio.api("POST", f"/api/ml/{backend(studio, project)['id']}/train", json={})
    (job,) = clickmask.get("/v1/status")["trainings"]
    until(lambda: clickmask.get(f"/v1/jobs/{job['id']}")["step"] > 0, 1200)
    busy = [clickmask.waits() for _ in range(5)]
    clickmask.kill()
    clickmask.start()

    def now() -> dict[str, Any]:
        return clickmask.get(f"/v1/jobs/{job['id']}")

    assert now()["step"] > 0, "it goes on"
    until(lambda: now()["state"] not in ("queued", "running"), 2400)
    done = now()
    assert (done["state"], done["promoted"]) == ("done", True), done["message"]
    assert done["images"] == LABELLED
    report = clickmask.get(f"{of}/report")
    assert (report["version"], report["split"]) == (done["version"], "test")
    assert set(report["iou"]) == {"disc", "square"}
    print(f"mIoU {report['miou']:.3f} on {report['images']} images of the test side, {done['step']} steps")
    assert report["miou"] >= 0.9

    asked = {"project": f"{project}.1"}
    after = requests.post(f"{clickmask.server.url}/setup", json=asked, timeout=60).json()["model_version"]
    assert after not in ("", before)
    assert done["version"] in after
    for restarted in (False, True):
        if restarted:
            clickmask.kill()
            clickmask.start()
            assert clickmask.get(f"{of}/report") == report
            free = {99: upload(studio, project, 99)}
        retrieve_predictions(studio, project)
        for seed, task in free.items():
            until(lambda task=task: found_in(studio, task, after).keys() == {"disc", "square"}, 240)
            found = found_in(studio, task, after)
            for label, mask in drawn_picture(seed, SIZE)[1].items():
                assert (found[label] & mask).sum() / (found[label] | mask).sum() > 0.8, label
    for number, name in enumerate(("health", "click")):
        alone, beside = (statistics.median(each[number] for each in waits) for waits in (quiet, busy))
        print(f"{name}: {beside / alone:.1f} times as long while it trains")
        assert beside < 20 * max(alone, SHORT)
