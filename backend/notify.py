"""Tells the world outside of jobs, through Apprise, and never lets a job or the server wait for it.

Apprise is an optional dependency, imported only where `SIGNALBOX_NOTIFY` names an address.
"""

import contextlib
import heapq
import logging
import queue
import re
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Final, Protocol

_BETWEEN: Final = re.compile(r"\s+|[,;](?=[A-Za-z0-9]+://)")
"""A comma may be a part of an address, between receivers; not before another address."""

logger = logging.getLogger(__name__)

MAX_WAITING: Final = 200
"""So many messages wait at most; what comes beyond them is dropped."""

TRIES: Final = 4
RETRY_SECONDS: Final = 2.0
"""Before the second try of a message; four times as long before each further one."""

CLOSE_SECONDS: Final = 3.0
"""How long a server that closes waits for what is still to be sent."""


@dataclass(frozen=True)
class Message:
    """Plain text, with nothing in it that is to be hidden."""

    title: str
    body: str


class Address(Protocol):
    """Where messages are sent."""

    name: str
    """For the log: which of the addresses, and nothing that could be a secret."""

    def send(self, message: Message) -> bool:
        """Whether it was taken. May take seconds, and may raise anything."""
        ...


class WrongAddressError(ValueError):
    """Apprise cannot be used, or does not understand an address; the message says which, and gives
    nothing of it away."""


class AppriseAddress:
    """An address that Apprise understands, such as `mailto://…` or `tgram://…`."""

    def __init__(self, url: str, position: int) -> None:
        """Raises WrongAddressError."""
        try:
            import apprise
        except ImportError as error:
            raise WrongAddressError(
                "it needs Apprise, which is not installed: python -m pip install apprise"
            ) from error
        # What Apprise logs may hold addresses with their secrets.
        logging.getLogger("apprise").setLevel(logging.CRITICAL + 1)
        # Not an object of the class Apprise, which may use threads of its own: an interpreter that
        # ends waits for those.
        service = apprise.Apprise.instantiate(url)
        if service is None:
            raise WrongAddressError(f"address {position} in it is none that Apprise understands")
        self._service = service
        self._as_text = apprise.NotifyFormat.TEXT
        self.name = f"address {position} of SIGNALBOX_NOTIFY ({url.partition('://')[0]}://)"

    def send(self, message: Message) -> bool:
        return bool(
            self._service.notify(title=message.title, body=message.body, body_format=self._as_text)
        )


def read_addresses(text: str) -> list[AppriseAddress]:
    """Addresses with blanks, commas or semicolons between them, as Apprise takes them too. Unlike
    Apprise, which passes over what it does not understand, this raises WrongAddressError."""
    urls = [url for part in _BETWEEN.split(text) if (url := part.strip(",;"))]
    if not urls:
        raise WrongAddressError("it names no address")
    return [AppriseAddress(url, position) for position, url in enumerate(urls, 1)]


@dataclass(order=True)
class _Try:
    """One message on its way to one address."""

    due: float
    number: int
    message: Message = field(compare=False)
    address: Address = field(compare=False)
    tried: int = field(compare=False, default=0)


class Notifier:
    """One thread that sends what it is handed, in its order; who hands over never waits."""

    def __init__(
        self,
        addresses: Sequence[Address],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._addresses = addresses
        self._clock = clock
        self._waiting: queue.Queue[Callable[[], Message | None] | None] = queue.Queue(MAX_WAITING)
        self._tries: list[_Try] = []
        self._handed = 0
        self._silent: set[str] = set()
        """Of which addresses it was said that they take nothing, and have not done so since."""
        self._overflowed = False
        self._closing = threading.Event()
        self._left = threading.Event()
        # A daemon: whatever it waits for, the interpreter ends.
        self._thread = threading.Thread(target=self._run, name="notifier", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def tell(self, make: Callable[[], Message | None]) -> None:
        """Have a message made and sent, in the thread; None comes to nothing. Returns at once, and
        raises nothing."""
        try:
            self._waiting.put_nowait(make)
        except queue.Full:
            if not self._overflowed:
                self._overflowed = True
                logger.warning(
                    "%s notifications wait already; what comes beyond them is not sent.",
                    MAX_WAITING,
                )

    def close(self, most_seconds: float = CLOSE_SECONDS) -> None:
        """Send what has not been tried yet, for so long at most."""
        self._closing.set()
        with contextlib.suppress(queue.Full):  # then it is awake anyway
            self._waiting.put_nowait(None)
        if self._thread.ident is None:
            return
        self._thread.join(most_seconds)
        if self._thread.is_alive():
            self._left.set()
            logger.warning("Not every notification was sent before the server closed.")

    # The thread

    def _run(self) -> None:
        while not self._left.is_set():
            try:
                make = self._waiting.get(timeout=self._until_next())
            except queue.Empty:
                make = None
            else:
                if make is not None:
                    self._take(make)
            self._send_due()
            if self._closing.is_set() and self._waiting.empty():
                return  # what failed is not tried again: nobody waits for that

    def _until_next(self) -> float | None:
        """Seconds; None: until there is something."""
        if self._closing.is_set():
            return 0.0
        return max(0.0, self._tries[0].due - self._clock()) if self._tries else None

    def _take(self, make: Callable[[], Message | None]) -> None:
        try:
            message = make()
        except Exception:
            logger.exception("A notification could not be written")
            return
        for address in self._addresses if message else ():
            assert message is not None
            self._handed += 1
            heapq.heappush(self._tries, _Try(self._clock(), self._handed, message, address))

    def _send_due(self) -> None:
        while self._tries and self._tries[0].due <= self._clock():
            this = heapq.heappop(self._tries)
            if self._sends(this):
                self._silent.discard(this.address.name)
                self._overflowed = False
                continue
            this.tried += 1
            if this.tried < TRIES and len(self._tries) < MAX_WAITING:
                this.due = self._clock() + RETRY_SECONDS * 4.0 ** (this.tried - 1)
                heapq.heappush(self._tries, this)
            if this.address.name not in self._silent:
                self._silent.add(this.address.name)
                logger.warning(
                    "A notification was not taken by %s; it is tried %s times in all, and nothing "
                    "more is said of this address until it takes one.",
                    this.address.name,
                    TRIES,
                )

    def _sends(self, this: _Try) -> bool:
        try:
            return this.address.send(this.message)
        except Exception as error:  # noqa: BLE001 (a service of Apprise may raise anything)
            logger.debug("%s: %s", this.address.name, type(error).__name__)
            return False
