from __future__ import annotations

import hashlib
import json
import multiprocessing
import os
import re
import socket
import threading
from collections.abc import Iterator
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest
import requests

from clickmask import plugins, segmenters
from clickmask.errors import NotFound, NotReady
from clickmask.inference import weights as weights_module
from clickmask.inference.weights import WeightsFolder
from clickmask.plugins import Checkpoint

CONTENT = np.random.default_rng(0).bytes(400_000)
OTHER = np.random.default_rng(1).bytes(400_000)
FILE = "fake_4b8939.pth"


class FileServer(ThreadingHTTPServer):
    """One file, served as badly as it is told to."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), FileRequest)
        self.content = CONTENT
        self.etag = '"first"'
        self.serves_ranges = True
        self.heeds_if_range = True
        self.announces_length = True
        self.status = 0
        self.cuts: list[int] = []  # the bytes after which the next answers break off
        self.asked: list[tuple[str, str, str]] = []  # path, Range, If-Range

    def handle_error(self, *_: object) -> None:
        """A client that hangs up in the middle is part of what is tested."""

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"


class FileRequest(BaseHTTPRequestHandler):
    server: FileServer

    def do_GET(self) -> None:
        server, wanted = self.server, self.headers.get("Range", "")
        condition = self.headers.get("If-Range", "")
        server.asked.append((self.path, wanted, condition))
        if server.status:
            self.send_error(server.status)
            return
        start = 0
        changed = condition and condition != server.etag and server.heeds_if_range
        if wanted and server.serves_ranges and not changed:
            start = int(wanted.removeprefix("bytes=").removesuffix("-"))
        body = server.content[start:]
        if start and not body:
            self.send_response(416)
            self.send_header("Content-Range", f"bytes */{len(server.content)}")
            self.send_header("Content-Length", "0")
            self.end_headers()
            return
        self.send_response(206 if start else 200)
        if start:
            last = len(server.content) - 1
            self.send_header("Content-Range", f"bytes {start}-{last}/{len(server.content)}")
        if server.announces_length:
            self.send_header("Content-Length", str(len(body)))
        if server.etag:
            self.send_header("ETag", server.etag)
        self.end_headers()
        self.wfile.write(body[: server.cuts.pop(0)] if server.cuts else body)

    def log_message(self, *args: object) -> None:
        pass


@pytest.fixture
def server() -> Iterator[FileServer]:
    server = FileServer()
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    yield server
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.fixture(autouse=True)
def no_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")


def checkpoint(base: str = "http://127.0.0.1:9") -> Checkpoint:
    return Checkpoint(f"{base}/{FILE}", len(CONTENT), hashlib.sha256(CONTENT).hexdigest(), "MIT")


def weights_in(folder: Path, mirror: str | None = None, base: str = "http://127.0.0.1:9") -> WeightsFolder:
    return WeightsFolder(folder, mirror, {"fake:small": checkpoint(base)})


@pytest.fixture
def weights(tmp_path: Path, server: FileServer) -> WeightsFolder:
    return weights_in(tmp_path / "weights", base=server.url)


def left_over(weights: WeightsFolder) -> set[str]:
    """What lies beside the file, other than what belongs there."""
    usual = {FILE, FILE + ".verified", ".lock"}
    return {path.name for path in weights.folder.iterdir()} - usual


def test_the_official_files_are_named_in_full() -> None:
    known = plugins.checkpoints(segmenters)
    files = [file for official in known.values() for file in official.files]
    for file in files:
        assert re.fullmatch(r"https://[^?]+/[\w.]+\.(pth|pt|onnx|tflite)", file.address)
        assert re.fullmatch(r"[0-9a-f]{64}", file.sha256)
        assert file.bytes > 10**5
        assert file.licence
    assert len({file.file for file in files}) == len(files)  # they share a folder
    assert {"sam:vit_b", "mobile_sam:vit_t", "sam_hq:vit_tiny", "efficient_sam:vit_s"} <= set(known)


def test_weights_of_two_files_are_fetched_and_verified_together(tmp_path: Path, server: FileServer) -> None:
    first, second = checkpoint(server.url), replace(checkpoint(server.url), address=f"{server.url}/other.pth")
    weights = WeightsFolder(tmp_path, None, {"fake:small": replace(first, beside=(second,))})
    assert weights.fetch("fake:small") == tmp_path / FILE
    assert (tmp_path / "other.pth").read_bytes() == CONTENT
    assert weights.missing("fake:small") == ""
    (tmp_path / "other.pth").write_bytes(OTHER)
    assert "clickmask weights path fake:small" in weights.missing("fake:small")
    with pytest.raises(NotReady, match=r"its other\.pth is not the official file"):
        weights.verify("fake:small")
    (tmp_path / "other.pth").unlink()
    assert "clickmask weights fetch fake:small" in weights.missing("fake:small")
    assert weights.fetch("fake:small") == tmp_path / FILE
    assert [path for path, *_ in server.asked] == [f"/{FILE}", "/other.pth", "/other.pth"]


def test_a_fetched_file_is_found_without_asking_again(weights: WeightsFolder, server: FileServer) -> None:
    assert weights.find("fake:small") is None
    seen: list[tuple[int, int]] = []
    path = weights.fetch("fake:small", lambda done, total: seen.append((done, total)))
    assert path.read_bytes() == CONTENT
    assert weights.find("fake:small") == weights.fetch("fake:small") == path
    assert server.asked == [(f"/{FILE}", "", "")]
    assert left_over(weights) == set()
    assert seen[0] == (0, len(CONTENT))
    assert seen[-1] == (len(CONTENT), len(CONTENT))
    assert seen == sorted(seen)


def test_another_process_believes_the_verification_and_does_not_repeat_it(weights: WeightsFolder) -> None:
    path = weights.fetch("fake:small")
    other = weights_in(weights.folder)
    assert other.find("fake:small") == path
    # Proof that it does not hash: the same size and time with other content is not noticed.
    times = path.stat()
    path.write_bytes(OTHER)
    os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))
    assert weights_in(weights.folder).find("fake:small") == path


def test_a_file_that_changed_is_not_used_until_it_is_verified_again(weights: WeightsFolder) -> None:
    path = weights.fetch("fake:small")
    path.write_bytes(OTHER)
    assert weights.find("fake:small") is None
    assert "clickmask weights path fake:small" in weights.missing("fake:small")
    with pytest.raises(NotReady, match="not the official file"):
        weights.verify("fake:small")
    assert "not the official file" in weights.missing("fake:small")
    assert path.read_bytes() == OTHER  # it may be somebody's work
    path.write_bytes(CONTENT)
    assert weights.verify("fake:small") == path
    assert weights.missing("fake:small") == ""


def test_what_another_process_verified_since_is_believed(weights: WeightsFolder) -> None:
    path = weights.fetch("fake:small")
    path.write_bytes(OTHER)
    assert weights.find("fake:small") is None
    path.write_bytes(CONTENT)
    os.utime(path, ns=(1, 1))
    assert weights.find("fake:small") is None
    assert weights_in(weights.folder).verify("fake:small") == path
    assert weights.find("fake:small") == path


def test_a_file_put_there_by_hand_is_accepted_once_it_is_verified(tmp_path: Path) -> None:
    weights = weights_in(tmp_path)
    (tmp_path / FILE).write_bytes(CONTENT)
    assert weights.find("fake:small") is None
    assert weights.verify("fake:small") == tmp_path / FILE
    assert weights.find("fake:small") == tmp_path / FILE
    assert weights.fetch("fake:small") == tmp_path / FILE  # with no server at all


def test_a_wrong_file_put_there_by_hand_is_named_and_left_alone(weights: WeightsFolder) -> None:
    weights.folder.mkdir()
    (weights.folder / FILE).write_bytes(OTHER)
    with pytest.raises(NotReady, match=r"fake_4b8939\.pth is not the official file.*move it away"):
        weights.fetch("fake:small")
    assert (weights.folder / FILE).read_bytes() == OTHER


def test_a_memo_that_is_no_memo_is_not_believed(weights: WeightsFolder) -> None:
    path = weights.fetch("fake:small")
    memo = path.with_name(FILE + ".verified")
    for junk in (
        "",
        "[]",
        "{}",
        "7",
        '{"sha256": 1}',
        json.dumps({"bytes": 1, "mtime_ns": 1, "sha256": "a"}),
    ):
        memo.write_text(junk)
        assert weights_in(weights.folder).find("fake:small") is None


def test_a_folder_that_cannot_be_written_to_serves_its_files(tmp_path: Path) -> None:
    (tmp_path / FILE).write_bytes(CONTENT)
    (tmp_path / (FILE + ".verified")).mkdir()  # even root cannot replace a folder by a file
    weights = weights_in(tmp_path)
    assert weights.verify("fake:small") == weights.find("fake:small") == tmp_path / FILE


def test_a_download_that_breaks_off_goes_on_where_it_was(weights: WeightsFolder, server: FileServer) -> None:
    server.cuts = [200_000, 100_000]
    assert weights.fetch("fake:small").read_bytes() == CONTENT
    assert len(server.asked) == 3
    starts = [int(asked[1][6:-1]) for asked in server.asked[1:]]
    assert 0 < starts[0] <= 200_000 < starts[1] + 1
    assert {asked[2] for asked in server.asked[1:]} == {'"first"'}


def test_a_download_that_gets_nowhere_stops_and_the_next_goes_on(
    weights: WeightsFolder, server: FileServer
) -> None:
    server.cuts = [200_000, 0]
    with pytest.raises(NotReady, match=r"broke off after 0\.\d MB of 0\.4 MB: the same command"):
        weights.fetch("fake:small")
    assert weights.find("fake:small") is None
    seen: list[int] = []
    weights_in(weights.folder, base=server.url).fetch("fake:small", lambda done, total: seen.append(done))
    assert seen[0] >= 131_072
    assert server.asked[-1][1] == f"bytes={seen[0]}-"
    assert left_over(weights) == set()


def test_a_body_that_just_ends_is_not_taken_for_the_whole(weights: WeightsFolder, server: FileServer) -> None:
    server.announces_length = False
    server.cuts = [150_000]
    assert weights.fetch("fake:small").read_bytes() == CONTENT
    assert [asked[1] for asked in server.asked] == ["", "bytes=150000-"]


@pytest.mark.parametrize("cuts", [[200_000], [200_000, 0]])
def test_a_server_without_ranges_is_downloaded_from_anew(
    weights: WeightsFolder, server: FileServer, cuts: list[int]
) -> None:
    server.serves_ranges = False
    server.cuts = cuts
    if len(cuts) > 1:
        with pytest.raises(NotReady, match="broke off"):
            weights.fetch("fake:small")
    assert weights.fetch("fake:small").read_bytes() == CONTENT


@pytest.mark.parametrize("heeds_if_range", [True, False])
def test_a_file_that_changed_on_its_server_is_not_glued_together(
    weights: WeightsFolder, server: FileServer, heeds_if_range: bool
) -> None:
    server.content, server.cuts = OTHER, [200_000, 0]
    with pytest.raises(NotReady, match="broke off"):
        weights.fetch("fake:small")
    server.content, server.etag, server.heeds_if_range = CONTENT, '"second"', heeds_if_range
    assert weights.fetch("fake:small").read_bytes() == CONTENT
    assert server.asked[2][2] == '"first"'


def test_a_server_that_names_no_version_is_resumed_and_the_hash_decides(
    weights: WeightsFolder, server: FileServer
) -> None:
    server.etag = ""
    server.cuts = [200_000]
    assert weights.fetch("fake:small").read_bytes() == CONTENT
    assert server.asked[1][1:] == (f"bytes={3 * 65536}-", "")


def test_what_is_not_the_official_file_is_removed_with_a_sentence(
    weights: WeightsFolder, server: FileServer
) -> None:
    server.content = OTHER
    with pytest.raises(NotReady, match=r"not the official fake_4b8939\.pth.*it was removed"):
        weights.fetch("fake:small")
    assert {path.name for path in weights.folder.iterdir()} == {".lock"}
    server.content = CONTENT
    assert weights.fetch("fake:small").read_bytes() == CONTENT


@pytest.mark.parametrize("size", [0, 5_000, 500_000])
def test_a_file_of_another_size_is_refused_before_it_is_downloaded(
    weights: WeightsFolder, server: FileServer, size: int
) -> None:
    server.content = bytes(size)
    with pytest.raises(NotReady, match=f"offers {size:,} bytes"):
        weights.fetch("fake:small")
    assert {path.name for path in weights.folder.iterdir()} == {".lock"}


def test_a_body_without_end_does_not_fill_the_disk(weights: WeightsFolder, server: FileServer) -> None:
    server.announces_length = False
    server.content = CONTENT + bytes(50_000_000)
    seen: list[int] = []
    with pytest.raises(NotReady, match="not the official"):
        weights.fetch("fake:small", lambda done, total: seen.append(done))
    assert max(seen) <= len(CONTENT)


def test_a_part_that_was_complete_is_verified_without_a_download(
    weights: WeightsFolder, server: FileServer
) -> None:
    weights.folder.mkdir()
    (weights.folder / (FILE + ".part")).write_bytes(CONTENT)
    assert weights.fetch("fake:small").read_bytes() == CONTENT
    assert server.asked == []


def test_a_part_that_its_server_cannot_continue_is_begun_again(
    weights: WeightsFolder, server: FileServer
) -> None:
    weights.folder.mkdir()
    (weights.folder / (FILE + ".part")).write_bytes(CONTENT[:300_000])
    server.content = CONTENT[:300_000]  # 416
    with pytest.raises(NotReady, match="offers 300,000 bytes"):
        weights.fetch("fake:small")
    server.content = CONTENT
    assert weights.fetch("fake:small").read_bytes() == CONTENT


@pytest.mark.parametrize(
    ("status", "advice"), [(404, "check the mirror"), (403, "check the mirror"), (503, "try again later")]
)
def test_a_server_that_refuses_is_quoted(
    weights: WeightsFolder, server: FileServer, status: int, advice: str
) -> None:
    server.status = status
    with pytest.raises(NotReady, match=f"127.0.0.1 answered {status}: {advice}"):
        weights.fetch("fake:small")


def test_offline_is_one_sentence_and_keeps_the_part(tmp_path: Path) -> None:
    with socket.socket() as nobody:
        nobody.bind(("127.0.0.1", 0))  # bound, not listening: connections are refused
        weights = weights_in(tmp_path, base=f"http://127.0.0.1:{nobody.getsockname()[1]}")
        for part in (b"", CONTENT[:1000]):
            (tmp_path / (FILE + ".part")).write_bytes(part)
            with pytest.raises(NotReady) as refusal:
                weights.fetch("fake:small")
            assert str(refusal.value).startswith("127.0.0.1 cannot be reached: check the network")
            assert (tmp_path / (FILE + ".part")).read_bytes() == part


def test_a_mirror_is_asked_instead(tmp_path: Path, server: FileServer) -> None:
    weights = weights_in(tmp_path, mirror=server.url + "/our/mirror/")
    assert weights.fetch("fake:small").read_bytes() == CONTENT
    assert server.asked == [(f"/our/mirror/{FILE}", "", "")]


def test_the_proxy_of_the_environment_is_used(
    tmp_path: Path, server: FileServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HTTP_PROXY", server.url)
    weights = weights_in(tmp_path, base="http://weights.invalid")
    assert weights.fetch("fake:small").read_bytes() == CONTENT
    assert server.asked == [(f"http://weights.invalid/{FILE}", "", "")]


@pytest.mark.parametrize("scheme", ["", "file://"])
def test_a_mirror_may_be_a_folder(tmp_path: Path, scheme: str) -> None:
    mirror = tmp_path / "mirror"
    mirror.mkdir()
    weights = weights_in(tmp_path / "weights", mirror=f"{scheme}{mirror}")
    with pytest.raises(NotReady, match=r"the mirror has no fake_4b8939\.pth"):
        weights.fetch("fake:small")
    (mirror / FILE).write_bytes(OTHER)
    with pytest.raises(NotReady, match="not the official"):
        weights.fetch("fake:small")
    (mirror / FILE).write_bytes(CONTENT)
    assert weights.fetch("fake:small").read_bytes() == CONTENT
    assert left_over(weights) == set()


@pytest.mark.parametrize(
    "mirror", ["http://", "http://[", "http://a b/", "ftp://127.0.0.1", "no/such/folder"]
)
def test_a_mirror_that_cannot_be_is_a_sentence(tmp_path: Path, mirror: str) -> None:
    with pytest.raises(NotReady):
        weights_in(tmp_path, mirror=mirror).fetch("fake:small")


def test_a_disk_that_is_too_small_is_noticed_before_the_download(tmp_path: Path, server: FileServer) -> None:
    huge = Checkpoint(f"{server.url}/{FILE}", 2**60, "0" * 64, "MIT")
    with pytest.raises(NotReady, match=r"needs [\d,.]+ MB, and the disk has [\d,.]+ MB left"):
        WeightsFolder(tmp_path, None, {"fake:huge": huge}).fetch("fake:huge")
    assert server.asked == []


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full")
def test_a_disk_that_fills_up_is_a_sentence(weights: WeightsFolder) -> None:
    weights.folder.mkdir()
    (weights.folder / (FILE + ".part")).symlink_to("/dev/full")
    with pytest.raises(NotReady, match="cannot be written: No space left on device"):
        weights.fetch("fake:small")


def test_a_folder_that_cannot_be_made_is_a_sentence(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(NotReady, match="cannot be written"):
        weights_in(tmp_path / "file" / "weights").fetch("fake:small")


def _fetch(folder: Path, url: str, outcome: multiprocessing.Queue[str]) -> None:
    try:
        weights_in(folder, base=url).fetch("fake:small")
    except NotReady as error:
        outcome.put(str(error))
    else:
        outcome.put("fetched")


def test_two_processes_do_not_write_one_part(weights: WeightsFolder, server: FileServer) -> None:
    said: list[str] = []

    def in_the_middle(done: int, total: int) -> None:
        if done and not said:
            process = multiprocessing.get_context("spawn")
            outcome: multiprocessing.Queue[str] = process.Queue()
            other = process.Process(target=_fetch, args=(weights.folder, server.url, outcome))
            other.start()
            said.append(outcome.get(timeout=60))
            other.join()

    assert weights.fetch("fake:small", in_the_middle).read_bytes() == CONTENT
    assert said == ["another process is fetching weights into this folder"]


def test_names_without_weights_are_refused_with_those_that_have_them(weights: WeightsFolder) -> None:
    assert weights.find("grabcut") is None
    assert weights.missing("grabcut") == "no weights are known for it"
    for call in (weights.verify, weights.fetch):
        with pytest.raises(NotFound, match="known: fake:small"):
            call("grabcut")


def test_a_range_of_more_digits_than_any_file_needs_is_none() -> None:
    response = requests.Response()
    response.status_code = 206
    response.headers["Content-Range"] = f"bytes {'9' * 5000}-1/{'9' * 5000}"
    assert weights_module._offer(response) == (-1, None, "")
