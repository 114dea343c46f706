"""On the CPU a training comes to the same bits, whatever happens to it on its way."""

import json
import random
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import pytest

from backend.models import FailureKind, JobStatus
from backend.paths import DataPaths
from backend.processes import find_leader, script_of, send_kill
from backend.service import Service
from backend.settings import Settings
from backend.store import Store
from backend.submission import Submission
from tests.waiting import cancel_and_close, wait_until, wait_until_ended

PARAMS: Mapping[str, Any] = {
    "steps": 260, "context": 32, "layers": 1, "width": 32, "batch_size": 8, "save_every": 30,
    "eval_every": 50, "sample_bytes": 10, "dropout": 0.1,
}  # fmt: skip

Serve = Callable[[], Service]

pytestmark = pytest.mark.timeout(400)  # four trainings, one after the other, on a busy machine


@pytest.fixture
def serve(settings: Settings) -> Iterator[Serve]:
    services: list[Service] = []

    def serve() -> Service:
        services.append(Service(settings.model_copy(update={"workers": 3, "poll_seconds": 0.02})))
        services[-1].start()
        return services[-1]

    yield serve
    cancel_and_close(services[-1])


def submit(service: Service) -> int:
    return service.submit(
        Submission(recipe="char_lm", params=dict(PARAMS), env={"OMP_NUM_THREADS": "1"})
    )


def wait_for_step(service: Service, job_id: int, step: int) -> None:
    def has_come() -> bool:
        job = service.job(job_id, look=True)
        assert job.status is not JobStatus.FAILED, service.log_tail(job_id)
        return (job.current_step or 0) >= step

    wait_until(has_come, 60, f"Job {job_id} did not come to step {step}.")


def kill_its_training(service: Service, job_id: int) -> None:
    """The process that trains, as the kernel or a person might."""
    supervisor = service._pool.supervisor(job_id)
    assert supervisor is not None
    leader = find_leader(supervisor._mark)
    script = script_of(leader, leader.tree(afresh=True))
    assert script is not None
    assert send_kill(script.id)


def outcome(service: Service, settings: Settings, job_id: int) -> tuple[Any, Any]:
    """Every number that was logged, and the hash of the weights at the end."""
    job = service.job(job_id)
    assert job.status is JobStatus.COMPLETED, service.log_tail(job_id)
    points = [(p.step, p.epoch, p.values) for p in service.metrics(job_id, None, 10_000).points]
    folder = DataPaths(settings.data).run(job_id).checkpoints
    newest = max(folder.glob("step-*"))
    marker = json.loads((newest / "COMPLETE").read_text())
    assert newest.name == job.checkpoint
    return points, marker["files"]["model.pt"]["sha256"]


def test_a_training_that_was_paused_and_killed_comes_to_the_same_bits(
    serve: Serve, settings: Settings
) -> None:
    """The whole one also shows that the same seed gives the same run.

    What a recipe does with what it saved, digits too, is tested at every step in
    training/test_resume.py; this is about all that is between it and a click.
    """
    choose = random.Random()
    first = serve()
    whole, job_id = submit(first), submit(first)
    wait_for_step(first, job_id, choose.randrange(35, 110))
    assert first.pause(job_id)
    wait_until(lambda: first.job(job_id).status is JobStatus.PAUSED)
    paused_at = first.job(job_id).current_step or 0
    first.close()  # the whole one goes on without it

    second = serve()
    assert second.resume(job_id)
    wait_for_step(second, job_id, paused_at + choose.randrange(1, 50))
    kill_its_training(second, job_id)
    wait_until_ended(second, job_id)
    killed = second.job(job_id)
    assert killed.failure_kind is FailureKind.KILLED
    retried = second.retry(job_id, from_checkpoint=True)
    wait_until_ended(second, whole, retried)
    expected = outcome(second, settings, whole)
    assert outcome(second, settings, retried) == expected, (paused_at, killed.current_step)
    store = Store(DataPaths(settings.data).database)
    notes = {job: [event.message for event in store.timeline(job)] for job in (job_id, retried)}
    store.close()
    for told in notes.values():
        assert any(note.startswith("Goes on from step-") for note in told)
