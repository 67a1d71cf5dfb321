"""The whole server: one FastAPI application over one home."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager

import anyio.to_thread
from fastapi import FastAPI

import clickmask
from clickmask.training.supervisor import Triggers
from clickmask_adapters import web
from clickmask_adapters.api import datasets, models, projects, proposals
from clickmask_adapters.home import Home
from clickmask_adapters.server import failures
from clickmask_adapters.server.gate import Gate

COMPUTE_THREADS = 16


def create_app(home: Home) -> FastAPI:
    """All surfaces on one application: the tools' paths at the root, the API under /v1/, the pages at /.

    The application closes the home when it shuts down. Raises OriginRefused if the home holds the
    labels of another Label Studio or CVAT.
    """
    settings, workbench = home.settings, home.workbench
    for name, tool in home.tools.items():
        if tool.origin:
            workbench.require_origin(name, tool.origin)
    recent = failures.RecentFailures()

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncGenerator[None]:
        anyio.to_thread.current_default_thread_limiter().total_tokens = COMPUTE_THREADS
        workbench.warm_up()
        workbench.read_events(home.ingester, home.label_sources)
        triggers = Triggers(settings.train_after, settings.train_quiet)
        workbench.supervise_training(home.supervisor(workbench.waiting_events, triggers))
        yield
        home.close()

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
    for tool in home.tools.values():  # first: requests are matched with one route after the other
        app.include_router(tool.router(workbench))
    app.include_router(proposals.router(workbench, settings, recent))
    app.include_router(projects.router(workbench, settings))
    app.include_router(datasets.router(workbench, settings, home.archive))
    app.include_router(models.router(workbench, home.models))
    app.include_router(web.router(workbench, settings))
    app.add_middleware(
        Gate,
        settings=settings,
        recent=recent,
        open_paths={path for tool in home.tools.values() for path in tool.open_paths},
        signed_paths={path for tool in home.tools.values() for path in tool.signed_paths},
    )
    return app
