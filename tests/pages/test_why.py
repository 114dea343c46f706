"""Where a job is, how long it has been silent, and why it failed, as the pages say it."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
from streamlit.testing.v1 import AppTest

from backend import runtime
from backend.diagnosis import Allocator, Detail
from backend.models import FailureKind, Job, JobStatus, RequestKind
from backend.service import Service
from backend.stacks import Frame
from backend.views import JobView
from tests.pages.conftest import HOSTILE, Open, Rows, sound, words
from tests.pages.test_pages import button, labels, table

WAITS = "The main thread is waiting in `queue.get` (train.py, line 12, in next_batch)."
STUCK = Detail(
    sentence=WAITS,
    frames=(
        Frame("/home/me/train.py", 12, "next_batch", "return batches.get()"),
        Frame("/home/me/train.py", 20, "train"),
    ),
    advice="Look at what fills `batches`.",
)


def answering(sentence: str | None, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The service answers where a job is; returns the ids that it is asked for."""
    asked: list[int] = []

    def where(job_id: int) -> str | None:
        asked.append(job_id)
        return sentence

    monkeypatch.setattr(runtime.service(), "where", where)
    return asked


def test_where_it_is_is_said_with_the_stacks_and_stays_while_the_page_redraws(
    rows: Rows, open_page: Open, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = answering(WAITS, monkeypatch)
    job_id, other = rows.runs(), rows.runs()
    rows.run(job_id).stacks.write_text("=== Taken at 10:00\nearlier\n=== Taken at 11:00\nnow")
    page = open_page("job", id=str(job_id))
    assert not asked, "It costs something, so nobody asks unasked."
    button(page, "Where is it?").click()
    for _ in range(2):
        sound(page.run())
        assert f"**{WAITS}**" in words(page)
        assert "Taken just now" in words(page)
        assert "=== Taken at 11:00\nnow" in [text.value for text in page.text]
    assert asked == [job_id]
    page.query_params["id"] = str(other)
    assert "queue.get" not in words(sound(page.run())), "That is of another job."


def test_a_job_without_a_process_that_could_be_asked_says_so(
    rows: Rows, open_page: Open, monkeypatch: pytest.MonkeyPatch
) -> None:
    answering(None, monkeypatch)
    page = open_page("job", id=str(rows.runs()))
    button(page, "Where is it?").click()
    assert "no process that could be asked" in sound(page.run()).info[0].value


@pytest.mark.parametrize("status", [s for s in JobStatus if s is not JobStatus.RUNNING])
def test_only_a_running_job_is_somewhere(status: JobStatus, rows: Rows, open_page: Open) -> None:
    assert "Where is it?" not in labels(open_page("job", id=str(rows.job(status))))


def test_the_phase_is_shown_with_the_timeout_that_it_carries(rows: Rows, open_page: Open) -> None:
    job_id = rows.runs({"phase": "downloading [data]"})
    badge = ":gray-badge[:material/flag: phase downloading [data]]"
    assert badge in words(open_page("job", id=str(job_id)))
    rows.store.update_running(
        job_id, progress={"phase": "downloading", "phase_timeout_seconds": 1800}
    )
    said = "phase downloading, may take 30 minutes without progress"
    for page in (open_page("job", id=str(job_id)), open_page()):
        assert said in words(page)


@pytest.fixture
def look(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Makes every job look as if it had been silent for so long, and were given so long."""
    view = Service._view

    def make(seconds: float, allowed: float, **seen: Any) -> None:
        def silent(self: Service, job: Job, *rest: Any) -> JobView:
            left = {"seconds_since_progress": seconds, "seconds_left": allowed - seconds}
            return replace(view(self, job, *rest), **left, **seen)

        monkeypatch.setattr(Service, "_view", silent)

    return make


Look = Callable[..., None]


@pytest.mark.parametrize("name", ["overview", "job"])
def test_from_half_of_the_timeout_on_it_is_counted_down_and_can_be_extended(
    name: str, rows: Rows, look: Look, open_page: Open, monkeypatch: pytest.MonkeyPatch
) -> None:
    job_id = rows.runs()
    query = {"id": str(job_id)} if name == "job" else {}
    look(299, 600)
    assert not open_page(name, **query).warning
    look(301, 600)
    extended: list[int] = []
    monkeypatch.setattr(runtime.service(), "extend", extended.append)
    page = open_page(name, **query)
    assert page.warning[0].value == "No progress for 5 min; ends in 4 min 59 s."
    button(page, "Give it 10 more minutes", str(job_id)).click()
    sound(page.run())
    assert extended == [job_id]


@pytest.mark.parametrize("name", ["overview", "job"])
def test_a_phase_with_a_timeout_of_its_own_is_counted_down_by_it(
    name: str, rows: Rows, look: Look, open_page: Open
) -> None:
    job_id = rows.runs({"phase": "downloading", "phase_timeout_seconds": 1800})
    query = {"id": str(job_id)} if name == "job" else {}
    look(700, 1800)
    assert not open_page(name, **query).warning, "Less than half of its own time is gone."
    look(1000, 1800)
    page = open_page(name, **query)
    assert page.warning[0].value == "No progress for 16 min in this phase; ends in 13 min 20 s."
    assert "Give it 30 more minutes" in labels(page)


def test_a_job_that_is_being_paused_is_counted_down_and_a_cancelled_one_is_not(
    rows: Rows, look: Look, open_page: Open
) -> None:
    job_id = rows.runs()
    look(400, 600, requested=RequestKind.PAUSING)
    assert open_page("job", id=str(job_id)).warning
    look(400, 600, requested=RequestKind.CANCELLING)
    assert not open_page("job", id=str(job_id)).warning


def both(open_page: Open, job_id: int) -> tuple[AppTest, AppTest]:
    """The two pages that show a failure."""
    return open_page("failures"), open_page("job", id=str(job_id))


def test_a_stuck_job_is_told_as_a_sentence_then_its_own_code_then_everything(
    rows: Rows, open_page: Open
) -> None:
    job_id = rows.failed(FailureKind.TIMEOUT, "Training timed out", STUCK)
    for page in both(open_page, job_id):
        said = [m.value for m in page.markdown]
        sentence = "**The main thread is waiting in `queue.get`"
        (first,) = [n for n, text in enumerate(said) if text.startswith(sentence)]
        own = said[first + 1].replace("\\", "")
        assert own == ":small[Your code: /home/me/train.py, line 12, in next_batch]"
        assert "called from line 20 of train.py, in train" in said[first + 2].replace("\\", "")
        code = [text.value for text in page.text]
        assert code.index("Training timed out") < code.index("return batches.get()")
        assert code.index("return batches.get()") < code.index("the stacks of timeout")
        assert "**What to try:** Look at what fills `batches`" in words(page)


def test_of_a_long_chain_of_calls_the_inner_ones_are_shown(rows: Rows, open_page: Open) -> None:
    frames = tuple(Frame("/a.py", n, f"f{n}", f"f{n - 1}(`x`)") for n in range(1, 21))
    job_id = rows.failed(FailureKind.CRASHED, detail=Detail(frames=frames))
    for page in both(open_page, job_id):
        text = words(page)
        assert "called from line 6 of a.py, in f6] `f5('x')`" in text
        assert "in f7" not in text
        assert "and 14 calls further out" in text


def test_gpu_out_of_memory_is_told_with_the_allocators_figures_and_what_to_change(
    rows: Rows, open_page: Open
) -> None:
    detail = Detail(
        allocator=Allocator(2 * 2**30, 80 * 2**30, 2**30, 70 * 2**30, None),
        parameters={"batch_size": 64, "context": 2048},
    )
    job_id = rows.failed(FailureKind.GPU_OUT_OF_MEMORY, detail=detail)
    for page in both(open_page, job_id):
        assert table(page, "Tried to get") == "2.0 GiB"
        assert table(page, "Free on the GPU") == "1.0 GiB"
        assert table(page, "Held by torch") == "70.0 GiB"
        assert table(page, "GPU in all") == "80.0 GiB"
        assert not table(page, "Kept by torch, unused"), "The allocator did not say it."
        assert table(page, "batch_size") == "64"
        assert table(page, "context") == "2048"


def test_a_loss_that_was_no_number_is_told_with_its_step(rows: Rows, open_page: Open) -> None:
    detail = Detail(non_finite="loss stopped being a number at step 812", parameters={"lr": 0.1})
    progress = {"non_finite_count": 3, "first_non_finite_step": 812}
    job_id = rows.failed(FailureKind.CRASHED, detail=detail, progress=progress)
    for page in both(open_page, job_id):
        assert words(page).count("Loss stopped being a number at step 812.") == 1
        assert table(page, "lr") == "0.1"


def test_what_a_failure_found_in_a_strangers_code_is_shown_as_text(
    rows: Rows, open_page: Open
) -> None:
    detail = Detail(
        sentence=f"It waits in `{HOSTILE.replace('`', '')}` of {HOSTILE}",
        frames=(Frame(HOSTILE, 1, HOSTILE, HOSTILE), Frame(HOSTILE, 2, HOSTILE, HOSTILE)),
        parameters={HOSTILE: HOSTILE},
        non_finite=HOSTILE,
        advice=HOSTILE,
    )
    job_id = rows.failed(FailureKind.CRASHED, "boom", detail)
    for page in both(open_page, job_id):
        for kind in ("markdown", "caption", "warning", "table"):
            for element in page.get(kind):
                outside = "".join(str(element.value).split("`")[::2])
                assert "**bold**" not in outside
                assert "<img" not in outside.replace("\\<", "")
                assert ":tada:" not in outside
                assert "www.evil" not in outside


def test_the_reason_of_a_cleanup_is_said_in_words(rows: Rows, open_page: Open) -> None:
    job_id = rows.failed(FailureKind.GPU_OUT_OF_MEMORY)
    rows.cleanup(job_id, reason="gpu_out_of_memory")
    assert "GPU 0, out of GPU memory" in words(open_page("job", id=str(job_id)))
    assert open_page("gpu").dataframe[0].value["Reason"].tolist() == ["out of GPU memory"]
