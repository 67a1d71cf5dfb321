"""Assignment of images to split sides, once, when an image is first accepted."""

from __future__ import annotations

from collections.abc import Callable

from clickmask.errors import ClickmaskError, StoreUnavailable
from clickmask.labels.split import Side, choose_side, close, fingerprint, neighbouring_side
from clickmask.store import Store
from clickmask.types import Pixels

_MAX_QUERY_DIGESTS = 500

PixelsOf = Callable[[str], Pixels]  # pixels by digest; raises ClickmaskError if they are not kept


def assign_image(
    store: Store, tool: str, project: str, digest: str, categories: frozenset[str], pixels_of: PixelsOf
) -> Side:
    """The side of an image with labels of `categories`, assigned now if it has none.

    Concurrent processes respect each other's choices. Calls `pixels_of` only for an image without a side.
    """
    if side := store.side_of(tool, project, digest):
        return side
    shown = fingerprint(pixels_of(digest))
    while True:
        hashes = store.hashes(tool, project)
        near = [hashes[index][0] for index in close(shown.hash, [code for _, code in hashes])]
        few = near if len(near) <= _MAX_QUERY_DIGESTS else None
        assigned = store.sides(tool, project, few) if near else []
        side = neighbouring_side(shown, assigned)
        if side is None:
            side = choose_side(digest, categories, store.side_counts(tool, project, categories))
        if final := store.assign_side(tool, project, digest, side, shown, known=len(hashes)):
            return final


def assign_images(store: Store, tool: str, project: str, pixels_of: PixelsOf) -> dict[str, ClickmaskError]:
    """Assign a side to each labelled image without one, in the order of acceptance.

    Their pixels were not available at acceptance. Returns the digests whose pixels still are not, with the
    errors of `pixels_of`; these images are used neither for training nor for measuring.
    """
    known = {digest for digest, _ in store.hashes(tool, project)}
    since = {image.digest: float("inf") for image in store.images(tool, project) if image.digest not in known}
    if not since:
        return {}
    categories: dict[str, set[str]] = {digest: set() for digest in since}
    for label in store.labels(tool, project):
        if label.image in since:
            since[label.image] = min(since[label.image], label.accepted_at)
            categories[label.image].add(label.category)
    missing: dict[str, ClickmaskError] = {}
    for digest in sorted(since, key=lambda image: (since[image], image)):
        try:
            assign_image(store, tool, project, digest, frozenset(categories[digest]), pixels_of)
        except StoreUnavailable:
            raise
        except ClickmaskError as error:
            missing[digest] = error
    return missing
