from __future__ import annotations

import base64
import json
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, urlsplit

import pytest

from clickmask.errors import ImageRefused
from clickmask_adapters.tools.label_studio.client import Credentials, LabelStudioClient, LabelStudioError

URL = "http://labels.example:8080"
LEGACY = "0123456789abcdef0123456789abcdef01234567"
PERSONAL = "header.payload.signature"
AUTHORIZED = {"Authorization": f"Token {LEGACY}"}


@pytest.fixture
def client() -> LabelStudioClient:
    return LabelStudioClient(f"{URL}/", LEGACY)


def jwt(name: str, seconds: float = 300) -> str:
    claims = base64.urlsafe_b64encode(json.dumps({"iat": 1000, "exp": 1000 + seconds}).encode()).decode()
    return f"{name}.{claims.rstrip('=')}.signature"


# --- images


@pytest.mark.parametrize(
    ("uri", "address"),
    [
        ("/data/upload/1/a b.png", f"{URL}/data/upload/1/a b.png"),
        ("/data/local-files/?d=set/1.png", f"{URL}/data/local-files/?d=set/1.png"),
        ("/tasks/7/presign/?fileuri=czM6", f"{URL}/tasks/7/presign/?fileuri=czM6"),
        (f"{URL}/data/upload/1/a.png", f"{URL}/data/upload/1/a.png"),
        ("HTTP://LABELS.example:8080/data/upload/1/a.png", "HTTP://LABELS.example:8080/data/upload/1/a.png"),
    ],
)
def test_images_of_label_studio_get_its_credentials(
    client: LabelStudioClient, uri: str, address: str
) -> None:
    ref = client.image_ref(7, uri)
    assert ref.uri == address
    assert ref.headers == AUTHORIZED


@pytest.mark.parametrize(
    "uri",
    [
        "https://labels.example:8080/data/upload/1/a.png",  # another scheme
        "http://labels.example/data/upload/1/a.png",  # another port
        "http://labels.example.evil:8080/data/upload/1/a.png",
        "http://labels.example:8080@evil.example/data/upload/1/a.png",
        "https://images.example/a.png",
        f"{URL}/static/logo.png",  # not behind the login
        f"{URL}/api/projects/",  # a task must not choose what the token reads
        f"{URL}/user/logout",
        "data:image/png;base64,AAAA",
    ],
)
def test_nothing_else_gets_them(client: LabelStudioClient, uri: str) -> None:
    ref = client.image_ref(7, uri)
    assert ref.uri == uri
    assert not ref.headers


@pytest.mark.parametrize(
    "uri",
    [
        "/data/upload/../../api/projects/",
        "/data/upload/%2e%2e/%2E%2E/api/projects/",
        "/data/upload/..\\..\\api",
        f"{URL}/data/upload/../../api/projects/",
    ],
)
def test_a_path_that_climbs_is_refused(client: LabelStudioClient, uri: str) -> None:
    with pytest.raises(ImageRefused, match=r"\.\."):
        client.image_ref(7, uri)


@pytest.mark.parametrize("uri", ["s3://bucket/folder/ä 1.png", "gs://b/x.png", "azure-blob://c/x.png"])
def test_storage_addresses_are_resolved_by_label_studio(client: LabelStudioClient, uri: str) -> None:
    ref = client.image_ref(7, uri)
    parts = urlsplit(ref.uri)
    assert f"{parts.scheme}://{parts.netloc}{parts.path}" == f"{URL}/tasks/7/presign/"
    assert base64.urlsafe_b64decode(parse_qs(parts.query)["fileuri"][0]).decode() == uri
    assert ref.headers == AUTHORIZED


@pytest.mark.parametrize(
    "uri",
    ["", "a.png", "//evil.example/a.png", "file:///etc/passwd", "ftp://h/a.png", "http://", "C:\\a.png"],
)
def test_what_is_no_address_of_an_image_is_refused(client: LabelStudioClient, uri: str) -> None:
    with pytest.raises(ImageRefused):
        client.image_ref(7, uri)


def test_the_path_of_a_label_studio_below_a_path_is_not_doubled() -> None:
    client = LabelStudioClient("https://host/labels/", LEGACY)
    for uri in ("/data/upload/1/a.png", "/labels/data/upload/1/a.png"):
        ref = client.image_ref(1, uri)
        assert ref.uri == "https://host/labels/data/upload/1/a.png"
        assert ref.headers == AUTHORIZED


def test_without_a_label_studio_images_elsewhere_still_work() -> None:
    client = LabelStudioClient(None, None)
    assert client.image_ref(1, "https://images.example/a.png").uri == "https://images.example/a.png"
    for uri in ("/data/upload/1/a.png", "s3://b/a.png"):
        with pytest.raises(ImageRefused, match="set LABEL_STUDIO_URL"):
            client.image_ref(1, uri)
    with pytest.raises(ImageRefused, match="set LABEL_STUDIO_API_KEY"):
        LabelStudioClient(URL, None).image_ref(1, "/data/upload/1/a.png")


def test_an_address_that_is_none_is_said_at_once() -> None:
    with pytest.raises(LabelStudioError, match="LABEL_STUDIO_URL"):
        LabelStudioClient("labels.example", LEGACY)


# --- tokens


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


