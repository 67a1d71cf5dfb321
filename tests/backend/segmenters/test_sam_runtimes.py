"""Segment Anything without torch: exported to ONNX, beside torch's own answers."""

from __future__ import annotations

import logging
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("torch")

from clickmask.errors import NotReady
from clickmask.inference.sessions import RUNTIMES, Runtimes, import_openvino
from clickmask.inference.weights import WeightsFolder
from clickmask.masks.regions import mask_iou
from clickmask.reports.clicks import central_point
from clickmask.segmenters import sam
from clickmask.segmenters._sam import onnx_export
from clickmask.segmenters._sam.onnx_networks import OnnxSam
from clickmask.segmenters._sam.segmenter import Sam, SamEmbedding
from clickmask.segmenters._sam.torch_networks import TorchSam
from clickmask.types import Image, Point, Prompt, Size
from support.checkpoints import (
    MOBILE_SAM,
    SMALL,
    TINY,
    Architecture,
    TinyArchitecture,
    weights_of,
    write_checkpoint,
)
from support.drawn import disc
from support.hosts import host_of
from support.photographs import outlined_objects, tight_box
from support.real_weights import load_mobile_sam
from support.scenes import scene_image

SIZES: list[Size] = [(240, 320), (701, 467), (97, 131)]


def prompts(size: Size) -> list[Prompt]:
    """Fifteen masks of every kind: clicks alone and masks have three, everything else one."""

    def at(x: float, y: float) -> Point:
        return x * size[1], y * size[0]

    box = (*at(0.3, 0.22), *at(0.71, 0.8))
    return [
        Prompt((at(0.5, 0.4),)),
        Prompt((at(0.21, 0.65),)),
        Prompt((at(0.5, 0.4), at(0.21, 0.65)), (at(0.9, 0.9),)),
        Prompt(box=box),
        Prompt((at(0.5, 0.4),), (at(0.4, 0.7),), box),
        Prompt(mask=disc(size, at(0.4, 0.5), min(size) * 0.4)),
        Prompt((at(0.5, 0.4),), mask=disc(size, at(0.4, 0.5), min(size) * 0.4)),
    ]


def compare(ours: Sam, reference: Sam, sizes: list[Size] = SIZES) -> tuple[list[float], float]:
    """IoUs of the masks of both, where torch's covers 5 to 95 % of the image, each with its own embedding;
    and by how much embeddings differ, of their largest number."""
    found: list[float] = []
    off = 0.0
    for seed, size in enumerate(sizes):
        image = scene_image(size, seed + 2)
        own, theirs = ours.encode(image), reference.encode(image)
        largest = float(np.abs(theirs.features).max())
        off = max(off, float(np.abs(own.features - theirs.features).max()) / largest)
        for prompt in prompts(size):
            answers, expected = ours.decode(own, prompt), reference.decode(theirs, prompt)
            for answer, other in zip(answers, expected, strict=True):
                if 0.05 < other.mask.mean() < 0.95:
                    found.append(mask_iou(answer.mask, other.mask))
    return found, off


class Remembered(Sam):
    """A SAM that encodes an image once."""

    def __init__(self, sam: Sam) -> None:
        super().__init__(sam.name, sam._networks)
        self._embeddings: dict[str, SamEmbedding] = {}

    def encode(self, image: Image) -> SamEmbedding:
        if image.digest not in self._embeddings:
            self._embeddings[image.digest] = super().encode(image)
        return self._embeddings[image.digest]


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> WeightsFolder:
    return weights_of(write_checkpoint(tmp_path_factory.mktemp("tiny") / "tiny.pth", TINY))


