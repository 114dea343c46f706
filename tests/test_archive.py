"""What is sent out of a run folder, whatever a job left there."""

import io
import os
import stat
import subprocess
import time
import tracemalloc
import zipfile
from datetime import UTC, datetime
from pathlib import Path

import pytest

from backend import archive
from backend.archive import (
    COMPLETE,
    Checkpoint,
    NotSavedError,
    checkpoints,
    log_names,
    model_names,
    stream,
)
from backend.mask import Mask
from backend.paths import RunPaths
from backend.training import signalbox

OWN = [
    *["log.txt", "progress.json", "metrics.jsonl", "seen.jsonl", "usage.jsonl", "spec.json"],
    *[
        "exit.json",
        "stacks.txt",
        "stop.json",
        "stop.json.tmp",
        "seen.jsonl.tmp",
        "progress.json.77.tmp",
    ],
    *["exit.json.tmp", "exit.json.77", "exit.json.77.tmp", "exit.json.room"],
    "usage.jsonl.tmp",
]


@pytest.fixture
def paths(tmp_path: Path) -> RunPaths:
    paths = RunPaths(tmp_path / "12")
    paths.checkpoints.mkdir(parents=True)
    return paths


def _save(paths: RunPaths, name: str, complete: bool = True) -> Path:
    folder = paths.checkpoints / name
    (folder / "optimizer").mkdir(parents=True)
    (folder / "model.pt").write_bytes(b"w" * 1000)
    (folder / "optimizer" / "state.pt").write_bytes(b"s" * 100)
    if complete:
        (folder / COMPLETE).touch()
    return folder


def _zip(
    paths: RunPaths, names: list[str], mask: Mask | None = None, *, compress: bool = False
) -> zipfile.ZipFile:
    content = b"".join(stream(paths, names, "job-12", mask, compress=compress))
    result = zipfile.ZipFile(io.BytesIO(content))
    assert result.testzip() is None
    assert all(entry.header_offset == 0 for entry in result.infolist()[:1]), "Nothing twice."
    return result


def _descriptors() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


# Checkpoints.


def test_checkpoints_are_listed_oldest_step_first(paths: RunPaths) -> None:
    for name in ("step-00000010", "best", "epoch-2-step-5", "step-00000002"):
        _save(paths, name)
    _save(paths, "step-00000020", complete=False)
    os.utime(paths.checkpoints / "step-00000002" / COMPLETE, (0, 1_800_000_000))
    os.utime(paths.checkpoints / "step-00000020", (0, 1_900_000_000.5))
    listed = checkpoints(paths)
    assert [(c.name, c.step, c.complete) for c in listed] == [
        ("step-00000002", 2, True),
        ("epoch-2-step-5", 5, True),
        ("step-00000010", 10, True),
        ("step-00000020", 20, False),
        ("best", None, True),
    ]
    moment = datetime.fromtimestamp(1_800_000_000, UTC)
    assert listed[0] == Checkpoint("step-00000002", 2, 1100, True, moment)
    assert listed[3].created_at == datetime.fromtimestamp(1_900_000_000.5, UTC)


def test_only_folders_of_a_plain_name_are_checkpoints(paths: RunPaths, tmp_path: Path) -> None:
    elsewhere = _save(RunPaths(tmp_path / "elsewhere"), "step-1")
    (paths.checkpoints / "step-1").symlink_to(elsewhere)
    (paths.checkpoints / "step-2").write_text("a file")
    for name in (".step-00000003.77.tmp", "step\n4", "a..b", "a\\b", "\u202etxt"):
        _save(paths, name)
    _save(RunPaths(paths.folder), os.fsdecode(b"caf\xe9"))
    _save(paths, "step-" + "9" * 200)
    assert [(c.name[:6], c.step) for c in checkpoints(paths)] == [("step-9", None)]


