"""What clickmask remembers across restarts: its proposals, and what a project asked for."""

from __future__ import annotations

import json
import sqlite3
import threading
import time
from dataclasses import dataclass
from pathlib import Path

from clickmask.masks import Rle, mask_to_rle
from clickmask.types import Prediction, Prompt

KEPT_PROPOSALS = 200_000
_SCHEMA = """
CREATE TABLE IF NOT EXISTS proposals (
    id TEXT PRIMARY KEY, created_at REAL NOT NULL, digest TEXT NOT NULL, segmenter TEXT NOT NULL,
    score REAL NOT NULL, prompt TEXT NOT NULL, height INTEGER NOT NULL, width INTEGER NOT NULL,
    counts TEXT NOT NULL
);
CREATE TABLE IF NOT EXISTS projects (
    tool TEXT NOT NULL, project TEXT NOT NULL, segmenter TEXT NOT NULL, PRIMARY KEY (tool, project)
);
"""


@dataclass(frozen=True)
class RememberedProposal:
    id: str
    created_at: float  # seconds since 1970
    digest: str
    segmenter: str
    score: float
    prompt: str  # JSON: foreground, background, box
    rle: Rle


class Store:
    """An SQLite file (WAL), for any thread. The newest 200,000 proposals are kept."""

    def __init__(self, path: Path, kept_proposals: int = KEPT_PROPOSALS) -> None:
        self._kept_proposals = kept_proposals
        self._lock = threading.Lock()
        self._connection = sqlite3.connect(path, check_same_thread=False, isolation_level=None)
        self._connection.execute("PRAGMA journal_mode = WAL")
        self._connection.execute("PRAGMA synchronous = NORMAL")
        self._connection.execute("PRAGMA busy_timeout = 2000")
        self._connection.executescript(_SCHEMA)

    def remember_proposal(self, id: str, digest: str, prompt: Prompt, prediction: Prediction) -> None:  # noqa: A002
        rle = mask_to_rle(prediction.mask)
        height, width = rle["size"]
        pointed = json.dumps(
            {"foreground": prompt.foreground, "background": prompt.background, "box": prompt.box}
        )
        row = (
            id,
            time.time(),
            digest,
            prediction.segmenter,
            prediction.score,
            pointed,
            height,
            width,
            rle["counts"],
        )
        with self._lock:
            cursor = self._connection.execute("INSERT INTO proposals VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)", row)
            self._connection.execute(
                "DELETE FROM proposals WHERE rowid <= ?", ((cursor.lastrowid or 0) - self._kept_proposals,)
            )

    def proposal(self, id: str) -> RememberedProposal | None:  # noqa: A002
        with self._lock:
            row = self._connection.execute("SELECT * FROM proposals WHERE id = ?", (id,)).fetchone()
        if row is None:
            return None
        *described, height, width, counts = row
        return RememberedProposal(*described, rle={"size": [height, width], "counts": counts})

    def set_project_segmenter(self, tool: str, project: str, segmenter: str | None) -> None:
        """None: the project has no wish of its own any more."""
        with self._lock:
            if segmenter is None:
                self._connection.execute(
                    "DELETE FROM projects WHERE tool = ? AND project = ?", (tool, project)
                )
            else:
                self._connection.execute(
                    "INSERT OR REPLACE INTO projects VALUES (?, ?, ?)", (tool, project, segmenter)
                )

    def project_segmenter(self, tool: str, project: str) -> str | None:
        with self._lock:
            row = self._connection.execute(
                "SELECT segmenter FROM projects WHERE tool = ? AND project = ?", (tool, project)
            ).fetchone()
        return row[0] if row else None

    def close(self) -> None:
        with self._lock:
            self._connection.close()
