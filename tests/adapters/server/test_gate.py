from __future__ import annotations

import asyncio
import base64
from collections.abc import AsyncIterator, Iterator
from typing import Any

import pytest
from fastapi import FastAPI, Request
from fastapi.testclient import TestClient
from starlette.types import Message, Receive, Scope, Send

from clickmask_adapters.server import gate, places
from clickmask_adapters.server.failures import RecentFailures
from clickmask_adapters.server.gate import Gate
from clickmask_adapters.server.places import Places
from clickmask_adapters.settings import Settings

SECRET = "sécret-with-ümlauts"
LOOPBACK, LAN, STRANGER = "127.0.0.1", "172.20.0.5", "203.0.113.9"
JSON = {"Content-Type": "application/json"}
# What the tools of this house open; test_app.py asks them.
OPEN_PATHS = {"/health", "/setup", "/predict", "/versions", "/webhook", "/api/", "/webhooks/", "/"}
EVERY_PATH = [
    "/",
    "/status",
    "/v1/status",
    "/v1/proposals",
    "/health",
    "/setup",
    "/predict",
    "/webhook",
    "/api/x",
]


def client(
    address: str = LOOPBACK,
    host: str = "127.0.0.1:9090",
    recent: RecentFailures | None = None,
    **settings: Any,
) -> TestClient:
    inner = FastAPI()

    @inner.api_route("/{path:path}", methods=["GET", "POST", "DELETE"])
    async def echo(request: Request) -> dict[str, int]:
        return {"bytes": len(await request.body())}

    gate = Gate(inner, Settings(**settings), recent or RecentFailures(), open_paths=OPEN_PATHS)
    # As a header: Starlette's client before 1.9 does not read an address of IPv6.
    return TestClient(gate, headers={"Host": host}, client=(address, 5000))


def basic(user: str, password: str) -> dict[str, str]:
    return {"Authorization": "Basic " + base64.b64encode(f"{user}:{password}".encode()).decode()}


