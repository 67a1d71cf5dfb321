"""Everything that the settings name, each made once and when it is first used."""

from __future__ import annotations

from collections.abc import Callable
from functools import cached_property

import cv2

from clickmask import annotators, plugins, segmenters
from clickmask.annotators._catalogue import AnnotatorCatalogue
from clickmask.images.archive import ImageArchive
from clickmask.images.decode import ImageLimits
from clickmask.images.fetch import Fetcher
from clickmask.images.source import ImageSource
from clickmask.inference.catalogue import Catalogue
from clickmask.inference.disk_cache import DiskEmbeddings
from clickmask.inference.embeddings import EmbeddingCache
from clickmask.inference.runtimes import Runtimes
from clickmask.inference.weights import WeightsFolder
from clickmask.ingest.apply import Ingester, LabelSource, refetch_missing
from clickmask.ingest.inbox import Inbox
from clickmask.models.labeller import ProjectModels
from clickmask.store import Store
from clickmask.store.jobs import Jobs
from clickmask.training.supervisor import Supervisor, Triggers, WorkerConfig
from clickmask.workbench import Workbench
from clickmask_adapters import tools
from clickmask_adapters.server.memory import share_malloc_arena
from clickmask_adapters.settings import Settings
from clickmask_adapters.tools import Tool


class Home:
    """The parts of one process, wired by `settings`. Close it to stop what was made.

    `workbench` replaces the one that the settings describe; its store and inbox are used then.
    """

    def __init__(self, settings: Settings, workbench: Workbench | None = None) -> None:
        self.settings = settings
        if workbench:
            self.workbench, self.store, self.inbox = workbench, workbench.store, workbench.inbox
            self.images = workbench.images

    @cached_property
    def store(self) -> Store:
        """Raises StoreUnavailable."""
        self._make_folder()
        database = self.settings.database
        return Store(database.get_secret_value() if database else self.settings.home / "store.sqlite")

    @cached_property
    def inbox(self) -> Inbox:
        self._make_folder()
        return Inbox(self.settings.home / "inbox.sqlite")

    @cached_property
    def archive(self) -> ImageArchive:
        return ImageArchive(self.settings.home / "images", self.settings.kept_bytes, self.store.is_labelled)

    @cached_property
    def limits(self) -> ImageLimits:
        return ImageLimits(self.settings.max_image_bytes, self.settings.max_image_pixels)

    @cached_property
    def images(self) -> ImageSource:
        """Images from everywhere that the settings allow."""
        origins = (self.settings.label_studio_url, self.settings.cvat_url)
        fetcher = Fetcher(
            limits=self.limits,
            roots=self.settings.image_roots,
            hosts=self.settings.image_hosts,
            trusted_origins=[url for url in origins if url],
            ca_bundle=self.settings.ca_bundle,
        )
        return ImageSource(fetcher, self.settings.image_bytes, self.limits)

    @cached_property
    def models(self) -> ProjectModels:
        return ProjectModels(self.settings.home / "models", self.settings.threads)

    @cached_property
    def weights(self) -> WeightsFolder:
        return WeightsFolder(self.settings.home / "weights", self.settings.weights_mirror)

    @cached_property
    def runtimes(self) -> Runtimes:
        return Runtimes(
            self.settings.runtime,
            exact=self.settings.precision == "f32",
            threads=self.settings.threads,
            folder=self.settings.home / "runtimes",
        )

    @cached_property
    def segmenters(self) -> Catalogue:
        return Catalogue(segmenters, self.weights, self.runtimes)

    @cached_property
    def embeddings(self) -> EmbeddingCache:
        disk = None
        if self.settings.disk_bytes:
            folder = self.settings.home / "embeddings"
            disk = DiskEmbeddings(folder, self.settings.disk_bytes, self.segmenters.get, self.weights)
        return EmbeddingCache(self.settings.embedding_bytes, self.settings.queue_length, disk=disk)

    @cached_property
    def annotators(self) -> AnnotatorCatalogue:
        refiner = self.settings.segmenter if self.settings.refine else None
        return AnnotatorCatalogue(annotators, self.segmenters, self.embeddings, self.models, refiner)

    @cached_property
    def workbench(self) -> Workbench:
        """Raises UnknownSegmenter or SegmenterNotReady if the default segmenter cannot run."""
        share_malloc_arena()
        cv2.setNumThreads(1)  # requests run side by side; OpenCV's own threads would only fight them
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

    @cached_property
    def tools(self) -> dict[str, Tool]:
        """The labeling tools that are installed, by the name of their package."""
        return {name: plugins.load(tools, name).create(self) for name in plugins.names(tools)}

    @cached_property
    def label_sources(self) -> dict[str, LabelSource]:
        """The tools whose labels can be taken in."""
        return {name: tool.labels for name, tool in self.tools.items() if tool.labels}

    @cached_property
    def ingester(self) -> Ingester:
        return Ingester(self.store, self.images, self.archive)

    @cached_property
    def jobs(self) -> Jobs:
        """Trainings; those that an earlier version kept in a folder are taken in first."""
        self.store.jobs.import_folder(self.settings.home / "jobs")
        return self.store.jobs

    def supervisor(self, waiting: Callable[[], int], triggers: Triggers | None = None) -> Supervisor:
        """Trainings of this process. `waiting` counts the events that are still to be read."""
        home = self.settings.home
        database = self.settings.database
        config = WorkerConfig(
            str(home / "models"),
            str(home / "images"),
            database.get_secret_value() if database else str(home / "store.sqlite"),
            self.settings.max_image_bytes,
            self.settings.max_image_pixels,
            {"seconds": self.settings.train_seconds},
            self.settings.threads,
        )
        return Supervisor(
            self.jobs,
            self.store,
            config,
            home / "logs",
            waiting=waiting,
            fetch=self._refetch,
            triggers=triggers,
        )

    def close(self) -> None:
        """Stop the workbench if there is one, else close the store and the inbox."""
        made = vars(self)
        if "workbench" in made:
            self.workbench.close()
            return
        for part in (made.get("store"), made.get("inbox")):
            if part:
                part.close()

    def _make_folder(self) -> None:
        self.settings.home.mkdir(parents=True, exist_ok=True, mode=0o700)

    def _refetch(self, name: str, project: str, stopped: Callable[[], bool]) -> None:
        """Bring labelled images that the archive lacks, until `stopped`."""
        source = self.label_sources.get(name)
        if source and source.origin:
            refetch_missing(name, source, project, self.store, self.images, self.archive, stopped)
