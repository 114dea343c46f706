"""The catalogue: what can be submitted, and the parameters of each. No torch here."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Final, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator


def _known(path: Path, is_there: Callable[[Path], bool], otherwise: str) -> Path:
    """The path of something on this machine, from the root.

    Raises:
        ValueError: it is not there, or is no path at all; the message is a sentence.
    """
    shown = repr(str(path)[:_SHOWN])
    try:
        path = path.expanduser()
        if not path.is_absolute():
            raise ValueError(f"Give the whole path: {shown} does not start at the root.")
        if not is_there(path):
            raise ValueError(otherwise.format(shown))
    except (OSError, RuntimeError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise ValueError(f"{shown} cannot be looked at ({reason}).") from None
    return path


_SHOWN: Final = 300
"""Characters of a path in a sentence."""


class Params(BaseModel):
    """Parameters of a recipe. Bounds, units and one-line descriptions live here alone."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class TorchParams(Params):
    """What the built-in trainings share."""

    learning_rate: Annotated[float, Field(gt=0, le=1, allow_inf_nan=False)] = Field(
        default=3e-3, description="Peak step size of AdamW."
    )
    seed: Annotated[int, Field(ge=0, lt=2**32)] = Field(
        default=1, description="Seed of every random choice; the same seed gives the same run."
    )
    device: Literal["auto", "cpu", "cuda"] = Field(
        default="auto", description="Where to compute; auto takes a GPU if the job has one."
    )
    save_every: Annotated[int, Field(ge=1, le=10_000_000)] = Field(
        default=1000, description="Steps between two checkpoints; the best one is saved as well."
    )
    keep_checkpoints: Annotated[int, Field(ge=1, le=1000)] = Field(
        default=2, description="Newest checkpoints that are kept, beside the best one."
    )


class DigitsParams(TorchParams):
    """A small convolutional network on the UCI handwritten digits."""

    epochs: Annotated[int, Field(ge=1, le=10_000)] = Field(
        default=20, description="Passes over the training images."
    )
    batch_size: Annotated[int, Field(ge=1, le=2048)] = Field(
        default=32, description="Images per step."
    )
    weight_decay: Annotated[float, Field(ge=0, le=1, allow_inf_nan=False)] = Field(
        default=0.01, description="Decoupled weight decay of AdamW."
    )


class CharLmParams(TorchParams):
    """A small GPT over bytes."""

    text_path: Path | None = Field(
        default=None,
        description="What to learn; empty: the source text of Python's standard library.",
    )
    steps: Annotated[int, Field(ge=1, le=10_000_000)] = Field(
        default=2000, description="Optimizer steps."
    )
    batch_size: Annotated[int, Field(ge=1, le=4096)] = Field(
        default=16, description="Sequences per step."
    )
    context: Annotated[int, Field(ge=8, le=4096)] = Field(
        default=64, description="Bytes that the model looks back on."
    )
    layers: Annotated[int, Field(ge=1, le=48)] = Field(default=3, description="Transformer blocks.")
    heads: Annotated[int, Field(ge=1, le=64)] = Field(
        default=4, description="Attention heads in each block; must divide the width."
    )
    width: Annotated[int, Field(ge=8, le=4096)] = Field(
        default=128, description="Channels of the residual stream."
    )
    dropout: Annotated[float, Field(ge=0, lt=1, allow_inf_nan=False)] = Field(
        default=0.0, description="Share of activations dropped while training."
    )
    warmup_steps: Annotated[int, Field(ge=0, le=1_000_000)] = Field(
        default=100, description="Steps over which the learning rate rises to its peak."
    )
    weight_decay: Annotated[float, Field(ge=0, le=1, allow_inf_nan=False)] = Field(
        default=0.1, description="Decoupled weight decay of AdamW, on matrices only."
    )
    grad_clip: Annotated[float, Field(ge=0, le=1000, allow_inf_nan=False)] = Field(
        default=1.0, description="Largest norm of the gradient; 0 switches clipping off."
    )
    eval_every: Annotated[int, Field(ge=1, le=1_000_000)] = Field(
        default=100, description="Steps between two measurements of the held-out loss."
    )
    sample_bytes: Annotated[int, Field(ge=0, le=10_000)] = Field(
        default=200, description="Bytes of generated text in the log at each evaluation."
    )

    @field_validator("text_path")
    @classmethod
    def _readable(cls, path: Path | None) -> Path | None:
        if path is None:
            return None
        path = _known(path, Path.is_file, "There is no file at {}.")
        return _known(path, lambda file: file.stat().st_size > 0, "The file at {} is empty.")

    @field_validator("width")
    @classmethod
    def _divisible(cls, width: int, info: Any) -> int:
        heads = info.data.get("heads")
        if heads and width % heads:
            raise ValueError(f"Must be a multiple of the number of heads ({heads}).")
        return width


