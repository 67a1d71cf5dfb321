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
from clickmask.store.schema import preannotated
from clickmask.types import Prediction, Size

KEPT_PREANNOTATED = 200_000  # apart from clicks' proposals: one run over a project must not push these out

_FORGET = preannotated.delete().where(preannotated.c.number <= sa.bindparam("last"))


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
        """What one look at the image of `size` gave: id, label and prediction of each object."""
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
        with self._database.writing() as connection:
            connection.execute(preannotated.insert(), rows)
            newest = connection.scalar(sa.select(sa.func.max(preannotated.c.number)))
            connection.execute(_FORGET, {"last": (newest or 0) - self._kept_preannotated})

    def preannotated(self, digest: str) -> list[Preannotated]:
        """Those on one image, oldest first."""
        chosen = sa.select(preannotated).where(preannotated.c.digest == digest)
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
