"""Names, output and errors that try to act on a page show as the text that they are, and what a job
was given in secret does not show at all."""

import re
from collections.abc import Callable, Iterator, Sequence
from itertools import cycle
from pathlib import Path
from typing import Final
from urllib.parse import quote, urlsplit

import pytest
from playwright.sync_api import Dialog, Page, ViewportSize, WebSocket, expect

from backend.diagnosis import Detail
from backend.models import Cleanup, Failure, FailureKind, Job, JobStatus, utc_now
from backend.paths import DataPaths
from backend.processes import find_all_marked
from backend.stacks import Frame
from backend.store import Store
from tests.e2e.test_the_main_job import job_number, lamp
from tests.server import Server, queue_job
from tests.waiting import wait_until

pytestmark = pytest.mark.browser

SIZES: Final[Sequence[ViewportSize]] = (
    {"width": 390, "height": 844},
    {"width": 1280, "height": 800},
)

IMAGE = "<img src=x onerror=window.pwned=1>"
METRIC = '<a href="http://evil.example">a</a> <b>bold</b> $x$ &lt;'
MARKUP = [
    "<script>window.pwned=1</script>",
    IMAGE,
    "<svg onload=window.pwned=1><iframe src=javascript:window.pwned=1>",
    "[click](javascript:window.pwned=1) <javascript:window.pwned=1>",
    "![x](http://127.0.0.1:9/x.png)",
    r"$\href{javascript:window.pwned=1}{x}$ and $$x^2$$",
    ":red[red] :material/delete: :tada: :small[x]",
    "</code></pre></div></body><!--",
    "&lt;b&gt; &#x202e; &amp;",
    "http://evil.example www.evil.example me@evil.example",
    "# heading ``` | a | b | --- > 1. [ ] ~~x~~",
    METRIC,
]
ODD = {
    "red \x1b[31mred\x1b[0m\x1b[2J\x1b[H": "red red",
    "to \x1b]8;;http://evil.example\x07link\x1b]8;;\x07": "to ]8;;http://evil.example link ]8;;",
    "abc\u202efdp.exe\u2066\u2067\u200f\u061c end": "abcfdp.exe end",
    "in\u200bvis\u200dible\ufeff\u2060\u00ad": "invisible",
    "one\rtwo\u2028three\u2029four\x85five": "one two three four five",
    "z" + "\u0336\u035c" * 200 + " ก" + "\u0e47" * 300: "z\u0336\u035c\u0336\u035c ก"
    + "\u0e47" * 4,
}
"""Each with what is left of it on one line."""
SHOWN = [*MARKUP, *ODD.values()]
LONG_WORD = "W" * 200

HOSTILE_SCRIPT = f"""\
import json, os, sys, time

TEXTS = {[*MARKUP, *ODD, LONG_WORD]!a}
METRIC = {METRIC!a}
how, release = sys.argv[1:3]
out = sys.stdout.buffer
for text in TEXTS:
    out.write(text.encode() + b"\\n")
out.write(b"\\xff\\xfe\\xc3( no UTF-8\\n\\0NUL\\0\\n")
out.write(b"<script>window.pwned=1</script>" + b"A" * 2**20 + b"\\n")
for text in TEXTS:
    out.write(text.encode() + b"\\n")
out.flush()

for text in TEXTS:
    name = text.replace("/", "_").replace("\\0", "_")[:60]
    open(os.path.join(os.environ["SIGNALBOX_RUN_DIR"], name), "w").close()
    folder = os.path.join(os.environ["SIGNALBOX_CHECKPOINT_DIR"], name + "-5")
    os.mkdir(folder)
    open(os.path.join(folder, "COMPLETE"), "w").close()

losses = {{}} if how == "without a loss" else {{"train_loss": 0.5}}
names = [METRIC] if how == "without a loss" else TEXTS
points = [dict(losses, step=step, **{{name: float(step) for name in names}}) for step in (1, 2, 3)]
progress = dict(points[-1], phase=" ".join(TEXTS[:3]), metrics_history=points)
path = os.environ["SIGNALBOX_PROGRESS"]
with open(path + ".new", "w") as file:
    json.dump(progress, file)
os.replace(path + ".new", path)

if how == "raises":
    raise RuntimeError(" ".join(text for text in TEXTS if "\\n" not in text))
deadline = time.monotonic() + 300
while not os.path.exists(release) and time.monotonic() < deadline:
    print("still here", flush=True)
    time.sleep(0.2)
"""

