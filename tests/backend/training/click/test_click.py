"""The built-in network's training, on drawn pictures and in seconds."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from importlib import resources
from pathlib import Path

import cv2
import numpy as np
import onnxruntime
import pytest

pytest.importorskip("torch")
import torch

from clickmask.errors import InvalidRequest
from clickmask.masks.rle import mask_to_rle
from clickmask.segmenters._builtin import Crop, render
from clickmask.training.click import fit, prompts
from clickmask.training.click.crops import Sampler, drawn_scenes, load_cutouts
from clickmask.training.click.export import DECODER, ENCODER, export, read_network, shipped_network
from clickmask.training.click.fit import CHECKPOINT, Trainer, TrainingConfig
from clickmask.training.click.network import CHANNELS, EMBEDDED, MAPS, ClickFPN
from clickmask.training.click.pool import PARTS, SIDE, find_photographs, held_out, load_pool, read
from clickmask.training.click.train import imagenet_weights, starting_network, train
from clickmask.training.networks._efficientnet_lite import LITE2, Encoder
from clickmask.types import Pixels, Prompt
from support.coco_folders import write_annotations, write_picture
from support.drawn import disc, rectangle
from support.photographs import outlined_objects
from support.scenes import drawn_scene

CPU = torch.device("cpu")
CONFIG = TrainingConfig(steps=2, crops=2, objects=1, sides=(64,), warm_up=1, save_every=2)


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def pool_folder(tmp_path: Path) -> Path:
    """Two sets of three scenes each, in the layout of several sets."""
    folder = tmp_path / "pool"
    for group in ("street", "garden"):
        rows: list[dict[str, object]] = []
        for seed in range(3):
            pixels, masks = drawn_scene(seed)
            ids = np.zeros(masks[0].shape, np.uint16)
            for number, mask in enumerate(masks, 1):
                ids[mask] = 300 * number  # more than eight bits
            write_picture(folder / group / "images" / f"{group}{seed}.jpg", pixels)
            (folder / group / "masks").mkdir(exist_ok=True)
            assert cv2.imwrite(str(folder / group / "masks" / f"{group}{seed}.png"), ids)
            rows.append({"name": f"{group}{seed}", "tier": "A" if seed else "C"})
        (folder / group / "index.json").write_text(json.dumps({"images": rows}))
    (folder / "sets.json").write_text(json.dumps({"street": {}, "garden": {}}))
    return folder


@pytest.fixture
def sampler(pool_folder: Path) -> Sampler:
    return Sampler(load_pool(find_photographs(pool_folder), CPU), None, torch.Generator().manual_seed(0))


def training(folder: Path, pool_folder: Path, config: TrainingConfig) -> Trainer:
    noise = torch.Generator().manual_seed(config.seed)
    torch.manual_seed(0)
    sampler = Sampler(load_pool(find_photographs(pool_folder), CPU), None, noise)
    return Trainer(config, starting_network(None), sampler, folder)


def as_tensor(*masks: np.ndarray) -> torch.Tensor:
    return torch.tensor(np.stack(masks)).float()


def test_the_encoder_gives_features_at_five_strides() -> None:
    found = Encoder(LITE2).eval()(torch.zeros(1, 3, 64, 96))
    assert {stride: tuple(each.shape[1:]) for stride, each in found.items()} == {
        stride: (channels, 64 // stride, 96 // stride) for stride, channels in CHANNELS.items()
    }


def test_weights_of_another_network_are_refused() -> None:
    with pytest.raises(InvalidRequest, match="EfficientNet-Lite2"):
        imagenet_weights({"_conv_stem.weight": torch.zeros(32, 3, 3, 3)}, Encoder(LITE2))


def test_imagenet_weights_come_under_the_names_of_the_encoder(tmp_path: Path) -> None:
    encoder = Encoder(LITE2)
    published: dict[str, torch.Tensor] = {"_fc.weight": torch.zeros(1)}
    theirs = {"expand": "_expand_conv", "depthwise": "_depthwise_conv", "project": "_project_conv"}
    theirs |= {"expand_norm": "_bn0", "depthwise_norm": "_bn1", "project_norm": "_bn2"}
    for name, tensor in encoder.state_dict().items():
        parts = name.replace(".convolution", "").split(".")
        if parts[0] == "blocks":
            published[f"_blocks.{parts[1]}.{theirs[parts[2]]}.{parts[3]}"] = tensor
        else:
            published[("_conv_stem" if parts[0] == "stem" else "_bn0") + f".{parts[1]}"] = tensor
    named = imagenet_weights(published, encoder)
    assert all(torch.equal(named[name], tensor) for name, tensor in encoder.state_dict().items())
    torch.save(published, tmp_path / "imagenet.pth")
    begun = starting_network(tmp_path / "imagenet.pth").encoder.backbone.state_dict()
    assert all(torch.equal(begun[name], tensor) for name, tensor in encoder.state_dict().items())


@pytest.mark.parametrize(
    "prompt",
    [
        Prompt(((20.5, 31.0),)),
        Prompt(((20.5, 31.0), (60.0, 8.25)), ((3.0, 50.0),)),
        Prompt(box=(10.3, 12.0, 50.0, 40.9)),
    ],
    ids=["a click", "three clicks", "a box"],
)
def test_the_served_maps_are_those_of_training(prompt: Prompt) -> None:
    view = Crop((0.0, 0.0, 96.0, 64.0), (64, 96))
    trained = prompts.Prompts((32, 48), CPU, 1)
    yes = torch.ones(1, dtype=torch.bool)
    for points, foreground in ((prompt.foreground, yes), (prompt.background, ~yes)):
        for point in points:
            trained.click(torch.tensor([point]), foreground, yes)
    if prompt.box is not None:
        trained.enclose(torch.tensor([prompt.box]), yes)
    region = torch.rand(1, 32, 48)
    trained.correct(region, yes)
    np.testing.assert_allclose(
        render(view, prompt, region[0].numpy()), trained.maps.numpy(), rtol=1e-4, atol=1e-5
    )


def test_clicks_are_deep_inside() -> None:
    masks = as_tensor(disc((64, 64), (20, 30), 12), np.zeros((64, 64), np.bool_))
    points, depths = prompts.deepest(masks)
    assert np.allclose(points[0] / 2, (20, 30), atol=1.5)
    assert depths[0] == pytest.approx(6, abs=1.5)
    assert depths[1] == 0


def test_random_clicks_are_in_the_mask_too() -> None:
    mask = disc((64, 64), (20, 30), 12)
    points, _ = prompts.deepest(as_tensor(*[mask] * 40), torch.Generator().manual_seed(1))
    columns, rows = (points / 2).long().T
    assert mask[rows, columns].all()
    assert len(np.unique(points.numpy(), axis=0)) > 5


def test_boxes_are_tight() -> None:
    assert prompts.tight_boxes(as_tensor(rectangle((64, 64), (10, 20, 30, 50)))).tolist() == [
        [20.0, 40.0, 60.0, 100.0]
    ]


def test_a_lone_click_is_ambiguous_and_a_box_is_not() -> None:
    yes = torch.ones(2, dtype=torch.bool)
    given = prompts.Prompts((32, 32), CPU, 2)
    given.click(torch.tensor([[8.0, 8.0], [8.0, 8.0]]), yes, yes)
    given.enclose(torch.tensor([[0.0, 0.0, 20.0, 20.0]] * 2), torch.tensor([False, True]))
    assert given.ambiguous().tolist() == [1, 0]


def test_corrections_say_what_is_missed_and_what_is_wrong() -> None:
    wanted = as_tensor(*[disc((64, 64), (20, 20), 10)] * 30, *[np.zeros((64, 64), np.bool_)] * 30)
    found = as_tensor(*[np.zeros((64, 64), np.bool_)] * 30, *[disc((64, 64), (40, 40), 10)] * 30)
    given = prompts.correct(
        prompts.Prompts((64, 64), CPU, 60), wanted, found, torch.Generator().manual_seed(0)
    )
    clicked = given.clicks > 0
    assert 20 < clicked.sum() < 60  # the others are second looks
    foreground = given.maps[:, 0].amax((1, 2)) > 0
    assert foreground[:30].equal(clicked[:30])
    assert not foreground[30:].any()


def test_crops_are_repeatable_and_of_the_shapes_they_promise(pool_folder: Path) -> None:
    pool = load_pool(find_photographs(pool_folder), CPU)
    first, again = (Sampler(pool, None, torch.Generator().manual_seed(3)).sample(4, 64, 3) for _ in range(2))
    images, targets = first
    assert images.shape == (4, 3, 64, 64)
    assert targets.shape == (4, 3, 32, 32)
    assert images.abs().max() <= 1
    assert set(targets.unique().tolist()) <= {0.0, 1.0}
    assert torch.equal(images, again[0])
    assert torch.equal(targets, again[1])


def test_cut_out_drawings_are_pasted(tmp_path: Path, pool_folder: Path) -> None:
    drawing = np.zeros((90, 120, 4), np.uint8)
    drawing[disc((90, 120), (60, 45), 30)] = (10, 20, 230, 255)  # red, in OpenCV's order
    assert cv2.imwrite(str(tmp_path / "disc.png"), drawing)
    assert cv2.imwrite(str(tmp_path / "opaque.png"), np.full((9, 9, 4), 255, np.uint8))
    assert cv2.imwrite(str(tmp_path / "grey.png"), np.zeros((9, 9), np.uint8))
    cutouts = load_cutouts(tmp_path, CPU)
    assert len(cutouts) == 1
    middle = cutouts[0, :, cutouts.shape[2] // 2, cutouts.shape[3] // 2]
    assert middle.tolist() == [230, 20, 10, 255]
    pool = load_pool(find_photographs(pool_folder), CPU)
    _, targets = Sampler(pool, cutouts, torch.Generator().manual_seed(0)).sample(16, 64, 2)
    assert targets.shape == (16, 2, 32, 32)


def test_drawn_scenes_say_what_they_show() -> None:
    images, codes = drawn_scenes(6, 64, torch.Generator().manual_seed(0), CPU)
    assert images.shape == (6, 3, 64, 64)
    for image, code in zip(images, codes[:, 0], strict=True):
        for number in code.unique()[1:]:
            inside = image[:, code == number]
            assert inside.std(1).max() < 0.35  # one colour, but for the noise


def test_both_layouts_are_read_and_pieces_told_apart(tmp_path: Path, pool_folder: Path) -> None:
    assert {each.tier for each in find_photographs(pool_folder)} == {"A", "C"}
    pixels, masks = drawn_scene(0)
    two = disc(masks[0].shape, (30, 30), 20) | disc(masks[0].shape, (200, 150), 20)
    write_picture(tmp_path / "coco" / "images" / "a.png", pixels)
    write_annotations(
        tmp_path / "coco" / "annotations" / "instances_train.json",
        [("a.png", (240, 320))],
        [{"segmentation": mask_to_rle(mask)} for mask in (two, rectangle((240, 320), (25, 25, 35, 35)))],
    )
    (photograph,) = find_photographs(tmp_path / "coco")
    read_pixels, codes = read(photograph)
    assert (read_pixels == pixels).all()
    assert sorted(np.unique(codes)) == [0, PARTS + 1, PARTS + 2, 2 * PARTS + 1]
    assert ((codes == 2 * PARTS + 1) == rectangle((240, 320), (25, 25, 35, 35))).all()


def test_large_photographs_are_reduced(tmp_path: Path) -> None:
    mask = rectangle((900, 1200), (100, 100, 700, 900))
    write_picture(tmp_path / "a.png", np.zeros((900, 1200, 3), np.uint8))
    write_annotations(tmp_path / "all.json", [("a.png", (900, 1200))], [{"segmentation": mask_to_rle(mask)}])
    pixels, codes = read(find_photographs(tmp_path)[0])
    assert pixels.shape == (384, SIDE, 3)
    assert (codes > 0).mean() == pytest.approx(mask.mean(), rel=0.02)


def test_a_folder_without_labels_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InvalidRequest):
        find_photographs(tmp_path)


def test_copies_of_a_photograph_are_held_out_together(pool_folder: Path) -> None:
    photographs = find_photographs(pool_folder)
    copies = [replace(each, group="elsewhere") for each in photographs]
    assert [held_out(each) for each in photographs] == [held_out(each) for each in copies]
    many = [replace(photographs[0], name=f"{number}") for number in range(500)]
    assert 25 < sum(map(held_out, many)) < 80
    assert not any(held_out(replace(each, group="class5")) for each in many)


def test_the_loss_of_a_right_mask_is_small_and_wrong_ones_cost() -> None:
    target = as_tensor(disc((32, 32), (16, 16), 8))
    right = (2 * target - 1)[:, None] * 12
    assert fit.mask_losses(right, target).item() < 0.05 < fit.mask_losses(-right, target).item()
    assert fit.ious(right, target).item() == 1
    logits, worth = right.repeat(1, 4, 1, 1), torch.ones(1, 4)
    sure = fit.total_loss(logits, worth, target, torch.ones(1))
    assert sure < fit.total_loss(logits, worth * 0.3, target, torch.ones(1))
    assert fit.total_loss(logits, worth, torch.zeros_like(target), torch.ones(1)) == 0  # unlabelled


def test_a_training_that_was_stopped_goes_on_as_if_it_had_not(tmp_path: Path, pool_folder: Path) -> None:
    whole = training(tmp_path / "whole", pool_folder, CONFIG)
    whole.run()
    first = training(tmp_path / "parts", pool_folder, CONFIG)
    assert first.step == 0
    first.loop(cancelled=lambda: first.step == 1)
    first.save()
    second = training(tmp_path / "parts", pool_folder, CONFIG)
    assert second.step == 1
    second.run()
    for name, tensor in whole.average.state_dict().items():
        torch.testing.assert_close(second.average.state_dict()[name], tensor, msg=name)
    assert (tmp_path / "parts" / CHECKPOINT).is_file()
    logged = [json.loads(line) for line in (tmp_path / "whole" / "log.jsonl").read_text().splitlines()]
    assert [row["step"] for row in logged] == [2]


def test_checkpoints_of_others_and_of_the_version_before_are_not_continued_from(
    tmp_path: Path, pool_folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    training(tmp_path, pool_folder, CONFIG).save()
    assert "another training" not in caplog.text
    training(tmp_path, pool_folder, replace(CONFIG, seed=1))
    written = torch.load(tmp_path / CHECKPOINT, weights_only=True)
    before = {name: written[name] for name in ("step", "network", "average", "optimiser", "noise")}
    torch.save({"plan": {"steps": 2}, **before, "step": 1}, tmp_path / CHECKPOINT)
    assert training(tmp_path, pool_folder, CONFIG).step == 0
    assert caplog.text.count("checkpoint.pt is of another training: this one starts at the first step") == 2


def test_training_learns(tmp_path: Path, pool_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One batch, again and again, with the same clicks: its loss falls far below any chance."""
    config = replace(CONFIG, steps=10, crops=3, warm_up=1)
    learning = training(tmp_path, pool_folder, config)
    crops = Sampler(learning._sampler.pool, None, torch.Generator().manual_seed(5)).sample(3, 64, 1)
    monkeypatch.setattr(learning._sampler, "sample", lambda *_: crops)
    monkeypatch.setattr(fit, "ROUNDS", (1,))
    losses: list[float] = []
    backward = learning.backward

    def same_clicks() -> torch.Tensor:
        learning._noise.manual_seed(3)
        losses.append(float(loss := backward()))
        return loss

    monkeypatch.setattr(learning, "backward", same_clicks)
    learning.run()
    assert losses[-1] < 0.8 * losses[0]


