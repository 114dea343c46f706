"""The callbacks for Hugging Face's and Lightning's trainers, tested with the real libraries.

Their tests are in callbacks/. Each library is imported once, in a process of its own.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from backend.training import signalbox

PROJECT = Path(__file__).parents[2]

pytestmark = pytest.mark.timeout(400)  # seconds of work; a busy machine may take minutes


@pytest.mark.parametrize("library", ["transformers", "lightning"])
def test_the_callback_does_what_it_says_in_its_library(library: str, tmp_path: Path) -> None:
    environment = {
        k: v for k, v in os.environ.items() if not k.startswith(("SIGNALBOX_", "PYTEST"))
    }
    done = subprocess.run(
        [
            *(sys.executable, "-m", "pytest", "-q", "-n", "0", "-p", "no:cacheprovider"),
            *("--noconftest", "--basetemp", str(tmp_path / "basetemp")),
            f"tests/training/callbacks/{library}_cases.py",
        ],
        cwd=PROJECT,
        env={
            **environment,
            "PYTHONPATH": os.pathsep.join([str(Path(signalbox.__file__).parent), str(PROJECT)]),
            "HF_HUB_OFFLINE": "1",
            "OMP_NUM_THREADS": "1",  # tiny models, and others test beside this
        },
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout


def test_all_ranks_of_lightning_stop_at_the_step_at_which_one_is_asked(tmp_path: Path) -> None:
    """Rank 1 never looks whether it is to stop; without a word from rank 0 it would wait for it."""
    environment = {
        k: v for k, v in os.environ.items() if not k.startswith(("SIGNALBOX_", "PYTEST"))
    }
    done = subprocess.run(
        [sys.executable, "-W", "ignore", PROJECT / "tests/training/callbacks/lightning_ranks.py"],
        env={
            **environment,
            "PYTHONPATH": str(Path(signalbox.__file__).parent),
            "SIGNALBOX_RUN_DIR": str(tmp_path),
            "SIGNALBOX_PROGRESS": str(tmp_path / "progress.json"),
            "SIGNALBOX_CHECKPOINT_DIR": str(tmp_path / "checkpoints"),
            "OMP_NUM_THREADS": "1",
        },
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
        timeout=300,
    )
    assert done.returncode == 0, done.stdout
    assert "rank 0 stopped: True, at step 4" in done.stdout
    assert "rank 1 stopped: True, at step 4" in done.stdout
    progress = json.loads((tmp_path / "progress.json").read_text())
    assert (progress["status"], progress["checkpoint"]) == ("stopping", "step-00000004")
    assert (tmp_path / "checkpoints" / "step-00000004" / signalbox.COMPLETE).exists()
