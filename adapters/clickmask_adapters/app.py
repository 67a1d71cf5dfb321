"""The whole server: one FastAPI application over one home."""

from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager

import anyio.to_thread
from fastapi import FastAPI

import clickmask
from clickmask.training.supervisor import Triggers
from clickmask_adapters import web
from clickmask_adapters.api import datasets, labels, projects, proposals, status
from clickmask_adapters.home import Home
from clickmask_adapters.server import failures, openapi
from clickmask_adapters.server.gate import Gate
from clickmask_adapters.server.places import Places
from clickmask_adapters.tools import OWN

OTHER_THREADS = 32  # of requests that need no place


def create_app(home: Home, recent: failures.RecentFailures | None = None) -> FastAPI:
    """All surfaces on one application: the tools' paths at the root, the API under /v1/, the pages at /.

    `recent` is what /v1/status shows of failures. What is damaged in the home is set aside first. Shutting
    the application down closes the home. Raises Conflict if that holds labels of another Label Studio or
    CVAT.
    """
    home.mend()
    settings, workbench, tools = home.settings, home.workbench, home.tools.values()
    for tool in tools:
        if tool.origin:
            workbench.require_origin(tool.name, tool.origin)
    recent, places = recent or failures.RecentFailures(), Places()

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncGenerator[None]:
        anyio.to_thread.current_default_thread_limiter().total_tokens = places.threads + OTHER_THREADS
        try:
            workbench.warm_up()
            workbench.read_events(home.ingester, home.label_sources)
            triggers = Triggers(settings.train_after, settings.train_quiet)
            workbench.supervise_training(home.supervisor(workbench.waiting_events, triggers))
            yield
        finally:
            home.close()

    app = FastAPI(
        title="clickmask",
        version=clickmask.__version__,
        description=openapi.ABOUT,
        license_info={"name": "Apache License 2.0", "identifier": "Apache-2.0"},
        servers=[{"url": "/", "description": "This server"}],
        openapi_tags=[*openapi.TAGS, *map(openapi.tag, tools)],
        openapi_url=None,  # see `openapi.install`
        docs_url=None,  # it would load scripts from outside
        redoc_url=None,
        lifespan=lifespan,
    )
    failures.install(app, recent)
    openapi.install(app)
    for tool in tools:  # first: routes are tried in order
        app.include_router(tool.router(workbench), tags=[tool.name])
    for router in (
        proposals.router(workbench, settings),
        status.router(workbench, recent, home.damaged),
        projects.router(workbench, home.models),
        labels.router(workbench, home.ingester, {OWN, *home.tools}),
        datasets.router(workbench, settings, home.archive),
        web.router(),
    ):
        app.include_router(router)
    open_paths = {path for tool in tools for path in tool.open_paths}
    signed_paths = {path for tool in tools for path in tool.signed_paths}
    app.add_middleware(
        Gate, settings, recent, open_paths=open_paths, signed_paths=signed_paths, places=places
    )
    return app
