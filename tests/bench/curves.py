"""How fast the curves are, beside TensorBoard, Trackio and an empty Streamlit page.

    python -m tests.bench curves
    python -m tests.bench curves --only cold --sizes 1000,100000 --runs 0 --repeat 3

`cold`: from navigation to the drawn curve, in a new browser window each time (nothing cached) of a
server that has drawn it once; what counts as drawn is in `curve_tools`. `click`: from the press on
a job's link in the open jobs table to the drawn curve, the first one of that window. `first`: the
curve's first data over HTTP. `live`: what an open page costs while its job logs 100 points a
second. `jobs`: the script of the jobs page with 10,000 jobs, from asking to its last message.

The rivals are installed from PyPI into a venv in the benchmark's folder, which also keeps the
points in each tool's files: 11 GB and a quarter of an hour for all sizes, once. All tools get the
same points, the same headless Chromium without a GPU, and turns. A rival that takes more than two
minutes for a page or needs more than 6 GB is told so. Times in seconds: median (lowest to highest).
"""

import argparse
import os
import signal
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Final

import psutil

from tests.bench.curve_browser import MOST_SECONDS, chromium, click_seconds, cold_seconds
from tests.bench.curve_costs import first, index_curves, jobs, live
from tests.bench.curve_report import NOTHING, TOO_LONG, Bench, Seconds, head, judged, note, row
from tests.bench.curve_tools import FLOOR, OURS, RIVALS, ZOOMED, floor, signalbox
from tests.bench.curve_work import Case, Runs, Work
from tests.server import Server

SIZES: Final = (1_000, 100_000, 1_000_000, 10_000_000)
OVERLAID: Final = 50
OVERLAID_STEPS: Final = 100_000
REPEAT: Final = 5

FAIR_FROM: Final = 100_000
"""From so many points on Signalbox is to be no slower than the faster rival."""

FLOOR_TIMES: Final = 1.3
FLAT_TIMES: Final = 1.2
CLICK_SECONDS: Final = 0.5


def cold(bench: Bench) -> None:
    """From navigation to the drawn curve, beside the rivals and an empty page."""
    tools = (OURS, ZOOMED, *bench.rivals, FLOOR)
    head("navigation to the drawn curve", *tools, "goals: met")
    medians: list[float] = []
    with Server(bench.runs.data) as server:
        index_curves(bench, server)
        for case in bench.cases:
            took = _cold(bench, server, case)
            ours = took.get(OURS)
            if ours and case.runs == 1:
                medians.append(ours.median)
            row(
                case.name,
                *(took.get(name) or TOO_LONG for name in tools),
                ", ".join(_goals(case, took)) or NOTHING,
            )
    if len(medians) > 1:
        flat = judged(f"at most {FLAT_TIMES} x", max(medians) / min(medians), FLAT_TIMES)
        row("slowest size beside the fastest", *(NOTHING for _ in tools), flat)


def _goals(case: Case, took: Mapping[str, Seconds]) -> list[str]:
    ours = took[OURS].median if OURS in took else float("inf")
    rivals = [took[name].median for name in RIVALS if name in took]
    goals = []
    if rivals and case.steps >= FAIR_FROM:
        goals.append(judged("at most 1 x the faster rival", ours / min(rivals), 1))
    goals.append(judged(f"at most {FLOOR_TIMES} x {FLOOR}", ours / took[FLOOR].median, FLOOR_TIMES))
    return goals


def _cold(bench: Bench, server: Server, case: Case) -> dict[str, Seconds]:
    """Of each tool that draws it in time. In turns: a machine that slows down slows all."""
    with ExitStack() as stack:
        drawings = {
            OURS: signalbox(server.url, bench.runs, case),
            ZOOMED: signalbox(server.url, bench.runs, case, zoomed=True),
            FLOOR: stack.enter_context(floor()),
        }
        for name in bench.rivals:
            try:
                drawings[name] = stack.enter_context(RIVALS[name](bench.work, case))
            except AssertionError as error:
                note(f"{case.name}: {name} did not come up: {error}")
        for name, drawing in drawings.items():
            if drawing.note:
                note(f"{case.name}: {name} {drawing.note}")
        each: dict[str, list[float]] = {name: [] for name in drawings}
        for number in range(bench.repeat + 1):
            for name in list(each):
                seconds = cold_seconds(bench.browser, drawings[name])
                if seconds is None:
                    del each[name]
                elif number:  # the first warms its server
                    each[name].append(seconds)
        return {name: Seconds(values) for name, values in each.items()}


