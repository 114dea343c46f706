"""The form of a recipe, made from its parameter model; a wrong value is named beside its field.

Numbers are typed into text fields: a number field would bend a wrong value to its bounds and say
nothing. What cannot be understood goes to the service as it was typed, and the service names it.
"""

import shlex
import types
from typing import Any, Final, Literal, Union, get_args, get_origin

import streamlit as st
from pydantic.fields import FieldInfo

from backend import runtime
from backend.recipes import Recipe
from backend.submission import InvalidSubmissionError, Problem, Submission
from pages.parts import formats, trouble
from pages.parts.live import go_to_job

LABELS: Final = {
    "text_path": "Text file",
    "python": "Interpreter",
    "working_dir": "Working folder",
    "args": "Arguments",
    "grad_clip": "Gradient clipping",
    "eval_every": "Evaluate every",
}
RUN_LABELS: Final = {
    "name": "Name",
    "timeout_minutes": "Timeout in minutes",
    "gpus": "GPUs",
    "max_retries": "Automatic retries",
    "env": "Environment",
}
WIDE: Final = frozenset({"script", "args", "text_path", "python", "working_dir"})
UPLOAD: Final = "text_path"
"""The field that an uploaded file may fill."""


class Form:
    """One form of one recipe; its widgets' values live in the session under `key`.

    It is no `st.form`, which forgets what was typed and not sent when another recipe is looked at.
    """

    def __init__(self, recipe: Recipe, start: Submission, key: str) -> None:
        self.recipe = recipe
        self.start = start
        self.key = key
        self.fields = recipe.params.model_fields

    def draw(self) -> None:
        """Draw all fields, each with what it is and what is wrong with it."""
        self.problems: list[Problem] = list(st.session_state.pop(f"problems-{self.key}", ()))
        labels = self._refused()
        with st.container(border=True, key=f"form-{self.key}"):
            for name in self.fields:
                if name in WIDE:
                    with st.container(gap="xxsmall"):
                        self._field(name)
            with st.grid(3, min_column_width=230):
                for name in self.fields:
                    if name not in WIDE:
                        with st.container(gap="xxsmall"):
                            self._field(name)
            self._environment()
            st.subheader("The run", anchor=False)
            with st.grid(3, min_column_width=230):
                self._text("name", self.start.name, "If left empty, the recipe's or the script's.")
                timeout = self.start.timeout_minutes
                self._text(
                    "timeout_minutes",
                    "" if timeout is None else f"{timeout:g}",
                    "The job is ended when it reports no progress for this long. "
                    f"If left empty, {runtime.service().settings.timeout_minutes:g}.",
                )
                self._text(
                    "max_retries",
                    f"{self.start.max_retries}",
                    "How many times it is queued again, from its last checkpoint, after it timed "
                    "out, crashed or was lost.",
                )
                if self._gpus():
                    gpus = self.start.gpus
                    hint = f"How many of {self._gpus()} it gets to itself. If left empty, as usual."
                    self._text("gpus", "" if gpus is None else str(gpus), hint)
            for problem in self.problems:  # of fields that are not on the form
                st.error(formats.escape(f"{problem.field}: {problem.message}", 500))
            if labels:
                need = "field needs" if len(labels) == 1 else "fields need"
                words = f"Nothing was queued: {len(labels)} {need} another look"
                st.error(f"{words} ({formats.escape(', '.join(labels), 500)}).")
            st.button(
                "Submit",
                type="primary",
                on_click=trouble.acting(self.key, "Nothing was queued", self._submit),
                key=f"submit-{self.key}",
            )
            trouble.said(self.key)

    def _field(self, name: str) -> None:
        """One parameter: its widget by its type, then its description and bounds."""
        field = self.fields[name]
        default = None if field.is_required() else field.get_default(call_default_factory=True)
        value = self.start.params.get(name, default)
        hint = " ".join(part for part in (field.description, bounds(field)) if part)
        label, key = label_of(name), self._key(name)
        if options := choices(field):
            st.segmented_control(
                label,
                options,
                default=value,
                required=True,
                key=key,
                on_change="ignore",
                persist_state="page",
            )
        elif field.annotation is bool:
            st.toggle(label, value=bool(value), key=key, on_change="ignore", persist_state="page")
        else:
            self._input(name, label, as_typed(value))
        self._below(name, hint)
        if name == UPLOAD:
            st.file_uploader("Or upload a text", key=self._key("upload"))

    def _text(self, name: str, value: str, hint: str) -> None:
        with st.container(gap="xxsmall"):
            self._input(name, RUN_LABELS[name], value)
            self._below(name, hint)

    def _input(self, name: str, label: str, value: str) -> None:
        st.text_input(
            label,
            value=value,
            key=self._key(name),
            autocomplete="off",
            on_change="ignore",
            persist_state="page",
        )

    def _environment(self) -> None:
        if self.recipe.module is not None:
            return
        lines = "\n".join(f"{name}={value}" for name, value in self.start.env.items())
        if self.start.env:
            names = ", ".join(self.start.env)
            st.text(
                "The values of environment variables are not copied. "
                f"Type them again, or remove their lines: {formats.one_line(names, 500)}."
            )
        st.text_area(
            RUN_LABELS["env"],
            value=lines,
            key=self._key("env"),
            height=90,
            on_change="ignore",
            persist_state="page",
        )
        self._below("env", "One NAME=value on each line.")

    def _below(self, name: str, hint: str) -> None:
        """The problems of a field, and its hint."""
        wrong = [p for p in self.problems if field_of(p) == name]
        self.problems = [p for p in self.problems if p not in wrong]
        for problem in wrong:
            st.error(formats.escape(problem.message, 500), icon=":material/error:")
        st.caption(formats.escape(hint, 300))

    def _refused(self) -> list[str]:
        """The labels of the fields that something is wrong with."""
        named = dict.fromkeys(field_of(problem) for problem in self.problems)
        fields = sorted(self.fields, key=lambda name: name not in WIDE)  # as they are drawn
        order = [*fields, "env", "name", "timeout_minutes", "max_retries", "gpus"]
        named_in_order = [*(n for n in order if n in named), *(n for n in named if n not in order)]
        return [RUN_LABELS.get(name) or label_of(name) for name in named_in_order]

    def _key(self, name: str) -> str:
        return f"{self.key}-{name}"

    def _typed(self, name: str) -> str:
        return str(st.session_state.get(self._key(name)) or "").strip()

    @staticmethod
    def _gpus() -> int:
        return runtime.service().gpu_count

    def _submit(self) -> None:
        """Queue what was typed and go to its page, or keep what is wrong for the next drawing."""
        problems: list[Problem] = []
        params = self._params(problems)
        submission = Submission(
            recipe=self.recipe.key,
            params=params,
            name=self._typed("name"),
            env=self._env(problems),
            timeout_minutes=self._number("timeout_minutes", "10 or 0.5", problems),
            gpus=self._whole("gpus", problems),
            max_retries=self._whole("max_retries", problems) or 0,
        )
        named = {problem.field for problem in problems}
        problems += [p for p in runtime.service().validate(submission) if p.field not in named]
        if not problems:
            try:
                job_id = runtime.service().submit(submission)
            except InvalidSubmissionError as error:
                problems += error.problems
            else:
                go_to_job(job_id)
        st.session_state[f"problems-{self.key}"] = problems

    def _params(self, problems: list[Problem]) -> dict[str, Any]:
        params: dict[str, Any] = {}
        for name, field in self.fields.items():
            value = st.session_state.get(self._key(name))
            if isinstance(value, str) and not choices(field):
                try:
                    params |= understood(name, field, value.strip())
                except ValueError as error:
                    problems.append(Problem(name, f"{error}."))
            else:
                params[name] = value
        upload = st.session_state.get(self._key("upload"))
        if upload is not None:
            try:
                params[UPLOAD] = runtime.service().keep_upload(upload.name, upload.getvalue())
            except OSError as error:
                reason = f"The upload cannot be kept ({error.strerror})."
                problems.append(Problem(UPLOAD, reason))
        return params

    def _env(self, problems: list[Problem]) -> dict[str, str]:
        env = {}
        for number, line in enumerate(self._typed("env").splitlines(), 1):
            name, equals, value = line.partition("=")
            if not line.strip():
                continue
            name = name.strip()
            if not equals or not name:
                problems.append(Problem("env", f"Line {number} is not NAME=value."))
            elif not value.strip() and name in self.start.env:
                problems.append(Problem("env", f"{name} needs its value again."))
            env[name] = value
        return env

    def _number(self, name: str, example: str, problems: list[Problem]) -> float | None:
        text = self._typed(name)
        try:
            return float(text) if text else None
        except ValueError:
            problems.append(Problem(name, f"Give a number, such as {example}; this is {text!r}."))
            return None

    def _whole(self, name: str, problems: list[Problem]) -> int | None:
        text = self._typed(name)
        if text and not (text.isascii() and text.isdigit()):
            problems.append(Problem(name, f"Give a whole number; this is {text!r}."))
            return None
        return int(text) if text else None


