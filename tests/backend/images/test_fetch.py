from __future__ import annotations

import base64
import gzip
import os
import socket
import ssl
import subprocess
import threading
import time
import zlib
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from clickmask.errors import ImageUnavailable, InvalidInput, Refused, TooLarge
from clickmask.images.connections import is_public
from clickmask.images.decode import ImageLimits
from clickmask.images.fetch import Fetched, Fetcher, NotModified, decode_base64, origin_of, read_data_uri
from clickmask.types import ImageRef

Route = Callable[[BaseHTTPRequestHandler], None]
FIRST_PORT = 19100


class Host:
    """An image host on loopback. `seen` holds (path, headers) of each request."""

    def __init__(self, context: ssl.SSLContext | None = None) -> None:
        self.routes: dict[str, Route] = {}
        self.seen: list[tuple[str, dict[str, str]]] = []
        host = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                host.seen.append((self.path, dict(self.headers)))
                try:
                    host.routes[self.path.partition("?")[0]](self)
                except (ConnectionError, ssl.SSLError):  # the client has seen enough
                    self.close_connection = True

            def log_message(self, *args: object) -> None:
                pass

        class Server(ThreadingHTTPServer):
            daemon_threads = True

            def handle_error(self, *args: object) -> None:  # a client that breaks off is part of the tests
                pass

        for port in range(FIRST_PORT, FIRST_PORT + 100):
            try:
                self.server = Server(("127.0.0.1", port), Handler)
            except OSError:
                continue
            break
        if context:
            self.server.socket = context.wrap_socket(
                self.server.socket, server_side=True, do_handshake_on_connect=False
            )
        self.port: int = self.server.server_address[1]
        self.thread = threading.Thread(target=self.server.serve_forever, args=(0.01,), daemon=True)
        self.thread.start()

    def url(self, path: str, name: str = "127.0.0.1", scheme: str = "http") -> str:
        return f"{scheme}://{name}:{self.port}{path}"

    def close(self) -> None:
        self.server.shutdown()
        self.server.server_close()
        self.thread.join()


def answer(body: bytes = b"pixels", status: int = 200, **headers: str) -> Route:
    def route(handler: BaseHTTPRequestHandler) -> None:
        handler.send_response(status)
        for name, value in ({"Content_Length": str(len(body))} | headers).items():
            handler.send_header(name.replace("_", "-"), value)
        handler.end_headers()
        handler.wfile.write(body)

    return route


def redirect(target: str, status: int = 302) -> Route:
    return answer(b"", status, Location=target)


def drip(first: bytes, each: bytes) -> Route:
    def route(handler: BaseHTTPRequestHandler) -> None:
        handler.wfile.write(first)
        for _ in range(200):
            time.sleep(0.02)
            handler.wfile.write(each)

    return route


@pytest.fixture
def hosts() -> Iterator[Callable[..., Host]]:
    made: list[Host] = []

    def make(context: ssl.SSLContext | None = None) -> Host:
        made.append(Host(context))
        return made[-1]

    yield make
    for host in made:
        host.close()


@pytest.fixture
def host(hosts: Callable[..., Host]) -> Host:
    return hosts()


def fetcher(**options: object) -> Fetcher:
    defaults = {"hosts": ("127.0.0.1",), "read_timeout": 2.0, "total_timeout": 5.0}
    return Fetcher(**(defaults | options))  # pyright: ignore


def names(monkeypatch: pytest.MonkeyPatch, table: dict[str, list[list[str]]]) -> list[str]:
    """A name server: each name answers its lists of addresses in turn. Gives the log of questions."""
    real, asked = socket.getaddrinfo, []

    def resolve(host: str, port: int, *args: object, **kwargs: object) -> list[object]:
        if host not in table:
            return real(host, port, *args, **kwargs)  # pyright: ignore
        asked.append(host)
        answers = table[host]
        now = answers.pop(0) if len(answers) > 1 else answers[0]
        family = {False: socket.AF_INET, True: socket.AF_INET6}
        return [(family[":" in ip], socket.SOCK_STREAM, 6, "", (ip, port)) for ip in now]

    monkeypatch.setattr(socket, "getaddrinfo", resolve)
    return asked


