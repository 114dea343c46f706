"""One thread's life with one job: launch it, watch it, end it, say how it ended."""

import logging
import os
import signal
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime, timedelta
from typing import Any, Final

import psutil

from backend import diagnosis, hang, launching, log
from backend.checkpoints import GivenUpError
from backend.curve import Point
from backend.diagnosis import ExitRecord, Verdict
from backend.gpu import JobMeter, Measurement, MemorySource, empty_cache
from backend.mask import mask_of
from backend.memory_kills import KillCounts, KillWatch, MemoryKill, judge, snapshot
from backend.models import Cleanup, Failure, FailureKind, Job, JobStatus, RequestKind, utc_now
from backend.news import NewsKind
from backend.paths import RunPaths
from backend.pausing import Pause, has_obeyed
from backend.processes import (
    CouldNotStartError,
    LaunchSpec,
    Leader,
    Mark,
    ProcessId,
    adopt,
    end_tree,
    find_leader,
    find_marked,
    is_alive,
    is_of_this_boot,
    launch,
    send_kill,
)
from backend.progress import PhaseClock, ProgressReader, Reading
from backend.settings import Settings
from backend.spec import Ending, StopFile
from backend.stall import STALLED, StallClock, duration, timeout_message
from backend.store import MAX_RETRY_WAIT_SECONDS, Store, StoreError
from backend.usage import UsageLog

logger = logging.getLogger(__name__)

MEMORY_INTERVAL_SECONDS: Final = 1.0
SAVED_SECONDS: Final = 30.0
"""So often it is written down how far a running job has come, and what memory it took."""

RETRY_SECONDS: Final = 1.0
TAIL_LINES: Final = 100
ELSEWHERE: Final = (
    "The process lives on, but it is not this server's: the data folder is a copy, or was moved."
)
RESTARTED: Final = (
    "The machine was restarted while the job ran, and nothing was left to tell how far it came."
)
MAX_STACKS_BYTES: Final = 256 * 2**10

RETRIED: Final = frozenset((FailureKind.TIMEOUT, FailureKind.CRASHED, FailureKind.LOST))
"""The failures after which a job is retried automatically, if it was submitted so."""

RETRY_WAIT_SECONDS: Final = 10.0
"""Before the first automatic retry; doubled before each further one."""

_ENDING_SIGNALS: Final = (signal.SIGTERM, getattr(signal, "SIGKILL", signal.SIGTERM))


def _tell_nobody(job_id: int, kind: NewsKind) -> None:
    """Where nobody wants to know."""


class CannotResumeError(Exception):
    """A paused job cannot be started now; the message is a sentence that says why."""


@dataclass(frozen=True)
class Surroundings:
    """What every supervisor of one service works with."""

    settings: Settings
    store: Store
    source: MemorySource
    nonce: str
    tell: Callable[[int, NewsKind], None] = _tell_nobody
    """Told of each end and each warning; must return at once and raise nothing."""


@dataclass(frozen=True)
class Live:
    """What a supervisor knows of its job at this moment."""

    reading: Reading | None
    problem: str | None
    silent_seconds: float
    seconds_left: float
    stacks_taken: bool
    memory_bytes: int | None
    peak_bytes: int | None
    pid: int | None


