"""The use cases: what the adapters of every tool call."""

from __future__ import annotations

import logging
import secrets
import threading
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from clickmask.annotators._catalogue import AnnotatorCatalogue, AnnotatorStatus
from clickmask.errors import (
    Busy,
    ClickmaskError,
    ImageUnavailable,
    InvalidPrompt,
    ModelDamaged,
    NotStored,
    TrainingNotReady,
)
from clickmask.images.source import ImageIdentity, ImageSource
from clickmask.inference.catalogue import Catalogue, SegmenterStatus
from clickmask.inference.disk_cache import Restorable
from clickmask.inference.embeddings import BATCH, CLICK, CacheStatus, EmbeddingCache, EmbeddingKey
from clickmask.inference.refinement import Refinement
from clickmask.ingest.apply import Ingester, LabelSource
from clickmask.ingest.inbox import Inbox
from clickmask.ingest.reader import InboxReader, IngestStatus
from clickmask.store import Store
from clickmask.store.jobs import Job
from clickmask.training.supervisor import Supervisor
from clickmask.types import Embedding, ImageRef, Mask, Prediction, Prompt, Segmenter

log = logging.getLogger(__name__)

SEGMENTER_TTL_S = (
    10.0  # seconds: each click asks for its project's segmenter, and the database takes a millisecond
)


@dataclass(frozen=True, eq=False)
class Proposal:
    """A prediction that an annotator may accept; the id is unguessable, and remembered with the mask
    once that was looked at."""

    id: str
    digest: str
    prediction: Prediction


