"""What the recipes do alike before their first step: parameters, device, random numbers."""

import argparse
import random
import sys
from typing import Any, TypeVar

import torch
from pydantic import ValidationError

from backend.recipes import TorchParams

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


def random_states() -> dict[str, Any]:
    """Where Python's and torch's random numbers stand, those of every CUDA device in use too."""
    in_use = torch.cuda.is_initialized()  # type: ignore[no-untyped-call]
    cuda = torch.cuda.get_rng_state_all() if in_use else []
    return {"python": random.getstate(), "torch": torch.get_rng_state(), "cuda": cuda}


def restore_random_states(states: dict[str, Any]) -> None:
    """Go on from what `random_states` gave; a device that is not here any more is left out."""
    random.setstate(states["python"])
    torch.set_rng_state(states["torch"])
    for index, state in enumerate(states["cuda"][: torch.cuda.device_count()]):
        torch.cuda.set_rng_state(state, index)
