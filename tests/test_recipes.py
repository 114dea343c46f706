"""The catalogue: defaults are valid, commands are what a person would type."""

import sys
from pathlib import Path

import pytest
from pydantic import ValidationError

from backend.recipes import RECIPES, CharLmParams, DigitsParams, ScriptParams, command_for


def test_every_parameter_of_every_recipe_is_described() -> None:
    for recipe in RECIPES.values():
        for name, field in recipe.params.model_fields.items():
            assert field.description, f"{recipe.key}.{name}"
            assert field.description.endswith(".")


def test_a_recipe_is_run_by_the_command_in_its_docstring() -> None:
    command = command_for("digits", DigitsParams(epochs=5))
    assert command.argv[:2] == ("-m", "backend.training.recipes.digits")
    at = command.argv.index("--epochs")
    assert command.argv[at + 1] == "5"
    assert command.python is None
    assert command.folder is None


def test_parameters_that_are_not_given_are_not_on_the_command_line() -> None:
    assert "--text_path" not in command_for("char_lm", CharLmParams()).argv


def test_a_script_runs_in_its_own_folder_unless_told_otherwise(tmp_path: Path) -> None:
    script = tmp_path / "train.py"
    script.touch()
    command = command_for("script", ScriptParams(script=script, args=["a b"]))
    assert command.argv == (str(script), "a b")
    assert command.folder == str(tmp_path)
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    params = ScriptParams(script=script, python=Path(sys.executable), working_dir=elsewhere)
    command = command_for("script", params)
    assert (command.python, command.folder) == (sys.executable, str(elsewhere))


@pytest.mark.parametrize(
    ("field", "value", "words"),
    [
        ("script", "train.py", "whole path"),
        ("script", "/nowhere/train.py", "no file"),
        ("script", "/tmp", "is a folder"),
        ("python", "/nowhere/python", "no interpreter"),
        ("working_dir", "/nowhere", "no folder"),
    ],
)
def test_what_does_not_exist_is_named(tmp_path: Path, field: str, value: str, words: str) -> None:
    script = tmp_path / "train.py"
    script.touch()
    with pytest.raises(ValidationError, match=words):
        ScriptParams.model_validate({"script": str(script), field: value})


def test_heads_must_divide_the_width() -> None:
    with pytest.raises(ValidationError, match="multiple of the number of heads"):
        CharLmParams(width=100, heads=3)
