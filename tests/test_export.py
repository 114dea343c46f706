"""Every point of a curve as CSV and as JSON lines."""

import csv
import io
import json

from backend.curve import Point
from backend.export import PIECE_BYTES, Form, pieces

POINTS = [
    Point(1, 0.5, "2026-11-23T18:02:45Z", {"train_loss": 2.0, "=cmd()": 1.0}),
    Point(2, None, None, {"train_loss": None, "eval_loss": 0.25}),
]
NAMES = ["train_loss", "eval_loss", "=cmd()"]


def test_a_table_has_a_column_for_each_name_and_a_gap_where_there_is_no_number() -> None:
    table = b"".join(pieces([POINTS[:1], POINTS[1:]], Form.CSV, NAMES)).decode()
    header, *rows = csv.reader(io.StringIO(table))
    assert header == ["step", "epoch", "timestamp", "train_loss", "eval_loss", "'=cmd()"]
    assert rows == [
        ["1", "0.5", "2026-11-23T18:02:45Z", "2.0", "", "1.0"],
        ["2", "", "", "", "0.25", ""],
    ]


def test_json_lines_are_strictly_valid_json() -> None:
    lines = b"".join(pieces([POINTS], Form.JSONL, [])).splitlines()
    assert json.loads(lines[0])["=cmd()"] == 1.0
    assert json.loads(lines[1], parse_constant=None) == {
        "step": 2,
        "epoch": None,
        "train_loss": None,
        "eval_loss": 0.25,
        "timestamp": None,
    }


def test_a_long_curve_is_written_in_small_pieces() -> None:
    blocks = ([Point(step, values={"train_loss": 0.5})] * 100 for step in range(500))
    found = list(pieces(blocks, Form.JSONL, []))
    assert len(found) > 5
    assert max(map(len, found)) < 2 * PIECE_BYTES
    assert sum(piece.count(b"\n") for piece in found) == 50_000


def test_a_curve_without_points_is_a_header() -> None:
    assert b"".join(pieces([], Form.CSV, ["train_loss"])) == b"step,epoch,timestamp,train_loss\n"
    assert not list(pieces([], Form.JSONL, []))
