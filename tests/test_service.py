"""The service end to end: real scripts, real processes, a real database."""

import json
import os
import signal
import stat
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from pathlib import Path

import psutil
import pytest

from backend.models import FailureKind, JobStatus
from backend.paths import DataPaths
from backend.processes import Mark, find_marked
from backend.service import QueueFullError, Service, StartError, UnknownJobError
from backend.settings import Settings
from backend.submission import InvalidSubmissionError, Submission
from backend.views import JobFilter, JobView
from tests.waiting import wait_until, wait_until_ended

Script = Callable[..., Submission]

SLEEPS = "import time; print('started', flush=True); time.sleep(600)"


def ended(service: Service, submission: Submission) -> JobView:
    """Submit, wait for the verdict, and return the job."""
    job_id = service.submit(submission)
    wait_until_ended(service, job_id)
    return service.job(job_id)


def started(service: Service, submission: Submission) -> int:
    """Submit, and wait until the script has printed `started`."""
    job_id = service.submit(submission)
    wait_until(lambda: "started" in service.log_tail(job_id), 30, "It did not start.")
    return job_id


def processes_of(service: Service, settings: Settings, job_id: int) -> list[int]:
    mark = Mark(job_id, DataPaths(settings.data).read_nonce() or "")
    return [row.id.pid for row in find_marked(mark)]


# How a job ends


def test_a_script_that_ends_well_is_completed(service: Service, script: Script) -> None:
    job = ended(service, script("import sys; print('hello', sys.argv[1:])", "a b", "c"))
    assert job.status is JobStatus.COMPLETED
    assert job.error is None
    assert service.log_tail(job.job_id) == "hello ['a b', 'c']"
    assert [e.message for e in service.timeline(job.job_id)] == [
        "Submitted",
        "Started",
        "Completed",
    ]


def test_the_last_line_of_the_traceback_is_the_error(service: Service, script: Script) -> None:
    job = ended(service, script("print('before')\nraise ValueError('upside down')"))
    assert job.status is JobStatus.FAILED
    assert job.failure_kind is FailureKind.CRASHED
    assert job.error == "ValueError: upside down"
    failure = service.failure(job.job_id)
    assert failure
    assert failure.log_tail.startswith("before\nTraceback")
    assert failure.explanation
    assert failure.advice


def test_an_exit_code_is_told(service: Service, script: Script) -> None:
    job = ended(service, script("import sys; sys.exit(3)"))
    assert (job.failure_kind, job.error) == (
        FailureKind.CRASHED,
        "The process exited with code 3.",
    )


def test_gpu_memory_that_ran_out_is_a_kind_of_its_own(service: Service, script: Script) -> None:
    job = ended(
        service,
        script(
            """
            class OutOfMemoryError(RuntimeError): pass
            OutOfMemoryError.__module__ = "torch"
            raise OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")
            """
        ),
    )
    assert job.failure_kind is FailureKind.GPU_OUT_OF_MEMORY


def test_host_memory_that_ran_out_is_a_kind_of_its_own(service: Service, script: Script) -> None:
    job = ended(service, script("raise MemoryError"))
    assert job.failure_kind is FailureKind.HOST_OUT_OF_MEMORY


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSEGV, signal.SIGTERM])
def test_a_signal_is_named_long_before_any_timeout(
    service: Service, script: Script, number: signal.Signals
) -> None:
    submission = script(f"import os; os.kill(os.getpid(), {int(number)})")
    job = ended(service, submission)
    assert (job.failure_kind, job.error) == (
        FailureKind.KILLED,
        f"The process was killed by {number.name}.",
    )


def test_killing_the_leader_itself_ends_the_job_and_its_training(
    service: Service, settings: Settings, script: Script
) -> None:
    job_id = started(service, script(SLEEPS))
    pid = service.job(job_id).pid
    assert pid
    os.kill(pid, signal.SIGKILL)
    wait_until_ended(service, job_id)
    assert service.job(job_id).error == "The process was killed by SIGKILL."
    assert processes_of(service, settings, job_id) == []


