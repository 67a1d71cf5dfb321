"""One training from labels to a served version, on drawn pictures."""

from __future__ import annotations

import importlib
import json
import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("torch")
import torch
from safetensors.torch import save_file

from clickmask.datasets.snapshot import Dataset, snapshot
from clickmask.errors import InvalidRequest, NotReady
from clickmask.images.archive import ImageArchive
from clickmask.inference.sessions import open_session
from clickmask.metrics.confusion import confusion_matrix, miou
from clickmask.models import labeller
from clickmask.models.labeller import open_labeller
from clickmask.models.versions import Models, ProjectModels, folder_name, verify
from clickmask.store import Store
from clickmask.training import crops, networks, train
from clickmask.training.fit import Progress, TrainingConfig
from clickmask.training.loop import choose_device
from clickmask.training.networks import unet
from clickmask.training.segmentation import build, export
from support.drawn_projects import COLOURS, SIZE, accept_drawings, drawn_picture
from support.labelled import PROJECT, TOOL

CONFIG = TrainingConfig(steps=80, side=64, crops=4, validate_every=20, rate=5e-3)
QUICK = replace(CONFIG, steps=4, crops=1, validate_every=2)


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A smaller network, and one thread, as a test is not alone."""
    monkeypatch.setattr(unet, "build", lambda classes, encoder: unet.UNet(classes, base=4))
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def kept(tmp_path: Path) -> ImageArchive:
    return ImageArchive(tmp_path / "images", 2**24, lambda digest: True)


@pytest.fixture
def dataset(store: Store, kept: ImageArchive) -> Dataset:
    accept_drawings(store, kept, 18)
    return snapshot(store, TOOL, PROJECT, kept)


@pytest.fixture
def models(tmp_path: Path) -> Models:
    return ProjectModels(tmp_path / "models").of(TOOL, PROJECT)


def test_accepted_labels_become_a_model_that_labels_new_pictures(
    dataset: Dataset, models: Models, tmp_path: Path
) -> None:
    reports: list[Progress] = []
    beats: list[None] = []
    trained = train.train(
        dataset,
        models,
        CONFIG,
        tmp_path / "a.pt",
        report=reports.append,
        heartbeat=lambda: beats.append(None),
    )
    assert trained and trained.decision.promoted
    assert models.served() == trained.version
    provenance = trained.version.provenance
    assert provenance.categories == tuple(COLOURS)
    assert provenance.dataset_digest == dataset.digest
    assert {side: len(images) for side, images in provenance.split.items()} == {
        side: len(dataset.split(side)) for side in ("train", "validation", "test")
    }
    report = json.loads(json.dumps(provenance.report, allow_nan=False))
    assert (report["split"], report["images"]) == ("test", len(dataset.split("test")))
    assert report["miou"] > 0.8
    assert set(report["iou"]) == set(COLOURS)
    assert report["decision"].startswith("promoted: the first of its kind")
    assert [each.step for each in reports] == [20, 40, 60, 80]
    assert len(beats) >= 80
    assert not (tmp_path / "a.pt").exists()
    labeller = open_labeller(trained.version.network)
    for seed in (100, 101):
        pixels, masks = drawn_picture(seed)
        truth = masks["disc"] + 2 * masks["square"].astype(np.uint8)
        found = labeller.predict(pixels)
        assert miou(confusion_matrix(truth, found.classes, 3)) > 0.75
        assert found.confidence.shape == truth.shape
        assert 1 / 3 <= found.confidence.min() <= found.confidence.max() <= 1


def test_a_worse_model_is_kept_but_not_served(dataset: Dataset, models: Models, tmp_path: Path) -> None:
    good = train.train(dataset, models, replace(CONFIG, steps=40), tmp_path / "a.pt")
    poor = train.train(dataset, models, QUICK, tmp_path / "b.pt")
    assert good and poor
    assert poor.version.parent == good.version.id
    assert not poor.decision.promoted
    assert poor.version.provenance.report["decision"].startswith("not promoted")
    assert models.served() == good.version
    assert models.versions() == [good.version, poor.version]


def test_the_decision_says_that_the_machine_was_busy_and_what_to_do_next(
    dataset: Dataset, models: Models, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Progress, "busy", "The machine was busy")
    trained = train.train(dataset, models, QUICK, tmp_path / "a.pt")
    assert trained and not trained.decision.promoted
    said = trained.decision.reason
    assert said.startswith("not promoted: it learnt for only 4 of at least 20 steps; ")
    assert said.endswith(". The machine was busy. Raise CLICKMASK_TRAIN_SECONDS, then train again")
    assert trained.version.provenance.report["decision"] == said
    assert models.why_not_served() == f"the newest, {trained.version.id}, was {said}"


def test_a_cancelled_training_goes_on_where_it_was(dataset: Dataset, models: Models, tmp_path: Path) -> None:
    steps = iter([False] * 3 + [True] * 9)
    checkpoint = tmp_path / "a.pt"
    assert train.train(dataset, models, QUICK, checkpoint, cancelled=lambda: next(steps)) is None
    assert models.versions() == []
    reports: list[Progress] = []
    assert train.train(dataset, models, QUICK, checkpoint, report=reports.append)
    assert [each.step for each in reports] == [4]  # that of step 2 was made before


def test_categories_that_are_gone_are_no_reason_to_fail(
    dataset: Dataset, models: Models, tmp_path: Path
) -> None:
    first = train.train(
        replace(dataset, categories=("square", "gone", "disc")), models, QUICK, tmp_path / "a"
    )
    assert first
    models.promote(first.version.id)
    second = train.train(dataset, models, QUICK, tmp_path / "b")
    assert second and second.version.provenance.categories == ("disc", "square")


def test_the_last_steps_are_reported_too(dataset: Dataset, models: Models, tmp_path: Path) -> None:
    reports: list[Progress] = []
    assert train.train(dataset, models, replace(QUICK, steps=3), tmp_path / "a.pt", report=reports.append)
    assert [each.step for each in reports] == [2, 3]


def test_pictures_that_are_not_kept_are_left_out(dataset: Dataset, models: Models, tmp_path: Path) -> None:
    gone = dataset.split("train")[0].image
    (tmp_path / "images" / gone[:2] / gone).unlink()
    trained = train.train(dataset, models, QUICK, tmp_path / "a.pt")
    assert trained
    assert gone not in trained.version.provenance.split["train"]


def test_too_little_to_learn_from_is_said(
    store: Store, kept: ImageArchive, models: Models, tmp_path: Path
) -> None:
    accept_drawings(store, kept, 1)
    with pytest.raises(InvalidRequest, match="of 1 labelled images there are 1 train, 0 validation, 0 test"):
        train.train(snapshot(store, TOOL, PROJECT, kept), models, QUICK, tmp_path / "a.pt")


def test_large_pictures_are_worked_on_at_a_smaller_size(
    dataset: Dataset, models: Models, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(labeller, "MAX_SIDE_PX", 32)
    monkeypatch.setattr(crops, "MAX_DECODED_BYTES", 0)
    trained = train.train(dataset, models, replace(CONFIG, steps=40), tmp_path / "a.pt")
    assert trained
    verify(trained.version)
    assert trained.version.provenance.report["miou"] > 0.5
    pixels, _ = drawn_picture(100)
    found = open_labeller(trained.version.network).predict(pixels)
    assert (found.classes.shape, found.confidence.shape) == ((48, 64), (24, 32))


TINY = """
from torch import nn
NAME, STRIDE = "Tiny", {stride}
def build(classes, encoder):
    return nn.Conv2d(3, {classes}, 3, padding=1)
