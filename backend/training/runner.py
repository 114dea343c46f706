"""Runs one script as `python` would, and records how it ended in the run folder's exit.json.

    python runner.py /abs/script.py args…
    python runner.py -m some.module args…

The process that the server knows forks at once. The child runs the script; the parent passes
signals on, waits, writes exit.json and ends as the child did. So an ending is recorded even where
the script was killed or the disk is full, and no code of a training can take the record with it.

Standard library only, Python 3.8 or newer; heavy imports only where they are needed, because each
job waits for them.
"""

# ruff: noqa: PTH, SIM105
# (pathlib and contextlib would cost each job milliseconds at its start, and so would typing.)
# Annotations are quoted, because to import __future__ costs more than all of them.
import builtins
import os
import signal
import sys
import time

TYPE_CHECKING = False
if TYPE_CHECKING:
    from types import TracebackType
    from typing import Any

EXIT_FILE = "exit.json"
ROOM_FILE = "exit.json.room"
STACKS_FILE = "stacks.txt"
MAX_TRACEBACK_BYTES = 64 * 1024
MAX_MESSAGE_CHARACTERS = 4096
MAX_NOTE_BYTES = 1024 * 1024
MAX_LEFT = 10_000
ROOM_BYTES = 128 * 1024
"""What is reserved for the child's note, and as much again for exit.json."""

_CAREFULLY = getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0)
"""Opened so, a link is refused and a FIFO does not block."""

_PR_SET_CHILD_SUBREAPER = 36  # linux/prctl.h


def main() -> None:
    started_at = _now()
    folder = _run_folder()
    if folder:
        folder.remove(EXIT_FILE)  # of a life before a pause
        folder.reserve()
    if hasattr(os, "fork"):
        _lead(folder, started_at)  # comes back in the child only
        _run(sys.argv[1:], folder)
    else:
        _run_unattended(folder, started_at)


# The parent.


def _lead(folder: "RunFolder | None", started_at: str) -> None:
    """Fork; return in the child, and never in the parent."""
    watched: set[int] = {
        signal.SIGTERM,
        signal.SIGINT,
        signal.SIGHUP,
        signal.SIGUSR1,
        signal.SIGUSR2,
    }
    stacks_signal = _stacks_signal()
    if stacks_signal:
        watched.add(stacks_signal)
    # Blocked signals wait for sigwait, or for the child to be ready: none can slip in between.
    inherited_mask = signal.pthread_sigmask(signal.SIG_BLOCK, watched | {signal.SIGCHLD})
    # A default SIGCHLD is thrown away on BSDs, and an ignored one reaps the child behind our back.
    inherited_handler = signal.signal(signal.SIGCHLD, lambda *_: None)
    _adopt_orphans()
    child = os.fork()
    if child == 0:
        signal.signal(signal.SIGCHLD, inherited_handler or signal.SIG_DFL)
        _arm_stacks(folder, stacks_signal)
        signal.pthread_sigmask(signal.SIG_SETMASK, inherited_mask)
        return

    while True:
        # WNOHANG: a child may have ended, without a pending SIGCHLD, before the first sigwait.
        reaped, status = os.waitpid(-1, os.WNOHANG)
        if reaped == child:
            break
        if not reaped:
            received = signal.sigwait(watched | {signal.SIGCHLD})
            if received != signal.SIGCHLD:
                os.kill(child, received)

    killed_by = os.WTERMSIG(status) if os.WIFSIGNALED(status) else None
    code = os.WEXITSTATUS(status) if killed_by is None else None
    if folder:
        exception = _take_exception(folder, _note_name(child))
        ending = _ending(code, killed_by, exception, started_at)
        if _has_children():
            ending.update(_left())
        _record(folder, ending)
    if killed_by is not None:
        _die_of(killed_by)
    os._exit(code or 0)


def _adopt_orphans() -> None:
    """Become the parent of whatever of the job loses its own, so that it stays in this tree.

    Else a daemon (forked twice, its environment cleaned) would be process 1's child, and nothing
    would tell whose it was. Not inherited by the child. Source: prctl(2).
    """
    if sys.platform == "linux":
        try:
            import _ctypes  # what ctypes is made of: the rest of it takes three times as long

            libc = _ctypes.dlopen(None, 0)  # type: ignore[arg-type]
            prctl = _ctypes.dlsym(libc, "prctl")
            _ctypes.call_function(prctl, (_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0))
        except Exception:  # noqa: BLE001, S110 - not in this Python: orphans go to process 1
            pass


