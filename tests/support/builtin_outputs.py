"""What the built-in segmenter answered when it was published, for three photographs of scikit-image.

Run it after new weights: `cd tests && python -m support.builtin_outputs > support/builtin_outputs.json`.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import skimage
from PIL import Image as Picture

from clickmask.inference.sessions import Runtimes
from clickmask.masks.rle import mask_to_rle
from clickmask.segmenters import builtin
from clickmask.types import Image, Prompt
from support.hosts import host_of

PICTURES = Path(skimage.__file__).parent / "data"
OUTPUTS = Path(__file__).with_suffix(".json")
PROMPTS = {  # name: photograph and prompt
    "the cat": ("chelsea.png", Prompt(box=(60.0, 5.0, 440.0, 300.0))),
    "the astronaut's patch": ("astronaut.png", Prompt(((172.5, 386.5),))),
    "the helmet, not the suit": ("astronaut.png", Prompt(((396.5, 427.5),), ((250.0, 450.0),))),
    "a coin": ("coins.png", Prompt(((335.0, 44.0),))),
    "another coin": ("coins.png", Prompt(box=(22.0, 101.0, 68.0, 148.0))),
}


def photograph(name: str) -> Image:
    pixels = np.asarray(Picture.open(PICTURES / name).convert("RGB"))
    pixels.flags.writeable = False
    return Image(pixels, name)


if __name__ == "__main__":
    segmenter = builtin.load("", host_of(runtimes=Runtimes(runtime="onnxruntime", exact=True)))
    outputs = {}
    for name, (picture, prompt) in PROMPTS.items():
        answer = segmenter.decode(segmenter.encode(photograph(picture)), prompt)[0]
        outputs[name] = {"score": round(answer.score, 4), "rle": mask_to_rle(answer.mask)}
    json.dump(outputs, sys.stdout, indent=1)
