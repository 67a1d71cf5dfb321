from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from clickmask.datasets.snapshot import create_dataset
from clickmask_adapters.exports._pictures import file_names, safe_basename
from support.labelled import labelled


@pytest.mark.parametrize(
    ("name", "safe"),
    [
        ("cat.jpg", "cat.jpg"),
        ("Grüße 1 (2).jpeg", "Grüße 1 (2).jpeg"),
        ("a/b/cat.jpg", "cat.jpg"),
        ("C:\\photos\\cat.jpg", "cat.jpg"),
        ("../../etc/passwd", "passwd"),
        ("..", ""),
        (".", ""),
        ("", ""),
        ("a/", ""),
        ("cat\x00.jpg", "cat_.jpg"),
        ("what?*.png", "what__.png"),
        ("CON", "_CON"),
        ("aux.png", "_aux.png"),
        ("com1.tar.gz", "_com1.tar.gz"),
        ("trailing. . ", "trailing"),
        ("\ud800.png", "_.png"),
        (".hidden", ".hidden"),
    ],
)
def test_a_name_is_one_on_every_system(name: str, safe: str) -> None:
    assert safe_basename(name) == safe


def test_a_long_name_is_cut_before_its_ending() -> None:
    safe = safe_basename("ü" * 300 + ".jpeg")
    assert safe.endswith("ü.jpeg")
    assert 170 < len(safe.encode()) <= 180


AWKWARD = ["a.png", "A.PNG", "b/a.png", "\u00e9.png", "e\u0301.png", ".."]
names = st.one_of(st.text(max_size=12), st.sampled_from(AWKWARD))


@given(st.lists(names, max_size=8))
def test_no_two_pictures_share_a_file_and_none_leaves_the_folder(given_names: list[str]) -> None:
    images = [labelled(str(number), str(number), name) for number, name in enumerate(given_names)]
    made = create_dataset(images, [], tool="cvat", project="1")
    found = file_names(made.samples)
    assert len({name.casefold() for name in found.values()}) == len(given_names)
    for name in found.values():
        assert name.strip(". ")
        assert not set(name) & set('/\\\x00:*?"<>|')
        assert len(name.encode()) <= 255
    assert file_names(made.samples[::-1]) == found
