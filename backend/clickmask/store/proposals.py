"""Every proposal that a click was answered with."""

from __future__ import annotations

import json
import time
from dataclasses import dataclass

import sqlalchemy as sa

from clickmask.masks import Rle, mask_to_rle
from clickmask.store.database import Database
from clickmask.store.schema import proposals
from clickmask.types import Prediction, Prompt

KEPT_PROPOSALS = 200_000

_INSERT = proposals.insert().returning(proposals.c.number)
_FORGET = proposals.delete().where(proposals.c.number <= sa.bindparam("last"))
_SELECT = sa.select(*(column for column in proposals.c if column.name != "number"))


@dataclass(frozen=True)
class RememberedProposal:
    id: str
    created_at: float  # seconds since 1970
    digest: str
    segmenter: str
    score: float
    prompt: str  # JSON: foreground, background, box
    rle: Rle


class Proposals:
    """The newest 200,000 are kept."""

    _kept_proposals = KEPT_PROPOSALS

    def __init__(self, database: Database) -> None:
        self._database = database

    def remember_proposal(self, id: str, digest: str, prompt: Prompt, prediction: Prediction) -> None:  # noqa: A002
        rle = mask_to_rle(prediction.mask)
        height, width = rle["size"]
        pointed = {"foreground": prompt.foreground, "background": prompt.background, "box": prompt.box}
        row = {
            "id": id,
            "created_at": time.time(),
            "digest": digest,
            "segmenter": prediction.segmenter,
            "score": prediction.score,
            "prompt": json.dumps(pointed),
            "height": height,
            "width": width,
            "counts": rle["counts"],
        }
        with self._database.writing() as connection:
            number = connection.execute(_INSERT, row).scalar_one()
            connection.execute(_FORGET, {"last": number - self._kept_proposals})

    def proposal(self, id: str) -> RememberedProposal | None:  # noqa: A002
        with self._database.reading() as connection:
            row = connection.execute(_SELECT.where(proposals.c.id == id)).mappings().first()
        return _remembered(row) if row else None

    def proposals(self, digest: str) -> list[RememberedProposal]:
        """Those on one image, oldest first."""
        chosen = _SELECT.where(proposals.c.digest == digest).order_by(proposals.c.number)
        with self._database.reading() as connection:
            return [_remembered(row) for row in connection.execute(chosen).mappings()]


def _remembered(row: sa.RowMapping) -> RememberedProposal:
    return RememberedProposal(
        id=row["id"],
        created_at=row["created_at"],
        digest=row["digest"],
        segmenter=row["segmenter"],
        score=row["score"],
        prompt=row["prompt"],
        rle={"size": [row["height"], row["width"]], "counts": row["counts"]},
    )
