"""What is drawn, and the benchmark's folder: a venv with the rivals, and every tool's files."""

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from backend.models import JobStatus, utc_now
from backend.paths import DataPaths
from backend.store import Store
from tests.bench.curve_points import BEGUN_AT, STEP_SECONDS, Training, metrics_lines, training
from tests.server import queue_job

INSTALLED: Final = ("tensorboard", "trackio")
HERE: Final = Path(__file__).parent
HISTORY: Final = 2000


@dataclass(frozen=True)
class Case:
    """What is drawn: so many runs of so many steps, overlaid."""

    steps: int
    runs: int = 1

    @property
    def name(self) -> str:
        if self.runs > 1:
            return f"{self.runs} runs of {self.steps:,}"
        return f"{self.steps:,} points"

    @property
    def slug(self) -> str:
        return f"{self.runs}x{self.steps}"


class Work:
    """The folder of the benchmark: a venv with the rivals, and every tool's files, made once."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        folder.mkdir(parents=True, exist_ok=True)

    @property
    def python(self) -> Path:
        """The rivals' interpreter."""
        return self.folder / "venv" / "bin" / "python"

    def install(self) -> dict[str, str]:
        """The rivals from PyPI, where they are not there yet; their versions."""
        if not self.python.exists():
            _run(sys.executable, "-m", "venv", self.folder / "venv")
        listed = subprocess.run(
            [self.python, "-m", "pip", "list", "--format", "json"], capture_output=True, check=True
        )
        found = {entry["name"]: entry["version"] for entry in json.loads(listed.stdout)}
        if not found.keys() >= set(INSTALLED):
            _run(self.python, "-m", "pip", "install", "--quiet", *INSTALLED)
            return self.install()
        return {name: found[name] for name in INSTALLED}

    def made(self, name: str, make: Callable[[Path], None]) -> Path:
        """A file or folder in here; made under another name first, so that half of it is none."""
        path = self.folder / name
        if not path.exists():
            path.parent.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryDirectory(dir=self.folder) as folder:
                begin = time.monotonic()
                make(Path(folder) / path.name)
                (Path(folder) / path.name).rename(path)
                print(f"# wrote {name} in {time.monotonic() - begin:.0f} s", flush=True)
        return path

    def metrics(self, steps: int, seed: int) -> Path:
        """A metrics.jsonl."""

        def make(path: Path) -> None:
            with path.open("w", encoding="utf-8") as file:
                file.writelines(metrics_lines(training(steps, seed)))

        return self.made(f"metrics/{steps}-{seed}.jsonl", make)

    def rival(self, tool: str, case: Case) -> Path:
        """The folder of a rival's files with all runs of a case."""

        def make(path: Path) -> None:
            path.mkdir()
            points = [path.with_name(f"run-{seed:02d}.npz") for seed in range(case.runs)]
            for seed, file in enumerate(points):
                training(case.steps, seed).save(file)
            where = path if tool == "tensorboard" else case.slug
            _run(
                *(self.python, HERE / f"rival_{tool}.py", str(BEGUN_AT), str(STEP_SECONDS)),
                *(str(where), *points),
                TRACKIO_DIR=str(path),
            )

        return self.made(f"{tool}/{case.slug}", make)


def _run(*command: str | Path, **environment: str) -> None:
    subprocess.run(command, check=True, env={**os.environ, **environment})


class Runs:
    """The finished jobs of every case in a data folder of Signalbox."""

    def __init__(self, data: Path, work: Work, cases: Sequence[Case]) -> None:
        self.data = data
        self._jobs: dict[Case, list[int]] = {}
        data.mkdir()
        script = data.with_name("nothing.py")
        script.write_text("", encoding="utf-8")
        store = Store(DataPaths(data).database)
        for case in cases:
            self._jobs[case] = [
                finished_job(
                    store, data, f"{case.slug} seed {seed}", script, work, case.steps, seed
                )
                for seed in range(case.runs)
            ]
        store.close()

    def ids(self, case: Case) -> list[int]:
        return self._jobs[case]


def finished_job(
    store: Store, data: Path, name: str, script: Path, work: Work, steps: int, seed: int
) -> int:
    """A job that has run to its end, with its folder; returns its id."""
    points = training(steps, seed)
    job_id = queue_job(store, name, "script", script=script)
    folder = DataPaths(data).run(job_id)
    folder.folder.mkdir(parents=True)
    os.link(work.metrics(steps, seed), folder.metrics)
    progress = last_words(points)
    folder.progress.write_text(
        json.dumps({**progress, "metrics_history": history(points)}), encoding="utf-8"
    )
    folder.log.write_text("", encoding="utf-8")
    store.change(job_id, JobStatus.QUEUED, JobStatus.RUNNING, "Started", started_at=utc_now())
    store.change(job_id, JobStatus.RUNNING, JobStatus.COMPLETED, "Completed", progress=progress)
    return job_id


def last_words(points: Training) -> dict[str, Any]:
    """What its progress.json says, without the history."""
    return {
        "status": "finished",
        "current_step": points.steps,
        "total_steps": points.steps,
        "train_loss": float(points.train_loss[-1]),
        "eval_loss": float(points.eval_loss[-1]),
        "learning_rate": float(points.learning_rate[-1]),
        "grad_norm": float(points.grad_norm[-1]),
    }


def history(points: Training) -> list[dict[str, float]]:
    """The bounded history in a progress.json, the last step included."""
    every = -(-points.steps // HISTORY)
    return [
        {"step": step, "train_loss": float(points.train_loss[step - 1])}
        for step in range(points.steps % every or every, points.steps + 1, every)
    ]
