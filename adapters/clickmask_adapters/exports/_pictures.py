"""The pictures of an export: their file names, and their bytes."""

from __future__ import annotations

import re
import unicodedata
from collections import Counter
from collections.abc import Mapping, Sequence

from clickmask.datasets import Dataset, Sample
from clickmask.images import upright_file

MOST_BYTES = 180  # of a name: file systems take 255, and a prefix may be put before it
# Windows refuses these names whatever their ending, and these characters.
_RESERVED = re.compile(r"(con|prn|aux|nul|com[0-9¹²³]|lpt[0-9¹²³])", re.IGNORECASE)
_REFUSED = re.compile(r'[\x00-\x1f\x7f-\x9f<>:"/\\|?*\u2028\u2029\ud800-\udfff]')


def file_names(samples: Sequence[Sample]) -> dict[str, str]:
    """The file name of each image, by digest: its basename, with `<digest8>-` only where two share it.

    Names that differ in case, or in how Unicode composes them, are shared ones: some file systems
    know no difference.
    """
    plain = {sample.image: safe_basename(sample.name) or f"{sample.image[:8]}.img" for sample in samples}
    shared = _shared(plain)
    prefixed = {
        image: f"{image[:8]}-{name}" if _folded(name) in shared else name for image, name in plain.items()
    }
    # A prefixed name may be another image's own one: the whole digest settles that for good.
    still = _shared(prefixed)
    return {
        image: f"{image}-{plain[image]}" if _folded(name) in still else name
        for image, name in prefixed.items()
    }


def safe_basename(name: str) -> str:
    """What of `name` is a file name on every system, and never leads out of a folder; may be empty."""
    base = re.split(r"[/\\]", name)[-1]
    base = _REFUSED.sub("_", base).strip(" ").rstrip(". ")
    if _RESERVED.fullmatch(base.split(".")[0].rstrip()):
        base = "_" + base
    stem, dot, ending = base.rpartition(".")
    if not dot or len(ending) > 10:
        stem, dot, ending = base, "", ""
    room = MOST_BYTES - len((dot + ending).encode())
    return stem.encode()[:room].decode(errors="ignore") + dot + ending


def picture(dataset: Dataset, sample: Sample) -> tuple[bytes, bool]:
    """The file, and whether it is a copy that was turned upright. Raises ImageUnknown if it is not kept.

    Outlines are those of the picture as it is displayed, but many readers do not look at EXIF.
    """
    raw = dataset.pictures.read(sample.image)
    upright = upright_file(raw)
    return (raw, False) if upright is None else (upright, True)


def missing_pictures(dataset: Dataset) -> list[Sample]:
    return [sample for sample in dataset.samples if not dataset.pictures.holds(sample.image)]


def _shared(names: Mapping[str, str]) -> set[str]:
    counted = Counter(_folded(name) for name in names.values())
    return {name for name, count in counted.items() if count > 1}


def _folded(name: str) -> str:
    return unicodedata.normalize("NFC", name).casefold()