@pytest.fixture(scope="module")
def home(weights: WeightsFolder, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the checkpoint is exported."""
    folder = tmp_path_factory.mktemp("home")
    assert sam.export("vit_b", host_of(weights, Runtimes("onnxruntime", folder=folder)))
    return folder


@pytest.fixture(scope="module")
def in_torch(weights: WeightsFolder) -> Sam:
    return sam.load("vit_b", host_of(weights))


@pytest.mark.parametrize("runtime", RUNTIMES)
def test_every_runtime_answers_as_torch_does(
    runtime: str, weights: WeightsFolder, home: Path, in_torch: Sam
) -> None:
    ours = sam.load("vit_b", host_of(weights, Runtimes(runtime, exact=True, folder=home)))
    assert ours.precision == "f32"
    found, off = compare(ours, in_torch)
    assert off < 1e-4
    assert len(found) >= 27
    assert min(found) >= 0.999


def has_bf16() -> bool:
    return "BF16" in import_openvino().Core().get_property("CPU", "OPTIMIZATION_CAPABILITIES")


needs_bf16 = pytest.mark.skipif(not has_bf16(), reason="this processor has no bf16")


@needs_bf16
def test_an_encoder_in_bf16_changes_masks_little(weights: WeightsFolder, home: Path, in_torch: Sam) -> None:
    """Random weights promise a mean alone: some of their masks hang on the threshold (the least has .954)."""
    ours = sam.load("vit_b", host_of(weights, Runtimes("openvino", folder=home)))
    assert ours.precision == "bf16"
    found, off = compare(ours, in_torch)
    assert off < 0.2
    assert len(found) >= 27
    assert np.mean(found) >= 0.985


def test_the_fastest_of_both_is_found_by_itself(weights: WeightsFolder, home: Path) -> None:
    runtimes = Runtimes(folder=home)
    ours = sam.load("vit_b", host_of(weights, runtimes))
    image = scene_image((240, 320), 2)
    assert len(ours.decode(ours.encode(image), Prompt(((160.0, 100.0),)))) == 3
    assert (home / "measured.json").is_file()


def test_an_embedding_of_one_runtime_serves_the_other(
    weights: WeightsFolder, home: Path, in_torch: Sam
) -> None:
    image = scene_image((240, 320), 2)
    ours = sam.load("vit_b", host_of(weights, Runtimes("onnxruntime", folder=home)))
    stored = {name: array.copy() for name, array in ours.encode(image).arrays().items()}
    prompt = Prompt(box=(80.0, 50.0, 240.0, 200.0))
    one = in_torch.decode(in_torch.restore(stored), prompt)[0].mask
    assert mask_iou(one, ours.decode(ours.restore(stored), prompt)[0].mask) >= 0.999


def test_serving_imports_no_torch(weights: WeightsFolder, home: Path) -> None:
    checkpoint = weights.verify("sam:vit_b")
    code = (
        "import sys\nfrom pathlib import Path\nimport numpy as np\n"
        "from clickmask.inference.sessions import Runtimes\nfrom clickmask.segmenters import sam\n"
        "from clickmask.types import Image, Prompt\n"
        "from clickmask.inference.weights import WeightsFolder\n"
        "from clickmask.inference.catalogue import Host\nfrom clickmask.plugins import Checkpoint\n"
        f"path = Path({str(checkpoint)!r})\n"
        f"entry = Checkpoint('https://127.0.0.1/' + path.name, {checkpoint.stat().st_size}, "
        f"{weights.checkpoint('sam:vit_b').sha256!r}, 'none')\n"
        "weights = WeightsFolder(path.parent, checkpoints={'sam:vit_b': entry})\n"
        f"ours = sam.load('vit_b', Host(weights, Runtimes(folder=Path({str(home)!r}))))\n"
        "embedding = ours.encode(Image(np.zeros((60, 80, 3), np.uint8), 'blank'))\n"
        "assert ours.decode(embedding, Prompt(((40.0, 30.0),)))[0].mask.shape == (60, 80)\n"
        "sys.exit(' '.join(sorted({'torch', 'segment_anything'} & set(sys.modules))) or 0)"
    )
    environment = {"PYTHONPATH": str(Path(sam.__file__).parents[2])}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")


# Which of them runs a checkpoint.


def test_torch_runs_it_where_it_is_asked_for_and_nothing_is_exported(
    weights: WeightsFolder, tmp_path: Path
) -> None:
    loaded = sam.load("vit_b", host_of(weights, Runtimes("torch", folder=tmp_path)))
    assert isinstance(loaded._networks, TorchSam)
    assert list(tmp_path.iterdir()) == []


def test_torch_runs_it_where_there_is_a_gpu(
    weights: WeightsFolder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("clickmask.inference.sessions._torch_has_a_gpu", lambda: True)
    assert isinstance(sam.load("vit_b", host_of(weights, Runtimes(folder=tmp_path)))._networks, TorchSam)


def test_torch_runs_it_where_the_export_failed(
    weights: WeightsFolder, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "exports").touch()
    caplog.set_level(logging.WARNING)
    assert isinstance(sam.load("vit_b", host_of(weights, Runtimes(folder=tmp_path)))._networks, TorchSam)
    assert "cannot be exported" in caplog.text


def test_what_is_exported_needs_neither_torch_nor_its_checkpoint(
    weights: WeightsFolder, home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("clickmask.segmenters._sam.loading.importlib.util.find_spec", lambda name: None)
    bare = WeightsFolder(tmp_path, checkpoints=weights.checkpoints)
    assert sam.missing("vit_b", host_of(bare, Runtimes(folder=home))) == ""
    assert sam.missing("vit_b", host_of(bare, Runtimes(folder=tmp_path))) == (
        "it needs the package torch to export its weights, once: "
        "make install, or pip install 'clickmask[torch]'"
    )
    monkeypatch.undo()
    assert isinstance(sam.load("vit_b", host_of(bare, Runtimes(folder=home)))._networks, OnnxSam)
    with pytest.raises(NotReady, match="clickmask weights fetch sam:vit_b"):
        sam.load("vit_b", host_of(bare, Runtimes(folder=tmp_path)))


# What the exporter verifies.


@pytest.mark.parametrize("part", ["encoder", "decoder"])
def test_networks_that_differ_from_torch_are_not_exported(
    part: str, weights: WeightsFolder, home: Path, tmp_path: Path
) -> None:
    (exported,) = (home / "exports").glob("sam-*")
    other = write_checkpoint(tmp_path / "other.pth", TINY, seed=1)
    ours = OnnxSam(exported, Runtimes("onnxruntime", exact=True))
    torch_sam = TorchSam(weights.verify("sam:vit_b") if part == "encoder" else other)
    pixels = onnx_export.golden_image(256)
    features = ours.encode(pixels)["features"]
    if part == "encoder":
        features = features * 1.01
    with pytest.raises(ValueError, match=r"the (features|scores|masks) differ from torch's"):
        maps = {"features": features}
        onnx_export.verify(maps, onnx_export.answers_of(torch_sam, maps), ours, pixels)


MEMORY = """
import sys, tempfile
from pathlib import Path
import torch
from clickmask.inference.sessions import Runtimes
from clickmask.segmenters._sam import onnx_export
from clickmask.segmenters._sam.onnx_networks import OnnxSam
from clickmask.segmenters._sam.torch_networks import TorchSam

def memory(what):
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(what))

