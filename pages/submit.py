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


st.title("Submit")
model = like()
if model:
    number, earlier = model
    st.caption(f"Filled in like job {number}.")
    recipe = earlier.recipe if earlier.recipe in RECIPES else next(iter(RECIPES))
    form_key = f"like-{number}"
else:
    earlier, recipe, form_key = Submission(recipe="digits"), next(iter(RECIPES)), "new"

chosen = st.segmented_control(
    "Recipe",
    list(RECIPES),
    default=recipe,
    required=True,
    format_func=lambda key: RECIPES[key].title,
    key=f"recipe-{form_key}",
    label_visibility="collapsed",
)
assert chosen is not None
st.text(RECIPES[chosen].sentence)
start = earlier if chosen == earlier.recipe else Submission(recipe=chosen)
Form(RECIPES[chosen], start, f"{form_key}-{chosen}").draw()
