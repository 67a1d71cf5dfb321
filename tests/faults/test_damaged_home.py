"""Any file of a home, damaged in any way: the server starts, answers, says so, and throws nothing away.

The home is that of an earlier version, opened once. Each case damages one thing in a copy of it.
"""

from __future__ import annotations

import base64
import json
import os
import re
import shutil
import subprocess
import tarfile
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from clickmask_adapters.home import Home
from clickmask_adapters.settings import Settings
from support import damage
from support.forked_server import Forking, forking

pytestmark = pytest.mark.faults

ARCHIVE = Path(__file__).parent.parent / "support" / "existing_home.tar.xz"
PROJECT = "models/label_studio-7"
VERSION = f"{PROJECT}/versions/0001-b959f5c8"  # the served one
LABELLED = "541d0afb06036f4f72515592f0abdfc1efa289aa9043303ca2cd5ef94ea948c4"
ENCODED = "017ff51d63c2eac187be42439c2424718944a4443f3830fa30c56d761360cb0a"
EMBEDDING = f"embeddings/builtin-{ENCODED[:32]}-65f150935dc81c54.embedding"
JOB = "jobs/20261130102310561655-28505b3b.json"
MAX_START_S = 10.0  # of the server's own processor time: the machine may be busy
PATIENCE_S = 120.0
SETTINGS = {
    "CLICKMASK_RUNTIME": "onnxruntime",
    "CLICKMASK_PRECISION": "f32",
    "CLICKMASK_THREADS": "1",
    "CLICKMASK_TRAIN_AFTER": "0",
}
CONFIG = (
    "<View><Image name='i' value='$image'/><BrushLabels name='b' toName='i'><Label value='cell'/>"
    "<Label value='nucleus'/></BrushLabels></View>"
)
# What is no damage, but whole: the server refuses to start, with a sentence, and leaves it as it is.
LEFT_ALONE = {
    ("store.sqlite", "newer_schema"),
    ("store.sqlite", "unreadable"),
    ("inbox.sqlite", "unreadable"),
    ("store.sqlite", "dangling"),  # its disk may not be there yet
    ("inbox.sqlite", "dangling"),
}
# Nobody needs to hear of these: nothing is lost, and what is written next takes their place. Nothing may use
# the page that is flipped.
UNREMARKABLE = {"leftovers", "flip"}
# What an image's file holds is known only once it is decoded, which is for a training to do.
UNSEEN = {(f"images/54/{LABELLED}", name) for name in ("half", "garbage", "zeros")}
UNSEEN |= {(EMBEDDING, "dangling")}  # it is missing, so it is made


class Homes(NamedTuple):
    earlier: Path  # as an earlier version left it, with a folder of jobs
    opened: Path  # the same, once this version had opened it
    pictures: dict[str, str]


@pytest.fixture(scope="module")
def homes(tmp_path_factory: pytest.TempPathFactory) -> Homes:
    folder = tmp_path_factory.mktemp("homes")
    for name in ("earlier", "opened"):
        with tarfile.open(ARCHIVE) as archive:
            archive.extractall(folder / name, filter="data")
    with closing(Home(Settings(home=folder / "opened" / "home"))) as home:
        assert home.inbox.count()
        assert home.jobs.newest()
    paths = (folder / "earlier" / "home" / "images").glob("*/*")
    pictures = {path.name: base64.b64encode(path.read_bytes()).decode() for path in paths}
    return Homes(folder / "earlier" / "home", folder / "opened" / "home", pictures)


@pytest.fixture(scope="module")
def servers() -> Iterator[Forking]:
    if os.getuid() == 0 and not shutil.which("setpriv"):
        pytest.skip("there is no setpriv, without which no file is unreadable for root")
    with forking(**SETTINGS) as opened:
        yield opened


