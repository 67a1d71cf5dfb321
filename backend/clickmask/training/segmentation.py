"""A network of `training/networks` as training, validation and export run it: for pictures of any size."""

import io
import warnings
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional

from clickmask.datasets.snapshot import IGNORED
from clickmask.errors import NotReady
from clickmask.models.labeller import LOGITS, PIXELS
from clickmask.training import networks
from clickmask.training.losses import segmentation_loss

OPSET = 17
ENCODER_RATE = 0.25  # learning rate of an encoder that has learnt already, relative to the other parts'
EXAMPLE = (64, 96)  # px, height and width of the blank picture that an export is traced on


class SegmentationNetwork(nn.Module):
    """(B, 3, H, W) of RGB in [0, 1] -> logits (B, classes, H, W), for any H and W. `network`'s sides must be
    multiples of `stride`: pictures are edge-padded, and the logits cropped."""

    def __init__(self, network: nn.Module, stride: int, rate: float = 1.0) -> None:
        super().__init__()
        self.network: Any = network
        self.stride, self.rate = stride, rate
        self.started_from: str = getattr(network, "started_from", networks.RANDOM)

    def forward(self, pixels: Tensor) -> Tensor:
        height, width = pixels.shape[2:]
        return self.network(self._padded(pixels))[:, :, :height, :width]

    def loss(self, pixels: Tensor, labels: Tensor, weights: Tensor) -> Tensor:
        """The network's own loss, or cross-entropy + Dice. labels (B, H, W) with IGNORED, weights (K,)."""
        if not hasattr(self.network, "loss"):
            return segmentation_loss(self(pixels), labels, weights)
        padding = (0, -labels.shape[2] % self.stride, 0, -labels.shape[1] % self.stride)
        return self.network.loss(
            self._padded(pixels), functional.pad(labels, padding, value=IGNORED), weights
        )

    def parameter_groups(self, rate: float) -> Iterator[dict[str, Any]]:
        """The optimiser's groups, with their peak learning rates."""
        learnt = list[nn.Parameter]()
        if self.started_from != networks.RANDOM and hasattr(self.network, "encoder"):
            learnt = list(self.network.encoder.parameters())
            yield {"params": learnt, "lr": ENCODER_RATE * self.rate * rate}
        known = {id(parameter) for parameter in learnt}
        others = [parameter for parameter in self.parameters() if id(parameter) not in known]
        yield {"params": others, "lr": self.rate * rate}

    def extra_repr(self) -> str:
        """What a checkpoint is told apart by: a training goes on only from the same initial weights."""
        return f"stride={self.stride}, rate={self.rate}, started_from={self.started_from!r}"

    def _padded(self, pixels: Tensor) -> Tensor:
        height, width = pixels.shape[2:]
        padding = (0, -width % self.stride, 0, -height % self.stride)
        # A traced graph must pad, since other pictures will need it.
        if not torch.onnx.is_in_onnx_export() and not any(padding):
            return pixels
        return functional.pad(pixels, padding, mode="replicate")


def build(name: str, classes: int, encoder: Path | None = None) -> SegmentationNetwork:
    """The network `name`, checked on a blank picture. Raises InvalidRequest, or NotReady if it is broken."""
    module = networks.load(name)
    built = module.build(classes, encoder)
    network = SegmentationNetwork(built, module.STRIDE, getattr(module, "RATE", 1.0))
    height, width = (-(-side // module.STRIDE) * module.STRIDE for side in EXAMPLE)
    was_training, wanted = built.training, (1, classes, height, width)
    with torch.no_grad():
        logits = built.eval()(torch.zeros(1, 3, height, width))
    built.train(was_training)
    if logits.shape != wanted or not logits.is_floating_point():
        shape = tuple(logits.shape)
        raise NotReady(f"the network {name} answers with {logits.dtype} {shape}, not logits {wanted}")
    return network


def export(network: nn.Module) -> bytes:
    """ONNX for a picture of any size. `network` is moved to the CPU, in evaluation mode."""
    axes = {2: "height", 3: "width"}
    blank = torch.zeros(1, 3, *EXAMPLE)
    return export_onnx(network.cpu(), (blank,), [PIXELS], [LOGITS], {PIXELS: axes, LOGITS: axes})


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
