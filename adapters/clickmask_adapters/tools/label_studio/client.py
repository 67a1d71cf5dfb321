"""Label Studio's REST API as of 1.23.2, and the addresses of its tasks' images."""

import base64
import itertools
import math
import re
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import nullcontext
from typing import Any
from urllib.parse import unquote, urlencode, urlsplit

import orjson

from clickmask.caches import waiting_elsewhere
from clickmask.errors import Refused
from clickmask.images.fetch import origin_of
from clickmask.types import ImageRef
from clickmask_adapters.tools._client import RestClient
from clickmask_adapters.tools.label_studio import LabelStudioSettings

STORAGE_SCHEMES = frozenset({"s3", "s3s", "gs", "azure-blob"})
IMAGE_ROUTES = re.compile(
    r"/data/(upload|local-files)/|/storage-data/uploaded/|/(tasks|projects)/\d+/(resolve|presign)/"
)
RENEW_BEFORE_S = 60.0  # left unused of an access token's 300 s, for a fetch that waits


class Credentials:
    """The Authorization header of an API key: a legacy token or a personal access token. For any thread.

    `exchange` turns a personal access token, a JWT (two dots), into an access token of 300 s, or raises.
    """

    def __init__(
        self, api_key: str, exchange: Callable[[str], str], clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._key, self._exchange, self._clock = api_key, exchange, clock
        self._lock = threading.Lock()
        self._access, self._renew_at = "", -math.inf

    def header(self, refused: str = "") -> str:
        """The value of Authorization; a new one if `refused` is still the current one."""
        if self._key.count(".") != 2:
            return f"Token {self._key}"
        is_usable = self._clock() < self._renew_at + RENEW_BEFORE_S / 2 and not refused
        with nullcontext() if is_usable else waiting_elsewhere():
            is_mine = self._lock.acquire(blocking=not is_usable)
        if not is_mine:
            return f"Bearer {self._access}"  # another thread renews it: nobody else waits for Label Studio
        try:
            if self._clock() >= self._renew_at or refused == f"Bearer {self._access}":
                self._access = self._exchange(self._key)
                self._renew_at = self._clock() + _lifetime(self._access) - RENEW_BEFORE_S
            return f"Bearer {self._access}"
        finally:
            self._lock.release()


def _lifetime(token: str) -> float:
    """Seconds for which a JWT is valid by its own claims: the clocks need not agree."""
    payload = token.split(".")[1] if token.count(".") == 2 else ""
    try:
        claims = orjson.loads(base64.urlsafe_b64decode(payload + "=" * (-len(payload) % 4)))
        return float(claims["exp"]) - float(claims["iat"])
    except (ValueError, KeyError, TypeError):
        return 300.0  # as Label Studio's tokens have


class LabelStudioClient(RestClient):
    """One Label Studio. Without `url` or `api_key` it still locates images that need neither."""

    tool = "Label Studio"
    url_variable = "LABEL_STUDIO_URL"
    webhook_path = "/api/webhooks/{}/"
    credentials = "LABEL_STUDIO_API_KEY"
    renewal = "to a token of your account page (a legacy token only if your organization still allows them)"

    def __init__(self, url: str | None, api_key: str | None) -> None:
        super().__init__(url)
        self._key = Credentials(api_key.strip(), self._exchange) if api_key else None

    def _exchange(self, refresh_token: str) -> str:
        body = {"refresh": refresh_token}
        answer = self.ask("POST", "/api/token/refresh/", body=body, authorized=False, idempotent=True)
        return str(answer["access"])

    def authorization(self, refused: str = "") -> str | None:
        return self._key.header(refused) if self._key else None

    def image_ref(self, task_id: int, uri: str) -> ImageRef:
        """The image `uri` of a task, with credentials only for Label Studio's own image routes.

        Label Studio serves its own paths and storage URIs (s3:// and the like). Raises Refused for other
        addresses or if no Label Studio is configured, ToolError if a token cannot be exchanged.
        """
        scheme = uri.partition(":")[0].lower()
        if scheme == "data":
            return ImageRef(uri)
        if scheme in STORAGE_SCHEMES and "://" in uri:
            query = urlencode({"fileuri": base64.urlsafe_b64encode(uri.encode()).decode()})
            return self._authorized(f"{self._require_url()}/tasks/{task_id}/presign/?{query}")
        if uri.startswith("/") and not uri.startswith("//"):
            # Below the URL's own path, unless it starts with that already.
            url = self._require_url()
            prefix = urlsplit(url).path
            below = bool(prefix) and uri.startswith(f"{prefix}/")
            return self._own(url.removesuffix(prefix) + uri if below else url + uri)
        if scheme in ("http", "https"):
            try:
                is_own = self.origin is not None and origin_of(uri) == self.origin
            except ValueError as error:
                raise Refused("the task's image has an address without a host") from error
            return self._own(uri) if is_own else ImageRef(uri)
        raise Refused(
            "the task's image is neither a path of Label Studio nor an address (http, https, data, "
            f"{', '.join(sorted(STORAGE_SCHEMES))})"
        )

    def _own(self, uri: str) -> ImageRef:
        """An image at Label Studio's origin. Authors of tasks must not choose what our token reads."""
        path = unquote(urlsplit(uri).path)
        if ".." in path.split("/") or "\\" in path:
            raise Refused("the path of the task's image climbs with '..'")
        own = path.removeprefix(urlsplit(self._require_url()).path)
        return self._authorized(uri) if IMAGE_ROUTES.match(own) else ImageRef(uri)

    def _authorized(self, uri: str) -> ImageRef:
        header = self.authorization()
        if not header:
            raise Refused(f"this image is behind Label Studio's login: set {self.credentials}")
        return ImageRef(uri, {"Authorization": header})

    def _require_url(self) -> str:
        if not self.url:
            raise Refused(
                "this image is inside Label Studio: set LABEL_STUDIO_URL (and LABEL_STUDIO_API_KEY)"
            )
        return self.url

    def version(self) -> str:
        """Label Studio's version, which also shows that it is there; needs no key."""
        return str(self.ask("GET", "/api/version", authorized=False).get("release", "unknown"))

    def project(self, project: int) -> dict[str, Any]:
        return self.ask("GET", f"/api/projects/{project}/")

    def all_tasks(self, project: int, page_size: int = 200) -> Iterator[dict[str, Any]]:
        """Every task that the project has while its pages are read: id and data."""
        seen: set[int] = set()
        for page in itertools.count(1):
            asked = {"project": project, "page_size": page_size, "page": page}
            found = self.ask("GET", "/api/tasks", params=asked)
            tasks = [task for task in found.get("tasks", []) if task["id"] not in seen]
            yield from tasks
            seen |= {task["id"] for task in tasks}
            if not tasks or len(seen) >= found.get("total", 0):  # a page after the last one is a 404
                return

    def annotated_tasks(
        self, project: int, after: int = 0, page_size: int = 50, *, without_annotations: bool = False
    ) -> tuple[list[dict[str, Any]], int]:
        """The next tasks with a number above `after`, by number, and how many there are above `after`.

        Tasks have annotations, drafts, predictions and original data. `without_annotations` omits submitted
        ones.
        """
        filters = [("id", "greater", after)] + [("total_annotations", "equal", 0)] * without_annotations
        items = [
            {"filter": f"filter:tasks:{column}", "operator": operator, "type": "Number", "value": value}
            for column, operator, value in filters
        ]
        query = {"filters": {"conjunction": "and", "items": items}, "ordering": ["tasks:id"]}
        asked = {"project": project, "page": 1, "page_size": page_size, "query": orjson.dumps(query).decode()}
        found = self.ask("GET", "/api/tasks", params={**asked, "fields": "all", "resolve_uri": "false"})
        return found.get("tasks", []), found.get("total", 0)

    def add_prediction(self, prediction: Mapping[str, Any]) -> None:
        """Add a prediction, which may hold arrays."""
        self.ask("POST", "/api/predictions/", body=prediction)

    def backends(self, project: int) -> list[dict[str, Any]]:
        """The project's ML backends; listing makes Label Studio ask each for its health and setup."""
        return self.ask("GET", "/api/ml", params={"project": project})

    def add_backend(self, backend: Mapping[str, Any]) -> dict[str, Any]:
        return self.ask("POST", "/api/ml", body=backend)

    def change_backend(self, backend: int, changes: Mapping[str, Any]) -> dict[str, Any]:
        """`changes` must carry url and project: Label Studio checks the backend with nothing else."""
        return self.ask("PATCH", f"/api/ml/{backend}", body=changes, idempotent=True)

    def remove_backend(self, backend: int) -> None:
        self.ask("DELETE", f"/api/ml/{backend}")

    def webhooks(self, project: int) -> list[dict[str, Any]]:
        return self.ask("GET", "/api/webhooks/", params={"project": project})

    def add_webhook(self, webhook: Mapping[str, Any]) -> dict[str, Any]:
        return self.ask("POST", "/api/webhooks/", body=webhook)


def client_of(settings: LabelStudioSettings) -> LabelStudioClient:
    """The Label Studio that the settings name."""
    key = settings.label_studio_api_key
    return LabelStudioClient(settings.label_studio_url, key.get_secret_value() if key else None)
