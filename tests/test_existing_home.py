"""A home folder that the version before wrote, read by this one.

`support/make_existing_home.py` says how support/existing_home.tar.xz was made. It must not be made anew
when a format changes: it stands for what users have on their disks.
"""

from __future__ import annotations

import base64
import json
import tarfile
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest

from clickmask.errors import Conflict
from clickmask.labels.geometry import Brush, Ellipse, Polygon, Rectangle
from clickmask.masks.rle import mask_to_rle
from clickmask.store import FailedEvent
from clickmask.types import ImageRef, Prompt
from clickmask_adapters.home import Home
from clickmask_adapters.settings import Settings
from support.drawn import disc

ARCHIVE = Path(__file__).parent / "support" / "existing_home.tar.xz"
SIZE = (48, 64)
FIRST = "ebeb20eba83dfb7080c87cdab524384b99b068db07cb26f4b985873b31425c30"
SECOND = "541d0afb06036f4f72515592f0abdfc1efa289aa9043303ca2cd5ef94ea948c4"
STRIP = "017ff51d63c2eac187be42439c2424718944a4443f3830fa30c56d761360cb0a"
DONE, FAILED, CANCELLED, RUNNING, QUEUED = (
    "20261130102310561655-28505b3b",
    "20261130102310563519-7c178a29",
    "20261130102310564247-6998e466",
    "20261130102310564770-d8d6027e",
    "20261130102310565310-aa24e8e9",
)


@pytest.fixture
def home(tmp_path: Path) -> Iterator[Home]:
    with tarfile.open(ARCHIVE) as archive:
        archive.extractall(tmp_path, filter="data")
    settings = Settings(home=tmp_path / "home", precision="f32", runtime="onnxruntime")
    with closing(Home(settings)) as opened:
        yield opened


def picture(home: Home, digest: str) -> ImageRef:
    return ImageRef("data:image/png;base64," + base64.b64encode(home.archive.read(digest)).decode())


def test_every_label_is_there(home: Home) -> None:
    found = home.store.labels("label_studio", "7", all_annotations=True)
    assert [(each.key.task, each.key.annotation, each.key.region, each.category) for each in found] == [
        ("1", "11", "a", "cell"),
        ("1", "11", "b", "nucleus"),
        ("1", "12", "a", "cell"),
        ("2", "13", "c", "cell"),
    ]
    painted = mask_to_rle(disc(SIZE, (20.0, 24.0), 10.0))
    assert [each.geometry for each in found] == [
        Brush(painted),
        Polygon((((2.0, 2.0), (20.0, 2.0), (20.0, 30.0)),)),
        Rectangle((1.0, 2.0, 9.0, 12.0), 30.0),
        Ellipse((40.0, 24.0), (9.0, 7.0)),
    ]
    assert [each.image for each in found] == [FIRST, FIRST, FIRST, SECOND]
    assert (found[0].rle, found[0].proposal, found[0].accepted_at) == (painted, "clicked", 1000.0)
    assert [each.key.region for each in home.store.labels("label_studio", "7")] == ["a", "c"]
    assert [each.category for each in home.store.labels("cvat", "3")] == ["car"]
    assert not home.store.is_labelled("0" * 64)


def test_projects_sides_tombstones_and_pulls_are_there(home: Home) -> None:
    store = home.store
    cvat, studio = store.projects()
    assert (cvat.tool, cvat.project, cvat.images, cvat.labels) == ("cvat", "3", 2, 1)
    assert (studio.title, studio.categories, studio.images, studio.labels) == (
        "Cells",
        ("cell", "nucleus"),
        2,
        4,
    )
    assert store.project_segmenter("label_studio", "7") == "grabcut"
    assert store.unlabelled("label_studio", "7") == "ignore"
    assert store.pull_position("cvat", "3") == "2026-11-01T00:00:00Z"
    sides = {each.digest: each.side for each in store.sides("label_studio", "7")}
    assert sides == {FIRST: "train", SECOND: "validation"}
    assert {each.digest: each.side for each in store.sides("cvat", "3")} == {FIRST: "train", STRIP: "test"}
    with store._database.reading() as connection:
        buried = connection.exec_driver_sql("SELECT tool, kind, name FROM tombstones ORDER BY tool")
        assert [tuple(row) for row in buried] == [
            ("cvat", "task", "99"),
            ("label_studio", "annotation", "15"),
        ]
    with pytest.raises(Conflict, match=r"http://studio\.example"):
        store.require_origin("label_studio", "http://another.example")


