"""A settings type that both tools use."""

from typing import Annotated

from pydantic import AfterValidator

ServerUrl = Annotated[str | None, AfterValidator(lambda url: url.rstrip("/") if url else None)]
"""The address of a tool, without a slash at its end; None if it is empty."""
