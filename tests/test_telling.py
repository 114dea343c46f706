"""What is said of a job outside: the words of the failure page, a link, and no secret."""

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from backend.diagnosis import EXPLANATIONS
from backend.models import FailureKind
from backend.service import Service
from backend.settings import Settings
from backend.submission import Submission
from backend.telling import span
from tests.test_notify import Receiver
from tests.waiting import cancel_and_close, wait_until, wait_until_ended

pytest.importorskip("apprise")


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    receiver = Receiver()
    yield receiver
    receiver.close()


@pytest.fixture
def telling_service(tmp_path: Path, receiver: Receiver) -> Iterator[Service]:
    """A running service that sends to the receiver."""
    settings = Settings(
        data=tmp_path / "data", workers=2, poll_seconds=0.05, stall_grace_seconds=1,
        cancel_grace_seconds=5, notify=receiver.url,
    )  # fmt: skip
    service = Service(settings, "http://127.0.0.1:8600")
    service.start()
    yield service
    cancel_and_close(service)


def test_each_end_is_told_with_its_sentences_and_a_link(
    telling_service: Service, receiver: Receiver, script: Callable[..., Submission]
) -> None:
    """Also a stuck one, first that it is about to time out."""
    service = telling_service
    secret = "correct horse battery"
    stuck = service.submit(
        script("import time; time.sleep(600)", name="stuck", timeout_minutes=0.03)
    )
    broken = service.submit(
        script(
            "import os; raise RuntimeError('not with ' + os.environ['KEY'])",
            name=f"with {secret}",
            env={"KEY": secret},
        )
    )
    wait_until_ended(service, stuck, broken)
    wait_until(lambda: len(receiver.taken) == 3)
    said = {taken["title"]: taken["message"] for taken in receiver.taken}
    hidden = "*" * len(secret)

    crash = said[f"Job {broken} with {hidden} crashed"]
    assert f"RuntimeError: not with {hidden}" in crash
    assert EXPLANATIONS[FailureKind.CRASHED] in crash
    failure = service.failure(broken)
    assert failure is not None
    assert f"What to try: {failure.advice}" in crash
    assert crash.endswith(f"http://127.0.0.1:8600/job?id={broken}")

    warned, timed_out = (t for t in receiver.titles() if t.startswith(f"Job {stuck} "))
    assert warned == f"Job {stuck} stuck is about to time out"
    assert timed_out == f"Job {stuck} stuck timed out"
    assert "Training timed out - no progress updates for 1.8 seconds" in said[timed_out]
    assert secret not in str(receiver.taken)


def test_what_went_well_and_what_was_cancelled_while_it_ran_is_told_and_nothing_else(
    telling_service: Service, receiver: Receiver, script: Callable[..., Submission]
) -> None:
    service = telling_service
    logs = "import signalbox; signalbox.start().log(3, train_loss=0.25)"
    good = service.submit(script(logs, name="good"))
    wait_until_ended(service, good)
    runs, too = (service.submit(script("import time; time.sleep(600)")) for _ in "ab")
    waits = service.submit(script("pass"))
    service.cancel(waits)
    service.cancel(runs)
    service.cancel(too)
    wait_until(lambda: len(receiver.taken) >= 3)
    assert receiver.titles()[0] == f"Job {good} good completed"
    assert receiver.taken[0]["message"].startswith("Train loss 0.25.\nIt ran for ")
    endings = {title.split()[1]: title.split()[-1] for title in receiver.titles()[1:]}
    assert endings == {str(runs): "cancelled", str(too): "cancelled"}


def test_no_job_and_no_server_waits_for_a_receiver_that_hangs(
    telling_service: Service, receiver: Receiver, script: Callable[..., Submission]
) -> None:
    """While the first message is not taken, the jobs behind it start and end, and the server
    closes."""
    service = telling_service
    receiver.answers.clear()
    first = service.submit(script("pass"))
    wait_until(lambda: receiver.asked == 1)
    others = [service.submit(script("pass")) for _ in range(3)]
    wait_until_ended(service, first, *others)
    assert service.close() == 0
    assert receiver.taken == []


@pytest.mark.parametrize(
    ("seconds", "words"),
    [(0.4, "0 s"), (59.6, "60 s"), (125, "125 s"), (600, "10 min"), (7500, "2 h 5 min")],
)
def test_a_span_is_said_as_people_say_it(seconds: float, words: str) -> None:
    assert span(seconds) == words
