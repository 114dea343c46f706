"""A job to train in: its run folder, and what it and the one who watches it see of each other."""

import json
import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import signalbox

PAUSE = {"asked_at": "2026-11-23T18:02:45Z", "pause": True, "ending": None}
CANCEL = {**PAUSE, "ending": {"status": "cancelled"}}
VARIABLES = ("RUN_DIR", "PROGRESS", "CHECKPOINT_DIR", "RESUME_FROM")


class Job:
    """Makes this process a job, as often as `launch` is called."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.checkpoints = folder / "checkpoints"

    def launch(self, resume_from: Path | None = None) -> None:
        leave()
        self.folder.mkdir(exist_ok=True)
        (self.folder / "stop.json").unlink(missing_ok=True)
        os.environ["SIGNALBOX_RUN_DIR"] = str(self.folder)
        os.environ["SIGNALBOX_PROGRESS"] = str(self.folder / "progress.json")
        os.environ["SIGNALBOX_CHECKPOINT_DIR"] = str(self.checkpoints)
        if resume_from:
            os.environ["SIGNALBOX_RESUME_FROM"] = str(resume_from)

    def ask(self, wanted: dict[str, Any] = PAUSE) -> None:
        (self.folder / "stop.json").write_text(json.dumps(wanted))

    @property
    def progress(self) -> dict[str, Any]:
        signalbox.start()._publish()
        found: dict[str, Any] = json.loads((self.folder / "progress.json").read_text())
        return found

    @property
    def curve(self) -> dict[int, dict[str, Any]]:
        return {
            point.pop("step"): {k: v for k, v in point.items() if k != "timestamp"}
            for point in self.progress["metrics_history"]
        }

    @property
    def newest(self) -> Path:
        """The checkpoint that it says it has sealed, and has."""
        folder = self.checkpoints / self.progress["checkpoint"]
        marker = json.loads((folder / "COMPLETE").read_text())
        for name, facts in marker["files"].items():
            assert (folder / name).stat().st_size == facts["bytes"]
        return folder


def leave() -> None:
    """This process is no job any more."""
    signalbox._run = None
    for name in VARIABLES:
        os.environ.pop(f"SIGNALBOX_{name}", None)


@pytest.fixture
def job(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Job]:
    monkeypatch.setattr(signalbox, "STOP_LOOK_SECONDS", 0)
    handler = signal.getsignal(signal.SIGTERM)
    job = Job(tmp_path / "job")
    job.launch()
    yield job
    leave()
    signal.signal(signal.SIGTERM, handler)
