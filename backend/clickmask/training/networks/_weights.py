"""Initial weights of encoders from files, and the normalisations that suit them."""

import hashlib
import logging
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, cast

from torch import Tensor, nn

from clickmask import files
from clickmask.errors import InvalidRequest

log = logging.getLogger(__name__)

GROUP = 8  # channels normalised together
EPSILON, MOMENTUM = 1e-3, 0.01  # TensorFlow's batch normalisation
MEAN, DEVIATION = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # of ImageNet's RGB in [0, 1]
SHOWN = 3  # names that a sentence lists

Norm = Callable[[int], nn.Module]


def group_norm(channels: int) -> nn.GroupNorm:
    """Group normalisation (Wu, He: Group Normalization, ECCV 2018), the same for one crop as for many."""
    return nn.GroupNorm(max(1, channels // GROUP), channels)


def batch_norm(channels: int) -> nn.BatchNorm2d:
    return nn.BatchNorm2d(channels, eps=EPSILON, momentum=MOMENTUM)


class FrozenBatchNorm(nn.BatchNorm2d):
    """Batch normalisation by statistics that were learnt before, and stay. Its weights learn."""

    def train(self, mode: bool = True) -> "FrozenBatchNorm":
        return super().train(False)


def frozen_batch_norm(channels: int) -> FrozenBatchNorm:
    return FrozenBatchNorm(channels, EPSILON)


def normalise(pixels: Tensor) -> Tensor:
    """RGB in [0, 1] (B, 3, H, W) as the networks of the package transformers were shown ImageNet."""
    mean, deviation = (pixels.new_tensor(each).view(3, 1, 1) for each in (MEAN, DEVIATION))
    return (pixels - mean) / deviation


def replace_batch_norms(network: nn.Module, frozen: bool) -> None:
    """Freeze the batch normalisations of `network`, or replace them by group normalisations."""
    for name, child in list(network.named_children()):
        if isinstance(child, nn.BatchNorm2d):
            new: nn.Module = group_norm(child.num_features)
            if frozen:
                new = FrozenBatchNorm(child.num_features, child.eps)
                new.load_state_dict(child.state_dict())
            setattr(network, name, new)
        else:
            replace_batch_norms(child, frozen)


def read_weights(path: Path) -> dict[str, Tensor]:
    """The tensors of a safetensors file by name. Raises InvalidRequest if it is none."""
    from safetensors import SafetensorError
    from safetensors.torch import load

    try:
        return load(files.read(path))
    except OSError as error:
        raise InvalidRequest(f"the encoder {path.name} cannot be read: {error.strerror}") from error
    except (SafetensorError, ValueError) as error:
        raise InvalidRequest(f"the encoder {path.name} is no safetensors file") from error


def load_weights(encoder: nn.Module, path: Path, given: Mapping[str, Tensor], prefix: str = "") -> str:
    """Give `encoder` the tensors of the file `path` that have its names and shapes; `prefix` precedes the
    names in files of whole networks. Returns a clause on what it starts from, and logs what does not fit.
    Raises InvalidRequest if nothing fits.
    """
    state = encoder.state_dict()
    named = {name.removeprefix(prefix): tensor for name, tensor in given.items()}
    fitting = {
        name: each for name, each in named.items() if name in state and state[name].shape == each.shape
    }
    counted = [name for name in state if not name.endswith("num_batches_tracked")]
    lacking = [name for name in counted if name not in fitting]
    if len(lacking) == len(counted):
        ours, theirs = (", ".join(list(names)[:SHOWN]) for names in (state, given))
        raise InvalidRequest(
            f"no tensor of {path.name} fits the encoder, whose names are {ours}, …; the file has {theirs}, …"
        )
    cast("Any", encoder).load_state_dict(fitting, strict=False)
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()[:12]  # of others, a training starts anew
    fit = len(counted) - len(lacking)
    said = f"{path.name} (SHA-256 {digest}…; {fit} of {len(counted)} tensors of the encoder"
    if lacking:
        others = ", ".join(lacking[:SHOWN]) + ", …" * (len(lacking) > SHOWN)
        said += f"; random, since it has none that fit: {others}"
    if unused := [name for name in named if name not in fitting]:
        log.info("%s has %d tensors that the encoder has no place for", path.name, len(unused))
    return f"{said})"
