"""Runs one script as `python` would, and records how it ended in the run folder's exit.json.

    python runner.py /abs/script.py args…
    python runner.py -m some.module args…

The process that the server knows forks at once. The child runs the script; the parent passes
signals on, waits, writes exit.json and ends as the child did. So an ending is recorded even where
the script was killed, and no code of a training can take the record with it.

Standard library only, Python 3.8 or newer; heavy imports only where they are needed, because each
job waits for them.
"""

# ruff: noqa: PTH, SIM105
# (pathlib and contextlib would cost each job milliseconds at its start, and so would typing.)
from __future__ import annotations

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
STACKS_FILE = "stacks.txt"
MAX_TRACEBACK_BYTES = 64 * 1024
MAX_MESSAGE_CHARACTERS = 4096


def main() -> None:
    run_dir = os.environ.get("SIGNALBOX_RUN_DIR") or None
    started_at = _now()
    if run_dir:
        _remove(os.path.join(run_dir, EXIT_FILE))  # of a life before a pause
    if hasattr(os, "fork"):
        _lead(run_dir, started_at)  # comes back in the child only
        _run(sys.argv[1:], run_dir)
    else:
        _run_unattended(run_dir, started_at)


# The parent.


def _lead(run_dir: str | None, started_at: str) -> None:
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
    child = os.fork()
    if child == 0:
        signal.signal(signal.SIGCHLD, inherited_handler or signal.SIG_DFL)
        _arm_stacks(run_dir, stacks_signal)
        signal.pthread_sigmask(signal.SIG_SETMASK, inherited_mask)
        return

    while True:
        # WNOHANG: the child may have ended, without a pending SIGCHLD, before the first sigwait.
        reaped, status = os.waitpid(child, os.WNOHANG)
        if reaped:
            break
        received = signal.sigwait(watched | {signal.SIGCHLD})
        if received != signal.SIGCHLD:
            os.kill(child, received)

    killed_by = os.WTERMSIG(status) if os.WIFSIGNALED(status) else None
    code = os.WEXITSTATUS(status) if killed_by is None else None
    if run_dir:
        exception = _take_exception(os.path.join(run_dir, _note_name(child)))
        _record(run_dir, _ending(code, killed_by, exception, started_at))
    if killed_by is not None:
        _die_of(killed_by)
    os._exit(code or 0)


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


def _take_exception(note: str) -> dict[str, str] | None:
    """What the child left about its uncaught exception; the note itself is removed."""
    import json

    try:
        with open(note, encoding="utf-8") as file:
            exception: dict[str, str] = json.load(file)
    except (OSError, ValueError):  # none, or cut short by a full disk
        exception = {}
    _remove(note)
    return exception or None


# The child.


def _arm_stacks(run_dir: str | None, stacks_signal: int | None) -> None:
    """Let a signal append the stacks of all threads to stacks.txt, even while the GIL is held."""
    import faulthandler

    try:
        faulthandler.enable()
        if run_dir and stacks_signal:
            flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND
            stacks = os.open(os.path.join(run_dir, STACKS_FILE), flags, 0o666)
            faulthandler.register(stacks_signal, file=stacks, all_threads=True, chain=False)
    except (OSError, RuntimeError, ValueError):  # no folder, no stderr, or no such signal
        if stacks_signal:
            signal.signal(stacks_signal, signal.SIG_IGN)  # an ask for stacks must not kill


def _run(arguments: list[str], run_dir: str | None) -> None:
    """Run the script in this process; an uncaught exception is noted and goes its usual way."""
    myself = os.getpid()
    note = os.path.join(run_dir, _note_name(myself)) if run_dir else None
    try:
        _run_as_main(arguments, note)
    except BaseException as error:
        frames = _without_runner(error.__traceback__)
        if note and os.getpid() == myself:  # a fork of the script comes by here as well
            _leave_exception(note, error, frames)
        hook = sys.excepthook

        def show(kind: type[BaseException], value: BaseException, _: Any) -> None:
            hook(kind, value.with_traceback(frames), frames)

        sys.excepthook = show
        raise


def _run_as_main(arguments: list[str], note: str | None) -> None:
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
        if note:
            _leave_exception(note, error, None)
        sys.exit(2)
    if not safe_path:
        sys.path[0] = os.path.dirname(os.path.realpath(script))
    sys.argv = arguments
    sys.modules["__main__"] = module
    loader = type(globals()["__loader__"])("__main__", script)  # inspect asks it for the source
    vars(module).update(__file__=script, __cached__=None, __loader__=loader)
    exec(compile(source, script, "exec", dont_inherit=True), vars(module))


def _leave_exception(note: str, error: BaseException, frames: TracebackType | None) -> None:
    """Write to the file `note` what ended the script; nothing where it ended as it meant to."""
    if isinstance(error, SystemExit) and not isinstance(error.code, str):
        return
    import json
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
        with open(note, "w", encoding="utf-8") as file:
            json.dump(exception, file)
    except OSError:
        pass  # the run folder is gone, full or read-only; the traceback is in the log all the same


def _without_runner(frames: TracebackType | None) -> TracebackType | None:
    while frames and frames.tb_frame.f_code.co_filename == __file__:
        frames = frames.tb_next
    return frames


# Where there is no fork.


def _run_unattended(run_dir: str | None, started_at: str) -> None:
    """Run the script in the only process there is; a death by force leaves no exit.json."""
    import atexit

    code = 0
    note = os.path.join(run_dir, _note_name(os.getpid())) if run_dir else None

    def record() -> None:
        if run_dir and note:
            _record(run_dir, _ending(code, None, _take_exception(note), started_at))

    atexit.register(record)  # registered first, so it runs after the script's own
    try:
        _run(sys.argv[1:], run_dir)
    except SystemExit as error:
        code = error.code if isinstance(error.code, int) else int(error.code is not None)
        raise
    except BaseException:
        code = 1
        raise


# What both need.


def _stacks_signal() -> int | None:
    number = os.environ.get("SIGNALBOX_STACKS_SIGNAL", "")
    return int(number) if number.isdigit() and int(number) in signal.valid_signals() else None


def _note_name(child: int) -> str:
    return "{}.{}".format(EXIT_FILE, child)


def _ending(
    code: int | None,
    killed_by: int | None,
    exception: dict[str, str] | None,
    started_at: str,
) -> dict[str, Any]:
    return {
        "code": code,
        "signal": killed_by,
        "exception": exception,
        "started_at": started_at,
        "finished_at": _now(),
    }


def _record(run_dir: str, ending: dict[str, Any]) -> None:
    import json

    path = os.path.join(run_dir, EXIT_FILE)
    try:
        with open(path + ".tmp", "w", encoding="utf-8") as file:
            json.dump(ending, file)
        os.replace(path + ".tmp", path)
    except OSError:
        pass  # the run folder is gone, full or read-only: the server sees the process end


def _remove(path: str) -> None:
    try:
        os.remove(path)
    except OSError:
        pass


def _now() -> str:
    now = time.time()
    return "{}.{:03d}Z".format(
        time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(now)), int(now % 1 * 1000)
    )


if __name__ == "__main__":
    main()
