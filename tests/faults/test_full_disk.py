"""A small disk, filled by embeddings and by others: what cannot be made again finds room.

The home lies on a file system of its own, 64 MB in memory, which only root may mount.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from support.pictures import to_base64
from support.served import Server, serving
from support.waiting import until

pytestmark = pytest.mark.faults

DISK_BYTES = 64 * 2**20
PICTURES = 40  # whose embeddings would fill the disk
EVENTS, EVENT_BYTES = 12, 2**20
SETTINGS = {"CLICKMASK_TRAIN_AFTER": "0", "CLICKMASK_THREADS": "2"}


@pytest.fixture
def small(tmp_path: Path) -> Iterator[Path]:
    """A home on a disk of its own."""
    home = tmp_path / "small"
    home.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", f"size={DISK_BYTES}", "tmpfs", str(home)]
    if not shutil.which("mount") or subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("this user may mount nothing")
    yield home
    subprocess.run(["umount", "-l", str(home)], check=True)


def post(server: Server, path: str, body: object) -> tuple[int, str]:
    request = urllib.request.Request(
        server.url + path, json.dumps(body).encode(), {"Content-Type": "application/json"}
    )
    try:
        with urllib.request.urlopen(request, timeout=120) as answer:
            return answer.status, answer.read().decode()
    except urllib.error.HTTPError as error:
        return error.code, error.read().decode()


def status(server: Server) -> dict[str, object]:
    with urllib.request.urlopen(f"{server.url}/v1/status", timeout=60) as answer:
        return dict(json.loads(answer.read()))


def click(server: Server, seed: int, side: int) -> int:
    """The status of a click on a picture of noise, whose embedding no other picture shares."""
    pixels = np.random.default_rng(seed).integers(0, 255, (side, side, 3), np.uint8)
    body = {"image": {"data": to_base64(pixels)}, "prompt": {"foreground": [[side / 2, side / 2]]}}
    return post(server, "/v1/proposals", body)[0]


def webhooks(server: Server) -> list[int]:
    """The statuses of events of a megabyte."""
    event = {"action": "PROJECT_UPDATED", "project": {"id": 1}, "filler": "x" * EVENT_BYTES}
    return [post(server, "/webhook", event)[0] for _ in range(EVENTS)]


def filled(home: Path, left: int) -> Path:
    """A file of another program, which leaves so many bytes of the disk."""
    path = home / "other"
    with path.open("ab") as file:
        size = shutil.disk_usage(home).free - left
        os.posix_fallocate(file.fileno(), file.tell(), size)
    return path


def test_embeddings_leave_room_for_webhooks(small: Path) -> None:
    with serving(small, **SETTINGS) as server:
        assert [click(server, seed, 128) for seed in range(PICTURES)] == [200] * PICTURES
        embeddings = small / "embeddings"
        until(lambda: len(list(embeddings.glob("*.embedding"))) > 0)
        before = shutil.disk_usage(small)
        assert webhooks(server) == [200] * EVENTS
        print(
            f"{len(list(embeddings.glob('*.embedding')))} embeddings, {before.free / 2**20:.1f} MiB were free"
        )


def test_embeddings_go_when_webhooks_meet_a_disk_that_others_filled(small: Path) -> None:
    with serving(small, **SETTINGS) as server:
        assert click(server, 0, 128) == 200
        embeddings = small / "embeddings"
        until(lambda: len(list(embeddings.glob("*.embedding"))) == 1)
        one = next(embeddings.glob("*.embedding"))
        for number in range(20 * 2**20 // one.stat().st_size):
            shutil.copy(one, embeddings / f"copy-{number}.embedding")
        filled(small, 0)
        assert webhooks(server) == [200] * EVENTS
        assert click(server, 1, 128) == 200
        disk = status(server)["cache"]["disk"]  # type: ignore[index]
        assert disk["evicted"] > 0


def test_a_server_starts_on_a_disk_that_embeddings_filled(small: Path) -> None:
    with serving(small, **SETTINGS) as server:
        assert webhooks(server) == [200] * EVENTS
    embeddings = small / "embeddings"
    embeddings.mkdir(exist_ok=True)
    (embeddings / "some.embedding").write_bytes(bytes(2**20))
    filled(small, 0)
    with serving(small, **SETTINGS) as server:
        assert status(server)["inbox"] == EVENTS
        assert post(server, "/webhook", {"action": "PROJECT_UPDATED"})[0] == 200


def test_a_disk_that_others_filled_is_said_and_nothing_is_pretended(small: Path) -> None:
    with serving(small, **SETTINGS) as server:
        other = filled(small, 0)
        statuses = webhooks(server)
        assert set(statuses) <= {200, 503}
        assert 503 in statuses
        assert click(server, 0, 128) == 200
        told = post(server, "/webhook", {"action": "PROJECT_UPDATED", "filler": "x" * EVENT_BYTES})
        assert "is there room in CLICKMASK_HOME" in told[1]
        other.unlink()
        assert webhooks(server) == [200] * EVENTS
        assert status(server)["inbox"] == statuses.count(200) + EVENTS
    with serving(small, **SETTINGS) as server:
        assert status(server)["inbox"] == statuses.count(200) + EVENTS
