"""The promises that the clients of both tools share."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from clickmask_adapters.tools import _client
from clickmask_adapters.tools._client import RestClient, ToolError
from clickmask_adapters.tools.cvat.client import CvatClient
from clickmask_adapters.tools.cvat.pull import CvatLabels
from clickmask_adapters.tools.label_studio import pull
from clickmask_adapters.tools.label_studio.client import LabelStudioClient
from clickmask_adapters.tools.label_studio.pull import LabelStudioLabels
from support.cvat_server import TOKEN as CVAT_TOKEN
from support.cvat_server import CvatServer
from support.label_studio_standin import TOKEN as LABEL_STUDIO_TOKEN
from support.label_studio_standin import LabelStudioStandin, label_studio_standin, rectangle
from support.scripted_server import ScriptedServer, scripted_server

BUSY = (429, 502, 503, 504)
Make = Callable[[str | None, str | None], Any]


def label_studio(url: str | None, token: str | None = LABEL_STUDIO_TOKEN) -> LabelStudioClient:
    return LabelStudioClient(url, token)


def cvat(url: str | None, token: str | None = CVAT_TOKEN) -> CvatClient:
    return CvatClient(url, token and f"Bearer {token}")


both = pytest.mark.parametrize("make", [label_studio, cvat])


@pytest.fixture
def server() -> Iterator[ScriptedServer]:
    with scripted_server() as scripted:
        yield scripted


def slowly(*_: object) -> tuple[int, object]:
    time.sleep(0.5)
    return 200, {"id": 3}


# --- what is asked again


@pytest.fixture
def studio(monkeypatch: pytest.MonkeyPatch) -> Iterator[LabelStudioStandin]:
    monkeypatch.setattr(pull, "PAGE", 2)
    with label_studio_standin() as standin:
        for number in range(1, 6):
            task = standin.add_task(number)
            task["annotations"].append(standin.annotation(number, rectangle("a")))
        yield standin


def fail_once(monkeypatch: pytest.MonkeyPatch, kind: type, at: int, status: int) -> None:
    """Let the stand-in of a tool refuse its `at`-th request, once."""
    answer, count = kind.answer, iter(range(1, 1000))
    refusal = (status, {"detail": "restarting"})
    monkeypatch.setattr(kind, "answer", lambda *a: refusal if next(count) == at else answer(*a))


@pytest.mark.parametrize("status", BUSY)
@pytest.mark.parametrize("at", [1, 2, 3])
def test_a_label_studio_that_is_busy_for_a_moment_does_not_end_a_pull(
    studio: LabelStudioStandin, monkeypatch: pytest.MonkeyPatch, at: int, status: int
) -> None:
    fail_once(monkeypatch, LabelStudioStandin, at, status)
    pages = list(LabelStudioLabels(label_studio(studio.url)).pull("3"))
    assert [page.position for page in pages] == ["1", "2", "3", "4", "5"]


@pytest.mark.parametrize("status", BUSY)
@pytest.mark.parametrize("at", [1, 2, 7])
def test_a_cvat_that_is_busy_for_a_moment_does_not_end_a_pull(
    monkeypatch: pytest.MonkeyPatch, at: int, status: int
) -> None:
    monkeypatch.setattr("clickmask_adapters.tools.cvat.client.PAGE_SIZE", 2)
    server = CvatServer()
    try:
        server.add_project(1)
        for number in (1, 2, 3):
            server.add_job(number)
            server.complete(number)
        fail_once(monkeypatch, CvatServer, at, status)
        pages = list(CvatLabels(cvat(server.url)).pull("1"))
        assert [len(page.changes) for page in pages] == [2, 2, 2]
    finally:
        server.close()


@both
@pytest.mark.parametrize("status", BUSY)
def test_a_busy_tool_is_asked_again(server: ScriptedServer, make: Make, status: int) -> None:
    server.script((status, b""), (status, b""), (200, {"id": 3}))
    assert make(server.url).project(3) == {"id": 3}
    assert len(server.asked) == 3


@both
def test_a_tool_says_how_long_it_is_busy(server: ScriptedServer, make: Make) -> None:
    server.script((429, b"", {"Retry-After": "1"}), (200, {"id": 3}))
    began = time.monotonic()
    assert make(server.url).project(3) == {"id": 3}
    assert time.monotonic() - began >= 1


@both
def test_a_tool_that_stays_busy_is_said_after_a_few_times(server: ScriptedServer, make: Make) -> None:
    server.script((502, b"<html>"))
    with pytest.raises(ToolError, match="502: Bad Gateway"):
        make(server.url).project(3)
    assert len(server.asked) == 1 + _client.MAX_RETRIES


@both
def test_a_tool_that_wants_more_patience_than_there_is_is_not_waited_for(
    server: ScriptedServer, make: Make
) -> None:
    server.script((503, {"detail": "upgrading"}, {"Retry-After": "3600"}))
    began = time.monotonic()
    with pytest.raises(ToolError, match="503: upgrading"):
        make(server.url).project(3)
    assert time.monotonic() - began < 5
    assert len(server.asked) == 1


@both
@pytest.mark.parametrize(("status", "tries"), [(429, 2), (502, 1), (503, 1), (504, 1), (500, 1)])
def test_what_may_have_been_done_already_is_not_sent_again(
    server: ScriptedServer, make: Make, status: int, tries: int
) -> None:
    """A webhook that is made twice posts twice; after a 429 nothing was made."""
    server.script((status, b"", {"Retry-After": "0"}), (201, {"id": 1}))
    client, more = make(server.url), (None,) * (make is cvat)
    if status == 429:
        assert client.add_webhook({}, *more) == {"id": 1}
    else:
        with pytest.raises(ToolError, match=str(status)):
            client.add_webhook({}, *more)
    assert len(server.asked) == tries


def test_shapes_are_not_added_twice(server: ScriptedServer) -> None:
    server.script((504, b""), (200, {}))
    with pytest.raises(ToolError, match="504"):
        cvat(server.url).add_shapes(3, [])
    assert len(server.asked) == 1


@both
def test_what_changes_nothing_the_second_time_is_sent_again(server: ScriptedServer, make: Make) -> None:
    server.script((503, b""), (200, {"id": 1}))
    assert make(server.url).change_webhook(1, {"is_active": True}) == {"id": 1}
    assert [method for method, *_ in server.asked] == ["PATCH", "PATCH"]


@both
def test_a_refusal_is_not_asked_again(server: ScriptedServer, make: Make) -> None:
    for status in (400, 403, 404, 409, 413, 500):
        server.asked.clear()
        server.script((status, {"detail": "no"}, {"Retry-After": "0"}), (200, {}))
        with pytest.raises(ToolError, match=f"{status}: no") as caught:
            make(server.url).project(3)
        assert (caught.value.status, len(server.asked)) == (status, 1)


# --- connections


@both
def test_a_connection_is_kept_for_the_next_request(server: ScriptedServer, make: Make) -> None:
    client = make(server.url)
    for _ in range(3):
        client.project(3)
    assert len(server.connections) == 1


@both
@pytest.mark.skipif(not hasattr(socket, "TCP_QUICKACK"), reason="acknowledging at once is Linux's")
def test_a_kept_connection_does_not_wait_for_acknowledgements(server: ScriptedServer, make: Make) -> None:
    """The server sends head and body apart, as Django's does: 40 ms each, once the connection is warm."""
    client, seconds = make(server.url), list[float]()
    for _ in range(40):
        began = time.perf_counter()
        client.project(3)
        seconds.append(time.perf_counter() - began)
    assert min(seconds[20:]) < 0.03


