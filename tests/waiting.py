"""The one way in which tests wait."""

import time
from collections.abc import Callable

from backend.models import JobStatus
from backend.processes import read_table
from backend.service import Service
from backend.views import JobFilter


def wait_until(
    condition: Callable[[], object],
    deadline_seconds: float = 30,
    message: str | Callable[[], str] = "What was waited for did not happen.",
) -> None:
    """Poll until the condition holds; raises AssertionError(message) after the deadline.

    What is slow to come is looked for less often: a look through all processes, or at a page in a
    browser, takes the time of those that are waited for.

    A message that is costly, or known only at the end, may be a function.
    """
    begin = time.monotonic()
    while not condition():
        waited = time.monotonic() - begin
        if waited >= deadline_seconds:
            raise AssertionError(message if isinstance(message, str) else message())
        time.sleep(min(0.01 + waited / 20, 0.1))


def wait_until_ended(service: Service, *job_ids: int, deadline_seconds: float = 60) -> None:
    """Wait until all of the jobs have ended."""

    def running() -> list[int]:
        return [job_id for job_id in job_ids if not service.job(job_id).status.ended]

    wait_until(
        lambda: not running(),
        deadline_seconds,
        lambda: f"These jobs did not end in {deadline_seconds:g} s: {running()}",
    )


def cancel_and_close(service: Service) -> int:
    """End what still runs, and close; returns how many jobs go on in spite of that."""
    for job_id in live_jobs(service):
        service.cancel(job_id)
    wait_until_ended(service, *live_jobs(service))
    return service.close()


def lives(pid: int) -> bool:
    """Whether it is a process that still runs: one that has ended may yet wait for its parent."""
    row = read_table().get(pid)
    return row is not None and row.alive


def live_jobs(service: Service) -> list[int]:
    """The jobs that have not ended."""
    live = frozenset(status for status in JobStatus if not status.ended)
    return [job.job_id for job in service.jobs(JobFilter(statuses=live)).jobs]
