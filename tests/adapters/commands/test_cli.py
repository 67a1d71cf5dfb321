from __future__ import annotations

import base64
import hashlib
import io
import json
import logging
import os
import re
import resource
import signal
import socket
import sqlite3
import subprocess
import sys
from collections.abc import Callable, Iterator
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import PIL.Image
import pytest
import requests
import typer
from typer.testing import CliRunner

import clickmask
from clickmask import plugins, segmenters
from clickmask.inference.catalogue import Catalogue
from clickmask.inference.weights import WeightsFolder
from clickmask.plugins import Checkpoint
from clickmask_adapters import commands
from clickmask_adapters.cli import app, declared, load
from clickmask_adapters.commands import serve
from clickmask_adapters.home import Home
from clickmask_adapters.settings import read_settings
from support.served import serving
from support.waiting import until

with_torch = pytest.mark.skipif(
    find_spec("torch") is None, reason="a SAM is not fetched where torch is missing"
)


def picture() -> str:
    """Base64 of a light square on dark noise."""
    pixels = np.random.default_rng(0).integers(0, 60, (120, 160, 3), dtype=np.uint8)
    pixels[40:80, 50:110] += 150
    raw = io.BytesIO()
    PIL.Image.fromarray(pixels).save(raw, "png")
    return base64.b64encode(raw.getvalue()).decode()


LOGGERS = ("clickmask", "clickmask_adapters")


@pytest.fixture(autouse=True)
def log_levels_of_other_tests() -> Iterator[None]:
    """`serve` sets them for its process, which is this one here."""
    kept = {name: logging.getLogger(name).level for name in LOGGERS}
    yield
    for name, level in kept.items():
        logging.getLogger(name).setLevel(level)


HEAVY = {
    "clickmask_adapters.home",
    "cv2",
    "fastapi",
    "numpy",
    "onnxruntime",
    "pydantic",
    "sqlalchemy",
    "torch",
}


