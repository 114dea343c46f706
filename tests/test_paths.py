"""Files of a run folder are opened, and nothing that somebody put in their place."""

import os
import shutil
from pathlib import Path

import pytest

from backend import paths
from backend.paths import DataPaths, open_below, open_inside, publish_inside, scan_below

READ = os.O_RDONLY
APPEND = os.O_WRONLY | os.O_APPEND | os.O_CREAT


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    folder = tmp_path / "run"
    folder.mkdir()
    return folder


def test_a_file_is_made_appended_to_and_read(folder: Path) -> None:
    path = folder / "log.txt"
    for _ in range(2):
        with os.fdopen(open_inside(path, APPEND), "wb") as file:
            file.write(b"line\n")
    with os.fdopen(open_inside(path, READ), "rb") as file:
        assert file.read() == b"line\nline\n"


@pytest.mark.parametrize("flags", [READ, APPEND])
def test_a_link_in_place_of_a_file_is_refused(folder: Path, tmp_path: Path, flags: int) -> None:
    target = tmp_path / "target"
    target.write_text("theirs")
    (folder / "log.txt").symlink_to(target)
    with pytest.raises(OSError, match="log"):
        open_inside(folder / "log.txt", flags)
    assert target.read_text() == "theirs"


@pytest.mark.parametrize("flags", [READ, APPEND])
def test_a_link_in_place_of_the_folder_is_refused(folder: Path, tmp_path: Path, flags: int) -> None:
    (folder / "log.txt").write_text("theirs")
    link = tmp_path / "link"
    link.symlink_to(folder)
    with pytest.raises(OSError, match="link"):
        open_inside(link / "log.txt", flags)
    with pytest.raises(OSError, match="link"):
        publish_inside(link / "spec.json", "{}")
    assert sorted(p.name for p in folder.iterdir()) == ["log.txt"]
    assert (folder / "log.txt").read_text() == "theirs"


def test_a_fifo_keeps_nobody_waiting(folder: Path) -> None:
    os.mkfifo(folder / "log.txt")
    with pytest.raises(OSError, match="log"):
        open_inside(folder / "log.txt", os.O_WRONLY)
    os.close(open_inside(folder / "log.txt", READ))


def test_a_file_is_published_whole(folder: Path, tmp_path: Path) -> None:
    target = tmp_path / "target"
    target.write_text("theirs")
    (folder / "spec.json").symlink_to(target)
    publish_inside(folder / "spec.json", "ours")
    assert not (folder / "spec.json").is_symlink()
    assert (folder / "spec.json").read_text() == "ours"
    assert target.read_text() == "theirs"
    assert [p.name for p in folder.iterdir()] == ["spec.json"]


NO_NAMES = [
    *["", ".", "..", "/", "/etc/passwd", "../run/log.txt", "a/../../x", "a//b", "a/", "./a"],
    *["a\0b", "\ud800", "..\\..\\log.txt", "checkpoints/../../target", "~/x" * 2000],
]


@pytest.fixture(params=["by descriptors", "by paths"])
def way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Of opening a file: systems that open none by its folder's descriptor have to do without."""
    if request.param == "by paths":
        monkeypatch.setattr(os, "supports_dir_fd", set())
    return str(request.param)


def _descriptors() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


def test_a_file_in_a_folder_of_the_run_folder_is_opened(folder: Path, way: str) -> None:
    (folder / "checkpoints" / "step-1").mkdir(parents=True)
    (folder / "checkpoints" / "step-1" / "model.pt").write_text("weights")
    (folder / "a\\b").write_text("a backslash is a character like any other here")
    before = _descriptors()
    with os.fdopen(open_below(folder, "checkpoints/step-1/model.pt", READ)) as file:
        assert file.read() == "weights"
    os.close(open_below(folder, "a\\b", READ))
    assert [e.name for e in scan_below(folder, "checkpoints")] == ["step-1"]
    assert {e.name: e.is_dir() for e in scan_below(folder)} == {"checkpoints": True, "a\\b": False}
    assert _descriptors() == before