def test_a_whole_training_leaves_the_files_that_are_served(tmp_path: Path, pool_folder: Path) -> None:
    train(pool_folder, tmp_path / "run", replace(CONFIG, steps=1, save_every=1), tiers=("A",), device="cpu")
    names = {path.name for path in (tmp_path / "run").iterdir()}
    assert names >= {ENCODER, DECODER, CHECKPOINT, "log.jsonl"}
    with pytest.raises(InvalidRequest, match="no image"):
        train(pool_folder, tmp_path / "run", CONFIG, tiers=("B",), device="cpu")


def seen(pixels: Pixels) -> torch.Tensor:
    """(1, 3, H, W) in [-1, 1], at most 256 px wide, padded with zeros to multiples of 32."""
    height, width = pixels.shape[:2]
    scale = 256 / max(height, width)
    small = cv2.resize(pixels, (round(scale * width), round(scale * height)), interpolation=cv2.INTER_AREA)
    image = torch.tensor(small).permute(2, 0, 1)[None].float() / 127.5 - 1
    return torch.nn.functional.pad(image, (0, -image.shape[3] % 32, 0, -image.shape[2] % 32))


def answers(network: ClickFPN, image: torch.Tensor, maps: torch.Tensor) -> list[np.ndarray]:
    """Every array that the encoder gives, then the decoder's logits and estimated IoUs."""
    with torch.no_grad():
        embedded = network.encoder(image)
        return [each.numpy() for each in (*embedded, *network.decoder(embedded, maps))]