for checkpoint in sys.argv[1:]:
    with tempfile.TemporaryDirectory() as folder:
        folder, sam = Path(folder), TorchSam(Path(checkpoint), torch.device("cpu"))
        pixels, grown = onnx_export.golden_image(sam.side), []
        for step in ("export", "onnxruntime", "openvino"):
            Path("/proc/self/clear_refs").write_text("5")  # VmHWM begins again
            before = memory("VmRSS")
            if step == "export":
                onnx_export.export_encoder(sam, pixels, folder)
                onnx_export.export_decoder(sam, folder)
                described = '{"side": %d}' % sam.side
                (folder / "export.json").write_text(described)
            else:
                OnnxSam(folder, Runtimes(step, exact=True)).encode(pixels)
            grown.append(memory("VmHWM") - before)
        print(*grown)
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="the most memory is read and reset as Linux does it")
def test_an_export_and_what_it_serves_hold_the_attention_of_one_head_at_a_time(tmp_path: Path) -> None:
    """Measured, MB more for four heads and for eight: 137 and 136 in torch's export, 197 and 197 in ONNX
    Runtime, 149 and 156 in OpenVINO. All heads at once: 793 and 1,566, 562 and 1,122, 356 and 643."""
    few, many = (
        write_checkpoint(tmp_path / f"{heads}.pth", Architecture(64, 1, heads, (0,)), damped=False)
        for heads in (4, 8)
    )
    command = [sys.executable, "-c", MEMORY, str(few), str(few), str(many)]  # the first warms up
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    _, first, second = ([int(each) for each in line.split()] for line in done.stdout.splitlines())
    for step, less, more in zip(("export", *RUNTIMES), first, second, strict=True):
        assert more < 1.5 * less + 2**16, step  # KiB


