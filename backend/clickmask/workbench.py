"""The use cases. Adapters call only these, and do not reach through to the store, inbox or images."""

import logging
import secrets
import threading
import time
from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import lru_cache, partial
from typing import Any, TypeVar

from clickmask.annotators._catalogue import AnnotatorCatalogue, AnnotatorStatus
from clickmask.caches import waiting_elsewhere
from clickmask.datasets.snapshot import Dataset, Pictures, snapshot
from clickmask.errors import (
    Busy,
    ClickmaskError,
    Failed,
    ImageUnavailable,
    InvalidInput,
    NotFound,
    NotReady,
    StoreUnavailable,
)
from clickmask.images.decode import DEFAULT_LIMITS, ImageLimits
from clickmask.images.source import ImageIdentity, ImageSource
from clickmask.inference import driver
from clickmask.inference.catalogue import Catalogue, SegmenterStatus
from clickmask.inference.disk_cache import Restorable
from clickmask.inference.embeddings import BATCH, CLICK, CacheStatus, EmbeddingCache, EmbeddingKey
from clickmask.inference.refinement import Refinement
from clickmask.inference.second_look import Crop, look_again
from clickmask.ingest.apply import Ingester, LabelSource
from clickmask.ingest.inbox import Inbox
from clickmask.ingest.reader import InboxReader, IngestStatus
from clickmask.labels.submissions import AcceptedLabel
from clickmask.masks.controls import AS_IT_IS, Controls
from clickmask.masks.regions import crop_mask
from clickmask.store import Project, Store, WriteTimes
from clickmask.store.jobs import Job
from clickmask.training.supervisor import Supervisor
from clickmask.types import Embedding, ImageRef, Mask, Prediction, Prompt, Segmenter

log = logging.getLogger(__name__)
T = TypeVar("T")

# Each click asks for its project's settings, and the database takes a millisecond.
SETTINGS_TTL_S = 10.0


@dataclass(frozen=True, eq=False)
class Proposal:
    """A prediction that an annotator may accept. Its id is unguessable."""

    id: str
    digest: str
    prediction: Prediction


