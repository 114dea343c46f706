"""What the kernel says of a process, where it does and where it does not."""

import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from backend import kernel
from tests.waiting import wait_until

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="it is asked through /proc")


@pytest.fixture
def child() -> Iterator["subprocess.Popen[bytes]"]:
    """A process that waits for its stdin."""
    with subprocess.Popen(["cat"], stdin=subprocess.PIPE, stdout=subprocess.DEVNULL) as child:
        wait_until(lambda: kernel.waits_in(child.pid) == "read on a pipe", 10)
        yield child
        child.kill()


@pytest.fixture
def proc(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Writes files of a process 7 in a /proc of our own."""
    monkeypatch.setattr(kernel, "_PROC", tmp_path)
    (tmp_path / "7" / "fd").mkdir(parents=True)

    def write(**files: str) -> None:
        for name, content in files.items():
            (tmp_path / "7" / name).write_text(content)

    return write


def test_a_process_that_died_and_was_not_waited_for_tells_how() -> None:
    for number, how in ((signal.SIGKILL, "SIGKILL"), (signal.SIGRTMIN + 9, "signal 43")):
        with subprocess.Popen(["sleep", "600"]) as child:
            child.send_signal(number)
            wait_until(lambda pid=child.pid: kernel.state_of(pid) == "Z", 10)  # type: ignore[misc]
            assert kernel.death_of(child.pid) == how
            assert kernel.name_of(child.pid) == "sleep"
            assert kernel.waits_in(child.pid) == ""
    with subprocess.Popen(["sh", "-c", "exit 3"]) as child:
        wait_until(lambda: kernel.state_of(child.pid) == "Z", 10)
        assert kernel.death_of(child.pid) == "exit code 3"


def test_nothing_is_said_of_who_is_gone() -> None:
    child = subprocess.Popen(["true"])
    child.wait()
    pid = child.pid
    assert (kernel.state_of(pid), kernel.name_of(pid), kernel.waits_in(pid)) == ("", "", "")
    assert kernel.death_of(pid) == "unknown"
    assert kernel.cpu_shares([pid]) == {}
    assert kernel.blocks(pid, signal.SIGTERM)
    assert not kernel.has_open(pid, 0)


def test_the_processors_time_is_of_one_core(child: "subprocess.Popen[bytes]") -> None:
    assert kernel.cpu_shares([child.pid]) == {child.pid: 0.0}


def test_who_has_a_file_open_is_known(child: "subprocess.Popen[bytes]", tmp_path: Path) -> None:
    with (tmp_path / "a file").open("w") as file:
        assert kernel.has_open(os.getpid(), file.fileno())
        assert not kernel.has_open(child.pid, file.fileno())
        (tmp_path / "a file").rename(tmp_path / "another name")
        assert kernel.has_open(os.getpid(), file.fileno())


def test_who_holds_a_signal_off_is_known() -> None:
    number = signal.SIGRTMIN + 9
    assert not kernel.blocks(os.getpid(), number)
    before = signal.pthread_sigmask(signal.SIG_BLOCK, [number])
    try:
        assert kernel.blocks(os.getpid(), number)
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def test_who_is_python_is_guessed_by_the_programs_name(child: "subprocess.Popen[bytes]") -> None:
    assert kernel.may_be_python(os.getpid())
    assert not kernel.may_be_python(child.pid)


@pytest.mark.parametrize(
    ("channel", "said"),
    [
        ("pipe_read", "read on a pipe"),
        ("futex_wait_queue", "futex"),
        ("hrtimer_nanosleep", "clock_nanosleep"),
        ("do_wait", "wait4"),
        ("some_function_of_a_driver", "some_function_of_a_driver"),
        ("0", ""),
        ("", ""),
        ("evil\nrole: training", "evil role: training"),
    ],
)
def test_where_the_call_may_not_be_read_the_channel_is(
    proc: Callable[..., None], channel: str, said: str
) -> None:
    proc(wchan=channel)
    assert kernel.waits_in(7) == said


@pytest.mark.parametrize(
    ("machine", "syscall", "target", "said"),
    [
        ("x86_64", "202 0x1 0x0", None, "futex"),
        ("aarch64", "98 0x1 0x0", None, "futex"),
        ("x86_64", "0 0x3 0x7f", "pipe:[123]", "read on a pipe"),
        ("aarch64", "63 0x3 0x7f", "/mnt/data/a b.bin", "read on /mnt/data/a b.bin"),
        ("x86_64", "1 0x3 0x7f", "/dev/pts/4", "write on the terminal /dev/pts/4"),
        ("x86_64", "45 0x3 0x7f", "socket:[99]", "recvfrom on a socket"),
        ("x86_64", "74 0x4 0x7f", None, "fsync on descriptor 4"),
        ("x86_64", "running", None, ""),
        ("x86_64", "-1 0x7ffd 0x7f", None, "a_channel"),
        ("x86_64", "9999 0x1", None, "a_channel"),
        ("riscv64", "202 0x1", None, "a_channel"),
    ],
)
def test_the_call_is_named_with_what_it_is_on(
    proc: Callable[..., None],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    machine: str,
    syscall: str,
    target: str | None,
    said: str,
) -> None:
    monkeypatch.setattr(kernel, "_CALLS", kernel._names_of(machine))
    proc(syscall=syscall + "\n", wchan="a_channel")
    if target:
        (tmp_path / "7" / "fd" / "3").symlink_to(target)
    assert kernel.waits_in(7) == said
