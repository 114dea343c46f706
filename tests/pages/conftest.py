"""Pages are drawn by Streamlit's own test runner, on a real database with rows written here."""

import functools
import json
import re
from collections.abc import Callable, Iterator, Mapping
from datetime import timedelta
from typing import Any

import pytest
import streamlit as st
from sqlalchemy import insert
from streamlit.components.v2 import manifest_scanner
from streamlit.testing.v1 import AppTest

from backend.diagnosis import Detail
from backend.models import Cleanup, Failure, FailureKind, Job, JobStatus, RequestKind, utc_now
from backend.paths import DataPaths, RunPaths
from backend.recipes import DigitsParams
from backend.service import Service
from backend.settings import Settings
from backend.store import Store
from pages.parts import job_acts, job_table
from tests.conftest import PROJECT

HOSTILE = (
    "**bold** [a](https://evil.example) <img src=x onerror=alert(1)> :red[red] :tada: $x^2$ "
    "`code` www.evil.example me@evil.example\n# heading\r\n\u202eright to left\u202c שלום ~~gone~~"
)

Open = Callable[..., AppTest]


@pytest.fixture(scope="package", autouse=True)
def _installed_packages_are_looked_through_once() -> Iterator[None]:
    """Streamlit's runner does it for each page that it draws, which takes longer than the page."""
    with pytest.MonkeyPatch.context() as patch:
        scan = functools.cache(manifest_scanner.scan_component_manifests)
        patch.setattr(manifest_scanner, "scan_component_manifests", scan)
        yield


def native_table(data: Mapping[str, Any], on_act: Callable[[], None]) -> None:
    """What the table of jobs is given, drawn so that the runner can read it and press its
    buttons."""
    first, last = data["first"], data["first"] + len(data["rows"]) - 1
    range_ = f", {first:,} to {last:,} shown" if data["pages"] > 1 else ""
    st.caption(f"{data['total']:,} jobs{range_}, {data['fresh']} new")
    for row in data["rows"]:
        cells = " | ".join(cell["text"] for cell in row["cells"].values())
        tags = ", ".join(row["tags"])
        st.text(f"{row['word']} {row['id']} · {row['name']} | {row['said']} | {tags} | {cells}")
        for act in row["acts"]:
            st.button(
                act["label"],
                key=f"{act['do']}-jobs-{row['id']}",
                help=act["help"],
                disabled=act.get("off", False),
                on_click=job_acts.do,
                args=({"do": act["do"], "ids": [row["id"]]},),
            )


@pytest.fixture(autouse=True)
def _native_table(monkeypatch: pytest.MonkeyPatch) -> None:
    """The runner cannot look into a component."""
    monkeypatch.setattr(job_table, "table", native_table)


