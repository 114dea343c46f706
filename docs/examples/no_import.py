"""Finds a square root by Newton's method, and reports without the helper: one small JSON file.

python no_import.py --steps 20 --sleep 0.5
"""

import argparse
import json
import os
import time
from pathlib import Path

parser = argparse.ArgumentParser(description="Find a square root.")
parser.add_argument("--number", type=float, default=2e12)
parser.add_argument("--steps", type=int, default=30)
parser.add_argument("--sleep", type=float, default=0.5, help="seconds to wait after each step")
options = parser.parse_args()


def report(**fields: float) -> None:
    path = os.environ.get("SIGNALBOX_PROGRESS")
    if path:
        temporary = Path(path + ".tmp")
        temporary.write_text(json.dumps(fields))
        temporary.replace(path)  # nobody ever reads half a file


root = options.number
for step in range(1, options.steps + 1):
    root = (root + options.number / root) / 2
    loss = abs(root * root / options.number - 1)
    report(step=step, max_steps=options.steps, loss=loss)
    print(f"step {step}: {root:.9g}", flush=True)
    time.sleep(options.sleep)
