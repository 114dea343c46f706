"""Files of a run folder are opened, and nothing that somebody put in their place."""

import os
import shutil
from pathlib import Path

import pytest

from backend.paths import DataPaths, open_inside, publish_inside

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
