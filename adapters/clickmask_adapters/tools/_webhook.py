"""Rows of a tool that point at clickmask, its webhooks above all: made if missing, mended if wrong."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable, Mapping
from typing import Any

from clickmask_adapters.tools._json import Json


def keep_oldest(
    what: str, url: str, rows: Iterable[Json], address: str, remove: Callable[[int], object]
) -> Generator[str, None, Json | None]:
    """The oldest of `rows` whose `address` is `url`, None if there is none; the others are removed.

    Yields a sentence for each that is; `what` is what a row is called there.
    """
    ours = sorted((row for row in rows if row[address].rstrip("/") == url), key=lambda row: row["id"])
    for surplus in ours[1:]:
        remove(surplus["id"])
        yield f"The {what} {url} was there twice; one was removed."
    return ours[0] if ours else None


def changed(row: Json, wanted: Json) -> str:
    """The names of what is not as `wanted`, for a sentence: the values may be secrets. Empty if all is."""
    return ", ".join(name.replace("_", " ") for name in wanted if row.get(name) != wanted[name])


def mend_webhook(
    url: str,
    webhooks: Iterable[Json],
    address: str,
    wanted: Callable[[Json], Mapping[str, Any]],
    *,
    add: Callable[[Json], Json],
    change: Callable[[int, Json], object],
    remove: Callable[[int], object],
    added_note: str = "",
    kept_note: str = "",
) -> Generator[str, None, int]:
    """Have one webhook to `url` that is as `wanted` of the one that is there, or of {} if there is none.

    `address` is the name of the member that holds a webhook's address; the notes end the sentences about
    a new one, and about one that is right already. Gives the webhook's id.
    """
    kept = yield from keep_oldest("webhook", url, webhooks, address, remove)
    wished = {address: url, **wanted(kept or {})}
    if kept is None:
        made = add(wished)
        yield f"The webhook {url} was added{added_note}."
        return made["id"]
    if mended := changed(kept, wished):
        change(kept["id"], wished)
        yield f"The webhook {url} was mended: {mended}."
    else:
        yield f"The webhook {url} is there already{kept_note}."
    return kept["id"]
