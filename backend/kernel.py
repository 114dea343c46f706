"""What the kernel says of a process: its state, and what it waits in; see proc(5).

Where there is no /proc, or it may not be read, less is said, and nothing raised.
"""

import contextlib
import os
import platform
import re
import signal
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Final

import psutil

from backend.stacks import one_line

SAMPLE_SECONDS: Final = 0.2
"""How long the processors' time is measured."""

_PROC: Final = Path("/proc")


def cpu_shares(pids: Sequence[int]) -> dict[int, float]:
    """How much of one core each process used in a short while, in percent."""
    began, before = time.monotonic(), dict(_cpu_seconds(pids))
    time.sleep(SAMPLE_SECONDS)
    after, passed = dict(_cpu_seconds(pids)), time.monotonic() - began
    return {pid: 100 * (after[pid] - before[pid]) / passed for pid in after if pid in before}


def _cpu_seconds(pids: Sequence[int]) -> Iterator[tuple[int, float]]:
    for pid in pids:
        with contextlib.suppress(psutil.Error):
            times = psutil.Process(pid).cpu_times()
            yield pid, times.user + times.system


def _stat(pid: int) -> list[bytes]:
    """The fields of /proc/<pid>/stat from the state on; see proc(5). Empty if there are none."""
    try:
        content = (_PROC / str(pid) / "stat").read_bytes()
    except OSError:
        return []
    return content.rpartition(b")")[2].split()


def state_of(pid: int) -> str:
    """R, S, D, T, Z, …; empty if it is gone."""
    fields = _stat(pid)
    return fields[0].decode() if fields else ""


def death_of(pid: int) -> str:
    """How a process ended that nobody has waited for."""
    fields = _stat(pid)
    if len(fields) < 50:
        return "unknown"
    status = int(fields[49])  # exit_code; 0 as well where it may not be read
    number = status & 0x7F
    if not number:
        return f"exit code {status >> 8}"
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"


def name_of(pid: int) -> str:
    try:
        return one_line((_PROC / str(pid) / "comm").read_text(errors="replace"))
    except OSError:
        return ""


def may_be_python(pid: int) -> bool:
    try:
        program = psutil.Process(pid).exe()
    except (psutil.Error, OSError):
        return True  # py-spy will say
    return "py" in Path(program).name.lower() or not program


def has_open(pid: int, descriptor: int) -> bool:
    """Whether a process has a file open. One that closed its stacks.txt would write its stacks into
    whatever has the number now."""
    try:
        name = os.readlink(f"/proc/self/fd/{descriptor}")  # noqa: PTH115
        status = os.fstat(descriptor)
        entries = list((_PROC / str(pid) / "fd").iterdir())
    except OSError:
        return False
    for entry in entries:
        with contextlib.suppress(OSError):
            # By its name first: to look at any other file may take for ever.
            if str(entry.readlink()) == name and os.path.samestat(entry.stat(), status):
                return True
    return False


def blocks(pid: int, number: int) -> bool:
    """Whether a process holds a signal off: between fork and exec it does, and the signal would
    meet another program, which it would end."""
    try:
        status = (_PROC / str(pid) / "status").read_text()
    except OSError:
        return True
    blocked = re.search(r"^SigBlk:\s*([0-9a-f]+)$", status, re.MULTILINE)
    return blocked is None or bool(int(blocked.group(1), 16) >> (number - 1) & 1)


_ON_A_FILE: Final = re.compile(
    "p?readv?|pread64|p?writev?|pwrite64|recv(from|msg)|send(to|msg)|connect|accept4?|ioctl|flock"
    "|fcntl|f(data)?sync|splice|getdents64|close"
)
"""The system calls whose first argument is a descriptor."""

