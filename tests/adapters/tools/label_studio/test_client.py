from __future__ import annotations

import base64
import json
import threading
from collections.abc import Iterator
from urllib.parse import parse_qs, urlsplit

import pytest

from clickmask.errors import Refused
from clickmask_adapters.tools._client import ToolError
from clickmask_adapters.tools.label_studio.client import Credentials, LabelStudioClient
from support.elsewhere import counted, in_thread
from support.scripted_server import ScriptedServer, scripted_server
from support.waiting import until

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
    with pytest.raises(Refused, match=r"\.\."):
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
    with pytest.raises(Refused):
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
        with pytest.raises(Refused, match="set LABEL_STUDIO_URL"):
            client.image_ref(1, uri)
    with pytest.raises(Refused, match="set LABEL_STUDIO_API_KEY"):
        LabelStudioClient(URL, None).image_ref(1, "/data/upload/1/a.png")


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


def test_threads_that_wait_for_a_token_wait_elsewhere() -> None:
    asked, answered = threading.Event(), threading.Event()

    def exchange(key: str) -> str:
        asked.set()
        assert answered.wait(30)
        return jwt("access")

    credentials = Credentials(PERSONAL, exchange, Clock())
    with counted() as waiting:
        first = threading.Thread(target=credentials.header)
        first.start()
        assert asked.wait(30)
        second = in_thread(credentials.header)
        until(lambda: waiting.now == 1)
        answered.set()
        first.join(30)
        second.join(30)
    assert (waiting.now, waiting.most) == (0, 1)


# --- requests


@pytest.fixture
def server() -> Iterator[ScriptedServer]:
    with scripted_server() as scripted:
        yield scripted


def test_a_legacy_token_is_sent_as_it_is(server: ScriptedServer) -> None:
    server.script((200, {"id": 3}))
    assert LabelStudioClient(server.url, LEGACY).project(3) == {"id": 3}
    assert server.asked == [("GET", "/api/projects/3/", f"Token {LEGACY}")]


def test_an_access_token_that_is_refused_is_renewed_once(server: ScriptedServer) -> None:
    tokens = [jwt("first"), jwt("second")]

    def answer(method: str, path: str, authorization: str | None) -> tuple[int, object]:
        if path == "/api/token/refresh/":
            return 200, {"access": tokens.pop(0)}
        return (200, {"id": 3}) if authorization == f"Bearer {jwt('second')}" else (401, {"detail": "no"})

    server.answer = answer
    assert LabelStudioClient(server.url, PERSONAL).project(3) == {"id": 3}
    assert [path for _, path, _ in server.asked] == [
        "/api/token/refresh/",
        "/api/projects/3/",
        "/api/token/refresh/",
        "/api/projects/3/",
    ]


def test_the_exchange_of_a_token_is_tried_again_while_label_studio_is_busy(server: ScriptedServer) -> None:
    server.script((503, b""), (200, {"access": jwt("access")}), (200, {"id": 3}))
    assert LabelStudioClient(server.url, PERSONAL).project(3) == {"id": 3}


def test_a_refused_personal_token_is_said_without_the_token(server: ScriptedServer) -> None:
    server.script((401, {"detail": f"Invalid token {PERSONAL}."}))
    with pytest.raises(ToolError, match="LABEL_STUDIO_API_KEY") as caught:
        LabelStudioClient(server.url, PERSONAL).project(3)
    assert PERSONAL not in str(caught.value)
    assert (caught.value.status, len(server.asked)) == (401, 1)
