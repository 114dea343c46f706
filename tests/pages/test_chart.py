"""What the live chart is given by its page: nothing that grows with the run."""

import json
from typing import Any

import pytest

from backend.models import JobStatus
from pages.parts import plotly_script, shell
from tests.pages.conftest import Open, Rows


def given(page: Any) -> dict[str, Any]:
    """The data of the chart's component."""
    (chart,) = (
        drawn.proto
        for drawn in page.get("bidi_component")
        if drawn.proto.component_name == "signalbox_chart"
    )
    data = json.loads(chart.json)
    assert isinstance(data, dict)
    return data


def test_the_page_sends_a_running_jobs_chart_once_and_none_of_its_points(
    rows: Rows, open_page: Open
) -> None:
    job_id = rows.job(JobStatus.RUNNING)
    rows.curve(job_id, 20)
    page = open_page("job", id=str(job_id))
    before = given(page)
    assert (before["job_id"], before["live"]) == (job_id, True)
    rows.curve(job_id, 400)
    assert given(page.run()) == before, "It draws anew whatever is given to it anew."


def test_the_chart_of_an_ended_job_asks_no_further(rows: Rows, open_page: Open) -> None:
    job_id = rows.job(JobStatus.COMPLETED)
    rows.curve(job_id, 20)
    assert given(open_page("job", id=str(job_id)))["live"] is False


def test_a_charts_script_comes_after_what_all_charts_share() -> None:
    script = plotly_script.with_shared("feed.js", "chart.js")
    shared, feed, own = (
        script.index(text) for text in ("function ema(", "function feed(", "export default")
    )
    assert shared < feed < own


@pytest.mark.parametrize(("name", "begins"), [("job", True), ("compare", True), ("jobs", False)])
def test_a_page_with_a_chart_begins_to_load_it_in_its_shell(name: str, begins: bool) -> None:
    assert (plotly_script.URL in shell.page_shell(name)) is begins
    assert ("BidiComponent" in shell.page_shell(name)) is begins


def test_the_shell_of_a_job_that_there_is_asks_for_its_curve() -> None:
    assert f'("{plotly_script.URL}", 12)</script>' in shell.page_shell("job", 12)
    assert f'("{plotly_script.URL}", null)</script>' in shell.page_shell("job", None)
