"""A kill of the kernel's for want of memory, told from every other SIGKILL."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from backend import memory_kills
from backend.memory_kills import HOLD_SECONDS, KillCounts, KillWatch, MemoryKill, judge, snapshot
from tests.conftest import PROJECT

GIB = 2**30
BEFORE = KillCounts(machine=4, group=1, group_file="/group", at_seconds=1000.0)
AFTER = replace(BEFORE, at_seconds=2000.0)
VMSTAT = "nr_free_pages 123\npgfault 99\noom_kill 4\nnr_unstable 0\n"
EVENTS = "low 0\nhigh 0\nmax 12\noom 3\noom_kill 2\noom_group_kill 0\n"
CONTROL = "oom_kill_disable 0\nunder_oom 0\noom_kill 7\n"
KILLED = (
    "3,871,1990000000,-;Out of memory: Killed process 4711 (python) total-vm:81920000kB, "
    "anon-rss:63000000kB, file-rss:0kB, shmem-rss:0kB, UID:1000 pgtables:9kB oom_score_adj:0\n"
    " SUBSYSTEM=memory\n"
)


@pytest.fixture(autouse=True)
def first_namespace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Pids are the same here as in the kernel's log, wherever the tests run."""
    namespace = tmp_path / "namespace"
    namespace.symlink_to("pid:[4026531836]")
    monkeypatch.setattr(memory_kills, "_PID_NAMESPACE", namespace)
    return namespace


@pytest.fixture
def log(tmp_path: Path) -> Path:
    path = tmp_path / "kmsg"
    path.write_text("6,870,1980000000,-;eth0: link is up\n" + KILLED)
    return path


def _judge(
    before: KillCounts | None = BEFORE,
    after: KillCounts = AFTER,
    *,
    pid: int = 4711,
    used_bytes: int | None = 8 * GIB,
    available_bytes: int | None = 64 * GIB,
    kernel_log: Path = Path("/nowhere/kmsg"),
) -> MemoryKill:
    return judge(
        before,
        after,
        pids={pid},
        used_bytes=used_bytes,
        available_bytes=available_bytes,
        kernel_log=kernel_log,
    )


def _folder(tmp_path: Path, own: str, **files: str) -> tuple[Path, Path, Path]:
    (tmp_path / "vmstat").write_text(VMSTAT)
    (tmp_path / "cgroup").write_text(own)
    for name, content in files.items():
        path = tmp_path / "groups" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content)
    return tmp_path / "vmstat", tmp_path / "cgroup", tmp_path / "groups"


@pytest.mark.parametrize(
    ("own", "file", "content", "count"),
    [
        ("0::/user.slice/a:b.scope\n", "user.slice/a:b.scope/memory.events", EVENTS, 2),
        ("0::/\n", "memory.events", EVENTS, 2),
        ("0::/../../outside/of/the/container\n", "memory.events", EVENTS, 2),
        ("4:cpu:/x\n9:memory,hugetlb:/jobs\n0::/\n", "memory/jobs/memory.oom_control", CONTROL, 7),
        ("9:memory:/docker/0123\n", "memory/memory.oom_control", CONTROL, 7),
        ("9:memory:/jobs\n0::/jobs\n", "unified/jobs/memory.events", EVENTS, 2),
    ],
)
def test_the_counts_of_the_machine_and_of_the_own_group_are_read(
    tmp_path: Path, own: str, file: str, content: str, count: int
) -> None:
    found = snapshot(*_folder(tmp_path, own, **{file: content}))
    assert (found.machine, found.group) == (4, count)
    assert found.group_file == str(tmp_path / "groups" / file)


@pytest.mark.parametrize("own", ["", "0::/gone\n", "nonsense\n", "9:cpu:/\n", "\0::\n", "é"])
def test_what_cannot_be_read_is_not_known(tmp_path: Path, own: str) -> None:
    found = snapshot(tmp_path / "none", _folder(tmp_path, own)[1], tmp_path / "groups")
    assert (found.machine, found.group, found.group_file) == (None, None, None)


