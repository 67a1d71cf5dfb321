"""Exporting a checkpoint: by a process of its own, once, whole or not at all."""

from __future__ import annotations

import multiprocessing
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from clickmask.errors import NotReady
from clickmask.inference.onnx_exports import Exporter, ExportsFolder

SHA256 = "5eed" * 16
PROGRAMS = {
    "copies": (
        "import sys, time\nfrom pathlib import Path\n"
        "checkpoint, folder = map(Path, sys.argv[1:])\n"
        "with (checkpoint.parent / 'runs').open('a') as runs:\n    runs.write('.')\n"
        "print('0.00 reading', flush=True)\ntime.sleep(0.2)\nprint('what a library says')\n"
        "(folder / 'network.onnx').write_bytes(checkpoint.read_bytes())\n"
        "print('1.00 done', flush=True)"
    ),
    "fails": (
        "import sys\nfrom pathlib import Path\n(Path(sys.argv[2]) / 'half.onnx').touch()\n"
        "raise ValueError('the masks differ')"
    ),
    "dies": "import os\nos.kill(os.getpid(), 9)",
}
COPIES = Exporter("copies", version=1)


@pytest.fixture(autouse=True)
def programs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "programs"
    folder.mkdir()
    for name, text in PROGRAMS.items():
        (folder / f"{name}.py").write_text(text)
    monkeypatch.setenv("PYTHONPATH", str(folder))


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    path = tmp_path / "tiny.pth"
    path.write_bytes(b"weights")
    return path


def runs(checkpoint: Path) -> int:
    return len((checkpoint.parent / "runs").read_text())


def test_a_checkpoint_is_exported_once_and_found_again(tmp_path: Path, checkpoint: Path) -> None:
    exports = ExportsFolder(tmp_path / "exports")
    assert exports.find("sam:vit_b", SHA256, COPIES) is None
    said: list[tuple[float, str]] = []
    folder = exports.make("sam:vit_b", SHA256, COPIES, checkpoint, lambda *step: said.append(step))
    assert (folder / "network.onnx").read_bytes() == b"weights"
    assert said == [(0.0, "reading"), (1.0, "done")]
    assert ExportsFolder(tmp_path / "exports").find("sam:vit_b", SHA256, COPIES) == folder
    assert exports.make("sam:vit_b", SHA256, COPIES, checkpoint) == folder
    assert runs(checkpoint) == 1


def test_other_weights_and_other_exporters_have_folders_of_their_own(
    tmp_path: Path, checkpoint: Path
) -> None:
    exports = ExportsFolder(tmp_path / "exports")
    exports.make("sam:vit_b", SHA256, COPIES, checkpoint)
    assert exports.find("sam:vit_b", SHA256[::-1], COPIES) is None
    assert exports.find("sam:vit_b", SHA256, Exporter("copies", version=2)) is None
    assert exports.find("sam:vit_l", SHA256, COPIES) is None


@pytest.mark.parametrize(
    ("module", "reason"), [("fails", "the masks differ"), ("dies", "killed"), ("nowhere", "nowhere")]
)
def test_an_export_that_fails_leaves_nothing(
    module: str, reason: str, tmp_path: Path, checkpoint: Path
) -> None:
    exports, exporter = ExportsFolder(tmp_path / "exports"), Exporter(module, version=1)
    with pytest.raises(NotReady, match=rf"tiny\.pth cannot be exported: .*{reason}"):
        exports.make("sam:vit_b", SHA256, exporter, checkpoint)
    assert exports.find("sam:vit_b", SHA256, exporter) is None
    assert [path.name for path in (tmp_path / "exports").iterdir()] == [".lock"]


def test_threads_that_want_the_same_share_one_export(tmp_path: Path, checkpoint: Path) -> None:
    with ThreadPoolExecutor(3) as pool:
        folders = pool.map(
            lambda _: ExportsFolder(tmp_path / "exports").make("sam:vit_b", SHA256, COPIES, checkpoint),
            range(3),
        )
    assert len(set(folders)) == runs(checkpoint) == 1


def _make(folder: Path, checkpoint: Path) -> None:
    ExportsFolder(folder).make("sam:vit_b", SHA256, COPIES, checkpoint)


def test_processes_that_want_the_same_share_one_export(tmp_path: Path, checkpoint: Path) -> None:
    context = multiprocessing.get_context("spawn")
    processes = [context.Process(target=_make, args=(tmp_path / "exports", checkpoint)) for _ in range(2)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(60)
    assert [process.exitcode for process in processes] == [0, 0]
    assert runs(checkpoint) == 1


def test_a_folder_that_cannot_be_written_is_said(tmp_path: Path, checkpoint: Path) -> None:
    (tmp_path / "exports").touch()
    with pytest.raises(NotReady, match="sam:vit_b cannot be exported: "):
        ExportsFolder(tmp_path / "exports").make("sam:vit_b", SHA256, COPIES, checkpoint)
