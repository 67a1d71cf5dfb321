"""Webhooks and other rows of a tool that point at clickmask: added if missing, mended if wrong."""

from collections.abc import Callable, Generator, Iterable, Mapping
from typing import Any

from clickmask_adapters.tools._client import RestClient
from clickmask_adapters.tools._json import Json


def keep_oldest(
    what: str, url: str, rows: Iterable[Json], address: str, remove: Callable[[int], object]
) -> Generator[str, None, Json | None]:
    """The oldest of `rows` whose `address` is `url`, None if there is none; the others are removed. Yields a
    sentence about each removed row, which it calls `what`."""
    ours = sorted((row for row in rows if row[address].rstrip("/") == url), key=lambda row: row["id"])
    for surplus in ours[1:]:
        remove(surplus["id"])
        yield f"The {what} {url} was there twice; one was removed."
    return ours[0] if ours else None


def changed(row: Json, wanted: Json) -> str:
    """Names of the members of `row` that differ from `wanted`; no values, which may be secrets."""
    return ", ".join(name.replace("_", " ") for name in wanted if row.get(name) != wanted[name])


def mend_webhook(
    client: RestClient,
    url: str,
    webhooks: Iterable[Json],
    address: str,
    wanted: Callable[[Json], Mapping[str, Any]],
    add: Callable[[Json], Json],
    *,
    added_note: str = "",
    kept_note: str = "",
) -> Generator[str, None, int]:
    """Ensure that there is exactly one webhook to `url`, and return its id. Yields a sentence per step.

    `webhooks` are the present ones, with URLs in the member `address`. `wanted` gives ours from the present
    one, or from {} if `add` has to make it. Notes end the sentences on a new and on a correct webhook.
    """
    kept = yield from keep_oldest("webhook", url, webhooks, address, client.remove_webhook)
    wished = {address: url, **wanted(kept or {})}
    if kept is None:
        made = add(wished)
        yield f"The webhook {url} was added{added_note}."
        return made["id"]
    if mended := changed(kept, wished):
        client.change_webhook(kept["id"], wished)
        yield f"The webhook {url} was mended: {mended}."
    else:
        yield f"The webhook {url} is there already{kept_note}."
    return kept["id"]