def test_an_interpreter_that_vanished_while_queued_could_not_start(
    idle_service: Service, settings: Settings, script: Script, tmp_path: Path
) -> None:
    python = tmp_path / "python"
    python.symlink_to(sys.executable)
    submission = script("print('never')")
    submission.params["python"] = str(python)
    job_id = idle_service.submit(submission)
    python.unlink()
    idle_service.close()
    service = Service(settings)
    service.start()
    wait_until_ended(service, job_id)
    job = service.job(job_id)
    service.close()
    idle_service.start(run_jobs=False)
    assert job.failure_kind is FailureKind.COULD_NOT_START
    assert job.error == f"The interpreter {str(python)!r} does not exist."


def test_a_script_that_vanished_while_queued_could_not_start(
    service: Service, script: Script
) -> None:
    busy = [started(service, script(SLEEPS)) for _ in range(2)]
    submission = script("print('never')")
    job_id = service.submit(submission)
    Path(submission.params["script"]).unlink()
    for other in busy:
        service.cancel(other)
    wait_until_ended(service, job_id)
    job = service.job(job_id)
    assert job.failure_kind is FailureKind.COULD_NOT_START
    assert job.error == f"The script {submission.params['script']!r} does not exist."


# The stall clock


def test_a_silent_job_is_ended_with_its_exact_message_its_stacks_and_its_log(
    service: Service, settings: Settings, script: Script
) -> None:
    job = ended(
        service,
        script(
            """
            import threading
            print("about to wait", flush=True)
            def wait_forever():
                threading.Event().wait()
            wait_forever()
            """,
            timeout_minutes=0.02,
        ),
    )
    message = "Training timed out - no progress updates for 1.2 seconds"
    assert (job.failure_kind, job.error) == (FailureKind.TIMEOUT, message)
    failure = service.failure(job.job_id)
    assert failure
    assert failure.message == message
    assert "wait_forever" in failure.stacks
    assert failure.where
    assert failure.where.startswith("wait_forever (script")
    assert failure.log_tail == "about to wait"
    assert failure.seconds_without_progress is not None
    assert failure.seconds_without_progress >= 1.2
    assert failure.last_step is None
    assert processes_of(service, settings, job.job_id) == []
    assert len(service.failures()) == 1


def test_a_job_that_reports_outlives_its_timeout(service: Service, script: Script) -> None:
    job = ended(
        service,
        script(
            """
            import signalbox, time
            run = signalbox.start()
            for step in range(30):
                run.log(step, train_loss=1.0)
                time.sleep(0.1)
            """,
            timeout_minutes=0.02,
        ),
    )
    assert job.status is JobStatus.COMPLETED


def test_an_extension_grants_another_full_timeout(service: Service, script: Script) -> None:
    job_id = started(service, script(SLEEPS, timeout_minutes=0.5))
    wait_until(lambda: (service.job(job_id).seconds_left or 30) < 29)
    assert service.extend(job_id)
    left = service.job(job_id).seconds_left
    assert left is not None
    assert left > 29
    silent = service.job(job_id).seconds_since_progress
    assert silent is not None
    assert silent > 1, "The silence is told as it is."
    service.cancel(job_id)
    wait_until_ended(service, job_id)
    assert not service.extend(job_id)


# Cancel


def test_cancel_ends_every_process_and_measures_the_memory(
    service: Service, settings: Settings, script: Script
) -> None:
    job_id = started(
        service,
        script(
            """
            import subprocess, sys, time
            ballast = bytearray(64 * 2**20)
            subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"],
                             start_new_session=True)
            print("started", flush=True)
            time.sleep(600)
            """
        ),
    )
    assert len(processes_of(service, settings, job_id)) >= 3
    assert service.cancel(job_id)
    wait_until_ended(service, job_id)
    assert service.job(job_id).status is JobStatus.CANCELLED
    assert processes_of(service, settings, job_id) == []
    (cleanup,) = service.cleanups(job_id)
    assert (cleanup.reason, cleanup.device, cleanup.source) == ("cancelled", "host", "host")
    assert cleanup.baseline_bytes == 0
    assert cleanup.before_bytes is not None
    assert cleanup.before_bytes > 64 * 2**20
    assert cleanup.peak_bytes is not None
    assert cleanup.peak_bytes >= cleanup.before_bytes
    assert cleanup.after_bytes == 0
    assert cleanup.released is True
    assert cleanup.settle_seconds is not None


