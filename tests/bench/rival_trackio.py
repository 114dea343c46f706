"""Writes runs into Trackio's database; runs in the interpreter that Trackio is installed in.

python rival_trackio.py BEGUN_AT STEP_SECONDS PROJECT RUN.npz …     (TRACKIO_DIR says where)

The first points of each run go through its own storage, which makes the database and its tables.
Through it 10 million would take half an hour, so the other rows are inserted as it does, in one
transaction and before the indexes, which are made anew at the end.
"""

import sqlite3
import sys
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import numpy as np
import orjson
from trackio.sqlite_storage import SQLiteStorage

EVAL_EVERY = 1000
CHUNK = 200_000
OWN = 100

Row = tuple[int, str, bytes]


def rows(
    points: dict[str, np.ndarray], begun_at: float, step_seconds: float, begin: int, end: int
) -> Iterator[Row]:
    """Step, time and metrics of each point from one position to another."""
    steps = np.arange(begin + 1, end + 1)
    at = (1e6 * (begun_at + steps * step_seconds)).astype("datetime64[us]")
    for step, time, loss, rate, norm in zip(
        steps.tolist(),
        np.datetime_as_string(at).tolist(),
        points["train_loss"][begin:end].tolist(),
        points["learning_rate"][begin:end].tolist(),
        points["grad_norm"][begin:end].tolist(),
        strict=True,
    ):
        held_out = ""
        if step % EVAL_EVERY == 0:
            held_out = f'"eval_loss":{points["eval_loss"][step // EVAL_EVERY - 1]:.6g},'
        rest = f'"learning_rate":{rate:.6g},"grad_norm":{norm:.6g}'
        metrics = f'{{"train_loss":{loss:.6g},{held_out}{rest}}}'
        yield step, f"{time}+00:00", metrics.encode()


def begin(project: str, run: str, own: list[Row]) -> None:
    """Through its own storage."""
    SQLiteStorage.bulk_log(
        project,
        run,
        [orjson.loads(metrics) for _, _, metrics in own],
        steps=[step for step, _, _ in own],
        timestamps=[at for _, at, _ in own],
        config={"bench": "curves"},
        run_id=run,
    )


def main() -> None:
    begun_at, step_seconds, project, *sources = sys.argv[1:]
    clock = float(begun_at), float(step_seconds)
    for source in map(Path, sources):
        begin(project, source.stem, list(rows(dict(np.load(source)), *clock, 0, OWN)))
    with closing(sqlite3.connect(SQLiteStorage.get_project_db_path(project))) as connection:
        indexes = connection.execute(
            "SELECT name, sql FROM sqlite_master "
            "WHERE type = 'index' AND tbl_name = 'metrics' AND sql IS NOT NULL"
        ).fetchall()
        connection.execute("PRAGMA journal_mode = OFF")
        connection.execute("PRAGMA synchronous = OFF")
        with connection:
            for name, _ in indexes:
                connection.execute(f"DROP INDEX {name}")
            for source in map(Path, sources):
                points = dict(np.load(source))
                count = len(points["train_loss"])
                for first in range(OWN, count, CHUNK):
                    connection.executemany(
                        "INSERT INTO metrics (run_id, run_name, step, timestamp, metrics) "
                        "VALUES (?, ?, ?, ?, ?)",
                        (
                            (source.stem, source.stem, *row)
                            for row in rows(points, *clock, first, min(count, first + CHUNK))
                        ),
                    )
            for _, sql in indexes:
                connection.execute(sql)
        connection.execute("PRAGMA journal_mode = WAL")


main()
