"""Disks that fill up or refuse, databases that break, run folders that somebody tampers with."""

import contextlib
import sqlite3
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import event

from backend.models import FailureKind, JobStatus
from backend.paths import DataPaths
from backend.service import Service, StartError
from backend.settings import Settings
from backend.store import StoreError
from backend.submission import Submission
from backend.views import JobFilter
from tests.faults.conftest import Folder, Serve, Start, tiny_disk
from tests.waiting import wait_until, wait_until_ended

WAITS = """
    import os, sys, time
    print("begun", flush=True)
    while not os.path.exists(sys.argv[1]):
        time.sleep(0.02)
"""
REPORTS = """
    import os, sys, time, signalbox
    run = signalbox.start()
    print("begun", flush=True)
    step = 0
    while not os.path.exists(sys.argv[1]):
        run.log(step, loss=1)
        step += 1
        time.sleep(0.02)
    run.finish()
"""


@pytest.fixture
def gate(tmp_path: Path) -> Iterator[Path]:
    """Scripts wait for this file; it is there at the end, so that none is left."""
    yield tmp_path / "gate"
    (tmp_path / "gate").touch()


# The disk


@pytest.fixture
def small_disk(settings: Settings) -> Iterator[Path]:
    """The data folder is on a disk of 64 MiB of its own."""
    yield from tiny_disk(settings.data, "size=64m")


def test_a_job_that_fills_the_disk_fails_with_its_reason_and_the_server_goes_on(
    small_disk: Path, folder: Folder, serve: Serve
) -> None:
    job_id = folder.queue(
        """
        import os
        print("begun", flush=True)
        with open(os.path.join(os.environ["SIGNALBOX_RUN_DIR"], "huge"), "wb", 0) as file:
            while True:
                file.write(bytes(4096))
        """
    )
    service = serve()
    wait_until(lambda: folder.run(job_id).exit.exists())
    (folder.run(job_id).folder / "huge").unlink()
    wait_until_ended(service, job_id)
    job = service.job(job_id)
    assert job.failure_kind is FailureKind.CRASHED
    assert job.error == "OSError: [Errno 28] No space left on device"
    other = folder.queue("print('it goes on')")
    wait_until_ended(service, other)
    assert service.job(other).status is JobStatus.COMPLETED


def test_a_job_can_be_cancelled_on_a_full_disk(
    small_disk: Path,
    folder: Folder,
    serve: Serve,
    gate: Path,
) -> None:
    job_id = folder.queue(WAITS, gate)
    service = serve(workers=1)
    folder.wait_for_line(job_id, "begun")
    fill(small_disk / "huge")
    with pytest.raises(StoreError, match=r"full.*free some space"):
        submit_until_refused(service)
    assert service.cancel(job_id)
    wait_until(lambda: not folder.processes(job_id))
    (small_disk / "huge").unlink()
    wait_until_ended(service, job_id)
    assert service.job(job_id).status is JobStatus.CANCELLED


def test_a_server_that_died_on_a_full_disk_can_be_started_again(
    small_disk: Path, folder: Folder, start: Start, serve: Serve, gate: Path
) -> None:
    job_id = folder.queue(WAITS, gate)
    server = start()
    folder.wait_for_line(job_id, "begun")
    wait_until(lambda: folder.job(job_id).pid)
    with folder.store():  # keeps the database's log in place, as a killed server leaves it
        server.kill()
        fill(small_disk / "huge")
        service = serve()
        assert service.job(job_id).pid in folder.processes(job_id)
        assert service.cancel(job_id)
        wait_until(lambda: not folder.processes(job_id))
        (small_disk / "huge").unlink()
        wait_until_ended(service, job_id)
    assert service.job(job_id).status is JobStatus.CANCELLED


def test_the_queue_waits_for_room_on_the_disk(
    small_disk: Path, folder: Folder, serve: Serve
) -> None:
    """Else one job after the other would be started only to fail."""
    ids = [folder.queue("print('hello')") for _ in range(3)]
    (small_disk / "huge").write_bytes(bytes(52 * 2**20))  # room for a server, and little else
    service = serve()
    assert [service.job(i).status for i in ids] == [JobStatus.QUEUED] * 3
    (notice,) = service.notices
    assert "is full: queued jobs wait" in notice
    (small_disk / "huge").unlink()
    service._pool.tick()
    wait_until_ended(service, *ids)
    assert {service.job(i).status for i in ids} == {JobStatus.COMPLETED}
    assert service.notices == ()