# --- addresses -------------------------------------------------------------------------------------

REFUSED_ADDRESSES = [
    "0.0.0.0",
    "10.1.2.3",
    "100.64.0.1",
    "100.100.100.200",
    "127.0.0.1",
    "127.8.8.8",
    "168.63.129.16",
    "169.254.169.254",
    "172.16.0.1",
    "192.0.0.192",
    "192.168.1.1",
    "198.18.0.1",
    "224.0.0.1",
    "240.0.0.1",
    "255.255.255.255",
    "::",
    "::1",
    "::7f00:1",
    "::ffff:127.0.0.1",
    "::ffff:8.8.8.8",
    "64:ff9b::7f00:1",
    "64:ff9b::808:808",
    "64:ff9b:1::1",
    "2001:db8::1",
    "2002:7f00:1::1",
    "fd00:ec2::254",
    "fe80::1",
    "fe80::1%eth0",
    "fec0::1",
    "ff02::1",
]


@pytest.mark.parametrize("address", REFUSED_ADDRESSES)
def test_addresses_inside_are_not_public(address: str) -> None:
    assert not is_public(address)


@pytest.mark.parametrize("address", ["1.1.1.1", "93.184.216.34", "2606:4700:4700::1111", "100.63.255.255"])
def test_addresses_of_the_open_internet_are_public(address: str) -> None:
    assert is_public(address)


@pytest.mark.parametrize("address", REFUSED_ADDRESSES)
def test_a_name_with_one_address_inside_is_refused(monkeypatch: pytest.MonkeyPatch, address: str) -> None:
    names(monkeypatch, {"photos.test": [["93.184.216.34", address]]})
    with pytest.raises(Refused, match=r"photos\.test .* CLICKMASK_IMAGE_HOSTS"):
        Fetcher().fetch(ImageRef("http://photos.test/a.png"))


@pytest.mark.parametrize(
    "spelling", ["127.0.0.1", "127.1", "2130706433", "0x7f.1", "[::1]", "localhost", "LOCALHOST."]
)
def test_loopback_is_refused_however_it_is_spelled(host: Host, spelling: str) -> None:
    host.routes["/a"] = answer()
    with pytest.raises((Refused, ImageUnavailable)):
        Fetcher().fetch(ImageRef(host.url("/a", spelling)))
    assert host.seen == []


def test_a_listed_port_opens_no_other_port(hosts: Callable[..., Host]) -> None:
    listed, other = hosts(), hosts()
    listed.routes["/a"] = other.routes["/a"] = answer()
    reader = fetcher(hosts=(f"127.0.0.1:{listed.port}",))
    assert reader.fetch(ImageRef(listed.url("/a"))).raw == b"pixels"
    with pytest.raises(Refused):
        reader.fetch(ImageRef(other.url("/a")))
    assert other.seen == []


def test_a_trusted_origin_may_be_private_but_only_that_origin(hosts: Callable[..., Host]) -> None:
    trusted, other = hosts(), hosts()
    trusted.routes["/a"] = other.routes["/a"] = answer()
    reader = fetcher(hosts=(), trusted_origins=(trusted.url("/label-studio"),))
    assert reader.fetch(ImageRef(trusted.url("/a"))).raw == b"pixels"
    with pytest.raises(Refused):
        reader.fetch(ImageRef(other.url("/a")))


def test_a_name_is_resolved_once_and_connected_to_what_was_checked(
    monkeypatch: pytest.MonkeyPatch, host: Host
) -> None:
    # Rebinding: the second answer of the name server would be another machine.
    asked = names(monkeypatch, {"photos.test": [["127.0.0.1"], ["127.0.0.9"]]})
    connected: list[object] = []
    real = socket.socket.connect

    def connect(self: socket.socket, address: object) -> None:
        connected.append(address)
        real(self, address)  # pyright: ignore

    monkeypatch.setattr(socket.socket, "connect", connect)
    host.routes["/a"] = answer()
    assert fetcher(hosts=("photos.test",)).fetch(ImageRef(host.url("/a", "photos.test"))).raw == b"pixels"
    assert asked == ["photos.test"]
    assert connected == [("127.0.0.1", host.port)]
    assert host.seen[0][1]["Host"] == f"photos.test:{host.port}"


