"""What the server writes into a run folder: spec.json, what a run was started as, and stop.json,
that it is to stop and what for."""

from datetime import datetime
from pathlib import Path
from typing import Any, Final, Literal, Self

from pydantic import AwareDatetime, BaseModel, Field, ValidationError, model_validator

from backend.models import FailureKind, Job, JobStatus, utc_now
from backend.paths import RunPaths, open_inside, publish_inside

_MAX_BYTES: Final = 2**20


def _read(path: Path) -> bytes:
    with open(path, "rb", opener=lambda _, flags: open_inside(path, flags)) as file:
        return file.read(_MAX_BYTES)


class RunSpec(BaseModel):
    """The content of spec.json. The values of a job's own variables are not in it: they may be
    secrets."""

    job_id: int
    name: str = ""
    recipe: str = "script"
    params: dict[str, Any] = {}
    command: list[str] = []
    """The interpreter and its arguments."""
    working_dir: str | None = None
    variables: dict[str, str] = {}
    """Those that Signalbox sets, but for the mark of the job's processes."""
    env_names: list[str] = []
    devices: list[int] = []
    timeout_seconds: float = Field(gt=0)
    created_at: datetime = Field(default_factory=utc_now)

    def publish(self, paths: RunPaths) -> None:
        """Raises OSError."""
        publish_inside(paths.spec, self.model_dump_json(indent=2))

    @classmethod
    def read(cls, paths: RunPaths) -> "RunSpec | None":
        """None where there is none, or it makes no sense."""
        try:
            return cls.model_validate_json(_read(paths.spec))
        except (OSError, ValidationError):
            return None

    def running_job(self) -> Job:
        """The row of a job that runs, for a database that does not know it."""
        python, *argv = self.command or [""]
        return Job(
            id=self.job_id,
            name=self.name or f"job {self.job_id}",
            recipe=self.recipe,
            params=self.params,
            command={"argv": argv, "python": python, "folder": self.working_dir},
            timeout_seconds=self.timeout_seconds,
            gpus=len(self.devices),
            devices=self.devices,
            status=JobStatus.RUNNING,
            created_at=self.created_at,
            started_at=self.created_at,
        )


class Ending(BaseModel):
    """A verdict that a live job is being ended for, and how long it had been silent by then."""

    status: Literal[JobStatus.FAILED, JobStatus.CANCELLED]
    kind: FailureKind | None
    error: str | None = Field(max_length=2000)
    finished_at: str | None
    silent_seconds: float | None = Field(ge=0, allow_inf_nan=False)

    @model_validator(mode="after")
    def _whole(self) -> Self:
        failed = self.status is JobStatus.FAILED
        if failed != (self.kind is not None) or failed != (self.error is not None):
            raise ValueError("A failure has a kind and a sentence, and nothing else has.")
        return self


class StopFile(BaseModel):
    """The content of stop.json: for a job that cannot catch a signal, and for a later server."""

    asked_at: AwareDatetime
    pause: bool = False
    """It is to save and to end, and will be resumed."""
    ending: Ending | None = None

    def publish(self, paths: RunPaths) -> None:
        """Raises OSError."""
        publish_inside(paths.stop, self.model_dump_json())

    @classmethod
    def read(cls, paths: RunPaths) -> "StopFile | None":
        """None where there is none, or it makes no sense."""
        try:
            return cls.model_validate_json(_read(paths.stop))
        except (OSError, ValidationError):
            return None
