"""The face of the backend: everything that a page or the API may ask for."""

import contextlib
import hashlib
import logging
import math
import os
import re
import secrets
import sqlite3
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, replace
from datetime import UTC, datetime
from itertools import islice
from pathlib import Path
from typing import Any, Final

import psutil
from filelock import FileLock, Timeout

from backend import analytics, archive, diagnosis, export, labels, log, stacks, stall, telling
from backend.analytics import Compared, Comparison, JobAnalytics
from backend.archive import Checkpoint
from backend.bins import Curve, CurveSummary, curve_of, summary_of_points
from backend.curve import (
    MAX_TEXT,
    History,
    Point,
    each_point,
    figures_of,
    masked,
    masked_name,
    parse_point,
    read_figures,
    read_history,
    read_points,
    thin,
)
from backend.curve_index import X
from backend.curves import Curves
from backend.deletion import Deletion, Measured, Wastebasket
from backend.export import Form
from backend.gpu import MemorySource, empty_cache, find_source
from backend.load import Load, LoadMeter
from backend.log import LogSlice
from backend.mask import Mask, mask_of
from backend.models import (
    Cleanup,
    Event,
    Failure,
    FailureKind,
    Job,
    JobStatus,
    RequestKind,
    utc_now,
)
from backend.news import Endings, NewsKind
from backend.notify import Message, Notifier, read_addresses
from backend.paths import DataPaths, RunPaths
from backend.pool import Pool
from backend.processes import Mark, find_all_marked, find_leader, variables_of
from backend.progress import ProgressReader, Reading
from backend.recipes import command_for
from backend.schema import SchemaError, set_aside_if_damaged
from backend.settings import Settings
from backend.spec import RunSpec
from backend.store import Store, StoreError, Summary
from backend.submission import (
    InvalidSubmissionError,
    Problem,
    Submission,
    check,
    clean_name,
    default_name,
    submission_of,
)
from backend.supervisor import MAX_STACKS_BYTES, Supervisor, Surroundings
from backend.usage import UsagePoint, read_usage
from backend.views import (
    CurveMark,
    DeviceView,
    FailureCount,
    FailureView,
    JobFilter,
    JobPage,
    JobView,
    Machine,
    MarkKind,
    QueueView,
    RunFile,
)

logger = logging.getLogger(__name__)

MAX_FILES: Final = 500
MAX_QUEUED: Final = 1000

_LABELS: Final[Mapping[str, Callable[[Any], Any]]] = {
    "name": labels.name, "tags": labels.tags, "note": labels.note, "starred": bool,
}  # fmt: skip
_NEVER_STARTED: Final = "Cancelled before it was started"


class UnknownJobError(LookupError):
    """There is no job with this id."""


class QueueFullError(Exception):
    """So many jobs wait already that another would only be forgotten; the message is a sentence."""

    def __init__(self) -> None:
        super().__init__(
            f"The queue is full: {MAX_QUEUED:,} jobs wait. Try again when some have started, or "
            "cancel those that are not needed."
        )


class StartError(Exception):
    """The service cannot start; the message is one line that says why and what to do."""