def test_a_snapshot_of_this_machine_raises_nothing() -> None:
    assert snapshot().at_seconds > 0


def test_counts_come_back_from_json() -> None:
    for counts in (BEFORE, snapshot(), KillCounts(None, None, None, 0.5)):
        assert KillCounts.from_json(json.loads(json.dumps(counts.as_json()))) == counts


@pytest.mark.parametrize(
    "value",
    [None, [], "x", {}, {"machine": 1}, {**BEFORE.as_json(), "machine": -1},
     {**BEFORE.as_json(), "group": True}, {**BEFORE.as_json(), "group": 1.5},
     {**BEFORE.as_json(), "group_file": 7}, {**BEFORE.as_json(), "at_seconds": "1"}],
)  # fmt: skip
def test_other_json_is_no_count(value: Any) -> None:
    assert KillCounts.from_json(value) is None


@given(st.recursive(st.none() | st.integers() | st.floats() | st.text(), st.lists, max_leaves=3))
def test_no_json_raises(value: Any) -> None:
    fields = ("machine", "group", "group_file", "at_seconds")
    KillCounts.from_json(dict.fromkeys(fields, value))
    KillCounts.from_json(value)


def test_it_is_certain_where_the_count_of_the_group_rose() -> None:
    after = replace(AFTER, group=2, machine=5)
    assert _judge(after=after) is MemoryKill.CERTAIN
    assert _judge(after=replace(after, machine=None)) is MemoryKill.CERTAIN


def test_it_is_certain_where_the_kernels_log_names_a_process_of_the_job(log: Path) -> None:
    assert _judge(kernel_log=log) is MemoryKill.CERTAIN
    assert _judge(before=None, kernel_log=log) is MemoryKill.CERTAIN


@pytest.mark.parametrize(
    "text",
    [
        "3,871,1990000000,-;Memory cgroup out of memory: Killed process 4711 (python) UID:0\n",
        "3,871,1990000000,-;Out of memory: Kill process 4711 (python) score 9 or sacrifice child\n",
        "3,1,1990000000,-;x\n broken\n;;\n3,2,y,-;z\n" + KILLED,
    ],
)
def test_the_log_is_read_whatever_the_kernels_release(log: Path, text: str) -> None:
    log.write_text(text)
    assert _judge(kernel_log=log) is MemoryKill.CERTAIN


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("4711", "47111"),
        ("1990000000", "0000000001"),
        ("3,871", "11,871"),
        ("Out of memory: Killed", "Killed"),
        ("Killed process", "oom_reaper: reaped process"),
    ],
    ids=["another pid", "long ago", "written by a program", "another reason", "another event"],
)
def test_what_else_is_in_the_log_says_nothing_of_the_job(log: Path, old: str, new: str) -> None:
    text = log.read_text()
    assert old in text
    log.write_text(text.replace(old, new))
    assert _judge(kernel_log=log) is MemoryKill.NO


def test_in_a_container_the_pids_of_the_log_are_others(log: Path, first_namespace: Path) -> None:
    first_namespace.unlink()
    first_namespace.symlink_to("pid:[4026532999]")
    assert _judge(kernel_log=log) is MemoryKill.NO
    first_namespace.unlink()
    assert _judge(kernel_log=log) is MemoryKill.NO


def test_it_is_probable_where_only_the_count_of_the_machine_rose() -> None:
    assert _judge(after=replace(AFTER, machine=5)) is MemoryKill.PROBABLE
    other_group = replace(AFTER, machine=5, group=9, group_file="/another")
    assert _judge(after=other_group) is MemoryKill.PROBABLE


def test_where_a_count_can_be_read_and_did_not_rise_it_was_another_kill() -> None:
    assert _judge() is MemoryKill.NO
    assert _judge(replace(BEFORE, group=None), replace(AFTER, group=None)) is MemoryKill.NO
    assert _judge(replace(BEFORE, machine=None), replace(AFTER, machine=None)) is MemoryKill.NO
    assert _judge(available_bytes=0) is MemoryKill.NO


