"""A signal ends the server in time, in order and with status 0, whatever it is at."""

from __future__ import annotations

import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest
import requests

from clickmask.images.archive import ImageArchive
from clickmask.store import Store
from support.attacked import GET_LARGE, attacked, click, connect, many, picture, posted
from support.drawn_projects import accept_drawings
from support.labelled import PROJECT, TOOL
from support.served import Server
from support.waiting import until

pytestmark = pytest.mark.faults
END_S = 8.0  # from the signal to the end; Docker kills after 10
Begin = Callable[[Server, ExitStack], None]


def nothing(server: Server, context: ExitStack) -> None:
    pass


def idle_connections(server: Server, context: ExitStack) -> None:
    context.enter_context(many(server, 50))
    context.enter_context(many(server, 50, posted("/v1/proposals", b"{", length=1000)))


def an_unread_answer(server: Server, context: ExitStack) -> None:
    client = context.enter_context(connect(server, GET_LARGE, receive_buffer=4096))
    assert client.recv(1)


def an_encode_that_takes_minutes(server: Server, context: ExitStack) -> None:
    for seed in range(20):
        asked = {"image": picture(seed), "prompt": {"foreground": [[40, 30]]}}
        context.enter_context(connect(server, posted("/v1/proposals", asked)))
    until(lambda: requests.get(f"{server.url}/v1/status", timeout=30).json()["queue"]["waiting"] > 0)


@pytest.mark.parametrize("stop", [signal.SIGTERM, signal.SIGINT])
@pytest.mark.parametrize("begin", [nothing, idle_connections, an_unread_answer, an_encode_that_takes_minutes])
def test_a_signal_ends_the_server_in_time(begin: Begin, stop: signal.Signals, tmp_path: Path) -> None:
    encode_s = 300.0 if begin is an_encode_that_takes_minutes else 0.0
    with attacked(tmp_path, encode_s=encode_s) as server, ExitStack() as context:
        assert requests.get(f"{server.url}/health", timeout=30).ok
        begin(server, context)
        began = time.monotonic()
        status = server.stop(stop)
        took = time.monotonic() - began
        print(f"{begin.__name__}, {stop.name}: status {status} after {took:.1f} s")
        assert status == 0 and took < END_S
        assert "Traceback" not in server.output


@contextmanager
def black_hole() -> Iterator[str]:
    """The address of a server that takes connections and never answers."""
    with socket.create_server(("127.0.0.1", 0)) as listening:
        yield f"http://127.0.0.1:{listening.getsockname()[1]}"


def test_a_signal_ends_a_server_whose_labeling_tool_does_not_answer(tmp_path: Path) -> None:
    with (
        black_hole() as url,
        attacked(tmp_path, 0, 0.0, LABEL_STUDIO_URL=url, LABEL_STUDIO_API_KEY="k") as server,
    ):
        event = {
            "action": "ANNOTATION_CREATED",
            "project": {"id": 1},
            "task": {"id": 1},
            "annotation": {"id": 1},
        }
        assert requests.post(f"{server.url}/webhook", json=event, timeout=30).ok
        image = {"url": f"{url}/picture.png"}
        clicks = [threading.Thread(target=lambda: click(server, image), daemon=True) for _ in range(4)]
        for each in clicks:
            each.start()
        time.sleep(3)
        began = time.monotonic()
        status = server.stop()
        took = time.monotonic() - began
        print(f"a tool that does not answer: status {status} after {took:.1f} s")
        assert status == 0 and took < END_S


def test_a_training_is_told_and_goes_on_after_a_restart(tmp_path: Path) -> None:
    pytest.importorskip("torch")
    home = tmp_path / "home"
    home.mkdir()
    store = Store(home / "store.sqlite")
    accept_drawings(store, ImageArchive(home / "images", 2**24, lambda digest: True), 18)
    store.close()
    with attacked(tmp_path, encode_s=0.0, CLICKMASK_TRAIN_SECONDS="3000") as server:
        job = requests.post(f"{server.url}/v1/projects/{TOOL}/{PROJECT}/train", timeout=30).json()["job"]

        def step() -> int:
            return int(requests.get(f"{server.url}/v1/jobs/{job}", timeout=30).json()["step"] or 0)

        until(lambda: step() > 0, 600)
        began = time.monotonic()
        status = server.stop()
        took = time.monotonic() - began
    print(f"a training: status {status} after {took:.1f} s")
    assert status == 0 and took < END_S
    store = Store(home / "store.sqlite")
    assert store.jobs.get(job).state == "queued"
    store.close()
    assert list((home / "models").rglob("training*.pt"))
