"""Notifications go out through Apprise to a real receiver, and nothing ever waits for them."""

import json
import logging
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest

from backend import notify
from backend.notify import Message, Notifier, WrongAddressError, read_addresses
from tests.server import free_port
from tests.waiting import wait_until

pytest.importorskip("apprise")

HELLO = Message("Job 12 digits completed", "It ran for 12 s.\nhttp://127.0.0.1:8501/job?id=12")


class Receiver:
    """An HTTP server that takes notifications as `json://` sends them."""

    def __init__(self) -> None:
        self.taken: list[dict[str, Any]] = []
        self.asked = 0
        self.answer = 200
        self.answers = threading.Event()
        """Cleared, it takes a request and never answers."""
        self.answers.set()
        receiver = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                receiver.asked += 1
                receiver.answers.wait(60)
                self.send_response(receiver.answer)
                self.end_headers()
                if receiver.answer == 200:
                    receiver.taken.append(json.loads(body))

            def log_message(self, format: str, *args: object) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.02,))
        self._thread.start()

    @property
    def url(self) -> str:
        return f"json://me:s3cr3t@127.0.0.1:{self._server.server_port}/path"

    def titles(self) -> list[str]:
        return [taken["title"] for taken in self.taken]

    def close(self) -> None:
        self.answers.set()
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    receiver = Receiver()
    yield receiver
    receiver.close()


@pytest.fixture
def notifier_for(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[str], Notifier]]:
    """A notifier that tries again soon."""
    monkeypatch.setattr(notify, "RETRY_SECONDS", 0.05)
    made: list[Notifier] = []

    def make(text: str) -> Notifier:
        made.append(Notifier(read_addresses(text)))
        made[-1].start()
        return made[-1]

    yield make
    for each in made:
        each.close(0)