def click(bench: Bench) -> None:
    """From the press on a job's link in the open jobs table to its drawn curve."""
    head("jobs table to the drawn curve", OURS, ZOOMED, "goal: met")
    with Server(bench.runs.data) as server:
        index_curves(bench, server)
        for case in (case for case in bench.cases if case.runs == 1):
            (job_id,) = bench.runs.ids(case)
            table, link = f"{server.url}/jobs?q={case.slug}", f'a[href$="job?id={job_id}"]'
            took: dict[bool, Seconds] = {}
            for zoomed in (False, True):
                drawing = signalbox(server.url, bench.runs, case, zoomed)
                each = [
                    click_seconds(bench.browser, table, link, drawing)
                    for _ in range(bench.repeat + 1)
                ][1:]  # the first warms the server
                took[zoomed] = Seconds([MOST_SECONDS if s is None else s for s in each])
            goal = judged("at most 0.5 s", took[False].median, CLICK_SECONDS)
            row(case.name, took[False], took[True], goal)


PARTS: Final[Mapping[str, Callable[[Bench], None]]] = {
    part.__name__: part for part in (cold, click, first, live, jobs)
}


def curves(arguments: Sequence[str]) -> None:
    """Measure what the command line asks for."""
    options = _options(arguments)
    signal.signal(signal.SIGTERM, _end)
    cases = [Case(steps) for steps in options.sizes]
    if options.runs > 1:
        cases.append(Case(OVERLAID_STEPS, options.runs))
    work = Work(options.work)
    memory = psutil.virtual_memory().total / 2**30
    note(f"{psutil.cpu_count()} cores, {memory:.0f} GiB, load before {os.getloadavg()[0]:.1f}")
    if options.rivals and "cold" in options.only:
        versions = work.install()
        note(", ".join(f"{name} {versions[name]}" for name in options.rivals))
    with tempfile.TemporaryDirectory(dir=work.folder) as folder, chromium() as browser:
        note(f"Chromium {browser.version}")
        runs = Runs(Path(folder) / "data", work, cases)
        bench = Bench(browser, work, runs, cases, options.rivals, options.repeat)
        for part in options.only:
            PARTS[part](bench)


def _end(*_: object) -> None:
    """Leave, and with it end all that was started; once, or that would be interrupted."""
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    sys.exit("Ended.")


def _options(arguments: Sequence[str]) -> argparse.Namespace:
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")

    def words(text: str) -> list[str]:
        return [word for word in text.split(",") if word]

    def numbers(text: str) -> list[int]:
        return [int(word) for word in words(text)]

    parser = argparse.ArgumentParser("python -m tests.bench curves")
    parser.add_argument("--only", type=words, default=list(PARTS), help=f"of {', '.join(PARTS)}")
    parser.add_argument("--sizes", type=numbers, default=list(SIZES), help="of a run, in points")
    parser.add_argument("--runs", type=int, default=OVERLAID, help="to overlay; 0 for none")
    parser.add_argument("--repeat", type=int, default=REPEAT, help="how often each is measured")
    parser.add_argument(
        "--rivals", type=words, default=list(RIVALS), help=f"of {', '.join(RIVALS)}"
    )
    parser.add_argument("--work", type=Path, default=cache / "signalbox-bench", help="its folder")
    options = parser.parse_args(arguments)
    for given, known in ((options.only, PARTS), (options.rivals, RIVALS)):
        if unknown := set(given) - set(known):
            parser.error(f"{', '.join(unknown)} is none of {', '.join(known)}")
    return options
