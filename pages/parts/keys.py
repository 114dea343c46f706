"""What each page listens for: keys, with the dialog that lists them, and buttons that copy a text;
and times that stay true."""

from pathlib import Path
from typing import Final

import streamlit as st

from pages.parts.scripts import joined

GO: Final = {
    "o": ("Overview", ""),
    "s": ("Submit", "submit"),
    "j": ("Jobs", "jobs"),
    "c": ("Compare", "compare"),
    "f": ("Failures", "failures"),
    "g": ("GPU", "gpu"),
}
"""After `g`: the page that a letter leads to, and its address."""
ACTS: Final = {
    ("/",): "Search the jobs",
    ("c",): "Cancel the job that this page shows",
    ("?",): "Show these keys",
}

_HERE: Final = Path(__file__).parent


def _dialog() -> str:
    rows = ACTS | {("g", letter): f"Go to {name}" for letter, (name, _) in GO.items()}
    listed = "".join(
        f"<dt>{' '.join(f'<kbd>{key}</kbd>' for key in pressed)}</dt><dd>{what}</dd>"
        for pressed, what in rows.items()
    )
    return (
        '<dialog class="box-keys" aria-labelledby="box-keys-title">'
        f'<h2 id="box-keys-title">Keys</h2><dl>{listed}</dl>'
        "<p>They rest while you type in a field.</p>"
        '<form method="dialog"><button autofocus>Close</button></form></dialog>'
    )


_keys = st.components.v2.component(
    "signalbox_keys",
    html=_dialog(),
    css=(_HERE / "keys.css").read_text(encoding="utf-8"),
    js=joined("times.js", "copying.js", "keys.js"),
    isolate_styles=False,  # a dialog in a shadow root would not find the theme's colours
)


def listen() -> None:
    """Listen for the keys; it takes no room on the page."""
    with st.container(key="keys"):
        _keys(key="listening", data={letter: address for letter, (_, address) in GO.items()})


def button() -> None:
    """Opens the dialog by mouse; where there is only touch there are no keys, and it is hidden."""
    st.html('<button type="button" class="box-keys-button"><kbd>?</kbd> Keys</button>')
