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

RECIPES: Mapping[str, Mapping[str, Any]] = {
    "digits": {"epochs": 8, "batch_size": 64, "save_every": 30},
    "char_lm": {
        "steps": 180, "context": 32, "layers": 1, "width": 32, "batch_size": 8, "save_every": 30,
        "eval_every": 50, "sample_bytes": 10, "dropout": 0.1,
    },
}  # fmt: skip

Serve = Callable[[], Service]


@pytest.fixture
def serve(settings: Settings) -> Iterator[Serve]:
    services: list[Service] = []

    def serve() -> Service:
        services.append(Service(settings.model_copy(update={"workers": 3, "poll_seconds": 0.02})))
        services[-1].start()
        return services[-1]

    yield serve
    cancel_and_close(services[-1])


def submit(service: Service, recipe: str) -> int:
    return service.submit(
        Submission(recipe=recipe, params=dict(RECIPES[recipe]), env={"OMP_NUM_THREADS": "1"})
    )


def wait_for_step(service: Service, job_id: int, step: int) -> None:
    def has_come() -> bool:
        job = service.job(job_id, look=True)
        assert job.status is not JobStatus.FAILED, service.log_tail(job_id)
        return (job.current_step or 0) >= step

    wait_until(has_come, 60, f"Job {job_id} did not come to step {step}.")


def kill_its_training(service: Service, settings: Settings, job_id: int) -> None:
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


@pytest.mark.parametrize("recipe", RECIPES)
def test_a_training_that_was_paused_or_killed_comes_to_the_same_bits(
    serve: Serve, settings: Settings, recipe: str
) -> None:
    """The whole one also shows that the same seed gives the same run."""
    choose = random.Random()
    first = serve()
    whole, paused, killed = (submit(first, recipe) for _ in range(3))
    pause_at, kill_at = choose.randrange(35, 110), choose.randrange(35, 110)
    wait_for_step(first, paused, pause_at)
    assert first.pause(paused)
    wait_for_step(first, killed, kill_at)
    kill_its_training(first, settings, killed)
    wait_until_ended(first, killed)
    assert first.job(killed).failure_kind is FailureKind.KILLED
    wait_until(lambda: first.job(paused).status is JobStatus.PAUSED)
    first.close()  # the whole one goes on without it

    second = serve()
    assert second.resume(paused)
    retried = second.retry(killed, from_checkpoint=True)
    wait_until_ended(second, whole, paused, retried)
    expected = outcome(second, settings, whole)
    assert outcome(second, settings, paused) == expected, f"paused at {pause_at}"
    assert outcome(second, settings, retried) == expected, f"killed at {kill_at}"
    store = Store(DataPaths(settings.data).database)
    notes = [event.message for event in store.timeline(retried)]
    store.close()
    assert any(note.startswith("Goes on from step-") for note in notes)