def test_cancel_is_answered_at_once_with_cancelling(settings: Settings, script: Script) -> None:
    service = Service(settings.model_copy(update={"cancel_grace_seconds": 1}))
    service.start()
    job_id = started(
        service,
        script(
            """
            import signal, time
            signal.signal(signal.SIGTERM, lambda *_: print("asked", flush=True))
            print("started", flush=True)
            while True: time.sleep(0.05)
            """
        ),
    )
    assert service.cancel(job_id)
    assert service.job(job_id).requested == "cancelling"
    assert service.cancel(job_id), "A second click is no error."
    wait_until_ended(service, job_id)
    assert service.job(job_id).status is JobStatus.CANCELLED
    messages = [e.message for e in service.timeline(job_id)]
    assert messages.count("Cancel was asked for") == 1
    assert any("were killed" in message for message in messages)
    assert service.close() == 0


def test_a_queued_job_leaves_the_queue(service: Service, script: Script) -> None:
    busy = [started(service, script(SLEEPS)) for _ in range(2)]
    job_id = service.submit(script("print('never')"))
    assert service.job(job_id).queue_position == 1
    assert service.cancel(job_id)
    job = service.job(job_id)
    assert (job.status, job.started_at, job.queue_position) == (JobStatus.CANCELLED, None, None)
    for other in busy:
        service.cancel(other)


def test_a_finished_job_stays_as_it_is(service: Service, script: Script) -> None:
    job = ended(service, script("pass"))
    assert not service.cancel(job.job_id)
    assert service.job(job.job_id).status is JobStatus.COMPLETED


def test_cancels_that_race_with_the_end_leave_one_verdict(service: Service, script: Script) -> None:
    for _ in range(5):
        job_id = service.submit(script("pass"))
        while service.cancel(job_id):
            time.sleep(0.001)
        changes = [e for e in service.timeline(job_id) if e.to_status and e.to_status.ended]
        assert len(changes) == 1
        assert changes[0].to_status == service.job(job_id).status


# The queue


def test_jobs_run_in_the_order_of_their_submission_as_many_as_there_are_workers(
    service: Service, script: Script, tmp_path: Path
) -> None:
    gate = tmp_path / "gate"
    source = f"""
        import pathlib, time
        while not pathlib.Path({str(gate)!r}).exists(): time.sleep(0.02)
        """
    ids = [service.submit(script(source)) for _ in range(5)]
    counts = service.counts()
    assert (counts[JobStatus.RUNNING], counts[JobStatus.QUEUED]) == (2, 3)
    assert [service.job(i).queue_position for i in ids] == [None, None, 1, 2, 3]
    gate.touch()
    wait_until_ended(service, *ids)
    starts = [service.job(i).started_at for i in ids]
    assert starts == sorted(starts, key=lambda at: at.timestamp() if at else 0)


# What a job sees


