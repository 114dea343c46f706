"""Pause, resume, retry and continue: real scripts, real processes, a real database."""

import json
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from backend import pool as pool_module
from backend import supervisor as supervisor_module
from backend.models import FailureKind, JobStatus, RequestKind, utc_now
from backend.paths import DataPaths
from backend.processes import Mark, find_marked
from backend.service import Service
from backend.settings import Settings
from backend.store import Store
from backend.submission import Submission
from tests.waiting import cancel_and_close, wait_until, wait_until_ended

Script = Callable[..., Submission]
Serve = Callable[..., Service]

TRAINS = """
    import json, os, signalbox, sys, time
    total, crash_at = int(sys.argv[1]), int(sys.argv[2])
    gate = sys.argv[3]
    with signalbox.start(total_steps=total) as run:
        x = 0
        if run.resume_from:
            x = json.loads((run.resume_from / "state.json").read_text())["x"]
        print("began after", run.resume_step, flush=True)
        for step in range(run.resume_step + 1, total + 1):
            x = (x * 31 + step) % 1000003
            run.log(step, train_loss=float(x))
            if step == crash_at and not run.resume_from:
                raise ValueError("out of luck")
            stopping = run.should_stop
            while step >= total // 2 and not stopping and not os.path.exists(gate):
                time.sleep(0.01)
                stopping = run.should_stop
            if stopping or step % 10 == 0:
                folder = run.checkpoint_dir / f"step-{step:08d}"
                folder.mkdir(exist_ok=True)
                (folder / "state.json").write_text(json.dumps({"x": x}))
                run.saved(folder)
            if stopping:
                break
"""
"""Counts to half of its steps, waits there for a file or to be asked to stop, and goes on."""

IGNORES = """
    import signal, time
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    print("began", flush=True)
    time.sleep(600)
"""


def losses(total: int) -> list[tuple[int, float]]:
    """What TRAINS logs if nobody disturbs it."""
    x, found = 0, []
    for step in range(1, total + 1):
        x = (x * 31 + step) % 1000003
        found.append((step, float(x)))
    return found


@pytest.fixture
def gate(tmp_path: Path) -> Path:
    return tmp_path / "gate"


@pytest.fixture
def trains(script: Script, gate: Path) -> Callable[..., Submission]:
    def trains(total: int = 40, crash_at: int = 0, **fields: object) -> Submission:
        return script(TRAINS, str(total), str(crash_at), str(gate), **fields)

    return trains


@pytest.fixture
def serve(settings: Settings) -> Iterator[Serve]:
    """Starts services on the same data folder, one after the other."""
    services: list[Service] = []

    def serve(**changed: object) -> Service:
        services.append(Service(settings.model_copy(update=changed)))
        services[-1].start()
        return services[-1]

    yield serve
    for service in services:
        if not service._pool._closing.is_set():
            assert cancel_and_close(service) == 0


