"""What a checkpoint costs: a save beside a bare torch.save, and the steps of a whole training."""

import json
import os
import re
import statistics
import subprocess
import sys
import tempfile
from datetime import datetime
from pathlib import Path
from typing import Any, Final

from backend.paths import RunPaths
from tests.bench.report import line
from tests.conftest import PROJECT

SHAPES: Final = {"10 M": (512, 3), "100 M": (1024, 8)}
"""Width and layers of a char_lm with about so many parameters."""
SAVES: Final = 5
TRAININGS: Final = {"digits": 7, "char_lm": 3}
"""So often each is done, with checkpoints and without in turns."""

SAVING = """\
import os, sys, time, json, pathlib
import torch
from backend.recipes import CharLmParams
from backend.training import signalbox
from backend.training.recipes.char_lm import Gpt, build_optimizer
from backend.training.recipes.checkpoints import Checkpoints, Training

width, layers, saves = map(int, sys.argv[1:])
params = CharLmParams(width=width, layers=layers, save_every=1, keep_checkpoints=1)
model = Gpt(params)
optimizer = build_optimizer(model, params)
for weight in model.parameters():
    weight.grad = torch.randn_like(weight)
optimizer.step()  # makes AdamW's two moments
optimizer.zero_grad()
bare_file = pathlib.Path(os.environ["SIGNALBOX_CHECKPOINT_DIR"]).parent / "bare.pt"

def bare(sync):
    bare_file.unlink(missing_ok=True)
    begin = time.perf_counter()
    state = {"model": model.state_dict(), "optimizer": optimizer.state_dict()}
    with bare_file.open("wb") as file:
        torch.save(state, file)
        if sync:
            file.flush()
            os.fsync(file.fileno())
    return time.perf_counter() - begin

run = signalbox.start()
checkpoints = Checkpoints(run, params, Training(model, optimizer, data=""))
ours, synced, unsynced = [], [], []
for step in range(1, saves + 1):
    os.sync()  # none pays for the one before
    begin = time.perf_counter()
    checkpoints.after(step)
    ours.append(time.perf_counter() - begin)
    os.sync()
    synced.append(bare(True))
    os.sync()
    unsynced.append(bare(False))
(folder,) = run.checkpoint_dir.iterdir()
print(json.dumps({
    "weights": sum(p.numel() for p in model.parameters()),
    "ours": ours, "synced": synced, "unsynced": unsynced,
    "bytes": sum(path.stat().st_size for path in folder.iterdir()),
    "bare_bytes": bare_file.stat().st_size,
}))
"""


def checkpoint() -> None:
    """A save of 10 M and of 100 M parameters with AdamW's state, and the slowdown of the recipes
    at their default settings."""
    for shape in SHAPES:
        _save(shape)
    for recipe in TRAININGS:
        _slowdown(recipe)


def _save(shape: str) -> None:
    with tempfile.TemporaryDirectory() as folder:
        done = subprocess.run(
            [sys.executable, "-c", SAVING, *map(str, SHAPES[shape]), str(SAVES)],
            cwd=PROJECT,
            env=_environment(Path(folder), saves=True),
            stdout=subprocess.PIPE,
            text=True,
            check=True,
        )
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    ours, synced, unsynced = (
        statistics.median(found[name]) for name in ("ours", "synced", "unsynced")
    )
    what = f"save of {found['weights'] / 1e6:.1f} M parameters and AdamW"
    line(what, f"{ours:.2f} s", f"{synced:.2f} s", f"- (torch.save, fsync: {ours / synced:.2f} x)")
    line("", f"{ours:.2f} s", f"{unsynced:.2f} s", "- (torch.save, no fsync)")
    line("  its size", f"{found['bytes'] / 1e6:.1f} MB", f"{found['bare_bytes'] / 1e6:.1f} MB", "-")


def _slowdown(recipe: str) -> None:
    """The median of pairs, and the part of the time that the log says went into saves: the
    former is as noisy as the machine, the latter leaves out what a save costs the steps after."""
    ratios, shares = [], []
    for _ in range(TRAININGS[recipe]):
        saving, saves = _train(recipe, saves=True)
        plain, _ = _train(recipe, saves=False)
        ratios.append(saving / plain)
        shares.append(saves / saving)
    spread = f"{min(ratios):.3f} to {max(ratios):.3f} x"
    line(
        f"steps of {recipe} with its default checkpoints",
        f"{statistics.median(ratios):.3f} x",
        f"{plain:.1f} s",
        f"at most 1.02 x ({spread}; saves took {statistics.median(shares):.2%})",
    )


def _train(recipe: str, saves: bool) -> tuple[float, float]:
    """Seconds from the first step to the last, and those of the saves in between."""
    with tempfile.TemporaryDirectory() as folder:
        done = subprocess.run(
            [sys.executable, "-m", f"backend.training.recipes.{recipe}", "--device", "cpu"],
            cwd=PROJECT,
            env=_environment(Path(folder), saves),
            stdout=subprocess.PIPE,
            text=True,
            check=True,
        )
        points = [
            json.loads(row) for row in RunPaths(Path(folder)).metrics.read_text().splitlines()
        ]
    first, last = (datetime.fromisoformat(points[at]["timestamp"]) for at in (0, -1))
    times = [
        float(seconds) for seconds in re.findall(r"^Saved .* in (\S+) s\.$", done.stdout, re.M)
    ]
    return (last - first).total_seconds(), sum(times[:-1])  # the last is after the last step


def _environment(folder: Path, saves: bool) -> dict[str, str]:
    paths = RunPaths(folder)
    return {
        **os.environ,
        "OMP_WAIT_POLICY": "passive",  # threads that spin would measure what else runs here
        "SIGNALBOX_RUN_DIR": str(folder),
        "SIGNALBOX_PROGRESS": str(paths.progress),
        "SIGNALBOX_CHECKPOINT_DIR": str(paths.checkpoints) if saves else "",
        "SIGNALBOX_RESUME_FROM": "",
    }
