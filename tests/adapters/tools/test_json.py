"""What both tools check of JSON."""

from __future__ import annotations

from typing import Any

import pytest

from clickmask.errors import InvalidRequest
from clickmask_adapters.tools import _json


@pytest.mark.parametrize("value", [b"[],", b"{},", b"[1,2],"])
def test_more_lists_than_any_event_has_are_refused_before_they_are_made(
    value: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    few, many = (b'{"a":[' + value * count + b"1]}" for count in (1000, _json.MAX_CONTAINERS))
    assert len(_json.parse_object(few, "the event")["a"]) == 1001
    with monkeypatch.context() as patched:
        patched.setattr(_json.orjson, "loads", lambda _: pytest.fail("they were made"))
        with pytest.raises(InvalidRequest, match="lists and objects"):
            _json.parse_object(many, "the event")


def test_what_the_thread_reads_that_answers_everybody_has_few_lists() -> None:
    raw = b'{"a":[' + b"[]," * _json.FEW_CONTAINERS + b"1]}"
    assert _json.parse_object(raw, "the event")
    with pytest.raises(InvalidRequest, match="10000 lists"):
        _json.parse_object(raw, "the event", _json.FEW_CONTAINERS)


@pytest.mark.parametrize(
    "raw", [b"", b"[]", b"1", b'"x"', b"[" * 10**6, b"1e400x", b"\xff", b'{"a":"\\ud800"}']
)
def test_what_is_no_object_is_refused(raw: bytes) -> None:
    with pytest.raises(InvalidRequest):
        _json.parse_object(raw, "the event")


@pytest.mark.parametrize(
    ("value", "text"), [("x", "x"), (7, "7"), (0.5, "0.5"), (None, "None"), ([[]], "a list"), ({}, "a dict")]
)
def test_only_texts_and_numbers_are_written_out(value: Any, text: str) -> None:
    assert _json.text_of(value) == text
