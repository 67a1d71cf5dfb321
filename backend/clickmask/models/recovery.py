"""Damaged models: set aside, so that the others are served and the next training can save its own."""

import errno
import hashlib
import os
from contextlib import suppress
from pathlib import Path

from clickmask import files
from clickmask.errors import Failed, NotFound
from clickmask.models.versions import NETWORK, SERVED, VERSIONS, Models, ModelVersion

TRAIN = "`clickmask train` makes a new one"


def mend_models(folder: Path, damaged: files.DamagedFiles) -> None:
    """Set aside what cannot be read in the folder of each project. Instead of a version that is gone, the
    newest that was promoted and is whole is served. Nobody else may use the models meanwhile."""
    for project in sorted(folder.glob("*")):
        if project.is_dir():
            damaged.find_earlier(project)
            try:
                _mend(project, damaged)
            except OSError as error:  # labels are served without it
                damaged.add_trouble(f"models/{project.name} cannot be mended: {error.strerror}")
        elif files.ASIDE not in project.name and not project.name.startswith("."):
            damaged.set_aside(project, "is no folder that can be read")


def _mend(project: Path, damaged: files.DamagedFiles) -> None:
    models, versions, pointer = Models(project), project / VERSIONS, project / SERVED
    if os.path.lexists(versions) and not versions.is_dir():
        damaged.set_aside(versions, "is no folder that can be read")
    for lock in project.glob(".*lock"):
        if not lock.is_file():
            damaged.set_aside(lock, "is no file that can be read")
    version, served, reason = None, "", ""
    try:
        version = models.served()
        if version:
            served = version.id
            expected = version.files[NETWORK]
            if hashlib.sha256(files.read(version.network)).hexdigest() != expected:
                reason = "is not what was saved"
    except NotFound:
        reason = "is not there"
    except (Failed, OSError, LookupError) as error:
        if isinstance(error, PermissionError) or isinstance(error.__cause__, PermissionError):
            raise PermissionError(errno.EACCES, "this user may not read it") from error
        reason = "cannot be read"
    if not reason:
        if version:
            _say_what_is_lost(version, damaged)
        return
    if broken := next((each for each in versions.glob("*") if each.name == served), None):
        damaged.set_aside(broken / NETWORK, reason)
    damaged.set_aside(
        pointer, f"names a model that {reason}" if served else reason, lambda _: _serve_another(models)
    )


def _say_what_is_lost(served: ModelVersion, damaged: files.DamagedFiles) -> None:
    """Say which files of a version are damaged without which it can still be served."""
    for name, expected in served.files.items():
        reason = ""
        try:
            if hashlib.sha256(files.read(served.path / name)).hexdigest() != expected:
                reason = "is not what was saved"
        except FileNotFoundError:
            reason = "is not there"
        except OSError:
            reason = "cannot be read"
        if reason:
            lost = f"models/{served.path.parent.parent.name}/{VERSIONS}/{served.id}/{name} {reason}"
            said = "the model is served, but once another one is, it cannot be served again"
            damaged.add_trouble(f"{lost}: {said}. {TRAIN}")


def _serve_another(models: Models) -> str:
    """Serve what was promoted before. Returns a sentence about it."""
    promoted: list[str] = []
    for version in models.versions():
        if version.provenance.report.get("promoted"):
            with suppress(Failed):
                promoted.append(models.promote(version.id).id)
    if not promoted:
        return f"No model of this project is served now; {TRAIN}"
    return f"{promoted[-1]}, the newest that was ever promoted, is served now"
