"""The database file: made at once, brought up to date with a copy kept, set aside where damaged."""

import os
import shutil
import sqlite3
import stat
import subprocess
import sys
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from textwrap import dedent
from typing import Any

import pytest
from alembic import command
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import URL, Engine, NullPool, create_engine

from backend import schema, store
from backend.models import Job, JobStatus
from backend.schema import SchemaError, set_aside_if_damaged
from backend.store import Store, StoreError
from tests.conftest import PROJECT

HEAD = schema.HEAD
NEXT = f"{int(HEAD) + 1:04d}"
COPY = f"signalbox.db.before-{HEAD}"

FIRST_RELEASE = """
CREATE TABLE job (
    id INTEGER NOT NULL, name VARCHAR NOT NULL, recipe VARCHAR NOT NULL, params JSON NOT NULL,
    command JSON NOT NULL, env JSON NOT NULL, timeout_seconds FLOAT NOT NULL, gpus INTEGER NOT NULL,
    status VARCHAR(32) NOT NULL, requested VARCHAR(32), created_at DATETIME, queued_at DATETIME,
    started_at DATETIME, finished_at DATETIME, parent_id INTEGER, pid INTEGER,
    process_start VARCHAR, devices JSON NOT NULL, progress JSON NOT NULL, error VARCHAR,
    failure_kind VARCHAR(32), checkpoint VARCHAR,
    PRIMARY KEY (id), FOREIGN KEY(parent_id) REFERENCES job (id)
);
CREATE INDEX ix_job_recipe ON job (recipe);
CREATE INDEX ix_job_status_queued ON job (status, queued_at);
CREATE TABLE event (
    id INTEGER NOT NULL, job_id INTEGER NOT NULL, at DATETIME, from_status VARCHAR(32),
    to_status VARCHAR(32), message VARCHAR NOT NULL,
    PRIMARY KEY (id), FOREIGN KEY(job_id) REFERENCES job (id)
);
CREATE INDEX ix_event_job_id ON event (job_id);
CREATE TABLE failure (
    job_id INTEGER NOT NULL, kind VARCHAR(32) NOT NULL, message VARCHAR NOT NULL,
    seconds_without_progress FLOAT, last_step INTEGER, log_tail VARCHAR NOT NULL,
    stacks VARCHAR NOT NULL, at DATETIME,
    PRIMARY KEY (job_id), FOREIGN KEY(job_id) REFERENCES job (id)
);
CREATE INDEX ix_failure_at ON failure (at);
CREATE INDEX ix_failure_kind ON failure (kind);
CREATE TABLE cleanup (
    id INTEGER NOT NULL, job_id INTEGER, reason VARCHAR NOT NULL, device VARCHAR NOT NULL,
    source VARCHAR NOT NULL, baseline_bytes INTEGER, before_bytes INTEGER, peak_bytes INTEGER,
    after_bytes INTEGER, settle_seconds FLOAT, released BOOLEAN, holders JSON NOT NULL,
    cache_freed_bytes INTEGER, created_at DATETIME,
    PRIMARY KEY (id), FOREIGN KEY(job_id) REFERENCES job (id)
);
CREATE INDEX ix_cleanup_job_id ON cleanup (job_id);
INSERT INTO job (id, name, recipe, params, command, env, timeout_seconds, gpus, status, created_at,
    queued_at, devices, progress)
VALUES (1, 'old', 'digits', '{"epochs": 3}', '{}', '{}', 600.0, 0, 'queued',
    '2026-11-23 18:02:45.123000', '2026-11-23 18:02:45.123000', '[]', '{}');
INSERT INTO event (job_id, at, to_status, message)
VALUES (1, '2026-11-23 18:02:45.123000', 'queued', 'Submitted');
"""
"""What the first release made, with one job in it."""


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "signalbox.db"


def _make_first_release(path: Path) -> None:
    with closing(sqlite3.connect(path)) as connection:
        connection.execute("PRAGMA journal_mode=WAL")
        connection.executescript(FIRST_RELEASE)


def _engine(path: Path) -> Engine:
    return create_engine(
        URL.create("sqlite", database=str(path)),
        poolclass=NullPool,
        connect_args={"isolation_level": None},
    )


def _upgrade(path: Path, revision: str) -> None:
    """As a developer would do it by Alembic alone."""
    config = schema.alembic_config()
    with _engine(path).connect() as connection:
        config.attributes["connection"] = connection
        command.upgrade(config, revision)


def _open(path: Path) -> None:
    Store(path).close()


def _rows(path: Path, query: str) -> list[Any]:
    with closing(sqlite3.connect(path)) as connection:
        return connection.execute(query).fetchall()


