"""A server without pages, to be killed: the service in a process of its own.

    python -m tests.faults.server '{"data": "/tmp/data"}'

It prints "ready", and then does what it reads, a line each: `submit PATH` or `cancel ID`.
"""

import logging
import subprocess
import sys
from pathlib import Path
from types import TracebackType

from backend.service import Service
from backend.settings import Settings
from backend.submission import Submission
from tests.conftest import PROJECT
from tests.waiting import wait_until


class ServerProcess:
    """Such a server, started as a context and killed at its end, if not before."""

    def __init__(self, settings: Settings) -> None:
        self._log = settings.data.with_name("servers.log")
        self._from = self._log.stat().st_size if self._log.exists() else 0
        with self._log.open("ab") as log:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "tests.faults.server", settings.model_dump_json()],
                cwd=PROJECT,
                stdin=subprocess.PIPE,
                stdout=log,
                stderr=subprocess.STDOUT,
            )
        self.pid = self._process.pid

    @property
    def output(self) -> str:
        """What it has printed so far."""
        return self._log.read_bytes()[self._from :].decode()

    def __enter__(self) -> "ServerProcess":
        wait_until(lambda: "ready" in self.output or self._process.poll() is not None)
        if self._process.poll() is not None:
            self.kill()
            raise AssertionError(f"It did not start:\n{self.output}")
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.kill()

    def tell(self, line: str) -> None:
        assert self._process.stdin
        self._process.stdin.write(line.encode() + b"\n")
        self._process.stdin.flush()

    def kill(self) -> None:
        """By SIGKILL, as power loss does it."""
        self._process.kill()
        self._process.communicate()


def main() -> None:
    logging.basicConfig(level=logging.INFO, format="%(levelname)s %(message)s")
    service = Service(Settings.model_validate_json(sys.argv[1]))
    service.start()
    print("ready", flush=True)
    for line in sys.stdin:
        verb, _, rest = line.strip().partition(" ")
        if verb == "submit":
            service.submit(Submission(recipe="script", params={"script": str(Path(rest))}))
        elif verb == "cancel":
            service.cancel(int(rest))


if __name__ == "__main__":
    main()