def submit_until_refused(service: Service) -> None:
    """The database has a little room of its own left when the disk is full."""
    while True:
        service.submit(Submission(recipe="digits"))


def fill(path: Path) -> None:
    """Write until nothing more goes onto the disk."""
    with path.open("wb", buffering=0) as file:
        for size in (2**20, 2**12):
            with contextlib.suppress(OSError):
                while True:
                    file.write(bytes(size))


def test_a_read_only_data_folder_is_refused_with_one_line(settings: Settings) -> None:
    for _ in tiny_disk(settings.data, "size=1m,ro"):
        with pytest.raises(StartError, match=r"Read-only file system.*SIGNALBOX_DATA") as caught:
            Service(settings).start()
        assert "\n" not in str(caught.value)


def test_a_database_that_turns_read_only_stops_no_job_and_no_server(
    folder: Folder, serve: Serve, gate: Path
) -> None:
    job_id = folder.queue(WAITS, gate)
    service = serve()
    folder.wait_for_line(job_id, "begun")
    refuse = threading.Event()
    refuse.set()

    @event.listens_for(service._store._engine, "checkout")
    def checked_out(connection: Any, *_: object) -> None:
        connection.execute(f"PRAGMA query_only = {int(refuse.is_set())}")

    with pytest.raises(StoreError, match="readonly"):
        service.submit(Submission(recipe="digits"))
    assert [job.job_id for job in service.jobs().jobs] == [job_id], "It can still be read."
    gate.touch()
    wait_until(lambda: not folder.processes(job_id))
    assert service.job(job_id).status is JobStatus.RUNNING
    refuse.clear()
    wait_until_ended(service, job_id)
    assert service.job(job_id).status is JobStatus.COMPLETED


def test_what_was_ended_while_nothing_could_be_written_keeps_its_reason(
    folder: Folder, serve: Serve
) -> None:
    """One job is cancelled, one times out, and the server is closed before the disk is mended."""
    sleeps = "import time; print('begun', flush=True); time.sleep(600)"
    stuck, unwanted = folder.queue(sleeps, timeout_seconds=2), folder.queue(sleeps)
    first = serve(workers=2)
    for job_id in (stuck, unwanted):
        folder.wait_for_line(job_id, "begun")

    @event.listens_for(first._store._engine, "checkout")
    def checked_out(connection: Any, *_: object) -> None:
        connection.execute("PRAGMA query_only = 1")

    assert first.cancel(unwanted)
    wait_until(lambda: not folder.processes(unwanted) and not folder.processes(stuck))
    assert first.close() == 0, "Neither goes on."
    assert [folder.job(i).status for i in (stuck, unwanted)] == [JobStatus.RUNNING] * 2
    second = serve()
    wait_until_ended(second, stuck, unwanted)
    assert second.job(stuck).failure_kind is FailureKind.TIMEOUT
    assert second.job(unwanted).status is JobStatus.CANCELLED


# The database


def test_a_damaged_database_is_set_aside_and_what_runs_is_known_again(
    folder: Folder, serve: Serve, gate: Path
) -> None:
    ended, live = folder.queue("print('hello')"), folder.queue(WAITS, gate, timeout_seconds=90)
    first = serve()
    wait_until_ended(first, ended)
    folder.wait_for_line(live, "begun")
    assert first.close() == 1
    garbage = b"no database at all\n" * 1000
    folder.paths.database.write_bytes(garbage)
    for suffix in ("-wal", "-shm"):
        Path(f"{folder.paths.database}{suffix}").unlink(missing_ok=True)

    second = serve()
    (aside,) = folder.paths.folder.glob("signalbox.db.damaged-*")
    assert aside.read_bytes() == garbage
    assert str(aside) in second.notices[0]
    assert "damaged" in second.notices[0]
    assert f"Job {live}" in second.notices[1]
    job = second.job(live)
    assert (job.status, job.timeout_seconds) == (JobStatus.RUNNING, 90)
    assert job.params["args"] == [str(gate)]
    script = gate.with_name("new.py")
    script.write_text("print('new')")
    new = second.submit(Submission(recipe="script", params={"script": str(script)}))
    assert new == live + 1, "No run folder is used a second time."
    gate.touch()
    wait_until_ended(second, live, new)
    assert second.job(live).status is JobStatus.COMPLETED
    assert folder.run(ended).log.read_text() == "hello\n"