def test_a_name_that_turns_private_after_the_check_is_never_asked_again(
    monkeypatch: pytest.MonkeyPatch, host: Host
) -> None:
    asked = names(monkeypatch, {"photos.test": [["93.184.216.34"], ["127.0.0.1"]]})
    connected: list[object] = []

    def connect(self: socket.socket, address: object) -> None:
        connected.append(address)
        raise ConnectionRefusedError

    monkeypatch.setattr(socket.socket, "connect", connect)
    host.routes["/a"] = answer()
    with pytest.raises(ImageUnavailable):
        Fetcher().fetch(ImageRef(host.url("/a", "photos.test")))
    assert asked == ["photos.test"] and connected == [("93.184.216.34", host.port)]


def test_the_next_address_is_tried_where_one_does_not_answer(
    monkeypatch: pytest.MonkeyPatch, host: Host
) -> None:
    names(monkeypatch, {"photos.test": [["127.0.0.8", "127.0.0.1"]]})  # nothing listens on the first
    host.routes["/a"] = answer()
    assert fetcher(hosts=("photos.test",)).fetch(ImageRef(host.url("/a", "photos.test"))).raw == b"pixels"


def test_unknown_names_are_unavailable(monkeypatch: pytest.MonkeyPatch) -> None:
    def resolve(*args: object, **kwargs: object) -> None:
        raise socket.gaierror(-2, "Name or service not known")

    monkeypatch.setattr(socket, "getaddrinfo", resolve)
    with pytest.raises(ImageUnavailable, match=r"nowhere.test is not known"):
        Fetcher().fetch(ImageRef("https://nowhere.test/secret.png?token=abc"))


# --- TLS -------------------------------------------------------------------------------------------