def test_a_job_sees_its_variables_and_no_setting_of_the_server(
    service: Service, settings: Settings, script: Script, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SIGNALBOX_TOKEN", "secret of the server")
    job = ended(
        service,
        script(
            """
            import json, os
            print(json.dumps({k: v for k, v in os.environ.items()
                              if k.startswith("SIGNALBOX_") or k == "COLOUR"}))
            print(os.getcwd())
            """,
            env={"COLOUR": "a secret of the job"},
        ),
    )
    run = DataPaths(settings.data).run(job.job_id)
    first, folder = run.log.read_text(encoding="utf-8").splitlines()
    seen = json.loads(first)
    assert "a secret of the job" not in service.log_tail(job.job_id)
    assert seen["SIGNALBOX_JOB_ID"] == str(job.job_id)
    assert seen["SIGNALBOX_RUN_DIR"] == str(run.folder)
    assert seen["SIGNALBOX_PROGRESS"] == str(run.progress)
    assert seen["SIGNALBOX_CHECKPOINT_DIR"] == str(run.checkpoints)
    assert seen["COLOUR"] == "a secret of the job"
    assert "SIGNALBOX_TOKEN" not in seen
    assert "SIGNALBOX_RESUME_FROM" not in seen
    assert folder == str(Path(job.params["script"]).parent)
    spec = run.spec.read_text(encoding="utf-8")
    assert json.loads(spec)["env_names"] == ["COLOUR"]
    assert "a secret of the job" not in spec
    assert "a secret of the job" not in repr(job)
    assert service.submission_like(job.job_id).env == {"COLOUR": ""}


def test_its_curve_is_kept_with_and_without_the_helper(service: Service, script: Script) -> None:
    with_helper = ended(
        service,
        script(
            """
            import signalbox
            run = signalbox.start(total_steps=4)
            for step in range(1, 5):
                run.log(step, loss=1 / step, lr=0.1)
            """
        ),
    )
    assert [p.step for p in service.history(with_helper.job_id)] == [1, 2, 3, 4]
    assert with_helper.loss == 0.25
    assert with_helper.progress == 100
    job_id = service.submit(
        script(
            """
            import json, os, sys, time
            path = os.environ["SIGNALBOX_PROGRESS"]
            for step in (1, 2, 3):
                with open(path + ".tmp", "w") as file:
                    json.dump({"step": step, "loss": 1 / step, "max_steps": 3}, file)
                os.replace(path + ".tmp", path)
                while not os.path.exists(sys.argv[1] + str(step)): time.sleep(0.01)
            """,
            str(service.settings.data / "seen"),
        )
    )
    for step in (1, 2, 3):
        wait_until(lambda step=step: service.job(job_id).current_step == step)  # type: ignore[misc]
        (service.settings.data / f"seen{step}").touch()
    wait_until_ended(service, job_id)
    points = service.history(job_id)
    assert [(p.step, p.values["train_loss"]) for p in points] == [(1, 1), (2, 0.5), (3, 1 / 3)]


def test_a_broken_progress_file_is_told_and_the_last_good_reading_stays(
    service: Service, script: Script
) -> None:
    job_id = service.submit(
        script(
            """
            import os, pathlib, time
            progress = pathlib.Path(os.environ["SIGNALBOX_PROGRESS"])
            progress.write_text('{"step": 5, "loss": 0.5}')
            time.sleep(0.5)
            progress.write_text('[1, 2')
            time.sleep(600)
            """
        )
    )
    wait_until(lambda: service.job(job_id).progress_problem)
    job = service.job(job_id)
    assert job.progress_problem
    assert "not valid JSON" in job.progress_problem
    assert (job.current_step, job.loss) == (5, 0.5)


def test_hostile_figures_leave_a_job_that_can_be_shown(service: Service, script: Script) -> None:
    job = ended(
        service,
        script(
            """
            import os
            with open(os.environ["SIGNALBOX_PROGRESS"], "w") as file:
                file.write('{"step": 1, "total_steps": 9007199254740992, "epoch": -1e308,'
                           ' "steps_per_second": 5e-324, "progress_percent": -1e308,'
                           ' "elapsed_seconds": -5, "total_epochs": 1e308, "loss": 1e308}')
            """
        ),
    )
    assert job.progress == 0
    assert job.remaining_seconds is None
    json.dumps(asdict(job), allow_nan=False, default=str)


def test_no_time_left_is_told_where_it_would_have_no_end(service: Service, script: Script) -> None:
    job_id = service.submit(
        script(
            """
            import os, time
            with open(os.environ["SIGNALBOX_PROGRESS"], "w") as file:
                file.write('{"step": 1, "total_steps": 9e15, "steps_per_second": 5e-324}')
            time.sleep(600)
            """
        )
    )
    wait_until(lambda: service.job(job_id).current_step == 1)
    assert service.job(job_id).remaining_seconds is None


# Submitting


def test_every_wrong_field_is_named_and_nothing_is_queued(idle_service: Service) -> None:
    wrong = Submission(
        recipe="digits",
        params={"epochs": -1, "learning_rate": "fast", "bogus": 1},
        timeout_minutes=0,
        gpus=99,
        env={"a b": "c", "SIGNALBOX_JOB_ID": "1"},
        name="x" * 300,
    )
    problems = idle_service.validate(wrong)
    named = {"epochs", "learning_rate", "bogus", "timeout_minutes", "gpus", "env", "name"}
    assert {p.field for p in problems} == named
    with pytest.raises(InvalidSubmissionError) as caught:
        idle_service.submit(wrong)
    assert list(caught.value.problems) == problems
    assert idle_service.jobs().total == 0


def test_what_this_machine_cannot_do_is_refused_before_the_queue(
    idle_service: Service, tmp_path: Path
) -> None:
    if idle_service.gpu_count:
        pytest.skip("This machine has a GPU.")
    (problem,) = idle_service.validate(Submission(recipe="digits", params={"device": "cuda"}))
    assert (problem.field, problem.message) == (
        "device",
        "This machine has no GPU; choose auto or cpu.",
    )
    empty = tmp_path / "empty.txt"
    empty.touch()
    (problem,) = idle_service.validate(
        Submission(recipe="char_lm", params={"text_path": str(empty)})
    )
    assert problem.field == "text_path"
    assert "is empty" in problem.message


def test_an_unknown_recipe_is_named_with_those_that_exist(idle_service: Service) -> None:
    (problem,) = idle_service.validate(Submission(recipe="mnist"))
    assert problem.field == "recipe"
    assert "digits, char_lm, script" in problem.message


def test_a_job_is_named_after_its_script_unless_it_has_a_name(
    idle_service: Service, script: Script
) -> None:
    names = ("", "  my\nrun\x00 ")
    ids = [idle_service.submit(script("pass", name=name)) for name in names]
    first, second = (idle_service.job(i).name for i in ids)
    assert first.startswith("script")
    assert second == "my run"


@pytest.mark.parametrize(
    ("name", "kept"),
    [
        ("\x1b[31mred\x1b[0m\r\n2", "[31mred [0m 2"),
        ("abc\u202efdp.exe\u2066\u200f", "abcfdp.exe"),
        ("in\u200bvis\u2060ible\ufeff", "invisible"),
        ("a\u2028b\x85c\x07d", "a b c d"),
        ("שלום <b>🙂</b> \udc80", "שלום <b>🙂</b> ?"),
        ("\u200b\u202e", "digits"),
    ],
)
def test_a_name_is_kept_without_what_would_turn_or_hide_it(
    idle_service: Service, name: str, kept: str
) -> None:
    job_id = idle_service.submit(Submission(recipe="digits", name=name))
    assert idle_service.job(job_id).name == kept


def test_retry_makes_a_new_job_that_remembers_its_parent(service: Service, script: Script) -> None:
    first = ended(service, script("import os; print(os.environ['WORD'])", env={"WORD": "same"}))
    second = service.retry(first.job_id)
    wait_until_ended(service, second)
    job = service.job(second)
    assert (job.parent_id, job.params, job.name) == (first.job_id, first.params, first.name)
    assert service.log_tail(second) == "same"


def test_a_retry_of_a_script_that_is_gone_is_refused(idle_service: Service, script: Script) -> None:
    submission = script("pass")
    job_id = idle_service.submit(submission)
    Path(submission.params["script"]).unlink()
    with pytest.raises(InvalidSubmissionError, match="no file"):
        idle_service.retry(job_id)


@pytest.mark.parametrize("name", ["../../evil.txt", "/etc/passwd", "..", "", "a\0b", "x" * 500])
def test_an_upload_stays_in_its_folder(
    idle_service: Service, settings: Settings, name: str
) -> None:
    path = Path(idle_service.keep_upload(name, b"text"))
    assert path.parent == DataPaths(settings.data).uploads
    assert path.read_bytes() == b"text"
    assert idle_service.keep_upload(name, b"text") == str(path)


def test_an_upload_that_many_send_at_once_is_kept_once(
    idle_service: Service, settings: Settings
) -> None:
    content = os.urandom(2**20)
    with ThreadPoolExecutor(8) as threads:
        paths = set(threads.map(lambda _: idle_service.keep_upload("a.txt", content), range(40)))
    (path,) = map(Path, paths)
    assert path.read_bytes() == content
    assert list(DataPaths(settings.data).uploads.iterdir()) == [path]


def test_a_job_named_after_a_very_long_file_can_be_retried(
    idle_service: Service, tmp_path: Path
) -> None:
    path = tmp_path / ("x" * 250 + ".py")
    path.touch()
    job_id = idle_service.submit(Submission(recipe="script", params={"script": str(path)}))
    again = idle_service.retry(job_id)
    assert idle_service.job(again).name == idle_service.job(job_id).name


@pytest.mark.parametrize("job_id", [1, 0, -1, 10**30])
def test_an_unknown_job_is_said_to_be_unknown(idle_service: Service, job_id: int) -> None:
    for ask in (idle_service.job, idle_service.cancel, idle_service.retry, idle_service.extend):
        with pytest.raises(UnknownJobError):
            ask(job_id)


@pytest.mark.parametrize("job_id", [1, 0, -1, 10**30, -(10**30)])
def test_of_an_unknown_job_there_is_nothing_to_see(idle_service: Service, job_id: int) -> None:
    assert idle_service.failure(job_id) is None
    assert list(idle_service.timeline(job_id)) == []
    assert list(idle_service.cleanups(job_id)) == []
    assert list(idle_service.files(job_id)) == []
    for read in (idle_service.log_tail, idle_service.log_bytes, idle_service.stacks):
        with pytest.raises(UnknownJobError):
            read(job_id)


# Across servers


def test_a_job_goes_on_without_a_server_and_the_next_one_can_cancel_it(
    settings: Settings, script: Script
) -> None:
    first = Service(settings)
    first.start()
    job_id = started(first, script(SLEEPS))
    pid = first.job(job_id).pid
    assert first.close() == 1
    assert pid
    assert psutil.pid_exists(pid)
    second = Service(settings)
    second.start()
    assert second.job(job_id).pid == pid
    second.cancel(job_id)
    wait_until_ended(second, job_id)
    assert second.job(job_id).status is JobStatus.CANCELLED
    assert processes_of(second, settings, job_id) == []
    (cleanup,) = second.cleanups(job_id)
    assert cleanup.baseline_bytes == 0, "as the first server wrote it down"
    assert second.close() == 0


def test_a_cancel_that_a_closing_server_left_is_carried_through(
    settings: Settings, script: Script
) -> None:
    first = Service(settings)
    first.start()
    job_id = started(
        first,
        script(
            """
            import signal, time
            signal.signal(signal.SIGTERM, signal.SIG_IGN)
            print("started", flush=True)
            time.sleep(600)
            """
        ),
    )
    first.cancel(job_id)
    assert first.close() == 1
    second = Service(settings.model_copy(update={"cancel_grace_seconds": 0.5}))
    second.start()
    wait_until_ended(second, job_id)
    assert second.job(job_id).status is JobStatus.CANCELLED
    second.close()


def test_a_second_server_on_the_same_folder_is_refused(
    service: Service, settings: Settings
) -> None:
    with pytest.raises(StartError, match="Another Signalbox runs"):
        Service(settings).start()
    assert service.counts()


def test_a_data_folder_that_is_a_file_is_told_in_one_line(settings: Settings) -> None:
    settings.data.touch()
    with pytest.raises(StartError, match="cannot be used") as caught:
        Service(settings).start()
    assert "\n" not in str(caught.value)


# Looking


def test_links_in_a_run_folder_are_not_shown_as_files(
    service: Service, settings: Settings, script: Script
) -> None:
    job = ended(service, script("import os; os.symlink('/etc/passwd', 'link')\nprint('x')"))
    folder = DataPaths(settings.data).run(job.job_id).folder
    (folder / "link").symlink_to("/etc/passwd")
    names = [file.name for file in service.files(job.job_id)]
    assert "link" not in names
    assert {"spec.json", "log.txt", "exit.json"} <= set(names)
    assert stat.S_ISREG((folder / "exit.json").stat().st_mode)


def test_without_a_gpu_the_machine_says_so_and_shows_host_memory(service: Service) -> None:
    machine = service.machine()
    if machine.source != "host":
        pytest.skip("This machine has a GPU.")
    assert machine.note
    (host,) = machine.devices
    assert host.index is None
    assert host.total_bytes == psutil.virtual_memory().total


def test_emptying_the_cache_has_a_row_of_its_own_and_loads_no_torch(service: Service) -> None:
    before = "torch" in sys.modules
    cleanup = service.empty_cache()
    assert cleanup.reason == "button"
    assert service.cleanups()[0].id == cleanup.id
    if service.gpu_count == 0:
        assert ("torch" in sys.modules) == before


def test_the_list_is_filtered_and_sorted_by_the_database(
    idle_service: Service, script: Script
) -> None:
    for name in ("beta", "alpha", "gamma 100%"):
        idle_service.submit(script("pass", name=name))
    idle_service.cancel(2)

    def names(**wanted: object) -> list[str]:
        return [j.name for j in idle_service.jobs(JobFilter(**wanted)).jobs]  # type: ignore[arg-type]

    assert names() == ["gamma 100%", "alpha", "beta"]
    assert names(sort="name", descending=False) == ["alpha", "beta", "gamma 100%"]
    assert names(statuses=frozenset({JobStatus.CANCELLED})) == ["alpha"]
    assert names(text="100%") == ["gamma 100%"]
    assert names(text="%") == ["gamma 100%"]
    assert names(text="job 1") == ["beta"]
    assert names(limit=1, offset=1) == ["alpha"]
    assert idle_service.jobs(JobFilter(limit=1)).total == 3


# Figures


def test_a_history_that_is_only_in_progress_json_has_its_figures(
    service: Service, settings: Settings, script: Script
) -> None:
    job = ended(
        service,
        script(
            """
            import json, os
            history = [
                {"step": n, "loss": 9 - n, "timestamp": f"2026-11-23T18:00:{n:02}Z"}
                for n in range(8)
            ]
            document = {"step": 7, "loss": 2, "metrics_history": history}
            with open(os.environ["SIGNALBOX_PROGRESS"], "w") as file:
                json.dump(document, file)
            """
        ),
    )
    run = DataPaths(settings.data).run(job.job_id)
    assert not run.metrics.exists()
    assert not run.seen.exists()
    figures = service.analytics(job.job_id)
    assert figures.steps == 8
    assert (figures.best_train_loss, figures.best_train_step) == (2, 7)
    assert figures.mean_steps_per_second == 1
    (compared,) = service.compare([job.job_id]).jobs
    assert compared.analytics == figures
    run.metrics.write_text('{"step": 1, "loss": 5}\n')
    assert service.analytics(job.job_id).steps == 1, "the whole curve goes first"


def test_the_bound_of_the_queue_holds_however_many_submit_at_once(
    idle_service: Service, script: Script, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("backend.service.MAX_QUEUED", 5)
    submission = script("pass")

    def submit(_: int) -> bool:
        try:
            idle_service.submit(submission)
        except QueueFullError:
            return False
        return True

    with ThreadPoolExecutor(16) as pool:
        assert sum(pool.map(submit, range(32))) == 5
    assert idle_service.counts()[JobStatus.QUEUED] == 5


def test_ends_are_numbered_and_each_is_told_once_to_whoever_asks(
    service: Service, script: Callable[..., Submission]
) -> None:
    begin, none = service.endings(None)
    assert none == []
    first = service.submit(script("raise SystemExit(3)", name="first"))
    wait_until(lambda: service.endings(begin)[0] > begin, 60)
    last, (job,) = service.endings(begin)
    assert (job.job_id, job.name, job.status) == (first, "first", JobStatus.FAILED)
    assert service.endings(last) == (last, [])
    assert service.endings(0)[1] == [job], "a number of a server before this one"


def test_a_job_that_was_cancelled_while_it_waited_is_no_news(
    idle_service: Service, script: Callable[..., Submission]
) -> None:
    begin, _ = idle_service.endings(None)
    idle_service.cancel(idle_service.submit(script("pass")))
    assert idle_service.endings(begin) == (begin, [])
