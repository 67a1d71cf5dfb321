"""Both runtimes on a small network, and how one of them is chosen."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
import weakref
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from importlib.metadata import PackageNotFoundError
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnx
import pytest
from numpy.typing import NDArray
from onnx import TensorProto, helper

from clickmask.errors import NotReady
from clickmask.inference import sessions
from clickmask.inference.sessions import Runtimes, Session, import_openvino, open_session

RUNTIMES = sessions.RUNTIMES
BACKEND = Path(sessions.__file__).parents[2]


def network(seed: int = 0) -> bytes:
    """`sums`: relu(points @ weights) for any number of points of 16 numbers; `tags` come back as they are."""
    weights = np.random.default_rng(seed).normal(size=(16, 8)).astype(np.float32)
    graph = helper.make_graph(
        [
            helper.make_node("MatMul", ["points", "weights"], ["product"]),
            helper.make_node("Relu", ["product"], ["sums"]),
            helper.make_node("Identity", ["given"], ["tags"]),
        ],
        "small",
        [
            helper.make_tensor_value_info("points", TensorProto.FLOAT, ["count", 16]),
            helper.make_tensor_value_info("given", TensorProto.INT32, [2]),
        ],
        [
            helper.make_tensor_value_info("sums", TensorProto.FLOAT, ["count", 8]),
            helper.make_tensor_value_info("tags", TensorProto.INT32, [2]),
        ],
        [helper.make_tensor("weights", TensorProto.FLOAT, (16, 8), weights.ravel())],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.checker.check_model(model)
    return model.SerializeToString()


def feeds(seed: int = 1, count: int = 5) -> dict[str, NDArray[Any]]:
    points = np.random.default_rng(seed).normal(size=(count, 16)).astype(np.float32)
    points.flags.writeable = False  # as embeddings are
    return {"points": points, "given": np.array([seed, count], np.int32)}


@pytest.fixture
def model(tmp_path: Path) -> Path:
    path = tmp_path / "small.onnx"
    path.write_bytes(network())
    return path


@pytest.fixture(params=RUNTIMES)
def session(request: pytest.FixtureRequest, model: Path) -> Session:
    return open_session(model, request.param, threads=1, at_once=2)


def test_both_runtimes_agree(model: Path) -> None:
    for source in (model, model.read_bytes()):
        openvino, onnxruntime = (open_session(source, name).run(feeds()) for name in RUNTIMES)
        assert list(openvino) == list(onnxruntime) == ["sums", "tags"]
        for name in openvino:
            assert openvino[name].dtype == onnxruntime[name].dtype
            assert np.allclose(openvino[name], onnxruntime[name], atol=1e-6)
        assert np.ptp(openvino["sums"]) > 1
        assert openvino["tags"].tolist() == [1, 5]


def test_a_network_with_open_lengths_takes_any(session: Session) -> None:
    assert [len(session.run(feeds(count=count))["sums"]) for count in (1, 7, 3)] == [1, 7, 3]


def test_arrays_that_are_not_contiguous_are_understood(session: Session) -> None:
    given = feeds()
    turned = {**given, "points": np.asfortranarray(given["points"])}
    assert np.array_equal(session.run(turned)["sums"], session.run(given)["sums"])


def test_answers_belong_to_the_caller(session: Session) -> None:
    first = session.run(feeds(1))
    kept = first["sums"].copy()
    session.run(feeds(2))
    assert np.array_equal(first["sums"], kept)
    first["sums"][:] = 0
    assert np.array_equal(session.run(feeds(1))["sums"], kept)


def test_many_threads_get_their_own_answers(session: Session) -> None:
    expected = [session.run(feeds(seed, 1 + seed))["sums"] for seed in range(8)]
    with ThreadPoolExecutor(8) as pool:
        for _ in range(20):
            found = pool.map(lambda seed: session.run(feeds(seed, 1 + seed))["sums"], range(8))
            assert all(np.array_equal(one, other) for one, other in zip(found, expected, strict=True))


def test_an_input_left_out_is_not_that_of_the_run_before(session: Session) -> None:
    session.run(feeds())
    with pytest.raises(ValueError, match=r"given|Required inputs"):
        session.run({"points": feeds()["points"]})
    assert len(session.run(feeds())["sums"]) == 5


@pytest.mark.parametrize("runtime", RUNTIMES)
def test_what_is_no_network_is_refused(runtime: str, tmp_path: Path) -> None:
    (tmp_path / "broken.onnx").write_bytes(b"not a network")
    with pytest.raises(NotReady, match=rf"{runtime} cannot read broken\.onnx"):
        open_session(tmp_path / "broken.onnx", runtime)
    with pytest.raises(NotReady, match=f"{runtime} cannot read the network"):
        open_session(b"not a network", runtime)


def test_a_runtime_that_is_not_there_is_refused(model: Path) -> None:
    with pytest.raises(NotReady, match="there is no runtime 'tensorrt' here; installed: openvino"):
        open_session(model, "tensorrt")


def test_without_openvino_there_is_onnx_runtime(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None if name == "openvino" else object())
    assert open_session(model, example=feeds()).runtime == "onnxruntime"
    with pytest.raises(NotReady, match="installed: onnxruntime"):
        open_session(model, "openvino")


# Which one is faster.


class Sluggish:
    """A session that waits before each run."""

    def __init__(self, session: Session, seconds: float) -> None:
        self._session, self._seconds = session, seconds
        self.runtime, self.precision = session.runtime, session.precision

    def run(self, feeds: Any) -> dict[str, NDArray[Any]]:
        threading.Event().wait(self._seconds)
        return self._session.run(feeds)


@pytest.fixture
def slow_down(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], list[str]]:
    """Make one runtime slow; the list has a name for each session that is opened."""

    def make_slow(slow: str) -> list[str]:
        opened: list[str] = []
        monkeypatch.undo()
        for name, real in list(RUNTIMES.items()):

            def open_it(*given: Any, real: Any = real, name: str = name) -> Session:
                opened.append(name)
                return Sluggish(real(*given), 0.05 if name == slow else 0.0)

            monkeypatch.setitem(RUNTIMES, name, open_it)
        return opened

    return make_slow


@pytest.mark.parametrize("slow", RUNTIMES)
def test_the_faster_one_is_chosen(slow: str, model: Path, slow_down: Callable[[str], list[str]]) -> None:
    slow_down(slow)
    assert open_session(model, example=feeds()).runtime != slow


def test_it_is_measured_once(model: Path, tmp_path: Path, slow_down: Callable[[str], list[str]]) -> None:
    memory = tmp_path / "home" / "runtimes.json"
    opened = slow_down("openvino")
    assert open_session(model, example=feeds(), memory=memory).runtime == "onnxruntime"
    assert opened == ["openvino", "onnxruntime"]
    opened = slow_down("onnxruntime")
    assert open_session(model, example=feeds(), memory=memory).runtime == "onnxruntime"
    assert opened == ["onnxruntime"]
    assert open_session(model, "openvino", example=feeds(), memory=memory).runtime == "openvino"
    model.write_bytes(network(seed=3) + b"")  # another file is another matter
    assert open_session(model, example=feeds(), memory=memory).runtime == "openvino"
    raw = model.read_bytes()
    assert open_session(raw, example=feeds(), memory=memory).runtime == "openvino"
    opened.clear()
    open_session(raw, example=feeds(), memory=memory)
    assert opened == ["openvino"]


def test_a_slow_network_is_in_memory_once_and_runs_once_in_each_runtime(
    model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    alive, runs, most = weakref.WeakSet[Sluggish](), list[str](), list[int]()

    class Counted(Sluggish):
        def run(self, feeds: Any) -> dict[str, NDArray[Any]]:
            runs.append(self.runtime)
            most.append(len(alive))
            return super().run(feeds)

    for name, real in list(RUNTIMES.items()):

        def open_it(*given: Any, real: Any = real, name: str = name) -> Session:
            counted = Counted(real(*given), 0.2 if name == "openvino" else 0.3)
            alive.add(counted)
            return counted

        monkeypatch.setitem(RUNTIMES, name, open_it)
    monkeypatch.setattr("clickmask.inference.sessions.MEASURING_S", 0.1)
    assert open_session(model, example=feeds()).runtime == "openvino"
    assert runs == list(RUNTIMES)
    assert most == [1, 1]


def test_a_damaged_note_is_measured_again(model: Path, tmp_path: Path) -> None:
    memory = tmp_path / "runtimes.json"
    memory.write_text("{")
    runtime = open_session(model, example=feeds(), memory=memory).runtime
    assert list(json.loads(memory.read_text()).values()) == [runtime]


def test_a_folder_that_cannot_be_written_costs_only_the_note(model: Path, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    assert (
        open_session(model, example=feeds(), memory=tmp_path / "file" / "runtimes.json").runtime in RUNTIMES
    )


def test_a_runtime_that_cannot_run_a_network_leaves_it_to_the_other(
    model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sessions.OpenVinoSession, "run", lambda *_: 1 / 0)
    assert open_session(model, example=feeds()).runtime == "onnxruntime"
    monkeypatch.setattr(sessions.OnnxRuntimeSession, "run", lambda *_: 1 / 0)
    with pytest.raises(NotReady, match="runs on none of openvino, onnxruntime"):
        open_session(model, example=feeds())


class WithoutBf16:
    """OpenVINO's Core on a processor that has no bf16."""

    def __init__(self) -> None:
        self._core = import_openvino().Core()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._core, name)

    def get_property(self, device: str, name: str) -> Any:
        found = self._core.get_property(device, name)
        return [each for each in found if each != "BF16"] if name == "OPTIMIZATION_CAPABILITIES" else found