def test_what_was_proposed_and_prelabelled_is_there(home: Home) -> None:
    (clicked,), (seen,) = home.store.proposals(FIRST), home.store.proposals(SECOND)
    assert (clicked.id, clicked.segmenter, clicked.score) == ("clicked", "builtin", 0.75)
    assert json.loads(clicked.prompt) == {"foreground": [[20.5, 24.5]], "background": [], "box": None}
    assert json.loads(seen.prompt)["box"] == [30.0, 14.0, 50.0, 34.0]
    assert seen.rle == mask_to_rle(disc(SIZE, (40.0, 24.0), 9.0))
    first = home.store.prelabels(FIRST)
    assert [(each.id, each.label) for each in first] == [("ahead-1", "cell"), ("ahead-2", "nucleus")]
    assert {each.annotator for each in first} == {"trained:label_studio-7"}  # it was unet:label_studio-7
    nothing, other = home.store.prelabels(SECOND)
    assert (nothing.label, other.label, other.annotator) == ("", "object", "everything")


def test_images_keep_their_digests_and_embeddings_are_read_from_the_disk(
    home: Home, monkeypatch: pytest.MonkeyPatch
) -> None:
    for digest in (FIRST, SECOND, STRIP):
        assert home.images.identify(picture(home, digest)).digest == digest
    segmenter = home.segmenters.get("builtin")
    monkeypatch.setattr(segmenter, "encode", lambda image: pytest.fail("the image was encoded again"))
    assert home.workbench.encode(picture(home, STRIP))
    assert home.workbench.propose(picture(home, STRIP), Prompt(((8.0, 2.0),)))
    disk = home.workbench.cache_status().disk
    assert disk is not None and (disk.hits, disk.entries) == (1, 1)


def test_models_are_served_and_rolled_out_as_before(home: Home) -> None:
    models = home.models.of("label_studio", "7")
    assert [each.id for each in models.versions()] == ["0001-b959f5c8", "0002-418507ec"]
    served = models.served()
    assert served is not None and served.id == "0001-b959f5c8"
    assert served.provenance.categories == ("cell", "nucleus")
    assert served.provenance.report == {"miou": 0.5, "weight": 2.0}
    name, version = home.annotators.trained("label_studio", "7") or ("", "")
    assert (name.partition(":")[2], served.id in version) == ("label_studio-7", True)
    assert home.models.served("label_studio-7")[0].id == served.id
    assert models.promote("0002-418507ec").id == "0002-418507ec"
    assert models.roll_back().id == served.id


def test_events_that_were_not_read_wait_and_the_one_set_aside_is_known(home: Home) -> None:
    inbox, store = home.inbox, home.store
    assert store.read_to(inbox.id) == 3
    waiting = inbox.events(after=3)
    assert [json.loads(each.body)["number"] for each in waiting] == [3, 4]
    assert inbox.count() == 5 and inbox.count(after=3) == 2
    assert store.set_aside(inbox.id) == [
        FailedEvent(3, "label_studio", "the image is away", 1000.0, 2, 4000.0)
    ]


def test_jobs_that_ended_are_known_and_the_others_are_gone_on_with(home: Home) -> None:
    done, failed, cancelled = map(home.jobs.get, (DONE, FAILED, CANCELLED))
    assert (done.state, done.version, done.promoted, done.images) == ("done", "0002-418507ec", True, 2)
    assert (done.step, done.steps, done.loss, done.validation_miou, done.seconds) == (40, 40, 0.25, 0.75, 9.0)
    assert np.isclose(done.made_at, 1796034190.5616558)
    assert (failed.state, failed.message) == ("failed", "the project has no accepted labels")
    assert (cancelled.state, cancelled.message) == ("cancelled", "cancelled before it began")
    with home.jobs.owning() as owner:
        adopted = home.jobs.adopt(owner)
    assert [(each.id, each.state, each.project) for each in adopted] == [
        (RUNNING, "queued", "7"),
        (QUEUED, "queued", "3"),
    ]
    assert (adopted[0].step, adopted[0].steps, adopted[0].seconds) == (7, 40, 3.0)
