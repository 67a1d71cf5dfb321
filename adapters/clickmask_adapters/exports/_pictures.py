"""The pictures of an export: their file names and their bytes."""

from __future__ import annotations

import re
import unicodedata
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from clickmask.datasets.snapshot import Dataset, Sample
from clickmask.images.decode import upright_file

MAX_NAME_BYTES = 180  # file systems take 255; this leaves room for a prefix
# Windows refuses these names with any ending, and these characters.
_RESERVED = re.compile(r"(con|prn|aux|nul|com[0-9¹²³]|lpt[0-9¹²³])", re.IGNORECASE)
_REFUSED = re.compile(r'[\x00-\x1f\x7f-\x9f<>:"/\\|?*\u2028\u2029\ud800-\udfff]')


class FileName(NamedTuple):
    stem: str
    ending: str  # with its dot, or empty

    @classmethod
    def of(cls, name: str) -> FileName:
        stem, dot, ending = name.rpartition(".")
        return cls(stem, dot + ending) if stem else cls(name, "")

    @property
    def whole(self) -> str:
        return self.stem + self.ending


def file_names(samples: Sequence[Sample]) -> dict[str, str]:
    """File names by digest: the image's basename, after `<digest8>-` if two images share it.

    Names that differ only in case or in Unicode composition are shared: some file systems confuse them.
    """
    return _unique(samples, _folded)


def stems(samples: Sequence[Sample]) -> dict[str, FileName]:
    """File names by digest with unique stems, for formats with another file beside each picture."""
    names = _unique(samples, lambda name: _folded(FileName.of(name).stem))
    return {image: FileName.of(name) for image, name in names.items()}


def safe_basename(name: str) -> str:
    """The last part of `name` as a file name that every system takes as one; may be empty."""
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
    """The file, and whether it is a copy turned upright, as many readers ignore EXIF. Raises Gone."""
    raw = dataset.pictures.read(sample.image)
    upright = upright_file(raw)
    return (raw, False) if upright is None else (upright, True)


def write_pictures(dataset: Dataset, folder: Path, names: Mapping[str, str]) -> None:
    """Write the kept pictures into `folder`, under their names by digest."""
    for sample in dataset.samples:
        if dataset.pictures.holds(sample.image):
            (folder / names[sample.image]).write_bytes(picture(dataset, sample)[0])


def side(sample: Sample) -> str | None:
    """The side as formats name it; "quarantine" for an image that may not be used."""
    return "quarantine" if sample.quarantined else sample.side


def _unique(samples: Sequence[Sample], key: Callable[[str], str]) -> dict[str, str]:
    """File names by digest, no two with the same `key`."""
    plain = {sample.image: safe_basename(sample.name) or f"{sample.image[:8]}.img" for sample in samples}
    shared = _shared(plain, key)
    prefixed = {
        image: f"{image[:8]}-{name}" if key(name) in shared else name for image, name in plain.items()
    }
    # A prefixed name may be another image's own name: the whole digest settles that.
    still = _shared(prefixed, key)
    return {
        image: f"{image}-{plain[image]}" if key(name) in still else name for image, name in prefixed.items()
    }


def _shared(names: Mapping[str, str], key: Callable[[str], str]) -> set[str]:
    counted = Counter(key(name) for name in names.values())
    return {name for name, count in counted.items() if count > 1}


def _folded(name: str) -> str:
    return unicodedata.normalize("NFC", name).casefold()