@pytest.fixture
def quick_retries(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(supervisor_module, "RETRY_WAIT_SECONDS", 0.01)
    monkeypatch.setattr(pool_module, "HOUSEKEEPING_SECONDS", 0.1)


def began(service: Service, submission: Submission, step: int = 0) -> int:
    """Submit, and wait until it has come to a step."""
    job_id = service.submit(submission)
    wait_for_step(service, job_id, step)
    return job_id


def wait_for_step(service: Service, job_id: int, step: int) -> None:
    wait_until(
        lambda: (
            "began" in service.log_tail(job_id) and (service.job(job_id).current_step or 0) >= step
        ),
        30,
        lambda: f"It did not come to step {step}: {service.job(job_id)}",
    )


def wait_for(service: Service, job_id: int, status: JobStatus) -> None:
    wait_until(
        lambda: service.job(job_id).status is status,
        30,
        lambda: f"It is not {status}: {service.job(job_id)}\n{service.log_tail(job_id)}",
    )


def pause(service: Service, job_id: int) -> None:
    assert service.pause(job_id)
    wait_for(service, job_id, JobStatus.PAUSED)


def curve(service: Service, job_id: int) -> list[tuple[int, float | None]]:
    points = service.metrics(job_id, None, 10_000).points
    return [(point.step, point.values["train_loss"]) for point in points]


def messages(service: Service, job_id: int) -> list[str]:
    return [event.message for event in service.timeline(job_id)]


def processes_of(settings: Settings, job_id: int) -> list[int]:
    mark = Mark(job_id, DataPaths(settings.data).read_nonce() or "")
    return [row.id.pid for row in find_marked(mark)]


# Pause and resume


def test_a_paused_job_goes_on_as_if_it_had_never_stopped(
    service: Service, settings: Settings, trains: Script, gate: Path
) -> None:
    job_id = began(service, trains(), step=20)
    before = service.job(job_id)
    assert before.can_pause
    pause(service, job_id)
    paused = service.job(job_id)
    assert (paused.checkpoint, paused.current_step) == ("step-00000020", 20)
    assert (paused.finished_at, paused.pid, paused.requested) == (None, None, None)
    assert processes_of(settings, job_id) == []
    (cleanup,) = service.cleanups(job_id)
    assert (cleanup.reason, cleanup.after_bytes, cleanup.released) == ("paused", 0, True)
    assert not service.pause(job_id)
    assert service.queue().queued == []
    ran = service.job(job_id).elapsed_seconds
    assert ran == paused.elapsed_seconds, "a pause takes no time"

    gate.touch()
    assert service.resume(job_id)
    assert not service.resume(job_id)
    wait_until_ended(service, job_id)
    job = service.job(job_id)
    assert (job.status, job.notice) == (JobStatus.COMPLETED, None)
    assert curve(service, job_id) == losses(40)
    assert [point.step for point in service.history(job_id)] == list(range(1, 41))
    assert "began after 20" in service.log_tail(job_id)
    assert messages(service, job_id) == [
        "Submitted", "Started", "Pause was asked for", "Paused", "Resume was asked for", "Resumed",
        "Goes on from step-00000020", "Completed",
    ]  # fmt: skip
    assert job.started_at == before.started_at
    lives = service.cleanups(job_id)
    assert [row.reason for row in lives] == ["ended", "paused"]
    peaks = [row.peak_bytes or 0 for row in lives]
    assert service.analytics(job_id).peak_memory_bytes == max(peaks), "not of both together"


def test_a_job_may_be_paused_again_and_by_another_server(
    serve: Serve, trains: Script, gate: Path
) -> None:
    first = serve()
    job_id = began(first, trains(60), step=30)
    pause(first, job_id)
    assert first.close() == 0
    second = serve()
    assert second.job(job_id).status is JobStatus.PAUSED
    assert second.resume(job_id)
    wait_until(lambda: "began after 30" in second.log_tail(job_id))
    pause(second, job_id)
    assert second.job(job_id).checkpoint == "step-00000031"
    gate.touch()
    second.resume(job_id)
    wait_until_ended(second, job_id)
    assert curve(second, job_id) == losses(60)


def test_a_job_goes_on_pausing_when_its_server_is_closed(serve: Serve, trains: Script) -> None:
    slow = serve(poll_seconds=60)  # it asks, and looks no more
    job_id = slow.submit(trains())
    wait_until(lambda: "began" in slow.log_tail(job_id))
    assert slow.pause(job_id)
    wait_until(lambda: DataPaths(slow.settings.data).run(job_id).stop.exists())
    slow.close()
    service = serve()
    wait_for(service, job_id, JobStatus.PAUSED)
    assert service.job(job_id).checkpoint is not None


def test_a_resumed_job_waits_for_its_turn(serve: Serve, trains: Script) -> None:
    service = serve(workers=1)
    job_id = began(service, trains(), step=20)
    pause(service, job_id)
    other = began(service, trains(), step=20)
    assert service.resume(job_id)
    job = service.job(job_id)
    assert (job.status, job.queue_position) == (JobStatus.QUEUED, 1)
    service.cancel(other)
    wait_until(lambda: service.job(job_id).status is JobStatus.RUNNING)


def test_a_job_that_was_resumed_but_not_begun_is_begun_by_the_next_server(
    serve: Serve, settings: Settings, trains: Script, gate: Path
) -> None:
    """The server died between the claim and the launch."""
    first = serve()
    job_id = began(first, trains(), step=20)
    pause(first, job_id)
    first.close()
    store = Store(DataPaths(settings.data).database)
    store.change(job_id, JobStatus.PAUSED, JobStatus.QUEUED, "Resume was asked for")
    values: dict[str, Any] = {"resumed_at": utc_now()}
    store.change(job_id, JobStatus.QUEUED, JobStatus.RUNNING, "Resumed", **values)
    store.close()
    gate.touch()
    second = serve()
    wait_until_ended(second, job_id)
    assert second.job(job_id).status is JobStatus.COMPLETED
    assert curve(second, job_id) == losses(40)


STAGES = """
    import os, signalbox, sys, time
    stage, gate = sys.argv[1:]
    def at(name):
        if name == stage and "SIGNALBOX_RESUME_FROM" not in os.environ:
            print("began", flush=True)
            while not os.path.exists(gate):
                time.sleep(0.01)
    at("importing")
    with signalbox.start(total_steps=4) as run:
        for step in range(run.resume_step + 1, 5):
            run.log(step, train_loss=step)
            run.phase("evaluating")
            at("evaluating")
            run.log(step, eval_loss=step)
            run.phase("saving")
            folder = run.checkpoint_dir / f"step-{step}"
            folder.mkdir()
            with open(folder / "model.pt", "wb") as file:
                file.write(b"half")
                at("saving")
                file.write(b"whole")
            run.saved(folder)
            if run.should_stop:
                break
"""


@pytest.mark.parametrize("stage", ["importing", "evaluating", "saving"])
def test_a_job_may_be_asked_to_pause_at_any_stage(
    service: Service, script: Script, gate: Path, stage: str
) -> None:
    job_id = began(service, script(STAGES, stage, str(gate)))
    assert service.pause(job_id)
    wait_until(lambda: DataPaths(service.settings.data).run(job_id).stop.exists())
    job = service.job(job_id)
    assert (job.status, job.requested) == (JobStatus.RUNNING, RequestKind.PAUSING)
    gate.touch()
    wait_for(service, job_id, JobStatus.PAUSED)
    assert service.job(job_id).checkpoint == "step-1"
    service.resume(job_id)
    wait_until_ended(service, job_id)
    assert service.job(job_id).status is JobStatus.COMPLETED
    assert [step for step, _ in curve(service, job_id)] == [1, 2, 3, 4]


def test_a_script_that_cannot_pause_goes_on_unharmed(serve: Serve, script: Script) -> None:
    service = serve(pause_grace_seconds=0.2)
    job_id = began(service, script("import time\nprint('began', flush=True)\ntime.sleep(600)"))
    assert not service.job(job_id).can_pause
    assert service.pause(job_id)
    wait_until(lambda: service.job(job_id).notice is not None)
    job = service.job(job_id)
    assert (job.status, job.requested) == (JobStatus.RUNNING, None)
    assert job.notice == (
        "It was not paused: the script did not stop within 0.2 seconds of being asked, and has "
        "never said that it can. It goes on."
    )
    assert messages(service, job_id)[-1] == job.notice


def test_a_script_of_its_own_saves_when_it_gets_sigterm(service: Service, script: Script) -> None:
    """Without the helper: it says in progress.json how it is to be told, and catches the signal."""
    job_id = began(
        service,
        script(
            """
            import json, os, pathlib, signal, sys, time
            def save(*_):
                folder = pathlib.Path(os.environ["SIGNALBOX_CHECKPOINT_DIR"]) / "step-5"
                folder.mkdir()
                (folder / "COMPLETE").touch()
                sys.exit(0)
            signal.signal(signal.SIGTERM, save)
            beside = pathlib.Path(os.environ["SIGNALBOX_PROGRESS"] + ".tmp")
            beside.write_text(json.dumps({"step": 5, "loss": 1, "can_pause": "sigterm"}))
            beside.replace(os.environ["SIGNALBOX_PROGRESS"])
            resumed = "SIGNALBOX_RESUME_FROM" in os.environ
            print("began", os.environ.get("SIGNALBOX_RESUME_FROM"), flush=True)
            time.sleep(0 if resumed else 600)
            """
        ),
        step=5,
    )
    pause(service, job_id)
    service.resume(job_id)
    wait_until_ended(service, job_id)
    assert service.log_tail(job_id).endswith("checkpoints/step-5")
    assert service.job(job_id).status is JobStatus.COMPLETED


def test_a_job_without_a_checkpoint_begins_anew_and_says_so(
    service: Service, script: Script
) -> None:
    job_id = began(
        service,
        script(
            """
            import os, signalbox, time
            again = os.path.exists(os.environ["SIGNALBOX_RUN_DIR"] + "/metrics.jsonl.1")
            with signalbox.start(total_steps=3) as run:
                for step in range(1, 4):
                    run.log(step, train_loss=1)
                print("began", flush=True)
                while not run.should_stop and not again:
                    time.sleep(0.01)
            """
        ),
        step=3,
    )
    pause(service, job_id)
    assert service.job(job_id).checkpoint is None
    service.resume(job_id)
    wait_until_ended(service, job_id)
    job = service.job(job_id)
    assert job.status is JobStatus.COMPLETED
    assert job.notice == "There was no checkpoint to go on from, so it began anew."
    assert [step for step, _ in curve(service, job_id)] == [1, 2, 3]


def test_a_damaged_checkpoint_is_passed_over_for_the_one_before(
    service: Service, trains: Script, gate: Path
) -> None:
    job_id = began(service, trains(50), step=25)
    pause(service, job_id)
    newest = DataPaths(service.settings.data).run(job_id).checkpoints / "step-00000025"
    (newest / "state.json").write_text('{"x": 1}')
    gate.touch()
    service.resume(job_id)
    wait_until_ended(service, job_id)
    job = service.job(job_id)
    assert (job.status, curve(service, job_id)) == (JobStatus.COMPLETED, losses(50))
    assert "step-00000025 was not used: 'state.json' has 8 bytes" in (job.notice or "")
    assert "Goes on from step-00000020" in messages(service, job_id)


# Cancel


@pytest.mark.parametrize("resumed", [False, True])
def test_a_paused_job_can_be_cancelled(serve: Serve, trains: Script, resumed: bool) -> None:
    service = serve(workers=1)
    job_id = began(service, trains(), step=20)
    pause(service, job_id)
    ran = service.job(job_id).elapsed_seconds
    if resumed:
        began(service, trains(), step=20)
        service.resume(job_id)
    assert service.cancel(job_id)
    job = service.job(job_id)
    assert (job.status, job.queue_position) == (JobStatus.CANCELLED, None)
    assert not service.resume(job_id)
    assert job.elapsed_seconds is not None
    assert job.elapsed_seconds == pytest.approx(ran, abs=0.1), "it did not run since"
    assert messages(service, job_id)[-1] == "Cancelled while it waited"


def test_pauses_and_cancels_that_race_leave_one_verdict(serve: Serve, trains: Script) -> None:
    service = serve(workers=4)
    ids = [began(service, trains(), step=20) for _ in range(4)]
    for job_id in ids:
        service.pause(job_id)
    for delay, job_id in enumerate(ids):
        time.sleep(0.05 * delay)  # each at another moment of its pause
        service.cancel(job_id)
    wait_until_ended(service, *ids)
    assert {service.job(job_id).status for job_id in ids} == {JobStatus.CANCELLED}
    for job_id in ids:
        verdicts = [e.to_status for e in service.timeline(job_id) if e.to_status]
        assert verdicts.count(JobStatus.CANCELLED) == 1


def test_a_cancelled_job_saves_within_its_grace_and_can_be_continued(
    service: Service, trains: Script, gate: Path
) -> None:
    job_id = began(service, trains(50), step=25)
    service.cancel(job_id)
    wait_until_ended(service, job_id)
    job = service.job(job_id)
    assert (job.status, job.checkpoint) == (JobStatus.CANCELLED, "step-00000025")
    gate.touch()
    retry = service.retry(job_id, from_checkpoint=True)
    wait_until_ended(service, retry)
    found = service.job(retry)
    assert (found.status, found.parent_id, found.continues_id) == (
        JobStatus.COMPLETED,
        job_id,
        job_id,
    )
    assert curve(service, retry) == losses(50)
    assert curve(service, job_id) == losses(25)
    assert service.log_tail(retry).startswith("began after 25")


def test_the_second_cancel_kills_at_once(serve: Serve, settings: Settings, script: Script) -> None:
    service = serve(cancel_grace_seconds=500)
    job_id = began(service, script(IGNORES))
    service.cancel(job_id)
    wait_until(lambda: DataPaths(settings.data).run(job_id).stop.exists())
    assert service.job(job_id).requested is RequestKind.CANCELLING
    service.cancel(job_id)
    assert service.job(job_id).status is JobStatus.RUNNING, "asking again changes nothing"
    service.cancel(job_id, now=True)
    wait_until_ended(service, job_id, deadline_seconds=60)
    assert processes_of(settings, job_id) == []
    assert any("killed at once, as was asked" in m for m in messages(service, job_id))


# Retry


def test_a_retry_from_the_start_begins_at_the_start(
    service: Service, trains: Script, gate: Path
) -> None:
    gate.touch()
    job_id = began(service, trains(crash_at=25))
    wait_until_ended(service, job_id)
    retry = service.retry(job_id)
    wait_until_ended(service, retry)
    assert service.job(retry).continues_id is None
    assert service.log_tail(retry).startswith("began after 0")


def test_a_crash_is_retried_by_itself_from_its_last_checkpoint(
    quick_retries: None, serve: Serve, trains: Script, gate: Path
) -> None:
    service = serve()
    gate.touch()
    job_id = service.submit(trains(crash_at=25, max_retries=2))
    wait_until_ended(service, job_id)
    retry = job_id + 1
    waits = service.job(retry)
    assert (waits.parent_id, waits.continues_id, waits.retry_number) == (job_id, job_id, 1)
    wait_until_ended(service, retry)
    assert service.job(retry).status is JobStatus.COMPLETED
    assert curve(service, retry) == losses(40)
    assert "Goes on from step-00000020" in messages(service, retry)
    assert f"Automatic retry 1 of 2 of job {job_id}" in messages(service, retry)
    with pytest.raises(LookupError):
        service.job(retry + 1)


def test_a_job_that_fails_each_time_is_retried_so_often_and_no_more(
    quick_retries: None, serve: Serve, script: Script
) -> None:
    service = serve()
    first = service.submit(script("raise ValueError('never')", max_retries=2))
    wait_until(lambda: service.counts()[JobStatus.FAILED] == 3)
    assert service.counts()[JobStatus.QUEUED] == 0
    assert [service.job(first + n).parent_id for n in (1, 2)] == [first, first + 1]
    notice = service.job(first + 2).notice
    assert notice == "There was no checkpoint to go on from, so it began anew."


def test_an_automatic_retry_waits_and_lets_others_go_first(
    serve: Serve, trains: Script, script: Script, gate: Path
) -> None:
    service = serve(workers=1)
    first = service.submit(script("raise ValueError", max_retries=1))
    wait_until_ended(service, first)
    retry = service.job(first + 1)
    assert retry.starts_after is not None
    assert retry.starts_after > utc_now()
    gate.touch()
    other = service.submit(trains())
    wait_until_ended(service, other)
    assert service.job(first + 1).status is JobStatus.QUEUED
    assert service.cancel(first + 1)


def test_a_retry_that_saved_nothing_is_continued_from_what_it_went_on_from(
    service: Service, trains: Script, gate: Path
) -> None:
    gate.touch()
    grandparent = began(service, trains(crash_at=25))
    wait_until_ended(service, grandparent)
    parent = service.retry(grandparent, from_checkpoint=True)
    wait_until_ended(service, parent)
    folder = DataPaths(service.settings.data).run(parent).checkpoints
    for entry in sorted(folder.iterdir()):  # as if it had died before its first
        (entry / "COMPLETE").unlink()
    child = service.retry(parent, from_checkpoint=True)
    wait_until_ended(service, child)
    assert "Goes on from step-00000020" in messages(service, child)
    assert curve(service, child) == losses(40)


# Where is it?


def test_a_running_job_tells_where_it_is_and_goes_on(service: Service, script: Script) -> None:
    job_id = began(
        service,
        script(
            """
            import queue, signalbox
            run = signalbox.start()
            def next_batch():
                return queue.Queue().get()
            run.log(812, train_loss=1)
            run.phase("evaluating")
            print("began", flush=True)
            next_batch()
            """
        ),
        step=812,
    )
    pid = service.job(job_id).pid
    said = service.where(job_id)
    assert said is not None
    assert "main thread is waiting in `queue.get`" in said
    assert "in next_batch" in said
    assert "The last progress was step 812" in said
    assert "in phase `evaluating`" in said
    assert "next_batch" in service.stacks(job_id)
    assert service.job(job_id).pid == pid
    os.kill(pid or 0, 0)


def test_of_a_job_that_does_not_run_there_is_no_where(service: Service, script: Script) -> None:
    job_id = service.submit(script("print('began')"))
    wait_until_ended(service, job_id)
    assert service.where(job_id) is None


def test_a_timeout_keeps_the_sentence_that_says_why(service: Service, script: Script) -> None:
    job_id = service.submit(
        script(
            """
            import threading, time
            def wait_for_ever(lock):
                lock.acquire()
            lock = threading.Lock()
            lock.acquire()
            wait_for_ever(lock)
            """,
            timeout_minutes=0.02,
        )
    )
    wait_until_ended(service, job_id)
    failure = service.failure(job_id)
    assert failure is not None
    assert failure.kind is FailureKind.TIMEOUT
    assert failure.detail.sentence is not None
    assert "wait_for_ever" in failure.detail.sentence
    assert failure.detail.sentence in failure.explanation
    assert failure.detail.frames[0].function == "wait_for_ever"
    assert failure.detail.frames[0].source == "lock.acquire()"
    json.dumps(failure.detail.as_json())