"""


@pytest.fixture
def folder_of_networks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "networks"
    folder.mkdir()
    monkeypatch.setattr(networks, "__path__", [*networks.__path__, str(folder)])
    return folder


def test_a_network_is_one_new_file(
    dataset: Dataset, models: Models, tmp_path: Path, folder_of_networks: Path
) -> None:
    (folder_of_networks / "tiny.py").write_text(TINY.format(stride=1, classes="classes"))
    importlib.invalidate_caches()
    assert {"tiny", "unet"} <= set(networks.names())
    trained = train.train(dataset, models, QUICK, tmp_path / "a.pt", network="tiny")
    assert trained
    assert trained.version.provenance.network == "tiny"
    verify(trained.version)
    models.promote(trained.version.id)
    version, served = ProjectModels(tmp_path / "models").served(folder_name(TOOL, PROJECT))
    assert version == trained.version
    assert served.predict(drawn_picture(100)[0]).classes.shape == SIZE
    unknown = r"there is no network 'other'; installed: .*, tiny, unet, "
    with pytest.raises(InvalidRequest, match=unknown):
        train.train(dataset, models, QUICK, tmp_path / "b.pt", network="other")


def test_a_network_that_breaks_the_contract_is_not_trained(folder_of_networks: Path) -> None:
    (folder_of_networks / "shapes.py").write_text(TINY.format(stride=1, classes="7"))
    importlib.invalidate_caches()
    with pytest.raises(NotReady, match="not logits"):
        build("shapes", 3)


def test_a_network_of_any_stride_takes_pictures_of_any_size(folder_of_networks: Path) -> None:
    (folder_of_networks / "strides.py").write_text(TINY.format(stride=24, classes="classes"))
    importlib.invalidate_caches()
    network = build("strides", 3).eval()
    session = open_session(export(network), "onnxruntime")
    for size in ((1, 1), (24, 48), (25, 47)):
        pixels = torch.rand(1, 3, *size)
        with torch.inference_mode():
            logits = network(pixels).numpy()
        assert logits.shape == (1, 3, *size)
        found = session.run({labeller.PIXELS: pixels.numpy()})[labeller.LOGITS]
        assert np.abs(found - logits).max() < 1e-5


def test_a_model_says_what_it_started_from_and_what_trained_it(
    dataset: Dataset, models: Models, tmp_path: Path
) -> None:
    encoder = tmp_path / "mine.safetensors"
    save_file({"stem.convolution.weight": torch.zeros(32, 3, 3, 3)}, encoder)
    trained = train.train(
        dataset, models, QUICK, tmp_path / "a.pt", network="fcn", encoder=encoder, device="cpu"
    )
    assert trained
    verify(trained.version)
    report = trained.version.provenance.report
    assert trained.version.provenance.network == "fcn"
    assert re.match(
        r"mine.safetensors \(SHA-256 \w{12}…; 1 of 240 tensors of the encoder; random, ",
        report["started_from"],
    )
    assert (report["device"], report["parameters"]) == ("cpu", 3_764_017)


OTHERS = [name for name in networks.names() if name not in ("unet", "mask2former")]


@pytest.mark.parametrize("name", [*OTHERS, pytest.param("mask2former", marks=pytest.mark.slow)])
def test_every_network_goes_from_labels_to_a_model_that_is_served(
    name: str, dataset: Dataset, models: Models, tmp_path: Path
) -> None:
    if name in ("mask2former", "segformer"):
        pytest.importorskip("transformers")
    steps = iter([False] * 2 + [True] * 9)
    few = replace(QUICK, steps=3)
    assert (
        train.train(dataset, models, few, tmp_path / "a", network=name, cancelled=lambda: next(steps)) is None
    )
    reports: list[Progress] = []
    trained = train.train(dataset, models, few, tmp_path / "a", network=name, report=reports.append)
    assert trained
    assert [each.step for each in reports] == [3], "it went on"
    models.promote(trained.version.id)
    version, served = ProjectModels(tmp_path / "models").served(folder_name(TOOL, PROJECT))
    assert version.provenance.network == name
    assert served.predict(drawn_picture(100)[0]).classes.shape == SIZE


def test_a_device_that_is_not_there_is_refused(dataset: Dataset, models: Models, tmp_path: Path) -> None:
    assert choose_device("cpu").type == "cpu"
    assert choose_device("auto").type in ("cpu", "cuda", "mps")
    absent = next(name for name in ("cuda", "mps") if not getattr(torch, name).is_available())
    with pytest.raises(NotReady, match=f"no device {absent} here, only .*cpu: change CLICKMASK_DEVICE"):
        train.train(dataset, models, QUICK, tmp_path / "a.pt", device=absent)


def test_what_is_served_follows_the_pointer(dataset: Dataset, tmp_path: Path) -> None:
    served = ProjectModels(tmp_path / "models")
    name = folder_name(TOOL, PROJECT)
    assert served.names() == []
    with pytest.raises(NotReady, match="no model of label_studio-7 was trained yet"):
        served.served(name)
    models = served.of(TOOL, PROJECT)
    first, second = (train.train(dataset, models, QUICK, tmp_path / "a.pt") for _ in range(2))
    assert first and second
    models.promote(first.version.id)
    assert served.names() == [name]
    version, labeller = served.served(name)
    assert version == first.version
    assert served.served(name)[1] is labeller
    models.promote(second.version.id)
    assert served.served(name)[0] == second.version
    assert served.served(name)[1] is not labeller


def test_names_of_projects_are_names_of_folders() -> None:
    assert folder_name("cvat", "task-12") == "cvat-task-12"
    odd = folder_name("cvat", "../a~b/c d%.")
    assert odd == "cvat-.2E.2E.2Fa.7Eb.2Fc.20d.25.2E"


def test_a_served_model_that_is_damaged_is_replaced(dataset: Dataset, models: Models, tmp_path: Path) -> None:
    first = train.train(dataset, models, QUICK, tmp_path / "a.pt")
    assert first
    models.promote(first.version.id)
    first.version.network.write_bytes(b"no network")
    second = train.train(dataset, models, replace(CONFIG, steps=20), tmp_path / "b.pt")
    assert second and second.decision.promoted
    assert second.decision.reason.startswith("promoted: the first of its kind")


def test_trainings_leave_the_newest_versions(
    dataset: Dataset, models: Models, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Models.prune, "__defaults__", (1,))
    made = [train.train(dataset, models, replace(QUICK, seed=seed), tmp_path / "a.pt") for seed in range(3)]
    served = models.served()
    names = {each.id for each in models.versions()}
    assert made[2] and made[2].version.id in names
    assert len(names) <= 2
    assert served is None or served.id in names


def test_with_few_images_the_numbers_are_cross_validated_within_the_same_time(
    store: Store, kept: ImageArchive, models: Models, tmp_path: Path
) -> None:
    accept_drawings(store, kept, 7)
    few = snapshot(store, TOOL, PROJECT, kept)
    reports: list[Progress] = []
    config = replace(CONFIG, steps=4, validate_every=2, seconds=600)
    trained = train.train(few, models, config, tmp_path / "a.pt", report=reports.append)
    assert trained
    report = trained.version.provenance.report
    assert (report["split"], report["images"]) == ("cross-validation", 7)
    side = len(few.split("test"))
    assert report["too_few"].startswith(f"too few: a test side of {side} of 7 images says little")
    assert "those of 5 networks on images" in report["too_few"]
    assert report["validation"]["images"] == len(few.split("validation"))
    assert [each.step for each in reports] == list(range(2, 25, 2))
    assert {each.steps for each in reports} == {24}
    assert reports[0].seconds_left <= 600
    assert reports[-1].seconds_left == 0
    assert not list(tmp_path.glob("a.pt*"))


def test_a_cross_validation_that_is_stopped_goes_on_where_it_was(
    store: Store, kept: ImageArchive, models: Models, tmp_path: Path
) -> None:
    accept_drawings(store, kept, 4)
    few = snapshot(store, TOOL, PROJECT, kept)
    looks = iter(range(100))
    stops = 5 + 5 + 2  # two of the networks, and a half of the next
    assert train.train(few, models, QUICK, tmp_path / "a.pt", cancelled=lambda: next(looks) > stops) is None
    reports: list[Progress] = []
    assert train.train(few, models, QUICK, tmp_path / "a.pt", report=reports.append)
    assert reports[0].step == 4 + 4 + 4
    assert reports[-1].step == reports[-1].steps


def test_crops_are_as_large_as_objects_ask_for(dataset: Dataset) -> None:
    assert crops.crop_side(dataset.samples, 256) == 64  # of the pictures
    assert crops.crop_side(dataset.samples, 48) == 48
    large = [replace(sample, size=(4000, 3000), labels=()) for sample in dataset.samples]
    assert crops.crop_side(large, 256) == 256
    bare = [replace(sample, size=(400, 300)) for sample in dataset.samples[:1]]
    assert crops.crop_side(bare, 256) == crops.MIN_CROP_PX


def test_a_wide_crop_has_the_pixels_of_the_others_unless_no_picture_has(dataset: Dataset) -> None:
    assert crops.wide_side(dataset.samples, 32, 3) == 64  # 55.4, in steps of 16
    assert crops.wide_side(dataset.samples, 64, 4) == 64  # of the pictures


def test_networks_see_what_is_dark_as_they_see_what_is_bright() -> None:
    random = np.random.default_rng(0)
    bright = random.integers(0, 256, (40, 50, 3)).astype(np.uint8)
    dark = (10 + bright // 4).astype(np.uint8)
    seen = [labeller.prepared(pixels).astype(int) for pixels in (bright, dark)]
    assert abs(seen[0] - seen[1]).max() < 12
    noise = random.integers(9, 12, (40, 50, 3)).astype(np.uint8)
    assert np.ptp(labeller.prepared(noise)) < 30


def test_early_stopping_looks_at_a_part_of_many_pictures(
    dataset: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    pixels = SIZE[0] * SIZE[1]
    for watched, pictures_of_it in ((1, 1), (2 * pixels, 2), (3 * pixels - 1, 2), (99 * pixels, 18)):
        monkeypatch.setattr(train, "MAX_WATCHED_PIXELS", watched)
        chosen = list(train._first(dataset.samples))
        assert len(chosen) == pictures_of_it
        assert chosen == sorted(chosen, key=lambda each: each.image)