@pytest.fixture(autouse=True)
def no_settings_of_this_machine(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    for name in ("CLICKMASK_TOKEN", "CLICKMASK_TRUSTED_NETWORKS", "CLICKMASK_ALLOWED_HOSTS"):
        monkeypatch.delenv(name, raising=False)
    yield


@pytest.mark.parametrize("path", EVERY_PATH)
def test_without_a_secret_this_machine_is_served_and_nobody_else(path: str) -> None:
    assert client(LOOPBACK).get(path).status_code == 200
    assert client("::1", host="[::1]:9090").get(path).status_code == 200
    assert client("::ffff:127.0.0.1").get(path).status_code == 200
    for other in (LAN, STRANGER, "not an address"):
        refused = client(other).get(path)
        assert refused.status_code == 403
        assert "CLICKMASK_TOKEN" in refused.json()["error"]


@pytest.mark.parametrize("path", EVERY_PATH)
def test_a_trusted_network_reaches_the_tools_endpoints_and_no_others(path: str) -> None:
    trusted = {"trusted_networks": "10.0.0.0/8, 172.20.0.0/16", "allowed_hosts": "clickmask"}
    for_tools = not path.startswith("/v1") and path not in {"/", "/status"}
    for secret in ({}, {"token": SECRET}):
        answer = client(LAN, "clickmask:9090", **trusted, **secret).get(path)
        assert answer.status_code == (200 if for_tools else 401 if secret else 403)
        stranger = client(STRANGER, "clickmask:9090", **trusted, **secret).get(path)
        assert stranger.status_code == (200 if secret and path == "/health" else 401 if secret else 403)


def test_a_trusted_network_may_post_to_the_root_but_not_see_the_page() -> None:
    lan = client(LAN, trusted_networks="172.20.0.0/16")
    assert lan.post("/", json={}).status_code == 200
    for method in ("GET", "HEAD", "PUT"):
        assert lan.request(method, "/").status_code == 403
    assert client(STRANGER, trusted_networks="172.20.0.0/16").post("/", json={}).status_code == 403


def test_health_is_for_everybody_if_there_is_a_secret() -> None:
    """Load balancers send none. Without a secret, others are not served at all."""
    for address, host in ((LOOPBACK, "127.0.0.1"), (STRANGER, "clickmask"), (LAN, "gpu-box:9090")):
        guarded = client(address, host, token=SECRET)
        assert guarded.get("/health", headers={"X-Forwarded-For": "198.51.100.7"}).status_code == 200
        assert guarded.head("/health").status_code == 405  # of the routes here
        for method, path in (
            ("POST", "/health"),
            ("DELETE", "/health"),
            ("GET", "/health/"),
            ("GET", "/healthy"),
        ):
            assert guarded.request(method, path).status_code == 401
    assert client(STRANGER).get("/health").status_code == 403


@pytest.mark.parametrize("path", sorted({*EVERY_PATH} - {"/health"}))
@pytest.mark.parametrize("address", [LOOPBACK, STRANGER])
def test_with_a_secret_every_request_must_carry_it(path: str, address: str) -> None:
    guarded = client(address, token=SECRET)
    refused = guarded.get(path)
    assert refused.status_code == 401
    assert refused.headers["www-authenticate"].startswith("Basic")
    encoded = SECRET.encode()
    assert guarded.get(path, headers={"Authorization": b"Token " + encoded}).status_code == 200
    assert guarded.get(path, headers={"Authorization": b"Bearer " + encoded}).status_code == 200
    assert guarded.get(path, headers=basic("clickmask", SECRET)).status_code == 200


@pytest.mark.parametrize(
    "headers",
    [
        {"Authorization": "Token wrong"},
        {"Authorization": "Token "},
        {"Authorization": "Token"},
        {"Authorization": ""},
        {"Authorization": "Digest " + SECRET.encode("ascii", "ignore").decode()},
        {"Authorization": "Basic not base64!"},
        basic("clickmask", "wrong"),
        basic("somebody", SECRET),
        basic("", ""),
        {"Authorization": b"Token \xff\xfe"},
    ],
    ids=str,
)
def test_a_wrong_secret_is_no_secret(headers: dict[str, Any]) -> None:
    assert client(token=SECRET).get("/v1/status", headers=headers).status_code == 401


def test_a_secret_makes_a_host_name_known() -> None:
    guarded = client(STRANGER, host="gpu-box:9090", token="secret")
    assert guarded.get("/", headers={"Authorization": "Token secret"}).status_code == 200


@pytest.mark.parametrize(
    "host",
    [
        *("evil.example", "localhost.evil.example:9090", "127.0.0.1.evil.example", ""),
        *(
            "[::1].evil.example",
            "[::1]evil",
            "[::1]:9090.evil.example",
            "127.0.0.1:9090@evil",
            "[evil.example]",
        ),
        *("localhost:evil.example", "[::1", "::1]", "[]", "[::1]:90:90"),
    ],
)
def test_a_name_that_was_rebound_to_this_machine_is_refused(host: str) -> None:
    for method in ("GET", "POST"):
        refused = client().request(method, "/v1/status", headers={"Host": host})
        assert refused.status_code == 421
        assert "CLICKMASK_ALLOWED_HOSTS" in refused.json()["error"]


@pytest.mark.parametrize(
    "host", ["localhost", "LOCALHOST:9090", "127.0.0.1", "[::1]:9090", "192.168.1.5:80", "box."]
)
def test_loopback_names_addresses_and_listed_names_are_served(host: str) -> None:
    assert client(allowed_hosts="box").get("/", headers={"Host": host}).status_code == 200


def test_behind_a_proxy_a_secret_is_needed() -> None:
    for header in ("X-Forwarded-For", "Forwarded", "X-Real-IP"):
        assert client().get("/", headers={header: "127.0.0.1"}).status_code == 403


@pytest.mark.parametrize("method", ["POST", "DELETE"])
@pytest.mark.parametrize(
    "headers",
    [
        {"Origin": "https://evil.example"},
        {"Origin": "null"},
        {"Origin": ""},
        {"Origin": "http://127.0.0.1:8080"},
        {"Origin": "http://127.0.0.1:9090", "Sec-Fetch-Site": "cross-site"},
        {"Sec-Fetch-Site": "same-site"},
    ],
    ids=str,
)
def test_a_foreign_page_cannot_post(method: str, headers: dict[str, str]) -> None:
    for secret in ({}, {"Authorization": "Token secret"}):
        guarded = client(token="secret") if secret else client()
        assert guarded.request(method, "/v1/proposals", headers=headers | JSON | secret).status_code == 403


def test_our_own_page_and_programs_can_post() -> None:
    own = {"Origin": "http://127.0.0.1:9090", "Sec-Fetch-Site": "same-origin"}
    assert client().post("/v1/proposals", content=b"{}", headers=JSON | own).json() == {"bytes": 2}
    assert client().post("/v1/proposals", content=b"{}", headers=JSON).json() == {"bytes": 2}
    assert client().post("/setup").status_code == 200


@pytest.mark.parametrize(
    "kind", ["text/plain", "multipart/form-data", "application/x-www-form-urlencoded", ""]
)
def test_only_json_is_taken(kind: str) -> None:
    refused = client().post("/predict", content=b"{}", headers={"Content-Type": kind})
    assert refused.status_code == 415
    assert (
        client().post("/predict", content=b"{}", headers={"Content-Type": "application/json; x=y"}).is_success
    )


def test_a_body_over_the_cap_is_refused_announced_or_not() -> None:
    small = client(max_body_bytes=1000)
    assert small.post("/predict", content=b" " * 1000, headers=JSON).json() == {"bytes": 1000}
    assert small.post("/predict", content=b" " * 1001, headers=JSON).status_code == 413
    assert small.post("/predict", content=iter([b" " * 600] * 2), headers=JSON).status_code == 413
    assert small.post("/predict", content=b"", headers=JSON | {"Content-Length": "-1"}).status_code == 413


def test_refusals_are_kept_for_the_status_page() -> None:
    recent = RecentFailures()
    client(recent=recent, token="secret").post("/webhook", content=b"{}", headers=JSON)
    (failure,) = recent.all()
    assert (failure.method, failure.path, failure.status) == ("POST", "/webhook", 401)


class Asked:
    """Requests that are made byte by byte, so that many can be under way at once."""

    def __init__(self, places: int = 128, **settings: Any) -> None:
        self.at_work = 0
        self.places = Places(places)
        self.go_on = asyncio.Event()
        configured, recent = Settings(**settings), RecentFailures()
        self._gate = Gate(self._serve, configured, recent, OPEN_PATHS, ["/webhooks/cvat"], self.places)

    async def _serve(self, scope: Scope, receive: Receive, send: Send) -> None:
        while (await receive())["more_body"]:
            pass
        self.at_work += 1
        await self.go_on.wait()
        self.at_work -= 1
        await send({"type": "http.response.start", "status": 200, "headers": []})

    async def post(self, path: str, chunks: AsyncIterator[bytes]) -> int:
        """The status of the answer."""
        answered: list[int] = []

        async def receive() -> Message:
            chunk = await anext(chunks, None)
            return {"type": "http.request", "body": chunk or b"", "more_body": chunk is not None}

        async def send(message: Message) -> None:
            answered.append(message.get("status", 0))

        scope = {
            "type": "http",
            "method": "POST",
            "path": path,
            "client": ("127.0.0.1", 5000),
            "headers": [(b"host", b"127.0.0.1"), (b"content-type", b"application/json")],
        }
        await self._gate(scope, receive, send)
        return answered[0]


async def slowly(*chunks: bytes, read: list[bytes] | None = None) -> AsyncIterator[bytes]:
    for chunk in chunks:
        if read is not None:
            read.append(chunk)
        yield chunk
        await asyncio.sleep(0)


async def settled(asked: Asked, at_work: int) -> None:
    while asked.at_work != at_work:
        await asyncio.sleep(0)


def test_one_request_too_many_is_turned_away_before_its_body_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    async def ask() -> None:
        monkeypatch.setattr(places, "MAX_WAIT_S", 0.0)
        asked = Asked(places=2)
        under_way = [asyncio.create_task(asked.post("/v1/proposals", slowly(b"{}"))) for _ in range(2)]
        await settled(asked, 2)
        read: list[bytes] = []
        assert await asked.post("/v1/proposals", slowly(b"{}", read=read)) == 503
        assert read == []
        kept = asyncio.create_task(asked.post("/webhook", slowly(b"{}")))  # is never turned away for load
        await settled(asked, 3)
        asked.go_on.set()
        assert [await each for each in (*under_way, kept)] == [200] * 3
        assert await asked.post("/v1/proposals", slowly(b"{}")) == 200

    asyncio.run(ask())


@pytest.mark.parametrize(
    ("path", "most", "elsewhere"),
    [
        ("/v1/proposals", 2000, "/webhook"),
        ("/webhook", 1000, "/v1/proposals"),
        ("/webhooks/cvat", 1500, "/webhook"),
    ],
)
def test_the_bytes_of_all_requests_at_work_are_bounded(
    monkeypatch: pytest.MonkeyPatch, path: str, most: int, elsewhere: str
) -> None:
    monkeypatch.setattr(gate, "MAX_SIGNED_BODIES", 1500)

    async def ask() -> None:
        asked = Asked(max_body_bytes=1000)
        bodies = [slowly(b" " * 250, b" " * 250) for _ in range(most // 500)]
        under_way = [asyncio.create_task(asked.post(path, body)) for body in bodies]
        await settled(asked, len(bodies))
        assert await asked.post(path, slowly(b" ")) == 503
        other = asyncio.create_task(asked.post(elsewhere, slowly(b" " * 400)))  # has a room of its own
        await settled(asked, len(bodies) + 1)
        asked.go_on.set()
        assert [await each for each in (*under_way, other)] == [200] * (len(bodies) + 1)
        # What was refused or answered has given its bytes back.
        for _ in range(5):
            assert await asked.post(path, slowly(*[b" " * 100] * 10)) == 200

    asyncio.run(ask())


async def never_ending() -> AsyncIterator[bytes]:
    yield b" "
    await asyncio.Event().wait()


def test_requests_that_are_not_all_there_take_no_place() -> None:
    async def ask() -> None:
        asked = Asked(places=1)
        asked.go_on.set()
        slow = [asyncio.create_task(asked.post("/v1/proposals", never_ending())) for _ in range(130)]
        await asyncio.sleep(0)
        assert await asked.post("/v1/proposals", slowly(b"{}")) == 200
        for each in slow:
            each.cancel()

    asyncio.run(ask())


def test_a_request_that_never_ends_is_answered(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gate, "READ_TIMEOUT_S", 0.01)

    async def ask() -> None:
        asked = Asked(places=1)
        assert await asked.post("/v1/proposals", never_ending()) == 408
        monkeypatch.setattr(gate, "READ_TIMEOUT_S", 60.0)
        asked.go_on.set()
        assert await asked.post("/v1/proposals", slowly(b"{}")) == 200

    asyncio.run(ask())


@pytest.mark.parametrize("has_begun", [False, True])
def test_a_request_that_the_end_of_the_server_cuts_off_is_answered(has_begun: bool) -> None:
    async def ask() -> None:
        answered: list[Message] = []

        async def serve(scope: Scope, receive: Receive, send: Send) -> None:
            if has_begun:
                await send({"type": "http.response.start", "status": 200, "headers": []})
            await asyncio.Event().wait()

        async def send(message: Message) -> None:
            answered.append(message)

        async def receive() -> Message:
            return {"type": "http.request", "body": b"", "more_body": False}

        scope = {"type": "http", "method": "POST", "path": "/v1/proposals", "client": (LOOPBACK, 5000)}
        scope["headers"] = [(b"host", b"127.0.0.1")]
        cut_off = asyncio.create_task(Gate(serve, Settings(), RecentFailures())(scope, receive, send))
        await asyncio.sleep(0.01)
        cut_off.cancel()
        await asyncio.wait([cut_off])
        assert cut_off.cancelled() is has_begun
        assert answered[0]["status"] == (200 if has_begun else 503)

    asyncio.run(ask())


def test_what_is_refused_is_counted() -> None:
    recent = RecentFailures()
    guarded = client(recent=recent, token="secret")
    guarded.get("/v1/status")
    guarded.get("/v1/status", headers={"Authorization": "Token wrong"})
    client(recent=recent).get("/v1/status", headers={"Host": "evil.example"})
    client(recent=recent).post("/predict", headers={"Origin": "https://evil.example"})
    client(recent=recent).post("/predict", content=b"{}", headers={"Content-Type": "text/plain"})
    client(recent=recent, max_body_bytes=1).post("/predict", content=b"{}", headers=JSON)
    client(STRANGER, recent=recent).get("/v1/status")
    kinds = "foreign_origin no_secret not_json not_this_machine too_large unknown_host wrong_secret"
    assert recent.counts() == dict.fromkeys(kinds.split(), 1)


def test_the_right_secret_is_let_in_while_wrong_ones_are_slowed_down() -> None:
    recent = RecentFailures()
    guarded = client(recent=recent, token="secret")
    for _ in range(6):
        assert guarded.get("/v1/status", headers={"Authorization": "Token wrong"}).status_code == 401
    assert guarded.get("/v1/status", headers={"Authorization": "Token secret"}).status_code == 200
