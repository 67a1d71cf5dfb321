"""What clickmask asks of CVAT's REST API, as CVAT 2.73.0 and cvat-sdk 2.80.0 have it."""

from __future__ import annotations

import base64
import itertools
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, cast
from urllib.parse import urlsplit

import orjson
import requests

from clickmask.errors import ImageRefused, ToolUnavailable
from clickmask.images.fetch import origin_of
from clickmask.types import ImageRef
from clickmask_adapters.settings import Settings
from clickmask_adapters.tools.cvat.labels import JobContent

URL_VARIABLE = "CVAT_URL"
CREDENTIALS = "CVAT_ACCESS_TOKEN (or CVAT_USERNAME and CVAT_PASSWORD)"
FRAME = re.compile(r"/api/jobs/\d+/data\?type=frame&number=\d+&quality=original")
PAGE_SIZE = 100

_TIMEOUT = (5.0, 60.0)  # connect, read; CVAT gathers the annotations of a large job while we wait
_ABOUT_THIS = frozenset({400, 404, 409, 413, 422})
_MAX_ANSWER = 200  # characters of CVAT's own words in an error

Json = dict[str, Any]


class CvatError(ToolUnavailable):
    """CVAT cannot be reached, or refuses what clickmask asks; `status` is None or its HTTP status."""

    def __init__(self, message: str, status: int | None = None) -> None:
        super().__init__(message)
        self.status = status

    @property
    def is_about_this(self) -> bool:
        """Whether it was refused for what it asked, so that the next request may well succeed."""
        return self.status in _ABOUT_THIS


