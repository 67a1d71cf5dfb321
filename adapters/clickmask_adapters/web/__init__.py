"""Static pages without a build step, which use only /v1/: `/`, a photo to click on, and `/status`."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Coroutine
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from fastapi import APIRouter, HTTPException, Request, Response
from fastapi import Path as UrlPath

from clickmask.errors import NotFound
from clickmask_adapters.server.openapi import raises

FOLDER = Path(__file__).parent
MEDIA_TYPES = {
    ".css": "text/css; charset=utf-8",
    ".html": "text/html; charset=utf-8",
    ".jpg": "image/jpeg",
    ".js": "text/javascript; charset=utf-8",
    ".svg": "image/svg+xml",
}
CONTENT_SECURITY_POLICY = "; ".join(
    (
        "default-src 'self'",
        "img-src 'self' blob: data:",
        "object-src 'none'",
        "base-uri 'none'",
        "form-action 'none'",
        "frame-ancestors 'none'",
    )
)


Serving = Callable[..., Coroutine[Any, Any, Response]]
PageName = Annotated[str, UrlPath(description="A file of the pages", examples=["playground.js"])]


@dataclass(frozen=True)
class _Page:
    """One static file, read once."""

    body: bytes
    headers: dict[str, str]

    @classmethod
    def read(cls, path: Path) -> _Page:
        body = path.read_bytes()
        headers = {
            "Content-Type": MEDIA_TYPES[path.suffix],
            # Every visit asks again and gets a 304, so nobody sees half of an upgraded server.
            "Cache-Control": "no-cache",
            "ETag": f'"{hashlib.sha256(body).hexdigest()[:32]}"',
            "Content-Security-Policy": CONTENT_SECURITY_POLICY,
            "X-Content-Type-Options": "nosniff",
            "Referrer-Policy": "no-referrer",
        }
        return cls(body, headers)

    def response(self, request: Request) -> Response:
        seen = {tag.strip().removeprefix("W/") for tag in request.headers.get("If-None-Match", "").split(",")}
        if self.headers["ETag"] in seen:
            return Response(status_code=304, headers=self.headers)
        return Response(self.body, headers=self.headers)


def router() -> APIRouter:
    """Routes of `/`, `/status` and `/static/`; files are read once here, so no request becomes a path."""
    pages = {
        path.relative_to(FOLDER).as_posix(): _Page.read(path)
        for path in sorted(FOLDER.rglob("*"))
        if path.suffix in MEDIA_TYPES
    }
    routes = APIRouter(tags=["pages"])

    def page(path: str, summary: str, *media_types: str) -> Callable[[Serving], Serving]:
        """Serve GET and HEAD of `path`, described as a page of one of these types."""
        unchanged = {"description": "It is still the page that If-None-Match names"}
        errors = raises(NotFound) if "{" in path else raises()
        content = {media_type: {"schema": {"type": "string"}} for media_type in media_types}

        def add(serve: Serving) -> Serving:
            told = {**errors, 200: {"content": content}, 304: unchanged}
            for to, name in ((routes.get, serve.__name__), (routes.head, f"{serve.__name__}_head")):
                to(path, summary=summary, responses=told, response_class=Response, operation_id=name)(serve)
            return serve

        return add

    @page("/", "A photo to click on", MEDIA_TYPES[".html"])
    async def playground(request: Request) -> Response:  # pyright: ignore[reportUnusedFunction]
        """Clicks and boxes on a photo of one's own, and the outline at the quality that is chosen."""
        return pages["index.html"].response(request)

    @page("/status", "How the server is, for people", MEDIA_TYPES[".html"])
    async def status(request: Request) -> Response:  # pyright: ignore[reportUnusedFunction]
        """What /v1/status says, as a page."""
        return pages["status.html"].response(request)

    @page("/static/{name:path}", "What the pages load", *MEDIA_TYPES.values())
    async def static(name: PageName, request: Request) -> Response:  # pyright: ignore[reportUnusedFunction]
        """Scripts, styles and pictures. Nothing is loaded from elsewhere."""
        if name not in pages:
            raise HTTPException(404, f"there is no page {name[:80]!r}")
        return pages[name].response(request)

    return routes
