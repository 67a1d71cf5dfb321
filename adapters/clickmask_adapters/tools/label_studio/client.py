"""What clickmask asks of Label Studio's REST API, and where the images of its tasks are.

As Label Studio 1.23.2 has it.
"""

from __future__ import annotations

import base64
import itertools
import re
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any
from urllib.parse import unquote, urlencode, urlsplit

import orjson
import requests

from clickmask.errors import ImageRefused, ToolUnavailable
from clickmask.images.fetch import origin_of
from clickmask.types import ImageRef
from clickmask_adapters.settings import Settings

URL_VARIABLE = "LABEL_STUDIO_URL"
KEY_VARIABLE = "LABEL_STUDIO_API_KEY"
STORAGE_SCHEMES = frozenset({"s3", "s3s", "gs", "azure-blob"})
IMAGE_ROUTES = re.compile(
    r"/data/(upload|local-files)/|/storage-data/uploaded/|/(tasks|projects)/\d+/(resolve|presign)/"
)

_TIMEOUT = (5.0, 30.0)  # connect, read; adding a backend waits for that backend's health and setup
_RENEW_BEFORE = 60.0  # seconds of an access token's 300 that are left unused, for a fetch that waits
_ABOUT_THIS = frozenset({400, 404, 409, 413, 422})
_MAX_ANSWER = 200  # characters of Label Studio's own words in an error


class LabelStudioError(ToolUnavailable):
    """Label Studio cannot be reached, or refuses what clickmask asks; `status` is None or its HTTP status."""

    def __init__(self, message: str, status: int | None = None) -> None:
        super().__init__(message)
        self.status = status

    @property
    def is_about_this(self) -> bool:
        """Whether it was refused for what it asked, so that the next request may well succeed."""
        return self.status in _ABOUT_THIS


