"""Networks that label every pixel of an image, one module each, found by file name. A module has NAME (shown
to people), STRIDE and `build(classes, encoder)`; see `Network`. Other distributions add theirs by an entry
point in the group `clickmask.training.networks`."""

import io
import sys
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol, cast

import torch
from torch import Tensor, nn

from clickmask import plugins
from clickmask.errors import InvalidRequest, NotReady
from clickmask.models.labeller import MULTIPLE

OPSET = 17


class Network(Protocol):
    """The interface of a network's module."""

    NAME: str
    STRIDE: int  # required divisor of a picture's sides; it must divide MULTIPLE, which serving pads to

    def build(self, classes: int, encoder: Path | None) -> nn.Module:
        """(B, 3, H, W) of RGB in [0, 1] -> logits (B, classes, H, W). Class 0 is the background.

        `encoder` is a file of initial weights, None for the network's own choice; a network that takes none
        raises InvalidRequest. Random weights follow torch's global seed. It MUST export to ONNX with free H
        and W.
        """
        ...


def names() -> list[str]:
    """All installed networks, sorted."""
    return plugins.names(sys.modules[__name__])


def load(name: str) -> Network:
    """The module of the network `name`. Raises InvalidRequest if there is none."""
    try:
        return cast("Network", plugins.load(sys.modules[__name__], name))
    except KeyError:
        known = ", ".join(names())
        raise InvalidRequest(f"there is no network {name[:80]!r}; installed: {known}") from None


def build(name: str, classes: int, encoder: Path | None = None) -> nn.Module:
    """The network `name`, checked on a blank picture. Raises InvalidRequest, or NotReady if it is broken."""
    module = load(name)
    if MULTIPLE % module.STRIDE:
        raise NotReady(f"the network {name} has stride {module.STRIDE}, which must divide {MULTIPLE}")
    network = module.build(classes, encoder)
    was_training, wanted = network.training, (1, classes, 2 * MULTIPLE, 2 * MULTIPLE)
    with torch.no_grad():
        logits = network.eval()(torch.zeros(1, 3, *wanted[2:]))
    network.train(was_training)
    if logits.shape != wanted or not logits.is_floating_point():
        shape = tuple(logits.shape)
        raise NotReady(f"the network {name} answers with {logits.dtype} {shape}, not logits {wanted}")
    return network


def export_onnx(
    network: nn.Module,
    example: tuple[Tensor, ...],
    inputs: Sequence[str],
    outputs: Sequence[str],
    axes: Mapping[str, Mapping[int, str]],
) -> bytes:
    """ONNX of `network`, traced on `example`. `axes` names the free axes of inputs and outputs."""
    written = io.BytesIO()
    with warnings.catch_warnings(), torch.inference_mode():
        warnings.simplefilter("ignore")  # the exporter warns about itself, and about sizes it traces well
        cast("Any", torch.onnx).export(
            network.eval(),
            example,
            written,
            input_names=list(inputs),
            output_names=list(outputs),
            opset_version=OPSET,
            dynamic_axes=axes,
            dynamo=False,  # the newer exporter needs onnxscript, and takes minutes
        )
    return written.getvalue()