def test_a_database_that_breaks_while_the_server_runs_stops_no_job(
    folder: Folder, serve: Serve, gate: Path
) -> None:
    job_id = folder.queue(WAITS, gate)
    service = serve()
    folder.wait_for_line(job_id, "begun")
    service._store._engine.dispose()  # the last to close moves the log into the database
    database = folder.paths.database
    sound = database.read_bytes()
    database.write_bytes(b"\xff" * len(sound))
    with pytest.raises(StoreError, match="database"):
        service.jobs()
    assert folder.processes(job_id), "The job goes on."
    service._store._engine.dispose()
    database.write_bytes(sound)
    gate.touch()
    wait_until_ended(service, job_id)
    assert service.job(job_id).status is JobStatus.COMPLETED


def test_a_database_of_the_first_release_opens_with_its_jobs(folder: Folder, serve: Serve) -> None:
    job_id = folder.queue("print('hello')")
    connection = sqlite3.connect(folder.paths.database)
    for index in ("ix_job_parent_id", "ix_job_deleted_status"):
        connection.execute(f"DROP INDEX {index}")
    for column in (
        *("memory", "ending", "paused_at", "resumed_at", "paused_seconds", "continues_id"),
        *("max_retries", "retry_number", "starts_after", "notice"),
        *("tags", "note", "starred", "deleted_at"),
    ):
        connection.execute(f"ALTER TABLE job DROP COLUMN {column}")
    connection.execute("ALTER TABLE failure DROP COLUMN detail")
    connection.execute("DROP TABLE alembic_version")
    connection.execute("DROP TABLE gone")
    connection.commit()
    connection.close()
    service = serve()
    wait_until_ended(service, job_id)
    assert service.job(job_id).status is JobStatus.COMPLETED
    (copy,) = folder.paths.folder.glob("signalbox.db.before-*")
    connection = sqlite3.connect(copy)
    assert connection.execute("SELECT id, status FROM job").fetchall() == [(job_id, "queued")]
    connection.close()


def test_twenty_supervisors_and_ten_readers_meet_no_lock(
    folder: Folder, serve: Serve, gate: Path, caplog: pytest.LogCaptureFixture
) -> None:
    ids = [folder.queue(WAITS, gate) for _ in range(20)]
    service = serve(workers=20)
    for job_id in ids:
        folder.wait_for_line(job_id, "begun")
    stop, errors = threading.Event(), list[Exception]()

    def read() -> None:
        while not stop.wait(0.01):
            try:
                service.jobs(JobFilter(text="script", sort="duration"))
                service.counts()
                for job_id in ids[:5]:
                    service.job(job_id)
                    service.timeline(job_id)
                service.failures()
                service.cleanups()
            except Exception as error:  # noqa: BLE001 (whatever it is, it is the test's finding)
                errors.append(error)

    readers = [threading.Thread(target=read) for _ in range(10)]
    for reader in readers:
        reader.start()
    for job_id in ids[::2]:
        service.cancel(job_id)
    gate.touch()
    wait_until_ended(service, *ids)
    stop.set()
    for reader in readers:
        reader.join()
    assert errors == []
    assert [record.message for record in caplog.records if record.levelname != "INFO"] == []


# The run folder