class Credentials:
    """The Authorization header of an API key: a legacy token or a personal access token.

    A personal access token is a JWT (two dots) that is refused as it is: it is exchanged for an access
    token of 300 s. Callable from any thread; `exchange` gives the access token and raises on failure.
    """

    def __init__(
        self, api_key: str, exchange: Callable[[str], str], clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._key = api_key
        self._exchange = exchange
        self._clock = clock
        self._lock = threading.Lock()
        self._access = ""
        self._renew_at = 0.0
        self.renewable = api_key.count(".") == 2

    def header(self, refused: str | None = None) -> str:
        """The value of Authorization; a new one if `refused` is still the current one."""
        if not self.renewable:
            return f"Token {self._key}"
        with self._lock:
            if self._clock() >= self._renew_at or refused == f"Bearer {self._access}":
                self._access = self._exchange(self._key)
                self._renew_at = self._clock() + _lifetime(self._access) - _RENEW_BEFORE
            return f"Bearer {self._access}"


class LabelStudioClient:
    """Speaks to one Label Studio. Without `url` or `api_key` it still serves images that need neither.

    Callable from any thread: every request is a connection of its own.
    """

    def __init__(self, url: str | None, api_key: str | None) -> None:
        self.url = url.rstrip("/") if url else None
        self._credentials = Credentials(api_key.strip(), self._exchange) if api_key else None
        try:
            self._origin = origin_of(self.url) if self.url else None
        except ValueError as error:
            raise LabelStudioError(f"{URL_VARIABLE} is not an address such as http://host:8080") from error

    def image_ref(self, task_id: int, uri: str) -> ImageRef:
        """Where the image `uri` of a task is, with credentials only for Label Studio's own routes.

        Paths are Label Studio's; storage URIs (s3:// and the like) are resolved through it. Raises
        ImageRefused for what is none of these or needs a Label Studio that is not configured, and
        LabelStudioError where a personal access token cannot be exchanged.
        """
        scheme = uri.partition(":")[0].lower()
        if scheme == "data":
            return ImageRef(uri)
        if scheme in STORAGE_SCHEMES and "://" in uri:
            query = urlencode({"fileuri": base64.urlsafe_b64encode(uri.encode()).decode()})
            return self._authorized(f"{self._require_url()}/tasks/{task_id}/presign/?{query}")
        if uri.startswith("/") and not uri.startswith("//"):
            return self._own(self._absolute(uri))
        if scheme in ("http", "https"):
            return self._own(uri) if self._is_own(uri) else ImageRef(uri)
        raise ImageRefused(
            "the task's image is neither a path of Label Studio nor an address (http, https, data, "
            f"{', '.join(sorted(STORAGE_SCHEMES))})"
        )

    def _absolute(self, path: str) -> str:
        """A path of a task, below the URL's own path unless it starts with that already."""
        url = self._require_url()
        prefix = urlsplit(url).path
        return url.removesuffix(prefix) + path if prefix and path.startswith(f"{prefix}/") else url + path

    def _is_own(self, uri: str) -> bool:
        try:
            return self._origin is not None and origin_of(uri) == self._origin
        except ValueError as error:
            raise ImageRefused("the task's image has an address without a host") from error

    def _own(self, uri: str) -> ImageRef:
        """An image of Label Studio's origin. Whoever writes tasks must not choose what our token reads."""
        path = unquote(urlsplit(uri).path)
        if ".." in path.split("/") or "\\" in path:
            raise ImageRefused("the path of the task's image climbs with '..'")
        own = path.removeprefix(urlsplit(self._require_url()).path)
        if IMAGE_ROUTES.match(own):
            return self._authorized(uri)
        return ImageRef(uri)

    def _authorized(self, uri: str) -> ImageRef:
        if not self._credentials:
            raise ImageRefused(f"this image is behind Label Studio's login: set {KEY_VARIABLE}")
        return ImageRef(uri, {"Authorization": self._credentials.header()})

    def _require_url(self) -> str:
        if not self.url:
            raise ImageRefused(f"this image is inside Label Studio: set {URL_VARIABLE} (and {KEY_VARIABLE})")
        return self.url

    def version(self) -> str:
        """The version of Label Studio, which also says that it is there; needs no key."""
        return str(self._send("GET", "/api/version", authorized=False).get("release", "unknown"))

    def project(self, project: int) -> dict[str, Any]:
        return self._send("GET", f"/api/projects/{project}/")

    def tasks(self, project: int, count: int = 1) -> list[dict[str, Any]]:
        """The first `count` tasks: their id and data."""
        found = self._send("GET", "/api/tasks", params={"project": project, "page_size": count, "page": 1})
        return found.get("tasks", [])

    def all_tasks(self, project: int, page_size: int = 200) -> Iterator[dict[str, Any]]:
        """Every task that the project has while its pages are read: id and data."""
        seen: set[int] = set()
        for page in itertools.count(1):
            found = self._send(
                "GET", "/api/tasks", params={"project": project, "page_size": page_size, "page": page}
            )
            tasks = [task for task in found.get("tasks", []) if task["id"] not in seen]
            yield from tasks
            seen |= {task["id"] for task in tasks}
            if not tasks or len(seen) >= found.get("total", 0):  # a page behind the last one is a 404
                return

    def annotated_tasks(
        self, project: int, after: int = 0, page_size: int = 50, *, without_annotations: bool = False
    ) -> tuple[list[dict[str, Any]], int]:
        """The next tasks with a number above `after`, by number, each with its annotations, drafts and
        predictions, and its data as it was imported; and how many there are above `after`.

        `without_annotations`: those alone that nobody has submitted; some of them were skipped.
        """
        items = [_filter("id", "greater", after)]
        if without_annotations:
            items.append(_filter("total_annotations", "equal", 0))
        query = {"filters": {"conjunction": "and", "items": items}, "ordering": ["tasks:id"]}
        parameters = {
            "project": project,
            "fields": "all",
            "resolve_uri": "false",
            "page": 1,
            "page_size": page_size,
            "query": orjson.dumps(query).decode(),
        }
        found = self._send("GET", "/api/tasks", params=parameters)
        return found.get("tasks", []), found.get("total", 0)

    def add_prediction(self, prediction: Mapping[str, Any]) -> None:
        """`prediction` may hold arrays."""
        body = orjson.dumps(prediction, option=orjson.OPT_SERIALIZE_NUMPY)
        self._send("POST", "/api/predictions/", data=body)

    def change_project(self, project: int, changes: Mapping[str, Any]) -> None:
        self._send("PATCH", f"/api/projects/{project}/", json=changes)

    def get(self, path: str) -> Any:
        """What a path of the API answers; LabelStudioError with status 404 where there is nothing."""
        return self._send("GET", path)

    def backends(self, project: int) -> list[dict[str, Any]]:
        """The project's ML backends; listing makes Label Studio ask each for its health and setup."""
        return self._send("GET", "/api/ml", params={"project": project})

    def add_backend(self, backend: Mapping[str, Any]) -> dict[str, Any]:
        return self._send("POST", "/api/ml", json=backend)

    def change_backend(self, backend: int, changes: Mapping[str, Any]) -> dict[str, Any]:
        """`changes` must carry url and project: Label Studio checks the backend with them alone."""
        return self._send("PATCH", f"/api/ml/{backend}", json=changes)

    def remove_backend(self, backend: int) -> None:
        self._send("DELETE", f"/api/ml/{backend}")

    def webhooks(self, project: int) -> list[dict[str, Any]]:
        return self._send("GET", "/api/webhooks/", params={"project": project})

    def add_webhook(self, webhook: Mapping[str, Any]) -> dict[str, Any]:
        return self._send("POST", "/api/webhooks/", json=webhook)

    def change_webhook(self, webhook: int, changes: Mapping[str, Any]) -> dict[str, Any]:
        return self._send("PATCH", f"/api/webhooks/{webhook}/", json=changes)

    def remove_webhook(self, webhook: int) -> None:
        self._send("DELETE", f"/api/webhooks/{webhook}/")

    def _exchange(self, refresh_token: str) -> str:
        """An access token for a personal access token."""
        answer = self._send("POST", "/api/token/refresh/", json={"refresh": refresh_token}, authorized=False)
        return str(answer["access"])

    def _send(self, method: str, path: str, authorized: bool = True, **request: Any) -> Any:
        """The parsed answer, None where it is empty; a refused access token is renewed once."""
        if not self.url:
            raise LabelStudioError(f"no Label Studio is configured: set {URL_VARIABLE} and {KEY_VARIABLE}")
        if not authorized:
            return _parsed(self._ask(method, path, {}, request))
        if not self._credentials:
            raise LabelStudioError(f"Label Studio wants an API key: set {KEY_VARIABLE}")
        header = self._credentials.header()
        answer = self._ask(method, path, {"Authorization": header}, request)
        if answer.status_code == 401 and self._credentials.renewable:
            header = self._credentials.header(refused=header)
            answer = self._ask(method, path, {"Authorization": header}, request)
        return _parsed(answer)

    def _ask(
        self, method: str, path: str, headers: dict[str, str], request: dict[str, Any]
    ) -> requests.Response:
        if "data" in request:
            headers = headers | {"Content-Type": "application/json"}
        with requests.Session() as session:
            session.trust_env = False  # a .netrc would override our header, a proxy would see it
            try:
                return session.request(
                    method,
                    f"{self.url}{path}",
                    headers=headers,
                    timeout=_TIMEOUT,
                    allow_redirects=False,
                    **request,
                )
            except requests.RequestException as error:
                raise LabelStudioError(
                    f"Label Studio does not answer at {self.url}: is it running, and is {URL_VARIABLE} right?"
                ) from error


def client_of(settings: Settings) -> LabelStudioClient:
    """The Label Studio that the settings name."""
    key = settings.label_studio_api_key
    return LabelStudioClient(settings.label_studio_url, key.get_secret_value() if key else None)


def _filter(column: str, operator: str, value: int) -> dict[str, Any]:
    return {"filter": f"filter:tasks:{column}", "operator": operator, "type": "Number", "value": value}


def _parsed(answer: requests.Response) -> Any:
    """The JSON of a 2xx answer; None if it has no body."""
    if answer.status_code == 401:
        raise LabelStudioError(
            f"Label Studio refuses the API key: set {KEY_VARIABLE} to a token of your account page (a legacy "
            "token only if your organization still allows them)",
            401,
        )
    if answer.is_redirect:
        raise LabelStudioError(
            f"Label Studio answers with a redirect: set {URL_VARIABLE} to the address it redirects to, "
            "https included",
            answer.status_code,
        )
    if not answer.ok:
        raise LabelStudioError(
            f"Label Studio answers {answer.status_code}: {_reason(answer)}", answer.status_code
        )
    if not answer.content:
        return None
    try:
        return orjson.loads(answer.content)
    except orjson.JSONDecodeError as error:
        raise LabelStudioError(f"what answers at {URL_VARIABLE} is not Label Studio's API") from error


def _reason(answer: requests.Response) -> str:
    """Label Studio's own words for a refusal."""
    try:
        said = orjson.loads(answer.content)
    except orjson.JSONDecodeError:
        return answer.reason or "no reason given"
    if not isinstance(said, dict):
        return str(said)[:_MAX_ANSWER]  # pyright: ignore[reportUnknownArgumentType]
    found: dict[str, Any] = said  # pyright: ignore[reportUnknownVariableType]
    errors: dict[str, Any] = found.get("validation_errors") or {}
    words = "; ".join(f"{field}: {', '.join(map(str, lines))}" for field, lines in errors.items())
    return re.sub(r"<[^>]*>", "", words or str(found.get("detail", "no reason given")))[:_MAX_ANSWER]


def _lifetime(token: str) -> float:
    """For how many seconds a JWT is valid, by its own words: the clocks need not agree."""
    payload = token.split(".")[1] if token.count(".") == 2 else ""
    try:
        claims = orjson.loads(base64.urlsafe_b64decode(payload + "=" * (-len(payload) % 4)))
        return float(claims["exp"]) - float(claims["iat"])
    except (ValueError, KeyError, TypeError):
        return 300.0