def warnings(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [r.getMessage() for r in caplog.records if r.levelno >= logging.WARNING]


def test_a_message_arrives_at_each_address_with_title_and_text(
    receiver: Receiver, notifier_for: Callable[[str], Notifier]
) -> None:
    notifier_for(f"{receiver.url}, {receiver.url}\n").tell(lambda: HELLO)
    wait_until(lambda: len(receiver.taken) == 2, 60)
    for taken in receiver.taken:
        assert (taken["title"], taken["message"]) == (HELLO.title, HELLO.body)


def test_one_that_answers_with_an_error_is_tried_again_until_it_takes_it(
    receiver: Receiver,
    notifier_for: Callable[[str], Notifier],
    caplog: pytest.LogCaptureFixture,
) -> None:
    receiver.answer = 500
    notifier = notifier_for(receiver.url)
    notifier.tell(lambda: HELLO)
    notifier.tell(lambda: HELLO)
    wait_until(lambda: receiver.asked >= 3, 60)
    receiver.answer = 200
    wait_until(lambda: len(receiver.taken) == 2, 60)
    (said,) = warnings(caplog)
    assert said.startswith(
        "A notification was not taken by address 1 of SIGNALBOX_NOTIFY (json://)"
    )
    assert "s3cr3t" not in caplog.text


def test_one_that_is_not_there_is_given_up_in_the_end_and_holds_up_no_other(
    receiver: Receiver, notifier_for: Callable[[str], Notifier], caplog: pytest.LogCaptureFixture
) -> None:
    nobody = f"json://me:s3cr3t@127.0.0.1:{free_port()}"
    notifier = notifier_for(f"{nobody} {receiver.url}")
    for number in range(3):
        notifier.tell(lambda number=number: Message(f"Message {number}", "text"))  # type: ignore[misc]
    wait_until(lambda: len(receiver.taken) == 3, 60)
    assert receiver.titles() == ["Message 0", "Message 1", "Message 2"]
    wait_until(lambda: not notifier._tries, 60)
    assert len(warnings(caplog)) == 1, "Once for all messages and all tries."
    assert "s3cr3t" not in caplog.text


def test_neither_who_tells_nor_who_closes_waits_for_one_that_hangs(
    receiver: Receiver, caplog: pytest.LogCaptureFixture
) -> None:
    receiver.answers.clear()
    notifier = Notifier(read_addresses(receiver.url))
    notifier.start()
    for _ in range(notify.MAX_WAITING + 50):
        notifier.tell(lambda: HELLO)
    wait_until(lambda: receiver.asked == 1)
    assert receiver.taken == [], "All were handed over while the first was not taken yet."
    notifier.close(0.1)
    assert receiver.taken == [], "It was closed before the first was taken."
    full, late = warnings(caplog)
    assert full.startswith(f"{notify.MAX_WAITING} notifications wait already")
    assert late == "Not every notification was sent before the server closed."


def test_what_was_handed_over_just_before_the_end_is_sent(receiver: Receiver) -> None:
    notifier = Notifier(read_addresses(receiver.url))
    notifier.start()
    for _ in range(5):
        notifier.tell(lambda: HELLO)
    notifier.close(30)
    assert len(receiver.taken) == 5


def test_a_message_that_cannot_be_made_costs_only_itself(
    receiver: Receiver, notifier_for: Callable[[str], Notifier], caplog: pytest.LogCaptureFixture
) -> None:
    notifier = notifier_for(receiver.url)
    notifier.tell(lambda: 1 / 0)  # type: ignore[arg-type, return-value]
    notifier.tell(lambda: None)
    notifier.tell(lambda: HELLO)
    wait_until(lambda: receiver.taken, 60)
    assert receiver.titles() == [HELLO.title]
    assert warnings(caplog) == ["A notification could not be written"]


class Broken:
    """An address whose service raises, as a plugin of Apprise may."""

    name = "address 1"

    def __init__(self) -> None:
        self.tried: list[float] = []

    def send(self, message: Message) -> bool:
        self.tried.append(time.monotonic())
        raise RuntimeError("s3cr3t")


def test_a_service_that_raises_is_tried_a_few_times_and_nothing_of_it_is_told(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(notify, "RETRY_SECONDS", 0.01)
    broken = Broken()
    notifier = Notifier([broken])
    notifier.start()
    notifier.tell(lambda: HELLO)
    wait_until(lambda: len(broken.tried) == notify.TRIES)
    notifier.close(30)
    assert len(broken.tried) == notify.TRIES
    assert len(warnings(caplog)) == 1
    assert "s3cr3t" not in caplog.text


@pytest.mark.parametrize(
    "text",
    [
        "json://127.0.0.1:1/a json://127.0.0.1:1/b",
        "json://127.0.0.1:1/a,json://127.0.0.1:1/b,",
        " json://127.0.0.1:1/a;\n\tjson://127.0.0.1:1/b;",
    ],
)
def test_addresses_may_be_apart_by_blanks_lines_commas_and_semicolons(text: str) -> None:
    assert [address.name for address in read_addresses(text)] == [
        "address 1 of SIGNALBOX_NOTIFY (json://)",
        "address 2 of SIGNALBOX_NOTIFY (json://)",
    ]


def test_a_comma_within_an_address_is_a_part_of_it() -> None:
    (address,) = read_addresses("mailto://me:pw@example.com?to=a@example.com,b@example.com")
    assert [to for _, to in address._service.targets] == ["a@example.com", "b@example.com"]  # type: ignore[attr-defined]


@pytest.mark.parametrize("wrong", ["foo://s3cr3t", "s3cr3t", "tgram://s3cr3t", "json://"])
def test_an_address_that_is_not_understood_is_named_by_its_place_alone(
    wrong: str, caplog: pytest.LogCaptureFixture
) -> None:
    with pytest.raises(WrongAddressError) as raised:
        read_addresses(f"json://127.0.0.1:1 {wrong}")
    assert str(raised.value) == "address 2 in it is none that Apprise understands"
    assert caplog.text == "", "Apprise says nothing either."
