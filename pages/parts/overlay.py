"""The curves of several jobs over each other, and their figures and parameters in a table."""

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import streamlit as st

from backend import comparison, runtime
from backend.bins import CurveSummary
from backend.comparison import Column, Differences, Value
from backend.views import JobFilter, JobView
from pages.parts import cards, formats, plotly_script
from pages.parts.chart import TITLES
from pages.parts.live import go_to_job

FOUND: Final = 12
"""So many jobs are offered at once to somebody who looks for one to add."""
MOST_PARAMETERS: Final = 60
TELLING: Final = 2
"""So many parameters tell jobs of the same name apart."""
EMPTY: Final = (
    "Add jobs with the box beside this, one after the other: their curves are drawn over each "
    "other here, and what differs between them is listed below."
)

_HERE: Final = Path(__file__).parent
_SCRIPTS: Final = ("overlay_lines.js", "overlay_legend.js", "overlay_table.js", "overlay.js")

_draw = st.components.v2.component(
    "signalbox_compare",
    html=(_HERE / "overlay.html").read_text(encoding="utf-8"),
    css=(_HERE / "overlay.css").read_text(encoding="utf-8"),
    js=plotly_script.with_shared(*_SCRIPTS),
    isolate_styles=False,  # Plotly puts its styles into the document
)


class Overlay:
    """What the reader of `/compare?ids=12,14` has before them.

    The address belongs to the browser's side (overlay.js): Streamlit goes on to answer with the
    address as it last set it itself, so what is chosen since then comes as the component's state.
    The component's key holds the ids that the address began with; another address is another one.
    """

    def __init__(self, address: str, metric: str | None) -> None:
        """
        Args:
            address: The `ids` with which the page was opened.
            metric: The metric that the address names.
        """
        self.key = f"compare-{address}"
        self.told: Mapping[str, Any] = st.session_state.get(self.key) or {}
        picked = self.told.get("picked")
        self.asked = comparison.asked(picked if isinstance(picked, str) else address)
        self.metric = self.told.get("metric") or metric
        self.jobs = {job.job_id: job for job in runtime.service().these(self.asked.ids)}

    @property
    def changes(self) -> bool:
        """Whether one of the jobs can change without a click."""
        return any(map(cards.changes, self.jobs.values()))

    def problems(self) -> list[str]:
        """What of the address cannot be shown, a sentence each."""
        said = [f"Job {n} is not here." for n in self.asked.ids if n not in self.jobs]
        said += [f"“{formats.one_line(w, 40)}” is no job's number." for w in self.asked.wrong]
        if self.asked.left_out:
            most = comparison.MAX_JOBS
            said.append(f"At most {most} jobs are compared; {self.asked.left_out:,} are left out.")
        return said

    def draw(self) -> None:
        """The chart, the list of runs and the table; drawn again it keeps what was chosen."""
        service = runtime.service()
        summaries = {n: service.curve_summary(n) for n in self.jobs}
        metrics = comparison.metrics_in_order(n for s in summaries.values() for n in s.series)
        metric = self.metric if self.metric in metrics else next(iter(metrics), None)
        parameters = {
            n: comparison.parameters_of(job.recipe, job.params) for n, job in self.jobs.items()
        }
        differences = comparison.differences(parameters)
        names = self._names(differences)
        columns = self._columns(summaries, metric) if metric else []
        search = self.told.get("search")
        _draw(
            key=self.key,
            data={
                "script": plotly_script.URL,
                "ids": list(self.jobs),
                "picked": self.told.get("picked"),
                "metric": metric,
                "metrics": [
                    {
                        "name": name,
                        "title": title(name),
                        "jobs": sum(name in s.series for s in summaries.values()),
                    }
                    for name in metrics
                ],
                "runs": [_run(job, names[n], summaries[n].rows) for n, job in self.jobs.items()],
                "columns": [_column(column, list(self.jobs)) for column in columns],
                "differing": self._differing(differences),
                "same": [
                    [formats.one_line(name, 60), _shown(value)]
                    for name, value in differences.same.items()
                ],
                "summary": self._words(columns),
                "search": search,
                "found": [] if search is None else self._found(str(search)),
                "empty": EMPTY,
            },
            on_picked_change=_nothing,
            on_metric_change=_nothing,
            on_search_change=_nothing,
            on_read_change=_nothing,
            on_open_change=self._open,
        )

    def _open(self) -> None:
        job_id = (st.session_state.get(self.key) or {}).get("open")
        if isinstance(job_id, int):
            go_to_job(job_id)

    def _columns(self, summaries: Mapping[int, CurveSummary], metric: str) -> list[Column]:
        words = title(metric)
        return comparison.figures(summaries, self.jobs, metric, words[:1].lower() + words[1:])

    def _words(self, columns: Sequence[Column]) -> str:
        if not columns:
            return ""
        names = {n: f"job {n} ({formats.one_line(job.name, 60)})" for n, job in self.jobs.items()}
        return comparison.in_words(columns[0], names, formats.figure)

    def _names(self, differences: Differences) -> dict[int, str]:
        """Of each job; those that have one name are told apart by what differs."""
        names = {n: formats.one_line(job.name) or f"Job {n}" for n, job in self.jobs.items()}
        times = Counter(names.values())
        for job_id, name in names.items():
            if times[name] > 1:
                own = [
                    f"{formats.one_line(parameter, 20)} {formats.one_line(values[job_id], 30)}"
                    for parameter, values in differences.differing.items()
                    if values[job_id] is not None
                ]
                names[job_id] = ", ".join([name, *own[:TELLING]])
        return names

    def _differing(self, differences: Differences) -> list[dict[str, Any]]:
        return [
            {
                "name": formats.one_line(name, 60),
                "values": [_shown(values[n]) for n in self.jobs],
                "groups": [
                    {"label": str(_shown(group.value) or "not given"), "ids": list(group.job_ids)}
                    for group in comparison.groups(values)
                ],
            }
            for name, values in list(differences.differing.items())[:MOST_PARAMETERS]
        ]

    def _found(self, text: str) -> list[dict[str, Any]]:
        """The newest jobs that fit and are not here yet."""
        limit = FOUND + len(self.jobs)
        jobs = runtime.service().jobs(JobFilter(text=text, limit=limit)).jobs
        return [
            {
                "id": job.job_id,
                "name": formats.one_line(job.name),
                "about": f"{cards.lamp_of(job).word} · {formats.one_line(job.recipe, 40)} · "
                f"{formats.ago(job.created_at)}",
            }
            for job in jobs
            if job.job_id not in self.jobs
        ][:FOUND]


