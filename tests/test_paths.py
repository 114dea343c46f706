"""Files of a run folder are opened, and nothing that somebody put in their place."""

import os
from pathlib import Path

import pytest

from backend.paths import open_inside, publish_inside

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
