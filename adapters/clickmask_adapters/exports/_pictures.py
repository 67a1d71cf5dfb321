"""The pictures of an export: their file names, and their bytes."""

from __future__ import annotations

import re
import unicodedata
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from clickmask.datasets.snapshot import Dataset, Sample
from clickmask.images.decode import upright_file

MAX_NAME_BYTES = 180  # of a name: file systems take 255, and a prefix may be put before it
# Windows refuses these names whatever their ending, and these characters.
_RESERVED = re.compile(r"(con|prn|aux|nul|com[0-9¹²³]|lpt[0-9¹²³])", re.IGNORECASE)
_REFUSED = re.compile(r'[\x00-\x1f\x7f-\x9f<>:"/\\|?*\u2028\u2029\ud800-\udfff]')


def file_names(samples: Sequence[Sample]) -> dict[str, str]:
    """The file name of each image, by digest: its basename, with `<digest8>-` only where two share it.

    Names that differ in case, or in how Unicode composes them, are shared ones: some file systems
    know no difference.
    """
    return _unique(samples, _folded)


def stems(samples: Sequence[Sample]) -> dict[str, tuple[str, str]]:
    """Stem and ending of a file name of each image, the stem being no other image's: for formats that
    have a file of another kind beside each picture."""
    names = _unique(samples, lambda name: _folded(_split(name)[0]))
    return {image: _split(name) for image, name in names.items()}


def _unique(samples: Sequence[Sample], key: Callable[[str], str]) -> dict[str, str]:
    plain = {sample.image: safe_basename(sample.name) or f"{sample.image[:8]}.img" for sample in samples}
    shared = _shared(plain, key)
    prefixed = {
        image: f"{image[:8]}-{name}" if key(name) in shared else name for image, name in plain.items()
    }
    # A prefixed name may be another image's own one: the whole digest settles that for good.
    still = _shared(prefixed, key)
    return {
        image: f"{image}-{plain[image]}" if key(name) in still else name for image, name in prefixed.items()
    }


def _split(name: str) -> tuple[str, str]:
    stem, dot, ending = name.rpartition(".")
    return (stem, dot + ending) if stem else (name, "")


def safe_basename(name: str) -> str:
    """What of `name` is a file name on every system, and never leads out of a folder; may be empty."""
    base = re.split(r"[/\\]", name)[-1]
    base = _REFUSED.sub("_", base).strip(" ").rstrip(". ")
    if _RESERVED.fullmatch(base.split(".")[0].rstrip()):
        base = "_" + base
    stem, dot, ending = base.rpartition(".")
    if not dot or len(ending) > 10:
        stem, dot, ending = base, "", ""
    room = MAX_NAME_BYTES - len((dot + ending).encode())
    return stem.encode()[:room].decode(errors="ignore") + dot + ending


def picture(dataset: Dataset, sample: Sample) -> tuple[bytes, bool]:
    """The file, and whether it is a copy that was turned upright. Raises ImageUnknown if it is not kept.

    Outlines are those of the picture as it is displayed, but many readers do not look at EXIF.
    """
    raw = dataset.pictures.read(sample.image)
    upright = upright_file(raw)
    return (raw, False) if upright is None else (upright, True)


def write_pictures(dataset: Dataset, paths: Mapping[str, Path]) -> None:
    """Those that are kept, by digest, each to its path; folders are made."""
    for sample in dataset.samples:
        if dataset.pictures.holds(sample.image):
            path = paths[sample.image]
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(picture(dataset, sample)[0])


def picture_losses(dataset: Dataset, names: Mapping[str, str]) -> list[str]:
    """What a dataset's pictures lose in an export under these file names, in sentences."""
    held = [sample for sample in dataset.samples if dataset.pictures.holds(sample.image)]
    counted = (
        (
            sum(names[sample.image] != sample.name for sample in dataset.samples),
            "images have another file name, for theirs is shared or not one on every system",
        ),
        (len(dataset.samples) - len(held), "images are not kept, and only described"),
        (
            sum(picture(dataset, sample)[1] for sample in held),
            "images are copies that were turned upright, for many readers do not look at EXIF",
        ),
    )
    return [f"{count} {sentence}" for count, sentence in counted if count]


def _shared(names: Mapping[str, str], key: Callable[[str], str]) -> set[str]:
    counted = Counter(key(name) for name in names.values())
    return {name for name, count in counted.items() if count > 1}


def _folded(name: str) -> str:
    return unicodedata.normalize("NFC", name).casefold()
