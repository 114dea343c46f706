"""The form: made from the parameter models, and a wrong value is named beside its field."""

from pathlib import Path

import pytest
from streamlit.testing.v1 import AppTest

from backend import runtime, service
from backend.models import JobStatus
from backend.recipes import RECIPES
from backend.views import JobView
from tests.pages.conftest import Open, Rows, sound, words


def form(open_page: Open, recipe: str = "digits", **query: str) -> AppTest:
    page = open_page("submit", **query)
    (chooser,) = [c for c in page.segmented_control if c.key == "recipe"]
    if chooser.value != recipe:
        chooser.set_value(recipe)
        sound(page.run())
    return page


def fill(page: AppTest, **values: str) -> None:
    for name, value in values.items():
        label = name.replace("_", " ").capitalize()
        (field,) = [f for f in (*page.text_input, *page.text_area) if f.label == label]
        field.set_value(value)


def press(page: AppTest) -> AppTest:
    (submit,) = [b for b in page.button if b.label == "Submit"]
    submit.click()
    return sound(page.run())


def queued() -> list[JobView]:
    return list(runtime.service().jobs().jobs)


def problems(page: AppTest) -> str:
    return " ".join(error.value for error in page.error)


@pytest.mark.parametrize("recipe", ["digits", "char_lm"])
def test_defaults_are_valid_and_queued_as_they_are(
    recipe: str, rows: Rows, open_page: Open
) -> None:
    page = press(form(open_page, recipe))
    (job,) = queued()
    assert job.params == RECIPES[recipe].params().model_dump(mode="json")
    assert job.timeout_seconds == 600
    assert job.max_retries == 0
    assert page.query_params["id"] == str(job.job_id)
    assert page.title[0].value.replace("\\", "") == recipe


@pytest.mark.parametrize("recipe", list(RECIPES))
def test_every_parameter_has_a_field_with_its_description(
    recipe: str, rows: Rows, open_page: Open
) -> None:
    page = form(open_page, recipe)
    keys = [
        widget.key or "" for widget in (*page.text_input, *page.segmented_control, *page.toggle)
    ]
    text = words(page)
    for name, field in RECIPES[recipe].params.model_fields.items():
        assert any(key.endswith(f"-{name}") for key in keys), name
        assert (field.description or "") in text


def test_bounds_are_shown(rows: Rows, open_page: Open) -> None:
    text = words(form(open_page))
    assert "1 to 10,000." in text
    assert "More than 0, at most 1." in text


@pytest.mark.parametrize(
    ("field", "typed", "said"),
    [
        ("epochs", "0", "at least 1"),
        ("epochs", "many", "whole number"),
        ("epochs", "1.5", "whole number"),
        ("epochs", "", "whole number"),
        ("epochs", "9" * 30, "at most"),
        ("learning_rate", "2", "at most 1"),
        ("learning_rate", "nan", "finite"),
        ("learning_rate", "fast", "number"),
        ("timeout_in_minutes", "-1", "more than 0"),
        ("timeout_in_minutes", "soon", "Give a number"),
        ("automatic_retries", "101", "at most 100"),
        ("automatic_retries", "-1", "whole number"),
        ("automatic_retries", "often", "whole number"),
        ("name", "x" * 300, "at most 200"),
    ],
)
def test_a_wrong_value_is_named_kept_and_not_queued(
    field: str, typed: str, said: str, rows: Rows, open_page: Open
) -> None:
    page = form(open_page)
    fill(page, **{field: typed})
    press(page)
    assert queued() == []
    assert said in problems(page).replace("\\", "")
    label = field.replace("_", " ").capitalize()
    (widget,) = [f for f in page.text_input if f.label == label]
    assert widget.value == typed


@pytest.mark.parametrize(("typed", "kept"), [("", 0), ("100", 100)])
def test_automatic_retries_are_asked_for_by_their_number(
    typed: str, kept: int, rows: Rows, open_page: Open
) -> None:
    page = form(open_page)
    fill(page, automatic_retries=typed)
    press(page)
    (job,) = queued()
    assert job.max_retries == kept


def test_all_wrong_values_are_named_at_once_and_go_when_mended(rows: Rows, open_page: Open) -> None:
    page = form(open_page)
    fill(page, epochs="0", seed="-1", timeout_in_minutes="x")
    press(page)
    assert len(page.error) == 4
    summary = "Nothing was queued: 3 fields need another look (Seed, Epochs, Timeout in minutes)."
    assert summary in problems(page).replace("\\", "")
    assert "1 to 10,000." in words(page)  # what it should be stays beside what is wrong
    fill(page, epochs="2", seed="3", timeout_in_minutes="0.5")
    press(page)
    (job,) = queued()
    assert (job.params["epochs"], job.params["seed"], job.timeout_seconds) == (2, 3, 30)


def test_a_script_is_queued_exactly_as_typed(rows: Rows, open_page: Open, tmp_path: Path) -> None:
    path = tmp_path / "train.py"
    path.write_text("print(1)")
    page = form(open_page, "script")
    fill(
        page,
        script=f"  {path} ",
        arguments="--name 'two words' --lr 1e-3",
        working_folder=str(tmp_path),
        environment="A=1\n\nB=x=y ",
        name="mine",
    )
    press(page)
    (job,) = queued()
    assert job.params == {
        "script": str(path),
        "args": ["--name", "two words", "--lr", "1e-3"],
        "python": None,
        "working_dir": str(tmp_path),
    }
    assert (job.name, list(job.env_names)) == ("mine", ["A", "B"])


