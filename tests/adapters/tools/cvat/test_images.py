from __future__ import annotations

import pytest

from clickmask.errors import ImageUnknown, InvalidImage
from clickmask.types import ImageRef
from clickmask.workbench import Workbench
from clickmask_adapters.tools.cvat.images import KnownImages
from support.pictures import png_base64


def text(shade: int) -> memoryview:
    return memoryview(png_base64(shade).encode())


def test_an_image_is_named_by_its_digest_once_it_was_decoded(workbench: Workbench) -> None:
    known = KnownImages(workbench)
    digest = workbench.identify(ImageRef("data:;base64," + png_base64(7))).digest
    for _ in range(2):
        assert known.show(text(7), lambda ref: ref.uri) == f"digest:{digest}"


def test_what_is_remembered_is_bounded_and_the_oldest_use_goes(
    workbench: Workbench, monkeypatch: pytest.MonkeyPatch
) -> None:
    known, decoded = KnownImages(workbench, most=2), list[str]()
    identify = workbench.identify
    monkeypatch.setattr(workbench, "identify", lambda ref: decoded.append(ref.uri) or identify(ref))
    for shade in (1, 2, 1, 3, 1, 2):
        known.show(text(shade), lambda ref: ref)
    assert decoded == ["data:;base64," + png_base64(shade) for shade in (1, 2, 3, 2)]


def test_an_image_whose_pixels_had_to_go_is_shown_as_it_was_sent(workbench: Workbench) -> None:
    def ask(ref: ImageRef) -> str:
        asked.append(ref.uri[:7])
        if ref.uri.startswith("digest:"):
            raise ImageUnknown("its pixels had to go")
        return ref.uri

    known, asked = KnownImages(workbench), list[str]()
    for _ in range(2):
        assert known.show(text(7), ask) == "data:;base64," + png_base64(7)
    assert asked == ["digest:", "data:;b", "digest:", "digest:", "data:;b"]


def test_a_text_that_is_not_ascii_is_no_image(workbench: Workbench) -> None:
    with pytest.raises(InvalidImage, match="base64"):
        KnownImages(workbench).show(memoryview("Bä".encode()), lambda ref: ref)
