"""Everything that the settings describe. Each part is made once, when it is first used."""

import logging
import os
from collections.abc import Callable, Generator
from contextlib import ExitStack, contextmanager
from functools import cached_property
from pathlib import Path
from threading import RLock
from typing import Any, Self, TypeVar, overload

import cv2

from clickmask import annotators, files, plugins, segmenters
from clickmask.annotators._catalogue import AnnotatorCatalogue
from clickmask.caches import CacheFolder
from clickmask.errors import ClickmaskError, Conflict, StoreUnavailable
from clickmask.files import DamagedFiles
from clickmask.images.archive import ImageArchive
from clickmask.images.decode import ImageLimits
from clickmask.images.fetch import Fetcher
from clickmask.images.source import ImageSource
from clickmask.inference.catalogue import Catalogue
from clickmask.inference.disk_cache import SUFFIX, DiskEmbeddings
from clickmask.inference.embeddings import EmbeddingCache
from clickmask.inference.sessions import Runtimes
from clickmask.inference.weights import WeightsFolder
from clickmask.ingest.apply import Ingester, LabelSource
from clickmask.ingest.inbox import Inbox, mend_inbox
from clickmask.models.recovery import mend_models
from clickmask.models.versions import ProjectModels
from clickmask.store import Store
from clickmask.store.jobs import Jobs
from clickmask.store.recovery import mend_store
from clickmask.training.supervisor import Supervisor, Triggers, WorkerConfig
from clickmask.workbench import Workbench
from clickmask_adapters import tools
from clickmask_adapters.server.memory import share_malloc_arena
from clickmask_adapters.settings import Settings
from clickmask_adapters.tools import Tool

log = logging.getLogger(__name__)
STORE, INBOX = "store.sqlite", "inbox.sqlite"
FOLDERS = ("images", "models", "embeddings", "logs", "weights", "runtimes", "jobs")
PartT = TypeVar("PartT")
LOCK = ".server"


class part(cached_property[PartT]):  # noqa: N801 - used as `property` is
    """A `cached_property` with a lock, which functools' own lacks since Python 3.12."""

    @overload
    def __get__(self, instance: None, owner: type[Any] | None = None) -> Self: ...
    @overload
    def __get__(self, instance: object, owner: type[Any] | None = None) -> PartT: ...
    def __get__(self, instance: object, owner: type[Any] | None = None) -> Any:
        if not isinstance(instance, Home):
            return self
        with instance.lock:  # only at first use: later reads do not come here
            return super().__get__(instance, owner)