class ScriptParams(Params):
    """Any Python file, under the contract in docs/writing-a-job.md."""

    script: Path = Field(description="Absolute path of a Python file on this machine.")
    args: list[str] = Field(
        default_factory=list,
        max_length=1000,
        description="Given to the script; quotes work as in a shell, $NAME and * are not expanded.",
    )
    python: Path | None = Field(
        default=None, description="What runs the script; empty: the interpreter of this server."
    )
    working_dir: Path | None = Field(
        default=None, description="Where the script runs; empty: its own folder."
    )

    @field_validator("script")
    @classmethod
    def _a_script(cls, path: Path) -> Path:
        path = _known(
            path,
            lambda file: not file.is_dir(),
            "{} is a folder; give the path of a Python file in it.",
        )
        return _known(path, Path.is_file, "There is no file at {}.")

    @field_validator("args")
    @classmethod
    def _arguments(cls, args: list[str]) -> list[str]:
        if any("\0" in arg for arg in args):
            raise ValueError("An argument holds a NUL byte, which no program can be given.")
        return args

    @field_validator("python")
    @classmethod
    def _an_interpreter(cls, path: Path | None) -> Path | None:
        return path and _known(path, Path.is_file, "There is no interpreter at {}.")

    @field_validator("working_dir")
    @classmethod
    def _a_folder(cls, path: Path | None) -> Path | None:
        return path and _known(path, Path.is_dir, "There is no folder at {}.")


@dataclass(frozen=True)
class Recipe:
    """One thing that can be submitted."""

    key: str
    title: str
    sentence: str
    params: type[Params]
    module: str | None
    """What `python -m` runs; None: the file that the parameters name."""


RECIPES: Final[Mapping[str, Recipe]] = {
    recipe.key: recipe
    for recipe in (
        Recipe(
            "digits",
            "Handwritten digits",
            "A small convolutional network learns 1,797 handwritten digits in under a minute.",
            DigitsParams,
            "backend.training.recipes.digits",
        ),
        Recipe(
            "char_lm",
            "Character language model",
            "A small GPT learns to write from any text, byte by byte.",
            CharLmParams,
            "backend.training.recipes.char_lm",
        ),
        Recipe(
            "script",
            "Your own script",
            "Any Python file; two lines of it, or a small JSON file, report its progress.",
            ScriptParams,
            None,
        ),
    )
}


@dataclass(frozen=True)
class Command:
    """How a job is started: `python *argv`, in `folder`."""

    argv: Sequence[str]
    python: str | None = None
    """None: the interpreter of the server that starts it."""
    folder: str | None = None
    """None: the project's own folder."""


def command_for(key: str, params: Params) -> Command:
    """The command line of a recipe with these parameters, as a person would type it."""
    if isinstance(params, ScriptParams):
        return Command(
            argv=(str(params.script), *params.args),
            python=str(params.python) if params.python else None,
            folder=str(params.working_dir or params.script.parent),
        )
    module = RECIPES[key].module
    assert module is not None
    options: list[str] = []
    for name, value in params.model_dump(mode="json", exclude_none=True).items():
        options += [f"--{name}", str(value)]
    return Command(argv=("-m", module, *options))
