from __future__ import annotations

import logging
import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from clickmask.errors import Busy, Gone, ImageUnavailable, InvalidInput, NotFound
from clickmask.images.source import ImageSource
from clickmask.ingest.inbox import Inbox
from clickmask.masks.controls import Controls
from clickmask.masks.regions import mask_iou
from clickmask.masks.rle import rle_to_mask
from clickmask.store import Store
from clickmask.types import Image, ImageRef, Prompt
from clickmask.workbench import Workbench
from support.drawn import scene
from support.fakes import DiscSegmenter, DrawnAnnotator, disc_mask
from support.pictures import data_uri, png_data_uri
from support.waiting import until

CLICK = Prompt(foreground=((40.0, 30.0),))


def test_a_click_becomes_a_proposal_that_is_remembered(workbench: Workbench, store: Store) -> None:
    (proposal,) = workbench.propose(ImageRef(png_data_uri()), CLICK)
    expected = disc_mask((60, 80), [(40.0, 30.0)])
    assert np.array_equal(proposal.prediction.mask, expected)
    remembered = store.proposal(proposal.id)
    assert remembered is not None
    assert remembered.digest == proposal.digest == workbench.identify(ImageRef(png_data_uri())).digest
    assert np.array_equal(rle_to_mask(remembered.rle), expected)


def test_ids_of_equal_proposals_differ_and_cannot_be_guessed(workbench: Workbench) -> None:
    ids = [workbench.propose(ImageRef(png_data_uri()), CLICK)[0].id for _ in range(5)]
    assert len(set(ids)) == 5
    assert all(len(identifier) >= 16 for identifier in ids)


def test_an_image_is_encoded_once_however_it_is_named(workbench: Workbench, disc: DiscSegmenter) -> None:
    (first,) = workbench.propose(ImageRef(png_data_uri()), CLICK)
    workbench.propose(ImageRef(png_data_uri()), CLICK)
    workbench.propose(ImageRef(f"digest:{first.digest}"), CLICK)
    assert disc.encoded == [first.digest]


def test_a_digest_that_is_not_known_asks_for_the_image(workbench: Workbench) -> None:
    with pytest.raises(Gone, match="send the image again"):
        workbench.propose(ImageRef("digest:" + "0" * 64), CLICK)


def test_a_prepared_image_is_not_encoded_again_by_the_first_click(
    workbench: Workbench, disc: DiscSegmenter
) -> None:
    ref = ImageRef(png_data_uri())
    assert workbench.prepare(ref)
    until(lambda: workbench.cache_status().entries == 1)
    workbench.propose(ref, CLICK)
    assert len(disc.encoded) == 1
    assert workbench.cache_status().hits == 1


def test_preparing_never_raises_and_never_waits(workbench: Workbench, disc: DiscSegmenter) -> None:
    assert workbench.prepare(ImageRef("data:,rubbish"))
    until(lambda: workbench.prepare(ImageRef("file:///etc/passwd")))
    disc.hold = threading.Event()
    for shade in range(2):
        until(lambda shade=shade: workbench.prepare(ImageRef(png_data_uri(shade))))
    disc.hold.set()
    until(lambda: workbench.cache_status().entries == 2)


def test_too_many_preparations_are_dropped(workbench: Workbench, monkeypatch: pytest.MonkeyPatch) -> None:
    hold = threading.Event()
    monkeypatch.setattr(workbench, "_prepare", lambda ref, name: hold.wait(5))
    assert [workbench.prepare(ImageRef(png_data_uri())) for _ in range(3)] == [True, True, False]
    hold.set()


def test_a_prompt_outside_of_the_image_is_refused(workbench: Workbench) -> None:
    with pytest.raises(InvalidInput, match="80x60"):
        workbench.propose(ImageRef(png_data_uri()), Prompt(foreground=((81.0, 5.0),)))


def test_a_prompt_of_too_many_points_is_refused(workbench: Workbench) -> None:
    with pytest.raises(InvalidInput, match="at most 20 points"):
        workbench.propose(ImageRef(png_data_uri()), Prompt(foreground=((1.0, 1.0),) * 21))


