"""The file names of the data folder and of a run folder."""

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class RunPaths:
    """The files of one run; `backend.training` writes those that belong to the job."""

    folder: Path

    @property
    def spec(self) -> Path:
        return self.folder / "spec.json"

    @property
    def progress(self) -> Path:
        return self.folder / "progress.json"

    @property
    def metrics(self) -> Path:
        return self.folder / "metrics.jsonl"

    @property
    def seen(self) -> Path:
        """The points that the server saw of a job that keeps no history itself."""
        return self.folder / "seen.jsonl"

    @property
    def log(self) -> Path:
        return self.folder / "log.txt"

    @property
    def exit(self) -> Path:
        return self.folder / "exit.json"

    @property
    def stacks(self) -> Path:
        return self.folder / "stacks.txt"

    @property
    def stop(self) -> Path:
        """Written by the server when the job is to stop, for jobs that cannot catch a signal."""
        return self.folder / "stop.json"

    @property
    def checkpoints(self) -> Path:
        return self.folder / "checkpoints"


@dataclass(frozen=True)
class DataPaths:
    """The files of the data folder."""

    folder: Path

    @property
    def database(self) -> Path:
        return self.folder / "signalbox.db"

    @property
    def lock(self) -> Path:
        """Held by the one server that runs on this folder."""
        return self.folder / "signalbox.lock"

    @property
    def nonce(self) -> Path:
        """A random word that marks the processes of this folder's jobs."""
        return self.folder / "nonce"

    @property
    def uploads(self) -> Path:
        return self.folder / "uploads"

    def run(self, job_id: int) -> RunPaths:
        return RunPaths(self.folder / "runs" / str(job_id))