SECRET = "super-secret-value-12345"
TELLING_SCRIPT = """\
import json, os, sys, time

secret = os.environ["MY_API_KEY"]
print("the key is", secret, flush=True)
path = os.environ["SIGNALBOX_PROGRESS"]
with open(path + ".new", "w") as file:
    json.dump({"step": 1, "loss": 0.5, "phase": "using " + secret}, file)
os.replace(path + ".new", path)
deadline = time.monotonic() + 120
while not os.path.exists(sys.argv[1]) and time.monotonic() < deadline:
    time.sleep(0.1)
raise RuntimeError("refused: " + secret)
"""

ACTING = """() => {
    const main = document.querySelector("[data-testid=stMain]")
    const found = [...main.querySelectorAll(
        "script, iframe, object, embed, base, meta, form, dialog, .katex, svg a, " +
        "[onerror], [onload], [onclick], img:not([src^='data:image/svg+xml']), a[href]"
    )]
    const ours = (e) => e.closest(".box-keys") ||
        (e.matches("a[href]") && !e.closest("svg") && e.origin === location.origin)
    return found.filter((e) => !ours(e)).map((e) => e.outerHTML.slice(0, 300))
}"""
"""What on the page is an element that acts, or a link to somewhere else."""

OUT_OF_SIGHT = """() => {
    const main = document.querySelector("[data-testid=stMain]")
    const right = main.getBoundingClientRect().right + 1
    const wide = [document.documentElement, main].filter((e) => e.scrollWidth > e.clientWidth + 1)
    const cut = [...main.querySelectorAll("h1, h2, h3, button, td, figcaption")].filter((e) =>
        e.checkVisibility() && !e.closest(".signalbox-side") && // a strip that is scrolled
        e.getBoundingClientRect().right > right)
    const covered = [...main.querySelectorAll("h1, h2, h3")].filter((e) => {
        if (!e.checkVisibility()) return false
        e.scrollIntoView({ block: "center", behavior: "instant" })
        const { left, top, height } = e.getBoundingClientRect()
        return !e.contains(document.elementFromPoint(left + 3, top + height / 2))
    })
    return [...wide, ...cut, ...covered].map((e) => e.outerHTML.slice(0, 200))
}"""
"""What is wider than the window, and what lies outside it or under something else."""


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """The data folder of this test's own server."""
    data = tmp_path / "data"
    data.mkdir()
    return data


@pytest.fixture
def release(data: Path, tmp_path: Path) -> Iterator[Path]:
    """The jobs here wait until this file is there; none outlives its test."""
    path = tmp_path / "release"
    yield path
    path.touch()
    nonce = DataPaths(data).read_nonce() or ""
    wait_until(lambda: not find_all_marked(nonce), 30, "A job outlived its test.")


@pytest.fixture
def server(data: Path, release: Path) -> Iterator[Server]:
    with Server(data, workers=2, stall_grace_seconds=1, cancel_grace_seconds=5) as server:
        yield server


@pytest.fixture
def store(data: Path) -> Iterator[Store]:
    store = Store(DataPaths(data).database)
    yield store
    store.close()


