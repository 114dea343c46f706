"""What a person asks for, and everything that can be wrong with it."""

import re
import unicodedata
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from pydantic import BaseModel, ConfigDict, ValidationError
from pydantic_core import ErrorDetails

from backend.models import Job
from backend.recipes import RECIPES, Params

MAX_NAME: Final = 200
MAX_TIMEOUT_MINUTES: Final = 525_600
MAX_RETRIES: Final = 100
MAX_ENV: Final = 200
MAX_VALUE: Final = 32_768
"""Characters of an environment variable's value."""


class Submission(BaseModel):
    """What a person asks for. Only its shape is checked here; see `Service.validate`."""

    model_config = ConfigDict(extra="forbid")

    recipe: str
    params: dict[str, Any] = {}
    name: str = ""
    env: dict[str, str] = {}
    timeout_minutes: float | None = None
    gpus: int | None = None
    max_retries: int = 0


@dataclass(frozen=True)
class Problem:
    """One thing that is wrong with a submission: which field, and a sentence."""

    field: str
    message: str


class InvalidSubmissionError(ValueError):
    """A submission was refused and nothing was queued."""

    def __init__(self, problems: Sequence[Problem]) -> None:
        super().__init__("; ".join(f"{p.field}: {p.message}" for p in problems))
        self.problems = tuple(problems)


def check(submission: Submission, gpu_count: int) -> tuple[Params | None, list[Problem]]:
    """The parameters of a submission, and everything that is wrong with it.

    Args:
        gpu_count: how many GPUs this machine has.
    """
    problems: list[Problem] = []
    params: Params | None = None
    recipe = RECIPES.get(submission.recipe)
    if recipe is None:
        known = ", ".join(RECIPES)
        problems.append(Problem("recipe", f"There is no such recipe; there are {known}."))
    else:
        try:
            params = recipe.params.model_validate(submission.params)
        except ValidationError as error:
            problems += [
                Problem(".".join(map(str, details["loc"][:1])) or "params", sentence(details))
                for details in error.errors()
            ]
    if len(submission.name) > MAX_NAME:
        problems.append(Problem("name", f"Must be at most {MAX_NAME} characters long."))
    minutes = submission.timeout_minutes
    if minutes is not None and not 0.001 <= minutes <= MAX_TIMEOUT_MINUTES:
        problems.append(
            Problem(
                "timeout_minutes",
                f"Must be more than 0 and at most {MAX_TIMEOUT_MINUTES:,} minutes (a year).",
            )
        )
    gpus = submission.gpus
    if gpus is not None and not 0 <= gpus <= gpu_count:
        have = f"has {gpu_count}" if gpu_count else "has none"
        problems.append(Problem("gpus", f"Cannot be {gpus}: this machine {have}."))
    elif getattr(params, "device", None) == "cuda" and not (gpu_count if gpus is None else gpus):
        who = "This job gets no GPU" if gpu_count else "This machine has no GPU"
        problems.append(Problem("device", f"{who}; choose auto or cpu."))
    if not 0 <= submission.max_retries <= MAX_RETRIES:
        problems.append(Problem("max_retries", f"Must be at least 0 and at most {MAX_RETRIES}."))
    problems += _env_problems(submission.env)
    return params, problems


def submission_of(job: Job) -> Submission:
    """What was asked for when this job was submitted."""
    return Submission(
        recipe=job.recipe,
        params=job.params,
        name=job.name,
        env=job.env,
        timeout_minutes=job.timeout_seconds / 60,
        gpus=job.gpus,
        max_retries=job.max_retries,
    )


def clean_name(name: str) -> str:
    """A name on one line, of characters that any database can take and that show as what they are:
    no control characters, none without a width, and none that turns the writing."""
    kinds = [(unicodedata.category(c), c) for c in name.encode("utf-8", "replace").decode()]
    return " ".join("".join(" " if k == "Cc" else c for k, c in kinds if k != "Cf").split())


def default_name(recipe: str, params: Params) -> str:
    """What a job is called that was not given a name."""
    script: Path | None = getattr(params, "script", None)
    return (clean_name(script.stem)[:MAX_NAME] if script else "") or recipe


def _env_problems(env: Mapping[str, str]) -> list[Problem]:
    if len(env) > MAX_ENV:
        return [Problem("env", f"At most {MAX_ENV} variables can be set.")]
    problems = []
    for name, value in env.items():
        if not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*", name):
            problems.append(
                Problem(
                    "env",
                    f"{name!r} is no name for a variable: letters, digits and _ alone.",
                )
            )
        elif name.startswith("SIGNALBOX_"):
            problems.append(Problem("env", f"{name} is set by Signalbox itself."))
        elif len(value) > MAX_VALUE:
            problems.append(Problem("env", f"{name} has more than {MAX_VALUE:,} characters."))
        elif "\0" in value or not _encodable(value):
            problems.append(Problem("env", f"{name} holds a character that no variable can."))
    return problems


def _encodable(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


_SENTENCES: Final[Mapping[str, str]] = {
    "missing": "Is needed.",
    "extra_forbidden": "There is no such parameter.",
    "greater_than": "Must be more than {gt:g}.",
    "greater_than_equal": "Must be at least {ge:g}.",
    "less_than": "Must be less than {lt:g}.",
    "less_than_equal": "Must be at most {le:g}.",
    "int_parsing": "Must be a whole number.",
    "int_type": "Must be a whole number.",
    "int_from_float": "Must be a whole number.",
    "int_parsing_size": "Is too large.",
    "float_parsing": "Must be a number.",
    "float_type": "Must be a number.",
    "finite_number": "Must be a finite number.",
    "literal_error": "Must be {expected}.",
    "path_type": "Must be a path.",
    "string_type": "Must be a text.",
    "too_long": "Must have at most {max_length} entries.",
    "string_too_long": "Must be at most {max_length} characters long.",
    "list_type": "Must be a list.",
    "dict_type": "Must be an object.",
    "model_type": "Must be an object.",
    "model_attributes_type": "Must be an object.",
    "bool_type": "Must be true or false.",
    "enum": "Must be {expected}.",
}


def sentence(details: ErrorDetails) -> str:
    """What pydantic found, in our words."""
    context = details.get("ctx", {})
    if details["type"] == "value_error":
        return str(context["error"])
    template = _SENTENCES.get(details["type"])
    return template.format(**context) if template else details["msg"] + "."
