"""The one object that stands out, without a prompt: U2-Net-p, the small network of Qin et al., "U2-Net: Going
Deeper with Nested U-Structure for Salient Object Detection", arXiv 2005.09007, from the ONNX file that rembg
publishes. Input and output are treated as rembg treats them, but the map is enlarged bilinearly and cut."""

from collections.abc import Mapping
from types import MappingProxyType

import numpy as np
import PIL.Image

from clickmask.inference.catalogue import Host
from clickmask.inference.sessions import Session
from clickmask.plugins import About, Checkpoint, Variant
from clickmask.segmenters._foreground import Floats, ForegroundSegmenter
from clickmask.types import Pixels

NAME, LABEL = "salient", "object"
SIDE = 320  # pixels of the square that the image is stretched to
MEAN, DEVIATION = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
VARIANTS: Mapping[str, Variant] = MappingProxyType(
    {
        "": Variant(
            Checkpoint(
                "https://github.com/danielgatis/rembg/releases/download/v0.0.0/u2netp.onnx",
                4_574_861,
                "309c8469258dda742793dce0ebea8e6dd393174f89934733ecc8b14c76f4ddd8",
                "Apache-2.0",
            ),
            labels=(LABEL,),
            about=About("U2-Net-p", "Qin 2020, arXiv 2005.09007", 1_130_000, candidates=3),
        )
    }
)


class U2Net:
    """The network in a runtime for ONNX."""

    def __init__(self, session: Session) -> None:
        self._session = session

    @property
    def runtime(self) -> str:
        return self._session.runtime

    def probabilities(self, pixels: Pixels) -> Floats:
        """Values between those of the least and the most salient pixel, 0 and 1; all 0 if they are equal."""
        small = np.empty((SIDE, SIDE, 3), np.uint8)
        for channel in range(3):  # one at a time, since Pillow would copy three to four
            plane = PIL.Image.fromarray(np.ascontiguousarray(pixels[..., channel]))
            small[..., channel] = np.asarray(plane.resize((SIDE, SIDE), PIL.Image.Resampling.LANCZOS))
        bright = small / max(int(small.max()), 1e-6)
        chw = ((bright - MEAN) / DEVIATION).transpose(2, 0, 1)[None].astype(np.float32)
        fused = next(iter(self._session.run({"input.1": chw}).values()))[0, 0]
        low, high = fused.min(), fused.max()
        return (fused - low) / (high - low) if high > low else np.zeros_like(fused)


def missing(variant: str, host: Host) -> str:
    return host.weights.missing(NAME)


def load(variant: str, host: Host) -> ForegroundSegmenter:
    """Load the network. Raises NotReady."""
    blank = {"input.1": np.zeros((1, 3, SIDE, SIDE), np.float32)}
    session = host.runtimes.encoder(host.weights.verify(NAME), blank, exact=True)
    return ForegroundSegmenter(NAME, LABEL, U2Net(session), is_one=True)
