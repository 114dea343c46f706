"""Deleted jobs: out of every list at once, taken back or gone, and nothing else with them."""

import os
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from backend import deletion
from backend.deletion import UNDO_SECONDS, Wastebasket, measure
from backend.labels import LabelError
from backend.models import Cleanup, Failure, FailureKind, Job, JobStatus, utc_now
from backend.paths import DataPaths, remove_run
from backend.service import Service, UnknownJobError
from backend.settings import Settings
from backend.store import Store
from backend.views import JobFilter
from tests.waiting import wait_until

LATER = timedelta(seconds=UNDO_SECONDS + 1)


@pytest.fixture
def paths(settings: Settings) -> DataPaths:
    return DataPaths(settings.data)


def _job(service: Service, status: JobStatus = JobStatus.COMPLETED, **fields: Any) -> int:
    values = {"name": "a job", "recipe": "digits", "timeout_seconds": 600, "gpus": 0, **fields}
    return service._store.add(Job(status=status, **values))


def _file(paths: DataPaths, job_id: int, name: str = "model.pt", size: int = 8192) -> Path:
    path = paths.run(job_id).folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(b"x" * size)
    return path


def _tick(service: Service, now: datetime | None = None) -> None:
    service._basket.tick(now or utc_now())


def test_a_deleted_job_is_out_of_every_list_and_can_be_taken_back(
    idle_service: Service, paths: DataPaths
) -> None:
    service = idle_service
    kept = _job(service, name="kept")
    failed = _job(service, JobStatus.RUNNING)
    service._store.change(
        failed,
        JobStatus.RUNNING,
        JobStatus.FAILED,
        "broke",
        failure=Failure(job_id=failed, kind=FailureKind.CRASHED, message="broke"),
        cleanups=[Cleanup(job_id=failed, reason="crashed", device="host", source="host")],
        failure_kind=FailureKind.CRASHED,
    )
    _file(paths, failed)
    before = service.summary(), service.counts(), service.jobs(), service.cleanups()
    done = service.delete([failed])
    assert (done.job_ids, done.left_out) == ([failed], {})
    assert done.bytes >= 8192
    assert [job.job_id for job in service.jobs().jobs] == [kept]
    assert service.jobs(JobFilter(text=f"#{failed}")).total == 0
    assert service.counts()[JobStatus.FAILED] == service.summary().jobs - 1 == 0
    assert not service.failures()
    assert not service.failure_counts()
    assert not service.cleanups()
    assert not service.these([failed])
    for ask in (service.job, service.history, service.log_tail, service.retry, service.cancel):
        with pytest.raises(UnknownJobError):
            ask(failed)
    (known,) = service.deletions()
    assert (known.job_ids, known.bytes) == ([failed], done.bytes)
    _tick(service)
    assert service.undelete([failed, kept, 999]) == [failed]
    assert (service.summary(), service.counts(), service.jobs(), service.cleanups()) == before
    assert not service.deletions()


def test_only_what_has_ended_and_nobody_needs_is_deleted(idle_service: Service) -> None:
    service = idle_service
    first, second = _job(service), _job(service)
    live = [_job(service, status) for status in (JobStatus.QUEUED, JobStatus.PAUSED)]
    middle = _job(service, continues_id=first)
    child = _job(service, JobStatus.QUEUED, continues_id=middle)
    done = service.delete([first, second, *live, middle])
    assert done.job_ids == [second]
    reason = f"job {child} goes on from its checkpoint"
    assert done.left_out == {
        first: reason,
        middle: reason,
        **dict.fromkeys(live, "it has not ended"),
    }
    with pytest.raises(UnknownJobError):
        service.delete([first, 2**70])


def test_after_the_time_row_and_folder_are_gone_and_the_number_comes_never_again(
    idle_service: Service, paths: DataPaths, settings: Settings
) -> None:
    service = idle_service
    parent = _job(service)
    child = _job(service, parent_id=parent)
    last = _job(service, JobStatus.CANCELLED)
    kept = _file(paths, child)
    _file(paths, parent)
    _file(paths, last)
    service.delete([parent, last])
    _tick(service, utc_now() + LATER)
    assert not paths.run(parent).folder.exists()
    assert not paths.run(last).folder.exists()
    assert kept.exists()
    assert service.undelete([parent, last]) == []
    assert service.job(child).parent_id is None
    said = [event.message for event in service.timeline(child)]
    assert f"Job {parent}, of which this is a retry, was deleted" in said
    assert _job(service) == last + 1
    service.close()
    again = Store(paths.database)
    assert again.add(Job(name="n", recipe="digits", timeout_seconds=1, gpus=0)) == last + 2
    again.close()


def test_a_restart_forgets_no_deletion(idle_service: Service, paths: DataPaths) -> None:
    gone, back = _job(idle_service), _job(idle_service)
    _file(paths, gone)
    idle_service.delete([gone])
    idle_service.delete([back])
    basket = Wastebasket(idle_service._store, paths)
    assert [known.job_ids for known in basket.deletions()] == [[back], [gone]]
    assert basket.deletions()[1].bytes >= 8192
    assert basket.undelete([back]) == [back]
    basket.delete_for_good([gone, back])
    assert basket.undelete([gone]) == []
    Wastebasket(idle_service._store, paths).tick(utc_now())
    assert not paths.run(gone).folder.exists()
    assert idle_service.job(back)


