"""What the live chart is given by its page: nothing that grows with the run."""

import json
import re
from typing import Any

from backend.models import JobStatus
from pages.parts import plotly_script
from pages.parts.shell import NEEDED, asks_first, page_shell
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
    assert shared < script.index("function sketch(") < feed < own


def test_the_shell_has_the_browser_fetch_what_every_page_draws_with() -> None:
    links = re.findall(r'<link rel="modulepreload"[^>]* href="\./static/js/([^"]+)">', page_shell())
    assert len(links) == len(set(links))
    for name in NEEDED:
        assert any(link.startswith(f"{name}.") for link in links), f"Streamlit has no {name}."


def test_the_shell_asks_for_the_curves_of_jobs_that_there_are(rows: Rows) -> None:
    first, second = rows.job(), rows.job()
    assert asks_first("job", {"id": str(first)}) == f"/api/training/curve/{first}?bins=1000"
    both = asks_first("compare", {"ids": f"{second},999,{first},x"})
    assert both == f"/api/training/curves?job_ids={second},{first}&name=train_loss&bins=1000"
    hostile = asks_first("compare", {"ids": str(first), "metric": "</script>, ö"})
    assert hostile is not None
    assert "&name=%3C%2Fscript%3E%2C%20%C3%B6&" in hostile
    for page, query in (
        ("job", {}),
        ("job", {"id": "999"}),
        ("job", {"id": "9" * 30}),
        ("compare", {"ids": "x,-1"}),
        ("jobs", {"id": str(first)}),
    ):
        assert asks_first(page, query) is None
    assert f'("{plotly_script.URL}", "{both}")</script>' in page_shell(both)
    assert f'("{plotly_script.URL}", null)</script>' in page_shell()
