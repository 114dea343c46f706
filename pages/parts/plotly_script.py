"""Plotly's own script, and the address at which the app serves it, so that no chart needs the
network; and what our charts' scripts share."""

import gzip
from functools import cache
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Final

from pages.parts.scripts import joined

_SPEC = find_spec("plotly")  # found, not imported: the server starts faster
assert _SPEC is not None
assert _SPEC.origin is not None

SCRIPT: Final = Path(_SPEC.origin).parent / "package_data" / "plotly.min.js"

URL: Final = f"/vendor/plotly-{version('plotly')}.min.js"
"""It names the version, so that a browser may keep it for ever."""

_HINT: Final = b"//# allFunctionsCalledOnLoad\n"
"""Has Chromium compile all of it beside the page, instead of each function when it is first called,
which keeps the page from doing anything else for most of a second; other browsers pass over it.
(V8's explicit compile hints, https://v8.dev/blog/explicit-compile-hints)"""


def source() -> bytes:
    """What a browser gets: the script as Plotly's package ships it, after a hint how to compile."""
    return _HINT + SCRIPT.read_bytes()


@cache
def compressed() -> bytes:
    """The same for those that take gzip; once, because it takes a fifth of a second."""
    return gzip.compress(source(), 6, mtime=0)


def with_shared(*names: str) -> str:
    """The script of a component, from these files of this folder, after plot.js, which all charts
    share: Plotly, the theme, numbers, the address, the moving average, bins of a curve; and
    sketch.js, which draws until Plotly is there."""
    return joined("plot.js", "sketch.js", *names)
