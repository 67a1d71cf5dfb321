from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from clickmask import files
from clickmask.datasets.snapshot import create_dataset
from clickmask.errors import Failed, InvalidRequest
from clickmask_adapters.exports import _folder
from clickmask_adapters.exports._folder import file_names, safe_basename
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
        (".hidden", "_.hidden"),
        (".png", "_.png"),
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


def test_a_folder_that_cannot_be_replaced_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    (tmp_path / "link").symlink_to(tmp_path)
    for name in ("file", "link"):
        with pytest.raises(InvalidRequest, match="cannot be replaced"):
            _folder.require_replaceable(tmp_path / name)
    with (
        pytest.raises(InvalidRequest, match="nothing can be written beside"),
        _folder.replacing(Path("/proc/x")),
    ):
        pytest.fail("there is nothing to write into")


@pytest.mark.parametrize("at_once", [True, False])
def test_readers_see_one_export_or_the_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, at_once: bool
) -> None:
    """Where the system cannot exchange two folders, the old one is out of the way for a moment."""
    if not at_once:
        monkeypatch.setattr(files, "_exchange", lambda one, other: False)
    folder = tmp_path / "out"
    for number in range(3):
        with _folder.replacing(folder) as new:
            (new / "file").write_text(str(number))
            assert not folder.exists() or (folder / "file").read_text() == str(number - 1)
        assert (folder / "file").read_text() == str(number)
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


@pytest.mark.parametrize("failing", [1, 2])
def test_a_rename_that_fails_leaves_the_earlier_export(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, failing: int
) -> None:
    folder = tmp_path / "out"
    with _folder.replacing(folder) as new:
        (new / "file").write_text("old")
    monkeypatch.setattr(files, "_exchange", lambda one, other: False)
    rename, calls = Path.rename, []

    def broken(self: Path, target: Path) -> Path:
        calls.append(target)
        if len(calls) == failing:
            raise OSError(5, "Input/output error")
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", broken)
    said = pytest.raises(Failed, match="could not be replaced: Input/output error")
    with said, _folder.replacing(folder) as new:
        (new / "file").write_text("new")
    assert (folder / "file").read_text() == "old"
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
