"""Label configs that are made to take long or to grow."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

import pytest

from clickmask.errors import InvalidRequest
from clickmask_adapters.tools.label_studio import label_config
from support.growth import grows_linearly

IMAGE = '<Image name="i" value="$image"/>'
CONTROL, LABEL = '<A name="a" toName="i">', '<Label value="x"/>'
SHAPES: dict[str, Callable[[int], str]] = {
    "comments that begin": lambda n: view("<!--" * n),
    "sections that begin": lambda n: view("<![CDATA[" * n),
    "comments in a section": lambda n: view("<![CDATA[" + "<!--" * n + "]]>"),
    "dashes": lambda n: view("<!--" + "- -" * n + "-->"),
    "angle brackets": lambda n: "<" * n,
    "tags": lambda n: view("<a/>" * n),
    "attributes": lambda n: view(f"<A {attributes(n)}/>"),
    "labels": lambda n: view(CONTROL + LABEL * n + "</A>"),
    "controls": lambda n: view((CONTROL + LABEL + "</A>") * (n // 2)),
    "nested controls": lambda n: view(CONTROL * n + "</A>" * n),
    "images": lambda n: view('<Image name="a" toName="i,i" value="$x"/>' * n),
}


def view(inside: str) -> str:
    return f"<View>{inside}</View>"


def attributes(count: int) -> str:
    return " ".join(f'a{number}=""' for number in range(count))


def read(xml: str) -> label_config.LabelConfig | None:
    try:
        return label_config.parse(xml)
    except InvalidRequest:
        return None


@pytest.mark.parametrize("shape", SHAPES)
def test_a_longer_config_takes_no_longer_than_its_length_says(shape: str) -> None:
    assert grows_linearly(lambda count: read(SHAPES[shape](count)), 250)


@pytest.mark.parametrize(
    ("xml", "reason"),
    [
        (view(" " * label_config.MAX_CHARS), "characters"),
        (view("<a/>" * label_config.MAX_TAGS), "tags"),
        ("<a>" * 101 + "</a>" * 101, "in one another"),
    ],
)
def test_a_config_that_nobody_would_write_is_refused(xml: str, reason: str) -> None:
    with pytest.raises(InvalidRequest, match=reason):
        label_config.parse(xml)


def test_a_label_belongs_to_the_control_that_is_nearest_around_it() -> None:
    nested = '<A name="a" toName="i"><Label value="x"/><B name="b" toName="i"><Label value="y"/></B></A>'
    found = {
        each.name: [label.value for label in each.labels] for each in label_config.parse(nested).controls
    }
    assert found == {"a": ["x"], "b": ["y"]}


FLAGGED, ONES = '<Repeater on="$x" indexFlag="1">', '<A b="' + "1" * 1000 + '"/>'


@pytest.mark.parametrize(
    ("repeated", "data"),
    [
        (FLAGGED + ONES + "</Repeater>", {"x": [0] * 9999}),
        (FLAGGED * 50 + ONES + "</Repeater>" * 50, {"x": [0] * 12}),
        (f'<Repeater on="$x"><A {attributes(1000)}/></Repeater>', {"x": [0] * 9999}),
        ('<Repeater on="$x">' * 50 + "</Repeater>" * 50, {"x": [0] * 100}),
    ],
)
def test_what_a_task_repeats_is_bounded_in_characters_as_in_tags(repeated: str, data: dict[str, Any]) -> None:
    config = label_config.parse(view(repeated))
    with pytest.raises(InvalidRequest, match="more than"):
        config.of_task(data)


@pytest.mark.parametrize(
    ("value", "data"),
    [
        ("$a" * 1000, {"a": "x" * 1000}),
        ("$a", {"a": "https://host/" + "x" * 2**14}),
        ("$a[" + "9" * 5000 + "]", {"a": ["/x.png"]}),
        ("$a[²]", {"a": ["/x.png"]}),
    ],
)
def test_an_address_that_is_none_is_refused(value: str, data: dict[str, Any]) -> None:
    config = label_config.parse(f'<View><Image name="i" value="{value}"/></View>')
    with pytest.raises(InvalidRequest):
        config.image_uris("i", data)


def test_a_picture_in_its_address_may_be_large() -> None:
    (uri,) = label_config.parse(f"<View>{IMAGE}</View>").image_uris("i", {"image": "data:," + "x" * 2**15})
    assert len(uri) > 2**15


def test_many_images_that_are_not_there_are_one_line_of_log(caplog: pytest.LogCaptureFixture) -> None:
    images = "".join(f'<Image name="i{number}" value="$x"/>' for number in range(500))
    with caplog.at_level(logging.INFO):
        assert list(label_config.parse(f"<View>{images}</View>").shown(7, {})) == []
    assert len(caplog.records) == 1


def test_more_images_than_anybody_looks_at_are_refused() -> None:
    with pytest.raises(InvalidRequest, match="1001 images"):
        label_config.parse(view("".join(f'<Image name="i{number}" value="$x"/>' for number in range(1001))))


def test_many_controls_to_answer_with_are_refused() -> None:
    config = label_config.parse(view(IMAGE + '<Brush name="b" toName="i"/>' * 11))
    with pytest.raises(InvalidRequest, match="11 controls"):
        config.answers("i", "", [])


def test_labels_are_found_without_a_search_through_all_of_them() -> None:
    def answer(count: int) -> None:
        names = [f"n{number}" for number in range(count)]
        labels = "".join(f'<Label value="{name}"/>' for name in names)
        controls = (
            f'<A name="a" toName="i">{labels}</A><BrushLabels name="b" toName="i">{labels}</BrushLabels>'
        )
        config = label_config.parse(f"<View>{IMAGE}{controls}</View>")
        assert len(config.answers("i", "a", names)[0].labels) == count

    assert grows_linearly(answer, 100)
