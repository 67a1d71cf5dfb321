"""The folder of an export: how it is replaced as a whole, its pictures, and sentences on what is lost."""

import json
import os
import re
import secrets
import shutil
import unicodedata
from collections import Counter
from collections.abc import Generator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import cast

from clickmask import files
from clickmask.datasets.snapshot import Dataset, Sample
from clickmask.errors import Failed, InvalidRequest
from clickmask.images.decode import upright_file
from clickmask.labels.split import SIDES
from clickmask.masks.rle import rle_area

MANIFEST = ".clickmask-export"  # lists every file of an export, so nothing else is ever removed
NAMES = {"train": "train", "validation": "val", "test": "test"}  # of the sides, in file names
MAX_NAME_BYTES = 180  # file systems take 255; this leaves room for a prefix
# Windows refuses these names with any ending, and these characters.
_RESERVED = re.compile(r"(con|prn|aux|nul|com[0-9¹²³]|lpt[0-9¹²³])", re.IGNORECASE)
_REFUSED = re.compile(r'[\x00-\x1f\x7f-\x9f<>:"/\\|?*\u2028\u2029\ud800-\udfff]')


@contextmanager
def replacing(folder: Path) -> Generator[Path]:
    """An empty folder that replaces `folder` if the block succeeds: readers see the old export or the new.

    Raises as `require_replaceable` does.
    """
    folder = folder.absolute()
    require_replaceable(folder)
    beside = folder.with_name(f".{folder.name}.{secrets.token_hex(4)}")
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        beside.mkdir()
    except OSError as error:
        raise InvalidRequest(f"nothing can be written beside {folder}: {error.strerror}") from error
    try:
        yield beside
        (beside / MANIFEST).write_text(json.dumps(sorted(_files(beside))))
        files.flush_tree(beside)
        require_replaceable(folder)
        try:
            files.replace_folder(beside, folder)
        except OSError as error:
            raise Failed(f"{folder} could not be replaced: {error.strerror}") from error
    finally:
        shutil.rmtree(beside, ignore_errors=True)


def require_replaceable(folder: Path) -> None:
    """Raise InvalidRequest unless `folder` is missing, empty, or an earlier export and nothing else."""
    is_mount = os.path.ismount(folder)  # Path.is_mount is not implemented on Windows before Python 3.12
    if folder.is_symlink() or is_mount or (folder.exists() and not folder.is_dir()):
        raise InvalidRequest(f"{folder} cannot be replaced as a whole: give a new folder in it or beside it")
    if not folder.exists():
        return
    try:
        ours = set(cast("list[str]", json.loads((folder / MANIFEST).read_text()))) | {MANIFEST}
    except (OSError, ValueError):
        ours = set[str]()
    if foreign := sorted(_files(folder) - ours):
        raise InvalidRequest(f"{folder} holds {foreign[0]}, which is no export's: give a new folder")


def _files(folder: Path) -> set[str]:
    """Paths of everything but folders, relative to `folder`."""
    found = (path for path in folder.rglob("*") if path.is_symlink() or not path.is_dir())
    return {path.relative_to(folder).as_posix() for path in found}


def file_names(samples: Sequence[Sample], *, unique_stems: bool = False) -> dict[str, str]:
    """File names by digest: the image's basename, after `<digest8>-` if two images share it.

    A name without a picture's ending gets that of the file's format: other programs pass over it otherwise.

    Names that differ only in case or in Unicode composition are shared: some file systems confuse them. With
    `unique_stems`, so are those that differ only in their endings: another file lies beside each picture.
    """

    def shared(names: Mapping[str, str]) -> set[str]:
        parts = {image: stem(name) if unique_stems else name for image, name in names.items()}
        folded = {image: unicodedata.normalize("NFC", part).casefold() for image, part in parts.items()}
        counted = Counter(folded.values())
        return {image for image, part in folded.items() if counted[part] > 1}

    plain: dict[str, str] = {}
    for sample in samples:
        name = safe_basename(sample.name) or sample.image[:8] + ("" if sample.ending else ".img")
        plain[sample.image] = safe_basename(name + sample.ending)
    few = shared(plain)
    prefixed = {image: f"{image[:8]}-{name}" if image in few else name for image, name in plain.items()}
    # A prefixed name may be another image's own name: the whole digest settles that.
    few = shared(prefixed)
    return {image: f"{image}-{plain[image]}" if image in few else name for image, name in prefixed.items()}


