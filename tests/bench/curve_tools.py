"""The tools that draw the curves: Signalbox, TensorBoard, Trackio and an empty Streamlit page.

Each is given the same points (`curve_points`) in its own files, written once and kept in the
benchmark's folder, and each comes with a look at its page that says whether the curve is drawn:

- Signalbox: the plot of the job's page (of `/compare`, for many) has a line in the document for
  each run that goes to the right edge of the plot: its own first sketch, or what Plotly draws in
  its place. `can be zoomed`: Plotly has drawn it, to the run's last step.
- TensorBoard: its default page with `tagFilter=train_loss`, so that it draws this one chart only.
  The card's table names the last step of each run, and the chart's canvas has ink in the right
  fifth. It samples 1,000 points of a run, its default. Its data are loaded before it is timed; how
  long that took is told apart.
- Trackio: its default page. The canvas of the card train_loss has coloured ink in its last tenth;
  it gets all runs, up to 64, in one answer.
  It samples 3,000 points of a run, its default.
- An empty page of the same Streamlit: its title is in the document and has a size.
"""

import json
import os
import signal
import subprocess
import tempfile
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import psutil

from tests.bench.bare_streamlit import BareStreamlit
from tests.bench.curve_work import Case, Runs, Work
from tests.server import free_port
from tests.waiting import wait_until

OURS: Final = "Signalbox"
ZOOMED: Final = "Signalbox, can be zoomed"
FLOOR: Final = "an empty page"
LOAD_SECONDS: Final = 600
MEMORY_BYTES: Final = 6 * 2**30
"""A rival may have so much address space; beyond it the machine would begin to swap."""

INK: Final = """
const inked = (canvas, from, vivid) => {
  if (!canvas || !canvas.width || !canvas.height) return false
  const copy = document.createElement("canvas")
  Object.assign(copy, {width: canvas.width, height: canvas.height})
  const context = copy.getContext("2d", {willReadFrequently: true})
  context.drawImage(canvas, 0, 0)
  const begin = Math.floor(canvas.width * from)
  const { data } = context.getImageData(begin, 0, canvas.width - begin, canvas.height)
  let count = 0
  for (let i = 0; i < data.length; i += 4) {
    const rgb = [data[i], data[i + 1], data[i + 2]]
    if (data[i + 3] > 100 && Math.max(...rgb) - Math.min(...rgb) > vivid) count += 1
  }
  return count > 5
}
"""

SKETCHED: Final = """
[...document.querySelectorAll("PLOT")].some((plot) => {
  const area = plot.querySelector("clipPath rect")?.getBBox()
  const ends = [...plot.querySelectorAll("[clip-path] path")].filter((line) => {
    const box = line.getBBox()
    return line.getAttribute("d").length > 200 && box.x + box.width > area.x + 0.95 * area.width
  })
  return ends.length >= RUNS
})
"""

PLOTTED: Final = """
[...document.querySelectorAll("PLOT")].some((plot) => {
  const traces = (plot.data ?? []).filter((trace) =>
    trace.x?.length && trace.x.at(-1) >= 0.99 * STEPS)
  const lines = [...plot.querySelectorAll(".scatterlayer path.js-line")].filter((line) =>
    (line.getAttribute("d") ?? "").length > 200)
  const surface = plot.querySelector("canvas.gl-canvas-context")
  return traces.length >= RUNS && (lines.length >= RUNS || Boolean(surface?.width))
})
"""

TENSORBOARD_DRAWN: Final = """
[...document.querySelectorAll("card-view")].some((card) => {
  if (!card.innerText.includes("train_loss")) return false
  const told = [...card.querySelectorAll("tb-data-table-content-row")].filter((row) =>
    [...row.children].some((cell) => cell.textContent.trim().replaceAll(",", "") === "STEPS"))
  const runs = new Set(told.map((row) => row.textContent))
  return runs.size >= RUNS && inked(card.querySelector(".series-view canvas"), 0.8, -1)
})
"""

TRACKIO_DRAWN: Final = """
[...document.querySelectorAll("canvas.marks")].some((canvas) => {
  let card = canvas.parentElement
  while (card && !card.innerText.includes("train_loss")) card = card.parentElement
  return card?.querySelectorAll("canvas.marks").length === 1 && inked(canvas, 0.9, 30)
})
"""

FLOOR_DRAWN: Final = 'Boolean(document.querySelector("h1")?.getClientRects().length)'


@dataclass(frozen=True)
class Drawing:
    """A page with a curve."""

    url: str
    drawn: str
    """JavaScript: whether it is drawn."""
    note: str = ""


