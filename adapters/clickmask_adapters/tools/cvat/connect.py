"""Connect a CVAT project with clickmask: the webhook, and a look both ways."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator
from typing import Any
from urllib.parse import urlsplit

from clickmask.errors import ClickmaskError
from clickmask.types import ImageRef
from clickmask_adapters.tools.cvat.client import CvatClient, CvatError
from clickmask_adapters.tools.cvat.labels import JobContent, frame_address, frames
from clickmask_adapters.tools.cvat.routes import PATH, SECRET_VARIABLE

EVENTS = ("update:job", "delete:job", "delete:task")
OURS = "clickmask-"  # how the ids of our models begin
INTERACTOR = "interactor"

SERVER, ANNOTATION, WEBHOOKS = "cvat_server", "cvat_worker_annotation", "cvat_worker_webhooks"
INVOKE_METHOD = "CVAT_NUCLIO_INVOKE_METHOD"
SMOKESCREEN = (
    f"CVAT's smokescreen blocks private addresses: give {SERVER} and {WEBHOOKS} "
    "SMOKESCREEN_OPTS=--allow-address=ADDRESS with clickmask's IP address as they see it (to look: "
    f"docker exec {WEBHOOKS} printenv SMOKESCREEN_OPTS)"
)


def connect(
    client: CvatClient,
    project: int,
    our_url: str,
    secret: str | None,
    read: Callable[[ImageRef], object],
) -> Iterator[str]:
    """Do and check what is needed, one sentence a step; doing it again changes nothing.

    `our_url` is clickmask's address as CVAT's containers see it; `secret` what CVAT signs its
    webhooks with; `read` reads an image, as clickmask does for a label. Raises CvatError, or what
    `read` raises, where a step fails: the sentences before it are then true.
    """
    if not secret:
        raise CvatError(
            f"set {SECRET_VARIABLE} to a secret of your own, here and for the server: without it the server "
            "refuses CVAT's webhooks"
        )
    url = our_url.rstrip("/")
    version = client.version()
    found = client.project(project)
    yield f"CVAT {version} takes the credentials; project {project} is “{found.get('name', '')}”."
    webhook = yield from _mend_webhook(client, found, f"{url}{PATH}", secret)
    yield from _ping(client, webhook, url, secret)
    content = _first_job(client, project)
    yield from _look_from_cvat(client, content)
    yield from _look_at_cvat(client, content, read)


def _mend_webhook(
    client: CvatClient, project: dict[str, Any], url: str, secret: str
) -> Generator[str, None, int]:
    """Gives the number of the webhook. The secret of one that is there is left to `_ping`."""
    wanted: dict[str, Any] = {"target_url": url, "is_active": True, "content_type": "application/json"}
    there = client.webhooks(project["id"])
    ours = sorted((row for row in there if row["target_url"].rstrip("/") == url), key=lambda row: row["id"])
    try:
        if not ours:
            new: dict[str, Any] = {
                "type": "project",
                "project_id": project["id"],
                "enable_ssl": urlsplit(url).scheme == "https",
                "events": list(EVENTS),
                "secret": secret,
            }
            added = client.add_webhook({**new, **wanted}, project.get("organization"))
            yield f"The webhook {url} was added, with its secret."
            return added["id"]
        kept, *surplus = ours
        for webhook in surplus:
            client.remove_webhook(webhook["id"])
            yield f"The webhook {url} was there twice; one was removed."
        wanted["events"] = [*kept["events"], *(event for event in EVENTS if event not in kept["events"])]
        changes = [name for name in wanted if kept[name] != wanted[name]]
        if changes:
            client.change_webhook(kept["id"], wanted)
            yield f"The webhook {url} was mended: {', '.join(changes).replace('_', ' ')}."
        else:
            yield f"The webhook {url} is there already."
        return kept["id"]
    except CvatError as error:
        raise CvatError(
            f"the webhook {url} is missing, so accepted labels never arrive by themselves: {error}",
            error.status,
        ) from error


def _ping(client: CvatClient, webhook: int, url: str, secret: str) -> Iterator[str]:
    """CVAT itself posts, from its server; later deliveries come from its webhook worker.

    It never shows a secret, but a signature that is refused tells that it has another one. One that is
    right is never touched: `secret` may be another than the server's.
    """
    status = client.ping_webhook(webhook).get("status_code")
    if status == 401:
        client.change_webhook(webhook, {"secret": secret})
        yield "The webhook had another secret; it was set anew."
        status = client.ping_webhook(webhook).get("status_code")
    if status == 200:
        yield f"CVAT reaches clickmask at {url}, and clickmask takes its signature."
        return
    advice = {
        401: f"the server that runs there has another {SECRET_VARIABLE}",
        403: f"the server that runs there has no {SECRET_VARIABLE}",
        404: "what answers there is no clickmask of this version",
        407: SMOKESCREEN,
    }.get(
        status or 0,
        f"is clickmask running, and is this its address as CVAT's containers see it? {SMOKESCREEN}",
    )
    raise CvatError(f"CVAT's webhook does not reach clickmask at {url} (status {status}): {advice}")


def _first_job(client: CvatClient, project: int) -> JobContent | None:
    """The job that was updated first."""
    for job, _ in client.jobs({"project_id": project}):
        return client.read_job(job["id"])
    return None


def _look_from_cvat(client: CvatClient, content: JobContent | None) -> Iterator[str]:
    """Have CVAT list our models, and click in the middle of a frame as an annotator would."""
    try:
        listed = client.functions()
    except CvatError as error:
        raise CvatError(
            f"CVAT does not reach clickmask for clicks: start clickmask as its service nuclio, or set "
            f"CVAT_NUCLIO_HOST and CVAT_NUCLIO_PORT for {SERVER} and {ANNOTATION}: {error}",
            error.status,
        ) from error
    ours = [row for row in listed if str(row["id"]).startswith(OURS) and row["kind"] == INTERACTOR]
    if not ours:
        raise CvatError(
            "CVAT lists no model of clickmask: another server answers at its CVAT_NUCLIO_HOST "
            f"(to look: docker exec {SERVER} printenv CVAT_NUCLIO_HOST CVAT_NUCLIO_PORT)"
        )
    yield f"CVAT lists clickmask's interactors: {', '.join(row['id'] for row in ours)}."
    frame = next(frames(content), None) if content else None
    if content and frame:
        height, width = frame.size
        asked = {"task": content.job["task_id"], "job": content.job["id"], "frame": frame.number}
        pointed = {"pos_points": [[width / 2, height / 2]], "neg_points": [], "obj_bbox": []}
        try:
            client.interact(ours[0]["id"], {**asked, **pointed})
        except CvatError as error:
            raise CvatError(
                f"CVAT lists clickmask's models, but a click does not come through: {error}; set "
                f"{INVOKE_METHOD}=dashboard for {SERVER} and {ANNOTATION} (to look: docker exec {SERVER} "
                f"printenv {INVOKE_METHOD})",
                error.status,
            ) from error
        yield f"A click through CVAT on frame {frame.number} of job {content.job['id']} was answered."
    # Nothing in CVAT's API tells what its worker is set to.
    yield (
        f"For whole tasks CVAT's worker needs {INVOKE_METHOD}=dashboard too: docker exec {ANNOTATION} "
        f"printenv {INVOKE_METHOD} shows it. Webhooks leave from {WEBHOOKS}, with its own SMOKESCREEN_OPTS."
    )


def _look_at_cvat(
    client: CvatClient, content: JobContent | None, read: Callable[[ImageRef], object]
) -> Iterator[str]:
    frame = next(frames(content), None) if content else None
    if not content or not frame:
        yield "There is no job with a frame yet, so neither a click nor reading an image could be tried."
        return
    job = content.job["id"]
    try:
        read(client.image_ref(frame_address(job, frame.number)))
    except ClickmaskError as error:
        raise CvatError(f"clickmask cannot read frame {frame.number} of job {job}: {error}") from error
    yield f"clickmask reads frame {frame.number} of job {job}."