@pytest.mark.parametrize(
    ("field", "typed", "said"),
    [
        ("script", "", "needed"),
        ("script", "train.py", "whole path"),
        ("script", "/nowhere/x.py", "no file"),
        ("arguments", "'unclosed", "No closing quotation"),
        ("interpreter", "/nowhere/python", "no interpreter"),
        ("working_folder", "/nowhere", "no folder"),
        ("environment", "NOVALUE", "not NAME=value"),
        ("environment", "1A=b", "no name for a variable"),
        ("environment", "SIGNALBOX_JOB_ID=1", "Signalbox itself"),
    ],
)
def test_what_is_wrong_with_a_script_is_named(
    field: str, typed: str, said: str, rows: Rows, open_page: Open, tmp_path: Path
) -> None:
    path = tmp_path / "train.py"
    path.write_text("print(1)")
    page = form(open_page, "script")
    fill(page, script=str(path))
    fill(page, **{field: typed})
    press(page)
    assert queued() == []
    assert said in problems(page).replace("\\", "")


def test_char_lm_learns_an_uploaded_text(rows: Rows, open_page: Open) -> None:
    page = form(open_page, "char_lm")
    page.file_uploader[0].upload("my text.txt", b"to be or not to be")
    press(page)
    (job,) = queued()
    assert Path(job.params["text_path"]).read_bytes() == b"to be or not to be"


def test_submit_like_an_earlier_job_fills_in_everything_but_secrets(
    rows: Rows, open_page: Open, tmp_path: Path
) -> None:
    path = tmp_path / "train.py"
    path.write_text("print(1)")
    params = {
        "script": str(path),
        "args": ["--a", "b c"],
        "python": None,
        "working_dir": str(tmp_path),
    }
    job_id = rows.job(
        JobStatus.COMPLETED,
        recipe="script",
        params=params,
        name="first",
        env={"TOKEN": "secret"},
        timeout_seconds=90,
        max_retries=3,
    )
    page = open_page("submit", like=str(job_id))
    shown = {field.label: field.value for field in (*page.text_input, *page.text_area)}
    assert shown["Script"] == str(path)
    assert shown["Arguments"] == "--a 'b c'"
    assert shown["Working folder"] == str(tmp_path)
    assert shown["Environment"] == "TOKEN="
    assert shown["Timeout in minutes"] == "1.5"
    assert shown["Automatic retries"] == "3"
    assert shown["Name"] == "first"
    assert "secret" not in words(page)
    press(page)
    assert "TOKEN needs its value again." in problems(page).replace("\\", "")
    fill(page, environment="TOKEN=new")
    press(page)
    new, _ = queued()
    assert new.params == params
    assert new.timeout_seconds == 90
    assert new.max_retries == 3


def test_a_needed_field_without_a_default_is_empty(rows: Rows, open_page: Open) -> None:
    page = form(open_page, "script")
    (script,) = [field for field in page.text_input if field.label == "Script"]
    assert script.value == ""


def test_another_recipe_and_back_keeps_what_was_typed(rows: Rows, open_page: Open) -> None:
    page = form(open_page)
    fill(page, epochs="7")
    for recipe in ("char_lm", "digits"):
        (chooser,) = [c for c in page.segmented_control if c.key == "recipe"]
        chooser.set_value(recipe)
        sound(page.run())
    (epochs,) = [field for field in page.text_input if field.label == "Epochs"]
    assert epochs.value == "7"


@pytest.mark.parametrize(("text", "recipe"), [("char_lm", "char_lm"), ("nonsense", "digits")])
def test_the_address_chooses_the_recipe(
    text: str, recipe: str, rows: Rows, open_page: Open
) -> None:
    (chooser,) = [
        c for c in open_page("submit", recipe=text).segmented_control if c.key == "recipe"
    ]
    assert chooser.value == recipe


def test_the_form_says_how_a_script_gets_a_curve(rows: Rows, open_page: Open) -> None:
    text = words(form(open_page, "script"))
    assert "import signalbox" in text
    assert "docs/writing-a-job.md" in text


@pytest.mark.parametrize("text", ["99", "abc", "-1", "9" * 40])
def test_submit_like_an_unknown_job_says_so_and_shows_the_form(
    text: str, rows: Rows, open_page: Open
) -> None:
    page = open_page("submit", like=text)
    assert "no job" in page.warning[0].value
    assert any(b.label == "Submit" for b in page.button)


def test_a_full_queue_is_told_in_its_place_and_keeps_what_was_typed(
    rows: Rows, open_page: Open, monkeypatch: pytest.MonkeyPatch
) -> None:
    page = form(open_page)
    fill(page, name="kept")
    rows.job()
    monkeypatch.setattr(service, "MAX_QUEUED", 1)
    page = press(page)
    assert "The queue is full" in problems(page)
    assert len(queued()) == 1
    monkeypatch.setattr(service, "MAX_QUEUED", 2)
    press(page)
    assert {job.name for job in queued()} == {"a job", "kept"}
