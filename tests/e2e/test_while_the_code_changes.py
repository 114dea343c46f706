"""Editing the project's files while the server runs keeps its one Service, also for those who have
Streamlit look for edits, which is switched off."""

import shutil
from pathlib import Path

import pytest
from playwright.sync_api import Browser, expect

from tests.conftest import PROJECT
from tests.server import Server
from tests.waiting import wait_until

pytestmark = pytest.mark.browser


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """A copy of the project that a test may edit."""
    project = tmp_path / "project"
    project.mkdir()
    shutil.copy(PROJECT / "app.py", project)
    for folder in ("backend", "pages", ".streamlit"):
        ignore = shutil.ignore_patterns("__pycache__")
        shutil.copytree(PROJECT / folder, project / folder, ignore=ignore)
    return project


def test_an_edited_backend_module_is_not_loaded_a_second_time(
    browser: Browser, project: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("STREAMLIT_SERVER_FILE_WATCHER_TYPE", "auto")
    with Server(tmp_path / "data", project) as server:
        page = browser.new_page(base_url=server.url)
        page.goto("/gpu")
        expect(page.get_by_role("heading", name="Cleanups")).to_be_visible()
        for path in ("backend/models.py", "pages/gpu.py"):
            edited = (project / path).read_text(encoding="utf-8")
            edited = edited.replace('st.title("GPU")', 'st.title("GPU, edited")')
            (project / path).write_text(edited + "\n# edited\n", encoding="utf-8")

        def shows_the_edit() -> bool:
            page.reload()
            heading = page.get_by_role("heading", level=1)
            expect(heading).to_be_visible()
            return "edited" in heading.inner_text()

        # The edited page is noticed, so an edited backend would have been noticed too.
        wait_until(shows_the_edit, 60, "The edited page was not loaded.")
        page.goto("/")
        page.get_by_role("button", name="digits").first.click()
        page.wait_for_url("**/job?id=1")
        page.get_by_role("button", name="Cancel", exact=True).click()
        expect(page.get_by_role("button", name="Retry", exact=True)).to_be_visible()
        assert "already defined" not in server.output
        page.close()