@pytest.mark.parametrize("linked", ["", "a", "a/b", "a/b/file"])
def test_no_part_of_a_name_is_followed_where_it_is_a_link(
    folder: Path, tmp_path: Path, linked: str
) -> None:
    (folder / "a" / "b").mkdir(parents=True)
    (folder / "a" / "b" / "file").write_text("x")
    moved = tmp_path / "moved"
    (folder / linked).rename(moved)
    (folder / linked if linked else folder).symlink_to(moved)
    before = _descriptors()
    with pytest.raises(OSError, match=r"link|Not a directory"):
        open_below(folder, "a/b/file", READ)
    if linked != "a/b/file":
        with pytest.raises(OSError, match="Not a directory"):
            list(scan_below(folder, "a/b"))
    assert _descriptors() == before


@pytest.mark.parametrize("linked", ["a", "a/b", "a/b/file"])
def test_nor_where_files_are_opened_by_their_path(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, linked: str
) -> None:
    """Nor can they be asked to follow no link."""
    monkeypatch.setattr(os, "supports_dir_fd", set())
    monkeypatch.setattr(paths, "_CAREFULLY", 0)
    (folder / "a" / "b").mkdir(parents=True)
    (folder / "a" / "b" / "file").write_text("x")
    (folder / linked).rename(tmp_path / "moved")
    (folder / linked).symlink_to(tmp_path / "moved")
    with pytest.raises(OSError, match="link"):
        open_below(folder, "a/b/file", READ)


@pytest.mark.parametrize("name", NO_NAMES, ids=lambda name: ascii(name)[:20])
def test_a_name_that_leads_elsewhere_is_refused(
    folder: Path, tmp_path: Path, way: str, name: str
) -> None:
    (folder / "checkpoints").mkdir()
    (folder / "a").mkdir()
    (folder / "log.txt").write_text("x")
    for target in (tmp_path / "target", tmp_path / "x"):
        target.write_text("theirs")
    with pytest.raises(OSError):  # noqa: PT011 - whichever the system has for it
        os.close(open_below(folder, name, READ))
    if name:
        with pytest.raises(OSError):  # noqa: PT011
            list(scan_below(folder, name))


def test_a_backslash_and_a_colon_are_refused_where_they_lead_elsewhere(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As on Windows: to another folder, to another drive."""
    for name in ("a\\b", "C:b"):
        (folder / name).write_text("x")
        os.close(open_below(folder, name, READ))
    monkeypatch.setattr(os, "sep", "\\")
    for name in ("a\\b", "C:b"):
        with pytest.raises(OSError, match="no name of a file"):
            open_below(folder, name, READ)


def test_a_nonce_is_made_once_and_is_none_in_a_copy_of_the_folder(
    folder: Path, tmp_path: Path
) -> None:
    nonce = DataPaths(folder).make_nonce()
    assert DataPaths(folder).make_nonce() == nonce == DataPaths(folder).read_nonce()
    shutil.copytree(folder, tmp_path / "copy")
    assert DataPaths(tmp_path / "copy").read_nonce() is None
    assert DataPaths(tmp_path / "copy").make_nonce() != nonce
    folder.rename(tmp_path / "moved")
    assert DataPaths(tmp_path / "moved").read_nonce() == nonce


def test_the_nonce_of_the_first_release_is_kept(folder: Path) -> None:
    DataPaths(folder).nonce.write_text("abcdef")
    assert DataPaths(folder).make_nonce() == "abcdef"
    assert len(DataPaths(folder).nonce.read_text().split()) == 2, "A copy can be told from now on."


@pytest.mark.parametrize("content", [b"", b"\xff\xfe", b"a b c", b"a 0:0"])
def test_a_nonce_that_makes_no_sense_is_none(folder: Path, content: bytes) -> None:
    """As power loss may leave it."""
    DataPaths(folder).nonce.write_bytes(content)
    assert DataPaths(folder).read_nonce() is None


def test_the_highest_run_is_that_of_the_folders(folder: Path) -> None:
    assert DataPaths(folder).highest_run() == 0
    for name in ("3", "12", "x", "９９", "1" * 30):
        (folder / "runs" / name).mkdir(parents=True)
    assert DataPaths(folder).highest_run() == 12
