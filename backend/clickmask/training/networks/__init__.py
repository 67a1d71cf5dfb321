"""Networks that label every pixel of an image, one module each, found by file name. A module has NAME (shown
to people), STRIDE and `build(classes, encoder)`; see `Network`. Other distributions add theirs by an entry
point in the group `clickmask.training.networks`. Finding them needs no torch."""

import importlib.util
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Protocol, cast

from clickmask import plugins
from clickmask.errors import InvalidRequest, NotReady

if TYPE_CHECKING:
    from torch import nn

RANDOM = "random weights"


class Network(Protocol):
    """The interface of a network's module.

    It may have RATE, its learning rate as a share of the training's (default 1). What it builds may have

    - `loss(pixels, labels, weights)` -> a scalar, instead of cross-entropy and Dice of its logits. labels
      (B, H, W) hold classes and IGNORED, weights (classes,) are those of the classes in a cross-entropy;
    - `started_from`, what its weights were before the training, for the model's card (default RANDOM);
    - `encoder`, the part that learns at a lower rate if it did not start from random weights.
    """

    NAME: str
    STRIDE: int  # required divisor of the sides that it is given: pictures are padded to it, logits cropped

    def build(self, classes: int, encoder: Path | None) -> "nn.Module":
        """(B, 3, H, W) of RGB in [0, 1] -> logits (B, classes, H, W). Class 0 is the background.

        `encoder` is a safetensors file of initial weights, None for the network's own choice; a network that
        takes none raises InvalidRequest. Random weights follow torch's global seed. It MUST export to ONNX
        with free H and W.
        """
        ...


def names() -> list[str]:
    """All installed networks, sorted."""
    return plugins.names(sys.modules[__name__])


def require_name(name: str) -> None:
    """Raise InvalidRequest, with the names that there are, if there is no network `name`."""
    if name not in names():
        raise InvalidRequest(f"there is no network {name[:80]!r}; installed: {', '.join(names())}")


def load(name: str) -> Network:
    """The module of the network `name`. Raises InvalidRequest if there is none."""
    require_name(name)
    return cast("Network", plugins.load(sys.modules[__name__], name))


def require_packages(network: str, extra: str, *packages: str) -> None:
    """Raise NotReady if a package that the extra `extra` installs is missing."""
    if missing := [package for package in packages if importlib.util.find_spec(package) is None]:
        said = f"{network} needs {' and '.join(missing)}"
        raise NotReady(f"{said}: pip install 'clickmask[{extra}]'")