_NUMBERS: Final[Mapping[str, str]] = {
    "x86_64": "read 0 write 1 close 3 poll 7 ioctl 16 pread64 17 pwrite64 18 readv 19 writev 20 "
    "select 23 pause 34 nanosleep 35 connect 42 accept 43 sendto 44 recvfrom 45 sendmsg 46 "
    "recvmsg 47 wait4 61 semop 65 fcntl 72 flock 73 fsync 74 fdatasync 75 rt_sigtimedwait 128 "
    "rt_sigsuspend 130 futex 202 io_getevents 208 getdents64 217 semtimedop 220 "
    "clock_nanosleep 230 epoll_wait 232 mq_timedreceive 243 waitid 247 openat 257 newfstatat 262 "
    "pselect6 270 ppoll 271 splice 275 epoll_pwait 281 accept4 288 statx 332 "
    "io_uring_enter 426 epoll_pwait2 441 futex_waitv 449",
    "aarch64": "io_getevents 4 epoll_pwait 22 fcntl 25 ioctl 29 flock 32 openat 56 close 57 "
    "getdents64 61 read 63 write 64 readv 65 writev 66 pread64 67 pwrite64 68 pselect6 72 ppoll 73 "
    "splice 76 newfstatat 79 fsync 82 fdatasync 83 waitid 95 futex 98 nanosleep 101 "
    "clock_nanosleep 115 rt_sigsuspend 133 rt_sigtimedwait 137 mq_timedreceive 183 semtimedop 192 "
    "semop 193 accept 202 connect 203 sendto 206 recvfrom 207 sendmsg 211 recvmsg 212 accept4 242 "
    "wait4 260 statx 291 io_uring_enter 426 epoll_pwait2 441 futex_waitv 449",
}
"""Names and numbers of the system calls in which a process waits; source: Linux's unistd.h."""


def _names_of(machine: str) -> dict[int, str]:
    words = _NUMBERS.get(machine, "").split()
    return {int(number): name for name, number in zip(words[::2], words[1::2], strict=True)}


_CALLS: Final = _names_of(platform.machine())

_CHANNELS: Final[Mapping[str, str]] = {
    "pipe_read": "read on a pipe",
    "anon_pipe_read": "read on a pipe",
    "pipe_write": "write on a pipe",
    "anon_pipe_write": "write on a pipe",
    "hrtimer_nanosleep": "clock_nanosleep",
    "do_nanosleep": "clock_nanosleep",
    "futex_wait_queue": "futex",
    "futex_wait_queue_me": "futex",
    "futex_do_wait": "futex",
    "do_wait": "wait4",
    "ep_poll": "epoll_wait",
    "do_epoll_wait": "epoll_wait",
    "poll_schedule_timeout": "poll",
    "do_sys_poll": "poll",
    "do_poll": "poll",
    "do_select": "select",
    "inet_csk_accept": "accept on a socket",
    "sk_wait_data": "recvfrom on a socket",
    "unix_stream_read_generic": "recvfrom on a local socket",
    "sk_stream_wait_memory": "sendto on a socket",
}
"""The functions of the kernel in which they wait; they may be read where the calls may not."""


def waits_in(pid: int) -> str:
    """What a process's main thread waits in: `read on a pipe`; empty if it runs, or nobody says."""
    folder = _PROC / str(pid)
    try:
        words = (folder / "syscall").read_text().split()
    except OSError:  # needs a debugger's rights
        words = []
    if words and words[0].isdecimal():
        name = _CALLS.get(int(words[0]))
        if name and _ON_A_FILE.fullmatch(name):
            return f"{name} on {_opened_as(pid, int(words[1], 16))}"
        if name:
            return name
    if words == ["running"]:
        return ""
    try:
        channel = one_line((folder / "wchan").read_text())
    except OSError:
        return ""
    return "" if channel == "0" else _CHANNELS.get(channel, channel)


def _opened_as(pid: int, number: int) -> str:
    """What a descriptor of a process leads to."""
    try:
        target = str((_PROC / str(pid) / "fd" / str(number)).readlink())
    except OSError:
        return f"descriptor {number}"
    if target.startswith("pipe:"):
        return "a pipe"
    if target.startswith("socket:"):
        return _socket(pid, number)
    if target.startswith(("/dev/pts/", "/dev/tty")):
        return f"the terminal {target}"
    return one_line(target)


def _socket(pid: int, number: int) -> str:
    try:
        found = [c for c in psutil.Process(pid).net_connections("all") if c.fd == number]
    except (psutil.Error, OSError, RuntimeError):
        found = []
    if not found:
        return "a socket"
    if found[0].family not in (2, 10, 30):  # AF_INET, AF_INET6 of Linux and of macOS
        return "a local socket"
    if found[0].raddr:
        return f"a socket to {_address(found[0].raddr)}"
    return f"a socket that listens on {_address(found[0].laddr)}" if found[0].laddr else "a socket"


def _address(address: tuple[str, int]) -> str:
    host, port = address
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