class CvatClient:
    """Speaks to one CVAT. `authorization` is the value of that header, for this CVAT's origin alone.

    Callable from any thread: every request is a connection of its own.
    """

    def __init__(self, url: str | None, authorization: str | None) -> None:
        self.url = url.rstrip("/") if url else None
        self._authorization = authorization
        try:
            if self.url:
                origin_of(self.url)
        except ValueError as error:
            raise CvatError(f"{URL_VARIABLE} is not an address such as http://host:8080") from error
        if "@" in urlsplit(self.url or "").netloc:  # requests would send it instead of our header
            raise CvatError(f"{URL_VARIABLE} carries a user name or password: set {CREDENTIALS} instead")

    def image_ref(self, address: str) -> ImageRef:
        """Where the frame of `accepted.frame_address` is, upright and in original quality.

        Raises ImageRefused for any other address: what reads with our token is not for others to choose.
        """
        if not FRAME.fullmatch(address):
            raise ImageRefused("this is not the address of a frame of a CVAT job")
        if not self.url or not self._authorization:
            raise ImageRefused(f"this image is behind CVAT's login: set {URL_VARIABLE} and {CREDENTIALS}")
        return ImageRef(self.url + address, {"Authorization": self._authorization})

    def version(self) -> str:
        """The version of CVAT, which also says that it is there; needs no credentials."""
        return str(self._send("GET", "/api/server/about", authorized=False).get("version", "unknown"))

    def project(self, project: int) -> Json:
        return self._send("GET", f"/api/projects/{project}")

    def task(self, task: int) -> Json:
        return self._send("GET", f"/api/tasks/{task}")

    def job(self, job: int) -> Json:
        return self._send("GET", f"/api/jobs/{job}")

    def read_job(self, job: int) -> JobContent:
        """A job with its frames, labels and annotations.

        The job comes first, so that its date is never newer than its annotations: a save in between
        sends an event of its own.
        """
        found = self.job(job)
        return JobContent(
            job=found,
            meta=self._send("GET", f"/api/jobs/{job}/data/meta"),
            labels=list(self._pages("/api/labels", {"job_id": job})),
            annotations=self.annotations(job),
        )

    def annotations(self, job: int) -> Json:
        return self._send("GET", f"/api/jobs/{job}/annotations/")

    def add_shapes(self, job: int, shapes: Sequence[Mapping[str, Any]]) -> None:
        """Beside what is there: all of them, or none if CVAT refuses one."""
        path = f"/api/jobs/{job}/annotations/"
        self._send("PATCH", path, params={"action": "create"}, json={"shapes": list(shapes)})

    def labels(self, container: Mapping[str, int]) -> list[Json]:
        """The labels of {"project_id": …}, {"task_id": …} or {"job_id": …}, in CVAT's order."""
        return list(self._pages("/api/labels", container))

    def jobs(self, container: Mapping[str, int], since: str | None = None) -> Iterator[tuple[Json, int]]:
        """The jobs of {"project_id": …} or {"task_id": …}, oldest update first, and how many are left.

        `since`: those updated then or later, as their updated_date has it. A job that is updated
        while its pages are read moves to the end and comes (again), and none is passed over: each
        page starts at the last date instead of at a number.
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
        """The models that CVAT sees behind CVAT_NUCLIO_HOST: itself asks them for that."""
        return self._send("GET", "/api/lambda/functions")

    def interact(self, function: str, asked: Mapping[str, Any]) -> Json:
        """A click through CVAT, as its UI sends it."""
        return self._send("POST", f"/api/lambda/functions/{function}", json={"type": "interact", **asked})

    def webhooks(self, project: int) -> list[Json]:
        return list(self._pages("/api/webhooks", {"project_id": project}))

    def add_webhook(self, webhook: Mapping[str, Any], organization: int | None) -> Json:
        """`organization` is that of its project, without which CVAT looks in the personal workspace."""
        params = {"org_id": organization} if organization is not None else {}
        return self._send("POST", "/api/webhooks", json=webhook, params=params)

    def change_webhook(self, webhook: int, changes: Mapping[str, Any]) -> Json:
        return self._send("PATCH", f"/api/webhooks/{webhook}", json=changes)

    def remove_webhook(self, webhook: int) -> None:
        self._send("DELETE", f"/api/webhooks/{webhook}")

    def ping_webhook(self, webhook: int) -> Json:
        """Have CVAT post to the webhook now; `status_code` and `response` are what it got."""
        return self._send("POST", f"/api/webhooks/{webhook}/ping")

    def _pages(self, path: str, asked: Mapping[str, Any]) -> Iterator[Json]:
        for number in itertools.count(1):
            found = self._page(path, asked, number)
            yield from found["results"]
            if not found.get("next"):  # an address, of which only that it is there is believed
                return

    def _page(self, path: str, asked: Mapping[str, Any], page: int) -> Json:
        found = self._send("GET", path, params={**asked, "page": page, "page_size": PAGE_SIZE})
        if not isinstance(found, dict) or "results" not in found:
            raise CvatError(f"what answers at {URL_VARIABLE} is not CVAT's API")
        return cast("Json", found)

    def _send(self, method: str, path: str, authorized: bool = True, **request: Any) -> Any:
        """The parsed answer, None where it is empty."""
        if not self.url:
            raise CvatError(f"no CVAT is configured: set {URL_VARIABLE} and {CREDENTIALS}")
        headers = {"Accept": "application/vnd.cvat+json"}
        if authorized:
            if not self._authorization:
                raise CvatError(f"CVAT wants credentials: set {CREDENTIALS}")
            headers["Authorization"] = self._authorization
        with requests.Session() as session:
            session.trust_env = False  # a .netrc would override our header, a proxy would see it
            try:
                answer = session.request(
                    method,
                    self.url + path,
                    headers=headers,
                    timeout=_TIMEOUT,
                    allow_redirects=False,
                    **request,
                )
            except requests.RequestException as error:
                raise CvatError(
                    f"CVAT does not answer at {self.url}: is it running, and is {URL_VARIABLE} right?"
                ) from error
        return _parsed(answer)


def client_of(settings: Settings) -> CvatClient:
    """The CVAT that the settings name; the access token wins over user name and password."""
    authorization = None
    if settings.cvat_access_token:
        authorization = f"Bearer {settings.cvat_access_token.get_secret_value().strip()}"
    elif settings.cvat_username and settings.cvat_password:
        pair = f"{settings.cvat_username}:{settings.cvat_password.get_secret_value()}"
        authorization = "Basic " + base64.b64encode(pair.encode()).decode()
    return CvatClient(settings.cvat_url, authorization)


def _parsed(answer: requests.Response) -> Any:
    """The JSON of a 2xx answer; None if it has no body."""
    if answer.status_code == 401:
        raise CvatError(f"CVAT refuses the credentials: set {CREDENTIALS} anew", 401)
    if answer.is_redirect:
        raise CvatError(
            f"CVAT answers with a redirect: set {URL_VARIABLE} to where it redirects to, https included",
            answer.status_code,
        )
    if not answer.ok:
        raise CvatError(f"CVAT answers {answer.status_code}: {_reason(answer)}", answer.status_code)
    if not answer.content:
        return None
    try:
        return orjson.loads(answer.content)
    except orjson.JSONDecodeError as error:
        raise CvatError(f"what answers at {URL_VARIABLE} is not CVAT's API") from error


def _reason(answer: requests.Response) -> str:
    """CVAT's own words for a refusal: a text, a list of them, or lists of them by field."""
    try:
        said: object = orjson.loads(answer.content)
    except orjson.JSONDecodeError:
        # The models' errors are plain text; others are Django's HTML pages.
        plain = answer.headers.get("Content-Type", "").startswith("text/plain")
        return (answer.text.strip() if plain else answer.reason)[:_MAX_ANSWER] or "no reason given"
    if isinstance(said, dict):
        fields = cast("dict[str, object]", said)
        said = fields.get("detail") or "; ".join(f"{name}: {_text(words)}" for name, words in fields.items())
    return re.sub(r"<[^>]*>", "", _text(said))[:_MAX_ANSWER]


def _text(said: object) -> str:
    return ", ".join(map(str, cast("list[object]", said))) if isinstance(said, list) else str(said)