class Rows:
    """Writes jobs into the database as the supervisor would have."""

    def __init__(self, store: Store, paths: DataPaths) -> None:
        self.store = store
        self.paths = paths

    def job(self, status: JobStatus = JobStatus.QUEUED, **fields: Any) -> int:
        """A job in this state."""
        values: dict[str, Any] = {
            "name": "a job",
            "recipe": "digits",
            "params": DigitsParams().model_dump(mode="json"),
            "timeout_seconds": 600,
            "gpus": 0,
        }
        job_id = self.store.add(Job(**{**values, **fields}))
        if status is JobStatus.QUEUED:
            return job_id
        if status is JobStatus.CANCELLED:
            self.store.change(job_id, JobStatus.QUEUED, status, "Cancelled")
            return job_id
        started = utc_now() - timedelta(minutes=2)
        self.store.change(
            job_id, JobStatus.QUEUED, JobStatus.RUNNING, "Started", started_at=started, pid=4242
        )
        if status is not JobStatus.RUNNING:
            failure = None
            if status is JobStatus.FAILED:
                failure = Failure(job_id=job_id, kind=FailureKind.CRASHED, message="boom")
            self.store.change(job_id, JobStatus.RUNNING, status, "Ended", failure=failure)
        return job_id

    def many(self, count: int) -> None:
        """So many cancelled jobs, named `number 1` and so on."""
        job = Job(
            name="", recipe="digits", timeout_seconds=1, gpus=0, status=JobStatus.CANCELLED
        ).model_dump(exclude={"id", "name"})
        with self.store._write() as session:
            session.execute(insert(Job), [job | {"name": f"number {n + 1}"} for n in range(count)])

    def runs(self, progress: Mapping[str, Any] | None = None, **fields: Any) -> int:
        """A running job that has reported this."""
        job_id = self.job(JobStatus.RUNNING, **fields)
        self.store.update_running(job_id, progress=dict(progress or {}))
        return job_id

    def checkpoint(self, job_id: int, name: str, *, complete: bool = True) -> None:
        """A folder with three bytes of weights."""
        folder = self.run(job_id).checkpoints / name
        folder.mkdir(parents=True)
        (folder / "model.pt").write_bytes(b"...")
        if complete:
            (folder / "COMPLETE").touch()

    def failed(
        self,
        kind: FailureKind,
        message: str = "it broke",
        detail: Detail | None = None,
        **fields: Any,
    ) -> int:
        """A job that failed, with all that is kept of it."""
        job_id = self.job(JobStatus.RUNNING, **fields)
        failure = Failure(
            job_id=job_id,
            kind=kind,
            message=message,
            seconds_without_progress=612,
            last_step=1234,
            log_tail=f"the log of {kind}",
            stacks=f"the stacks of {kind}",
            detail=(detail or Detail()).as_json(),
        )
        self.store.change(
            job_id,
            JobStatus.RUNNING,
            JobStatus.FAILED,
            message,
            failure=failure,
            error=message,
            failure_kind=kind,
        )
        return job_id

    def cancelling(self) -> int:
        job_id = self.job(JobStatus.RUNNING)
        self.store.request(job_id, RequestKind.CANCELLING, "Cancel was asked for")
        return job_id

    def cleanup(self, job_id: int | None = None, **fields: Any) -> None:
        values: dict[str, Any] = {
            "reason": "cancelled",
            "device": "GPU 0",
            "source": "nvml",
            "baseline_bytes": 2**29,
            "before_bytes": 41 * 2**30,
            "peak_bytes": 44 * 2**30,
            "after_bytes": 2**29,
            "settle_seconds": 0.8,
            "released": True,
        }
        self.store.add_cleanup(Cleanup(job_id=job_id, **{**values, **fields}))

    def run(self, job_id: int) -> RunPaths:
        """The run folder of a job, made."""
        paths = self.paths.run(job_id)
        paths.folder.mkdir(parents=True, exist_ok=True)
        return paths

    def curve(self, job_id: int, points: int = 20, **values: float) -> None:
        """A progress.json with a history."""
        history = [
            {"step": s, "train_loss": 2 / s, "learning_rate": 1e-3, **values}
            | ({"eval_loss": 3 / s} if s % 5 == 0 else {})
            for s in range(1, points + 1)
        ]
        document: Mapping[str, Any] = {"current_step": points, "metrics_history": history}
        self.run(job_id).progress.write_text(json.dumps(document), encoding="utf-8")


@pytest.fixture
def rows(settings: Settings, idle_service: Service) -> Iterator[Rows]:
    """Rows of a data folder whose service runs nothing."""
    paths = DataPaths(settings.data)
    store = Store(paths.database)
    yield Rows(store, paths)
    store.close()


@pytest.fixture
def open_page() -> Open:
    """Opens a page by its file's name, with query parameters, and sees that it draws."""

    def open_one(name: str = "overview", **query: str) -> AppTest:
        page = AppTest.from_file(PROJECT / "pages" / "navigation.py", default_timeout=20)
        if name != "overview":
            page.run()
            page.switch_page(f"{name}.py")
        for key, value in query.items():
            page.query_params[key] = value
        return sound(page.run())

    return open_one


def sound(page: AppTest) -> AppTest:
    """The page, if it drew without an exception."""
    assert not page.exception, page.exception
    return page


def words(page: AppTest) -> str:
    """All that a page says, as one text, without what keeps Markdown from acting, and without the
    exact time behind one that is said."""
    kinds = (
        *("title", "header", "subheader", "markdown", "caption", "text", "code", "page_link"),
        *(
            "error",
            "warning",
            "info",
            "success",
            "metric",
            "button",
            "table",
            "html",
            "progress",
            "link_button",
        ),
    )
    said = []
    for kind in kinds:
        for element in page.get(kind):
            said += [
                str(part)
                for name in ("value", "label", "text")
                if (part := getattr(element, name, None)) is not None
            ]
    text = "\n".join(said).replace("\\", "").replace("\u2060", "")
    return re.sub(r"</?time\b[^>]*>", "", text)
