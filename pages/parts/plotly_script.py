"""Where Plotly's own script lies, and the address at which the app serves it, so that no chart
needs the network; and what our charts' scripts share."""

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


def with_shared(*names: str) -> str:
    """The script of a component, from these files of this folder, after plot.js, which all charts
    share: loading Plotly, the theme, numbers, the address, the moving average, bins of a curve."""
    return joined("plot.js", *names)
