"""Serving, clicking and exporting on a system that has nothing but what Windows has too.

It is an imitation (see support/without_posix.py); nothing here was run on Windows.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent

HELP = """
from clickmask_adapters.cli import app

app(["--help"])
"""
CLICK = """
from pathlib import Path
from fastapi.testclient import TestClient
from clickmask_adapters.app import create_app
from clickmask_adapters.home import Home
from clickmask_adapters.settings import Settings
from support.pictures import png_base64

app = create_app(Home(Settings(home=Path("home"))))
with TestClient(app, "http://127.0.0.1:9090", client=("127.0.0.1", 5000)) as client:
    sent = {"image": {"data": png_base64(7)}, "prompt": {"foreground": [[40, 30]]}}
    for _ in range(2):
        answer = client.post("/v1/proposals", json=sent)
        assert answer.status_code == 200, answer.text
    assert client.get("/v1/status").json()["cache"]["hits"] == 1
print(len(answer.json()["proposals"]), len(list(Path("home", "embeddings").iterdir())))
"""
EXPORT = """
from pathlib import Path
from clickmask.datasets.snapshot import create_dataset
from clickmask_adapters.exports import coco
from support.drawn import disc
from support.labelled import FilesInMemory, accepted, digest_of, labelled, noise, png

pictures = FilesInMemory({digest_of("a"): png(noise(1))})
dataset = create_dataset(
    [labelled("a")], [accepted("a", disc(), "cell")], tool="cvat", project="1", pictures=pictures
)
for _ in range(2):  # the second one replaces the first
    print(coco.write(dataset, Path("out")).as_posix())
"""
LOCKS = """
from pathlib import Path
from clickmask import files

path = Path(".lock")
with files.lock(path):
    try:
        with files.lock(path, blocking=False):
            print("held twice")
    except BlockingIOError:
        print("held once")
with files.lock(path, shared=True):
    print("free again")
"""
IMPORTS = """
import importlib, pkgutil, clickmask, clickmask_adapters
from support.without_posix import MODULES

for package in (clickmask, clickmask_adapters):
    for module in pkgutil.walk_packages(package.__path__, package.__name__ + "."):
        if "torch" not in module.name:
            try:
                importlib.import_module(module.name)
            except ModuleNotFoundError as error:
                if error.name in MODULES:
                    raise
                print(module.name, "is of an extra that is not installed:", error.name)
print("all")
"""


def run(program: str, folder: Path) -> str:
    paths = [str(ROOT / name) for name in ("backend", "adapters", "tests")]
    before = f"import sys; sys.path[:0] = {paths}; import support.without_posix\n"
    done = subprocess.run(
        [sys.executable, "-c", before + program], cwd=folder, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_the_command_line_says_what_it_can_do(tmp_path: Path) -> None:
    assert "serve" in run(HELP, tmp_path)


def test_a_server_answers_clicks_and_keeps_the_embedding(tmp_path: Path) -> None:
    count, files = run(CLICK, tmp_path).split()
    assert int(count) > 0
    assert int(files) == 1


def test_a_dataset_is_exported_to_coco(tmp_path: Path) -> None:
    assert run(EXPORT, tmp_path).split() == ["out/annotations/instances.json"] * 2
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out"]


def test_a_lock_excludes(tmp_path: Path) -> None:
    assert run(LOCKS, tmp_path).splitlines() == ["held once", "free again"]


def test_every_module_can_be_imported(tmp_path: Path) -> None:
    assert run(IMPORTS, tmp_path).endswith("all\n")


@pytest.mark.parametrize("program", ["import fcntl", "import os; os.nice(1)", "import signal; signal.SIGHUP"])
def test_the_imitation_refuses_what_only_posix_has(program: str, tmp_path: Path) -> None:
    with pytest.raises(AssertionError, match=r"ModuleNotFoundError|AttributeError"):
        run(program, tmp_path)
