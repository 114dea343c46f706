"""Faults of a real database, and their mending."""

import sqlite3
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import event

from backend.service import Service

UNREADABLE = "The database cannot be read (no such table: job)."
FULL = "The database cannot be written (database or disk is full); free some space and try again."

_FILL = (
    "INSERT INTO event (job_id, at, message) VALUES (0, '2026-11-23 19:04:05.000000', ?)",
    "INSERT INTO cleanup (reason, device, source, holders, created_at) "
    "VALUES (?, '', '', '[]', '2026-11-23 19:04:05.000000')",
)
"""Every change of state writes an event."""


@contextmanager
def unreadable(database: Path) -> Iterator[None]:
    """A database without its table of jobs, for those too who have it open."""
    _rename(database, "job", "away")
    try:
        yield
    finally:
        _rename(database, "away", "job")


def _rename(database: Path, old: str, new: str) -> None:
    with closing(sqlite3.connect(database, timeout=30)) as connection:
        connection.execute(f"ALTER TABLE {old} RENAME TO {new}")


@contextmanager
def full(service: Service, database: Path) -> Iterator[None]:
    """A database that can take no more, as on a full disk; others may still write it."""
    engine = service._store._engine

    def limit(connection: Any, *_: object) -> None:
        connection.execute("PRAGMA max_page_count = 1")  # SQLite makes it the size that it has

    with closing(sqlite3.connect(database, timeout=30, isolation_level=None)) as connection:
        limit(connection)
        for statement in _FILL:
            _fill(connection, statement, "filled " * 400)
            _fill(connection, statement, "")  # what is left in its last page
    event.listen(engine, "checkout", limit)
    try:
        yield
    finally:
        event.remove(engine, "checkout", limit)
        engine.dispose()


def _fill(connection: sqlite3.Connection, statement: str, words: str) -> None:
    def insert() -> None:
        for _ in range(1000):
            connection.execute(statement, (words,))

    with pytest.raises(sqlite3.OperationalError, match="full"):
        insert()