def test_a_marker_that_is_a_link_or_a_folder_is_none(paths: RunPaths, tmp_path: Path) -> None:
    (_save(paths, "step-1", complete=False) / COMPLETE).symlink_to(__file__)
    (_save(paths, "step-2", complete=False) / COMPLETE).mkdir()
    os.mkfifo(_save(paths, "step-3", complete=False) / COMPLETE)
    assert [c.complete for c in checkpoints(paths)] == [False] * 3
    for name in ("step-1", "step-2", "step-3"):
        with pytest.raises(NotSavedError):
            model_names(paths, name)


def test_links_and_what_they_lead_to_do_not_count(paths: RunPaths, tmp_path: Path) -> None:
    (tmp_path / "secret").write_bytes(b"x" * 10_000)
    folder = _save(paths, "step-1")
    (folder / "link").symlink_to(tmp_path / "secret")
    (folder / "round").symlink_to(paths.folder)
    assert [c.bytes for c in checkpoints(paths)] == [1100]


def test_there_are_no_checkpoints_where_the_folder_is_missing_or_a_link(
    paths: RunPaths, tmp_path: Path
) -> None:
    _save(paths, "step-1")
    paths.checkpoints.rename(tmp_path / "moved")
    assert checkpoints(paths) == []
    paths.checkpoints.symlink_to(tmp_path / "moved")
    assert checkpoints(paths) == []
    (tmp_path / "moved").rename(tmp_path / "checkpoints")
    (tmp_path / "13").symlink_to(tmp_path)
    assert checkpoints(RunPaths(tmp_path / "13")) == []
    assert len(checkpoints(RunPaths(tmp_path))) == 1


def test_a_date_out_of_any_calendar_is_one_in_it(paths: RunPaths) -> None:
    marker = _save(paths, "step-1") / COMPLETE
    for moment, year in ((-(2**31), 1980), (2**33, 2107)):
        os.utime(marker, (0, moment))
        assert [c.created_at.year for c in checkpoints(paths)] == [year]
        with _zip(paths, [f"checkpoints/step-1/{COMPLETE}"]) as result:
            assert result.infolist()[0].date_time[0] == year