def _has_children() -> bool:
    """Whether a child is still alive; those that have ended are reaped."""
    try:
        while os.waitpid(-1, os.WNOHANG)[0]:
            pass
    except ChildProcessError:
        return False
    return True


def _left() -> "dict[str, Any]":
    """Who of this process's descendants lives: soon nobody will know that they were the job's.

    Each as its pid and its start in clock ticks since the boot (field 22 of /proc/<pid>/stat),
    beside the boot's id: a pid is used again.
    """
    try:
        with open("/proc/sys/kernel/random/boot_id", encoding="ascii") as file:
            boot = file.read().strip()
        started: dict[int, int] = {}
        children: dict[int, list[int]] = {}
        for pid in map(int, filter(str.isdigit, os.listdir("/proc"))):
            try:
                with open("/proc/{}/stat".format(pid), "rb") as stat:
                    line = stat.read()
            except OSError:
                continue  # gone meanwhile
            # proc(5): the name, field 2, may hold spaces and brackets: count from its last bracket.
            fields = line[line.rindex(b")") + 2 :].split()
            if fields[0] not in (b"Z", b"X"):
                started[pid] = int(fields[19])
                children.setdefault(int(fields[1]), []).append(pid)
    except (OSError, ValueError):  # no /proc
        return {}
    found: list[int] = []
    waiting = [os.getpid()]
    while waiting:
        born = children.get(waiting.pop(), [])
        found += born
        waiting += born
    return {"boot": boot, "left": [[pid, started[pid]] for pid in found[:MAX_LEFT]]}


def _die_of(number: int) -> None:
    """End this process by a signal that ended its child, leaving no second core dump."""
    import resource

    hard = resource.getrlimit(resource.RLIMIT_CORE)[1]
    # Linux hands a core to a piped handler (systemd-coredump) whatever the limit, except for 1.
    resource.setrlimit(resource.RLIMIT_CORE, (0 if hard == 0 else 1, hard))
    if number not in (signal.SIGKILL, signal.SIGSTOP):
        signal.signal(number, signal.SIG_DFL)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {number})
    os.kill(os.getpid(), number)
    os._exit(128 + number)  # process 1 of a container does not die of a signal to itself


def _take_exception(folder: "RunFolder", note: str) -> "dict[str, str] | None":
    """What the child left about its uncaught exception; the note itself is removed."""
    import json

    try:
        with open(folder.open(note, os.O_RDONLY), "rb") as file:
            exception = json.loads(file.read(MAX_NOTE_BYTES))
    except (OSError, ValueError, RecursionError):  # none, or none of the runner's
        exception = None
    folder.remove(note)
    return exception if isinstance(exception, dict) else None


# The child.