def cases() -> Iterator[Any]:
    """(whether in the earlier home, the path in it, how it is damaged)"""

    def named(earlier: bool, path: str, acts: Any) -> Iterator[Any]:
        for act in acts:
            name = f"{'earlier ' * earlier}{path}: {act.__name__}".replace(LABELLED, "IMAGE")
            yield pytest.param(earlier, path, act, id=name)

    yield from named(False, "store.sqlite", [*damage.SQLITE, damage.newer_schema])
    yield from named(False, "inbox.sqlite", damage.SQLITE)
    for file, acts in (
        (EMBEDDING, damage.ANYTHING),
        (f"images/54/{LABELLED}", damage.ANYTHING),
        (f"{PROJECT}/served.json", damage.JSON),
        (f"{VERSION}/manifest.json", damage.JSON),
        (f"{VERSION}/network.onnx", damage.ANYTHING),
        (f"{VERSION}/golden.npz", (damage.empty, damage.garbage, damage.unreadable, damage.dangling)),
        (f"{VERSION}/weights.safetensors", (damage.half, damage.fifo)),
        (f"{PROJECT}/.lock", (damage.folder, damage.loop, damage.fifo, damage.unreadable)),
    ):
        yield from named(False, file, acts)
    for folder in (VERSION, f"{PROJECT}/versions", PROJECT, "models", "images/54", "images", "embeddings"):
        yield from named(False, folder, damage.FOLDER)
    for folder in ("logs", "jobs", "weights", "runtimes"):
        yield from named(False, folder, (damage.file, damage.loop, damage.dangling, damage.fifo))
    yield from named(True, JOB, damage.JSON)
    yield from named(True, "jobs", damage.FOLDER)
    yield from named(True, "store.sqlite", (damage.half, damage.garbage))


def copy_of(home: Path, folder: Path) -> Path:
    return Path(shutil.copytree(home, folder / "home", symlinks=True))


def ask(url: str, path: str, body: object = None) -> tuple[int, Any]:
    """The status and the answer; 0 if there is none."""
    sent = None if body is None else json.dumps(body).encode()
    request = urllib.request.Request(url + path, sent, {"Content-Type": "application/json"})
    try:
        with urllib.request.urlopen(request, timeout=PATIENCE_S) as answer:
            is_json = answer.headers["Content-Type"] == "application/json"
            return answer.status, json.loads(answer.read()) if is_json else answer.read()
    except urllib.error.HTTPError as error:
        return error.code, json.loads(error.read() or b"null")
    except OSError as error:
        return 0, repr(error)


def faults_of(url: str, pictures: dict[str, str]) -> list[str]:
    """What is wrong with the answers to those who label."""
    click = {"image": {"data": pictures[ENCODED]}, "prompt": {"foreground": [[30, 2]]}}
    shown = {"image": f"data:image/png;base64,{pictures[LABELLED]}"}
    whole = {"image": {"data": pictures[LABELLED]}, "annotator": "trained:label_studio-7"}
    predict = {"project": "7.1", "tasks": [{"id": 1, "data": shown}], "label_config": CONFIG, "params": {}}
    must = {
        "/v1/status": None,
        "/v1/projects": None,
        "/v1/annotators": None,
        "/v1/proposals": click,
        "/webhook": {"action": "PROJECT_UPDATED", "project": {"id": 7}},
        "/predict": predict,
    }
    may = {
        "/v1/projects/label_studio/7/labels": None,
        "/v1/projects/label_studio/7/stats": None,
        "/v1/projects/label_studio/7/versions": None,
        "/v1/annotations": whole,
    }
    found = list[str]()
    for path, body in {**must, **may}.items():
        status, answer = ask(url, path, body)
        unexpected = (
            "something went wrong inside" in str(answer.get("error", ""))
            if isinstance(answer, dict)
            else False
        )
        if not status or unexpected or (path in must and status != 200):
            found.append(f"{path}: {status} {str(answer)[:150]}")
    return found