def stem(name: str) -> str:
    """A file name without its ending; `.hidden` has none."""
    return name.rpartition(".")[0] or name


def safe_basename(name: str) -> str:
    """The last part of `name` as a file name that every system takes as one, and shows; may be empty."""
    base = _REFUSED.sub("_", re.split(r"[/\\]", name)[-1]).strip(" ").rstrip(". ")
    if base.startswith(".") or _RESERVED.fullmatch(base.split(".")[0].rstrip()):
        base = "_" + base
    start, dot, ending = base.rpartition(".")
    if not dot or len(ending) > 10:
        start, dot, ending = base, "", ""
    room = MAX_NAME_BYTES - len((dot + ending).encode())
    return start.encode()[:room].decode(errors="ignore") + dot + ending


def write_pictures(dataset: Dataset, folder: Path, names: Mapping[str, str]) -> None:
    """Write the kept pictures under their names by digest, turned upright, as many readers ignore EXIF."""
    for sample in dataset.samples:
        write_picture(dataset, sample, folder / names[sample.image])


def write_picture(dataset: Dataset, sample: Sample, path: Path) -> None:
    """Write the picture if it is kept, turned upright."""
    if dataset.pictures.holds(sample.image):
        raw = dataset.pictures.read(sample.image)
        path.write_bytes(upright_file(raw) or raw)


def side(sample: Sample) -> str | None:
    """The side as formats name it; "quarantine" for an image that may not be used."""
    return "quarantine" if sample.quarantined else sample.side


def described(sample: Sample, name: str) -> dict[str, object]:
    """What JSON says of an image called `name`: its side, as formats name it and, if that is "quarantine", as
    it was assigned, and its original name if that is another one."""
    told: dict[str, object] = {"side": side(sample)}
    told |= {"assigned": sample.side} if sample.quarantined else {}
    return told | ({"name": sample.name} if sample.name != name else {})


def sentences(*counted: tuple[int, str]) -> list[str]:
    """`COUNT sentence` for each count that is not 0."""
    return [f"{count} {sentence}" for count, sentence in counted if count]


def empty_labels(dataset: Dataset) -> tuple[int, str]:
    empty = sum(rle_area(label.rle) == 0 for sample in dataset.samples for label in sample.labels)
    return empty, "labels cover no pixel and are left out"


def without_side(dataset: Dataset, therefore: str) -> tuple[int, str]:
    return sum(not sample.usable for sample in dataset.samples), f"images are on no side{therefore}"


def empty_sides(dataset: Dataset) -> list[str]:
    """A sentence on the sides of which no picture is in the export."""
    empty = [
        side for side in SIDES if not any(dataset.pictures.holds(each.image) for each in dataset.split(side))
    ]
    why = ""
    if "validation" in empty:
        why = "; many trainers, such as Ultralytics, need pictures for validation: label more that look "
        why += "different"
    return [f"no picture is on the side {' or '.join(empty)}{why}"] if empty else []


def picture_losses(dataset: Dataset, names: Mapping[str, str]) -> list[str]:
    """Losses of the pictures in an export with these file names."""
    held = [sample.image for sample in dataset.samples if dataset.pictures.holds(sample.image)]
    renamed = sum(names[sample.image] != sample.name for sample in dataset.samples)
    turned = sum(upright_file(dataset.pictures.read(image)) is not None for image in held)
    return empty_sides(dataset) + sentences(
        (
            renamed,
            "images have another file name: theirs is shared, no picture's, or not one on every system",
        ),
        (len(dataset.samples) - len(held), "images are not kept, and only described"),
        (turned, "images are copies that were turned upright, for many readers do not look at EXIF"),
    )