def _revision(path: Path) -> Any:
    return _rows(path, "SELECT version_num FROM alembic_version")


def _shape(path: Path) -> dict[str, Any]:
    """Columns (type, not null, default, key), indexes and references of each table, in no order."""
    shape = {}
    for (table,) in _rows(path, "SELECT name FROM sqlite_master WHERE type = 'table'"):
        indexes = _rows(path, f"PRAGMA index_list({table})")
        shape[table] = (
            {row[1]: row[2:] for row in _rows(path, f"PRAGMA table_xinfo({table})")},
            {i[1]: (i[2:], _rows(path, f"PRAGMA index_info({i[1]})")) for i in indexes},
            {row[2:] for row in _rows(path, f"PRAGMA foreign_key_list({table})")},
        )
    # The place of a column in its table differs, and with it what an index says of it.
    return {
        table: (columns, {k: (v, [c[2] for c in parts]) for k, (v, parts) in indexes.items()}, keys)
        for table, (columns, indexes, keys) in shape.items()
    }


def _bytes(folder: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in folder.iterdir()}


# The tables


def test_the_first_migration_is_the_first_release(path: Path) -> None:
    _upgrade(path, "0001")
    released = path.with_name("released.db")
    _make_first_release(released)
    migrated = _shape(path)
    del migrated["alembic_version"]
    assert migrated == _shape(released)


def _migrated_from_nothing(path: Path) -> None:
    _upgrade(path, "head")


def _migrated_from_the_first_release(path: Path) -> None:
    _make_first_release(path)
    _open(path)


@pytest.mark.parametrize("make", [_migrated_from_nothing, _migrated_from_the_first_release])
def test_migrations_and_models_come_to_the_same(path: Path, make: Callable[[Path], None]) -> None:
    make(path)
    fresh = path.with_name("fresh.db")
    _open(fresh)
    assert _shape(path) == _shape(fresh)
    assert _revision(path) == _revision(fresh) == [(schema.HEAD,)]
    for file in (path, fresh):
        with _engine(file).connect() as connection:
            context = MigrationContext.configure(
                connection, opts={"compare_type": True, "compare_server_default": True}
            )
            assert compare_metadata(context, Job.metadata) == []


def test_the_newest_revision_is_alembics_head() -> None:
    scripts = ScriptDirectory.from_config(schema.alembic_config())
    assert scripts.get_heads() == [schema.HEAD]
    assert scripts.get_bases() == [schema.FIRST]
    assert (schema.MIGRATIONS / "versions").is_dir()