def test_of_very_many_checkpoints_the_last_are_listed(
    paths: RunPaths, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(archive, "MAX_CHECKPOINTS", 3)
    for step in range(10):
        (paths.checkpoints / f"step-{step}").mkdir()
    assert [c.step for c in checkpoints(paths)] == [7, 8, 9]


def test_the_marker_is_the_one_that_the_helper_writes() -> None:
    assert COMPLETE == signalbox.COMPLETE


# What is in a download.


def test_a_model_is_one_checkpoint_or_all_that_the_job_left(paths: RunPaths) -> None:
    for name in OWN:
        (paths.folder / name).write_text("ours")
    _save(paths, "step-1")
    _save(paths, "step-2")
    _save(paths, "step-3", complete=False)
    _save(paths, ".step-4.77.tmp")
    (paths.checkpoints / "last.pt").touch()
    (paths.folder / "samples" / "log.txt").mkdir(parents=True)
    (paths.folder / "samples" / "spec.json").touch()
    (paths.folder / "log.txt.1").touch()
    one = [f"checkpoints/step-1/{name}" for name in (COMPLETE, "model.pt", "optimizer/state.pt")]
    assert model_names(paths, "step-1") == one
    assert model_names(paths, None) == [
        "checkpoints/last.pt",
        *one,
        *[name.replace("step-1", "step-2") for name in one],
        "log.txt.1",
        "samples/spec.json",
    ]


@pytest.mark.parametrize(
    "name",
    [
        *["step-2", "step-3", "", ".", "..", "../checkpoints/step-1", "step-1/", "/step-1", "a/b"],
        *["step-1\0", ".step-4.77.tmp", "..\\12", "step-1\\", "\ud800", "x" * 5000, "last.pt"],
    ],
    ids=lambda name: ascii(name)[:20],
)
def test_a_checkpoint_that_is_not_there_or_not_complete_is_unknown(
    paths: RunPaths, name: str
) -> None:
    _save(paths, "step-1")
    _save(paths, "step-2", complete=False)
    _save(paths, ".step-4.77.tmp")
    (paths.checkpoints / "last.pt").touch()
    with pytest.raises(NotSavedError, match=r"^Job 12 has no complete .*\.$") as raised:
        model_names(paths, name)
    assert len(str(raised.value)) < 1000
    assert str(raised.value).isprintable()


def test_links_and_what_is_no_file_are_left_out(paths: RunPaths, tmp_path: Path) -> None:
    (tmp_path / "secret").mkdir()
    (tmp_path / "secret" / "key").write_text("theirs")
    folder = _save(paths, "step-1")
    expected = model_names(paths, None)
    for place in (paths.folder, folder):
        (place / "key").symlink_to(tmp_path / "secret" / "key")
        (place / "secret").symlink_to(tmp_path / "secret")
        os.mkfifo(place / "fifo")
        (place / "empty").mkdir()
    assert model_names(paths, None) == expected
    (tmp_path / "13").symlink_to(paths.folder)
    assert model_names(RunPaths(tmp_path / "13"), None) == []
    assert log_names(RunPaths(tmp_path / "13")) == []
    with pytest.raises(NotSavedError):
        model_names(RunPaths(tmp_path / "13"), "step-1")


def test_very_many_files_and_very_deep_folders_come_to_an_end(
    paths: RunPaths, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(archive, "MAX_FILES", 50)
    for number in range(60):
        (paths.folder / f"{number}").touch()
        (paths.checkpoints / f"step-{number}").mkdir()
        for name in "abc":
            (paths.checkpoints / f"step-{number}" / name).write_text("x")
    assert len(model_names(paths, None)) <= 50
    assert sum(checkpoint.bytes for checkpoint in checkpoints(paths)) <= 50
    monkeypatch.setattr(archive, "MAX_FILES", 10_000)
    folder = os.open(paths.folder, os.O_RDONLY)
    for _ in range(3 * archive.MAX_DEPTH):
        os.mkdir("deep", dir_fd=folder)
        below = os.open("deep", os.O_RDONLY, dir_fd=folder)
        os.close(os.open("file", os.O_CREAT, dir_fd=below))
        os.close(folder)
        folder = below
    os.close(folder)
    deep = [name for name in model_names(paths, None) if name.endswith("/file")]
    assert len(deep) == archive.MAX_DEPTH - 1


def test_logs_are_the_files_of_signalbox_that_are_there(paths: RunPaths, tmp_path: Path) -> None:
    assert log_names(paths) == []
    for name in OWN:
        (paths.folder / name).write_text("ours")
    assert log_names(paths) == OWN[:8]
    for name in OWN[:8]:
        (paths.folder / name).unlink()
    (paths.folder / "log.txt").symlink_to(__file__)
    os.mkfifo(paths.folder / "progress.json")
    (paths.folder / "spec.json").mkdir()
    (paths.folder / "exit.json").touch()
    assert log_names(paths) == ["exit.json"]


# The zip.


@pytest.mark.parametrize("compress", [False, True])
def test_a_zip_holds_the_files_and_their_dates(paths: RunPaths, compress: bool) -> None:
    folder = _save(paths, "step-1")
    big = os.urandom(700_000) * 2
    (folder / "model.pt").write_bytes(big)
    moment = (2026, 11, 23, 18, 2, 44)
    os.utime(folder / "model.pt", (0, time.mktime((*moment, 0, 0, -1))))
    with _zip(paths, model_names(paths, "step-1"), compress=compress) as result:
        root = "job-12/checkpoints/step-1/"
        names = [root + name for name in (COMPLETE, "model.pt", "optimizer/state.pt")]
        assert result.namelist() == names
        assert result.read(root + "model.pt") == big
        assert result.read(root + "optimizer/state.pt") == b"s" * 100
        entry = result.getinfo(root + "model.pt")
        assert entry.date_time == moment
        method = zipfile.ZIP_DEFLATED if compress else zipfile.ZIP_STORED
        assert entry.compress_type == method
        assert entry.extract_version < zipfile.ZIP64_VERSION, "Any old program reads a small one."


def test_a_zip_of_nothing_is_a_zip(paths: RunPaths) -> None:
    assert _zip(paths, []).namelist() == []
    assert _zip(paths, ["gone", "../12/gone"]).namelist() == []


def test_unzip_takes_it(paths: RunPaths, tmp_path: Path) -> None:
    (paths.folder / "käse 🙂.txt").write_text("x" * 100_000)
    (paths.folder / "empty").touch()
    target = tmp_path / "zip"
    chunks = stream(paths, model_names(paths, None), "job-12", None, compress=True)
    target.write_bytes(b"".join(chunks))
    try:
        run = subprocess.run(["unzip", "-t", target], capture_output=True, text=True, check=False)
    except FileNotFoundError:
        pytest.skip("unzip is not installed")
    assert "No errors detected" in run.stdout, run.stdout + run.stderr


def test_values_are_hidden_in_a_zip(paths: RunPaths) -> None:
    padding = b"." * (archive.CHUNK_BYTES - 4)
    paths.log.write_bytes(padding + b"hf_secret\n")
    paths.exit.write_text('{"exception": "hf_\\"quoted\\""}')
    mask = Mask(["hf_secret", 'hf_"quoted"'])
    with _zip(paths, log_names(paths), mask, compress=True) as result:
        assert result.read("job-12/log.txt") == padding + b"*********\n"
        assert result.read("job-12/exit.json") == b'{"exception": "*************"}'


def test_a_log_that_grows_comes_to_an_end(paths: RunPaths) -> None:
    length = 3 * archive.CHUNK_BYTES
    paths.log.write_bytes(b"x" * length)
    content = b""
    with paths.log.open("ab") as log:
        for chunk in stream(paths, ["log.txt"], "job-12", None, compress=False):
            log.write(b"y" * len(chunk))
            log.flush()
            content += chunk
    assert zipfile.ZipFile(io.BytesIO(content)).read("job-12/log.txt") == b"x" * length


def test_a_log_that_shrinks_is_as_long_as_could_be_read(paths: RunPaths) -> None:
    paths.log.write_bytes(b"x" * (3 * archive.CHUNK_BYTES))
    paths.spec.write_text("{}")
    chunks = stream(paths, ["log.txt", "spec.json"], "job-12", None, compress=False)
    content = next(chunks)
    os.truncate(paths.log, 0)
    result = zipfile.ZipFile(io.BytesIO(content + b"".join(chunks)))
    assert result.testzip() is None
    assert result.read("job-12/log.txt") == b"x" * archive.CHUNK_BYTES
    assert result.read("job-12/spec.json") == b"{}"


def test_a_file_that_cannot_be_read_on_is_as_long_as_could_be_read(tmp_path: Path) -> None:
    with io.FileIO(tmp_path / "log.txt", "wb") as file:  # which cannot be read at all
        assert list(archive._chunks(file, 100)) == []


def test_what_is_gone_or_became_a_link_when_its_turn_comes_is_left_out(
    paths: RunPaths, tmp_path: Path
) -> None:
    (tmp_path / "secret").mkdir()
    (tmp_path / "secret" / "model.pt").write_text("theirs")
    for name in ("a", "b", "c", "d/model.pt", "e"):
        (paths.folder / name).parent.mkdir(exist_ok=True)
        (paths.folder / name).write_bytes(b"x" * archive.CHUNK_BYTES)
    chunks = stream(paths, model_names(paths, None), "job-12", None, compress=False)
    content = next(chunks)
    for name in ("b", "c"):
        (paths.folder / name).unlink()
    (paths.folder / "c").symlink_to(tmp_path / "secret" / "model.pt")
    (paths.folder / "d").rename(paths.folder / "moved")
    (paths.folder / "d").symlink_to(tmp_path / "secret")
    result = zipfile.ZipFile(io.BytesIO(content + b"".join(chunks)))
    assert result.namelist() == ["job-12/a", "job-12/e"]


@pytest.mark.parametrize("read", [0, 1, 2])
def test_closing_a_zip_early_closes_the_file(paths: RunPaths, read: int) -> None:
    paths.log.write_bytes(b"x" * (10 * archive.CHUNK_BYTES))
    before = _descriptors()
    chunks = stream(paths, ["log.txt"], "job-12", Mask(["hf_secret"]), compress=False)
    for _ in range(read):
        next(chunks)
    assert _descriptors() == before + bool(read)
    chunks.close()
    assert _descriptors() == before


def test_names_of_any_bytes_are_safe_to_unpack(paths: RunPaths, tmp_path: Path) -> None:
    names = [
        *[b"..\\..\\evil", b"\\evil", b"C:evil", b"a\\b", b"a%5Cb", b"a%255Cb", b"50%", b"100%s"],
        *[b"caf\xe9", b"line\nbreak", b"\x1b[31m", b"\xff\xfe", b"-rf", b"~", b"...", b" ", b"con"],
        *["\u202egnp.exe".encode(), "käse 🙂".encode(), b"what?", b"a" * 255, b"\x01" * 255],
    ]
    for name in names:
        (paths.folder / os.fsdecode(name)).write_bytes(name)
    result = _zip(paths, model_names(paths, None))
    root = tmp_path / "unpacked"
    assert len(set(result.namelist())) == len(names)
    for entry in result.namelist():
        assert entry.startswith("job-12/")
        assert entry.count("/") == 1
        assert entry.isprintable()
        assert not set(entry) & set('\\:*?"<>|')
        if len(entry) < 300:
            target = Path(result.extract(entry, root))
            assert target.parent == root / "job-12"
    contents = {result.read(entry) for entry in result.namelist()}
    assert contents == set(names)
    assert result.read("job-12/a%5Cb") == b"a\\b"
    assert result.read("job-12/a%255Cb") == b"a%5Cb"
    assert result.read("job-12/caf%E9") == b"caf\xe9"
    assert {"job-12/50%", "job-12/käse 🙂", "job-12/100%s"} <= set(result.namelist())


def test_a_file_of_more_than_2_gib_is_sent_in_little_memory(
    paths: RunPaths, tmp_path: Path
) -> None:
    size = 2**31 + 5  # from where on a zip has its long form
    folder = _save(paths, "step-1")
    with (folder / "model.pt").open("wb") as file:
        file.truncate(size - 5)
        file.seek(size - 5)
        file.write(b"end\r\n")
    target = tmp_path / "model.zip"
    zeros = bytes(archive.CHUNK_BYTES)
    tracemalloc.start()
    try:
        with target.open("wb") as file:
            names = model_names(paths, "step-1")
            for chunk in stream(paths, names, "job-12", None, compress=False):
                if chunk == zeros:
                    file.seek(len(chunk), os.SEEK_CUR)  # sparse as well
                else:
                    file.write(chunk)
        assert tracemalloc.get_traced_memory()[1] < 8 * 2**20
    finally:
        tracemalloc.stop()
    assert target.stat().st_blocks * 512 < 2**26
    with zipfile.ZipFile(target) as result:
        entry = result.getinfo("job-12/checkpoints/step-1/model.pt")
        assert entry.file_size == entry.compress_size == size
        behind = result.getinfo("job-12/checkpoints/step-1/optimizer/state.pt")
        assert behind.header_offset > size
        assert result.read(behind) == b"s" * 100
        with result.open(entry) as part:
            assert part.read(10) == bytes(10)


def test_a_file_of_the_run_folder_is_unpacked_as_a_file(paths: RunPaths) -> None:
    """Not as a program: nothing of the job's own permissions goes along."""
    (paths.folder / "tool").touch(0o777)
    mode = _zip(paths, ["tool"]).infolist()[0].external_attr >> 16
    assert not mode & (stat.S_IXUSR | stat.S_ISUID)