@both
def test_threads_share_a_client(server: ScriptedServer, make: Make) -> None:
    server.answer = lambda method, path, _: (200, {"path": path})
    client = make(server.url)
    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(client.project, range(100)))
    assert [int(each["path"].rstrip("/").rpartition("/")[2]) for each in found] == list(range(100))


@both
def test_no_cookie_of_a_tool_is_sent_back(server: ScriptedServer, make: Make) -> None:
    """With a session's cookie it would want CSRF tokens."""
    server.answer = lambda *_: (200, {}, {"Set-Cookie": "sessionid=1"})
    client, seen = make(server.url), list[str | None]()
    send = client._pool.urlopen

    def watched(method: str, url: str, **options: Any) -> Any:
        seen.append(options["headers"].get("Cookie"))
        return send(method, url, **options)

    client._pool.urlopen = watched
    client.project(3)
    client.project(3)
    assert seen == [None, None]


@both
def test_no_netrc_and_no_proxy_sees_our_credentials(
    server: ScriptedServer, make: Make, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "netrc").write_text("default login somebody password else")
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:1")
    make(server.url).project(1)
    assert server.asked[-1][2] == make(None).authorization()


@both
def test_a_redirect_is_not_followed(server: ScriptedServer, make: Make) -> None:
    server.script((302, b""))
    with pytest.raises(ToolError, match=f"redirect: set {make(None).url_variable}"):
        make(server.url).project(3)
    assert len(server.asked) == 1


# --- bounds


@both
def test_an_answer_may_take_longer_than_a_connection(
    server: ScriptedServer, make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_client, "CONNECT_TIMEOUT_S", 0.2)
    server.answer = slowly
    assert make(server.url).project(3) == {"id": 3}