class Workbench:
    """The use cases as methods. For any thread. Close it to stop its threads."""

    def __init__(
        self,
        catalogue: Catalogue,
        annotators: AnnotatorCatalogue,
        images: ImageSource,
        cache: EmbeddingCache,
        store: Store,
        inbox: Inbox,
        *,
        default_segmenter: str,
        max_points: int = 1000,
        max_preparations: int = 64,
        max_annotations: int = 2,
    ) -> None:
        self.default_segmenter = default_segmenter
        self._catalogue = catalogue
        self._annotators = annotators
        self.images = images
        self.store = store
        self.inbox = inbox
        self._cache = cache
        self._reader: InboxReader | None = None
        self._supervisor: Supervisor | None = None
        self._refinement = Refinement()
        self._projects_set = 0
        self._settings_of = lru_cache(1000)(self._read_settings)
        self._max_points = max_points
        self._preparations = threading.BoundedSemaphore(max_preparations)
        self._annotations = threading.BoundedSemaphore(max_annotations)
        self._preparers = ThreadPoolExecutor(2, thread_name_prefix="prepare")

    def identify(self, ref: ImageRef) -> ImageIdentity:
        """Digest and size of the image. A known image is neither downloaded nor decoded."""
        return self.images.identify(ref)

    def identify_base64(self, text: bytes | memoryview) -> ImageIdentity:
        """Digest and size of the image in base64 `text`. Known text is not decoded."""
        return self.images.identify_base64(text)

    def propose(
        self,
        ref: ImageRef,
        prompt: Prompt,
        segmenter: str | None = None,
        tool: str = "api",
        controls: Controls = AS_IT_IS,
    ) -> list[Proposal]:
        """Predictions for the prompt, best first, at least one; a mask may be empty. `controls` change the
        masks that are given, not those that the next click corrects. A second look is at the first one.

        Repeating the last foreground click asks for the next candidate, which then comes first, and skipped
        ones last; see `clickmask.inference.refinement`. A proposal is remembered once its mask is read, since
        nobody accepts an unseen one. `segmenter` None is the default; `tool` is for the log. Raises
        InvalidInput, the image errors, NotFound, NotReady and Busy.
        """
        if len(prompt.foreground) + len(prompt.background) > self._max_points:
            raise InvalidInput(f"a prompt has at most {self._max_points} points")
        chosen = self._catalogue.get(segmenter or self.default_segmenter)
        identity = self.images.identify(ref)
        prompt.require_inside(identity.size)
        started = time.perf_counter()
        embedding, was_there = self._embedding(chosen, ref, identity)
        encoded = time.perf_counter()
        predictions = self._refinement.decode(chosen, embedding, prompt, identity.digest, identity.size)
        if controls.second_look:
            embed = partial(self._crop_embedding, chosen, ref, identity)
            predictions[0] = look_again(chosen, prompt, predictions[0], embed)
        decoded = time.perf_counter()
        took = (1000 * (encoded - started), 1000 * (decoded - encoded))
        of = (tool, identity.digest[:8], chosen.name, "kept" if was_there else "made", *took)
        log.info("%s: image %s, %s, embedding %s in %.0f ms, decoded in %.0f ms", *of)
        return [self._proposal(identity, prompt, prediction, controls) for prediction in predictions]

    def annotate(self, ref: ImageRef, annotator: str, tool: str = "api") -> list[tuple[str, Prediction]]:
        """Labels and predictions of all objects that the annotator finds, best first; maybe none. Takes
        seconds to minutes in the caller's thread. Only a few run at a time, so that no click waits; more are
        refused as Busy. Raises the image errors, NotFound, NotReady and Busy."""
        self.images.identify(ref)  # whoever waits for a host needs no place among those who compute
        if not self._annotations.acquire(blocking=False):
            raise Busy("other images are being annotated; try again in a moment", retry_after=5.0)
        try:
            chosen = self._annotators.get(annotator)
            # It is one of few, and takes no click's place.
            with waiting_elsewhere(), self.images.annotating(ref) as image:
                started = time.perf_counter()
                found = driver.annotate(chosen, image)
        finally:
            self._annotations.release()
        seconds, number = time.perf_counter() - started, len(found)
        log.info("%s: image %s, %s, %d objects in %.1f s", tool, image.digest[:8], annotator, number, seconds)
        return found

    def prelabel(
        self,
        ref: ImageRef,
        annotator: str,
        tool: str,
        wanted: Callable[[str, Prediction], bool] = lambda label, prediction: True,
    ) -> list[tuple[str, Proposal]]:
        """Annotate the image and remember the `wanted` objects. May also raise StoreUnavailable."""
        identity = self.images.identify(ref)
        found = [
            (label, Proposal(secrets.token_urlsafe(12), identity.digest, prediction))
            for label, prediction in self.annotate(ref, annotator, tool)
            if wanted(label, prediction)
        ]
        shown = [(each.id, label, each.prediction) for label, each in found]
        self.store.remember_prelabels(identity.digest, identity.size, annotator, shown)
        return found

    def prepare(self, ref: ImageRef, segmenter: str | None = None) -> bool:
        """Start to fetch and encode the image; False if too many wait. Raises NotFound and NotReady."""
        self._catalogue.require_ready(segmenter or self.default_segmenter)
        if not self._preparations.acquire(blocking=False):
            log.info("no room to prepare another image")
            return False
        self._preparers.submit(self._prepare, ref, segmenter or self.default_segmenter)
        return True

    def encode(self, ref: ImageRef, segmenter: str | None = None) -> bool:
        """Store the image's embedding on disk, after all other work. True if it already existed. Raises
        NotStored, and the errors of `propose`."""
        chosen = self._catalogue.get(segmenter or self.default_segmenter)
        identity = self.images.identify(ref)
        embedding, was_there = self._embedding(chosen, ref, identity, BATCH)
        self._cache.store(EmbeddingKey(chosen.name, identity.digest), embedding)
        return was_there

    def embedding(self, ref: ImageRef, segmenter: str | None = None) -> Embedding:
        """The image's embedding, read-only, made now if needed. Raises the errors of `propose`."""
        chosen = self._catalogue.get(segmenter or self.default_segmenter)
        return self._embedding(chosen, ref, self.images.identify(ref))[0]

    def warm_up(self) -> None:
        """Load the default segmenter in the background so that no click waits for it."""

        def load() -> None:
            try:
                self._catalogue.get(self.default_segmenter)
            except ClickmaskError as error:  # every click reports it too
                log.warning("the default segmenter cannot be loaded: %s", error)

        self._preparers.submit(load)

    def default_runs_on(self) -> str:
        """Runtime and device of the default segmenter, once it is loaded; empty if it does not say. Raises
        NotFound, NotReady and Failed."""
        return str(getattr(self._catalogue.get(self.default_segmenter), "runs_on", ""))

    def stores(self, segmenter: str | None = None) -> bool:
        """Whether the segmenter's embeddings outlast this process. Loads it. Raises `propose`'s errors."""
        chosen = self._catalogue.get(segmenter or self.default_segmenter)
        return self._cache.status().disk is not None and isinstance(chosen, Restorable)

    def segmenters(self) -> list[SegmenterStatus]:
        return self._catalogue.statuses()

    def annotators(self) -> list[AnnotatorStatus]:
        return self._annotators.statuses()

    def require_annotator(self, name: str) -> None:
        """Raise NotFound unless it is installed, and NotReady with what it lacks. Loads nothing."""
        self._annotators.require_ready(name)

    def set_project(
        self, tool: str, project: str, segmenter: str | None, controls: Controls = AS_IT_IS
    ) -> None:
        """Remember the project's segmenter, None for the default, and its controls. Raises NotFound."""
        if segmenter is not None:
            self._catalogue.require(segmenter)
        if segmenter != self.store.project_segmenter(tool, project):
            self.store.set_project_segmenter(tool, project, segmenter)
        if controls != self.store.project_controls(tool, project):
            self.store.set_project_controls(tool, project, controls)
        self._projects_set += 1

    def project_settings(self, tool: str, project: str) -> tuple[str | None, Controls]:
        """The project's segmenter and controls. A change by another process shows within SETTINGS_TTL_S."""
        return self._settings_of(tool, project, self._projects_set, time.monotonic() // SETTINGS_TTL_S)

    def project_segmenter(self, tool: str, project: str) -> str | None:
        return self.project_settings(tool, project)[0]

    def require_project(self, tool: str, project: str) -> None:
        """Raise NotFound if nothing is known of the project. `tool` is a tool package's name."""
        if not self.store.knows_project(tool, project):
            kept = ", ".join(f"{each.project} of {each.tool}" for each in self.store.projects()[:20])
            said = f"nothing is kept here of a project {project[:40]!r} of {tool[:40]!r}"
            raise NotFound(f"{said}; there are: {kept or 'none'}")

    def require_origin(self, tool: str, origin: str) -> None:
        """Raise Conflict if the store holds this tool's labels from an address other than `origin`."""
        self.store.require_origin(tool, origin)

    def projects(self) -> list[Project]:
        return self.store.projects()

    def labels(self, tool: str, project: str, all_annotations: bool = False) -> list[AcceptedLabel]:
        """Accepted labels, as returned by `Store.labels`. Raises NotFound."""
        self.require_project(tool, project)
        return self.store.labels(tool, project, all_annotations)

    def dataset(
        self, tool: str, project: str, pictures: Pictures | None = None, limits: ImageLimits = DEFAULT_LIMITS
    ) -> Dataset:
        """A snapshot of the accepted labels. Raises NotFound, and InvalidRequest if there are none."""
        self.require_project(tool, project)
        return snapshot(self.store, tool, project, pictures, limits)

    def report(self, make: Callable[[Store, str, str], T], tool: str, project: str) -> T:
        """The report that `make`, from `clickmask.reports`, reads from the store. Raises NotFound."""
        self.require_project(tool, project)
        return make(self.store, tool, project)

    def keep_event(self, source: str, body: bytes) -> Future[int]:
        """Store a tool's raw event, durably once the future is done. Raises StoreUnavailable, also if it
        would not be read."""
        if self._reader and (reason := self._reader.refuses()):
            raise StoreUnavailable(reason)
        return self.inbox.keep_soon(source, body)

    def read_events(self, ingester: Ingester, sources: Mapping[str, LabelSource]) -> None:
        """Start storing the labels that events in the inbox announce. `sources` are by tool."""
        self._reader = InboxReader(self.inbox, self.store, ingester, sources)
        self._reader.start()

    def kept_events(self) -> int:
        return self.inbox.count()

    def waiting_events(self) -> int:
        """The number of stored events that are not yet read. Raises StoreUnavailable."""
        return self._reader.status().waiting if self._reader else 0

    def intake_status(self) -> IngestStatus | None:
        """The reader's status; None if nothing reads the events. Raises StoreUnavailable."""
        return self._reader.status() if self._reader else None

    def reading_trouble(self) -> tuple[str, int]:
        """Why events wait, empty if they are read; and how often reading failed since the start."""
        return (self._reader.trouble, self._reader.failures) if self._reader else ("", 0)

    def left_out(self) -> dict[str, int]:
        """Numbers of regions, in all projects, of which no label can be made, by a word for them."""
        return self.store.left_out()

    def write_times(self) -> WriteTimes:
        return self.store.write_times()

    def cache_status(self) -> CacheStatus:
        return self._cache.status()

    def supervise_training(self, supervisor: Supervisor) -> None:
        """Start `supervisor`. It closes with the workbench."""
        self._supervisor = supervisor
        supervisor.start()

    @property
    def supervisor(self) -> Supervisor:
        """The supervisor of trainings and its jobs. Raises NotReady if there is none."""
        if self._supervisor is None:
            raise NotReady("nothing is trained by this server")
        return self._supervisor

    def retrain(self, tool: str, project: str, network: str = "") -> Job:
        """The project's unfinished job, or a new one of `network`. Raises NotFound, and what
        `Supervisor.request` raises."""
        self.require_project(tool, project)
        return self.supervisor.request(tool, project, network)

    def jobs_under_way(self) -> list[Job]:
        return self._supervisor.jobs.under_way() if self._supervisor else []

    def trained_annotator(self, tool: str, project: str) -> tuple[str, str] | None:
        """Name and version of the annotator trained on the project; None if none is served."""
        try:
            return self._annotators.trained(tool, project)
        except Failed as error:  # no click should suffer for it
            log.error("%s %s: %s", tool, project, error)
            return None

    def why_not_trained(self, tool: str, project: str) -> str:
        """A clause on why the project has no trained annotator, and what to do."""
        return self._annotators.why_not_trained(tool, project)

    def close(self) -> None:
        if self._supervisor:
            self._supervisor.close()
        if self._reader:
            self._reader.close()
        self._preparers.shutdown(wait=True, cancel_futures=True)
        self._cache.close()
        self.store.close()
        self.inbox.close()

    def _read_settings(self, tool: str, project: str, *_: float) -> tuple[str | None, Controls]:
        return self.store.project_segmenter(tool, project), self.store.project_controls(tool, project)

    def _embedding(
        self, segmenter: Segmenter[Any], ref: ImageRef, identity: ImageIdentity, priority: int = CLICK
    ) -> tuple[Embedding, bool]:
        """The embedding, and whether it was already there."""
        key = EmbeddingKey(segmenter.name, identity.digest)
        if (found := self._cache.find(key)) is not None:
            return found, True
        return self._cache.get(key, self._encoding(segmenter, ref, identity), priority)

    def _crop_embedding(
        self, segmenter: Segmenter[Any], ref: ImageRef, identity: ImageIdentity, crop: Crop
    ) -> Embedding:
        key = EmbeddingKey(segmenter.name, crop.digest(identity.digest))
        if (found := self._cache.find(key)) is not None:
            return found
        return self._cache.get(key, self._encoding(segmenter, ref, identity, crop))[0]

    def _encoding(
        self, segmenter: Segmenter[Any], ref: ImageRef, identity: ImageIdentity, crop: Crop | None = None
    ) -> Callable[[], Embedding]:
        """What the encoder computes, with the pixels: it never waits for a host, which would hold up all."""
        image = self.images.load(ref)
        if image.digest != identity.digest:
            raise ImageUnavailable("the image was replaced by another just now; click again")
        return partial(driver.encode, segmenter, crop.cut(image) if crop else image)

    def _prepare(self, ref: ImageRef, name: str) -> None:
        try:
            segmenter = self._catalogue.get(name)
            identity = self.images.identify(ref)
            key = EmbeddingKey(segmenter.name, identity.digest)
            if not self._cache.holds(key):
                self._cache.prepare(key, self._encoding(segmenter, ref, identity))
                self._cache.wait(key)  # so that few prepared images hold their pixels
        except ClickmaskError as error:
            log.info("an image could not be prepared: %s", error)
        finally:
            self._preparations.release()

    def _proposal(
        self, identity: ImageIdentity, prompt: Prompt, prediction: Prediction, controls: Controls
    ) -> Proposal:
        id = secrets.token_urlsafe(12)  # noqa: A001 - called so everywhere

        def look() -> Mask:
            mask = controls.apply(prediction.mask)
            kept = crop_mask(mask).whole
            shown = Prediction(kept, prediction.score, prediction.segmenter, keep=False)
            self.store.remember_soon(id, identity.digest, prompt, shown)
            return mask

        return Proposal(id, identity.digest, Prediction(look, prediction.score, prediction.segmenter))
