"""Static pages without a build step, which use only /v1/: `/`, a photo to click on, and `/status`."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path

from fastapi import APIRouter, HTTPException, Request, Response

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
    routes = APIRouter(include_in_schema=False)

    @routes.api_route("/", methods=["GET", "HEAD"])
    async def playground(request: Request) -> Response:  # pyright: ignore[reportUnusedFunction]
        return pages["index.html"].response(request)

    @routes.api_route("/status", methods=["GET", "HEAD"])
    async def status(request: Request) -> Response:  # pyright: ignore[reportUnusedFunction]
        return pages["status.html"].response(request)

    @routes.api_route("/static/{name:path}", methods=["GET", "HEAD"])
    async def static(name: str, request: Request) -> Response:  # pyright: ignore[reportUnusedFunction]
        if name not in pages:
            raise HTTPException(404, f"there is no page {name!r}")
        return pages[name].response(request)

    return routes