def field_of(problem: Problem) -> str:
    return problem.field.removeprefix("params.").split(".")[0]


def label_of(name: str) -> str:
    return LABELS.get(name, name.replace("_", " ").capitalize())


def choices(field: FieldInfo) -> list[Any]:
    """The values of a Literal field, or nothing."""
    return list(get_args(field.annotation)) if get_origin(field.annotation) is Literal else []


def bounds(field: FieldInfo) -> str:
    """The bounds of a number in words: `1 to 10,000.`, `More than 0, at most 1.`"""
    said = {k: v for m in field.metadata for k, v in vars_of(m).items() if v is not None}
    low, high = said.get("ge"), said.get("le")
    if low is not None and high is not None:
        return f"{low:,} to {high:,}."
    words = [
        f"{word} {said[limit]:,}"
        for limit, word in (
            ("ge", "at least"),
            ("gt", "more than"),
            ("le", "at most"),
            ("lt", "less than"),
        )
        if said.get(limit) is not None and isinstance(said[limit], int | float)
    ]
    text = ", ".join(words)
    return f"{text[:1].upper()}{text[1:]}." if text else ""


def vars_of(constraint: Any) -> dict[str, Any]:
    return {limit: getattr(constraint, limit, None) for limit in ("ge", "gt", "le", "lt")}


def as_typed(value: Any) -> str:
    """A parameter as a person would type it."""
    if value is None or value == "":
        return ""
    if isinstance(value, list | tuple):
        return shlex.join(map(str, value))
    return f"{value:g}" if isinstance(value, float) and float(f"{value:g}") == value else str(value)


def understood(name: str, field: FieldInfo, text: str) -> dict[str, Any]:
    """What was typed as a parameter; nothing where the field was left empty and may be.

    Raises:
        ValueError: a list is not quoted as in a shell.
    """
    kinds = kinds_of(field.annotation)
    if list in kinds:
        return {name: shlex.split(text)}
    if not text and (type(None) in kinds or field.is_required()):
        return {}
    for kind in (int, float):
        if kind in kinds:
            try:
                return {name: kind(text)}
            except ValueError:
                break  # as typed: the service names what is wrong with it
    return {name: text}


def kinds_of(annotation: Any) -> set[Any]:
    """`int | None` is {int, NoneType}; `list[str]` is {list}."""
    if get_origin(annotation) in {Union, types.UnionType}:
        return set().union(*map(kinds_of, get_args(annotation)))
    return {get_origin(annotation) or annotation}
