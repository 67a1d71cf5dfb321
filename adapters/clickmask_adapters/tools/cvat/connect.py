"""Connection of a CVAT project with clickmask: the webhook, and a check both ways."""

from collections.abc import Callable, Iterator
from urllib.parse import urlsplit

from clickmask.errors import ClickmaskError
from clickmask.types import ImageRef
from clickmask_adapters.tools._client import ToolError
from clickmask_adapters.tools._json import Json, project_number
from clickmask_adapters.tools._webhook import mend_webhook
from clickmask_adapters.tools.cvat import WEBHOOK
from clickmask_adapters.tools.cvat.client import CvatClient
from clickmask_adapters.tools.cvat.labels import frame_address, frames
from clickmask_adapters.tools.cvat.routes import SECRET_VARIABLE

EVENTS = ("update:job", "delete:job", "delete:task")
INTERACTOR = "interactor"
SERVER, ANNOTATION, WEBHOOKS = "cvat_server", "cvat_worker_annotation", "cvat_worker_webhooks"
INVOKE_METHOD = "CVAT_NUCLIO_INVOKE_METHOD"
SMOKESCREEN = (
    f"CVAT's smokescreen blocks private addresses: give {SERVER} and {WEBHOOKS} "
    "SMOKESCREEN_OPTS=--allow-address=ADDRESS with clickmask's IP address as they see it (to look: "
    f"docker exec {WEBHOOKS} printenv SMOKESCREEN_OPTS)"
)
HOST_ADVICE = (
    "CVAT takes no host without a dot or with an underscore: use --our-url with clickmask's IP address, or "
    "with a name such as nuclio.internal or host.docker.internal"
)
PING_ADVICE = {
    401: f"the server that runs there has another {SECRET_VARIABLE}",
    403: f"the server that runs there has no {SECRET_VARIABLE}",
    404: "what answers there is no clickmask of this version",
    407: SMOKESCREEN,
}


def connect(
    client: CvatClient, project: str, our_url: str, secret: str | None, read: Callable[[ImageRef], object]
) -> Iterator[str]:
    """Connect and check, one sentence per step; doing it again changes nothing.

    `our_url` is clickmask's address as CVAT's containers see it. CVAT signs its webhooks with `secret`.
    `read` reads an image as for a label. Raises InvalidRequest if `project` is not a number, and ToolError if
    a step fails.
    """
    number = project_number(project, "CVAT")
    if not secret:
        raise ToolError(
            f"set {SECRET_VARIABLE} to a secret of your own, here and for the server: without it the server "
            "refuses CVAT's webhooks"
        )
    url = our_url.rstrip("/")
    version, found = client.version(), client.project(number)
    yield f"CVAT {version} takes the credentials; project {number} is “{found.get('name', '')}”."
    hook = f"{url}{WEBHOOK}"

    def wanted(present: Json) -> Json:
        events = list(dict.fromkeys((*present.get("events", ()), *EVENTS)))
        return {"is_active": True, "content_type": "application/json", "events": events}

    def add(webhook: Json) -> Json:
        ssl = urlsplit(hook).scheme == "https"
        new = {"type": "project", "project_id": number, "enable_ssl": ssl, "secret": secret}
        return client.add_webhook({**new, **webhook}, found.get("organization"))

    try:
        webhook = yield from mend_webhook(
            client, hook, client.webhooks(number), "target_url", wanted, add, added_note=", with its secret"
        )
    except ToolError as error:
        sentence = f"the webhook {hook} is missing, so accepted labels never arrive by themselves: {error}"
        if error.status == 400 and "target_url" in str(error):
            sentence += f"; {HOST_ADVICE}"
        raise ToolError(sentence, error.status) from error
    # CVAT's server posts now; later deliveries come from its webhook worker.
    ping = client.ping_webhook(webhook)
    if (status := ping.get("status_code")) == 401:
        # CVAT never shows a secret, but refused signatures mean that it has another one. A secret that works
        # is never replaced, because `secret` may differ from the server's.
        client.change_webhook(webhook, {"secret": secret})
        yield "The webhook had another secret; it was set again."
        ping = client.ping_webhook(webhook)
    if (status := ping.get("status_code")) != 200:
        unknown = f"is clickmask running, and is this its address as CVAT's containers see it? {SMOKESCREEN}"
        advice = PING_ADVICE.get(status or 0, unknown)
        said = str(ping.get("response") or "").strip()
        heard = f". It got: {said}" if said and not said.startswith("<") else ""  # no page of HTML
        raise ToolError(
            f"CVAT's webhook does not reach clickmask at {url} (status {status}): {advice}{heard}"
        )
    yield f"CVAT reaches clickmask at {url}, and clickmask takes its signature."
    job = next((client.read_job(row["id"]) for row, _ in client.jobs({"project_id": number})), None)
    frame = next(frames(job), None) if job else None
    place = f"frame {frame.number} of job {job.job['id']}" if job and frame else ""
    try:
        listed = client.functions()
    except ToolError as error:
        raise ToolError(
            f"CVAT does not reach clickmask for clicks: start clickmask as its service nuclio, or set "
            f"CVAT_NUCLIO_HOST and CVAT_NUCLIO_PORT for {SERVER} and {ANNOTATION}: {error}",
            error.status,
        ) from error
    ours = [row for row in listed if str(row["id"]).startswith("clickmask-") and row["kind"] == INTERACTOR]
    if not ours:
        raise ToolError(
            "CVAT lists no model of clickmask: another server answers at its CVAT_NUCLIO_HOST "
            f"(to look: docker exec {SERVER} printenv CVAT_NUCLIO_HOST CVAT_NUCLIO_PORT)"
        )
    yield f"CVAT lists clickmask's interactors: {', '.join(row['id'] for row in ours)}."
    if job and frame:
        # Click in the middle of the frame as an annotator would.
        height, width = frame.size
        asked = {"task": job.job["task_id"], "job": job.job["id"], "frame": frame.number}
        pointed = {"pos_points": [[width / 2, height / 2]], "neg_points": [], "obj_bbox": []}
        try:
            client.interact(ours[0]["id"], {**asked, **pointed})
        except ToolError as error:
            raise ToolError(
                f"CVAT lists clickmask's models, but a click does not come through: {error}; set "
                f"{INVOKE_METHOD}=dashboard for {SERVER} and {ANNOTATION} (to look: docker exec {SERVER} "
                f"printenv {INVOKE_METHOD})",
                error.status,
            ) from error
        yield f"A click through CVAT on {place} was answered."
    # CVAT's API does not tell how its worker is set.
    yield (
        f"For whole tasks CVAT's worker needs {INVOKE_METHOD}=dashboard too: docker exec {ANNOTATION} "
        f"printenv {INVOKE_METHOD} shows it. Webhooks leave from {WEBHOOKS}, with its own SMOKESCREEN_OPTS."
    )
    if not (job and frame):
        yield "There is no job with a frame yet, so neither a click nor reading an image could be tried."
        return
    try:
        read(client.image_ref(frame_address(job.job["id"], frame.number)))
    except ClickmaskError as error:
        raise ToolError(f"clickmask cannot read {place}: {error}") from error
    yield f"clickmask reads {place}."