def _nothing() -> None:
    """Streamlit keeps only those of a component's values for which there is a callback."""


def _run(job: JobView, name: str, rows: int) -> dict[str, Any]:
    lamp = cards.lamp_of(job)
    return {
        "id": job.job_id,
        "name": name,
        "state": lamp.word,
        "icon": lamp.icon.removeprefix(":material/").removesuffix(":"),
        "color": lamp.color,
        "live": cards.changes(job),
        "rows": rows,
    }


def _column(column: Column, ids: Sequence[int]) -> dict[str, Any]:
    return {
        "title": column.title,
        "kind": column.kind,
        "values": [column.values.get(n) for n in ids],
        "notes": [column.notes.get(n, "") for n in ids],
        "best": list(column.best),
    }


def _shown(value: Value) -> Value:
    return formats.one_line(value, 200) if isinstance(value, str) else value


def title(name: str) -> str:
    """A logged name as a heading: `val_accuracy` is `Val accuracy`."""
    words = formats.one_line(name, 40).replace("_", " ")
    return TITLES.get(name, words[:1].upper() + words[1:])


def compare_link(job: JobView, retries: Sequence[int]) -> None:
    """From a job to the comparison of it with what it retries and what retries it."""
    others = [] if job.parent_id is None else [job.parent_id]
    ids = [job.job_id, *others, *retries]
    st.page_link(
        "compare.py",
        label="Compare",
        icon=":material/stacked_line_chart:",
        query_params={"ids": ",".join(map(str, ids))},
    )