def test_a_new_migration_begins_from_the_template(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _use_copy_of_migrations(tmp_path / "a 100% copy", monkeypatch)
    begun = command.revision(schema.alembic_config(), "what it changes", rev_id=NEXT)
    assert begun is not None
    assert not isinstance(begun, list)
    assert Path(begun.path).name == f"v{NEXT}_what_it_changes.py"
    assert (begun.doc, begun.down_revision) == ("what it changes.", schema.HEAD)


# Opening


def test_a_start_needs_no_alembic(path: Path) -> None:
    source = dedent("""
        import sys, pathlib
        import backend.runtime
        from backend.store import Store
        for _ in range(2):
            Store(pathlib.Path(sys.argv[1])).close()
        sys.exit("alembic" in sys.modules)
    """)
    subprocess.run([sys.executable, "-c", source, str(path)], cwd=PROJECT, check=True)


@pytest.mark.parametrize("before", ["absent", "empty file"])
def test_a_new_database_needs_no_copy(path: Path, before: str) -> None:
    if before == "empty file":
        path.touch()
    _open(path)
    assert [file.name for file in path.parent.iterdir()] == [path.name]


def test_a_second_store_beside_a_running_one_writes_nothing_and_waits_for_nobody(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(store, "BUSY_SECONDS", 0.1)
    running = Store(path)
    running.add(Job(name="a", recipe="digits", timeout_seconds=600, gpus=0))
    with closing(sqlite3.connect(path, isolation_level=None)) as writer:
        writer.execute("BEGIN IMMEDIATE")
        before = _bytes(path.parent)
        second = Store(path)
        assert second.counts()[JobStatus.QUEUED] == 1
        second.close()
        after = _bytes(path.parent)
        for name in (path.name, f"{path.name}-wal"):
            assert after[name] == before[name]
    running.close()


def test_the_database_may_be_in_a_folder_of_any_name(tmp_path: Path) -> None:
    folder = tmp_path / "50%20 of #1? yes & no"
    folder.mkdir()
    path = folder / "signalbox.db"
    _make_first_release(path)
    assert set_aside_if_damaged(path) is None
    _open(path)
    assert _revision(path) == [(schema.HEAD,)]


# Upgrades


def test_the_first_releases_jobs_are_all_there(path: Path) -> None:
    _make_first_release(path)
    opened = Store(path)
    job = opened.get(1)
    assert job is not None
    assert (job.name, job.params, job.memory, job.ending) == ("old", {"epochs": 3}, {}, None)
    assert [event.message for event in opened.timeline(1)] == ["Submitted"]
    new = opened.add(Job(name="new", recipe="digits", timeout_seconds=600, gpus=0, parent_id=1))
    assert new == 2
    opened.close()


def test_a_copy_is_kept_with_what_was_in_the_log(path: Path) -> None:
    _make_first_release(path)
    path.chmod(0o640)
    with closing(sqlite3.connect(path, isolation_level=None)) as other:
        other.execute("UPDATE job SET name = 'renamed'")  # in the log only, as long as this is open
        _open(path)
    copy = path.with_name(COPY)
    assert sorted(file.name for file in path.parent.iterdir()) == [path.name, copy.name]
    assert _rows(copy, "SELECT name FROM job") == [("renamed",)]
    assert _rows(copy, "PRAGMA integrity_check") == [("ok",)]
    assert stat.S_IMODE(copy.stat().st_mode) == 0o640
    first = path.with_name("released.db")
    _make_first_release(first)
    assert _shape(copy) == _shape(first)


def test_no_copy_is_overwritten(path: Path) -> None:
    copies = [path.with_name(f"{COPY}{number}") for number in ("", "-2", "-3")]
    for copy in copies[:2]:
        copy.write_text("mine")
    _make_first_release(path)
    _open(path)
    assert [copy.read_text() for copy in copies[:2]] == ["mine", "mine"]
    assert _rows(copies[2], "SELECT name FROM job") == [("old",)]


def test_what_an_interrupted_start_left_of_a_copy_is_made_again(path: Path) -> None:
    path.with_name(f"{COPY}.part").write_bytes(b"half")
    _make_first_release(path)
    _open(path)
    assert sorted(file.name for file in path.parent.iterdir()) == [
        path.name,
        COPY,
    ]


FAILING = """
import sqlalchemy as sa
from alembic import op

revision = "{next}"
down_revision = "{head}"


def upgrade() -> None:
    op.create_table("extra", sa.Column("id", sa.Integer(), primary_key=True))
    with op.batch_alter_table("job") as job:
        job.add_column(sa.Column("colour", sa.String()))
    op.execute("DELETE FROM event")
    {then}
"""


def _use_copy_of_migrations(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    shutil.copytree(schema.MIGRATIONS, folder, ignore=shutil.ignore_patterns("__pycache__"))
    monkeypatch.setattr(schema, "MIGRATIONS", folder)
    return folder / "versions"


@pytest.mark.parametrize(
    ("then", "reason"),
    [
        ("raise ValueError('no such luck')", "no such luck"),
        ("op.execute('UPDATE absent SET x = 1')", "no such table: absent"),
        ("op.execute('DELETE FROM job')\n    op.execute(\"INSERT INTO failure (job_id, kind, "
         "message, log_tail, stacks) VALUES (7, 'lost', '', '', '')\")",
         "rows would refer to others"),
    ],
    ids=["error", "statement", "dangling"],
)  # fmt: skip
@pytest.mark.parametrize("from_first", [True, False])
def test_a_migration_that_fails_leaves_all_as_it_was(
    path: Path,
    tmp_path_factory: pytest.TempPathFactory,
    monkeypatch: pytest.MonkeyPatch,
    then: str,
    reason: str,
    from_first: bool,
) -> None:
    _make_first_release(path)
    if not from_first:
        _open(path)
        path.with_name(COPY).unlink()
    before = _shape(path), list(_dump(path))
    versions = _use_copy_of_migrations(tmp_path_factory.mktemp("m") / "migrations", monkeypatch)
    (versions / f"v{NEXT}_failing.py").write_text(FAILING.format(then=then, head=HEAD, next=NEXT))
    monkeypatch.setattr(schema, "HEAD", NEXT)
    with pytest.raises(SchemaError, match=rf"signalbox\.db cannot .*{reason}.*as it was") as caught:
        Store(path)
    assert "\n" not in str(caught.value)
    assert (_shape(path), list(_dump(path))) == before
    assert [file.name for file in path.parent.iterdir()] == [path.name], "no copies heap up"


def _dump(path: Path) -> list[str]:
    with closing(sqlite3.connect(path)) as connection:
        return list(connection.iterdump())


def test_a_table_may_be_made_anew_though_others_refer_to_it(
    path: Path, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    _make_first_release(path)
    versions = _use_copy_of_migrations(tmp_path_factory.mktemp("m") / "migrations", monkeypatch)
    source = FAILING.replace('add_column(sa.Column("colour", sa.String()))', 'drop_column("pid")')
    (versions / f"v{NEXT}_batch.py").write_text(source.format(then="", head=HEAD, next=NEXT))
    monkeypatch.setattr(schema, "HEAD", NEXT)
    with pytest.raises(StoreError, match="no such column") as caught:
        Store(path).get(1)
    assert not caught.value.passing
    assert _revision(path) == [(NEXT,)]
    assert _rows(path, "SELECT name FROM job") == [("old",)]
    assert _rows(path, "PRAGMA foreign_key_check") == []
    assert path.with_name(f"signalbox.db.before-{NEXT}").exists()


def test_a_newer_signalboxs_database_is_refused_and_left_as_it_is(path: Path) -> None:
    _open(path)
    with closing(sqlite3.connect(path)) as connection, connection:
        connection.execute("UPDATE alembic_version SET version_num = '0042'")
    before = _bytes(path.parent)
    with pytest.raises(SchemaError) as caught:
        Store(path)
    assert str(caught.value) == (
        f"The database {path} was written by a newer Signalbox (revision 0042); "
        "update Signalbox or set SIGNALBOX_DATA to another folder."
    )
    assert _bytes(path.parent) == before


def test_an_upgrade_that_finds_the_database_locked_says_so(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(schema, "BUSY_SECONDS", 0.1)
    _make_first_release(path)
    with closing(sqlite3.connect(path, isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        with pytest.raises(SchemaError, match="database is locked"):
            Store(path)
    _open(path)
    assert _revision(path) == [(schema.HEAD,)]


# Damage


def _make_many_jobs(path: Path) -> None:
    _open(path)
    with closing(sqlite3.connect(path)) as connection, connection:
        connection.executescript("""
            WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 2000)
            INSERT INTO job (id, name, recipe, params, command, env, timeout_seconds, gpus, status,
                devices, progress)
            SELECT i, 'job', 'digits', '{}', '{}', '{}', 600, 0, 'queued', '[]', '{}' FROM n;
        """)


def _overwrite_with_words(path: Path) -> None:
    path.write_bytes(b"no database " * 1000)


def _overwrite_the_middle(path: Path, with_bytes: bytes) -> None:
    size = path.stat().st_size
    with path.open("r+b") as file:
        file.seek(size // 4096 // 2 * 4096)
        file.write(with_bytes * (16384 // len(with_bytes)))


DAMAGES: dict[str, Callable[[Path], None]] = {
    "garbage": _overwrite_with_words,
    "zeros in the middle": lambda path: _overwrite_the_middle(path, b"\0"),
    "words in the middle": lambda path: _overwrite_the_middle(path, b"no database "),
    "truncated": lambda path: os.truncate(path, path.stat().st_size // 2),
    "truncated within a page": lambda path: os.truncate(path, 5000),
    "a few bytes": lambda path: path.write_bytes(b"SQLite f"),
}


@pytest.mark.parametrize("damage", DAMAGES.values(), ids=DAMAGES)
def test_a_damaged_database_is_set_aside_with_all_its_bytes(
    path: Path, damage: Callable[[Path], None]
) -> None:
    _make_many_jobs(path)
    damage(path)
    before = path.read_bytes()
    aside = set_aside_if_damaged(path)
    assert aside is not None
    assert aside.parent == path.parent
    assert aside.name.startswith("signalbox.db.damaged-2")
    assert aside.read_bytes() == before
    assert not list(path.parent.glob("signalbox.db-*")), "nothing is left for a new one to find"
    _open(path)
    assert set_aside_if_damaged(path) is None


def test_a_damaged_database_keeps_its_log_and_can_be_opened_with_it(path: Path) -> None:
    """Bytes of the file and of its log are those of the crash: not even a checkpoint was made."""
    made = path.with_name("made.db")
    _make_many_jobs(made)
    with closing(sqlite3.connect(made)) as connection, connection:
        connection.execute("PRAGMA wal_autocheckpoint=0")
        connection.execute("INSERT INTO event (job_id, message) VALUES (1, 'in the log')")
        connection.commit()
        for suffix in ("", "-wal"):
            shutil.copy(f"{made}{suffix}", f"{path}{suffix}")
    _overwrite_the_middle(path, b"no database ")
    log = Path(f"{path}-wal")
    before = path.read_bytes(), log.read_bytes()
    aside = set_aside_if_damaged(path)
    assert aside is not None
    assert (aside.read_bytes(), Path(f"{aside}-wal").read_bytes()) == before
    assert _rows(aside, "SELECT message FROM event") == [("in the log",)]


def test_two_that_are_set_aside_in_the_same_second_are_both_kept(path: Path) -> None:
    kept = {}
    for number in range(3):
        path.write_bytes(b"no database " * (1000 + number))
        Path(f"{path}-wal").write_bytes(bytes([number]))
        aside = set_aside_if_damaged(path)
        assert aside is not None
        kept[aside] = number
    assert len(kept) == 3
    for aside, number in kept.items():
        assert aside.stat().st_size == 12 * (1000 + number)
        assert Path(f"{aside}-wal").read_bytes() == bytes([number])


@pytest.mark.parametrize("garbage", [b"", b"garbage", b"garbage " * 10_000])
def test_a_log_that_is_garbage_is_no_damage(path: Path, garbage: bytes) -> None:
    _make_many_jobs(path)
    Path(f"{path}-wal").write_bytes(garbage)
    Path(f"{path}-shm").write_bytes(garbage)
    assert set_aside_if_damaged(path) is None
    opened = Store(path)
    assert opened.counts()[JobStatus.QUEUED] == 2000
    opened.close()


def test_what_was_committed_before_a_crash_is_there_after_the_look(path: Path) -> None:
    source = dedent("""
        import os, pathlib, sys
        from backend.models import Job
        from backend.store import Store
        store = Store(pathlib.Path(sys.argv[1]))
        store.add(Job(name="a", recipe="digits", timeout_seconds=600, gpus=0))
        os._exit(0)
    """)
    subprocess.run([sys.executable, "-c", source, str(path)], cwd=PROJECT, check=True)
    assert Path(f"{path}-wal").stat().st_size, "the crash left the log"
    assert set_aside_if_damaged(path) is None
    opened = Store(path)
    assert opened.counts()[JobStatus.QUEUED] == 1
    opened.close()


def test_a_creation_that_was_interrupted_is_no_damage(path: Path) -> None:
    """Before the file has a log, what was begun is undone from its journal."""
    made = path.with_name("made.db")
    with closing(sqlite3.connect(made, isolation_level=None)) as connection:
        connection.execute("PRAGMA cache_size=1")
        connection.execute("CREATE TABLE a (x)")
        connection.execute("BEGIN")
        for _ in range(100):
            connection.execute("INSERT INTO a VALUES (randomblob(4000))")
        for suffix in ("", "-journal"):
            shutil.copy(f"{made}{suffix}", f"{path}{suffix}")
    assert Path(f"{path}-journal").stat().st_size > 512
    assert set_aside_if_damaged(path) is None
    assert _rows(path, "SELECT count(*) FROM a") == [(0,)]
    _open(path)


def test_what_is_not_there_or_empty_is_no_damage(path: Path) -> None:
    assert set_aside_if_damaged(path) is None
    path.touch()
    assert set_aside_if_damaged(path) is None
    assert path.exists()


def test_an_emptied_file_beside_its_log_is_damage(path: Path) -> None:
    """SQLite would throw the log away, and there are changes in it."""
    path.touch()
    Path(f"{path}-wal").write_bytes(b"changes")
    aside = set_aside_if_damaged(path)
    assert aside is not None
    assert Path(f"{aside}-wal").read_bytes() == b"changes"


def test_a_folder_in_its_place_is_no_damage(path: Path) -> None:
    path.mkdir()
    with pytest.raises(SchemaError, match=r"signalbox\.db cannot be opened \(Is a directory"):
        set_aside_if_damaged(path)
    assert path.is_dir()


def test_a_locked_database_is_no_damage(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _open(path)
    monkeypatch.setattr(schema, "BUSY_SECONDS", 0.1)
    with closing(sqlite3.connect(path, isolation_level=None)) as other:
        other.execute("PRAGMA locking_mode=EXCLUSIVE")
        other.execute("BEGIN EXCLUSIVE")
        with pytest.raises(SchemaError, match=r"\(database is locked\)"):
            set_aside_if_damaged(path)
    assert path.exists()


@pytest.mark.parametrize("mode", [0o000, 0o200, 0o400])
def test_a_database_that_may_not_be_used_is_no_damage(path: Path, mode: int) -> None:
    path.write_bytes(b"no database " * 1000)
    path.chmod(mode)
    if os.access(path, os.R_OK | os.W_OK):
        pytest.skip("permissions do not bind this user")
    with pytest.raises(SchemaError, match=r"\(Permission denied\)"):
        set_aside_if_damaged(path)
    assert path.exists()
