"""Connection of a Label Studio project with clickmask: backend, webhook, and a check both ways."""

from collections.abc import Callable, Iterator
from typing import Any

from clickmask.errors import ClickmaskError, InvalidRequest
from clickmask.types import ImageRef
from clickmask_adapters.tools._client import ToolError
from clickmask_adapters.tools._json import Json, project_number
from clickmask_adapters.tools._webhook import changed, keep_oldest, mend_webhook
from clickmask_adapters.tools.label_studio import label_config
from clickmask_adapters.tools.label_studio.client import LabelStudioClient

UNBLOCK = "start Label Studio with ML_BLOCK_LOCAL_IP=false and SSRF_PROTECTION_ENABLED=false (it needs both)"


def connect(
    client: LabelStudioClient,
    project: str,
    our_url: str,
    secret: str | None,
    read: Callable[[ImageRef], object],
    username: str = "clickmask",
) -> Iterator[str]:
    """Connect and check, one sentence per step; doing it again changes nothing.

    `our_url` is clickmask's address as Label Studio sees it. Callers of clickmask need `username` and
    `secret`, unless that is None. `read` reads an image as for a click. Raises InvalidRequest if `project` is
    not a number, and ToolError if a step fails; later steps are then not done.
    """
    number = project_number(project, "Label Studio")
    url = our_url.rstrip("/")
    version = client.version()
    found = client.project(number)
    yield f"Label Studio {version} takes the API key; project {number} is “{found.get('title', '')}”."
    yield from _mend_backend(client, number, url, username, secret)
    yield from _mend_webhook(client, number, f"{url}/webhook", secret)
    backend = next(row for row in client.backends(number) if row["url"].rstrip("/") == url)
    if backend.get("state") != "CO":  # connected
        said = backend.get("error_message") or backend.get("readable_state")
        raise ToolError(
            f"Label Studio does not reach clickmask at {url} ({said}): is clickmask running, and is this its "
            "address as Label Studio sees it?"
        )
    yield f"Label Studio reaches clickmask ({backend.get('model_version')})."
    config = label_config.config_of(found)
    if not any(control.smart for control in config.controls):
        yield (
            'The labeling interface has no smart tool yet: for clicks, add <KeyPoint … smart="true"/> beside '
            '<Labels>, or <KeyPointLabels … smart="true">.'
        )
    task = next(client.all_tasks(number, page_size=1), None)
    config = config.of_task(task["data"]) if task else config
    name = next(iter(config.images), None)
    if name is None or task is None:
        yield "There is no task with an image yet, so reading one could not be tried."
        return
    try:
        uri = config.image_uris(name, task["data"])[0]
    except InvalidRequest as error:
        yield f"No image could be tried: {error}."
        return
    try:
        read(client.image_ref(task["id"], uri))
    except ClickmaskError as error:
        raise ToolError(f"clickmask cannot read the image of task {task['id']}: {error}") from error
    yield f"clickmask reads the image of task {task['id']}."


def _mend_backend(
    client: LabelStudioClient, project: int, url: str, username: str, secret: str | None
) -> Iterator[str]:
    wanted: dict[str, Any] = {"is_interactive": True, "auth_method": "NONE"}
    if secret:
        wanted |= {"auth_method": "BASIC_AUTH", "basic_auth_user": username}
    # Label Studio never shows a password, so it is sent each time. It checks changes with url and project.
    password = {"basic_auth_pass": secret} if secret else {}
    full = {"project": project, "url": url, **wanted, **password}
    kept = yield from keep_oldest("backend", url, client.backends(project), "url", client.remove_backend)
    if kept is None:
        try:
            client.add_backend({**full, "title": "clickmask"})
            yield f"The backend {url} was added."
            return
        except ToolError as error:
            rows = client.backends(project)
            kept = yield from keep_oldest("backend", url, rows, "url", client.remove_backend)
            if kept is None:  # despite a 403 it may have been added, without its webhook (1.23.2)
                raise _advised(error, f"the backend {url} could not be added") from error
            yield f"The backend {url} was added, though Label Studio refused its webhook."
    mended = changed(kept, wanted)
    if mended or password:
        try:
            client.change_backend(kept["id"], full)
        except ToolError as error:
            raise _advised(error, f"the backend {url} could not be changed") from error
    if mended:
        yield f"The backend {url} was mended: {mended}."
    else:
        yield f"The backend {url} is there already" + (", its password was set again." if password else ".")


def _mend_webhook(client: LabelStudioClient, project: int, url: str, secret: str | None) -> Iterator[str]:
    """Give the webhook its own Authorization: Label Studio sends no basic auth with webhooks."""
    authorization = {"Authorization": f"Token {secret}"} if secret else {}

    def wanted(row: Json) -> dict[str, Any]:
        headers: dict[str, str] = row.get("headers") or {}
        others = {name: value for name, value in headers.items() if name.lower() != "authorization"}
        own = {"send_payload": True, "send_for_all_actions": True, "is_active": True}
        return {**own, "headers": others | authorization}

    def add(webhook: Json) -> Json:
        return client.add_webhook({"project": project, **webhook})

    note = ", with its secret" if secret else ""
    try:
        present = client.webhooks(project)
        yield from mend_webhook(client, url, present, "url", wanted, add, added_note=note, kept_note=note)
    except ToolError as error:
        said = f"the webhook {url} is missing, so clicks work but accepted labels never arrive"
        raise _advised(error, said) from error


def _advised(error: ToolError, said: str) -> ToolError:
    """The error, with advice if Label Studio blocks private addresses."""
    blocked = error.status == 403 or any(word in str(error).lower() for word in ("local", "private", "ssrf"))
    return ToolError(f"{said}: {error}" + (f"; {UNBLOCK}" if blocked else ""), error.status)
