"""Image hosts that never answer, drip, or send on and on: clicks that need no network go on as before."""

from __future__ import annotations

import base64
import io
import socket
import socketserver
import statistics
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path

import numpy as np
import PIL.Image
import pytest
import requests

from support.served import Server, serving

pytestmark = pytest.mark.faults

CLICKS = 64  # at once, each on another picture of a slow host
WARM = 40


def picture(shade: int = 0) -> bytes:
    pixels = np.random.default_rng(shade).integers(0, 256, (300, 400, 3), dtype=np.uint8)
    file = io.BytesIO()
    PIL.Image.fromarray(pixels).save(file, "PNG")
    return file.getvalue()


class Host(socketserver.BaseRequestHandler):
    """Sends /good, accepts /silent and says nothing, and drips the rest, a byte a second."""

    def handle(self) -> None:
        path = self.request.recv(4096).split()[1:2]
        head = b"HTTP/1.1 200 OK\r\nContent-Type: image/png\r\n"
        with suppress(OSError):
            if path == [b"/good"]:
                body = picture()
                self.request.sendall(head + b"Content-Length: %d\r\n\r\n" % len(body) + body)
                return
            while path and path[0].startswith(b"/silent"):
                if not self.request.recv(1):
                    return
            for byte in head * 10:
                self.request.sendall(bytes([byte]))
                time.sleep(1)


class Hosts(socketserver.ThreadingTCPServer):
    daemon_threads = True
    allow_reuse_address = True
    request_queue_size = 256
    block_on_close = False


@contextmanager
def image_host() -> Iterator[str]:
    with Hosts(("127.0.0.1", 0), Host) as hosts:
        threading.Thread(target=hosts.serve_forever, daemon=True).start()
        yield f"127.0.0.1:{hosts.server_address[1]}"
        hosts.shutdown()


def click(server: Server, image: dict[str, str]) -> tuple[int, float]:
    began = time.monotonic()
    asked = {"image": image, "prompt": {"foreground": [[100, 100]]}, "segmenter": "region_growing"}
    answer = requests.post(f"{server.url}/v1/proposals", json=asked, timeout=120)
    if answer.status_code == 503:
        assert float(answer.headers["Retry-After"]) > 0
    return answer.status_code, time.monotonic() - began


@pytest.mark.parametrize("path", ["silent", "drip"])
def test_clicks_that_need_no_network_are_as_fast_as_alone(path: str, tmp_path: Path) -> None:
    with (
        image_host() as host,
        image_host() as other,
        serving(tmp_path, CLICKMASK_IMAGE_HOSTS=f"{host},{other}") as server,
    ):
        known = [{"url": f"http://{host}/good"}, {"data": base64.b64encode(picture()).decode()}]

        def warm() -> list[float]:
            answers = [click(server, known[number % 2]) for number in range(WARM)]
            assert {status for status, _ in answers} == {200}
            return sorted(seconds for _, seconds in answers)

        warm()
        alone = warm()
        with ThreadPoolExecutor(CLICKS) as pool:
            slow = [
                pool.submit(click, server, {"url": f"http://{(host, other)[number % 2]}/{path}/{number}"})
                for number in range(CLICKS)
            ]
            time.sleep(0.5)
            beside = warm()
            statuses = [each.result()[0] for each in slow]
        for name, times in (("alone", alone), ("beside", beside)):
            p50, p95 = statistics.median(times), times[int(0.95 * len(times))]
            said = f"p50 {1000 * p50:.0f} ms, p95 {1000 * p95:.0f} ms, longest {1000 * times[-1]:.0f} ms"
            print(f"{path}: warm clicks {name}: {said}")
        print(f"{path}: slow clicks: { ({each: statuses.count(each) for each in set(statuses)}) }")
        assert statistics.median(beside) < 2 * statistics.median(alone) + 0.02
        assert beside[-1] < 2 * alone[-1] + 0.5
        assert set(statuses) <= {502, 503}


def test_a_flood_of_hosts_that_refuse_and_redirect_is_answered(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        nobody = f"127.0.0.1:{taken.getsockname()[1]}"
    with serving(tmp_path, CLICKMASK_IMAGE_HOSTS=nobody) as server, ThreadPoolExecutor(CLICKS) as pool:
        images = [{"url": f"http://{nobody}/{number}"} for number in range(CLICKS)]
        statuses = {status for status, _ in pool.map(lambda image: click(server, image), images)}
        assert statuses <= {502, 503} and 502 in statuses