def test_a_deleted_run_folder_stops_neither_the_job_nor_its_verdict(
    folder: Folder, serve: Serve, gate: Path
) -> None:
    ids = [folder.queue(REPORTS, gate), folder.queue(WAITS + "    sys.exit(7)\n", gate)]
    cancelled = folder.queue(REPORTS, gate)
    service = serve(workers=3)
    for job_id in (*ids, cancelled):
        folder.wait_for_line(job_id, "begun")
        subprocess.run(["rm", "-rf", str(folder.run(job_id).folder)], check=True)
    service.cancel(cancelled)
    wait_until_ended(service, cancelled)
    gate.touch()
    wait_until_ended(service, *ids)
    assert service.job(cancelled).status is JobStatus.CANCELLED
    assert service.job(ids[0]).status is JobStatus.COMPLETED
    assert service.job(ids[1]).error == "The process exited with code 7."
    assert service.log_tail(ids[0]) == ""
    assert list(service.files(ids[0])) == []


def test_a_run_folder_replaced_by_a_link_leads_nobody_elsewhere(
    folder: Folder, serve: Serve, gate: Path, tmp_path: Path
) -> None:
    """Whatever the link points to is neither read as the job's nor written to."""
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    theirs = {
        name: f"theirs: {name}"
        for name in ("progress.json", "metrics.jsonl", "log.txt", "exit.json", "stacks.txt",
                     "stop.json", "seen.jsonl", "spec.json")
    }  # fmt: skip
    for name, content in theirs.items():
        (elsewhere / name).write_text(content)
    ids = [folder.queue(REPORTS, gate, timeout_seconds=1), folder.queue(REPORTS, gate)]
    service = serve(workers=2)
    for job_id in ids:
        folder.wait_for_line(job_id, "begun")
        wait_until(lambda job_id=job_id: service.job(job_id).current_step)  # type: ignore[misc]
        run = folder.run(job_id).folder
        run.rename(run.with_name(f"{job_id}-moved"))
        run.symlink_to(elsewhere)
    wait_until_ended(service, ids[0])
    assert service.job(ids[0]).failure_kind is FailureKind.TIMEOUT
    problem = service.job(ids[1]).progress_problem
    assert problem is not None
    assert "link" in problem
    gate.touch()
    wait_until_ended(service, ids[1])
    assert service.job(ids[1]).status is JobStatus.COMPLETED
    for job_id in ids:
        assert "theirs" not in service.log_tail(job_id) + service.stacks(job_id)
        assert list(service.history(job_id)) == []
    assert {path.name: path.read_text() for path in elsewhere.iterdir()} == theirs


def test_a_link_that_waits_where_the_run_folder_should_be_is_not_entered(
    folder: Folder, serve: Serve, tmp_path: Path
) -> None:
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    job_id = folder.queue("print('hello')")
    DataPaths(folder.settings.data).runs.mkdir()
    folder.run(job_id).folder.symlink_to(elsewhere)
    service = serve()
    wait_until_ended(service, job_id)
    job = service.job(job_id)
    assert job.failure_kind is FailureKind.COULD_NOT_START
    assert job.error is not None
    assert "is a link" in job.error
    assert list(elsewhere.iterdir()) == []


def test_huge_files_slow_no_supervisor_down(folder: Folder, serve: Serve, gate: Path) -> None:
    """A log of 4 GiB and a progress.json of 200 MB, both sparse: looked at, not read."""
    job_id = folder.queue(
        """
        import os, sys, time
        progress = os.environ["SIGNALBOX_PROGRESS"]
        open(progress, "w").write('{"step": 3}')
        time.sleep(0.3)
        os.truncate(progress, 200_000_000)
        os.truncate(os.path.join(os.environ["SIGNALBOX_RUN_DIR"], "log.txt"), 2**32)
        print("begun", flush=True)
        while not os.path.exists(sys.argv[1]):
            time.sleep(0.02)
        """,
        gate,
    )
    service = serve()
    wait_until(lambda: "begun" in service.log_tail(job_id))
    wait_until(lambda: service.job(job_id).progress_problem)
    job = service.job(job_id)
    assert job.current_step == 3, "The last good reading stays."
    assert job.progress_problem is not None
    assert "191 MiB" in job.progress_problem
    gate.touch()
    wait_until_ended(service, job_id)
    assert service.job(job_id).status is JobStatus.COMPLETED