def test_the_shipped_network_is_read_back_with_its_answers() -> None:
    """To 1e-3 of the largest value that ONNX Runtime gives of each array, on photographs and drawings."""
    network = shipped_network()
    folder = resources.files("clickmask.weights_builtin")
    encoder, decoder = (
        onnxruntime.InferenceSession((folder / name).read_bytes()) for name in (ENCODER, DECODER)
    )
    photographs = {each.name: each.pixels for each in outlined_objects()}
    pictures = [*list(photographs.values())[:4], *(drawn_scene(seed)[0] for seed in range(3))]
    for pixels in pictures:
        image = seen(pixels)
        height, width = image.shape[2:]
        crop = Crop((0.0, 0.0, float(width), float(height)), (height, width))
        prompt = Prompt(((width / 2, height / 2),), ((5.0, 5.0),))
        maps = render(crop, prompt, None)
        embedded = encoder.run(list(EMBEDDED), {"image": image.numpy()})
        given = {"maps": maps, **dict(zip(EMBEDDED, embedded, strict=True))}
        expected = [*embedded, *decoder.run(["logits", "worth"], given)]
        found = answers(network, image, torch.tensor(maps))
        for name, ours, theirs in zip([*EMBEDDED, "logits", "worth"], found, expected, strict=True):
            assert np.abs(ours - theirs).max() < 1e-3 * np.abs(theirs).max(), name