def test_a_folder_that_cannot_be_removed_keeps_its_row(
    idle_service: Service, paths: DataPaths, monkeypatch: pytest.MonkeyPatch
) -> None:
    job_id = _job(idle_service)
    _file(paths, job_id)
    idle_service.delete([job_id])
    idle_service.delete_for_good([job_id])

    def refuse(runs: Path, job_id: int) -> None:
        raise PermissionError(13, "Permission denied")

    with monkeypatch.context() as patch:
        patch.setattr(deletion, "remove_run", refuse)
        _tick(idle_service)
    assert idle_service._store.get(job_id) is not None
    _tick(idle_service)
    assert idle_service._store.get(job_id) is None
    assert not paths.run(job_id).folder.exists()


def test_a_job_of_which_something_lives_stays(idle_service: Service, paths: DataPaths) -> None:
    job_id = _job(idle_service)
    alive = {job_id}
    basket = Wastebasket(idle_service._store, paths, alive.__contains__)
    assert basket.delete([job_id]).left_out == {
        job_id: "its processes or its memory are not gone yet"
    }
    alive.clear()
    assert basket.delete([job_id]).job_ids == [job_id]
    alive.add(job_id)
    basket.tick(utc_now() + LATER)
    assert idle_service._store.get(job_id) is not None


def test_the_thread_removes_what_is_to_go_at_once(service: Service, paths: DataPaths) -> None:
    job_id = _job(service)
    _file(paths, job_id)
    service.delete([job_id])
    service.delete_for_good([job_id])
    wait_until(lambda: not paths.run(job_id).folder.exists(), 60)
    wait_until(lambda: service._store.get(job_id) is None, 60)


# Files


def test_links_are_removed_and_never_followed(tmp_path: Path) -> None:
    runs, outside = tmp_path / "runs", tmp_path / "outside"
    (outside / "folder").mkdir(parents=True)
    (outside / "folder" / "precious").write_text("keep")
    (runs / "1" / "a").mkdir(parents=True)
    for place in (runs / "1" / "link", runs / "1" / "a" / "link", runs / "2"):
        place.symlink_to(outside / "folder")
    (runs / "1" / "file").symlink_to(outside / "folder" / "precious")
    (runs / "3").write_text("no folder")
    for job_id in (1, 2, 3, 4):
        remove_run(runs, job_id)
    assert list(runs.iterdir()) == []
    assert (outside / "folder" / "precious").read_text() == "keep"
    assert measure([runs / "2"]).bytes == 0


def test_folders_of_any_depth_and_without_permissions_go(tmp_path: Path) -> None:
    folder = tmp_path / "runs" / "1"
    folder.mkdir(parents=True)
    descriptor = os.open(folder, os.O_RDONLY)
    for _ in range(1500):  # a longer way than any path may be
        os.mkdir("deeper", dir_fd=descriptor)
        below = os.open("deeper", os.O_RDONLY, dir_fd=descriptor)
        os.close(descriptor)
        descriptor = below
    os.close(os.open("file", os.O_CREAT | os.O_WRONLY, dir_fd=descriptor))
    os.close(descriptor)
    locked = folder / "locked"
    (locked / "in it").mkdir(parents=True)
    locked.chmod(0o500)
    remove_run(folder.parent, 1)
    assert list(folder.parent.iterdir()) == []


def test_what_files_take_is_measured_as_the_disk_has_it(tmp_path: Path) -> None:
    one, two = tmp_path / "1", tmp_path / "2"
    (one / "checkpoints").mkdir(parents=True)
    two.mkdir()
    (one / "model.pt").write_bytes(b"x" * 2**20)
    alone = measure([one])
    assert alone.whole
    assert 2**20 <= alone.bytes < 2**21
    os.link(one / "model.pt", one / "checkpoints" / "best.pt")
    assert measure([one]) == alone, "A second name takes nothing."
    os.link(one / "model.pt", two / "model.pt")
    assert measure([one]).bytes < 2**20, "Nothing is free while the other name is there."
    assert measure([one, two]) == alone
    assert not measure([one], seconds=-1).whole
    assert measure([tmp_path / "absent"]).bytes == 0


# What is written beside a job


def test_a_job_is_renamed_tagged_noted_and_starred(idle_service: Service) -> None:
    job_id = _job(idle_service)
    idle_service.label(job_id, name=" two\nlines\u202e ")
    idle_service.label(job_id, tags=["Paper", "paper", " ", "to keep"])
    idle_service.label(job_id, note="one\ntwo\udc80")
    idle_service.label(job_id, starred=True)
    job = idle_service.job(job_id)
    assert (job.name, job.tags, job.note, job.starred) == (
        "two lines", ["Paper", "to keep"], "one\ntwo?", True,
    )  # fmt: skip
    assert idle_service.jobs(JobFilter(text="tag:paper note:two is:starred")).total == 1
    idle_service.label(job_id, note="", starred=False)
    job = idle_service.job(job_id)
    assert (job.note, job.starred, job.tags) == ("", False, ["Paper", "to keep"])


@pytest.mark.parametrize(
    ("field", "value", "said"),
    [
        ("name", " \u200b", "Must hold something that shows."),
        ("name", "x" * 201, "Must be at most 200 characters long."),
        ("tags", ["x" * 51], "A tag must be at most 50 characters long."),
        ("tags", [f"tag {n}" for n in range(51)], "A job can have at most 50 tags."),
        ("note", "x" * 10_001, "Must be at most 10,000 characters long."),
    ],
)
def test_what_cannot_be_written_is_said_and_changes_nothing(
    field: str, value: object, said: str, idle_service: Service
) -> None:
    job_id = _job(idle_service)
    with pytest.raises(LabelError) as caught:
        idle_service.label(job_id, starred=True, **{field: value})
    assert (caught.value.field, str(caught.value)) == (field, said)
    assert not idle_service.job(job_id).starred
    with pytest.raises(UnknownJobError):
        idle_service.label(99, starred=True)