# Real weights.


@pytest.mark.slow
@needs_bf16
def test_an_encoder_in_bf16_serves_real_photographs_as_well_as_one_in_f32(tmp_path: Path) -> None:
    """One click and one box for each outlined object, the first answer to each.

    Measured here (46 masks): mean .9974, all above .97, IoU with the truth -.0006 (standard error .0005).
    """
    exact, rough = (load_mobile_sam(tmp_path, "openvino", exact) for exact in (True, False))
    assert (exact.precision, rough.precision) == ("f32", "bf16")
    rows: list[tuple[float, float, float]] = []
    embedded: dict[str, tuple[SamEmbedding, SamEmbedding]] = {}
    for thing in outlined_objects():
        if thing.photograph not in embedded:
            image = Image(thing.pixels, thing.photograph)
            embedded[thing.photograph] = exact.encode(image), rough.encode(image)
        click = central_point(thing.mask)
        assert click is not None
        for prompt in (Prompt((click,)), Prompt(box=tight_box(thing.mask))):
            wanted, found = (
                segmenter.decode(embedding, prompt)[0].mask
                for segmenter, embedding in zip((exact, rough), embedded[thing.photograph], strict=True)
            )
            rows.append((mask_iou(wanted, found), mask_iou(wanted, thing.mask), mask_iou(found, thing.mask)))
    alike, exactly, roughly = np.array(rows).T
    assert len(alike) >= 40
    assert exactly[1::2].mean() >= 0.85  # boxes: the weights are read right
    assert alike.mean() >= 0.99
    assert (alike >= 0.95).mean() >= 0.95
    assert (roughly - exactly).mean() >= -0.003


# The real side.


@pytest.mark.slow
@pytest.mark.parametrize("architecture", [SMALL, MOBILE_SAM], ids=["a small vit", "mobile_sam"])
def test_networks_of_1024_pixels_answer_as_torch_does_in_every_runtime(
    architecture: Architecture | TinyArchitecture, tmp_path: Path
) -> None:
    """In bf16, features are off by .012 of the largest. ViT-B itself is in test_sam.py: its export compares
    it with torch in every runtime."""
    weights = weights_of(write_checkpoint(tmp_path / "sam.pth", architecture))
    reference = Remembered(sam.load("vit_b", host_of(weights)))
    for runtime in RUNTIMES:
        for exact in (True, False) if runtime == "openvino" and has_bf16() else (True,):
            ours = sam.load("vit_b", host_of(weights, Runtimes(runtime, exact=exact, folder=tmp_path)))
            found, off = compare(ours, reference)
            least, typical, most_off = (0.999, 0.999, 1e-4) if exact else (0.0, 0.975, 0.05)
            assert off < most_off, runtime
            usual = np.mean(found)
            if architecture is SMALL and not exact:  # two of its candidates, nearly equal, change places
                usual, typical = np.median(found), 0.965
            assert len(found) >= (24 if architecture is SMALL else 27)
            assert (usual >= typical, min(found) >= least) == (True, True), (runtime, found)