def test_the_shipped_network_can_be_trained_further_and_exported_again(
    tmp_path: Path, pool_folder: Path
) -> None:
    image, maps = seen(drawn_scene(0)[0]), torch.rand(1, MAPS, 96, 128)
    pool = load_pool(find_photographs(pool_folder), CPU)

    def trainer(folder: str) -> Trainer:
        noise = torch.Generator().manual_seed(0)
        return Trainer(CONFIG, shipped_network(), Sampler(pool, None, noise), tmp_path / folder)

    def loss(trained: Trainer) -> float:
        trained._noise.manual_seed(1)
        trained.network.train()
        return float(trained.backward())

    further, uncalibrated = trainer("further"), trainer("uncalibrated")
    before = answers(further.average, image, maps)
    further.calibrate(batches=2)
    for network in (further.network.eval(), further.average):
        for ours, theirs in zip(answers(network, image, maps), before, strict=True):
            np.testing.assert_allclose(ours, theirs, atol=1e-3 * np.abs(theirs).max())
    assert loss(further) < loss(uncalibrated)
    further.run()
    changed = answers(further.average, image, maps)
    assert np.abs(changed[-2] - before[-2]).max() > 1e-3
    export(further.average, tmp_path)
    again = read_network((tmp_path / ENCODER).read_bytes(), (tmp_path / DECODER).read_bytes())
    found = answers(again, image, maps)[-2]
    np.testing.assert_allclose(found, changed[-2], atol=0.03 * np.abs(changed[-2]).max())