@both
def test_an_answer_that_does_not_come_is_said(
    server: ScriptedServer, make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(RestClient, "read_timeout_s", 0.2)
    monkeypatch.setattr(CvatClient, "read_timeout_s", 0.2)
    server.answer = slowly
    with pytest.raises(ToolError, match="does not answer"):
        make(server.url).add_webhook({}, *(None,) * (make is cvat))
    assert len(server.asked) == 1


@both
def test_an_answer_without_an_end_is_cut_off(
    server: ScriptedServer, make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_client, "MAX_ANSWER_BYTES", 1000)
    server.script((200, b"[" + b"1," * 1000 + b"1]"))
    with pytest.raises(ToolError, match="answer has more than 1000 bytes"):
        make(server.url).project(3)


@both
def test_a_tool_that_drips_is_not_waited_for(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_client, "MAX_REQUEST_S", 0.3)
    with socket.create_server(("127.0.0.1", 0)) as listening:

        def drip() -> None:
            connection, _ = listening.accept()
            with connection:
                connection.recv(65536)
                connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\n")
                try:
                    for _ in range(100):
                        connection.sendall(b" ")
                        time.sleep(0.05)
                except OSError:
                    return

        thread = threading.Thread(target=drip, daemon=True)
        thread.start()
        began = time.monotonic()
        with pytest.raises(ToolError, match=r"did not send its answer within 0\.3 s"):
            make(f"http://127.0.0.1:{listening.getsockname()[1]}").project(3)
        assert time.monotonic() - began < 3
        thread.join(10)


# --- sentences


@both
def test_a_tool_that_is_not_there_is_a_sentence(make: Make) -> None:
    kind: type[RestClient] = type(make(None))
    with pytest.raises(ToolError, match=r"does not answer at http://127\.0\.0\.1:1: is it running"):
        make("http://127.0.0.1:1").project(1)
    with pytest.raises(ToolError, match=f"no {kind.tool} is configured: set {kind.url_variable}"):
        make(None).project(1)
    with pytest.raises(ToolError) as caught:
        make("http://127.0.0.1:1", None).project(1)
    assert str(caught.value) == f"{kind.tool} wants credentials: set {kind.credentials}"
    with pytest.raises(ToolError, match=f"{kind.url_variable} is not an address"):
        make("host.example")
    with pytest.raises(ToolError, match=f"{kind.url_variable} carries a user name or password") as caught:
        make("http://annotator:hush@host.example")
    assert "hush" not in str(caught.value)


@both
def test_refused_credentials_are_not_repeated_in_the_sentence(server: ScriptedServer, make: Make) -> None:
    server.script((401, {"detail": "Invalid token wrong."}))
    client = make(server.url, "wrong-token")
    with pytest.raises(ToolError, match="refuses the credentials: set") as caught:
        client.project(3)
    assert "wrong" not in str(caught.value)
    assert client.credentials in str(caught.value)
    assert (caught.value.status, len(server.asked)) == (401, 1)


@both
def test_what_needs_no_credentials_sends_none(server: ScriptedServer, make: Make) -> None:
    make(server.url).version()
    make(server.url, None).version()
    assert [authorization for *_, authorization in server.asked] == [None, None]


REFUSALS: list[tuple[int, str, object, str]] = [
    (404, "application/json", {"detail": "Not found."}, r"404: Not found\."),
    (400, "application/json", {"detail": "no", "validation_errors": {"url": ["Enter a URL."]}}, "url: Enter"),
    (400, "application/json", {"target_url": ["Enter a valid URL."]}, "400: target_url: Enter a valid URL."),
    (400, "application/json", ["not allowed", "<b>at all</b>"], "400: not allowed, at all"),
    (403, "application/json", {"detail": "no permission"}, "403: no permission"),
    (400, "application/json", {"a": {"b": ["one", {"c": ["two"]}]}}, "400: a: b: one, c: two"),
    (
        400,
        "application/json",
        ["x" * 300, "<Pool object at 0x1f>: <a href='#'>refused"],
        "x, <Pool object at 0x1f>: refused",
    ),
    (400, "application/json", b"[" * 900 + b"]" * 900, "400: "),  # deeper than Python follows
    (503, "text/plain", b"y" * 1000 + b"Connection refused", "yConnection refused"),
    (503, "text/plain", b"HTTPConnectionPool(host='nuclio', port=8070)", "503: HTTPConnectionPool"),
    (500, "text/html", b"<html>a page of Django's</html>", "500: Internal Server Error"),
    (200, "text/html", b"<html>the UI</html>", "is not (CVAT|Label Studio)'s API"),
]


@both
@pytest.mark.parametrize(("status", "kind", "body", "said"), REFUSALS)
def test_a_refusal_becomes_a_sentence(
    server: ScriptedServer, make: Make, status: int, kind: str, body: object, said: str
) -> None:
    server.script((status, body, {"Content-Type": kind}))
    with pytest.raises(ToolError, match=said):
        make(server.url).project(3)


@both
def test_only_a_404_says_that_there_is_nothing(server: ScriptedServer, make: Make) -> None:
    client = make(server.url)
    server.script((200, {}))
    assert client.has("/api/tasks/1")
    server.script((404, {}))
    assert not client.has("/api/tasks/1")
    server.script((403, {}))
    with pytest.raises(ToolError, match="403"):
        client.has("/api/tasks/1")
