"""Where a click in the sidebar, or on what is told of a job, leads to."""

from types import SimpleNamespace
from typing import Any

import pytest

from pages.parts import strip
from pages.parts.live import NEXT


@pytest.mark.parametrize(
    ("target", "page"),
    [
        ({"job": 12}, ("job.py", {"id": "12"})),
        ({"jobs": "running"}, ("jobs.py", {"state": "running"})),
        ({"jobs": None}, ("jobs.py", {})),
        (None, None),
        ([12], None),
    ],
)
def test_a_click_leads_to_a_page(monkeypatch: pytest.MonkeyPatch, target: Any, page: Any) -> None:
    session: dict[str, Any] = {strip.KEY: SimpleNamespace(go=target)}
    monkeypatch.setattr(strip.st, "session_state", session)
    strip._go()
    assert session.get(NEXT) == page