class Service:
    """One per process. Every method may be called from any thread and answers at once."""

    def __init__(self, settings: Settings, url: str | None = None) -> None:
        """`url` is where a browser finds the pages, for links in notifications."""
        self.settings = settings
        self._url = url
        self._notifier: Notifier | None = None
        self._paths = DataPaths(settings.data)
        self._lock = FileLock(self._paths.lock)
        self._notices: list[str] = []
        self._submitting = threading.RLock()
        self._endings = Endings()
        self._load: LoadMeter
        self._store: Store
        self._source: MemorySource
        self._pool: Pool
        self._curves: Curves
        self._basket: Wastebasket

    def start(self, *, run_jobs: bool = True) -> None:
        """Open the data folder, take over running jobs and work on the queue.

        Args:
            run_jobs: False to leave the queue alone, for looking at a data folder.

        Raises:
            StartError: the data folder cannot be used, or another server uses it.
        """
        try:
            self._paths.uploads.mkdir(parents=True, exist_ok=True)
            self._lock.acquire(timeout=0)
            nonce = self._paths.make_nonce()
        except Timeout:
            raise StartError(
                f"Another Signalbox runs on {self._paths.folder} already; "
                "close it first, or set SIGNALBOX_DATA to another folder."
            ) from None
        except OSError as error:
            self._lock.release()
            raise StartError(
                f"The data folder {self._paths.folder} cannot be used ({error.strerror}); "
                "set SIGNALBOX_DATA to a folder that you may write."
            ) from None
        try:
            self._open_database()
        except (SchemaError, StoreError, OSError, sqlite3.Error) as error:
            self._lock.release()
            raise StartError(str(error)) from None
        self._source = find_source()
        devices = self._source.devices()
        self._load = LoadMeter(self._paths.folder, self._source)
        if self.settings.notify and run_jobs:
            self._notifier = Notifier(read_addresses(self.settings.notify.get_secret_value()))
            self._notifier.start()
        around = Surroundings(self.settings, self._store, self._source, nonce, self._tell)
        self._pool = Pool(around, self._paths, self.settings.workers or max(1, len(devices)))
        self._curves = Curves(self._paths, self._pool.supervised)
        self._basket = Wastebasket(
            self._store, self._paths, self._pool.lingers, self._curves.forget
        )
        try:
            self._read_back(nonce)
            if run_jobs:
                self._pool.start()
                self._basket.start()
            self._curves.start()
        except BaseException as error:
            self.close()
            if isinstance(error, StoreError):
                raise StartError(str(error)) from None
            raise
        if devices:
            # Emptying the cache needs torch; loading it takes seconds that no start should wait.
            threading.Thread(target=empty_cache, args=(True,), name="torch", daemon=True).start()

    def close(self) -> int:
        """Stop supervising; return how many jobs go on running without a server."""
        self._basket.close()
        left = self._pool.close()
        self._curves.close()
        if self._notifier:
            self._notifier.close()
        self._store.close()
        self._lock.release()
        return left

    @property
    def notices(self) -> Sequence[str]:
        """What a person should know of this start, and of the disk: a sentence each."""
        if not self._pool.waits_for_room:
            return tuple(self._notices)
        return (
            *self._notices,
            f"The disk of {self._paths.folder} is full: queued jobs wait until there is room.",
        )

    @property
    def gpu_count(self) -> int:
        return len(self._source.devices())

    # Submitting

    def validate(self, submission: Submission) -> list[Problem]:
        """Say everything that is wrong with a submission; queue nothing."""
        return check(submission, self.gpu_count)[1]

    def submit(
        self,
        submission: Submission,
        parent_id: int | None = None,
        continues_id: int | None = None,
    ) -> int:
        """Queue a job and return its id.

        Args:
            parent_id: the job that it is a retry of.
            continues_id: the job from whose newest good checkpoint it begins.

        Raises:
            InvalidSubmissionError: something is wrong with it; nothing was queued.
            QueueFullError: 1,000 jobs wait already; nothing was queued.
            StoreError: the database cannot be written; nothing was queued.
        """
        params, problems = check(submission, self.gpu_count)
        if problems or params is None:
            raise InvalidSubmissionError(problems)
        minutes = submission.timeout_minutes
        gpus = submission.gpus
        job = Job(
            name=clean_name(submission.name) or default_name(submission.recipe, params),
            recipe=submission.recipe,
            params=params.model_dump(mode="json"),
            command=asdict(command_for(submission.recipe, params)),
            env=submission.env,
            timeout_seconds=round(minutes * 60, 3)
            if minutes is not None
            else self.settings.timeout_seconds,
            gpus=min(1, self.gpu_count) if gpus is None else gpus,
            max_retries=submission.max_retries,
            parent_id=parent_id,
            continues_id=continues_id,
        )
        with self._submitting:
            if self._store.counts()[JobStatus.QUEUED] >= MAX_QUEUED:
                raise QueueFullError
            job_id = self._store.add(job)
        self._pool.dispatch()
        return job_id

    def submission_like(self, job_id: int) -> Submission:
        """What was asked for when this job was submitted, for a form to start from.

        The values of its environment variables are left out: they may be secrets.

        Raises:
            UnknownJobError: there is no such job.
        """
        submission = submission_of(self._job(job_id))
        return submission.model_copy(update={"env": dict.fromkeys(submission.env, "")})

    def retry(self, job_id: int, *, from_checkpoint: bool = False) -> int:
        """Queue a new job like this one, which remembers it as its parent; return its id.

        Args:
            from_checkpoint: it goes on from the newest good checkpoint of this job, or of the job
                that this one went on from; where there is none it begins anew.

        Raises:
            UnknownJobError: there is no such job.
            InvalidSubmissionError: it could not be submitted any more (its script is gone, say).
        """
        continues_id = job_id if from_checkpoint else None
        return self.submit(submission_of(self._job(job_id)), job_id, continues_id)

    def retry_once(self, job_id: int, *, from_checkpoint: bool = False) -> tuple[JobView, bool]:
        """As `retry`, unless there is a retry that has not ended yet.

        Returns the newest retry, and whether it is new.
        """
        with self._submitting:
            live = self._store.live_child(job_id) if _is_id(job_id) else None
            if live is not None:
                return self._view(live, {}), False
            return self.job(self.retry(job_id, from_checkpoint=from_checkpoint)), True

    def retries(self, job_id: int) -> Sequence[int]:
        """The jobs that are retries of this one, oldest first."""
        return self._store.children(job_id) if _is_id(job_id) else []

    def keep_upload(self, name: str, content: bytes) -> str:
        """Keep an uploaded file; return its absolute path. The same file is kept once."""
        safe = re.sub(r"[^A-Za-z0-9._-]+", "_", Path(name).name).strip("._") or "upload"
        path = self._paths.uploads / f"{hashlib.sha256(content).hexdigest()[:12]}-{safe[-80:]}"
        if not path.exists():
            beside = path.with_name(f"{path.name}.{secrets.token_hex(4)}.tmp")
            try:
                beside.write_bytes(content)
                beside.replace(path)
            except OSError:
                beside.unlink(missing_ok=True)  # what there is of it takes room on a full disk
                raise
        return str(path)

    # Acting on a job

    def cancel(self, job_id: int, *, now: bool = False) -> bool:
        """Ask for the end of a job; False where it had ended already.

        Args:
            now: kill what runs of it at once, without the grace in which it could save.

        Raises:
            UnknownJobError: there is no such job.
        """
        while True:
            job = self._job(job_id)
            if job.status in (JobStatus.QUEUED, JobStatus.PAUSED):
                told = "Cancelled while it waited" if job.started_at else _NEVER_STARTED
                if self._store.change(
                    job_id,
                    job.status,
                    JobStatus.CANCELLED,
                    told,
                    paused_seconds=_paused_seconds(job),
                ):
                    return True
                continue  # it was claimed, or resumed, in this instant
            if job.status is not JobStatus.RUNNING:
                return False
            self._cancel_running(job, now)
            status = self._job(job_id).status
            if status not in (JobStatus.QUEUED, JobStatus.PAUSED):  # paused in this instant
                return status is JobStatus.RUNNING

    def _cancel_running(self, job: Job, now: bool) -> None:
        assert job.id is not None
        unwritten: StoreError | None = None
        try:
            if job.requested is not RequestKind.CANCELLING:
                self._store.request(job.id, RequestKind.CANCELLING, "Cancel was asked for")
        except StoreError as error:
            # The end of a job does not wait for the disk; its verdict is written once that is back.
            logger.warning("Job %s is cancelled without a note of it. %s", job.id, error)
            unwritten = error
        if not self._pool.cancel(job.id, now=now) and unwritten:
            raise unwritten  # nobody supervises it at this moment: nobody would know

    def pause(self, job_id: int) -> bool:
        """Ask a running job to save and to end, so that it can be resumed; False where it is not
        running, or is being cancelled.

        One that ignores that goes on, and its `notice` says so; see `JobView.can_pause`.

        Raises:
            UnknownJobError: there is no such job.
            StoreError: the database cannot be written; nothing was asked.
        """
        job = self._job(job_id)
        if job.status is not JobStatus.RUNNING or job.requested is RequestKind.CANCELLING:
            return False
        if self._store.request(job_id, RequestKind.PAUSING, "Pause was asked for"):
            self._pool.pause(job_id)
        job = self._job(job_id)
        return job.requested is RequestKind.PAUSING or job.status is JobStatus.PAUSED

    def resume(self, job_id: int) -> bool:
        """Queue a paused job again, to go on from its newest good checkpoint; False where it is not
        paused.

        Raises:
            UnknownJobError: there is no such job.
            StoreError: the database cannot be written; nothing was asked.
        """
        self._job(job_id)
        resumed = self._store.change(
            job_id,
            JobStatus.PAUSED,
            JobStatus.QUEUED,
            "Resume was asked for",
            queued_at=utc_now(),
            notice=None,
        )
        if resumed:
            self._pool.dispatch()
        return resumed

    def where(self, job_id: int) -> str | None:
        """Have the stacks of a running job taken, and say in a sentence where it is; None where it
        has no process to ask. Takes up to a few seconds; the job goes on meanwhile.

        Raises:
            UnknownJobError: there is no such job.
        """
        job = self._job(job_id)
        supervisor = self._pool.supervisor(job_id)
        if supervisor is None or not supervisor.take_stacks():
            return None
        report = stacks.read(self.stacks(job_id))
        if report is None:
            return "Where it is cannot be told: its stacks could not be written."
        live = supervisor.live()
        return mask_of(job.env).text(
            stacks.sentence(
                report,
                last_step=live.reading.current_step if live.reading else None,
                silent_seconds=live.silent_seconds,
                phase=live.reading.phase if live.reading else None,
            )
        )

    def extend(self, job_id: int) -> bool:
        """Grant a running job another full timeout; False where it is not running, or its end has
        begun.

        Raises:
            UnknownJobError: there is no such job.
        """
        job = self._job(job_id)
        supervisor = self._pool.supervisor(job_id)
        if supervisor is None or job.status is not JobStatus.RUNNING or not supervisor.extend():
            return False
        self._store.try_to_note(job_id, "Another full timeout was granted")
        return True

    # What a reader writes beside a job

    def label(self, job_id: int, **values: Any) -> None:
        """Change `name`, `tags` (all of them), `note` and `starred`, as many as are given, at once;
        an empty note is none.

        Raises:
            UnknownJobError: there is no such job.
            LabelError: one of them is too long, or the name is empty; then nothing is changed.
        """
        self._job(job_id)
        cleaned = {field: _LABELS[field](value) for field, value in values.items()}
        if cleaned and not self._store.label(job_id, **cleaned):
            raise UnknownJobError(f"There is no job {job_id}.")

    # Deleting

    def delete(self, job_ids: Iterable[int]) -> Deletion:
        """Delete jobs that have ended, with their run folders; others are left out, and why is
        said. For 10 minutes they can be taken back.

        Raises:
            UnknownJobError: there is no such job among them; nothing was deleted.
            StoreError: the database cannot be written; nothing was deleted.
        """
        return self._basket.delete(self._known(job_ids))

    def undelete(self, job_ids: Iterable[int]) -> Sequence[int]:
        """Take a deletion back; returns the jobs that are there again. Raises StoreError."""
        return self._basket.undelete([job_id for job_id in job_ids if _is_id(job_id)])

    def delete_for_good(self, job_ids: Iterable[int]) -> None:
        """Let jobs that were deleted go now, and free what they take. Raises StoreError."""
        self._basket.delete_for_good([job_id for job_id in job_ids if _is_id(job_id)])

    def deletions(self) -> Sequence[Deletion]:
        """Those that can be taken back, newest first."""
        return self._basket.deletions()

    def bytes_of(self, job_ids: Iterable[int]) -> Measured:
        """What the run folders of jobs take on the disk, as far as it can be told in 2 seconds."""
        return self._basket.measure([job_id for job_id in job_ids if _is_id(job_id)])

    def _known(self, job_ids: Iterable[int]) -> Sequence[int]:
        ids = list(dict.fromkeys(job_ids))
        known = {job.id for job in self._store.these([i for i in ids if _is_id(i)])}
        for job_id in ids:
            if job_id not in known:
                raise UnknownJobError(f"There is no job {job_id}.")
        return ids

    # Looking at jobs

    def job(self, job_id: int, *, look: bool = False) -> JobView:
        """What is known of a job now. Raises UnknownJobError.

        Args:
            look: read its progress now, not when its supervisor's next look is due.
        """
        # First: a job that ends in between is then shown as it was, and not without its figures.
        supervisor = self._pool.supervisor(job_id)
        if supervisor and look:
            supervisor.look()
        job = self._job(job_id)
        positions = self._store.queue_positions() if job.status is JobStatus.QUEUED else {}
        view = self._view(job, positions, supervisor)
        if job.status.ended and job.started_at is not None:
            reader = ProgressReader(self._paths.run(job_id).progress)
            reader.look()
            view = replace(view, progress_problem=reader.problem)
        return view

    def jobs(self, filter: JobFilter | None = None) -> JobPage:
        """The jobs that match, as many as the filter asks for."""
        found = self._store.find(**vars(filter or JobFilter()))
        return JobPage(self._views(found.jobs), found.total)

    def these(self, job_ids: Sequence[int]) -> Sequence[JobView]:
        """Those of these jobs that are there, in this order, in one query."""
        return self._views(self._store.these([job_id for job_id in job_ids if _is_id(job_id)]))

    def newer(self, job_id: int, filter: JobFilter) -> int:
        """How many jobs that match were submitted after this one."""
        return self._store.newer(job_id, filter.statuses, filter.text)

    def newest_id(self) -> int:
        """The highest number of a job; 0 where there is none."""
        return self._store.newest_id()

    def _views(self, jobs: Sequence[Job]) -> Sequence[JobView]:
        queued = any(job.status is JobStatus.QUEUED for job in jobs)
        positions = self._store.queue_positions() if queued else {}
        return [self._view(job, positions) for job in jobs]

    def counts(self) -> Mapping[JobStatus, int]:
        """How many jobs are in each state; every state is there."""
        return self._store.counts()

    def queue(self) -> QueueView:
        """Which jobs run, and which wait, in the order in which they will be started."""
        running = sorted(job.id for job in self._store.running() if job.id is not None)
        return QueueView(running, list(self._store.queue_positions()))

    def history(self, job_id: int) -> Sequence[Point]:
        """The curve: at most 2,000 points, oldest first. Raises UnknownJobError."""
        mask = mask_of(self._job(job_id).env)
        points = self._reported(job_id)
        if not points and not self._pool.supervisor(job_id):
            paths = self._paths.run(job_id)
            points = read_points(paths.metrics) or read_points(paths.seen)
        return masked(points, mask)

    def metrics(self, job_id: int, since_step: int | None, most: int) -> History:
        """The whole curve, or what came after a step, thinned to at most `most` points.

        Raises UnknownJobError.
        """
        paths, mask = self._kept(job_id)
        for source in (paths.metrics, paths.seen):
            found = read_history(source, since_step=since_step, most=most)
            if found.total or any(map(parse_point, log.read_tail(source, 2**16).splitlines())):
                return History(masked(found.points, mask), found.total)
        after = -1 if since_step is None else since_step
        points = [point for point in self.history(job_id) if point.step > after]
        return History(thin(points, most), len(points))

    def curve(
        self,
        job_id: int,
        most: int = 1000,
        *,
        level: int | None = None,
        after_row: int | None = None,
        x: X = "step",
        begin: float | None = None,
        end: float | None = None,
    ) -> Curve:
        """The curve, or a stretch of it, in at most `most` bins, as `CurveIndex.curve` has it.

        However long it is, that takes some milliseconds. One that is in no file of points is always
        answered whole. Raises UnknownJobError.
        """
        # First: of a job that ends in between the answer would lack points, and say it is over.
        job = self._job(job_id)
        index = self._curves.of(job_id)
        curve = index.curve(most, level=level, after_row=after_row, x=x, begin=begin, end=end)
        if not curve.rows and curve.indexed == 1:
            curve = curve_of(self._reported(job_id), most)
        mask, names = mask_of(job.env), curve.names
        if mask:
            names = {number: masked_name(name, mask) for number, name in names.items()}
        return replace(curve, names=names, live=not job.status.ended)

    def curve_summary(self, job_id: int) -> CurveSummary:
        """What the whole curve comes to, as quickly as `curve`. Raises UnknownJobError."""
        mask = mask_of(self._job(job_id).env)
        summary = self._curves.of(job_id).summary()
        if not summary.rows:
            summary = summary_of_points(self._reported(job_id))
        if not mask:
            return summary
        series = {masked_name(name, mask): figures for name, figures in summary.series.items()}
        return replace(summary, series=series)

    def marks(self, job_id: int) -> Sequence[CurveMark]:
        """What is to be marked on the axis of a job's curve, oldest first. Raises
        UnknownJobError."""
        paths, mask = self._kept(job_id)
        found = [
            CurveMark("checkpoint", c.step, c.created_at, f"Checkpoint {mask.text(c.name)}")
            for c in archive.checkpoints(paths)
            if c.complete
        ]
        has_run = False
        for event in self.timeline(job_id):
            kind = _mark_kind(event, has_run)
            has_run = has_run or event.to_status is JobStatus.RUNNING
            if kind:
                found.append(CurveMark(kind, None, event.at, event.message))
        return sorted(found, key=lambda mark: mark.at)

    def points(self, job_id: int, form: Form) -> Iterator[bytes]:
        """Every point of the curve as a file, in pieces.

        Raises:
            UnknownJobError: there is no such job.
            NotSavedError: it has logged no point.
        """
        paths, mask = self._kept(job_id)
        names: Iterable[str] = self.curve_summary(job_id).series
        blocks: Iterable[Sequence[Point]] = ()
        for source in (paths.metrics, paths.seen):
            if any(map(parse_point, log.read_tail(source, 2**16).splitlines())):
                blocks = (masked(block, mask) for block in each_point(source))
                if form is Form.CSV and self.curve(job_id, 1).indexed < 1:
                    # Its header comes first, and not every name is known yet.
                    read = (masked(block, mask) for block in each_point(source))
                    names = dict.fromkeys(
                        n for block in read for point in block for n in point.values
                    )
                break
        else:  # some keep their history in progress.json only
            history = self.history(job_id)
            if not history:
                raise archive.NotSavedError(f"Job {job_id} has logged no point.")
            blocks = [history]
        return export.pieces(blocks, form, list(names))

    def log_tail(self, job_id: int, lines: int = 200) -> str:
        """The end of the log as a terminal would show it: bars collapsed, no escape codes.

        Raises UnknownJobError, as all that reads a log does: whose values are to be hidden is in
        the job's row.
        """
        paths, mask = self._kept(job_id)
        return log.tail(paths.log, lines, mask)

    def log_bytes(self, job_id: int, limit: int = 64 * 2**20) -> bytes:
        """The log as it was written, its last `limit` bytes."""
        paths, mask = self._kept(job_id)
        return log.read_tail(paths.log, limit, mask)

    def logs(self, job_id: int, offset: int, limit: int) -> LogSlice:
        """At most `limit` bytes of the log from a byte on. Raises UnknownJobError."""
        job = self._job(job_id)
        grows = job.status is JobStatus.RUNNING
        return log.read_slice(
            self._paths.run(job_id).log, offset, limit, mask_of(job.env), grows=grows
        )

    def log_archive(self, job_id: int) -> Iterator[bytes]:
        """A zip of log, metrics, usage and the like, as its chunks. Raises UnknownJobError."""
        paths, mask = self._kept(job_id)
        names = archive.log_names(paths)
        if not names:
            raise archive.NotSavedError(f"Job {job_id} has written nothing.")
        return archive.stream(paths, names, f"job-{job_id}", mask, compress=True)

    def usage(self, job_id: int, since: int | None = None) -> Sequence[UsagePoint]:
        """What a job used of the machine while it ran, oldest first, at most 4,000 points.

        Raises UnknownJobError.

        Args:
            since: only what came after this millisecond since 1970.
        """
        self._job(job_id)
        return read_usage(self._paths.run(job_id).usage, since)

    def checkpoints(self, job_id: int) -> Sequence[Checkpoint]:
        """What the job has saved, oldest first. Raises UnknownJobError."""
        paths, mask = self._kept(job_id)
        return [replace(c, name=mask.text(c.name)) for c in archive.checkpoints(paths)]

    def model_archive(self, job_id: int, checkpoint: str | None = None) -> Iterator[bytes]:
        """A zip of one checkpoint, or of all that the job left, as its chunks.

        Raises:
            UnknownJobError: there is no such job.
            NotSavedError: there is no such checkpoint, or nothing was saved at all.
        """
        self._job(job_id)
        paths = self._paths.run(job_id)
        names = archive.model_names(paths, checkpoint)
        if not names:
            raise archive.NotSavedError(
                f"Job {job_id} has saved nothing: what a job saves into SIGNALBOX_CHECKPOINT_DIR, "
                "or beside it into SIGNALBOX_RUN_DIR, can be downloaded."
            )
        return archive.stream(paths, names, f"job-{job_id}", None, compress=False)

    def stacks(self, job_id: int) -> str:
        """The stacks that were taken last of a job, or an empty text."""
        paths, mask = self._kept(job_id)
        text = log.read_tail(paths.stacks, MAX_STACKS_BYTES, mask).decode("utf-8", "replace")
        return stacks.newest(text)

    def timeline(self, job_id: int) -> Sequence[Event]:
        """What happened to a job, oldest first."""
        events = self._store.timeline(job_id) if _is_id(job_id) else []
        if events:
            mask = mask_of(self._job(job_id).env)
            for event in events:
                event.message = mask.text(event.message, diagnosis.MAX_MESSAGE)
        return events

    def files(self, job_id: int) -> Sequence[RunFile]:
        """What is in the run folder, by name, at most 500 of it; links are left out."""
        job = self._store.get(job_id) if _is_id(job_id) else None
        mask = mask_of(job.env if job else {})
        folder = self._paths.run(job_id).folder
        found: list[RunFile] = []
        waiting = [] if folder.is_symlink() else [folder]
        while waiting and len(found) < MAX_FILES:
            with contextlib.suppress(OSError), os.scandir(waiting.pop()) as entries:
                for entry in islice(entries, MAX_FILES):
                    if entry.is_dir(follow_symlinks=False):
                        waiting.append(Path(entry.path))
                    elif entry.is_file(follow_symlinks=False):
                        status = entry.stat(follow_symlinks=False)
                        name = os.fsencode(mask.text(os.path.relpath(entry.path, folder)))
                        at = datetime.fromtimestamp(status.st_mtime, UTC)
                        found.append(RunFile(name.decode("utf-8", "replace"), status.st_size, at))
        return sorted(found[:MAX_FILES], key=lambda file: file.name)

    def cleanups(self, job_id: int | None = None, limit: int = 100) -> Sequence[Cleanup]:
        """Newest first."""
        return self._store.cleanups(job_id, limit) if job_id is None or _is_id(job_id) else []

    def failures(
        self, kind: FailureKind | None = None, limit: int = 50, offset: int = 0
    ) -> Sequence[FailureView]:
        """Newest first."""
        return [self._failure(*both) for both in self._store.failures(kind, limit, offset)]

    def failure(self, job_id: int) -> FailureView | None:
        """What is known of one failed job; None where it did not fail."""
        failure = self._store.failure(job_id) if _is_id(job_id) else None
        return self._failure(failure, self._job(job_id)) if failure else None

    def failure_counts(self, days: int = 14) -> Sequence[FailureCount]:
        """Failures by day and kind, oldest first."""
        return [FailureCount(*row) for row in self._store.failure_counts(days)]

    # Figures

    def analytics(self, job_id: int) -> JobAnalytics:
        """One job in figures, from its whole curve. Raises UnknownJobError."""
        return self._analytics(self._job(job_id))

    def compare(self, job_ids: Sequence[int]) -> Comparison:
        """Several jobs side by side. Raises UnknownJobError."""
        return analytics.compare(
            [
                Compared(job.name, job.recipe, job.params, self._analytics(job))
                for job in map(self._job, job_ids)
            ]
        )

    def summary(self) -> Summary:
        """All jobs in figures."""
        return self._store.summary()

    # The machine

    def machine(self) -> Machine:
        """Live memory of each device; of the host where there is no GPU."""
        host = psutil.virtual_memory()
        used = host.total - host.available
        leases = self._pool.leases()
        devices = [
            DeviceView(
                device.index,
                device.name,
                device.total_bytes,
                self._source.used_bytes(device.index),
                leases.get(device.index),
                [holder.as_json() for holder in self._source.holders(device.index)],
            )
            for device in self._source.devices()
        ]
        note = None
        if not devices:
            note = (
                "No GPU was found on this machine, so jobs run on the CPU and the figures are "
                "host memory: of the whole machine here, of a job's own processes for a cleanup."
            )
            devices = [DeviceView(None, "Host memory", host.total, used, None)]
        elif self._source.name == "torch":
            note = (
                "NVML cannot be used here, so the readings come from torch, for which the server "
                "had to open a CUDA context of its own. It holds some memory on each device."
            )
        return Machine(self._source.name, devices, note, used, host.total)

    def load(self) -> Load:
        """How busy the machine is, and what is left of it; at most a second old."""
        return self._load.read()

    def endings(self, after: int | None) -> tuple[int, Sequence[JobView]]:
        """The number of the newest end of a job, and the jobs that ended after another number,
        oldest first; none for None, with which one begins to ask.

        A job that was cancelled while it waited is not among them: whoever cancelled it sees that
        at once, and of a whole queue it would be a flood.
        """
        last = self._endings.last
        found = [] if after is None else self._endings.after(after)
        jobs = [self._store.get(ending.job_id) for ending in found if ending.number <= last]
        return last, [self._view(job, {}) for job in jobs if job is not None]

    def empty_cache(self) -> Cleanup:
        """Collect garbage, and empty the server's own CUDA cache where there is a GPU."""
        process = psutil.Process()
        before = process.memory_info().rss
        done = empty_cache(import_torch=self.gpu_count > 0)
        return self._store.add_cleanup(
            Cleanup(
                reason="button",
                device="server",
                source="host",
                before_bytes=before,
                after_bytes=process.memory_info().rss,
                cache_freed_bytes=done.freed_bytes,
            )
        )

    # Inside

    def _tell(self, job_id: int, kind: NewsKind) -> None:
        if kind is NewsKind.ENDED:
            self._endings.add(job_id)
        if self._notifier:
            self._notifier.tell(lambda: self._message(job_id, kind))

    def _message(self, job_id: int, kind: NewsKind) -> Message | None:
        """What is said of a job outside of this machine; None where there is nothing to say."""
        job = self._store.get(job_id)
        if job is None:
            return None  # deleted meanwhile
        link = f"{self._url}/job?id={job_id}" if self._url else None
        if kind is NewsKind.ABOUT_TO_TIME_OUT:
            message = telling.of_warning(self._view(job, {}), link)
        else:
            retries = self._store.children(job_id) if job.max_retries else ()
            message = telling.of_end(
                self._view(job, {}), self.failure(job_id), next(iter(retries), None), link
            )
        mask = mask_of(job.env)
        return message and Message(mask.text(message.title), mask.text(message.body))

    def _open_database(self) -> None:
        damaged = set_aside_if_damaged(self._paths.database)
        if damaged:
            self._notices.append(
                f"The database was damaged. It was set aside, with all its bytes, as {damaged}, "
                "and an empty one was begun; logs and curves are still in the run folders."
            )
            logger.warning(self._notices[-1])
        # Run folders of a database that is gone keep their numbers.
        self._store = Store(self._paths.database, first_id=self._paths.highest_run() + 1)

    def _read_back(self, nonce: str) -> None:
        """Make a row again for each live job that the database does not know (any more)."""
        for job_id in find_all_marked(nonce):
            if self._store.get(job_id) is not None:
                continue
            spec = RunSpec.read(self._paths.run(job_id))
            if spec is None or spec.job_id != job_id:
                spec = RunSpec(job_id=job_id, timeout_seconds=self.settings.timeout_seconds)
            job = spec.running_job()
            # Else its log would show them. They are what its leader was started with.
            job.env = variables_of(find_leader(Mark(job_id, nonce)).id, spec.env_names)
            try:
                self._store.restore(job, "Found running, though the database did not know it")
            except StoreError as error:
                logger.warning("Job %s runs, and cannot be taken up. %s", job_id, error)
                continue
            self._notices.append(
                f"Job {job_id} was found running, though the database did not know it; "
                "it is supervised again."
            )
            logger.warning(self._notices[-1])

    def _job(self, job_id: int) -> Job:
        job = self._store.get(job_id) if _is_id(job_id) else None
        if job is None or job.deleted_at is not None:
            raise UnknownJobError(f"There is no job {job_id}.")
        return job

    def _analytics(self, job: Job) -> JobAnalytics:
        assert job.id is not None
        paths = self._paths.run(job.id)
        curve = read_figures(paths.metrics)
        if not curve.points:
            curve = read_figures(paths.seen)
        if not curve.points:  # some keep their history in progress.json only
            curve = figures_of(self.history(job.id))
        supervisor = self._pool.supervisor(job.id)
        live = supervisor.live() if supervisor else None
        reading = (live.reading if live else None) or Reading.from_summary(job.progress)
        peaks: dict[str, int] = {}  # it has a cleanup for each of its lives
        for row in self._store.cleanups(job.id, MAX_FILES):
            peaks[row.device] = max(row.peak_bytes or 0, peaks.get(row.device, 0))
        peak = max((live.peak_bytes if live else None) or 0, sum(peaks.values())) or None
        found = analytics.analyse(job.id, curve, reading, _elapsed_seconds(job), peak)
        mask = mask_of(job.env)
        phases = [replace(p, phase=mask.text(p.phase, MAX_TEXT)) for p in found.phases]
        return replace(found, phases=phases)

    def _reported(self, job_id: int) -> Sequence[Point]:
        """The points of a job that are in no file of their own, as it reports them itself."""
        if supervisor := self._pool.supervisor(job_id):
            return supervisor.points()
        reader = ProgressReader(self._paths.run(job_id).progress)
        reader.look()
        return reader.reading.history if reader.reading else ()

    def _kept(self, job_id: int) -> tuple[RunPaths, Mask]:
        """A job's folder, and what hides the values of its environment variables in it."""
        return self._paths.run(job_id), mask_of(self._job(job_id).env)

    def _view(
        self, job: Job, positions: Mapping[int, int], supervisor: Supervisor | None = None
    ) -> JobView:
        assert job.id is not None
        live = None
        if job.status is JobStatus.RUNNING:
            supervisor = supervisor or self._pool.supervisor(job.id)
            live = supervisor.live() if supervisor else None
        reading = (live.reading if live else None) or Reading.from_summary(job.progress)
        elapsed = _elapsed_seconds(job)
        step, total = reading.current_step, reading.total_steps
        percent = reading.progress_percent
        if percent is None and step is not None and total:
            percent = 100 * step / total
        silent = live.silent_seconds if live else 0.0
        if job.failure_kind is FailureKind.TIMEOUT:
            silent = job.timeout_seconds
        worked = (elapsed or 0.0) - silent  # the rate of the time before it fell silent
        rate = reading.steps_per_second
        if rate is None and step and worked > 1 and job.continues_id is None:
            rate = step / worked  # else some of its steps were another job's
        remaining = reading.remaining_seconds
        if remaining is None and rate and step is not None and total:
            remaining = max(0.0, (total - step) / rate)
            remaining = remaining if math.isfinite(remaining) else None
        running = job.status is JobStatus.RUNNING
        # A job may say anywhere what is in its environment.
        mask = mask_of(job.env)
        problem = live.problem if live else None
        return JobView(
            job_id=job.id,
            name=job.name,
            recipe=job.recipe,
            status=job.status,
            requested=job.requested,
            progress=None if percent is None else min(100.0, max(0.0, percent)),
            current_step=step,
            total_steps=total,
            current_epoch=_whole(reading.current_epoch),
            total_epochs=_whole(reading.total_epochs),
            loss=reading.train_loss,
            eval_loss=reading.eval_loss,
            learning_rate=reading.learning_rate,
            samples_per_second=reading.samples_per_second,
            elapsed_seconds=elapsed,
            remaining_seconds=remaining if running else None,
            seconds_since_progress=live.silent_seconds if live else None,
            timeout_seconds=job.timeout_seconds,
            error=job.error and mask.text(job.error, diagnosis.MAX_MESSAGE),
            failure_kind=job.failure_kind,
            queue_position=positions.get(job.id),
            pid=(live.pid if live else None) or job.pid,
            created_at=job.created_at,
            started_at=job.started_at,
            finished_at=job.finished_at,
            parent_id=job.parent_id,
            checkpoint=reading.checkpoint or (job.checkpoint and mask.text(job.checkpoint)),
            best_eval_loss=reading.best_eval_loss,
            best_step=reading.best_step,
            steps_per_second=rate,
            phase=reading.phase and mask.text(reading.phase, MAX_TEXT),
            seconds_left=live.seconds_left if live else None,
            stacks_taken=live.stacks_taken if live else False,
            progress_problem=problem and mask.text(problem),
            non_finite=reading.non_finite,
            extra={mask.text(name, MAX_TEXT): value for name, value in reading.extra.items()},
            memory_bytes=live.memory_bytes if live else None,
            peak_memory_bytes=live.peak_bytes if live else None,
            params=job.params,
            env_names=sorted(job.env),
            devices=job.devices,
            gpus=job.gpus,
            folder=str(self._paths.run(job.id).folder),
            can_pause=reading.can_pause,
            notice=job.notice and mask.text(job.notice, diagnosis.MAX_MESSAGE),
            phase_seconds_allowed=reading.phase_timeout_seconds,
            paused_at=job.paused_at,
            continues_id=job.continues_id,
            max_retries=job.max_retries,
            retry_number=job.retry_number,
            starts_after=job.starts_after if job.status is JobStatus.QUEUED else None,
            tags=job.tags,
            note=job.note or "",
            starred=job.starred,
        )

    def _failure(self, failure: Failure, job: Job) -> FailureView:
        mask = mask_of(job.env)
        detail = diagnosis.Detail.from_json(failure.detail)
        written = mask.text(failure.stacks)
        explanation = diagnosis.EXPLANATIONS[failure.kind]
        return FailureView(
            job=self._view(job, {}),
            kind=failure.kind,
            message=mask.text(failure.message, diagnosis.MAX_MESSAGE),
            seconds_without_progress=failure.seconds_without_progress,
            last_step=failure.last_step,
            log_tail=mask.text(failure.log_tail),
            stacks=written,
            where=stacks.where(written),
            at=failure.at,
            explanation=f"{explanation} {detail.sentence}" if detail.sentence else explanation,
            advice=detail.advice or diagnosis.advice(failure.kind, failure.log_tail),
            detail=detail,
        )


def _is_id(job_id: int) -> bool:
    """SQLite has no larger numbers, and refuses them with an error of its own."""
    return 0 < job_id < 2**63


def _mark_kind(event: Event, has_run: bool) -> MarkKind | None:
    """How an event of a job's timeline is marked on its curve; None where it is not."""
    match event.to_status:
        case None:
            return "stall" if event.message.startswith(stall.STALLED) else None
        case JobStatus.PAUSED:
            return "pause"
        case JobStatus.RUNNING:
            return "resume" if has_run else None
        case status:
            return "end" if status.ended else None


def _paused_seconds(job: Job) -> float:
    """How long it did not run between its first start and now."""
    if job.paused_at is None or not job.has_lived:
        return job.paused_seconds
    return job.paused_seconds + max(0.0, (utc_now() - job.paused_at).total_seconds())


def _elapsed_seconds(job: Job) -> float | None:
    """How long it ran, its pauses left out."""
    if job.started_at is None:
        return None
    until = job.finished_at or (job.paused_at if job.has_lived else None) or utc_now()
    return max(0.0, (until - job.started_at).total_seconds() - job.paused_seconds)


def _whole(number: float | None) -> int | None:
    return None if number is None else int(number)