def all_bytes(home: Path) -> list[bytes]:
    subprocess.run(["chmod", "-R", "u+rwX", str(home)], check=False, stderr=subprocess.DEVNULL)
    return [path.read_bytes() for path in home.rglob("*") if path.is_file()]


def attacked(
    servers: Forking, home: Path, path: str, act: damage.Damage, pictures: dict[str, str]
) -> list[str]:
    """Everything that is wrong with a server beside one damaged thing."""
    place, name = home / path, act.__name__
    if not os.path.lexists(place) and name != "leftovers":
        place.mkdir(parents=True)
    act(place)
    is_whole = name in {"leftovers", "garbage_log", "folder_log"} or path.startswith("embeddings")
    keeps = place.is_file() and not place.is_symlink() and not is_whole
    there = place.read_bytes() if keeps else b""
    found = list[str]()
    server = servers.start(home, PATIENCE_S)
    url = server.url
    if (path, name) in LEFT_ALONE:
        found += ["it started"] * bool(url)
    elif not url:
        found.append("it did not start")
    else:
        if server.processor_s() > MAX_START_S:
            found.append(f"it started after {server.processor_s():.1f} s")
        found += faults_of(url, pictures)
        status = ask(url, "/v1/status")[1]
        troubles = str(status.get("troubles", "")) if isinstance(status, dict) else ""
        troubles += str(ask(url, "/v1/annotators")[1])
        if path.startswith("images"):  # all are read only when they are needed
            troubles += str(ask(url, "/v1/projects/label_studio/7/export/coco")[1])
        words = {Path(path).name, Path(path).parent.name, path.split("/")[0], LABELLED[:8], ENCODED[:8]}
        noted = [line for line in server.output.splitlines() if re.search("WARNING|ERROR", line)]
        if (
            name not in UNREMARKABLE
            and (path, name) not in UNSEEN
            and not any(word in f"{troubles} {noted}" for word in words)
        ):
            found.append("nothing was said")
    if not server.stop(PATIENCE_S):
        found.append("it did not stop")
    if "Traceback" in server.output:
        found.append("traceback")
    if not url and (
        len(server.output.strip().splitlines()) > 3
        or Path(path).name not in server.output.replace("database", path)
    ):
        found.append(f"no sentence: {server.output[-200:]!r}")
    if name == "flip" and not any(home.glob("*.damaged-*")):
        there = b""  # nothing uses the page, and the file is written on
    if there and not any(there in each for each in all_bytes(home)):
        found.append("its bytes are gone")
    all_bytes(home)  # which makes it removable
    return found


def test_an_undamaged_home_is_served_without_a_word(homes: Homes, servers: Forking, tmp_path: Path) -> None:
    server = servers.start(copy_of(homes.opened, tmp_path), PATIENCE_S)
    assert faults_of(server.url, homes.pictures) == []
    troubles = ask(server.url, "/v1/status")[1]["troubles"]
    assert troubles == {"now": [], "damaged": [], "reader_failures": 0}
    assert server.stop(PATIENCE_S)


@pytest.mark.parametrize(("earlier", "path", "act"), tuple(cases()))
def test_a_server_starts_beside_anything_damaged_and_says_so(
    homes: Homes, servers: Forking, tmp_path: Path, earlier: bool, path: str, act: damage.Damage
) -> None:
    home = copy_of(homes.earlier if earlier else homes.opened, tmp_path)
    assert attacked(servers, home, path, act, homes.pictures) == []


@pytest.mark.parametrize("path", ["store.sqlite", "inbox.sqlite"])
def test_a_server_starts_beside_a_database_with_any_page_damaged(
    homes: Homes, servers: Forking, tmp_path: Path, path: str
) -> None:
    found = dict[int, list[str]]()
    for number in range((homes.opened / path).stat().st_size // damage.PAGE):
        folder = tmp_path / str(number)
        folder.mkdir()
        home = copy_of(homes.opened, folder)
        if faults := attacked(servers, home, path, damage.flipped(number), homes.pictures):
            found[number] = faults
    assert found == {}