class Home:
    """The parts of one process, wired by `settings`. For any thread. Close it to stop what was made.

    A given `workbench` replaces the configured one, along with its store, inbox and images.
    """

    def __init__(self, settings: Settings, workbench: Workbench | None = None) -> None:
        self.settings = settings
        self.lock = RLock()  # parts are made of parts
        if workbench:
            self.workbench, self.store, self.inbox = workbench, workbench.store, workbench.inbox
            self.images = workbench.images

    def mend(self) -> None:
        """Set damaged files aside, say so, and put in their place what can be read of them, before a server
        opens them; no other may run on this home. Raises StoreUnavailable if the labels are whole, but cannot
        be used."""
        self._make_folder()
        home, damaged = self.settings.home, self.damaged
        try:
            if self.embedding_files.room() < 0:  # a database opens only if it can write its index
                self.embedding_files.sweep()
            damaged.find_earlier(home)
            for name in FOLDERS:
                if (home / name).is_symlink() and not (home / name).exists():
                    damaged.add_trouble(f"{name} in CLICKMASK_HOME leads nowhere: is its disk there?")
                elif os.path.lexists(home / name) and not (home / name).is_dir():
                    damaged.set_aside(home / name, "is no folder that can be read")
                elif os.path.lexists(home / name) and not os.access(home / name, os.R_OK | os.W_OK | os.X_OK):
                    said = "may not be read and written by this user: give it back with chown or chmod"
                    damaged.add_trouble(f"{name} in CLICKMASK_HOME {said}")
            if not self.settings.database:
                mend_store(home / STORE, damaged)
            mend_inbox(home / INBOX, damaged)
            mend_models(home / "models", damaged)
        except OSError as error:
            raise StoreUnavailable(f"CLICKMASK_HOME cannot be mended: {error.strerror}") from error

    @part
    def damaged(self) -> DamagedFiles:
        """The damaged files that this process, or one before it, set aside."""
        return DamagedFiles(self.settings.home)

    @part
    def store(self) -> Store:
        """The database. Raises StoreUnavailable."""
        self._make_folder()
        return Store(self._database, make_room=self._make_room)

    @part
    def inbox(self) -> Inbox:
        self._make_folder()
        return Inbox(self.settings.home / INBOX, make_room=self._make_room)

    @part
    def archive(self) -> ImageArchive:
        folder, room = self.settings.home / "images", self.settings.kept_bytes
        return ImageArchive(folder, room, self.store.is_labelled, self._make_room, self.damaged)

    @part
    def limits(self) -> ImageLimits:
        return ImageLimits(self.settings.max_image_bytes, self.settings.max_image_pixels)

    @part
    def images(self) -> ImageSource:
        """Images from every place that the settings and the tools' addresses allow."""
        fetcher = Fetcher(
            limits=self.limits,
            roots=self.settings.image_roots,
            hosts=self.settings.image_hosts,
            trusted_origins=[tool.origin for tool in self.tools.values() if tool.origin],
            ca_bundle=self.settings.ca_bundle,
        )
        settings = self.settings
        return ImageSource(fetcher, settings.image_bytes, self.limits, decode_bytes=settings.decode_bytes)

    @part
    def models(self) -> ProjectModels:
        return ProjectModels(self.settings.home / "models", self.settings.threads)

    @part
    def weights(self) -> WeightsFolder:
        official = plugins.checkpoints(segmenters)
        return WeightsFolder(self.settings.home / "weights", self.settings.weights_mirror, official)

    @part
    def runtimes(self) -> Runtimes:
        exact, folder = self.settings.precision == "f32", self.settings.home / "runtimes"
        return Runtimes(self.settings.runtime, exact=exact, threads=self.settings.threads, folder=folder)

    @part
    def segmenters(self) -> Catalogue:
        return Catalogue(segmenters, self.weights, self.runtimes)

    @part
    def embedding_files(self) -> CacheFolder:
        """They make room on the disk for all that cannot be made again."""
        return CacheFolder(self.settings.home / "embeddings", SUFFIX, self.settings.disk_bytes)

    @part
    def embeddings(self) -> EmbeddingCache:
        room = self.settings.disk_bytes
        disk = DiskEmbeddings(self.embedding_files, self.segmenters.get, self.weights) if room else None
        return EmbeddingCache(self.settings.embedding_bytes, self.settings.queue_length, disk=disk)

    @part
    def annotators(self) -> AnnotatorCatalogue:
        refiner = self.settings.segmenter if self.settings.refine else None
        return AnnotatorCatalogue(annotators, self.segmenters, self.embeddings, self.models, refiner)

    @part
    def workbench(self) -> Workbench:
        """The use cases. Raises NotFound or NotReady if the default segmenter cannot run."""
        share_malloc_arena()
        cv2.setNumThreads(1)  # requests run side by side already; OpenCV's threads would compete
        self._make_folder()
        self.weights.verify_new()
        self.segmenters.require_ready(self.settings.segmenter)
        return Workbench(
            self.segmenters,
            self.annotators,
            self.images,
            self.embeddings,
            self.store,
            self.inbox,
            default_segmenter=self.settings.segmenter,
            max_points=self.settings.max_points,
            max_preparations=self.settings.queue_length,
        )

    @part
    def tools(self) -> dict[str, Tool]:
        """The installed labeling tools, by package name."""
        found: dict[str, Tool] = {}
        for name in plugins.names(tools):
            try:
                found[name] = plugins.load(tools, name).create(self)
            except ClickmaskError:
                raise
            except Exception:  # foreign code: a broken tool must not take the others with it
                log.exception("the tool %s is broken and left out", name)
        return found

    @part
    def label_sources(self) -> dict[str, LabelSource]:
        """The tools whose labels can be ingested, by name."""
        return {name: tool.labels for name, tool in self.tools.items() if tool.labels}

    @part
    def ingester(self) -> Ingester:
        return Ingester(self.store, self.images, self.archive)

    @part
    def jobs(self) -> Jobs:
        """Training jobs. Those that an earlier version kept in a folder are imported first."""
        for name in self.store.jobs.import_folder(self.settings.home / "jobs"):
            said = f"the job {name} of an earlier version cannot be read"
            self.damaged.add_trouble(f"{said}; it stays in its folder, jobs-imported-…")
        return self.store.jobs

    def supervisor(self, waiting: Callable[[], int], triggers: Triggers | None = None) -> Supervisor:
        """The supervisor of this process's trainings. `waiting` counts the unread events."""
        settings, home = self.settings, self.settings.home
        config = WorkerConfig(
            str(home / "models"),
            str(home / "images"),
            str(self._database),
            settings.max_image_bytes,
            settings.max_image_pixels,
            {"seconds": settings.train_seconds},
            settings.threads,
            settings.network,
            str(settings.encoder.expanduser().absolute()) if settings.encoder else "",
            settings.device,
        )

        def fetch(tool: str, project: str, stopped: Callable[[], bool]) -> None:
            source = self.label_sources.get(tool)
            if source and source.origin:
                self.ingester.refetch_missing(tool, source, project, stopped)

        return Supervisor(
            self.jobs, self.store, config, home / "logs", waiting=waiting, fetch=fetch, triggers=triggers
        )

    @contextmanager
    def held(self) -> Generator[None]:
        """Hold the home for one server: two would train twice, read one inbox and compete for its disk.
        Commands may work beside it. Raises Conflict if another server holds it. A crash frees it; on file
        systems that know no locks, it is not held at all."""
        self._make_folder()
        with ExitStack() as context:
            try:
                context.enter_context(files.lock(self.settings.home / LOCK, blocking=False))
            except BlockingIOError:
                said = "stop it, or set CLICKMASK_HOME to another folder"
                raise Conflict(f"another server works in {self.settings.home}: {said}") from None
            except OSError as error:
                log.info("%s is not locked against a second server: %s", self.settings.home, error.strerror)
            yield

    def close(self) -> None:
        """Stop what was made. A workbench closes its own parts, in the right order."""
        made = vars(self)
        for name in ("workbench",) if "workbench" in made else ("embeddings", "store", "inbox"):
            if name in made:
                made[name].close()

    @property
    def _database(self) -> str | Path:
        database = self.settings.database
        return database.get_secret_value() if database else self.settings.home / STORE

    def _make_room(self) -> bool:
        return self.embedding_files.make_room()

    def _make_folder(self) -> None:
        """Make the home. Raises StoreUnavailable if it cannot be made or written."""
        home, said = self.settings.home, ""
        try:
            home.mkdir(parents=True, exist_ok=True, mode=0o700)
        except OSError as error:
            said = f"cannot be made: {error.strerror}"
        if not said and not os.access(home, os.W_OK | os.X_OK):
            said = "may not be written by this user"
        if said:
            raise StoreUnavailable(f"{home} {said}; set CLICKMASK_HOME to a folder of yours")
