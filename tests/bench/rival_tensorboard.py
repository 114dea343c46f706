"""Writes event files for TensorBoard; runs in the interpreter that TensorBoard is installed in.

python rival_tensorboard.py BEGUN_AT STEP_SECONDS LOGDIR RUN.npz …

An event for each scalar, as `torch.utils.tensorboard.SummaryWriter.add_scalar` writes it. Its own
writer takes some 30 µs for each, a quarter of an hour for 10 million steps, so the bytes are made
here, thousands of records at once; those of the first steps are compared with its own writer's.

Format: tensorboard/summary/writer/record_writer.py, tensorboard/compat/proto/event.proto.
"""

import sys
import tempfile
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

import numpy as np
from tensorboard.compat.proto.event_pb2 import Event
from tensorboard.compat.proto.summary_pb2 import Summary
from tensorboard.summary.writer.event_file_writer import EventFileWriter

EVAL_EVERY = 1000
CHUNK = 100_000
CHECKED = 1000
TAGS = ("train_loss", "learning_rate", "grad_norm")


def crc_table() -> np.ndarray:
    """Of CRC-32C, RFC 3720."""
    table = np.arange(256, dtype=np.uint32)
    for _ in range(8):
        table = np.where(table & 1, (table >> 1) ^ np.uint32(0x82F63B78), table >> 1)
    return table.astype(np.uint32)


TABLE = crc_table()


def masked_crc(rows: np.ndarray) -> np.ndarray:
    """Of each row of bytes, (n, bytes) → (n, 4)."""
    crc = np.full(len(rows), 0xFFFFFFFF, np.uint32)
    for column in np.ascontiguousarray(rows.T):
        crc = TABLE[(crc ^ column) & 0xFF] ^ (crc >> np.uint32(8))
    crc ^= np.uint32(0xFFFFFFFF)
    masked = ((crc >> np.uint32(15)) | (crc << np.uint32(17))) + np.uint32(0xA282EAD8)
    return masked.astype("<u4").view(np.uint8).reshape(-1, 4)


def constant(data: bytes, count: int) -> np.ndarray:
    return np.broadcast_to(np.frombuffer(data, np.uint8), (count, len(data)))


def varint(numbers: np.ndarray) -> np.ndarray:
    """All of the same length; see the caller."""
    length = (int(numbers[0]).bit_length() + 6) // 7
    places = [(numbers >> (7 * place)) & 0x7F for place in range(length)]
    return np.stack(
        [p | (0x80 if n < length - 1 else 0) for n, p in enumerate(places)], axis=1
    ).astype(np.uint8)


def records(tag: str, steps: np.ndarray, values: np.ndarray, times: np.ndarray) -> np.ndarray:
    """(n, bytes), a record in each row."""
    count = len(steps)
    name = tag.encode()
    value = b"\x0a" + bytes([len(name)]) + name + b"\x15"
    inner = len(value) + 4
    data = np.concatenate(
        [
            constant(b"\x09", count),
            times.astype("<f8").view(np.uint8).reshape(-1, 8),
            constant(b"\x10", count),
            varint(steps),
            constant(b"\x2a" + bytes([inner + 2]) + b"\x0a" + bytes([inner]) + value, count),
            values.astype("<f4").view(np.uint8).reshape(-1, 4),
        ],
        axis=1,
    )
    head = constant(data.shape[1].to_bytes(8, "little"), count)
    return np.concatenate([head, masked_crc(head), data, masked_crc(data)], axis=1)


def events(points: dict[str, np.ndarray], begun_at: float, step_seconds: float) -> Iterator[bytes]:
    """All records in the order in which a training writes them."""
    count = len(points["train_loss"])
    # A varint of steps that follow each other has the same length between powers of 128.
    cuts = {0, count, *range(0, count, CHUNK), *(128**n - 1 for n in range(1, 5))}
    bounds = sorted(cut for cut in cuts if cut <= count)
    for begin, end in pairwise(bounds):
        steps = np.arange(begin + 1, end + 1)
        times = begun_at + steps * step_seconds
        rows = np.concatenate(
            [records(tag, steps, points[tag][begin:end], times) for tag in TAGS], axis=1
        )
        measured = steps % EVAL_EVERY == 0
        place = 0
        if measured.any():
            held_out = points["eval_loss"][steps[measured] // EVAL_EVERY - 1]
            extra = records("eval_loss", steps[measured], held_out, times[measured])
            for after, record in zip(np.flatnonzero(measured) + 1, extra, strict=True):
                yield rows[place:after].tobytes() + record.tobytes()
                place = after
        yield rows[place:].tobytes()


def own_bytes(points: dict[str, np.ndarray], begun_at: float, step_seconds: float) -> bytes:
    """What TensorBoard's own writer makes of the first steps."""
    with tempfile.TemporaryDirectory() as folder:
        writer = EventFileWriter(folder)
        for step in range(1, min(CHECKED, len(points["train_loss"])) + 1):
            values = [(tag, points[tag][step - 1]) for tag in TAGS]
            if step % EVAL_EVERY == 0:
                values.append(("eval_loss", points["eval_loss"][step // EVAL_EVERY - 1]))
            for tag, value in values:
                summary = Summary(value=[Summary.Value(tag=tag, simple_value=value)])
                at = begun_at + step * step_seconds
                writer.add_event(Event(wall_time=at, step=step, summary=summary))
        writer.close()
        (path,) = Path(folder).iterdir()
        return path.read_bytes()


def write(source: Path, folder: Path, begun_at: float, step_seconds: float) -> None:
    """One run."""
    points = dict(np.load(source))
    own = own_bytes(points, begun_at, step_seconds)
    first = 12 + int.from_bytes(own[:8], "little") + 4  # says which version of the format it is
    path = folder / f"events.out.tfevents.{int(begun_at)}.bench.1.0"
    folder.mkdir(parents=True)
    with path.open("wb") as file:
        file.write(own[:first])
        for data in events(points, begun_at, step_seconds):
            file.write(data)
    with path.open("rb") as file:
        same = file.read(len(own))[first:] == own[first:]
    if not same:
        sys.exit("These are not the bytes that TensorBoard's own writer makes.")


begun_at, step_seconds, logdir, *sources = sys.argv[1:]
for source in map(Path, sources):
    write(source, Path(logdir) / source.stem, float(begun_at), float(step_seconds))
