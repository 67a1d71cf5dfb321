"""A settings type that both tools use."""

from typing import Annotated
from urllib.parse import urlsplit

from pydantic import AfterValidator


def _server_url(url: str | None) -> str | None:
    url = (url or "").strip().rstrip("/")
    try:
        parts = urlsplit(url)
        is_address = parts.scheme in ("http", "https") and parts.hostname and parts.port != 0
    except ValueError:  # of the port, or of brackets
        is_address = False
    if url and not is_address:
        raise ValueError("it is not an address such as http://host:8080")
    return url or None


ServerUrl = Annotated[str | None, AfterValidator(_server_url)]
"""The http(s) address of a tool, without a slash at its end; None if it is empty."""