def test_a_personal_token_is_exchanged_once_and_again_before_it_expires() -> None:
    clock, exchanged = Clock(), list[str]()

    def exchange(key: str) -> str:
        exchanged.append(key)
        return jwt(f"access{len(exchanged)}")

    credentials = Credentials(PERSONAL, exchange, clock)
    first = credentials.header()
    assert first == f"Bearer {jwt('access1')}"
    clock.now = 200
    assert credentials.header() == first
    clock.now = 250
    assert credentials.header() == f"Bearer {jwt('access2')}"
    assert exchanged == [PERSONAL, PERSONAL]


def test_threads_that_need_a_token_at_once_exchange_it_once() -> None:
    exchanged, gate = list[str](), threading.Barrier(8)

    def exchange(key: str) -> str:
        exchanged.append(key)
        return jwt("access")

    credentials = Credentials(PERSONAL, exchange, Clock())

    def ask() -> None:
        gate.wait(5)
        credentials.header(refused=f"Bearer {jwt('old')}")

    threads = [threading.Thread(target=ask) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(5)
    assert len(exchanged) == 1


# --- requests, against a server that answers as Label Studio 1.23.2 does


class FakeLabelStudio:
    """Answers what `answer(method, path, authorization)` gives, and remembers what was asked."""

    def __init__(self) -> None:
        self.asked: list[tuple[str, str, str | None]] = []
        self.answer: Callable[[str, str, str | None], tuple[int, object]] = lambda *_: (200, {})
        fake = self

        class Answers(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                self.rfile.read(int(self.headers.get("Content-Length") or 0))
                asked = (self.command, self.path, self.headers.get("Authorization"))
                fake.asked.append(asked)
                status, body = fake.answer(*asked)
                raw = body if isinstance(body, bytes) else json.dumps(body).encode()
                self.send_response(status)
                if status == 302:
                    self.send_header("Location", "http://127.0.0.1:1/elsewhere")
                self.send_header("Content-Length", str(len(raw)))
                self.end_headers()
                self.wfile.write(raw)

            do_POST = do_GET  # noqa: N815

            def log_request(self, *_: object) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Answers)
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True)
        self._thread.start()
        self.url = f"http://127.0.0.1:{self._server.server_port}"

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join(5)


@pytest.fixture
def fake() -> Iterator[FakeLabelStudio]:
    server = FakeLabelStudio()
    yield server
    server.close()


def test_a_legacy_token_is_sent_as_it_is(fake: FakeLabelStudio) -> None:
    fake.answer = lambda *_: (200, {"id": 3})
    assert LabelStudioClient(fake.url, LEGACY).project(3) == {"id": 3}
    assert fake.asked == [("GET", "/api/projects/3/", f"Token {LEGACY}")]


def test_an_access_token_that_is_refused_is_renewed_once(fake: FakeLabelStudio) -> None:
    tokens = [jwt("first"), jwt("second")]

    def answer(method: str, path: str, authorization: str | None) -> tuple[int, object]:
        if path == "/api/token/refresh/":
            return 200, {"access": tokens.pop(0)}
        return (200, {"id": 3}) if authorization == f"Bearer {jwt('second')}" else (401, {"detail": "no"})

    fake.answer = answer
    assert LabelStudioClient(fake.url, PERSONAL).project(3) == {"id": 3}
    assert [path for _, path, _ in fake.asked] == [
        "/api/token/refresh/",
        "/api/projects/3/",
        "/api/token/refresh/",
        "/api/projects/3/",
    ]


@pytest.mark.parametrize("key", [LEGACY, PERSONAL])
def test_a_refused_key_is_said_without_the_key(fake: FakeLabelStudio, key: str) -> None:
    fake.answer = lambda *_: (401, {"detail": f"Invalid token {key}."})
    with pytest.raises(LabelStudioError, match="LABEL_STUDIO_API_KEY") as caught:
        LabelStudioClient(fake.url, key).project(3)
    assert key not in str(caught.value)
    assert caught.value.status == 401
    assert len(fake.asked) == 1


@pytest.mark.parametrize(
    ("status", "body", "said"),
    [
        (404, {"detail": "Not found."}, "404: Not found."),
        (400, {"validation_errors": {"url": ["Enter a valid URL."]}}, "url: Enter a valid URL."),
        (502, b"<html>", "502: Bad Gateway"),
        (302, b"", "redirect"),
        (200, b"<html>", "not Label Studio's API"),
    ],
)
def test_a_refusal_becomes_a_sentence(fake: FakeLabelStudio, status: int, body: object, said: str) -> None:
    fake.answer = lambda *_: (status, body)
    with pytest.raises(LabelStudioError, match=said):
        LabelStudioClient(fake.url, LEGACY).project(3)
    assert len(fake.asked) == 1


def test_a_label_studio_that_is_not_there_is_a_sentence() -> None:
    with pytest.raises(LabelStudioError, match=r"does not answer at http://127\.0\.0\.1:1"):
        LabelStudioClient("http://127.0.0.1:1", LEGACY).project(3)
    with pytest.raises(LabelStudioError, match="set LABEL_STUDIO_URL"):
        LabelStudioClient(None, LEGACY).project(3)
    with pytest.raises(LabelStudioError, match="set LABEL_STUDIO_API_KEY"):
        LabelStudioClient("http://127.0.0.1:1", None).project(3)
