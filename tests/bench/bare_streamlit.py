"""The floor: an app of Streamlit's that shows nothing but a title."""

import subprocess
import sys
from pathlib import Path
from typing import Final

from tests.server import Server

EMPTY: Final = "import streamlit as st\n\nst.title('Empty')\n"


class BareStreamlit(Server):
    """A server of such an app, in a folder of its own."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder / "data")
        self.folder = folder

    def launch(self) -> "subprocess.Popen[bytes]":
        script = self.folder / "empty.py"
        script.write_text(EMPTY, encoding="utf-8")
        return subprocess.Popen(
            [
                *(sys.executable, "-m", "streamlit", "run", str(script)),
                *("--server.port", str(self.port), "--server.headless", "true"),
                *("--server.address", "127.0.0.1", "--browser.gatherUsageStats", "false"),
            ],
            cwd=self.folder,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