def test_a_processor_without_bf16_computes_in_f32(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    exact = open_session(model, "openvino").run(feeds())
    monkeypatch.setattr(sessions, "import_openvino", lambda: SimpleNamespace(Core=WithoutBf16))
    session = open_session(model, "openvino", precision="bf16")
    assert session.precision == "f32"
    for name, array in session.run(feeds()).items():
        np.testing.assert_array_equal(array, exact[name])


# How the settings reach it.


def test_decoders_are_always_exact_and_encoders_where_asked(
    model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[tuple[str, int, int, str]] = []
    monkeypatch.setitem(
        RUNTIMES, "onnxruntime", lambda _, *how: asked.append(("onnxruntime", *how)) or object()
    )
    for exact in (False, True):
        runtimes = Runtimes("onnxruntime", exact=exact, threads=3)
        runtimes.encoder(model)
        runtimes.decoder(model)
    assert asked == [
        ("onnxruntime", 3, 1, "bf16"),
        ("onnxruntime", 1, 3, "f32"),
        ("onnxruntime", 3, 1, "f32"),
        ("onnxruntime", 1, 3, "f32"),
    ]
    assert Runtimes().cores == sessions.usable_cores() >= 1


@pytest.mark.parametrize("runtime", RUNTIMES)
def test_running_imports_no_torch_and_nothing_that_reports(runtime: str, model: Path) -> None:
    code = (
        "import sys\nfrom pathlib import Path\nfrom clickmask.inference.sessions import open_session\n"
        f"open_session(Path({str(model)!r}), {runtime!r})\n"
        "telling = [name for name in sys.modules if sys.modules[name] and 'openvino_telemetry' in name]\n"
        "sys.exit(str(telling) if telling or 'torch' in sys.modules else 0)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, env={"PYTHONPATH": str(BACKEND)})


def test_onnxruntime_is_known_by_either_of_its_packages(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    versions = {"openvino": "2026.4.1", "onnxruntime-gpu": "1.32.0"}

    def version(name: str) -> str:
        if name not in versions:
            raise PackageNotFoundError(name)
        return versions[name]

    monkeypatch.setattr(sessions, "version", version)
    assert sessions.packages_of("onnxruntime") == ["onnxruntime-gpu 1.32.0"]
    assert open_session(model, example=feeds(), memory=tmp_path / "runtimes.json").runtime in RUNTIMES
    versions["onnxruntime"] = "1.31.0"
    assert sessions.packages_of("onnxruntime") == ["onnxruntime 1.31.0", "onnxruntime-gpu 1.32.0"]
