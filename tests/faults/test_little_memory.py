"""A server whose address space is limited says that it needs more memory, and goes on."""

from __future__ import annotations

import base64
import io
from pathlib import Path

import numpy as np
import PIL.Image
import pytest
import requests

from support.served import Server

pytestmark = pytest.mark.faults

LIMITED = (
    "import resource, sys; from clickmask_adapters import cli; "
    "resource.setrlimit(resource.RLIMIT_AS, ({0}, {0})); cli.app(['serve', *sys.argv[1:]])"
)


def limited(home: Path, megabytes: int, segmenter: str) -> Server:
    program = ("-c", LIMITED.format(megabytes * 10**6))
    return Server(home, {}, ["--segmenter", segmenter], program)


def click(server: Server, height: int, width: int) -> requests.Response:
    file = io.BytesIO()
    PIL.Image.fromarray(np.zeros((height, width, 3), np.uint8)).save(file, "PNG")
    image = {"data": base64.b64encode(file.getvalue()).decode()}
    asked = {"image": image, "prompt": {"foreground": [[10, 10]]}}
    return requests.post(f"{server.url}/v1/proposals", json=asked, timeout=300)


@pytest.mark.parametrize("megabytes", [200, 400, 600])
def test_a_server_that_cannot_start_says_so_in_a_sentence(megabytes: int, tmp_path: Path) -> None:
    with pytest.raises(RuntimeError) as failed:
        limited(tmp_path, megabytes, "grabcut").stop()
    assert "needs more memory" in str(failed.value) and "Traceback" not in str(failed.value)


def test_a_picture_that_does_not_fit_is_answered_and_the_next_one_served(tmp_path: Path) -> None:
    server = limited(tmp_path, 1300, "grabcut")
    try:
        assert click(server, 300, 400).status_code == 200
        large = click(server, 9990, 10_000)
        assert (large.status_code, "needs more memory" in large.text) == (503, True)
        assert click(server, 301, 400).status_code == 200
        assert "Traceback" not in server.output
    finally:
        server.stop()


def test_a_segmenter_that_cannot_be_loaded_says_that_it_needs_memory(tmp_path: Path) -> None:
    server = limited(tmp_path, 1000, "builtin")
    try:
        answer = click(server, 300, 400)
        assert (answer.status_code, "needs more memory" in answer.text) == (503, True)
    finally:
        server.stop()
