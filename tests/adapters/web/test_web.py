"""The pages' files: what they are served as, and that nothing in them comes from outside."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from fastapi import FastAPI
from fastapi.testclient import TestClient

from clickmask_adapters import web

FILES = sorted(path for path in web.FOLDER.rglob("*") if path.suffix in web.MEDIA_TYPES)
TEXTS = [path for path in FILES if path.suffix in {".html", ".css", ".js", ".svg"}]


@pytest.fixture(scope="module")
def client() -> TestClient:
    app = FastAPI()
    app.include_router(web.router())
    return TestClient(app)


def name_of(path: Path) -> str:
    return path.relative_to(web.FOLDER).as_posix()


@pytest.mark.parametrize("path", FILES, ids=name_of)
def test_each_file_is_served_with_its_type_and_asked_for_again(client: TestClient, path: Path) -> None:
    answer = client.get(f"/static/{name_of(path)}")
    assert answer.status_code == 200
    assert answer.content == path.read_bytes()
    assert answer.headers["content-type"] == web.MEDIA_TYPES[path.suffix]
    assert answer.headers["cache-control"] == "no-cache"
    assert answer.headers["x-content-type-options"] == "nosniff"


def test_a_file_that_is_already_there_is_not_sent_again(client: TestClient) -> None:
    tag = client.get("/").headers["etag"]
    for header in (tag, f"W/{tag}", f'"other", {tag}'):
        again = client.get("/", headers={"If-None-Match": header})
        assert (again.status_code, again.content, again.headers["etag"]) == (304, b"", tag)
    assert client.get("/", headers={"If-None-Match": '"other"'}).status_code == 200


@pytest.mark.parametrize(("address", "name"), [("/", "index.html"), ("/status", "status.html")])
def test_the_pages_allow_no_script_or_style_but_their_own_files(
    client: TestClient, address: str, name: str
) -> None:
    answer = client.get(address)
    assert answer.content == (web.FOLDER / name).read_bytes()
    policy = answer.headers["content-security-policy"]
    assert "default-src 'self'" in policy
    assert "unsafe" not in policy
    assert "frame-ancestors 'none'" in policy
    assert not re.search(r"<style|<script(?![^>]*\ssrc=)|\sstyle=|\son\w+=", answer.text)


@pytest.mark.parametrize("path", TEXTS, ids=name_of)
def test_nothing_is_named_that_lies_outside(path: Path) -> None:
    addresses = re.findall(r"(?:https?:)?//[\w.-]+\.\w+[^\s\"')]*", path.read_text())
    assert [address for address in addresses if "www.w3.org" not in address] == []


@pytest.mark.parametrize("path", [path for path in TEXTS if path.suffix in {".html", ".js"}], ids=name_of)
def test_every_file_that_is_named_is_there(client: TestClient, path: Path) -> None:
    text = path.read_text()
    named = set(re.findall(r"/static/[\w./-]+\.\w+", text))
    named |= {f"/static/{name}" for name in re.findall(r'from "\./([\w.]+)"', text)}
    for address in named:
        assert client.get(address).status_code == 200, address


@pytest.mark.parametrize(
    "address",
    [
        "/static/__init__.py",
        "/static/samples",
        "/static/../settings.py",
        "/static/%2e%2e/settings.py",
        "/static/",
    ],
)
def test_no_other_file_is_served(client: TestClient, address: str) -> None:
    assert client.get(address).status_code == 404


def test_head_tells_the_size_without_the_page(client: TestClient) -> None:
    answer = client.head("/")
    assert (answer.status_code, answer.content) == (200, b"")
    assert int(answer.headers["content-length"]) == (web.FOLDER / "index.html").stat().st_size


def test_samples_are_small_and_their_rights_are_stated() -> None:
    samples = sorted((web.FOLDER / "samples").glob("*.jpg"))
    rights = (web.FOLDER / "samples" / "README.md").read_text()
    assert len(samples) == 3
    for sample in samples:
        assert sample.stat().st_size < 120_000
        assert f"`{sample.name}`" in rights
