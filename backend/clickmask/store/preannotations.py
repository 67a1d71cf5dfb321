"""Every object that a model drew before people did, and that they were shown."""

from __future__ import annotations

import secrets
import time
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import sqlalchemy as sa

from clickmask.masks import Rle, mask_to_rle
from clickmask.store.database import Database
from clickmask.store.label_sets import remove_rows, replace_set, write_rows
from clickmask.store.schema import preannotated, unfinished
from clickmask.types import Prediction, Size

KEPT_PREANNOTATED = 200_000  # apart from clicks' proposals: one run over a project must not push these out


@dataclass(frozen=True)
class Preannotated:
    """`batch` is the same for what one look at the image gave; without a label: it gave nothing."""

    id: str
    batch: str
    created_at: float  # seconds since 1970
    annotator: str
    label: str
    score: float
    rle: Rle


class Preannotations:
    """The newest 200,000 objects are kept."""

    _kept_preannotated = KEPT_PREANNOTATED

    def __init__(self, database: Database) -> None:
        self._database = database

    def remember_preannotated(
        self, digest: str, size: Size, annotator: str, found: Sequence[tuple[str, str, Prediction]]
    ) -> None:
        """What one look at the image of `size` gave: id, label and prediction of each object.

        However many there are, each write transaction is short, and readers see all of a look or nothing.
        """
        batch = secrets.token_urlsafe(9)
        height, width = size
        look = {"batch": batch, "created_at": time.time(), "digest": digest, "annotator": annotator}
        common = {**look, "height": height, "width": width}
        rows = [
            {
                **common,
                "id": id,
                "label": label,
                "score": prediction.score,
                "counts": mask_to_rle(prediction.mask)["counts"],
            }
            for id, label, prediction in found  # noqa: A001 - its name everywhere
        ]
        if not rows:
            nothing = mask_to_rle(np.zeros(size, np.bool_))["counts"]
            rows = [{**common, "id": batch, "label": "", "score": 0.0, "counts": nothing}]
        write_rows(self._database, batch, preannotated, rows)
        with self._database.writing() as connection:
            replace_set(connection, batch)
            newest = connection.scalar(sa.select(sa.func.max(preannotated.c.number))) or 0
        remove_rows(self._database, preannotated, preannotated.c.number <= newest - self._kept_preannotated)

    def preannotated(self, digest: str) -> list[Preannotated]:
        """Those on one image, oldest first."""
        stands = preannotated.c.batch.not_in(sa.select(unfinished.c.revision))
        chosen = sa.select(preannotated).where(preannotated.c.digest == digest, stands)
        with self._database.reading() as connection:
            rows = connection.execute(chosen.order_by(preannotated.c.number)).mappings()
            return [
                Preannotated(
                    row["id"],
                    row["batch"],
                    row["created_at"],
                    row["annotator"],
                    row["label"],
                    row["score"],
                    {"size": [row["height"], row["width"]], "counts": row["counts"]},
                )
                for row in rows
            ]
