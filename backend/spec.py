"""spec.json: what a run was started as; enough to start it again by hand, or to know it again."""

import os
from datetime import datetime
from typing import Any, Final

from pydantic import BaseModel, Field, ValidationError

from backend.models import Job, JobStatus, utc_now
from backend.paths import RunPaths, open_inside, publish_inside

_MAX_BYTES: Final = 2**20


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
    """Those that Signalbox sets."""
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
            with os.fdopen(open_inside(paths.spec, os.O_RDONLY), "rb") as file:
                return cls.model_validate_json(file.read(_MAX_BYTES))
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
