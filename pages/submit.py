"""Recipe, form, job page. `/submit?like=12` starts from what was asked for then."""

import streamlit as st

from backend import runtime
from backend.recipes import RECIPES
from backend.service import UnknownJobError
from backend.submission import Submission
from pages.parts import formats
from pages.parts.form import Form


def like() -> tuple[int, Submission] | None:
    """The job to start from, if the address names one."""
    text = st.query_params.get("like", "")
    if not text:
        return None
    try:
        number = int(text) if text.isascii() and text.isdigit() else -1
        return number, runtime.service().submission_like(number)
    except (UnknownJobError, OverflowError):
        st.warning(f"There is no job {formats.escape(text, 40)} to start from.")
        return None


def note_recipe() -> None:
    """The address says which recipe is chosen, and is where it is read."""
    st.query_params["recipe"] = st.session_state["recipe"]


st.title("Submit")
model = like()
if model:
    number, earlier = model
    st.caption(f"Filled in like job {number}.")
    form_key = f"like-{number}"
else:
    earlier, form_key = Submission(recipe="digits"), "new"

asked = st.query_params.get("recipe", earlier.recipe)
st.session_state["recipe"] = asked if asked in RECIPES else next(iter(RECIPES))
chosen = st.segmented_control(
    "Recipe",
    list(RECIPES),
    required=True,
    format_func=lambda key: RECIPES[key].title,
    key="recipe",
    on_change=note_recipe,
    label_visibility="collapsed",
)
assert chosen is not None
recipe = RECIPES[chosen]
st.text(recipe.sentence)
if recipe.module is None:
    st.markdown(
        "Two lines after `import signalbox` give it a live curve: `run = signalbox.start()`, and "
        "at each step `run.log(step, train_loss=loss)`. More in `docs/writing-a-job.md`."
    )
start = earlier if chosen == earlier.recipe else Submission(recipe=chosen)
Form(recipe, start, f"{form_key}-{chosen}").draw()