@pytest.fixture
def jobs(
    store: Store, release: Path, write_script: Callable[[str, str], str]
) -> Callable[[str], int]:
    """Many failures, and a job of each kind to come, all hostile; answers with the id of one."""
    for text in (*MARKUP, *ODD):
        job_id = store.add(Job(name=text, recipe=text, timeout_seconds=60, gpus=0))
        store.change(job_id, JobStatus.QUEUED, JobStatus.RUNNING, text, started_at=utc_now())
        detail = Detail(
            sentence=f"It waits in `{text.replace('`', '')}` of {text}",
            frames=(Frame(f"/{text}.py", 1, text, text), Frame(f"/{text}.py", 2, text, text)),
            parameters={text: text},
            non_finite=text,
            advice=f"Look at `{text.replace('`', '')}` and {text}",
        )
        failure = Failure(
            job_id=job_id,
            kind=FailureKind.CRASHED,
            message=text,
            log_tail=text,
            stacks=text,
            detail=detail.as_json(),
        )
        kept = {"failure": failure, "error": text, "failure_kind": FailureKind.CRASHED}
        store.change(job_id, JobStatus.RUNNING, JobStatus.FAILED, text, **kept)  # type: ignore[arg-type]
        store.add_cleanup(
            Cleanup(
                job_id=job_id,
                reason=text,
                device=f"{text} {LONG_WORD}",
                source="nvml",
                before_bytes=2**30,
                after_bytes=2**20,
                holders=[{"name": text, "pid": 1, "bytes": 2**20}],
            )
        )
    script = write_script(f"{IMAGE}.py", HOSTILE_SCRIPT)
    args = [text for text in (*MARKUP, *ODD) if "\0" not in text]
    ids = {
        how: queue_job(
            store,
            IMAGE if how == "hangs" else MARKUP[0],
            "script",
            2 if how == "hangs" else 600,
            script=script,
            args=[how, str(release), *args],
        )
        for how in ("raises", "hangs", "without a loss", "with a loss", "queued")
    }
    return ids.__getitem__


def shown(page: Page) -> str:
    """What the page says, on one line, without the marks that keep Markdown from acting."""
    said = page.get_by_test_id("stMain").inner_text()
    return " ".join(re.sub("[\u2060\u2068\u2069]", "", said).split())


def is_harmless(page: Page, path: str, *texts: str) -> None:
    """Look at a page in two sizes: it says all of these texts, nothing acts, nothing is hidden."""
    if path:
        page.goto(path)
    expect(page.get_by_test_id("stMain").get_by_role("heading").first).to_be_visible()

    def unsaid() -> list[str]:
        said = shown(page)  # once for all texts: to ask has the browser lay the page out
        return [text for text in texts if text not in said]

    wait_until(lambda: not unsaid(), 30, lambda: f"{path} does not say {unsaid()}")
    for size in SIZES:
        page.set_viewport_size(size)
        wait_until(
            lambda: not page.evaluate(OUT_OF_SIGHT),
            10,
            lambda: f"{path} in {page.viewport_size}: {page.evaluate(OUT_OF_SIGHT)}",
        )
    assert not page.evaluate(ACTING), path
    assert page.evaluate("window.pwned") is None, path
    assert not re.search("[\x00-\x08\x0b-\x1f\u202a-\u202e\u2066\u2067]", shown(page)), path