def test_an_image_that_changes_between_two_looks_is_never_kept_under_the_wrong_digest(
    workbench: Workbench, disc: DiscSegmenter, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = Image(np.zeros((60, 80, 3), np.uint8), "another digest")
    monkeypatch.setattr(ImageSource, "load", lambda self, ref: other)
    with pytest.raises(ImageUnavailable, match="replaced"):
        workbench.propose(ImageRef(png_data_uri()), CLICK)
    assert disc.encoded == []


def test_a_project_may_choose_its_segmenter(workbench: Workbench) -> None:
    workbench.set_project("label_studio", "7", "grabcut")
    assert workbench.project_segmenter("label_studio", "7") == "grabcut"
    with pytest.raises(NotFound):
        workbench.set_project("label_studio", "7", "no-such-thing")
    assert workbench.project_segmenter("label_studio", "7") == "grabcut"
    workbench.set_project("label_studio", "7", None)
    assert workbench.project_segmenter("label_studio", "7") is None


def test_clicks_do_not_ask_the_database_for_their_settings_each_time(
    workbench: Workbench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("clickmask.workbench.SETTINGS_TTL_S", 1e9)
    assert workbench.project_segmenter("label_studio", "7") is None
    workbench.store.set_project_segmenter("label_studio", "7", "grabcut")  # as another process would
    assert workbench.project_segmenter("label_studio", "7") is None
    monkeypatch.setattr("clickmask.workbench.SETTINGS_TTL_S", 0.01)
    until(lambda: workbench.project_segmenter("label_studio", "7") == "grabcut")


def test_the_default_segmenter_is_loaded_before_the_first_click(
    workbench: Workbench, monkeypatch: pytest.MonkeyPatch
) -> None:
    loaded: list[str] = []
    monkeypatch.setattr(workbench._catalogue, "get", loaded.append)
    workbench.warm_up()
    until(lambda: loaded == ["disc"])


def test_a_default_segmenter_that_cannot_be_loaded_is_said_in_the_log(
    workbench: Workbench, caplog: pytest.LogCaptureFixture
) -> None:
    workbench.default_segmenter = "nothing"
    workbench.warm_up()
    until(lambda: "cannot be loaded: there is no segmenter 'nothing'" in caplog.text)


def test_an_event_is_kept_as_it_came(workbench: Workbench, inbox: Inbox) -> None:
    workbench.keep_event("label_studio", b"\xff{").result()
    assert [(event.source, event.body) for event in inbox.events()] == [("label_studio", b"\xff{")]
    assert workbench.kept_events() == 1


def test_a_click_is_one_line_in_the_log(workbench: Workbench, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO):
        (proposal,) = workbench.propose(ImageRef(png_data_uri()), CLICK, tool="label_studio")
        workbench.propose(ImageRef(png_data_uri()), CLICK)
    first, second = caplog.messages
    assert first.startswith(f"label_studio: image {proposal.digest[:8]}, disc, embedding made")
    assert "embedding kept" in second
    assert "base64" not in caplog.text


def test_an_annotator_finds_every_object_with_its_label(workbench: Workbench) -> None:
    drawn = scene()
    found = workbench.annotate(ImageRef(data_uri(drawn.pixels)), "drawn")
    assert {label for label, _ in found} == set(drawn.objects)
    for label, prediction in found:
        assert mask_iou(prediction.mask, drawn.objects[label]) > 0.9
    assert workbench.annotate(ImageRef(png_data_uri()), "drawn") == []


def test_annotators_are_listed_with_their_labels(workbench: Workbench) -> None:
    (status,) = [status for status in workbench.annotators() if status.name == "drawn"]
    assert status.ready
    assert set(status.labels) == set(scene().objects)


def test_few_images_are_annotated_at_a_time_and_clicks_wait_for_none(
    workbench: Workbench, drawn: DrawnAnnotator
) -> None:
    drawn.hold = threading.Event()
    ref = ImageRef(png_data_uri())
    with ThreadPoolExecutor(2) as pool:
        running = [pool.submit(workbench.annotate, ref, "drawn") for _ in range(2)]
        until(lambda: len(drawn.annotated) == 2)
        with pytest.raises(Busy, match="being annotated"):
            workbench.annotate(ref, "drawn")
        assert workbench.propose(ref, CLICK)
        drawn.hold.set()
        assert [each.result(10) for each in running] == [[], []]
    assert workbench.annotate(ref, "drawn") == []


def test_a_failed_annotation_makes_room_for_the_next(workbench: Workbench) -> None:
    for _ in range(3):
        with pytest.raises(NotFound):
            workbench.annotate(ImageRef(png_data_uri()), "no-such-thing")
        with pytest.raises(InvalidInput):
            workbench.annotate(ImageRef("data:;base64,AAAA"), "drawn")
    assert workbench.annotate(ImageRef(png_data_uri()), "drawn") == []


def test_the_encoder_never_waits_for_a_host(
    workbench: Workbench, disc: DiscSegmenter, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It works for everybody: whoever clicks loads the pixels, and the encoder has them."""
    load, threads = workbench.images.load, list[str]()

    def loaded(ref: ImageRef) -> Image:
        threads.append(threading.current_thread().name)
        return load(ref)

    monkeypatch.setattr(workbench.images, "load", loaded)
    assert workbench.propose(ImageRef(png_data_uri(1)), Prompt(((5.0, 5.0),)))
    assert workbench.prepare(ImageRef(png_data_uri(2)))
    until(lambda: len(disc.encoded) == 2)
    assert len(threads) == 2 and "encoder" not in threads


def test_a_second_look_encodes_a_crop_once_for_all_clicks_in_it(
    workbench: Workbench, disc: DiscSegmenter, store: Store
) -> None:
    ref, look = ImageRef(png_data_uri(size=(900, 1200))), Controls(second_look=True)
    (plain,) = workbench.propose(ref, Prompt(((600.0, 450.0),)))
    assert disc.encoded == [plain.digest]  # off, nothing else is encoded
    for x in (600.0, 601.5, 599.0):
        (found,) = workbench.propose(ref, Prompt(((x, 450.0),)), controls=look)
        assert np.array_equal(found.prediction.mask, disc_mask((900, 1200), [(x, 450.0)]))
    whole, crop = disc.encoded
    assert (whole, crop.startswith(f"{plain.digest}-")) == (plain.digest, True)
    assert workbench.cache_status().entries == 2
    kept = store.proposal(found.id)
    assert kept is not None and np.array_equal(rle_to_mask(kept.rle), found.prediction.mask)
    workbench.propose(ref, Prompt(((60.0, 60.0),)), controls=look)
    assert len(disc.encoded) == 3  # another crop


def test_a_second_look_waits_for_its_turn_to_be_encoded(workbench: Workbench, disc: DiscSegmenter) -> None:
    ref, click = ImageRef(png_data_uri(size=(900, 1200))), Prompt(((600.0, 450.0),))
    workbench.propose(ref, click)
    disc.hold = threading.Event()
    with ThreadPoolExecutor(1) as pool:
        looking = pool.submit(workbench.propose, ref, click, controls=Controls(second_look=True))
        until(lambda: workbench.cache_status().misses == 2)
        workbench.propose(ref, click)  # nobody who wants no second look waits for it
        assert not looking.done()
        disc.hold.set()
        assert looking.result(10)[0].prediction.mask.any()