class Workbench:
    """Every method is safe from any thread. Close it to stop the threads that prepare images."""

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
        self._segmenter_of = lru_cache(1000)(self._read_segmenter)
        self._max_points = max_points
        self._preparations = threading.BoundedSemaphore(max_preparations)
        self._annotations = threading.BoundedSemaphore(max_annotations)
        self._preparers = ThreadPoolExecutor(2, thread_name_prefix="prepare")

    def identify(self, ref: ImageRef) -> ImageIdentity:
        """Digest and size of the image; a known image is neither downloaded nor decoded."""
        return self.images.identify(ref)

    def propose(
        self, ref: ImageRef, prompt: Prompt, segmenter: str | None = None, tool: str = "api"
    ) -> list[Proposal]:
        """What the segmenter makes of the prompt, best first, never empty; a mask may be empty.

        A foreground click that repeats the one before asks for the next candidate: that is the
        first then, and those that were passed over are last. See `clickmask.inference.refinement`.
        `segmenter` None is the default; `tool` is for the log. Raises InvalidPrompt, the image
        errors, UnknownSegmenter, SegmenterNotReady and Busy.
        """
        if len(prompt.foreground) + len(prompt.background) > self._max_points:
            raise InvalidPrompt(f"a prompt has at most {self._max_points} points")
        chosen = self._catalogue.get(segmenter or self.default_segmenter)
        identity = self.images.identify(ref)
        prompt.require_inside(identity.size)
        started = time.perf_counter()
        embedding, was_there = self._embedding(chosen, ref, identity)
        encoded = time.perf_counter()
        predictions = self._refinement.decode(chosen, embedding, prompt, identity.digest, identity.size)
        decoded = time.perf_counter()
        log.info(
            "%s: image %s, %s, embedding %s in %.0f ms, decoded in %.0f ms",
            tool,
            identity.digest[:8],
            chosen.name,
            "kept" if was_there else "made",
            1000 * (encoded - started),
            1000 * (decoded - encoded),
        )
        return [self._remember(identity, prompt, prediction) for prediction in predictions]

    def annotate(self, ref: ImageRef, annotator: str, tool: str = "api") -> list[tuple[str, Prediction]]:
        """Every object that the annotator finds, with its label, best first; there may be none.

        It takes seconds to minutes in the thread of the caller, so only a few run at a time and
        the next is Busy; clicks wait for none of them. Raises the image errors, UnknownAnnotator,
        AnnotatorNotReady and Busy.
        """
        if not self._annotations.acquire(blocking=False):
            raise Busy("other images are being annotated; try again in a moment", retry_after=5.0)
        try:
            chosen = self._annotators.get(annotator)
            image = self.images.load(ref)
            started = time.perf_counter()
            found = chosen.annotate(image)
        finally:
            self._annotations.release()
        seconds = time.perf_counter() - started
        log.info(
            "%s: image %s, %s, %d objects in %.1f s", tool, image.digest[:8], annotator, len(found), seconds
        )
        return found

    def prelabel(
        self,
        ref: ImageRef,
        annotator: str,
        tool: str,
        wanted: Callable[[str, Prediction], bool] = lambda label, prediction: True,
    ) -> list[tuple[str, Proposal]]:
        """As `annotate`, of what is `wanted`: people will see it, so it is remembered. It may raise
        StoreUnavailable too."""
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
        """Fetch and encode the image in the background. Returns at once; False if too many wait."""
        if not self._preparations.acquire(blocking=False):
            log.info("no room to prepare another image")
            return False
        self._preparers.submit(self._prepare, ref, segmenter or self.default_segmenter)
        return True

    def encode(self, ref: ImageRef, segmenter: str | None = None) -> bool:
        """Have the embedding of the image, on the disk too, when nobody else waits; whether it was there.

        Raises as `propose` does, and NotStored.
        """
        chosen = self._catalogue.get(segmenter or self.default_segmenter)
        identity = self.images.identify(ref)
        embedding, was_there = self._embedding(chosen, ref, identity, BATCH)
        if not self._cache.store(EmbeddingKey(chosen.name, identity.digest), embedding):
            raise NotStored("its embedding is not stored: the disk is full, broken or slow")
        return was_there

    def embedding(self, ref: ImageRef, segmenter: str | None = None) -> Embedding:
        """The embedding of the image, made now if need be; not to be written to. Raises as `propose` does."""
        chosen = self._catalogue.get(segmenter or self.default_segmenter)
        return self._embedding(chosen, ref, self.images.identify(ref))[0]

    def warm_up(self) -> None:
        """Load the default segmenter in the background, so that no click has to wait for that."""
        self._preparers.submit(self._load_default)

    def stores(self, segmenter: str | None = None) -> bool:
        """Whether embeddings of the segmenter outlast this process; loads it. Raises as `propose` does."""
        chosen = self._catalogue.get(segmenter or self.default_segmenter)
        return self._cache.status().disk is not None and isinstance(chosen, Restorable)

    def keep_event(self, source: str, body: bytes) -> None:
        """Keep a tool's raw event; it is durable when this returns. Raises StoreUnavailable."""
        self.inbox.keep(source, body)

    def segmenters(self) -> list[SegmenterStatus]:
        return self._catalogue.statuses()

    def annotators(self) -> list[AnnotatorStatus]:
        return self._annotators.statuses()

    def set_project(self, tool: str, project: str, segmenter: str | None) -> None:
        """Remember which segmenter the project wants; None: the default. Raises UnknownSegmenter."""
        if segmenter is not None:
            self._catalogue.require(segmenter)
        if segmenter != self.store.project_segmenter(tool, project):
            self.store.set_project_segmenter(tool, project, segmenter)
        self._projects_set += 1

    def project_segmenter(self, tool: str, project: str) -> str | None:
        """Segmenter that `set_project` last set; another process's change shows within SEGMENTER_TTL_S."""
        return self._segmenter_of(tool, project, self._projects_set, time.monotonic() // SEGMENTER_TTL_S)

    def cache_status(self) -> CacheStatus:
        return self._cache.status()

    def kept_events(self) -> int:
        return self.inbox.count()

    def read_events(self, ingester: Ingester, sources: Mapping[str, LabelSource]) -> None:
        """Start to take in the labels that the inbox's events announce; `sources` are by tool."""
        self._reader = InboxReader(self.inbox, self.store, ingester, sources)
        self._reader.start()

    def waiting_events(self) -> int:
        """Events that are kept and not yet read. Raises StoreUnavailable."""
        return self._reader.status().waiting if self._reader else 0

    def intake_status(self) -> IngestStatus | None:
        """None where events are kept but not read. Raises StoreUnavailable."""
        return self._reader.status() if self._reader else None

    def supervise_training(self, supervisor: Supervisor) -> None:
        """Start `supervisor`; it is closed with the workbench."""
        self._supervisor = supervisor
        supervisor.start()

    @property
    def supervisor(self) -> Supervisor:
        """Raises TrainingNotReady where there are none."""
        if self._supervisor is None:
            raise TrainingNotReady("nothing is trained by this server")
        return self._supervisor

    def trained_annotator(self, tool: str, project: str) -> tuple[str, str] | None:
        """The annotator that a project's labels have made, and which version it is just now."""
        try:
            return self._annotators.trained(tool, project)
        except ModelDamaged as error:  # no click has to suffer for it
            log.error("%s %s: %s", tool, project, error)
            return None

    def running_jobs(self) -> list[Job]:
        return self._supervisor.jobs.under_way() if self._supervisor else []

    def close(self) -> None:
        if self._supervisor:
            self._supervisor.close()
        if self._reader:
            self._reader.close()
        self._preparers.shutdown(wait=True, cancel_futures=True)
        self._cache.close()
        self.store.close()
        self.inbox.close()

    def _read_segmenter(self, tool: str, project: str, projects_set: int, moment: float) -> str | None:
        return self.store.project_segmenter(tool, project)

    def _embedding(
        self, segmenter: Segmenter[Any], ref: ImageRef, identity: ImageIdentity, priority: int = CLICK
    ) -> tuple[Embedding, bool]:
        key = EmbeddingKey(segmenter.name, identity.digest)
        return self._cache.get(key, lambda: self._encode(segmenter, ref, identity), priority)

    def _encode(self, segmenter: Segmenter[Any], ref: ImageRef, identity: ImageIdentity) -> Embedding:
        image = self.images.load(ref)
        if image.digest != identity.digest:
            raise ImageUnavailable("the image was replaced by another just now; click again")
        return segmenter.encode(image)

    def _prepare(self, ref: ImageRef, name: str) -> None:
        try:
            segmenter = self._catalogue.get(name)
            identity = self.images.identify(ref)
            key = EmbeddingKey(segmenter.name, identity.digest)
            self._cache.prepare(key, lambda: self._encode(segmenter, ref, identity))
        except ClickmaskError as error:
            log.info("an image could not be prepared: %s", error)
        finally:
            self._preparations.release()

    def _load_default(self) -> None:
        try:
            self._catalogue.get(self.default_segmenter)
        except ClickmaskError as error:  # every click says so too
            log.warning("the default segmenter cannot be loaded: %s", error)

    def _remember(self, identity: ImageIdentity, prompt: Prompt, prediction: Prediction) -> Proposal:
        """A proposal that is remembered when its mask is first looked at: nobody accepts what nobody saw."""
        id = secrets.token_urlsafe(12)  # noqa: A001 - its name everywhere

        def look() -> Mask:
            mask = prediction.mask
            self.store.remember_soon(id, identity.digest, prompt, prediction)
            return mask

        return Proposal(id, identity.digest, Prediction(look, prediction.score, prediction.segmenter))
