"""Several jobs side by side. `/compare?ids=12,14`"""

from itertools import groupby

import streamlit as st

from backend import runtime
from backend.recipes import RECIPES
from backend.views import JobFilter
from pages.parts import formats
from pages.parts.live import live
from pages.parts.overlay import Overlay

LOOKED_AT = 60
OFFERED = 5


def compare() -> bool:
    """Draw the comparison; say whether one of its jobs can change without a click."""
    overlay = Overlay(ids, metric)
    for sentence in overlay.problems():
        st.warning(formats.escape(sentence, 200), icon=":material/search_off:")
    overlay.draw()
    if not overlay.jobs:
        offers()
    return overlay.changes


def offers() -> None:
    """What to compare to begin with: the newest jobs of a recipe, in one click."""
    newest = runtime.service().jobs(JobFilter(limit=LOOKED_AT)).jobs
    if len(newest) < 2:
        st.info("There are no two jobs to compare yet.", icon=":material/info:")
        st.page_link("submit.py", label="Submit a job", icon=":material/add_circle:")
        return
    st.text("Or begin with the newest of a kind:")
    by_recipe = sorted(newest, key=lambda job: job.recipe)
    for recipe, jobs in groupby(by_recipe, key=lambda job: job.recipe):
        chosen = [job.job_id for job in jobs][:OFFERED]
        if len(chosen) < 2:
            continue
        kind = RECIPES[recipe].title if recipe in RECIPES else recipe
        st.page_link(
            "compare.py",
            label=f"{formats.escape(kind)}: jobs {', '.join(map(str, chosen))}",
            icon=":material/stacked_line_chart:",
            query_params={"ids": ",".join(map(str, chosen))},
        )


st.title("Compare")
ids = st.query_params.get("ids", "")
metric = st.query_params.get("metric")
live(compare, Overlay(ids, metric).changes)