class Supervisor:
    """Supervises one running job. `run` is the thread; the other methods may come from any."""

    def __init__(
        self,
        job: Job,
        paths: RunPaths,
        devices: Sequence[int],
        around: Surroundings,
        *,
        leader: Leader | None = None,
        launcher: Callable[[LaunchSpec], Leader] = launch,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """`leader` is given for a job that runs already and is adopted."""
        assert job.id is not None
        self.job_id = job.id
        self.devices = tuple(devices)
        self.survivors: Sequence[ProcessId] = ()
        """What lives on after the job's end in spite of everything."""
        self.lingers = False
        """Something of the ended job lives on or holds memory: its devices are not free yet."""
        self._job = job
        self._paths = paths
        self._settings = around.settings
        self._store = around.store
        self._source = around.source
        self._tell = around.tell
        self._mark = Mark(job.id, around.nonce)
        self._launcher = launcher
        self._clock = clock
        self._leader = leader
        self._meter = JobMeter(around.source, self.devices, job.memory if leader else None)
        self._usage = UsageLog(paths.usage)
        self._mask = mask_of(job.env)
        # What an earlier life has seen is cut before the launch, and must not be written back.
        seen = paths.seen if leader else None
        self._reader = ProgressReader(paths.progress, seen, mask=self._mask)
        self._looking = threading.Lock()
        self._unticked = False
        """`look` saw progress, and the clock has not been told: that is the next tick's."""
        self._stall = self._new_stall_clock()
        self._before = Reading.from_summary(job.progress) if job.progress else None
        spent = self._before.phase_seconds if self._before else {}
        self._phases = PhaseClock(spent, self._longest_tick)
        self._memory_read_at = -1e9
        self._saved_at = clock()
        self._has_looked = leader is None
        self._end_has_begun = False
        self._begun_before = False
        self._silent_at_end: float | None = None
        self._pids: set[int] = set()
        self._host_left_bytes = 0
        self._host_bytes: int | None = None
        self._host_available_bytes: int | None = None
        self._stacks_taken = False
        self._has_warned = False
        self._record: ExitRecord | None = None
        self._checkpoint = job.checkpoint
        self._notice: str | None = None
        kills = KillCounts.from_json(job.memory.get("kills")) if leader else None
        self._kills = KillWatch(kills)
        self._memory_kill = MemoryKill.NO
        self._wake = threading.Event()
        self._cancel = threading.Event()
        self._at_once = threading.Event()
        self._detach = threading.Event()
        self._pausing = threading.Event()
        self._pause: Pause | None = None
        if job.requested == RequestKind.CANCELLING:
            self._cancel.set()
        if job.requested == RequestKind.PAUSING:
            self.pause()

    # From other threads

    def cancel(self, *, now: bool = False) -> None:
        """Ask for the job's end; `now` gives it no time to save."""
        if now:
            self._at_once.set()
        self._cancel.set()
        self._wake.set()

    def pause(self) -> None:
        """Ask the job to save and to end, so that it can be resumed. One that does not goes on."""
        self._pausing.set()
        self._wake.set()

    def take_stacks(self) -> bool:
        """Have stacks.txt say what each process of the job does now; it goes on meanwhile. False
        where it has no process that could be asked."""
        leader = self._leader
        if leader is None or self._end_has_begun or not leader.alive():
            return False
        return hang.capture(
            leader.tree(afresh=True),
            self._paths.stacks,
            leader.id,
            source_folders=launching.source_folders(self._job),
        )

    def extend(self) -> bool:
        """Grant another full timeout; False where its end has begun."""
        if self._end_has_begun or self._cancel.is_set():
            return False
        self._stall.extend()
        return True

    def detach(self) -> None:
        """Stop watching; the job goes on without this server."""
        self._detach.set()
        self._wake.set()

    def cleared(self) -> bool:
        """Whether nothing of the ended job lives or holds memory any more. What lives is killed
        once more: it may have been out of reach of signals only for a while."""
        left = find_marked(self._mark, self.survivors)
        for row in left:
            send_kill(row.id)
        return not left and self._meter.back(self._pids.__contains__)

    def look(self) -> None:
        """Read progress.json now if it has changed, for somebody who will not wait for the next
        tick. To the stall clock it is as if that tick had seen it."""
        with self._looking:
            if self._reader.look():
                self._unticked = True

    def live(self) -> Live:
        stall, progressed = self._stall, self._unticked
        return Live(
            reading=self._timed(self._reader.reading),
            problem=self._reader.problem,
            silent_seconds=0.0 if progressed else stall.silent_seconds,
            seconds_left=stall.timeout_seconds if progressed else stall.seconds_left,
            stacks_taken=self._stacks_taken and not progressed,
            memory_bytes=self._meter.used_bytes,
            peak_bytes=self._meter.peak_bytes,
            pid=self._leader.id.pid if self._leader else None,
        )

    def points(self) -> Sequence[Point]:
        """The curve so far, where the job itself keeps no metrics.jsonl."""
        return self._reader.points

    # The thread

    def run(self) -> None:
        """Supervise the job to its verdict, or until `detach`."""
        ending: Mapping[str, Any] | None = None
        if self._leader is None:
            if self._cancel.is_set():
                self._finish(diagnosis.CANCELLED)
                return
            self._leader = self._begin()
            if self._leader is None:
                return
        elif self._leader.id.pid == 0 and self._runs_elsewhere():
            self._leader = None  # there is nothing of it to end or to measure here
            self._finish(diagnosis.failed(FailureKind.LOST, ELSEWHERE))
            return
        else:
            ending = self._job.ending or self._ending_in_folder()
        try:
            if ending:
                self._carry_through(self._leader, ending)
                return
            while not self._detach.is_set() and not self.tick(self._clock()):
                self._wake.wait(self._settings.poll_seconds)
                self._wake.clear()
        finally:
            if self._detach.is_set():
                self._save(**self._state())
            self._leader.let_go()

    def tick(self, now: float) -> bool:
        """One look at the job; True once it has its verdict."""
        assert self._leader is not None
        known = self._reader.reading or self._before
        self._phases.tick(now, known.phase if known else None)
        if not self._leader.alive():
            self._end_by_itself(self._leader)
            return True
        self._has_looked = True
        if self._cancel.is_set():
            if self._end(self._leader, self._settings.cancel_grace_seconds, diagnosis.CANCELLED):
                self._finish(diagnosis.CANCELLED)
            return True
        if now - self._memory_read_at >= MEMORY_INTERVAL_SECONDS:
            self._memory_read_at = now
            self._read_memory(self._leader, afresh=False)
        if not self._progressed(now):
            self._stall.tick(now)
        if self._pausing.is_set():
            self._see_to_pause(self._leader, now)
        if self._stall.warned and not self._stacks_taken:
            self._stacks_taken = self.take_stacks()
            if self._stacks_taken:
                silent = duration(round(self._stall.silent_seconds, 1))
                told = f"{STALLED}{silent}; what it was doing was written into stacks.txt"
                self._store.try_to_note(self.job_id, told)
        if self._stall.warned and not self._has_warned:
            self._tell(self.job_id, NewsKind.ABOUT_TO_TIME_OUT)
        self._has_warned = self._stall.warned
        if self._stall.expired:
            return self._time_out(self._leader, now)
        return False

    def _progressed(self, now: float, *, closely: bool = False) -> bool:
        with self._looking:
            changed = self._reader.look(closely=closely)
            if not changed and not self._unticked:
                return False
            reading = self._reader.reading
            allowed = reading.phase_timeout_seconds if reading else None
            self._stall.progressed(now, allowed or self._job.timeout_seconds)
            self._stacks_taken = False
            self._unticked = False
        return True

    def _see_to_pause(self, leader: Leader, now: float) -> None:
        reading = self._reader.reading
        try:
            if self._pause is None:
                self._pause = Pause(self._paths, self._settings.pause_grace_seconds, now)
            self._pause.tell(leader, reading)
            if self._pause.saves(now, reading):
                self._stall.progressed(now)
            goes_on = self._pause.why_not(now, reading)
            if goes_on is None:
                return
            self._pause.withdraw()
        except OSError as error:
            goes_on = f"It was not paused: stop.json cannot be written ({error.strerror})."
        # First: whoever asks again as soon as it is withdrawn must be heard.
        self._pause = None
        self._pausing.clear()
        try:
            self._store.withdraw_pause(self.job_id, self._mask.text(goes_on))
        except StoreError as error:
            logger.warning(
                "Job %s: its pause is not withdrawn, but goes on. %s", self.job_id, error
            )
            self._pausing.set()

    def _begin(self) -> Leader | None:
        """Start the job; None where that was not to be, and its verdict is written, or this server
        closes before that, and the next one starts it."""
        try:
            spec = self._prepare()
            if not self._gives_up():
                return self._launch(spec)
        except GivenUpError:
            pass
        except CannotResumeError as error:
            self._notice = self._mask.text(f"It was not resumed: {error}")
            self._finish(Verdict(JobStatus.PAUSED))
            return None
        except CouldNotStartError as error:
            self._finish(diagnosis.failed(FailureKind.COULD_NOT_START, str(error), mask=self._mask))
            return None
        if self._cancel.is_set():
            self._finish(diagnosis.CANCELLED)
        return None

    def _gives_up(self) -> bool:
        return self._cancel.is_set() or self._detach.is_set()

    def _prepare(self) -> LaunchSpec:
        """Raises CouldNotStartError, CannotResumeError, GivenUpError."""
        if len(self.devices) < self._job.gpus:
            needs = f"{self._job.gpus} GPU" + ("s" if self._job.gpus > 1 else "")
            raise CouldNotStartError(f"It needs {needs}, and this machine has fewer now.")
        try:
            spec, begin = launching.prepare(
                self._job, self._paths, self.devices, self._mark, self._store, self._gives_up
            )
        except (OSError, ValueError) as error:
            what = f"The run folder cannot be written: {error}."
            if self._job.paused_at is not None:
                raise CannotResumeError(what) from error  # there may be room again tomorrow
            raise CouldNotStartError(what) from error
        notes = [self._mask.text(note) for note in begin.notes]
        for note in notes:
            self._store.try_to_note(self.job_id, note)
        self._notice = " ".join(notes) or None
        self._checkpoint = begin.checkpoint.name if begin.checkpoint else None
        if begin.checkpoint is not None:
            self._store.try_to_note(self.job_id, f"Goes on from {begin.checkpoint.name}")
        else:
            self._before = None  # of a life whose steps are made anew
        # What an earlier life left has been cut to the place where this one begins.
        self._reader = ProgressReader(self._paths.progress, self._paths.seen, mask=self._mask)
        return spec

    def _launch(self, spec: LaunchSpec) -> Leader:
        """Raises CouldNotStartError."""
        self._kills.look()
        leader = self._launcher(spec)
        self._stall = self._new_stall_clock()
        # Where this cannot be written the next server finds the job by its mark.
        self._save(
            pid=leader.id.pid,
            process_start=leader.id.started,
            memory=self._memory(),
            notice=self._notice,
            checkpoint=self._checkpoint,
        )
        self._notice = None
        return leader

    def _end_by_itself(self, leader: Leader) -> None:
        """The leader is gone: end what it left behind, and find out how it ended."""
        with self._looking:
            self._reader.look(closely=True)
        record = self._record = self._read_record()
        code = leader.exit_code()
        self._memory_kill = self._judge_kill(record, code)
        verdict = diagnosis.verdict_of(record, code, self._memory_kill)
        if has_obeyed(self._paths, record, code, self._reader.reading):
            verdict = Verdict(JobStatus.PAUSED, finished_at=verdict.finished_at)
        asked = self._job.requested == RequestKind.CANCELLING  # by an earlier server, which died
        if asked and record is not None and record.signal in _ENDING_SIGNALS:
            verdict = replace(diagnosis.CANCELLED, finished_at=verdict.finished_at)
        elif verdict.kind is FailureKind.LOST:
            verdict = diagnosis.CANCELLED if asked else self._how_lost(leader)
        if record is None:
            self._intend(verdict)  # nobody but us knows
        if self._end(leader, self._settings.cancel_grace_seconds, verdict):
            self._finish(verdict)

    def _runs_elsewhere(self) -> bool:
        """Whether the process that was written down lives, though it is not this folder's."""
        return is_alive(ProcessId(self._job.pid or 0, self._job.process_start or ""))

    def _how_lost(self, leader: Leader) -> Verdict:
        """What to say of a job that is gone without a word."""
        if not is_of_this_boot(leader.id):
            return diagnosis.failed(FailureKind.LOST, RESTARTED)
        return diagnosis.failed(FailureKind.LOST, diagnosis.NO_WORD)

    def _time_out(self, leader: Leader, now: float) -> bool:
        """The timeout is over: one last look, then the end."""
        if self._progressed(now, closely=True):
            return False
        if not leader.alive():
            return False  # the next tick, which comes at once, tells how it ended
        message = timeout_message(self._stall.timeout_seconds)
        logger.info("Job %s: %s", self.job_id, message)
        self._stacks_taken = self.take_stacks() or self._stacks_taken
        verdict = diagnosis.failed(FailureKind.TIMEOUT, message)
        self._end_has_begun = True
        self._read_memory(leader, afresh=True)
        self._intend(verdict)
        if self._end(leader, self._settings.stall_grace_seconds, verdict):
            self._finish(verdict)
        return True

    def _intend(self, verdict: Verdict) -> None:
        """Write down what the job is about to be ended for, before the first signal: a server that
        is killed in between would leave a job that only died of a signal."""
        self._save(ending=self._as_ending(verdict), memory=self._memory(ending=True))

    def _as_ending(self, verdict: Verdict) -> dict[str, Any]:
        return {**asdict(verdict), "silent_seconds": self._silent_seconds(verdict)}

    def _ending_in_folder(self) -> dict[str, Any] | None:
        """What an earlier server had begun to end the job for, where its database could not be
        written, or did not have to be: stop.json is there before the first signal too."""
        stop = StopFile.read(self._paths)
        if stop is None or stop.ending is None or stop.asked_at < self._job.life_began_at:
            return None
        # Of a job that had ended by itself just before, its own word counts.
        record = self._read_record()
        ended = _instant(record.finished_at, self._job.life_began_at) if record else None
        return None if ended and ended < stop.asked_at else stop.ending.model_dump()

    def _carry_through(self, leader: Leader, ending: Mapping[str, Any]) -> None:
        """Go on with an end that an earlier server had begun."""
        logger.info("Job %s: its end had begun and is carried through", self.job_id)
        self._begun_before = self._meter.used_bytes is not None
        verdict = Verdict(
            JobStatus(ending["status"]),
            FailureKind(ending["kind"]) if ending["kind"] else None,
            self._mask.text(ending["error"], diagnosis.MAX_MESSAGE) if ending["error"] else None,
            ending["finished_at"],
        )
        self._silent_at_end = ending["silent_seconds"]
        if not leader.alive():
            record = diagnosis.read_exit(self._paths.exit)
            verdict = replace(verdict, finished_at=record.finished_at if record else None)
        self._stacks_taken = verdict.kind is FailureKind.TIMEOUT  # by the server that began
        timed_out = verdict.kind is FailureKind.TIMEOUT
        settings = self._settings
        grace = settings.stall_grace_seconds if timed_out else settings.cancel_grace_seconds
        if self._end(leader, grace, verdict):
            self._finish(verdict)

    def _end(self, leader: Leader, grace_seconds: float, verdict: Verdict) -> bool:
        """End every process of the job; False where this server closes before that is done, and
        the next one finds the job and goes on from here."""
        self._end_has_begun = True
        if leader.alive():
            if not self._begun_before:  # that server read it just in time, and we would be late
                self._read_memory(leader, afresh=True)
            _try_publish(self._paths, self._as_ending(verdict))
        ended = end_tree(leader, grace_seconds, self._detach, at_once=self._at_once)
        while ended is not None and leader.know(_left_behind(self._paths)):
            ended = end_tree(leader, grace_seconds, self._detach, at_once=self._at_once)
        if ended is None:
            return False
        self.survivors = tuple(row.id for row in ended.survivors)
        self._host_left_bytes = sum(row.memory_bytes for row in ended.survivors)
        if ended.killed:
            when = f"did not stop within {duration(grace_seconds)} and were killed"
            if self._at_once.is_set():
                when = "were killed at once, as was asked"
            self._store.try_to_note(self.job_id, f"{ended.killed} process(es) {when}")
        if ended.survivors:
            pids = ", ".join(str(row.id.pid) for row in ended.survivors)
            self._store.try_to_note(
                self.job_id, f"Could not be ended, not even by SIGKILL: pid {pids}"
            )
        return True

    def _timed(self, reading: Reading | None) -> Reading | None:
        return reading and replace(reading, phase_seconds=self._phases.seconds)

    def _progress(self) -> dict[str, Any]:
        """The last good reading, if need be that of an earlier server."""
        reading = self._timed(self._reader.reading or self._before)
        return reading.summary() if reading else {}

    def _state(self) -> dict[str, Any]:
        """What a later server could not find out about the running job."""
        return {
            "memory": self._memory(ending=self._end_has_begun),
            "progress": self._progress(),
            "checkpoint": self._newest_checkpoint(),
        }

    def _memory(self, *, ending: bool = False) -> dict[str, Any]:
        before = self._kills.before
        kills = {"kills": before.as_json()} if before else {}
        return {**self._meter.state(ending=ending), **kills}

    def _newest_checkpoint(self) -> str | None:
        """What the job has sealed last, else what it went on from."""
        reading = self._reader.reading
        return (reading.checkpoint if reading else None) or self._checkpoint

    def _read_record(self) -> ExitRecord | None:
        """What the runner wrote, unless that was of a life before a pause."""
        record = diagnosis.read_exit(self._paths.exit, self._mask)
        if record is None or self._job.paused_at is None:
            return record
        return record if _instant(record.finished_at, self._job.life_began_at) else None

    def _judge_kill(self, record: ExitRecord | None, exit_code: int | None) -> MemoryKill:
        """Whether the kernel killed the job, or a part of it, because memory ran out."""
        if not diagnosis.was_killed(record, exit_code):
            return MemoryKill.NO
        return judge(
            self._kills.before,
            snapshot(),
            pids=self._pids,
            used_bytes=self._host_bytes,
            available_bytes=self._host_available_bytes,
        )

    def _save(self, **facts: Any) -> None:
        """Write down what a later server should know; a job goes on if that cannot be done."""
        try:
            self._store.update_running(self.job_id, **facts)
        except StoreError as error:
            logger.warning("Job %s: %s not written down. %s", self.job_id, sorted(facts), error)

    def _finish(self, verdict: Verdict) -> None:
        """Measure the cleanup and write the verdict with all that belongs to it, once."""
        with self._looking:
            self._reader.look(closely=True)
        cleanups: list[Cleanup] = []
        if self._leader is not None:
            cache = empty_cache(import_torch=False)
            measurements = self._meter.settle(
                self._pids.__contains__, self._host_left_bytes, self._detach
            )
            if measurements is None:
                return  # the server closes: the next one measures, and writes the verdict
            self.lingers = bool(self.survivors) or any(m.released is False for m in measurements)
            cleanups = [
                _cleanup(self.job_id, _reason(verdict), measured, cache.freed_bytes)
                for measured in measurements
            ]
        self._write(verdict, self._failure(verdict), cleanups, self._progress())

    def _failure(self, verdict: Verdict) -> Failure | None:
        """All that is kept of a failure; None where the verdict is none."""
        if verdict.kind is None:
            return None
        reading = self._reader.reading or self._before
        stacks = self._stacks()
        silent_seconds = self._silent_seconds(verdict)
        last_step = reading.current_step if reading else None
        detail = diagnosis.detail_of(
            verdict.kind,
            record=self._record,
            stacks_text=stacks,
            params=self._job.params,
            non_finite=reading.non_finite if reading else None,
            last_step=last_step,
            silent_seconds=silent_seconds,
            phase=reading.phase if reading else None,
            memory_kill=self._memory_kill,
            mask=self._mask,
        )
        return Failure(
            job_id=self.job_id,
            kind=verdict.kind,
            message=verdict.error or "",
            seconds_without_progress=silent_seconds,
            last_step=last_step,
            log_tail=log.tail(self._paths.log, TAIL_LINES, self._mask),
            stacks=stacks,
            detail=detail.as_json(),
        )

    def _values(self, verdict: Verdict) -> dict[str, Any]:
        """What a verdict changes in the job's row besides its state."""
        ended_at = _instant(verdict.finished_at, self._job.life_began_at)
        values: dict[str, Any] = {
            "error": verdict.error,
            "failure_kind": verdict.kind,
            "ending": None,
            "checkpoint": self._newest_checkpoint(),
        }
        if verdict.status is JobStatus.PAUSED:
            values |= {
                "paused_at": ended_at or utc_now(),
                "notice": self._notice,
                **dict.fromkeys(("pid", "process_start")),
                "memory": {},
            }
        elif ended_at is not None:
            values["finished_at"] = ended_at
        return values

    def _retry(self, verdict: Verdict) -> Job | None:
        """The job that is queued in the place of this one, if it was submitted so."""
        job = self._job
        if verdict.kind not in RETRIED or job.retry_number >= job.max_retries:
            return None
        if self._cancel.is_set() or verdict.error == ELSEWHERE:
            return None
        wait_seconds = min(RETRY_WAIT_SECONDS * 2.0**job.retry_number, MAX_RETRY_WAIT_SECONDS)
        return Job(
            name=job.name,
            recipe=job.recipe,
            params=job.params,
            command=job.command,
            env=job.env,
            timeout_seconds=job.timeout_seconds,
            gpus=job.gpus,
            parent_id=job.id,
            continues_id=job.id,
            max_retries=job.max_retries,
            retry_number=job.retry_number + 1,
            starts_after=utc_now() + timedelta(seconds=wait_seconds),
        )

    def _write(
        self,
        verdict: Verdict,
        failure: Failure | None,
        cleanups: Sequence[Cleanup],
        progress: Mapping[str, Any],
    ) -> None:
        """Write the verdict, and try until that is done."""
        while True:
            pauses = verdict.status is JobStatus.PAUSED
            if pauses and self._cancel.is_set():
                verdict = replace(diagnosis.CANCELLED, finished_at=verdict.finished_at)
                pauses = False
            message = verdict.error or _SENTENCES[verdict.status]
            try:
                written = self._store.change(
                    self.job_id,
                    JobStatus.RUNNING,
                    verdict.status,
                    message,
                    failure=failure,
                    cleanups=cleanups,
                    retry=self._retry(verdict),
                    unless=RequestKind.CANCELLING if pauses else None,
                    progress=dict(progress),
                    **self._values(verdict),
                )
            except StoreError as error:
                logger.warning("Job %s: its verdict cannot be written yet. %s", self.job_id, error)
                if not error.passing:
                    # Something in what was to be kept beside it; the verdict itself matters most.
                    cleanups, progress = (), {}
                    failure = failure and Failure(
                        job_id=self.job_id, kind=failure.kind, message=failure.message
                    )
                if self._detach.wait(RETRY_SECONDS):
                    return  # the next server comes to the same verdict
                continue
            if not written and pauses:
                self._cancel.set()  # a cancel came in this instant; or there is a verdict already
                continue
            if not written:
                logger.error("Job %s had a verdict already; %s dropped", self.job_id, verdict)
            elif verdict.status.ended:
                self._tell(self.job_id, NewsKind.ENDED)
            return

    def _silent_seconds(self, verdict: Verdict) -> float | None:
        """How long the job had been silent at its end; None where nobody was looking."""
        if self._silent_at_end is not None:
            return self._silent_at_end
        if verdict.kind is FailureKind.LOST or not self._has_looked:
            return None
        return round(self._stall.silent_seconds, 1)

    def _read_memory(self, leader: Leader, *, afresh: bool) -> None:
        rows = leader.tree(afresh)
        self._pids |= {row.id.pid for row in rows}
        if rows:  # the last reading while it ran stays
            self._host_bytes = sum(row.memory_bytes for row in rows)
            self._host_available_bytes = psutil.virtual_memory().available
            self._kills.look()
        self._meter.read(sum(row.memory_bytes for row in rows))
        self._usage.look(rows, self._clock(), self._gpu_use)
        if self._clock() - self._saved_at >= SAVED_SECONDS:
            self._saved_at = self._clock()
            self._save(**self._state())

    def _gpu_use(self) -> tuple[int | None, float | None]:
        """Bytes in use on its devices by the last reading, and their load, the mean, in percent."""
        if not self.devices:
            return None, None
        loads = [self._source.load_percent(index) for index in self.devices]
        known = [load for load in loads if load is not None]
        return self._meter.used_bytes, sum(known) / len(known) if known else None

    def _stacks(self) -> str:
        if not self._stacks_taken:
            return ""
        content = log.read_tail(self._paths.stacks, MAX_STACKS_BYTES, self._mask)
        return content.decode("utf-8", "replace")

    def _new_stall_clock(self) -> StallClock:
        return StallClock(self._job.timeout_seconds, self._clock(), self._longest_tick)

    @property
    def _longest_tick(self) -> float:
        return max(2.0, 4 * self._settings.poll_seconds)


_SENTENCES: Final[Mapping[JobStatus, str]] = {
    JobStatus.COMPLETED: "Completed",
    JobStatus.CANCELLED: "Cancelled",
    JobStatus.PAUSED: "Paused",
}


def leader_of(job: Job, paths: RunPaths, nonce: str) -> Leader | None:
    """The leader of a job that another server process claimed, alive or gone; None where that
    server died before the job had begun, so that it can be launched now."""
    assert job.id is not None
    mark = Mark(job.id, nonce)
    if job.pid is not None and job.process_start is not None:
        return adopt(ProcessId(job.pid, job.process_start), mark)
    leader = find_leader(mark)  # the server died between the launch and writing down whom
    return leader if leader.alive() or _has_begun(job, paths) else None


def _has_begun(job: Job, paths: RunPaths) -> bool:
    """Whether a line of the training may have run. The runner makes the file for the stacks before
    the first, and what it, or the kernel, has to say against the start is in the log."""
    if paths.folder.is_symlink():
        return True
    if job.paused_at is not None:
        # All of that is there of the life before the pause. The runner first removes exit.json.
        record = diagnosis.read_exit(paths.exit)
        return record is None or _instant(record.finished_at, job.life_began_at) is not None
    signs = [paths.stacks, paths.exit]
    if job.continues_id is None:  # else the server itself writes these before the launch
        signs += [paths.progress, paths.metrics]
    return any(map(os.path.lexists, signs)) or bool(log.read_tail(paths.log, 1))


def _left_behind(paths: RunPaths) -> list[ProcessId]:
    """The orphans that the runner still had when it ended, and that only it could know of."""
    record = diagnosis.read_exit(paths.exit)
    return [ProcessId(*left) for left in record.left] if record else []


def _reason(verdict: Verdict) -> str:
    if verdict.status in (JobStatus.CANCELLED, JobStatus.PAUSED):
        return str(verdict.status)
    return "ended" if verdict.kind is None else str(verdict.kind)


def _cleanup(job_id: int, reason: str, m: Measurement, freed: int | None) -> Cleanup:
    return Cleanup(
        job_id=job_id,
        reason=reason,
        device=m.device,
        source=m.source,
        baseline_bytes=m.baseline_bytes,
        before_bytes=m.before_bytes,
        peak_bytes=m.peak_bytes,
        after_bytes=m.after_bytes,
        settle_seconds=m.settle_seconds,
        released=m.released,
        holders=[holder.as_json() for holder in m.holders],
        cache_freed_bytes=freed,
    )


def _instant(text: str | None, earliest: datetime) -> datetime | None:
    """The instant that a job's own file names; None where it cannot have been then."""
    try:
        instant = datetime.fromisoformat(text or "")
        instant = (instant if instant.tzinfo else instant.replace(tzinfo=UTC)).astimezone(UTC)
    except (ValueError, OverflowError):
        return None
    return instant if earliest <= instant <= utc_now() else None


def _try_publish(paths: RunPaths, ending: Mapping[str, Any]) -> None:
    try:
        StopFile(asked_at=utc_now(), ending=Ending.model_validate(ending)).publish(paths)
    except (OSError, ValueError) as error:
        logger.warning("%s cannot be written: %s", paths.stop, error)
