"""What the recipes do alike before their first step and after their last."""

import argparse
import json
import os
import random
import sys
from pathlib import Path
from typing import TypeVar

import torch
from pydantic import ValidationError
from torch import nn

from backend.recipes import TorchParams

COMPLETE = "COMPLETE"
"""The file that is written last into a checkpoint folder; without it the folder does not count."""

P = TypeVar("P", bound=TorchParams)


def params_from_command_line(model: type[P]) -> P:
    """The parameters as given by `--name value`; exits with a sentence for each wrong one."""
    # Not pydantic-settings' CliApp, which spells the options of a plain model --learning-rate.
    parser = argparse.ArgumentParser(description=model.__doc__, allow_abbrev=False)
    for name, field in model.model_fields.items():
        text = f"{field.description} (default: {field.default})".replace("%", "%%")
        parser.add_argument(f"--{name}", help=text, metavar="VALUE", default=argparse.SUPPRESS)
    try:
        return model.model_validate(vars(parser.parse_args()))
    except ValidationError as error:
        wrong = (f"--{'.'.join(map(str, e['loc']))}: {e['msg']}" for e in error.errors())
        parser.exit(2, "\n".join(wrong) + "\n")


def device_for(name: str) -> torch.device:
    """The device that `--device` asks for."""
    if name == "cuda" and not torch.cuda.is_available():
        sys.exit("This job asks for a GPU (--device cuda), and torch finds none that it can use.")
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    return torch.device(name)


def set_seeds(seed: int, device: torch.device) -> None:
    """Make every random choice follow from `seed`; on the CPU the whole run then repeats."""
    random.seed(seed)
    torch.manual_seed(seed)  # of every device
    if device.type == "cpu":
        torch.use_deterministic_algorithms(True)


def save_weights(checkpoints: Path | None, step: int, model: nn.Module, params: P) -> None:
    """Write `step-00000500/` with the weights and the parameters; outside a job, nothing."""
    if checkpoints is None:
        print("The weights are not kept: SIGNALBOX_CHECKPOINT_DIR names no folder for them.")
        return
    folder = checkpoints / f"step-{step:08d}"
    temporary = checkpoints / f".{folder.name}.{os.getpid()}.tmp"
    temporary.mkdir(parents=True)
    torch.save(model.state_dict(), temporary / "model.pt")
    (temporary / "params.json").write_text(json.dumps(params.model_dump(mode="json"), indent=2))
    temporary.rename(folder)
    (folder / COMPLETE).touch()
    print(f"Weights saved in {folder}.")
