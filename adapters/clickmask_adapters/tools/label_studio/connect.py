"""Connect a Label Studio project with clickmask: the backend, the webhook, and a look both ways."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from clickmask.errors import ClickmaskError, InvalidRequest
from clickmask.types import ImageRef
from clickmask_adapters.tools.label_studio import label_config
from clickmask_adapters.tools.label_studio.client import LabelStudioClient, LabelStudioError

CONNECTED = "CO"  # MLBackend.state
UNBLOCK = "start Label Studio with ML_BLOCK_LOCAL_IP=false and SSRF_PROTECTION_ENABLED=false (it needs both)"


def connect(
    client: LabelStudioClient,
    project: int,
    backend_url: str,
    secret: str | None,
    read: Callable[[ImageRef], object],
    username: str = "clickmask",
) -> Iterator[str]:
    """Do and check what is needed, one sentence a step; doing it again changes nothing.

    `backend_url` is clickmask's address as Label Studio sees it; `secret` (and `username`) what
    clickmask wants of its callers, None where it wants nothing; `read` reads an image, as clickmask
    does for a click. Raises LabelStudioError, or what `read` raises, where a step fails: the
    sentences before it are then true, and what follows was not done.
    """
    url = backend_url.rstrip("/")
    version = client.version()
    found = client.project(project)
    yield f"Label Studio {version} takes the API key; project {project} is “{found.get('title', '')}”."
    yield from _mend_backend(client, project, url, username, secret)
    yield from _mend_webhook(client, project, f"{url}/webhook", secret)
    yield from _look_from_label_studio(client, project, url)
    yield from _look_at_label_studio(client, found, read)


def _mend_backend(
    client: LabelStudioClient, project: int, url: str, username: str, secret: str | None
) -> Iterator[str]:
    wanted: dict[str, Any] = {"is_interactive": True, "auth_method": "NONE"}
    if secret:
        wanted |= {"auth_method": "BASIC_AUTH", "basic_auth_user": username}
    # Label Studio never shows a password, so it is sent each time. A change is checked with url and project.
    password = {"basic_auth_pass": secret} if secret else {}
    identity = {"project": project, "url": url}
    ours = _at(url, client.backends(project))
    if not ours:
        try:
            client.add_backend({**identity, **wanted, **password, "title": "clickmask"})
            yield f"The backend {url} was added."
            return
        except LabelStudioError as error:
            ours = _at(url, client.backends(project))
            if not ours:  # refused with 403 it may stand there nevertheless, without its webhook (1.23.2)
                raise _advised(error, f"the backend {url} could not be added") from error
            yield f"The backend {url} was added, though Label Studio refused its webhook."
    kept, *surplus = ours
    for backend in surplus:
        client.remove_backend(backend["id"])
        yield f"The backend {url} was there twice; one was removed."
    changes = {name: value for name, value in wanted.items() if kept.get(name) != value}
    if changes or password:
        try:
            client.change_backend(kept["id"], {**identity, **wanted, **password})
        except LabelStudioError as error:
            raise _advised(error, f"the backend {url} could not be changed") from error
    if changes:
        yield f"The backend {url} was mended: {_listed(changes)}."
    else:
        yield f"The backend {url} is there already" + (", its password was set again." if password else ".")


def _mend_webhook(client: LabelStudioClient, project: int, url: str, secret: str | None) -> Iterator[str]:
    """Basic auth of the backend is not sent with webhooks: they need a header of their own."""
    wanted: dict[str, Any] = {"send_payload": True, "send_for_all_actions": True, "is_active": True}
    authorization = {"Authorization": f"Token {secret}"} if secret else {}
    ours = _at(url, client.webhooks(project))
    try:
        if not ours:
            client.add_webhook({"project": project, "url": url, **wanted, "headers": authorization})
            yield f"The webhook {url} was added{', with its secret' if secret else ''}."
            return
        kept, *surplus = ours
        for webhook in surplus:
            client.remove_webhook(webhook["id"])
            yield f"The webhook {url} was there twice; one was removed."
        headers: dict[str, str] = kept.get("headers") or {}
        others = {name: value for name, value in headers.items() if name.lower() != "authorization"}
        wanted["headers"] = others | authorization
        changes = {name: value for name, value in wanted.items() if kept.get(name) != value}
        if changes:
            client.change_webhook(kept["id"], {"url": url, **wanted})
            yield f"The webhook {url} was mended: {_listed(changes)}."
        else:
            yield f"The webhook {url} is there already{', with its secret' if secret else ''}."
    except LabelStudioError as error:
        said = f"the webhook {url} is missing, so clicks work but accepted labels never arrive"
        raise _advised(error, said) from error


def _look_from_label_studio(client: LabelStudioClient, project: int, url: str) -> Iterator[str]:
    """Listing makes Label Studio ask the backend for its health and setup."""
    backend = _at(url, client.backends(project))[0]
    if backend.get("state") != CONNECTED:
        said = backend.get("error_message") or backend.get("readable_state")
        raise LabelStudioError(
            f"Label Studio does not reach clickmask at {url} ({said}): is clickmask running, and is this its "
            "address as Label Studio sees it?"
        )
    yield f"Label Studio reaches clickmask ({backend.get('model_version')})."


def _look_at_label_studio(
    client: LabelStudioClient, project: dict[str, Any], read: Callable[[ImageRef], object]
) -> Iterator[str]:
    config = label_config.parse(project.get("label_config") or "<View/>")
    if not any(control.smart for control in config.controls):
        yield 'The labeling interface has no smart tool yet: add <KeyPointLabels … smart="true"> for clicks.'
    for task in client.tasks(project["id"]):
        for name in config.images:
            try:
                uri = config.image_uris(name, task["data"])[0]
            except InvalidRequest as error:
                yield f"No image could be tried: {error}."
                return
            try:
                read(client.image_ref(task["id"], uri))
            except ClickmaskError as error:
                raise LabelStudioError(
                    f"clickmask cannot read the image of task {task['id']}: {error}"
                ) from error
            yield f"clickmask reads the image of task {task['id']}."
            return
    yield "There is no task with an image yet, so reading one could not be tried."


def _at(url: str, rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The rows with this address, oldest first."""
    return sorted((row for row in rows if row["url"].rstrip("/") == url), key=lambda row: row["id"])


def _listed(changes: dict[str, Any]) -> str:
    """The names of what changed; the values may be secrets."""
    return ", ".join(name.replace("_", " ") for name in changes)


def _advised(error: LabelStudioError, said: str) -> LabelStudioError:
    """A refusal of ours, with what to do where Label Studio blocks private addresses."""
    blocked = error.status == 403 or any(word in str(error).lower() for word in ("local", "private", "ssrf"))
    return LabelStudioError(f"{said}: {error}" + (f"; {UNBLOCK}" if blocked else ""), error.status)