def signalbox(server: str, runs: Runs, case: Case, zoomed: bool = False) -> Drawing:
    """The page of Signalbox that draws a case, once that is seen, or once it can be zoomed."""
    ids = runs.ids(case)
    if case.runs == 1:
        path, place = f"/job?id={ids[0]}", ".signalbox-main"
    else:
        path, place = f"/compare?ids={','.join(map(str, ids))}&metric=train_loss", ""
    drawn = PLOTTED.replace("PLOT", f"{place} .js-plotly-plot").strip()
    if not zoomed:
        drawn += " || " + SKETCHED.replace("PLOT", f"{place} .signalbox-sketch").strip()
    return Drawing(server + path, _filled(drawn, case))


@contextmanager
def tensorboard(work: Work, case: Case) -> Iterator[Drawing]:
    """Its server with the runs of a case, once it has read them."""
    folder = work.rival("tensorboard", case)
    port = free_port()
    url = f"http://127.0.0.1:{port}"
    command = ("-m", "tensorboard.main", "--logdir", folder, "--port", str(port))
    begin = time.monotonic()
    with _server(work, *command, "--host", "127.0.0.1", ready=f"{port}/"):
        runs = sorted(path.name for path in folder.iterdir())
        wait_until(
            lambda: all(_tensorboard_has(url, run, case.steps) for run in runs),
            LOAD_SECONDS,
            f"TensorBoard did not read {case.name} in {LOAD_SECONDS} s",
        )
        seconds = time.monotonic() - begin
        yield Drawing(
            f"{url}/?tagFilter=train_loss",
            _filled(TENSORBOARD_DRAWN, case),
            f"read its files in {seconds:.1f} s before",
        )


def _tensorboard_has(url: str, run: str, last_step: int) -> bool:
    query = urllib.parse.urlencode({"tag": "train_loss", "run": run})
    try:
        with urllib.request.urlopen(f"{url}/data/plugin/scalars/scalars?{query}") as answer:
            points: list[tuple[float, int, float]] = json.load(answer)
    except urllib.error.HTTPError:
        return False
    return bool(points) and points[-1][1] == last_step


@contextmanager
def trackio(work: Work, case: Case) -> Iterator[Drawing]:
    """Its server with the runs of a case."""
    folder = work.rival("trackio", case)
    port = free_port()
    url = f"http://127.0.0.1:{port}"
    command = ("-m", "trackio.cli", "show", "--project", case.slug)
    environment = {
        "TRACKIO_DIR": str(folder),
        "GRADIO_SERVER_PORT": str(port),
        "GRADIO_NUM_PORTS": "1",
        "HF_HUB_OFFLINE": "1",
        "BROWSER": "true",  # it opens one
    }
    with _server(work, *command, ready="launched at", **environment):
        yield Drawing(f"{url}/?project={case.slug}", _filled(TRACKIO_DRAWN, case))


@contextmanager
def floor() -> Iterator[Drawing]:
    with tempfile.TemporaryDirectory() as folder, BareStreamlit(Path(folder)) as server:
        yield Drawing(server.url, FLOOR_DRAWN)


def _filled(drawn: str, case: Case) -> str:
    return drawn.replace("STEPS", str(case.steps)).replace("RUNS", str(case.runs))


@contextmanager
def _server(work: Work, *command: str | Path, ready: str, **environment: str) -> Iterator[None]:
    """A server of a rival, once it has printed that it is ready: asked before that, Trackio may
    miss its own look at itself and give up."""
    with tempfile.NamedTemporaryFile(dir=work.folder) as log:
        process = subprocess.Popen(
            [work.python, *command],
            env={**os.environ, "PYTHONUNBUFFERED": "1", **environment},
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        psutil.Process(process.pid).rlimit(psutil.RLIMIT_AS, (MEMORY_BYTES, MEMORY_BYTES))
        told = Path(log.name)
        try:
            wait_until(
                lambda: ready in told.read_text(errors="replace") or process.poll() is not None,
                LOAD_SECONDS,
            )
            assert process.poll() is None, told.read_text(errors="replace")[-500:]
            yield
        finally:
            os.killpg(process.pid, signal.SIGTERM)
            try:
                process.wait(10)
            except subprocess.TimeoutExpired:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()


RIVALS: Final[Mapping[str, Callable[[Work, Case], AbstractContextManager[Drawing]]]] = {
    "tensorboard": tensorboard,
    "trackio": trackio,
}
