"""The scripts of components, which are files of this folder and need no build step."""

from pathlib import Path
from typing import Final

_HERE: Final = Path(__file__).parent


def joined(*names: str) -> str:
    """These files one after the other, as one script: what a later one uses an earlier one has."""
    return "\n".join((_HERE / name).read_text(encoding="utf-8") for name in names)
