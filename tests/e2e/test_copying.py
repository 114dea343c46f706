"""A click copies a log, a message or a source line as it was written."""

from collections.abc import Callable

import pytest
from playwright.sync_api import Page, expect

from tests.server import Server
from tests.waiting import wait_until

pytestmark = [pytest.mark.browser, pytest.mark.timeout(300)]

FAILS = """\
print("<b>one</b>   two\\n\\n\\tthree")
raise ValueError("no *such* file")
"""


def test_a_text_is_copied_or_else_selected(
    page: Page, server: Server, write_script: Callable[[str, str], str]
) -> None:
    job_id = server.submit(script=write_script("fails.py", FAILS), gpus=0)
    wait_until(lambda: server.status(job_id) == "failed", 60)
    page.context.grant_permissions(["clipboard-read", "clipboard-write"])
    page.goto(f"/job?id={job_id}")
    for key, text in {"said": "ValueError: no *such* file", "log": "<b>one</b>   two\n"}.items():
        box = page.locator(f'[class*="st-key-verbatim-{key}-"]')
        expect(box.get_by_role("button", name="Copy")).to_have_css("opacity", "0")
        box.hover()
        box.get_by_role("button", name="Copy").click()
        expect(box.get_by_role("button")).to_contain_text("Copied")
        copied = page.evaluate("navigator.clipboard.readText()")
        assert copied.startswith(text)
        expect(box.get_by_role("button")).to_contain_text("Copy")

    page.evaluate("() => { navigator.clipboard.writeText = () => Promise.reject() }")
    box.get_by_role("button", name="Copy").click()
    expect(box.get_by_role("button")).to_contain_text("Selected")
    assert page.evaluate("getSelection().toString()").startswith("<b>one</b>   two\n\n\tthree")
    page.context.clear_permissions()
