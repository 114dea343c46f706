"""The file of the database: made, brought up to date, and set aside where it is damaged."""

import errno
import logging
import os
import shutil
import sqlite3
from contextlib import closing
from datetime import UTC, datetime
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING, Final

from sqlalchemy import URL, Connection, Engine, NullPool, create_engine

from backend.models import Job

if TYPE_CHECKING:
    from alembic.config import Config

logger = logging.getLogger(__name__)

BUSY_SECONDS: Final = 30
"""How long anybody waits for the database before giving up."""

FIRST: Final = "0001"
"""The revision of the release that kept no note of its revision."""

HEAD: Final = "0004"
"""The newest revision in `backend/migrations`; kept here so that a start need not ask Alembic."""

MIGRATIONS: Final = Path(__file__).parent / "migrations"

_DAMAGE: Final = {sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB}
_BESIDE: Final = ("-wal", "-shm", "-journal")


class SchemaError(Exception):
    """The database cannot be used; the message is one line that says why and what to do."""


def prepare(engine: Engine, path: Path) -> None:
    """Make the tables, or bring those of an older release up to date; writes nothing otherwise.

    Raises:
        SchemaError: a newer Signalbox wrote it, or it cannot be brought up to date. It is as it
            was.
    """
    with engine.connect() as connection:
        revision = _revision(connection)
    if revision is None:
        with engine.execution_options(writes=True).begin() as connection:
            if _revision(connection) is None:  # nobody made them in between
                _create(connection)
    elif revision != HEAD:
        _migrate(path)


def alembic_config() -> "Config":
    """What Alembic has to know; there is no alembic.ini."""
    from alembic.config import Config  # a fifth of a second that a start seldom needs

    config = Config()
    config.set_main_option("script_location", str(MIGRATIONS).replace("%", "%%"))
    config.set_main_option("file_template", "v%%(rev)s_%%(slug)s")
    return config


def set_aside_if_damaged(path: Path) -> Path | None:
    """Move a damaged database away, with all that belongs to it; return where it is now.

    None where it is sound, empty or not there. No byte of a damaged database is changed, and it can
    be opened under its new name.

    Raises:
        SchemaError: it is locked, or may not be read and written; that is no damage.
        OSError: it is damaged, and cannot be moved.
    """
    try:
        if not path.exists() or _is_sound(path):
            return None
    except (OSError, sqlite3.OperationalError) as error:
        raise SchemaError(
            f"The database {path} cannot be opened ({getattr(error, 'strerror', error)}); "
            "make sure that it may be read and written, and that no other program keeps it locked."
        ) from error
    aside = _free(path.with_name(f"{path.name}.damaged-{datetime.now(UTC):%Y%m%dT%H%M%SZ}"))
    # The file itself goes last: SQLite throws away a log that it finds beside no database.
    for suffix in (*_BESIDE, ""):
        part = Path(f"{path}{suffix}")
        if part.exists():
            part.rename(f"{aside}{suffix}")
    _sync(path.parent)
    return aside


def _is_sound(path: Path) -> bool:
    if path.is_dir():
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
    if not os.access(path, os.R_OK | os.W_OK):
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(path))
    if path.stat().st_size == 0:
        log = Path(f"{path}-wal")
        return not log.exists() or log.stat().st_size == 0
    # A connection that may write would move the log's pages into the file when it closes; one that
    # may not cannot undo what was interrupted before the file had a log.
    mode = "rw" if Path(f"{path}-journal").exists() else "ro"
    uri = f"{path.absolute().as_uri()}?mode={mode}"
    with closing(sqlite3.connect(uri, uri=True, timeout=BUSY_SECONDS)) as connection:
        connection.text_factory = bytes  # a complaint may quote what is no text
        try:
            (answer,) = connection.execute("PRAGMA quick_check(1)").fetchone()
        except sqlite3.DatabaseError as error:
            if error.sqlite_errorcode & 0xFF in _DAMAGE:
                return False
            raise
    return bool(answer == b"ok")


def _revision(connection: Connection) -> str | None:
    """The revision of the tables; None where there are none yet."""
    rows = connection.exec_driver_sql("SELECT name FROM sqlite_master WHERE type = 'table'")
    tables = set(rows.scalars())
    if "alembic_version" in tables:
        noted = connection.exec_driver_sql("SELECT version_num FROM alembic_version").scalar()
        if noted is not None:
            return str(noted)
    return FIRST if "job" in tables else None


