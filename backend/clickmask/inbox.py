"""What the labeling tools tell us, kept before anybody answers them."""

from __future__ import annotations

import sqlite3
import threading
import time
from pathlib import Path
from typing import NamedTuple


class Event(NamedTuple):
    id: int
    source: str
    received_at: float  # seconds since 1970
    body: bytes


class Inbox:
    """Raw webhook bodies in an SQLite file of their own, in the order of their arrival.

    `keep` returns when the event is on the disk (WAL, synchronous=FULL): what was acknowledged
    survives a kill and a power cut. Nothing is parsed here, so nothing can be refused.
    """

    def __init__(self, path: Path) -> None:
        self._lock = threading.Lock()
        self._connection = sqlite3.connect(path, check_same_thread=False, isolation_level=None)
        self._connection.execute("PRAGMA journal_mode = WAL")
        self._connection.execute("PRAGMA synchronous = FULL")
        self._connection.execute("PRAGMA busy_timeout = 500")
        self._connection.execute(
            "CREATE TABLE IF NOT EXISTS events ("
            "id INTEGER PRIMARY KEY AUTOINCREMENT, source TEXT NOT NULL, received_at REAL NOT NULL, "
            "body BLOB NOT NULL)"
        )

    def keep(self, source: str, body: bytes) -> int:
        """The new event's id, once it is durable."""
        with self._lock:
            cursor = self._connection.execute(
                "INSERT INTO events (source, received_at, body) VALUES (?, ?, ?)", (source, time.time(), body)
            )
        if cursor.lastrowid is None:
            raise sqlite3.DatabaseError("SQLite gave no id for an inserted event")
        return cursor.lastrowid

    def events(self, after: int = 0, limit: int = 100) -> list[Event]:
        """At most `limit` events with an id above `after`, oldest first."""
        with self._lock:
            rows = self._connection.execute(
                "SELECT id, source, received_at, body FROM events WHERE id > ? ORDER BY id LIMIT ?",
                (after, limit),
            ).fetchall()
        return [Event(*row) for row in rows]

    def count(self) -> int:
        with self._lock:
            return self._connection.execute("SELECT count(*) FROM events").fetchone()[0]

    def close(self) -> None:
        with self._lock:
            self._connection.close()