@pytest.fixture(scope="session")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a certificate authority, and a server certificate for photos.test alone."""
    folder = tmp_path_factory.mktemp("tls")

    def openssl(*arguments: str) -> None:
        subprocess.run(["openssl", *arguments], cwd=folder, check=True, capture_output=True)

    curve = ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes")
    openssl(
        *(
            "req",
            "-x509",
            *curve,
            "-keyout",
            "ca.key",
            "-out",
            "ca.pem",
            "-days",
            "2",
            "-subj",
            "/CN=test CA",
        ),
        *("-addext", "keyUsage=critical,keyCertSign"),
    )
    openssl("req", *curve, "-keyout", "server.key", "-out", "server.csr", "-subj", "/CN=photos.test")
    (folder / "san").write_text("subjectAltName=DNS:photos.test\n")
    openssl(
        *("x509", "-req", "-in", "server.csr", "-CA", "ca.pem", "-CAkey", "ca.key", "-CAcreateserial"),
        *("-out", "server.pem", "-days", "2", "-extfile", "san"),
    )
    return folder


@pytest.fixture
def secure(authority: Path, hosts: Callable[..., Host]) -> Host:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(authority / "server.pem", authority / "server.key")
    indicated: list[str | None] = []
    context.sni_callback = lambda _socket, name, _context: indicated.append(name)
    host = hosts(context)
    host.routes["/a"] = answer()
    host.indicated = indicated  # pyright: ignore
    return host


def test_the_certificate_is_verified_against_the_name_not_the_address(
    monkeypatch: pytest.MonkeyPatch, secure: Host, authority: Path
) -> None:
    names(monkeypatch, {"photos.test": [["127.0.0.1"]], "other.test": [["127.0.0.1"]]})
    reader = fetcher(hosts=("photos.test", "other.test", "127.0.0.1"), ca_bundle=authority / "ca.pem")
    assert reader.fetch(ImageRef(secure.url("/a", "photos.test", "https"))).raw == b"pixels"
    assert secure.indicated == ["photos.test"]  # pyright: ignore
    for wrong in ("other.test", "127.0.0.1"):
        with pytest.raises(ImageUnavailable, match=f"certificate of {wrong} cannot be verified"):
            reader.fetch(ImageRef(secure.url("/a", wrong, "https")))
    assert len(secure.seen) == 1


def test_a_certificate_of_an_unknown_authority_is_refused(
    monkeypatch: pytest.MonkeyPatch, secure: Host
) -> None:
    names(monkeypatch, {"photos.test": [["127.0.0.1"]]})
    with pytest.raises(ImageUnavailable, match=r"certificate of photos\.test"):
        fetcher(hosts=("photos.test",)).fetch(ImageRef(secure.url("/a", "photos.test", "https")))
    assert secure.seen == []


# --- redirects and credentials ---------------------------------------------------------------------


def test_three_redirects_are_followed_and_a_fourth_is_not(host: Host) -> None:
    host.routes |= {
        f"/{step}": redirect(f"/{step + 1}", status) for step, status in enumerate((301, 302, 303, 307))
    }
    host.routes["/4"] = answer()
    assert fetcher().fetch(ImageRef(host.url("/1"))).raw == b"pixels"
    with pytest.raises(ImageUnavailable, match="more than 3 times"):
        fetcher().fetch(ImageRef(host.url("/0")))


def test_a_redirect_loop_ends(host: Host) -> None:
    host.routes["/a"] = redirect("/a", 308)
    with pytest.raises(ImageUnavailable, match="redirects"):
        fetcher().fetch(ImageRef(host.url("/a")))
    assert len(host.seen) == 4


@pytest.mark.parametrize(
    "target",
    [
        "http://169.254.169.254/latest/meta-data/",
        "http://127.0.0.2/",
        "file:///etc/passwd",
        "data:,x",
        "//u:p@127.0.0.1/",
    ],
)
def test_each_redirect_is_checked_like_the_first_address(host: Host, target: str) -> None:
    host.routes["/a"] = redirect(target)
    with pytest.raises(Refused):
        fetcher().fetch(ImageRef(host.url("/a")))


def test_the_body_of_a_redirect_is_not_read(host: Host) -> None:
    endless = drip(b"HTTP/1.0 302 Found\r\nLocation: /b\r\n\r\n", b"x" * 1000)
    host.routes |= {"/a": endless, "/b": answer()}
    assert fetcher(total_timeout=1.0).fetch(ImageRef(host.url("/a"))).raw == b"pixels"


SECRET = {"Authorization": "Token 5ecret"}


def test_credentials_reach_the_trusted_origin(host: Host) -> None:
    host.routes |= {"/a": redirect("/b"), "/b": answer()}
    fetcher(trusted_origins=(host.url(""),)).fetch(ImageRef(host.url("/a"), SECRET))
    assert [headers.get("Authorization") for _, headers in host.seen] == ["Token 5ecret"] * 2


def test_credentials_reach_no_origin_that_is_not_trusted(host: Host) -> None:
    host.routes["/a"] = answer()
    for trusted in (
        (),
        (f"https://127.0.0.1:{host.port}",),
        (f"http://localhost:{host.port}",),
        ("http://127.0.0.1",),
    ):
        fetcher(trusted_origins=trusted).fetch(ImageRef(host.url("/a"), SECRET))
    assert len(host.seen) == 4
    assert all("Authorization" not in headers for _, headers in host.seen)


def test_credentials_are_dropped_by_a_redirect_to_elsewhere_even_if_it_comes_back(
    hosts: Callable[..., Host],
) -> None:
    trusted, storage = hosts(), hosts()
    trusted.routes |= {"/a": redirect(storage.url("/b")), "/c": answer()}
    storage.routes["/b"] = redirect(trusted.url("/c"))
    fetcher(trusted_origins=(trusted.url(""), storage.url(""))).fetch(ImageRef(trusted.url("/a"), SECRET))
    assert trusted.seen[0][1]["Authorization"] == "Token 5ecret"
    assert "Authorization" not in storage.seen[0][1]
    assert trusted.seen[1][0] == "/c" and "Authorization" not in trusted.seen[1][1]


def test_the_environment_gives_neither_proxies_nor_passwords(
    monkeypatch: pytest.MonkeyPatch, host: Host, tmp_path: Path
) -> None:
    netrc = tmp_path / "netrc"
    netrc.write_text("machine 127.0.0.1 login me password secret\n")
    for name in ("http_proxy", "HTTP_PROXY", "ALL_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:1")
    monkeypatch.setenv("NETRC", str(netrc))
    host.routes["/a"] = answer()
    assert fetcher().fetch(ImageRef(host.url("/a"))).raw == b"pixels"
    assert "Authorization" not in host.seen[0][1]


def test_cookies_are_not_kept(host: Host) -> None:
    host.routes |= {"/a": answer(b"", 302, Location="/b", Set_Cookie="session=1"), "/b": answer()}
    fetcher().fetch(ImageRef(host.url("/a")))
    assert "Cookie" not in host.seen[1][1]


@pytest.mark.parametrize(
    "uri",
    [
        "http://me:secret@127.0.0.1/a",
        "http://me@127.0.0.1/a",
        "http://@127.0.0.1/a",
        "ftp://127.0.0.1/a",
        "gopher://127.0.0.1/",
        "/etc/passwd",
        "",
        "http://",
        "http:///a",
        "http://[::1/a",
        "http://127.0.0.1:99999/a",
        "file://[/a",
        "http://127.0.0.1:a/a",
        "http://exa mple/\r\n",
    ],
)
def test_odd_addresses_are_refused_without_a_word_of_them(uri: str) -> None:
    with pytest.raises((Refused, ImageUnavailable)) as caught:
        fetcher().fetch(ImageRef(uri))
    assert "secret" not in str(caught.value) and "passwd" not in str(caught.value)


def test_headers_cannot_smuggle_a_line(host: Host) -> None:
    with pytest.raises(Refused):
        fetcher(trusted_origins=(host.url(""),)).fetch(ImageRef(host.url("/a"), {"A": "b\r\nX: y"}))


# --- answers, caps and times -----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("status", "advice"),
    [(401, "API key"), (403, "API key"), (404, "address in the task"), (503, "later"), (304, "address")],
)
def test_a_refusal_says_its_status_and_what_to_do(host: Host, status: int, advice: str) -> None:
    host.routes["/secret/path"] = answer(b"no", status)
    with pytest.raises(ImageUnavailable, match=f"127.0.0.1 answered {status}: .*{advice}") as caught:
        fetcher().fetch(ImageRef(host.url("/secret/path?token=abc")))
    assert "secret" not in str(caught.value) and "abc" not in str(caught.value)


def test_a_login_page_is_not_taken_for_an_image(host: Host) -> None:
    host.routes |= {
        "/a": redirect("/login"),
        "/login": answer(b"<html>", Content_Type="text/html; charset=utf-8"),
    }
    with pytest.raises(ImageUnavailable, match=r"web page .* API key"):
        fetcher().fetch(ImageRef(host.url("/a")))


def test_a_closed_port_is_unavailable(hosts: Callable[..., Host]) -> None:
    with socket.socket() as held:
        held.bind(("127.0.0.1", 0))
        with pytest.raises(ImageUnavailable, match=r"127.0.0.1 cannot be reached"):
            fetcher().fetch(ImageRef(f"http://127.0.0.1:{held.getsockname()[1]}/a"))


def test_a_length_over_the_cap_is_refused_before_the_body(host: Host) -> None:
    host.routes["/a"] = drip(b"HTTP/1.0 200 OK\r\nContent-Length: 1001\r\n\r\n", b"")
    with pytest.raises(TooLarge):
        fetcher(limits=ImageLimits(max_bytes=1000), read_timeout=0.5).fetch(ImageRef(host.url("/a")))


def test_a_body_without_end_is_cut_at_the_cap(host: Host) -> None:
    sent = 0

    def endless(handler: BaseHTTPRequestHandler) -> None:
        nonlocal sent
        handler.wfile.write(b"HTTP/1.0 200 OK\r\n\r\n")
        while sent < 2**28:
            sent += handler.wfile.write(bytes(2**16))

    host.routes["/a"] = endless
    with pytest.raises(TooLarge, match="more bytes than 1000000"):
        fetcher(limits=ImageLimits(max_bytes=10**6)).fetch(ImageRef(host.url("/a")))
    assert sent < 2**27


def test_the_cap_itself_is_allowed(host: Host) -> None:
    host.routes["/a"] = answer(bytes(1000))
    assert len(fetcher(limits=ImageLimits(max_bytes=1000)).fetch(ImageRef(host.url("/a"))).raw) == 1000


@pytest.mark.parametrize(
    ("first", "each"),
    [
        (b"HTTP/1.0 200 OK\r\nContent-Length: 1000\r\n\r\n", b"x"),
        (b"HTTP/1.0 200 OK\r\n\r\n", b"x"),
        (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n", b"1\r\nx\r\n"),
        (b"HTTP/1.0 200 OK\r\n", b"A: b\r\n"),
        (b"", b"H"),
    ],
    ids=["length", "no length", "chunks", "headers", "status line"],
)
def test_a_host_that_drips_is_cut_off_after_the_total_time(host: Host, first: bytes, each: bytes) -> None:
    host.routes["/a"] = drip(first, each)
    started = time.monotonic()
    with pytest.raises(ImageUnavailable, match=r"within 0\.3 seconds"):
        fetcher(total_timeout=0.3).fetch(ImageRef(host.url("/a")))
    assert time.monotonic() - started < 2.5  # the drip itself takes over 4 s


def test_the_total_time_spans_the_tls_handshake(hosts: Callable[..., Host]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        url = f"https://127.0.0.1:{silent.getsockname()[1]}/a"
        with pytest.raises(ImageUnavailable, match=r"within 0\.2 seconds"):
            fetcher(total_timeout=0.2).fetch(ImageRef(url))


def test_a_silent_host_is_given_up_after_the_read_time(host: Host) -> None:
    host.routes["/a"] = lambda handler: time.sleep(0.6)
    with pytest.raises(ImageUnavailable, match=r"in time|cannot be reached"):
        fetcher(read_timeout=0.1).fetch(ImageRef(host.url("/a")))


def test_a_body_shorter_than_its_length_is_unavailable(host: Host) -> None:
    host.routes["/a"] = answer(b"short", Content_Length="500")
    with pytest.raises(ImageUnavailable, match="broke off"):
        fetcher().fetch(ImageRef(host.url("/a")))


def test_compressed_answers_are_unpacked(host: Host) -> None:
    body = b"pixels" * 5000
    host.routes |= {
        "/gzip": answer(gzip.compress(body), Content_Encoding="gzip"),
        "/deflate": answer(zlib.compress(body), Content_Encoding="deflate"),
    }
    for path in host.routes:
        assert fetcher().fetch(ImageRef(host.url(path))).raw == body
    assert all(headers["Accept-Encoding"] == "identity" for _, headers in host.seen)


def test_a_compressed_bomb_is_cut_at_the_cap_without_being_unpacked(host: Host) -> None:
    import tracemalloc

    host.routes["/a"] = answer(gzip.compress(bytes(5 * 10**7)), Content_Encoding="gzip")
    tracemalloc.start()
    with pytest.raises(TooLarge):
        fetcher(limits=ImageLimits(max_bytes=10**6)).fetch(ImageRef(host.url("/a")))
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 10**7


@pytest.mark.parametrize("encoding", ["br", "gzip, gzip", "zstd"])
def test_other_encodings_are_refused(host: Host, encoding: str) -> None:
    host.routes["/a"] = answer(b"x", Content_Encoding=encoding)
    with pytest.raises(ImageUnavailable, match="compresses"):
        fetcher().fetch(ImageRef(host.url("/a")))


@pytest.mark.parametrize("body", [b"not gzip", gzip.compress(b"pixels" * 100)[:-12]], ids=["other", "cut"])
def test_damaged_compression_is_refused(host: Host, body: bytes) -> None:
    host.routes["/a"] = answer(body, Content_Encoding="gzip")
    with pytest.raises(InvalidInput, match="compressed transfer"):
        fetcher().fetch(ImageRef(host.url("/a")))


def conditional(handler: BaseHTTPRequestHandler) -> None:
    same = handler.headers["If-None-Match"] == '"one"'
    answer(b"" if same else b"pixels", 304 if same else 200, ETag='"one"')(handler)


def test_a_validator_makes_the_next_request_conditional(host: Host) -> None:
    host.routes |= {"/a": redirect("/b?signature=1"), "/b": conditional}
    reader = fetcher(trust_etag_for=7)
    first = reader.fetch(ImageRef(host.url("/a")))
    assert isinstance(first, Fetched) and first.validator and first.trusted_for == 7
    assert reader.fetch(ImageRef(host.url("/a")), first.validator) == NotModified(7)
    # The tag belongs to the address that gave it: no other is asked with it.
    assert ["If-None-Match" in headers for _, headers in host.seen] == [False, False, False, True]


def test_without_an_etag_there_is_no_validator(host: Host) -> None:
    host.routes["/a"] = answer()
    assert fetcher(trust_url_for=9).fetch(ImageRef(host.url("/a"))) == Fetched(b"pixels", 9, None)


# --- files -----------------------------------------------------------------------------------------


def test_files_inside_the_roots_are_read(tmp_path: Path) -> None:
    (tmp_path / "a b%.png").write_bytes(b"pixels")
    reader = Fetcher(roots=(tmp_path,))
    for uri in (f"file://{tmp_path}/a%20b%25.png", f"file://localhost{tmp_path}/a b%25.png"):
        assert reader.fetch(ImageRef(uri)).raw == b"pixels"


def test_a_file_is_not_read_again_until_it_changes(tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    path.write_bytes(b"pixels")
    reader = Fetcher(roots=(tmp_path,))
    first = reader.fetch(ImageRef(path.as_uri()))
    assert isinstance(first, Fetched)
    assert isinstance(reader.fetch(ImageRef(path.as_uri()), first.validator), NotModified)
    os.utime(path, ns=(1, 1))
    assert isinstance(reader.fetch(ImageRef(path.as_uri()), first.validator), Fetched)


@pytest.mark.parametrize(
    "inside", ["../secret.png", "%2e%2e/secret.png", "link.png", "folder/secret.png", "..%2Fsecret.png"]
)
def test_files_outside_the_roots_are_refused_whether_they_exist_or_not(tmp_path: Path, inside: str) -> None:
    root = tmp_path / "root"
    root.mkdir()
    (root / "link.png").symlink_to(tmp_path / "secret.png")
    (root / "folder").symlink_to(tmp_path)
    sentences: set[str] = set()
    for there in (False, True):
        if there:
            (tmp_path / "secret.png").write_bytes(b"secret")
        with pytest.raises(Refused) as caught:
            Fetcher(roots=(root,)).fetch(ImageRef(f"file://{root}/{inside}"))
        sentences.add(str(caught.value))
    assert len(sentences) == 1 and str(tmp_path) not in sentences.pop()


def test_without_roots_no_file_is_read(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(b"pixels")
    with pytest.raises(Refused):
        Fetcher().fetch(ImageRef((tmp_path / "a.png").as_uri()))


def test_a_root_is_not_a_prefix_of_names(tmp_path: Path) -> None:
    (tmp_path / "root").mkdir()
    (tmp_path / "root2.png").write_bytes(b"pixels")
    with pytest.raises(Refused):
        Fetcher(roots=(tmp_path / "root",)).fetch(ImageRef(f"file://{tmp_path}/root2.png"))


def test_links_that_stay_inside_are_followed(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(b"pixels")
    (tmp_path / "link.png").symlink_to("a.png")
    assert Fetcher(roots=(tmp_path,)).fetch(ImageRef((tmp_path / "link.png").as_uri())).raw == b"pixels"


def test_odd_files_are_refused_and_never_block(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "loop").symlink_to("loop")
    (tmp_path / "big").write_bytes(bytes(101))
    reader = Fetcher(roots=(tmp_path,), limits=ImageLimits(max_bytes=100))
    expected = {
        "pipe": Refused,
        "": Refused,
        "big": TooLarge,
        "missing": ImageUnavailable,
        "nul%00": Refused,
    }
    for name, error in expected.items():
        with pytest.raises(error) as caught:
            reader.fetch(ImageRef(f"file://{tmp_path}/{name}"))
        assert str(tmp_path) not in str(caught.value)
    with pytest.raises((Refused, ImageUnavailable)):
        reader.fetch(ImageRef(f"file://{tmp_path}/loop"))
    with pytest.raises(Refused):
        reader.fetch(ImageRef(f"file://elsewhere{tmp_path}/big"))


# --- data: -----------------------------------------------------------------------------------------


@given(raw=st.binary(max_size=200))
def test_data_uris_give_back_their_bytes(raw: bytes) -> None:
    encoded = base64.b64encode(raw).decode()
    assert read_data_uri(f"data:image/png;base64,{encoded}") == raw
    assert (
        read_data_uri("data:;base64," + encoded.replace("+", "%2B").replace("/", "%2F").replace("=", "%3D"))
        == raw
    )
    assert read_data_uri("data:," + "".join(f"%{byte:02x}" for byte in raw)) == raw
    limits = ImageLimits(max_bytes=len(raw))
    assert read_data_uri(f"data:;base64,{encoded}", limits) == raw


@pytest.mark.parametrize(
    "uri",
    ["data:;base64,a", "data:;base64,@@@@", "data:;base64,é", "data:image/png", "data:"],
)
def test_junk_in_data_uris_is_refused(uri: str) -> None:
    with pytest.raises(InvalidInput):
        read_data_uri(uri)


@given(raw=st.binary(min_size=1, max_size=200))
def test_base64_is_read_in_every_form_that_programs_write(raw: bytes) -> None:
    plain, urlsafe = base64.b64encode(raw).decode(), base64.urlsafe_b64encode(raw).decode()
    lines = base64.encodebytes(raw).decode()
    unpadded = plain.rstrip("="), urlsafe.rstrip("=")
    limits = ImageLimits(max_bytes=len(raw))
    for text in (plain, urlsafe, *unpadded, lines, lines.replace("\n", "\r\n"), f" {plain}\n"):
        for written in (text, f"data:image/png;base64,{text}", f"DATA:;base64,{text.replace('=', '%3D')}"):
            assert decode_base64(written, limits) == raw
            assert decode_base64(memoryview(written.encode()), limits) == raw
            assert read_data_uri(f"data:;base64,{written}", limits) == raw
            with pytest.raises(TooLarge):
                decode_base64(written, ImageLimits(max_bytes=len(raw) - 1))


@pytest.mark.parametrize("text", ["data:," * 100_000, "aaaaa", "-----", "YWJj!", "YW=Jj", "ä-"])
def test_junk_is_no_form_of_base64(text: str) -> None:
    with pytest.raises(InvalidInput):
        decode_base64(text)


@pytest.mark.parametrize(
    "uri", ["data:;base64," + "A" * 4000, "data:," + "a" * 1001, "data:," + "%61" * 1001]
)
def test_data_uris_over_the_cap_are_refused_before_they_are_decoded(uri: str) -> None:
    with pytest.raises(TooLarge):
        read_data_uri(uri, ImageLimits(max_bytes=1000))


def test_origins_are_scheme_host_and_port() -> None:
    assert (
        origin_of("https://Example.org./a")
        == origin_of("https://example.org:443")
        == ("https", "example.org", 443)
    )
    assert origin_of("http://example.org") != origin_of("https://example.org")
    with pytest.raises(ValueError, match="http"):
        Fetcher(trusted_origins=("label-studio:8080",))