def _create(connection: Connection) -> None:
    """The newest tables, from the models; a test holds that the migrations come to the same."""
    Job.metadata.create_all(connection)
    connection.exec_driver_sql(
        "CREATE TABLE IF NOT EXISTS alembic_version (version_num VARCHAR(32) NOT NULL, "
        "CONSTRAINT alembic_version_pkc PRIMARY KEY (version_num))"
    )
    connection.exec_driver_sql("INSERT INTO alembic_version VALUES (?)", (HEAD,))


def _migrate(path: Path) -> None:
    """Bring an older database up to date in one transaction, with a copy of it made before."""
    from alembic import command
    from alembic.script import ScriptDirectory

    config = alembic_config()
    known = {script.revision for script in ScriptDirectory.from_config(config).walk_revisions()}
    engine = create_engine(
        URL.create("sqlite", database=str(path)),
        poolclass=NullPool,
        # Without the driver's own transactions, so that the tables' changes are in ours.
        connect_args={"timeout": BUSY_SECONDS, "isolation_level": None},
    )
    copy: Path | None = None
    try:
        with engine.begin() as connection:
            connection.exec_driver_sql("PRAGMA synchronous=FULL")
            # A table that is made anew is dropped for a moment, and others refer to it.
            connection.exec_driver_sql("PRAGMA foreign_keys=OFF")
            connection.exec_driver_sql("BEGIN IMMEDIATE")
            revision = _revision(connection)
            if revision not in known:
                raise SchemaError(  # noqa: TRY301 (nothing was begun that has to be told of)
                    f"The database {path} was written by a newer Signalbox (revision {revision}); "
                    "update Signalbox or set SIGNALBOX_DATA to another folder."
                )
            if revision == HEAD:  # somebody else was quicker
                return
            copy = _back_up(path)
            dangling = _count_dangling(connection)
            config.attributes["connection"] = connection
            command.stamp(config, revision)
            command.upgrade(config, "head")
            if _count_dangling(connection) > dangling:
                raise SchemaError("rows would refer to others that are gone")  # noqa: TRY301
    except Exception as error:
        if copy:  # the same as the database, and the next start makes another
            copy.unlink()
        if isinstance(error, SchemaError) and copy is None:
            raise
        reason = str(getattr(error, "orig", None) or error).partition("\n")[0]
        raise SchemaError(
            f"The database {path} cannot be brought up to date ({reason}); it is as it was."
        ) from error
    logger.info("The database was brought up to date; as it was before it is kept in %s", copy)


def _count_dangling(connection: Connection) -> int:
    """How many rows refer to one that is not there."""
    return len(connection.exec_driver_sql("PRAGMA foreign_key_check").all())


def _back_up(path: Path) -> Path:
    """Copy a database, with what is in its log; return the copy once it is safely on the disk."""
    unfinished = path.with_name(f"{path.name}.before-{HEAD}.part")
    unfinished.unlink(missing_ok=True)
    try:
        unfinished.touch(mode=0o600)
        with (
            closing(sqlite3.connect(path, timeout=BUSY_SECONDS)) as source,
            closing(sqlite3.connect(unfinished)) as target,
        ):
            source.backup(target)
        shutil.copymode(path, unfinished)
        with unfinished.open("r+b") as file:
            os.fsync(file.fileno())
        copy = unfinished.rename(_free(path.with_name(f"{path.name}.before-{HEAD}")))
    except BaseException:
        unfinished.unlink(missing_ok=True)
        raise
    _sync(path.parent)
    return copy


def _free(path: Path) -> Path:
    """This name, or with a number behind it where the name is taken."""
    names = (path if n == 1 else path.with_name(f"{path.name}-{n}") for n in count(1))
    return next(
        name for name in names if not any(os.path.lexists(f"{name}{s}") for s in ("", *_BESIDE))
    )


def _sync(folder: Path) -> None:
    """Have the folder's names on the disk, where the system can be asked for that."""
    if hasattr(os, "O_DIRECTORY"):
        descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
