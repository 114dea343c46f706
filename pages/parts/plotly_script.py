"""Where Plotly's own script lies, and the address at which the app serves it, so that no chart
needs the network; and what our charts' scripts share."""

from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Final

_SPEC = find_spec("plotly")  # found, not imported: the server starts faster
assert _SPEC is not None
assert _SPEC.origin is not None

SCRIPT: Final = Path(_SPEC.origin).parent / "package_data" / "plotly.min.js"

URL: Final = f"/vendor/plotly-{version('plotly')}.min.js"
"""It names the version, so that a browser may keep it for ever."""

_HERE: Final = Path(__file__).parent


def with_shared(name: str) -> str:
    """The script of a component of this folder, after plot.js, which all charts share: loading
    Plotly, the theme, numbers, the address, the moving average, and the bins of a curve."""
    shared, own = ((_HERE / part).read_text(encoding="utf-8") for part in ("plot.js", name))
    return f"{shared}\n{own}"
