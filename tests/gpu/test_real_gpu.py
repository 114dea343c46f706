"""On a real GPU: what a job took comes back, and the server takes nothing.

python -m pytest -m gpu
"""

import os
from collections.abc import Callable

import pytest

from backend.gpu import TOLERANCE_BYTES, MemorySource
from backend.models import FailureKind, JobStatus
from backend.service import Service
from backend.submission import Submission
from tests.waiting import wait_until, wait_until_ended

pytestmark = [pytest.mark.gpu, pytest.mark.timeout(300)]

GIB = 2**30

HOLDS_2_GIB = """
import time, torch
held = torch.empty(2 * 2**30, dtype=torch.uint8, device="cuda")
torch.cuda.synchronize()
print("holding", flush=True)
time.sleep(600)
"""


def holding(service: Service, script: Callable[..., Submission]) -> int:
    """A job that holds 2 GiB of the device now, as the server has read."""
    job_id = service.submit(script(HOLDS_2_GIB, gpus=1))
    wait_until(lambda: "holding" in service.log_tail(job_id), 120, "It did not come to hold.")
    wait_until(lambda: (service.job(job_id).memory_bytes or 0) > 2 * GIB, 30)
    return job_id


def test_a_cancelled_job_gives_its_memory_back(
    nvml: MemorySource, service: Service, script: Callable[..., Submission]
) -> None:
    job_id = holding(service, script)
    (device,) = service.job(job_id).devices
    assert service.machine().devices[0].leased_by == job_id
    service.cancel(job_id)
    wait_until_ended(service, job_id)
    assert service.job(job_id).status is JobStatus.CANCELLED
    (cleanup,) = service.cleanups(job_id)
    assert (cleanup.device, cleanup.source) == (f"cuda:{device}", "nvml")
    assert cleanup.baseline_bytes is not None
    assert cleanup.before_bytes is not None
    assert cleanup.after_bytes is not None
    assert cleanup.before_bytes >= cleanup.baseline_bytes + 2 * GIB
    assert cleanup.after_bytes <= cleanup.baseline_bytes + TOLERANCE_BYTES
    assert cleanup.released is True
    now = nvml.used_bytes(device)
    assert now is not None
    assert now <= cleanup.baseline_bytes + TOLERANCE_BYTES
    wait_until(lambda: service.machine().devices[0].leased_by is None, 10)
    readings = (cleanup.baseline_bytes, cleanup.before_bytes, cleanup.after_bytes)
    print("\nbaseline, before, after in GiB:", *(f"{reading / GIB:.3f}" for reading in readings))
    print(f"settled in {cleanup.settle_seconds} s")


def test_the_server_itself_holds_no_memory_of_the_device(
    nvml: MemorySource, service: Service, script: Callable[..., Submission]
) -> None:
    job_id = holding(service, script)
    holders = {holder.pid for holder in nvml.holders(service.job(job_id).devices[0])}
    service.empty_cache()
    assert os.getpid() not in holders
    assert os.getpid() not in {h.pid for h in nvml.holders(service.job(job_id).devices[0])}


def test_memory_that_runs_out_is_a_failure_of_its_own_kind(
    nvml: MemorySource, service: Service, script: Callable[..., Submission]
) -> None:
    source = "import torch; torch.empty(2**43, dtype=torch.uint8, device='cuda')"
    job_id = service.submit(script(source, gpus=1))
    wait_until_ended(service, job_id, deadline_seconds=120)
    assert service.job(job_id).failure_kind is FailureKind.GPU_OUT_OF_MEMORY
    assert service.cleanups(job_id)[0].released is True


def test_a_job_without_a_gpu_sees_none(
    nvml: MemorySource, service: Service, script: Callable[..., Submission]
) -> None:
    source = "import torch; print(torch.cuda.is_available())"
    job_id = service.submit(script(source, gpus=0))
    wait_until_ended(service, job_id, deadline_seconds=120)
    assert service.log_tail(job_id) == "False"


@pytest.mark.parametrize("recipe", ["digits", "char_lm"])
def test_the_recipes_train_on_it(nvml: MemorySource, service: Service, recipe: str) -> None:
    short = {"digits": {"epochs": 2}, "char_lm": {"steps": 50, "eval_every": 25}}
    params = {**short[recipe], "device": "cuda"}
    job_id = service.submit(Submission(recipe=recipe, params=params))
    wait_until_ended(service, job_id, deadline_seconds=200)
    job = service.job(job_id)
    assert job.status is JobStatus.COMPLETED, service.log_tail(job_id)
    losses = [p.values["train_loss"] for p in service.history(job_id) if p.values["train_loss"]]
    assert losses[-1] < losses[0]


WORKS = """
import torch
left = torch.randn(4096, 4096, device="cuda")
while True:
    for _ in range(50):
        left = (left @ left).clamp(-1, 1)
    torch.cuda.synchronize()
"""


def test_the_load_and_the_memory_of_a_jobs_gpu_are_read(
    nvml: MemorySource, service: Service, script: Callable[..., Submission]
) -> None:
    job_id = service.submit(script(WORKS, gpus=1))
    wait_until(lambda: any((p.gpu_percent or 0) > 50 for p in service.usage(job_id)), 120)
    (device,) = service.job(job_id).devices
    point = service.usage(job_id)[-1]
    assert point.gpu_memory_bytes is not None
    assert point.gpu_memory_bytes > 3 * 2**26, "Three matrices of 64 MiB."
    (now,) = [d for d in service.load().devices if d.index == device]
    assert now.percent is not None
    assert 0 <= now.percent <= 100
    assert now.used_bytes is not None
    assert 0 < now.used_bytes <= now.total_bytes