def test_onnx_files_of_another_network_are_refused() -> None:
    content = (resources.files("clickmask.weights_builtin") / ENCODER).read_bytes()
    with pytest.raises(InvalidRequest, match="built-in segmenter's network"):
        read_network(content, content)


def test_exported_networks_compute_what_torch_does(tmp_path: Path) -> None:
    torch.manual_seed(0)
    network = ClickFPN().eval()
    export(network, tmp_path)
    image, maps = torch.rand(1, 3, 96, 64) * 2 - 1, torch.rand(1, MAPS, 48, 32)
    with torch.no_grad():
        embedded = network.encoder(image)
        logits, worth = network.decoder(embedded, maps)
    encoder, decoder = (onnxruntime.InferenceSession(tmp_path / name) for name in (ENCODER, DECODER))
    arrays = dict(zip(EMBEDDED, encoder.run(list(EMBEDDED), {"image": image.numpy()}), strict=True))
    for array, tensor in zip(arrays.values(), embedded, strict=True):
        np.testing.assert_allclose(array, tensor, atol=0.01 * float(tensor.abs().max()))
    served = decoder.run(["logits", "worth"], {"maps": maps.numpy(), **arrays})
    np.testing.assert_allclose(served[0], logits, atol=0.03 * float(logits.abs().max()))
    np.testing.assert_allclose(served[1], worth, atol=0.01)
    assert sum((tmp_path / name).stat().st_size for name in (ENCODER, DECODER)) < 15 * 2**20