def _arm_stacks(folder: "RunFolder | None", stacks_signal: "int | None") -> None:
    """Let a signal append the stacks of all threads to stacks.txt, even while the GIL is held."""
    import faulthandler

    try:
        faulthandler.enable()
        if folder and stacks_signal:
            stacks = folder.open(STACKS_FILE, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
            faulthandler.register(stacks_signal, file=stacks, all_threads=True, chain=False)
    except (OSError, RuntimeError, ValueError):  # no folder, no stderr, or no such signal
        if stacks_signal:
            signal.signal(stacks_signal, signal.SIG_IGN)  # an ask for stacks must not kill


def _run(arguments: "list[str]", folder: "RunFolder | None") -> None:
    """Run the script in this process; an uncaught exception is noted and goes its usual way."""
    myself = os.getpid()
    try:
        _run_as_main(arguments, folder)
    except BaseException as error:
        frames = _without_runner(error.__traceback__)
        if folder and os.getpid() == myself:  # a fork of the script comes by here as well
            _leave_exception(folder, error, frames)
        hook = sys.excepthook

        def show(kind: "type[BaseException]", value: BaseException, _: "Any") -> None:
            hook(kind, value.with_traceback(frames), frames)

        sys.excepthook = show
        raise


def _run_as_main(arguments: "list[str]", folder: "RunFolder | None") -> None:
    if not arguments or arguments == ["-m"]:
        sys.exit("usage: runner.py (-m module | script.py) [argument …]")
    # A module of its own, so that pickle, multiprocessing and threads that outlive the script's
    # last line find in __main__ what they would find without a runner.
    module = type(sys)("__main__")
    vars(module).update(__builtins__=builtins, __annotations__={})
    safe_path = getattr(sys.flags, "safe_path", False)  # `python -P`: no folder of the script's

    if arguments[0] == "-m":
        import runpy

        # What `python -m` itself calls: it gives its own message where there is no such module.
        run_module_as_main = runpy._run_module_as_main  # type: ignore[attr-defined]
        if not safe_path:
            sys.path[0] = os.getcwd()
        sys.argv = arguments[1:]
        sys.modules["__main__"] = module
        run_module_as_main(arguments[1])
        return

    script = arguments[0]
    try:
        with open(script, "rb") as file:
            source = file.read()
    except OSError as error:
        # The words of `python missing.py`, and its exit code.
        reason = "[Errno {}] {}".format(error.errno, error.strerror)
        print(
            "{}: can't open file {!r}: {}".format(sys.executable, script, reason), file=sys.stderr
        )
        if folder:
            _leave_exception(folder, error, None)
        sys.exit(2)
    if not safe_path:
        sys.path[0] = os.path.dirname(os.path.realpath(script))
    sys.argv = arguments
    sys.modules["__main__"] = module
    loader = type(globals()["__loader__"])("__main__", script)  # inspect asks it for the source
    vars(module).update(__file__=script, __cached__=None, __loader__=loader)
    exec(compile(source, script, "exec", dont_inherit=True), vars(module))


def _leave_exception(
    folder: "RunFolder", error: BaseException, frames: "TracebackType | None"
) -> None:
    """Leave a note of what ended the script; none where it ended as it meant to."""
    if isinstance(error, SystemExit) and not isinstance(error.code, str):
        return
    import traceback

    kind = type(error)
    name = kind.__qualname__
    if kind.__module__ not in ("builtins", "__main__"):
        name = "{}.{}".format(kind.__module__, name)
    try:
        message = str(error)[:MAX_MESSAGE_CHARACTERS]
        text = "".join(traceback.format_exception(kind, error, frames))
    except Exception as unprintable:  # noqa: BLE001 - an exception may do anything in its __str__
        message = "<no message: {}>".format(type(unprintable).__name__)
        text = "".join(traceback.format_tb(frames))
    # A message may have many lines (CUDA's advice, a validation's fields); its first says what.
    summary = message.strip().split("\n", 1)[0]
    if isinstance(error, SystemExit):
        line = text = summary  # sys.exit("a sentence") prints the sentence alone
    else:
        line = "{}: {}".format(name, summary) if summary else name
    encoded = text.encode("utf-8", "backslashreplace")[-MAX_TRACEBACK_BYTES:]
    exception = {
        "type": name,
        "message": message,
        "line": line,
        "traceback": encoded.decode("utf-8", "ignore"),
    }
    try:
        folder.renew()
    except OSError:
        return  # it is gone; the traceback is in the log all the same
    folder.give_room(ROOM_BYTES)
    folder.publish(_note_name(os.getpid()), exception, dict(exception, traceback=""))


def _without_runner(frames: "TracebackType | None") -> "TracebackType | None":
    while frames and frames.tb_frame.f_code.co_filename == __file__:
        frames = frames.tb_next
    return frames


# Where there is no fork.


def _run_unattended(folder: "RunFolder | None", started_at: str) -> None:
    """Run the script in the only process there is; a death by force leaves no exit.json."""
    import atexit

    code = 0

    def record() -> None:
        if folder:
            exception = _take_exception(folder, _note_name(os.getpid()))
            _record(folder, _ending(code, None, exception, started_at))

    atexit.register(record)  # registered first, so it runs after the script's own
    try:
        _run(sys.argv[1:], folder)
    except SystemExit as error:
        code = error.code if isinstance(error.code, int) else int(error.code is not None)
        raise
    except BaseException:
        code = 1
        raise


# What both need.


class RunFolder:
    """The run folder as it was at the start, whatever is put in its place later."""

    def __init__(self, path: str) -> None:
        """Raises OSError: there is none, or it is a link."""
        self._path = path
        self._prefix = os.path.join(path, "")
        self._descriptor: int | None = None  # None: this system opens no file by a folder's
        self._open()
        self._room: int | None = None

    def _open(self) -> None:
        if os.open in os.supports_dir_fd:
            self._descriptor = os.open(self._path, os.O_RDONLY | os.O_DIRECTORY | _CAREFULLY)
            self._status = os.fstat(self._descriptor)
            self._prefix = ""

    def renew(self) -> None:
        """Hold it still, where the script closed every descriptor that it did not know.

        Raises:
            OSError: another one is in its place.
        """
        if self._descriptor is not None and not _is_open(self._descriptor, self._status):
            before = self._status
            self._open()
            if not os.path.samestat(self._status, before):
                raise FileNotFoundError(self._path)

    def open(self, name: str, flags: int) -> int:
        """A descriptor of one of its files, never of what a link leads to. Raises OSError."""
        return os.open(self._prefix + name, flags | _CAREFULLY, 0o666, dir_fd=self._descriptor)

    def remove(self, name: str) -> None:
        try:
            os.remove(self._prefix + name, dir_fd=self._descriptor)
        except OSError:
            pass

    def reserve(self) -> None:
        """Take room on the disk, by a file without a name: it goes with this job's last process."""
        self.remove(ROOM_FILE)
        try:
            flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | getattr(os, "O_TEMPORARY", 0)
            self._room = room = self.open(ROOM_FILE, flags)
            self._room_status = os.fstat(room)
            self.remove(ROOM_FILE)
            try:
                os.posix_fallocate(room, 0, 2 * ROOM_BYTES)
            except (AttributeError, OSError):  # not on this system, or not on this file system
                os.write(room, bytes(2 * ROOM_BYTES))
        except OSError:
            pass  # it is full or read-only already

    def give_room(self, kept_bytes: int) -> None:
        """Give the room on the disk back, but for so many bytes."""
        # By its number alone it might be a file of the script's by now.
        if self._room is not None and _is_open(self._room, self._room_status):
            os.ftruncate(self._room, kept_bytes)

    def publish(self, name: str, *contents: "dict[str, Any]", durably: bool = False) -> None:
        """Write a file whole: the first of the contents for which there is room, if any.

        `durably`: so that a failure of the power cannot take it back.
        """
        import json

        beside = name + ".tmp"
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL
        for content in contents:
            self.remove(beside)
            try:
                with open(self.open(beside, flags), "wb") as file:
                    # Half a character becomes \ud800 or so, which is JSON as well.
                    text = json.dumps(content, ensure_ascii=False)
                    file.write(text.encode("utf-8", "backslashreplace"))
                    file.flush()
                    if durably:
                        os.fsync(file.fileno())
                ends = self._prefix + beside, self._prefix + name
                os.replace(*ends, src_dir_fd=self._descriptor, dst_dir_fd=self._descriptor)
            except OSError:
                self.remove(beside)
                continue
            if durably and self._descriptor is not None:
                try:
                    os.fsync(self._descriptor)
                except OSError:
                    pass  # not every file system can
            return


def _run_folder() -> "RunFolder | None":
    path = os.environ.get("SIGNALBOX_RUN_DIR")
    try:
        return RunFolder(path) if path else None
    except OSError:
        return None  # the script runs all the same


def _is_open(descriptor: int, status: os.stat_result) -> bool:
    """Whether a descriptor is still of the file that had this status."""
    try:
        return os.path.samestat(os.fstat(descriptor), status)
    except OSError:
        return False


def _stacks_signal() -> "int | None":
    number = os.environ.get("SIGNALBOX_STACKS_SIGNAL", "")
    return int(number) if number.isdigit() and int(number) in signal.valid_signals() else None


def _note_name(child: int) -> str:
    return "{}.{}".format(EXIT_FILE, child)


def _ending(
    code: "int | None",
    killed_by: "int | None",
    exception: "dict[str, str] | None",
    started_at: str,
) -> "dict[str, Any]":
    return {
        "code": code,
        "signal": killed_by,
        "exception": exception,
        "started_at": started_at,
        "finished_at": _now(),
    }


def _record(folder: "RunFolder", ending: "dict[str, Any]") -> None:
    folder.give_room(0)
    exception = ending["exception"] and dict(ending["exception"], traceback="")
    # Where even this cannot be written the server sees the process end.
    folder.publish(EXIT_FILE, ending, dict(ending, exception=exception), durably=True)


def _now() -> str:
    now = time.time()
    return "{}.{:03d}Z".format(
        time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(now)), int(now % 1 * 1000)
    )


if __name__ == "__main__":
    main()