@pytest.mark.parametrize(
    ("used_bytes", "available_bytes", "expected"),
    [
        (8 * GIB, 64 * GIB, MemoryKill.UNKNOWN),
        (8 * GIB, GIB // 2, MemoryKill.PROBABLE),
        (40 * GIB, 4 * GIB, MemoryKill.PROBABLE),
        (40 * GIB, 5 * GIB, MemoryKill.UNKNOWN),
        (None, 0, MemoryKill.UNKNOWN),
        (40 * GIB, None, MemoryKill.UNKNOWN),
    ],
)
def test_where_nothing_can_be_read_it_is_probable_if_little_memory_was_left(
    used_bytes: int | None, available_bytes: int | None, expected: MemoryKill
) -> None:
    nothing = KillCounts(None, None, None, 1.0)
    for before in (None, nothing):
        judged = _judge(before, nothing, used_bytes=used_bytes, available_bytes=available_bytes)
        assert judged is expected


def test_counts_of_before_the_machine_started_anew_are_not_compared() -> None:
    assert _judge(after=KillCounts(0, 0, "/group", 5.0)) is MemoryKill.UNKNOWN
    assert _judge(after=KillCounts(9, 9, "/group", 5.0)) is MemoryKill.UNKNOWN


def test_a_death_is_judged_by_the_counts_of_half_a_minute_ago_at_least() -> None:
    now = 100.0
    watch = KillWatch(take=lambda: KillCounts(0, 0, None, now), clock=lambda: now)
    assert watch.before is None
    judged_by = []
    for _ in range(200):
        watch.look()
        assert watch.before is not None
        judged_by.append(now - watch.before.at_seconds)
        now += 1
    assert judged_by[:60] == list(range(60))
    assert min(judged_by[60:]) >= HOLD_SECONDS
    assert max(judged_by[60:]) < 2 * HOLD_SECONDS


def test_the_counts_that_an_earlier_server_kept_are_used_at_first() -> None:
    watch = KillWatch(BEFORE, take=lambda: AFTER, clock=lambda: AFTER.at_seconds)
    assert watch.before is BEFORE
    watch.look()
    assert watch.before is BEFORE
    watch.look()
    assert watch.before is BEFORE


EATER = """
import json, subprocess, sys
from backend.memory_kills import judge, snapshot
before = snapshot()
child = subprocess.Popen([sys.executable, "-c", "x = b'x' * 2**28; input()"], stdin=subprocess.PIPE)
code = child.wait()
by_count = judge(before, snapshot(), pids=(), used_bytes=None, available_bytes=None)
by_log = judge(None, snapshot(), pids=[child.pid], used_bytes=None, available_bytes=None)
print(json.dumps([code, by_count, by_log]))
"""


@pytest.fixture
def small_group() -> Iterator[Path]:
    """A control group of our own with 64 MiB of memory; skipped where none can be made."""
    file = snapshot().group_file
    if file is None:
        pytest.skip("no control group that counts kills")
    own = Path(file)
    group = own.parent / f"signalbox-test-{os.getpid()}"
    limit = "memory.max" if own.name == "memory.events" else "memory.limit_in_bytes"
    try:
        group.mkdir()
        (group / limit).write_text(str(64 * 2**20))
    except OSError as error:
        if group.is_dir():
            group.rmdir()
        pytest.skip(f"no control group can be made here: {error}")
    yield group
    group.rmdir()


def test_a_process_that_the_kernel_kills_for_want_of_memory_is_known(small_group: Path) -> None:
    join = f"open({str(small_group / 'cgroup.procs')!r}, 'w').write('0')"
    done = subprocess.run(
        [sys.executable, "-c", join + EATER],
        cwd=PROJECT,
        capture_output=True,
        text=True,
        check=True,
    )
    code, by_count, by_log = json.loads(done.stdout)
    assert (code, by_count) == (-9, "certain")
    log_can_be_read = any(memory_kills._lines(memory_kills.KERNEL_LOG))
    assert by_log == ("certain" if log_can_be_read else "unknown")
