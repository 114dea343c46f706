"""What docs/http-api.md prints is run as it is printed, on a port of the test's."""

import json
import re
from collections.abc import Callable

import httpx
import pytest

from tests.conftest import PROJECT
from tests.server import Server

BLOCKS = re.findall(
    r"```python\n(.*?)```", (PROJECT / "docs" / "http-api.md").read_text(encoding="utf-8"), re.S
)


def run(block: str, server: Server, **names: object) -> dict[str, object]:
    """Run a printed program; returns its variables."""
    assert "127.0.0.1:8501" in block
    found: dict[str, object] = dict(names)
    exec(block.replace("127.0.0.1:8501", f"127.0.0.1:{server.port}"), found)
    return found


def block_with(text: str) -> str:
    (block,) = [block for block in BLOCKS if text in block]
    return str(block)


def test_the_python_program_follows_a_job_to_its_end(
    server: Server, capsys: pytest.CaptureFixture[str]
) -> None:
    found = run(block_with("offset = 0"), server)
    printed = capsys.readouterr().out
    assert "completed" in printed.splitlines()[-1]
    assert "epoch" in printed
    found["api"].close()  # type: ignore[attr-defined]


def test_the_notebook_cell_draws_every_point(server: Server) -> None:
    cell = block_with("FigureWidget")
    tiny = {"layers": 1, "heads": 2, "width": 16, "context": 16, "batch_size": 4, "sample_bytes": 8}
    params = {**tiny, "steps": 60, "eval_every": 20}
    short = json.dumps({"recipe": "char_lm", "params": params})
    assert '{"recipe": "char_lm"}' in cell
    cell = cell.replace('{"recipe": "char_lm"}', short)
    cell = cell.replace("go.FigureWidget", "go.Figure")  # a widget needs a notebook
    found = run(cell, server, display=lambda _: None)
    api: httpx.Client = found["api"]  # type: ignore[assignment]
    whole = api.get(f"/training/metrics/{found['job_id']}").json()["points"]
    api.close()
    train, held_out = found["figure"].data  # type: ignore[attr-defined]
    for line, name in ((train, "train_loss"), (held_out, "eval_loss")):
        known = [point for point in whole if point.get(name) is not None]
        assert list(line.x) == [point["step"] for point in known], name
        assert list(line.y) == [point[name] for point in known], name
    assert len(held_out.x) >= 3


def test_the_watcher_is_told_until_the_end(
    server: Server, started: Callable[..., int], capsys: pytest.CaptureFixture[str]
) -> None:
    job_id = started("import signalbox; signalbox.start().log(3, loss=0.5)")
    run(block_with("for message in socket").replace("training/12", f"training/{job_id}"), server)
    assert capsys.readouterr().out.splitlines()[-1] == "completed 3 0.5"
