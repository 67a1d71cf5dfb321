from __future__ import annotations

import json
from typing import Any

import orjson
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from clickmask.errors import Gone, InvalidRequest
from clickmask.types import ImageRef
from clickmask.workbench import Workbench
from clickmask_adapters.tools.cvat.prompts import split_image
from clickmask_adapters.tools.cvat.routes import Invoker
from support.pictures import png_base64

json_values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**53), 2**53)
    | st.text(st.sampled_from('image":,{}\\ a/'), max_size=9),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(["image", "a"]), inner, max_size=2)
    ),
    max_leaves=5,
)
texts = st.text(st.sampled_from('abc+/="\\é'), min_size=1, max_size=12)


def read(body: bytes) -> tuple[dict[str, Any], str]:
    asked, text = split_image(body)
    return {name: value for name, value in asked.items() if name != "image"}, str(text, "utf-8")


@settings(deadline=None)
@given(
    st.lists(
        st.tuples(st.sampled_from(["image", "a", "pos_points", 'x"image']), json_values | texts), max_size=4
    ),
    texts,
    st.integers(0, 4),
    st.sampled_from([None, 1]),
    st.booleans(),
)
def test_the_image_is_the_one_that_a_json_parser_finds(
    others: list[tuple[str, Any]], text: str, place: int, indent: int | None, ascii_only: bool
) -> None:
    """Also where the request says "image" in other places, escapes it or spreads over lines."""
    members = [(name, value) for name, value in others if name != "image"]
    members.insert(place, ("image", text))
    body = json.dumps(dict(members), indent=indent, ensure_ascii=ascii_only).encode()
    rest = {name: value for name, value in dict(members).items() if name != "image"}
    assert read(body) == (rest, text)


def test_a_large_image_is_cut_out_and_not_copied() -> None:
    body = b'{"pos_points": [[1, 2]], "image": "' + b"A" * 10**6 + b'", "obj_bbox": null}'
    asked, text = split_image(body)
    assert asked == {"pos_points": [[1, 2]], "image": "", "obj_bbox": None}
    assert len(text) == 10**6 and text.obj is body


def test_an_image_that_is_not_the_requests_own_is_left_where_it_is() -> None:
    assert read(b'{"a": {"image": "inner"}, "image": "outer"}') == ({"a": {"image": "inner"}}, "outer")
    assert read(b'{"image": "first", "image": "last"}') == ({}, "last")


def test_escapes_are_undone() -> None:
    assert read(rb'{"image": "a\/b"}') == ({}, "a/b")


@pytest.mark.parametrize(
    "body",
    [
        *(b"", b"{", b"[]", b"null", b'"image"', b"\xff", b"{}", b"[" * 5000),
        *(b'{"image": null}', b'{"image": ""}', b'{"image": 7}', b'{"image": ["x"]}', b'{"image": {}}'),
        *(b'{"image": "AAAA', b'{"image": "AAAA"', b'{"image": "AAAA" "b": 1}', b'{"image": "AAAA"}}'),
        *(b'{"x": {"image": "AAAA"}}', b'{"image": "AAAA", "image": 7}', b'{"image": "\\ud800"}'),
    ],
    ids=lambda body: body[:30],
)
def test_a_request_without_an_image_is_refused(body: bytes) -> None:
    with pytest.raises(InvalidRequest, match=r"not JSON|JSON object|no image"):
        split_image(body)


@settings(deadline=None)
@given(st.binary(max_size=40) | st.text('image":{},[]\\ 1', max_size=40).map(str.encode))
def test_any_bytes_are_read_or_refused(body: bytes) -> None:
    try:
        _, text = split_image(body)
    except InvalidRequest:
        return
    assert orjson.loads(body)["image"] == str(text, "utf-8")


def test_an_image_whose_pixels_had_to_go_is_shown_as_it_was_sent(workbench: Workbench) -> None:
    def ask(ref: ImageRef) -> str:
        asked.append(ref.uri[:7])
        if ref.uri.startswith("digest:"):
            raise Gone("its pixels had to go")
        return ref.uri

    invoker, asked = Invoker(workbench, 0.98, every_candidate=False), list[str]()
    for _ in range(2):
        sent = memoryview(png_base64(7).encode())
        assert invoker._show(sent, ask) == "data:;base64," + png_base64(7)
    assert asked == ["digest:", "data:;b", "digest:", "data:;b"]


@pytest.mark.parametrize("prefix", ["data:image/png;base64,", "\n"])
def test_an_image_with_a_prefix_or_a_line_break_is_the_same_image(workbench: Workbench, prefix: str) -> None:
    invoker, sent = Invoker(workbench, 0.98, every_candidate=False), (prefix + png_base64(7)).encode()
    plain = invoker._show(memoryview(png_base64(7).encode()), workbench.identify)

    def ask(ref: ImageRef) -> str:
        if ref.uri.startswith("digest:"):
            raise Gone("its pixels had to go")
        return workbench.identify(ref).digest

    assert invoker._show(memoryview(sent), ask) == plain.digest
