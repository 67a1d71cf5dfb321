"""CVAT's REST API, as CVAT 2.73.0 and cvat-sdk 2.80.0 have it."""

import base64
import itertools
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import cast

import orjson

from clickmask.errors import Refused
from clickmask.types import ImageRef
from clickmask_adapters.tools._client import RestClient
from clickmask_adapters.tools._json import Json
from clickmask_adapters.tools.cvat import CvatSettings
from clickmask_adapters.tools.cvat.labels import JobContent

FRAME = re.compile(r"/api/jobs/\d+/data\?type=frame&number=\d+&quality=original")
PAGE_SIZE = 100


class CvatClient(RestClient):
    """One CVAT. `authorization` is the value of that header, sent only to this CVAT's origin."""

    tool = "CVAT"
    url_variable = "CVAT_URL"
    webhook_path = "/api/webhooks/{}"
    credentials = "CVAT_ACCESS_TOKEN (or CVAT_USERNAME and CVAT_PASSWORD)"
    accept = "application/vnd.cvat+json"
    read_timeout_s = 60.0  # CVAT gathers the annotations of a large job while we wait

    def __init__(self, url: str | None, authorization: str | None) -> None:
        super().__init__(url)
        self._authorization = authorization

    def authorization(self, refused: str = "") -> str | None:
        return self._authorization

    def image_ref(self, address: str) -> ImageRef:
        """The upright frame, in original quality, at a path of `labels.frame_address`. Raises Refused for any
        other address: others must not choose what our token reads."""
        if not FRAME.fullmatch(address):
            raise Refused("this is not the address of a frame of a CVAT job")
        if not self.url or not self._authorization:
            raise Refused(
                f"this image is behind CVAT's login: set {self.url_variable} and {self.credentials}"
            )
        return ImageRef(self.url + address, {"Authorization": self._authorization})

    def version(self) -> str:
        """CVAT's version, which also shows that it is there; needs no credentials."""
        return str(self.ask("GET", "/api/server/about", authorized=False).get("version", "unknown"))

    def project(self, project: int) -> Json:
        return self.ask("GET", f"/api/projects/{project}")

    def task(self, task: int) -> Json:
        return self.ask("GET", f"/api/tasks/{task}")

    def job(self, job: int) -> Json:
        return self.ask("GET", f"/api/jobs/{job}")

    def meta(self, job: int) -> Json:
        """The frames of a job."""
        return self.ask("GET", f"/api/jobs/{job}/data/meta")

    def annotations(self, job: int) -> Json:
        return self.ask("GET", f"/api/jobs/{job}/annotations/")

    def read_job(self, job: int) -> JobContent:
        """A job with frames, labels, annotations. It is read first: its date is never newer than theirs."""
        return JobContent(self.job(job), self.meta(job), self.labels({"job_id": job}), self.annotations(job))

    def add_shapes(self, job: int, shapes: Sequence[Json]) -> None:
        """Add `shapes` to the job's annotations: all of them, or none if CVAT refuses one."""
        path = f"/api/jobs/{job}/annotations/"
        self.ask("PATCH", path, params={"action": "create"}, body={"shapes": list(shapes)})

    def labels(self, container: Mapping[str, int]) -> list[Json]:
        """The labels of {"project_id": …}, {"task_id": …} or {"job_id": …}, in CVAT's order."""
        return list(self._pages("/api/labels", container))

    def jobs(self, container: Mapping[str, int], since: str | None = None) -> Iterator[tuple[Json, int]]:
        """The jobs of {"project_id": …} or {"task_id": …}, oldest update first, and how many are left.

        `since` is an updated_date to start from. Each page starts at the last date instead of at a number, so
        a job that is updated meanwhile moves to the end and comes again, and none is skipped.
        """
        ((name, number),) = container.items()
        seen: set[tuple[int, str]] = set()
        page = 1
        while True:
            rules: list[Json] = [{"==": [{"var": name}, number]}]
            if since:
                rules.append({">=": [{"var": "updated_date"}, since]})
            asked = {"filter": orjson.dumps({"and": rules}).decode(), "sort": "updated_date"}
            found = self._page("/api/jobs", asked, page)
            before = len(seen)
            for place, row in enumerate(found["results"], (page - 1) * PAGE_SIZE + 1):
                if (row["id"], row["updated_date"]) not in seen:
                    seen.add((row["id"], row["updated_date"]))
                    since = row["updated_date"]
                    yield row, max(0, found["count"] - place)
            if not found.get("next"):
                return
            # Nothing new: more jobs than a page holds were updated at one time.
            page = 1 if len(seen) > before else page + 1

    def functions(self) -> list[Json]:
        """The models that CVAT finds at CVAT_NUCLIO_HOST, which it asks for this."""
        return self.ask("GET", "/api/lambda/functions")

    def interact(self, function: str, asked: Json) -> Json:
        """A click through CVAT, as its UI sends it."""
        return self.ask("POST", f"/api/lambda/functions/{function}", body={"type": "interact", **asked})

    def webhooks(self, project: int) -> list[Json]:
        return list(self._pages("/api/webhooks", {"project_id": project}))

    def add_webhook(self, webhook: Json, organization: int | None) -> Json:
        """Add a webhook. Without its project's `organization`, CVAT looks in the personal workspace."""
        params = {"org_id": organization} if organization is not None else None
        return self.ask("POST", "/api/webhooks", body=webhook, params=params)

    def ping_webhook(self, webhook: int) -> Json:
        """Have CVAT post to the webhook now; `status_code` and `response` are what it got."""
        return self.ask("POST", f"/api/webhooks/{webhook}/ping", idempotent=True)

    def _pages(self, path: str, asked: Json) -> Iterator[Json]:
        for number in itertools.count(1):
            found = self._page(path, asked, number)
            yield from found["results"]
            if not found.get("next"):  # an address, which is not followed
                return

    def _page(self, path: str, asked: Json, page: int) -> Json:
        found = self.ask("GET", path, params={**asked, "page": page, "page_size": PAGE_SIZE})
        if not isinstance(found, dict) or "results" not in found:
            raise self.not_its_api()
        return cast("Json", found)


def client_of(settings: CvatSettings) -> CvatClient:
    """The CVAT that the settings name; the access token wins over user name and password."""
    authorization = None
    if settings.cvat_access_token:
        authorization = f"Bearer {settings.cvat_access_token.get_secret_value().strip()}"
    elif settings.cvat_username and settings.cvat_password:
        pair = f"{settings.cvat_username}:{settings.cvat_password.get_secret_value()}"
        authorization = "Basic " + base64.b64encode(pair.encode()).decode()
    return CvatClient(settings.cvat_url, authorization)