def test_the_help_of_all_commands_imports_none_of_what_they_need() -> None:
    program = f"""
import sys
from clickmask_adapters.cli import app
for asked in ("--help", "-h", "--version"):
    try:
        app([asked])
    except SystemExit as ended:
        assert ended.code == 0
print(sorted({HEAVY} & set(sys.modules)))
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert "Answer Label Studio and CVAT" in done.stdout
    assert f"clickmask {clickmask.__version__}\n[]\n" in done.stdout


def test_the_help_costs_little_more_than_the_library_that_draws_it() -> None:
    """1.4 times the processor time; 8 times if it imported every command."""

    def cpu(*program: str) -> float:
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        subprocess.run([sys.executable, *program], stdout=subprocess.DEVNULL, check=True)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime

    ours, theirs = zip(
        *[
            (cpu("-m", "clickmask_adapters.cli", "--help"), cpu("-c", "import typer.rich_utils"))
            for _ in range(5)
        ],
        strict=True,
    )
    assert min(ours) < 3 * min(theirs)


def test_what_is_read_from_the_source_of_a_command_is_what_is_loaded() -> None:
    for module in plugins.names(commands):
        source = (Path(commands.__path__[0]) / f"{module}.py").read_text()
        loaded = {name: (command.help or "").partition("\n")[0] for name, command in load(module).items()}
        assert dict(declared(source)) == loaded, module


def test_a_command_of_another_distribution_is_listed_and_run(monkeypatch: pytest.MonkeyPatch) -> None:
    foreign = ModuleType("foreign")
    cli = typer.Typer()

    @cli.command()
    def greet(name: str) -> None:
        """Say hello."""
        typer.echo(f"hello {name}")

    vars(foreign).update(cli=cli)
    names, load = plugins.names, plugins.load
    monkeypatch.setattr(plugins, "names", lambda of: [*names(of), "foreign"] if of is commands else names(of))
    monkeypatch.setattr(plugins, "load", lambda of, name: foreign if name == "foreign" else load(of, name))
    assert "Say hello." in CliRunner().invoke(app, ["--help"]).output
    assert CliRunner().invoke(app, ["greet", "you"]).output == "hello you\n"


def test_every_command_about_a_project_takes_its_tool_first() -> None:
    found: dict[str, list[str]] = {}

    def walk(name: str, command: Any) -> None:
        for inner, each in getattr(command, "commands", {}).items():
            walk(f"{name} {inner}", each)
        arguments = [each.metavar for each in command.params if each.param_type_name == "argument"]
        if "PROJECT" in arguments:
            found[name.strip()] = arguments

    for module in plugins.names(commands):
        for name, command in load(module).items():
            walk(name, command)
    assert found.pop("prepare") == ["FOLDER|TOOL", "PROJECT"]
    assert found.pop("import") == ["FORMAT", "FOLDER", "TOOL", "PROJECT"]
    assert set(found) >= {"connect", "export coco", "project", "pull", "prelabel", "report assist"}
    assert set(found) >= {"report miou", "report segmenters", "rollback", "stats", "train"}
    assert all(arguments == ["TOOL", "PROJECT"] for arguments in found.values())


@pytest.mark.parametrize(
    "words",
    [("stats", "1"), ("report", "assist", "1"), ("rollback", "1"), ("export", "coco", "1", "--out", "x")],
    ids=" ".join,
)
def test_a_project_without_its_tool_is_told_how_it_is_said(words: tuple[str, ...]) -> None:
    done = CliRunner().invoke(app, list(words), env={"COLUMNS": "200"})
    assert done.exit_code == 2
    assert "there is no tool '1': it is cvat, label-studio or page, and its project" in done.stderr
    assert "{TOOL} {PROJECT}" in done.stderr or "TOOL PROJECT" in done.stderr


def test_serve_prints_its_address_when_it_answers_and_no_other(tmp_path: Path) -> None:
    with serving(tmp_path / "home", LABEL_STUDIO_URL="http://localhost:8080") as server:
        assert requests.get(server.url + "/health", timeout=5).json()["status"] == "UP"
        body = {"image": {"data": picture()}, "prompt": {"foreground": [[80, 60]]}}
        answer = requests.post(server.url + "/v1/proposals", json=body, timeout=30)
        (best, *_) = answer.json()["proposals"]
        assert abs(best["area"] - 40 * 60) < 240
        requests.get(server.url + "/nowhere", timeout=5)
        until(
            lambda: requests.get(server.url + "/v1/status", timeout=5).json()["cache"]["disk"]["entries"] == 1
        )
        server.stop()
        assert re.findall(r"https?://[^/\s]+:\d+", server.output) == [server.url]
        assert "Traceback" not in server.output
        assert re.search(r"api: image [0-9a-f]{8}, builtin, embedding made", server.output)
        assert re.search(
            r"^  segmenter: builtin, (openvino|onnxruntime) on the CPU, (bf16|f32)$", server.output, re.M
        )
        assert f"\n  home: {tmp_path / 'home'}\n" in server.output
        assert (
            "\n  tools: cvat not connected, set CVAT_URL; label-studio at localhost:8080\n" in server.output
        )
        assert "\n  access: only this machine is let in, since CLICKMASK_TOKEN is not set\n" in server.output
        assert re.search(r"WARNING \S+failures: GET /nowhere: 404, Not Found", server.output)


def test_everything_that_is_written_lies_in_the_home(tmp_path: Path) -> None:
    home = tmp_path / "home"
    with serving(home) as server:
        webhook = requests.post(server.url + "/webhook", json={"action": "TEST"}, timeout=5)
        assert webhook.status_code == 200
    assert {path.name for path in home.iterdir()} >= {"store.sqlite", "inbox.sqlite"}
    with sqlite3.connect(home / "inbox.sqlite") as connection:
        assert connection.execute("SELECT count(*) FROM events").fetchone() == (1,)
    connection.close()


@pytest.mark.parametrize("packages", [["onnxruntime 1.31", "onnxruntime-gpu 1.32"], ["onnxruntime 1.31"]])
def test_serving_warns_of_two_packages_of_onnxruntime(
    packages: list[str], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, tmp_path: Path
) -> None:
    monkeypatch.setattr(serve, "packages_of", lambda _: packages)
    environment = {"CLICKMASK_HOME": str(tmp_path / "home")}
    CliRunner().invoke(app, ["serve", "--segmenter", "nothing"], env=environment)
    assert (" and ".join(packages) + " overwrite each other" in caplog.text) == (len(packages) == 2)


def test_who_is_let_in_is_said_without_the_secret(tmp_path: Path) -> None:
    def access(**given: str) -> str:
        home = Home(read_settings(home=tmp_path, **given))
        lines = serve.described(home)
        home.close()
        assert "hush" not in str(lines)
        return lines[-1]

    networks = {"trusted_networks": "10.0.0.0/8, fd00::/8"}
    assert access(**networks) == (
        "access: only this machine is let in, and labeling tools in 10.0.0.0/8, fd00::/8, since "
        "CLICKMASK_TOKEN is not set"
    )
    assert access(token="hush") == "access: whoever has the secret of CLICKMASK_TOKEN is let in"
    assert access(token="hush", **networks).endswith("is let in, and labeling tools in 10.0.0.0/8, fd00::/8")


@pytest.mark.parametrize("words", [("serve", "--port", "0"), ("segmenters",), ("prepare", "cvat", "1")])
def test_a_wrong_variable_is_one_line_of_every_command(words: tuple[str, ...]) -> None:
    done = CliRunner().invoke(app, [*words], env={"CLICKMASK_THREADS": "four"})
    assert done.exit_code == 1
    assert done.stderr.startswith("CLICKMASK_THREADS is 'four': it should be a valid integer")
    assert done.output.count("\n") == 1


@pytest.mark.parametrize("words", [("serve", "--port", "0"), ("stats", "cvat", "1"), ("train", "cvat", "1")])
def test_a_home_that_cannot_be_made_is_one_line(words: tuple[str, ...], tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    for home in (tmp_path / "file", tmp_path / "file" / "home"):
        done = CliRunner().invoke(app, [*words], env={"CLICKMASK_HOME": str(home)})
        assert done.exit_code == 1
        assert done.stderr.startswith(f"{home} cannot be made: ")
        assert done.stderr.endswith("; set CLICKMASK_HOME to a folder of yours\n")


def test_a_store_that_sqlite_cannot_read_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "store.sqlite").write_text("no database at all")
    done = CliRunner().invoke(app, ["stats", "cvat", "1"], env={"CLICKMASK_HOME": str(tmp_path)})
    assert done.exit_code == 1
    said = "it is damaged; restart clickmask, which sets it aside and keeps what can be read of it"
    assert done.stderr == f"the database cannot be used just now: {said}\n"


def test_a_home_that_may_not_be_written_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "access", lambda *_: False)  # the superuser may write everywhere
    done = CliRunner().invoke(app, ["stats", "cvat", "1"], env={"CLICKMASK_HOME": str(tmp_path)})
    assert (done.exit_code, "may not be written by this user" in done.stderr) == (1, True)


def test_a_taken_port_is_one_line_that_says_how_to_choose_another(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = str(other.getsockname()[1])
        for words, chosen in ((["--port", port], "1"), ([], port)):
            environment = {"CLICKMASK_HOME": str(tmp_path), "CLICKMASK_PORT": chosen}
            done = CliRunner().invoke(app, ["serve", *words], env=environment)
            assert done.exit_code == 1
            assert done.stderr == f"port {port} is taken: use --port or CLICKMASK_PORT\n"


@pytest.mark.parametrize("port", ["99999", "-1", "web"])
def test_a_port_that_is_none_is_refused(port: str, tmp_path: Path) -> None:
    done = CliRunner().invoke(app, ["serve", "--port", port], env={"CLICKMASK_HOME": str(tmp_path)})
    assert done.exit_code == 2
    assert "Invalid value for '--port'" in done.stderr
    done = CliRunner().invoke(app, ["serve"], env={"CLICKMASK_HOME": str(tmp_path), "CLICKMASK_PORT": port})
    assert (done.exit_code, done.stderr.startswith(f"CLICKMASK_PORT is '{port}': it ")) == (1, True)


def test_an_address_of_ours_without_a_scheme_is_refused_before_the_tool_is_asked() -> None:
    done = CliRunner().invoke(app, ["connect", "cvat", "1", "--our-url", "localhost:9090"])
    assert (done.exit_code, "is not an address such as" in done.stderr) == (2, True)


def test_connect_tells_label_studio_the_port_that_is_set(tmp_path: Path) -> None:
    tool = Home(read_settings(home=tmp_path, port=9191)).tools["label_studio"]
    assert tool.default_our_url == "http://127.0.0.1:9191"


@pytest.mark.parametrize(("level", "logged"), [("debug", "DEBUG"), ("INFO", "INFO"), ("error", "ERROR")])
def test_the_log_level_is_that_of_our_lines_alone(level: str, logged: str, tmp_path: Path) -> None:
    environment, names = {"CLICKMASK_HOME": str(tmp_path / "home"), "LOG_LEVEL": level}, LOGGERS
    CliRunner().invoke(app, ["serve", "--segmenter", "nothing"], env=environment)
    assert {logging.getLogger(name).level for name in names} == {getattr(logging, logged)}
    assert not logging.getLogger("urllib3").isEnabledFor(logging.DEBUG)
    CliRunner().invoke(app, ["serve", "--segmenter", "nothing", "--log-level", "CRITICAL"], env=environment)
    assert {logging.getLogger(name).level for name in names} == {logging.CRITICAL}


def test_an_interrupt_ends_the_server_without_a_traceback(tmp_path: Path) -> None:
    with serving(tmp_path / "home") as server:
        assert server.stop(signal.SIGINT) == 0
        assert "Traceback" not in server.output


def test_a_second_server_on_one_home_is_refused_until_the_first_has_ended(tmp_path: Path) -> None:
    home = tmp_path / "home"
    with serving(home) as server:
        second = CliRunner().invoke(app, ["serve", "--port", "0"], env={"CLICKMASK_HOME": str(home)})
        assert second.exit_code == 1
        assert "".join(second.stderr.split()).startswith(
            f"anotherserverworksin{home}:stopit".replace(" ", "")
        )
        assert CliRunner().invoke(app, ["segmenters"], env={"CLICKMASK_HOME": str(home)}).exit_code == 0
        assert server.stop(signal.SIGKILL) == -signal.SIGKILL  # leaves nothing behind
    with serving(home) as server:
        assert server.stop() == 0


def test_a_segmenter_that_is_not_installed_is_refused_with_those_that_are(tmp_path: Path) -> None:
    result = CliRunner().invoke(
        app, ["serve", "--segmenter", "nothing"], env={"CLICKMASK_HOME": str(tmp_path / "home")}
    )
    assert result.exit_code == 2
    assert "grabcut" in result.output
    assert "Traceback" not in result.output


def test_a_default_that_cannot_run_is_refused_before_anybody_clicks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    package = ModuleType("plugins")
    package.__path__ = [str(tmp_path)]
    (tmp_path / "heavy.py").write_text("def missing(variant, weights): return 'no weights here'")
    monkeypatch.setitem(sys.modules, "plugins", package)
    monkeypatch.setattr("clickmask_adapters.home.segmenters", package)
    environment = {"CLICKMASK_HOME": str(tmp_path / "home"), "COLUMNS": "200"}
    result = CliRunner().invoke(app, ["serve", "--segmenter", "heavy", "--port", "0"], env=environment)
    assert result.exit_code == 2
    assert "heavy cannot run: no weights here" in result.output
    assert "Traceback" not in result.output


def test_segmenters_are_listed() -> None:
    result = CliRunner().invoke(app, ["segmenters"])
    (line,) = re.findall(r"^grabcut .*$", result.output, re.MULTILINE)
    assert line.split()[1:3] == ["none", "Apache-2.0"] and line.endswith("yes")
    everything = CliRunner().invoke(app, ["segmenters", "--all"]).output
    (line,) = re.findall(r"^sam:vit_b .*$", everything, re.MULTILINE)
    for fact in ("Kirillov 2023, arXiv 2304.02643", "93.7 M", "375 MB", "points, box, mask", "everything"):
        assert fact in line


def test_segmenters_say_what_they_lack_and_how_to_get_it(tmp_path: Path) -> None:
    result = CliRunner().invoke(app, ["segmenters"], env={"CLICKMASK_HOME": str(tmp_path)})
    for line in result.output.splitlines():
        if line.startswith("sam:") and "package" not in line:
            name = line.split()[0]
            assert line.rstrip().endswith(f"its weights are not here: clickmask weights fetch {name}")


def test_weights_are_listed_with_address_size_hash_and_licence(tmp_path: Path) -> None:
    result = CliRunner().invoke(app, ["weights", "list"], env={"CLICKMASK_HOME": str(tmp_path)})
    assert result.exit_code == 0
    assert f"folder: {tmp_path / 'weights'}" in result.output
    for name, checkpoint in plugins.checkpoints(segmenters).items():
        entry = result.output.partition(f"\n{name}: ")[2].partition("\n\n")[0]
        assert "its weights are not here" in entry
        for file in checkpoint.files:
            for fact in (file.address, f"{file.bytes:,} bytes", file.sha256, "Apache-2.0"):
                assert fact in entry
    assert not (tmp_path / "weights").exists()


@pytest.mark.parametrize("command", ["fetch", "path"])
def test_weights_that_are_not_known_are_one_line(tmp_path: Path, command: str) -> None:
    result = CliRunner().invoke(app, ["weights", command, "grabcut"], env={"CLICKMASK_HOME": str(tmp_path)})
    assert result.exit_code == 1
    assert result.stderr.strip() == "there are no weights named 'grabcut'; known: " + ", ".join(
        plugins.checkpoints(segmenters)
    )


@with_torch
def test_fetching_weights_offline_is_one_line(tmp_path: Path) -> None:
    with socket.socket() as nobody:
        nobody.bind(("127.0.0.1", 0))  # bound, not listening: connections are refused
        mirror = f"http://127.0.0.1:{nobody.getsockname()[1]}"
        environment = {"CLICKMASK_HOME": str(tmp_path), "CLICKMASK_WEIGHTS_MIRROR": mirror, "NO_PROXY": "*"}
        result = CliRunner().invoke(app, ["weights", "fetch", "sam:vit_b"], env=environment)
    assert result.exit_code == 1
    assert result.stdout == ""
    assert "127.0.0.1 cannot be reached: check the network" in result.stderr
    assert "Traceback" not in result.output


@with_torch
def test_weights_that_are_there_are_printed_as_a_path(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Catalogue, "export", lambda *given: False)
    environment = {"CLICKMASK_HOME": str(tmp_path)}
    official = plugins.checkpoints(segmenters)["sam:vit_b"]
    path = tmp_path / "weights" / official.file
    result = CliRunner().invoke(app, ["weights", "path", "sam:vit_b"], env=environment)
    assert result.exit_code == 1
    assert result.stderr.strip() == ("sam:vit_b: its weights are not here: clickmask weights fetch sam:vit_b")
    path.parent.mkdir()
    path.write_bytes(b"something else")
    for command in ("path", "fetch"):
        result = CliRunner().invoke(app, ["weights", command, "sam:vit_b"], env=environment)
        assert result.exit_code == 1
        assert "sam_vit_b_01ec64.pth is not the official file" in result.stderr
    _pretend_verified(path, official.sha256)
    for command in ("path", "fetch"):
        result = CliRunner().invoke(app, ["weights", command, "sam:vit_b"], env=environment)
        assert (result.exit_code, result.stdout.strip()) == (0, str(path))
    assert "sam:vit_b: here" in CliRunner().invoke(app, ["weights", "list"], env=environment).output


def _pretend_verified(path: Path, digest: str) -> None:
    """The memo of a file that nobody can have here: half a gigabyte from outside."""
    status = path.stat()
    memo = {"bytes": status.st_size, "mtime_ns": status.st_mtime_ns, "sha256": digest}
    path.with_name(path.name + ".verified").write_text(json.dumps(memo))


@with_torch
def test_fetched_weights_are_exported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "small.pth").write_bytes(b"weights")
    entry = Checkpoint("https://127.0.0.1/small.pth", 7, hashlib.sha256(b"weights").hexdigest(), "MIT")
    exported: list[str] = []

    def export(catalogue: Catalogue, name: str, progress: Callable[[float, str], None]) -> bool:
        progress(0.5, "exporting the image encoder")
        exported.append(name)
        return True

    monkeypatch.setattr(Home, "weights", WeightsFolder(tmp_path, checkpoints={"sam:vit_b": entry}))
    monkeypatch.setattr(Catalogue, "export", export)
    result = CliRunner().invoke(app, ["weights", "fetch", "sam:vit_b"], env={"CLICKMASK_HOME": str(tmp_path)})
    assert result.exit_code == 0
    assert exported == ["sam:vit_b"]
    assert "serving it needs no torch" in result.stdout


def test_nothing_is_downloaded_without_torch_and_the_command_that_installs_it_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    mirror = tmp_path / "mirror"
    mirror.mkdir()
    (mirror / "sam_vit_b_01ec64.pth").write_bytes(b"weights")
    monkeypatch.setattr(
        "clickmask.segmenters._sam.loading.importlib.util.find_spec",
        lambda name, find_spec=find_spec: None if name == "torch" else find_spec(name),
    )
    environment = {"CLICKMASK_HOME": str(tmp_path / "home"), "CLICKMASK_WEIGHTS_MIRROR": str(mirror)}
    result = CliRunner().invoke(app, ["weights", "fetch", "sam:vit_b"], env=environment)
    assert result.exit_code == 1
    assert result.stderr.strip() == (
        "sam:vit_b cannot run: it needs the package torch to export its weights, once: make install, "
        "or pip install 'clickmask[torch]'"
    )
    assert not (tmp_path / "home" / "weights").exists()
