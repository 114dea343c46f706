"""What a job is started with: its folder, its environment, and the place that it goes on from."""

import os
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from backend.checkpoints import GiveUp, Good, carry_curve, choose, config_of, set_aside_curve
from backend.models import Job
from backend.paths import RunPaths
from backend.processes import CouldNotStartError, LaunchSpec, Mark
from backend.recipes import Command
from backend.settings import PROJECT_FOLDER
from backend.spec import RunSpec
from backend.store import Store

MAX_ANCESTORS: Final = 100

_TRAINING: Final = Path(__file__).parent / "training"


@dataclass(frozen=True)
class Begin:
    """Where a job begins, or goes on."""

    checkpoint: Good | None = None
    notes: Sequence[str] = ()
    """What its reader should know of it, a sentence each."""


def prepare(
    job: Job,
    paths: RunPaths,
    devices: Sequence[int],
    mark: Mark,
    store: Store,
    give_up: GiveUp = lambda: False,
) -> tuple[LaunchSpec, Begin]:
    """Make the run folder, with the curve up to the place where the job begins, and spec.json.

    Args:
        give_up: asked while checkpoints are looked through, which may take minutes.

    Raises:
        OSError: the run folder cannot be written.
        CouldNotStartError: it is a link.
        GivenUpError: `give_up` said so.
    """
    paths.folder.mkdir(parents=True, exist_ok=True)
    if paths.folder.is_symlink():
        raise CouldNotStartError(f"The run folder {str(paths.folder)!r} is a link.")
    paths.checkpoints.mkdir(exist_ok=True)
    paths.stop.unlink(missing_ok=True)  # of a life before a pause
    begin = _begin(job, paths, store, give_up)
    return _spec(job, paths, devices, mark, begin.checkpoint), begin


def source_folders(job: Job) -> Sequence[Path]:
    """Where the lines of source are that may be quoted of a stuck job."""
    command = Command(**job.command)
    if command.folder is None:
        return [_TRAINING / "recipes"]
    return [Path(command.folder), *(Path(word).parent for word in command.argv[:1])]


def _begin(job: Job, paths: RunPaths, store: Store, give_up: GiveUp) -> Begin:
    """Find the checkpoint that a job goes on from, its own or of a job that it continues, and have
    its curve go on there. Raises OSError, GivenUpError."""
    if job.paused_at is None and job.continues_id is None:
        return Begin()
    config = config_of(job.recipe, job.params)
    passed_over: list[str] = []
    for source in _sources(job, paths, store):
        choice = choose(source, config, give_up)
        passed_over += choice.passed_over
        if choice.good is not None:
            carry_curve(source, paths, choice.good.step)
            return Begin(choice.good, passed_over)
    if job.paused_at is not None:
        set_aside_curve(paths)
    return Begin(None, [*passed_over, "There was no checkpoint to go on from, so it began anew."])


def _sources(job: Job, paths: RunPaths, store: Store) -> Iterator[RunPaths]:
    """The run folders to look for a checkpoint in, its own first."""
    yield paths
    seen = {job.id}
    ancestor = job.continues_id
    while ancestor is not None and ancestor not in seen and len(seen) < MAX_ANCESTORS:
        seen.add(ancestor)
        yield RunPaths(paths.folder.parent / str(ancestor))
        found = store.get(ancestor)
        ancestor = found.continues_id if found else None


def _spec(
    job: Job, paths: RunPaths, devices: Sequence[int], mark: Mark, checkpoint: Good | None
) -> LaunchSpec:
    """Write spec.json. Raises OSError."""
    assert job.id is not None
    command = Command(**job.command)
    python = Path(command.python or sys.executable)
    folder = Path(command.folder) if command.folder else PROJECT_FOLDER
    variables = {
        "SIGNALBOX_RUN_DIR": str(paths.folder),
        "SIGNALBOX_PROGRESS": str(paths.progress),
        "SIGNALBOX_CHECKPOINT_DIR": str(paths.checkpoints),
        "SIGNALBOX_CONFIG": config_of(job.recipe, job.params),
        "PYTHONUNBUFFERED": "1",
        "CUDA_DEVICE_ORDER": "PCI_BUS_ID",
        "CUDA_VISIBLE_DEVICES": ",".join(map(str, devices)),
    }
    if checkpoint is not None:
        variables["SIGNALBOX_RESUME_FROM"] = str(checkpoint.folder)
    inherited = {k: v for k, v in os.environ.items() if not k.startswith("SIGNALBOX_")}
    environment = {**inherited, **job.env, **variables}
    environment["PYTHONPATH"] = os.pathsep.join(
        filter(None, (environment.get("PYTHONPATH"), str(_TRAINING)))
    )
    RunSpec(
        job_id=job.id,
        name=job.name,
        recipe=job.recipe,
        params=job.params,
        command=[str(python), *command.argv],
        working_dir=str(folder),
        # Without the mark: who runs it again by hand is not to be taken for the job.
        variables=variables,
        env_names=sorted(job.env),
        devices=list(devices),
        timeout_seconds=job.timeout_seconds,
        created_at=job.created_at,
    ).publish(paths)
    return LaunchSpec(python, tuple(command.argv), folder, environment, paths.log, mark)