def test_strangers_texts_are_text_on_every_page(
    jobs: Callable[[str], int], store: Store, page: Page, server: Server
) -> None:
    asked: list[str] = []
    dialogs: list[str] = []
    page.on("request", lambda request: asked.append(request.url))
    page.context.on("page", lambda opened: dialogs.append(opened.url))

    def dismiss(dialog: Dialog) -> None:
        dialogs.append(dialog.message)
        dialog.dismiss()

    def status(how: str) -> JobStatus:
        job = store.get(jobs(how))
        assert job
        return job.status

    page.on("dialog", dismiss)

    wait_until(lambda: status("hangs") is JobStatus.FAILED, 60, "It did not time out.")
    wait_until(lambda: status("with a loss") is JobStatus.RUNNING, 60, "It was not started.")
    assert status("queued") is JobStatus.QUEUED

    is_harmless(page, "/", *SHOWN[-4:], IMAGE)
    is_harmless(page, "/jobs", *SHOWN, "timed out")
    link = page.get_by_role("link", name=f"{jobs('hangs')} ·")
    expect(link).to_have_attribute("title", re.compile(re.escape(IMAGE)))

    is_harmless(page, "/failures", *SHOWN)
    page.get_by_text("Log tail and stacks").nth(2).click()
    is_harmless(page, "", "The end of the log")
    is_harmless(page, "/gpu", "Cleanups", *SHOWN[-4:])
    for how in ("raises", "hangs", "with a loss", "without a loss", "queued"):
        sections = ["Parameters", "Files", "Timeline", how]
        if how != "queued":
            sections.append("Checkpoints")
        told = SHOWN[:-1] if how in {"hangs", "with a loss"} else MARKUP[:3]
        is_harmless(page, f"/job?id={jobs(how)}", *sections, *told)

    page.goto(f"/job?id={jobs('without a loss')}")
    legend = page.locator(".signalbox-legend button")
    expect(legend).to_have_text(METRIC[:39] + "…")
    plot = page.locator(".signalbox-main .nsewdrag")
    labels = page.locator(".signalbox-main .hoverlayer")
    spots = cycle({"x": x, "y": 150} for x in range(5, 245, 12))

    def label() -> str:
        plot.hover(position=next(spots))  # type: ignore[arg-type]
        return labels.text_content() or ""

    wait_until(lambda: "<a href" in label(), 30, lambda: f"The chart's label says {label()!r}.")
    assert not page.evaluate(ACTING)

    like = jobs("hangs")
    is_harmless(page, f"/submit?like={like}", "The run")
    expect(page.get_by_label("Script", exact=True)).to_have_value(re.compile(re.escape(IMAGE)))
    page.get_by_label("Timeout in minutes").fill(MARKUP[3])
    page.get_by_label("Script", exact=True).fill(f"/{IMAGE}")
    page.get_by_label("Environment").fill("<b>x</b>=1")
    page.get_by_role("button", name="Submit", exact=True).click()
    is_harmless(page, "", MARKUP[3], f"/{IMAGE}", "<b>x</b>")

    for path, text in {
        "/submit?like={}&recipe={}": f"There is no job {IMAGE}",
        "/job?id={}": f"There is no job {IMAGE}",
        "/jobs?q={}&sort={}&state={}&page={}": IMAGE,
        "/failures?kind={}": IMAGE,
    }.items():
        is_harmless(page, path.replace("{}", quote(IMAGE)), text)

    # One more that still works: each that lives is ended by its button.
    for how in ("queued", "without a loss", "with a loss"):
        page.goto(f"/job?id={jobs(how)}")
        page.get_by_role("button", name="Cancel", exact=True).click()
        expect(lamp(page, "cancelled")).to_be_visible()
    assert not dialogs
    ours = urlsplit(server.url).netloc
    strange = {url for url in asked if urlsplit(url).netloc not in {"", ours}}
    assert not strange


def test_the_values_of_environment_variables_are_never_shown_again(
    page: Page, release: Path, write_script: Callable[[str, str], str]
) -> None:
    heard: list[bytes] = []
    telling: list[str] = []

    def listen(socket: WebSocket) -> None:
        socket.on("framereceived", lambda frame: heard.append(as_bytes(frame)))

    page.on("websocket", listen)
    page.goto("/submit")
    page.get_by_role("radio", name="Your own script").click()
    page.get_by_label("Script", exact=True).fill(write_script("telling.py", TELLING_SCRIPT))
    page.get_by_label("Arguments").fill(str(release))
    page.get_by_label("Environment").fill(f"MY_API_KEY={SECRET}")
    page.get_by_role("button", name="Submit", exact=True).click()
    number = job_number(page)

    def look(path: str, *texts: str) -> None:
        if path:
            page.goto(path)

        def is_told() -> bool:
            said = shown(page)
            return all(text in said for text in texts)

        wait_until(is_told, 30, lambda: shown(page))
        fields = page.evaluate(
            "[...document.querySelectorAll('input, textarea')].map(e => e.value)"
        )
        if SECRET in page.content() or SECRET in " ".join(fields):
            telling.append(f"{path} after {texts}")

    look("", "phase using", "MY_API_KEY", "the key is")
    look("/", "Running")
    release.touch()
    look(f"/job?id={number}", "RuntimeError: refused:", "MY_API_KEY", "the key is")
    look("/", "Ended lately", "RuntimeError: refused:")
    look("/jobs", "RuntimeError: refused:")
    look("/failures", "RuntimeError: refused:")
    page.get_by_text("Log tail and stacks").click()
    look("", "The end of the log", "the key is")
    page.get_by_role("link", name="Submit").first.click()
    look("", "The run")
    look(f"/submit?like={number}", "The run", "MY_API_KEY")
    page.goto(f"/job?id={number}")
    with page.expect_download() as download:
        page.get_by_role("button", name="Download log").click()
    if SECRET in download.value.path().read_text(encoding="utf-8"):
        telling.append("the downloaded log")
    assert not telling
    assert heard
    assert not any(SECRET.encode() in frame for frame in heard), "It was sent, if not shown."


def as_bytes(frame: str | bytes) -> bytes:
    return frame.encode() if isinstance(frame, str) else frame
