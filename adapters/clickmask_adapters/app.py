"""The composition root: settings in, one FastAPI application out."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable
from contextlib import asynccontextmanager

import anyio.to_thread
import cv2
from fastapi import FastAPI

import clickmask
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
from clickmask.ingest.apply import LabelSource, refetch_missing
from clickmask.ingest.inbox import Inbox
from clickmask.models.labeller import ProjectModels
from clickmask.store import Store
from clickmask.store.jobs import Jobs
from clickmask.training.supervisor import Supervisor, Triggers, WorkerConfig
from clickmask.workbench import Workbench
from clickmask_adapters import tools, web
from clickmask_adapters.api import datasets, models, projects, proposals
from clickmask_adapters.server import failures
from clickmask_adapters.server.gate import Gate
from clickmask_adapters.server.memory import share_malloc_arena
from clickmask_adapters.settings import Settings

COMPUTE_THREADS = 16


def create_app(settings: Settings, workbench: Workbench | None = None) -> FastAPI:
    """All surfaces on one application: the tools' paths at the root, the API under /v1/, the pages at /.

    The application closes the workbench when it shuts down; None: one made by the settings. Raises
    OriginRefused where this home holds the labels of another Label Studio or CVAT.
    """
    workbench = workbench or create_workbench(settings)
    for name, tool in accepting_tools(settings).items():
        if tool.origin:
            workbench.store.require_origin(name, tool.origin)
    recent = failures.RecentFailures()

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncGenerator[None]:
        anyio.to_thread.current_default_thread_limiter().total_tokens = COMPUTE_THREADS
        workbench.warm_up()
        read_events(settings, workbench)
        workbench.supervise_training(create_trainings(settings, workbench))
        yield
        workbench.close()

    app = FastAPI(
        title="clickmask",
        version=clickmask.__version__,
        description="Clicks and boxes become masks.",
        openapi_url="/v1/openapi.json",
        docs_url=None,  # it would load scripts from outside
        redoc_url=None,
        lifespan=lifespan,
    )
    failures.install(app, recent)
    signed: set[str] = set()  # the tools first: requests are matched with one route after the other
    for name in plugins.names(tools):
        tool = plugins.load(tools, name)
        app.include_router(tool.router(workbench, settings))
        signed.update(getattr(tool, "signed_paths", ()))
    app.include_router(proposals.router(workbench, settings, recent))
    app.include_router(projects.router(workbench, settings))
    kept = create_kept_images(settings, workbench.store)
    app.include_router(datasets.router(workbench, settings, kept))
    app.include_router(models.router(workbench, create_models(settings)))
    app.include_router(web.router(workbench, settings))
    app.add_middleware(Gate, settings=settings, recent=recent, signed_paths=signed)
    return app


def create_workbench(settings: Settings) -> Workbench:
    """The tool-agnostic core. Raises UnknownSegmenter or SegmenterNotReady if the default cannot run."""
    share_malloc_arena()
    cv2.setNumThreads(1)  # requests run side by side; OpenCV's own threads would only fight them
    settings.home.mkdir(parents=True, exist_ok=True, mode=0o700)
    weights = create_weights(settings)
    weights.verify_new()
    catalogue = Catalogue(segmenters, weights, create_runtimes(settings))
    catalogue.require_ready(settings.segmenter)
    disk = None
    if settings.disk_bytes:
        disk = DiskEmbeddings(settings.home / "embeddings", settings.disk_bytes, catalogue.get, weights)
    embeddings = EmbeddingCache(settings.embedding_bytes, settings.queue_length, disk=disk)
    return Workbench(
        catalogue,
        AnnotatorCatalogue(annotators, catalogue, embeddings, create_models(settings), refiner(settings)),
        create_images(settings),
        embeddings,
        create_store(settings),
        Inbox(settings.home / "inbox.sqlite"),
        default_segmenter=settings.segmenter,
        max_points=settings.max_points,
        max_preparations=settings.queue_length,
    )


def read_events(settings: Settings, workbench: Workbench) -> None:
    """Begin to take in what the tools' webhooks leave in the inbox."""
    workbench.read_events(create_kept_images(settings, workbench.store), accepting_tools(settings))


def create_trainings(settings: Settings, workbench: Workbench) -> Supervisor:
    """Of this process, which begin by themselves too, once what has arrived is read."""

    def waiting() -> int:
        intake = workbench.intake_status()
        return intake.waiting if intake else 0

    triggers = Triggers(settings.train_after, settings.train_quiet)
    return Supervisor(
        create_jobs(settings),
        workbench.store,
        workplace(settings),
        waiting=waiting,
        fetch=create_fetching(settings, workbench.store),
        triggers=triggers,
    )


def create_fetching(settings: Settings, store: Store) -> Callable[[str, str, Callable[[], bool]], None]:
    """What brings labelled images that are not kept: of a tool and a project, until it is told to stop."""
    kept, images = create_kept_images(settings, store), create_images(settings)

    def fetch(name: str, project: str, stopped: Callable[[], bool]) -> None:
        tool = accepting_tools(settings).get(name)
        if tool and tool.origin:
            refetch_missing(name, tool, project, store, images, kept, stopped)

    return fetch


def create_jobs(settings: Settings) -> Jobs:
    return Jobs(settings.home / "jobs")


def workplace(settings: Settings) -> WorkerConfig:
    """Where a training finds labels and images, and leaves its models."""
    home = settings.home
    return WorkerConfig(
        str(home / "jobs"),
        str(home / "models"),
        str(home / "images"),
        settings.database.get_secret_value() if settings.database else str(home / "store.sqlite"),
        settings.max_image_bytes,
        settings.max_image_pixels,
        {"seconds": settings.train_seconds},
        settings.threads,
    )


def accepting_tools(settings: Settings) -> dict[str, LabelSource]:
    """The tools whose labels can be taken in, by the name of their package."""
    found = {name: plugins.load(tools, name) for name in plugins.names(tools)}
    return {name: tool.accepting(settings) for name, tool in found.items() if hasattr(tool, "accepting")}


def create_store(settings: Settings) -> Store:
    """Raises StoreUnavailable."""
    settings.home.mkdir(parents=True, exist_ok=True, mode=0o700)
    return Store(
        settings.database.get_secret_value() if settings.database else settings.home / "store.sqlite"
    )


def create_kept_images(settings: Settings, store: Store) -> ImageArchive:
    return ImageArchive(settings.home / "images", settings.kept_bytes, store.is_labelled)


def create_models(settings: Settings) -> ProjectModels:
    return ProjectModels(settings.home / "models", settings.threads)


def refiner(settings: Settings) -> str | None:
    """The segmenter that is shown what trained models find."""
    return settings.segmenter if settings.refine else None


def create_weights(settings: Settings) -> WeightsFolder:
    return WeightsFolder(settings.home / "weights", settings.weights_mirror)


def create_runtimes(settings: Settings) -> Runtimes:
    return Runtimes(
        settings.runtime,
        exact=settings.precision == "f32",
        threads=settings.threads,
        folder=settings.home / "runtimes",
    )


def create_images(settings: Settings) -> ImageSource:
    """Images from everywhere that the settings allow."""
    limits = ImageLimits(settings.max_image_bytes, settings.max_image_pixels)
    fetcher = Fetcher(
        limits=limits,
        roots=settings.image_roots,
        hosts=settings.image_hosts,
        trusted_origins=[url for url in (settings.label_studio_url, settings.cvat_url) if url],
        ca_bundle=settings.ca_bundle,
    )
    return ImageSource(fetcher, settings.image_bytes, limits)
