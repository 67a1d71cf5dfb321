"""What a store writes, transaction by transaction, and kills in between."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import sqlalchemy as sa

from clickmask.store import Store


@contextmanager
def counted_writes(store: Store) -> Iterator[list[list[tuple[int, int]]]]:
    """For each transaction that wrote: rows and characters of each of its statements."""
    transactions: list[list[tuple[int, int]]] = []
    engine = store._database.engine

    def begun(connection: sa.Connection) -> None:
        transactions.append([])

    def executed(connection, cursor, statement, parameters, context, many) -> None:  # type: ignore[no-untyped-def]  # SQLAlchemy's own
        if statement.startswith(("INSERT", "UPDATE", "DELETE")):
            rows = parameters if many else [parameters]
            sent = sum(len(value) for row in rows for value in row if isinstance(value, str))
            transactions[-1].append((max(len(rows), cursor.rowcount), sent))

    sa.event.listen(engine, "begin", begun)
    sa.event.listen(engine, "after_cursor_execute", executed)
    yield transactions
    sa.event.remove(engine, "begin", begun)
    sa.event.remove(engine, "after_cursor_execute", executed)


class Killed(BaseException):
    """As `kill -9` would: nothing is done after it."""


def killed_after(store: Store, writes: int, act: Callable[[], object]) -> bool:
    """Whether `act` was killed, because it came to more than so many write transactions."""
    left = writes

    def begun(connection: sa.Connection) -> None:
        nonlocal left
        if connection.get_execution_options().get("writes"):
            left -= 1
            if left < 0:
                raise Killed

    sa.event.listen(store._database.engine, "begin", begun)
    try:
        act()
    except Killed:
        return True
    finally:
        sa.event.remove(store._database.engine, "begin", begun)
    return False
