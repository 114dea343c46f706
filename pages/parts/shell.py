"""The page that the server sends first, in which Streamlit then draws all others."""

import json
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Final
from urllib.parse import quote

import streamlit as st

from backend import comparison, runtime
from pages.parts import plotly_script

STYLE: Final = Path(__file__).parent / "style.css"
STATIC: Final = Path(st.__file__).parent / "static"
NEEDED: Final = (
    *("Button", "PageLink", "Progress", "ProgressBar", "Html", "purify.es", "rehype-raw", "lib"),
    *("BidiComponent", "serialization", "recordbatch", "_arrayReduce"),
)
"""Scripts of what every page has; Streamlit asks for them only once it is to be drawn."""
BEGIN: Final = Path(__file__).parent / "early.js"
TOLD: Final = '<script>window.__streamlit = { BACKEND_BASE_URL: location.origin + "/" }</script>'


def asks_first(page: str, query: Mapping[str, str]) -> str | None:
    """The address at which a page's script asks for its curves (feed.js, overlay.js).

    None where there is nothing to ask for; of what is not there is not asked.
    """
    if page not in {"job", "compare"}:
        return None
    asked = comparison.asked(query.get("id" if page == "job" else "ids", ""))
    found = [job.job_id for job in runtime.service().these(asked.ids)]
    if not found:
        return None
    if page == "job":
        return f"/api/training/curve/{found[0]}?bins=1000"
    metric = query.get("metric") or comparison.LOSSES[0]
    name = quote(metric, safe="!*'()~")  # as encodeURIComponent does
    ids, bins = ",".join(map(str, found)), max(16, min(1000, 15000 // len(found)))
    return f"/api/training/curves?job_ids={ids}&name={name}&bins={bins}"


def page_shell(first: str | None = None) -> str:
    """Streamlit's index.html, told where the server is, how the pages look and what they need.

    Without the first the browser takes `/job` for a prefix that the app may be served under, asks
    there first, and shows two errors in its console before it asks at the root. Without the others
    a page is first seen in Streamlit's own style, with grey bars for its links and buttons and the
    names of its icons for their signs, and then jumps. What draws charts is loaded in a pause.

    Args:
        first: What the browser asks for while Streamlit starts (`asks_first`).
    """
    index = _index()
    given = f"{json.dumps(plotly_script.URL)}, {json.dumps(first)}"
    begin = f"<script>{BEGIN.read_text(encoding='utf-8')}({given})</script>"
    head = "\n    ".join(["<head>", TOLD, begin, *_early()])
    # At the end, so that it comes after Streamlit's own, which are put at the end of the head.
    style = f"<style>{STYLE.read_text(encoding='utf-8')}</style>"
    return (
        index.replace("<head>", head, 1)
        .replace("<title>Streamlit</title>", "<title>Signalbox</title>", 1)
        .replace("</body>", f"{style}</body>", 1)
    )


@cache
def _index() -> str:
    return (STATIC / "index.html").read_text(encoding="utf-8")


@cache
def _early() -> list[str]:
    """Links that have the browser fetch these files before they are asked for."""
    files, index = STATIC / "static", _index()
    return [
        *(
            f'<link rel="modulepreload" crossorigin href="./static/js/{script.name}">'
            for name in NEEDED
            for script in (files / "js").glob(f"{name}.*.js")
            if script.name not in index
        ),
        *(
            f'<link rel="preload" crossorigin href="./static/media/{font.name}" as="font" '
            'type="font/woff2">'
            for font in (files / "media").glob("MaterialSymbols-*.woff2")
        ),
    ]
