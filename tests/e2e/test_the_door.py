"""A browser at the door of a server that asks for its token."""

import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import httpx
import pytest
from playwright.sync_api import Browser, expect

from tests.e2e.conftest import PATIENCE_MILLISECONDS
from tests.server import Server

TOKEN = "a-long-random-word"


def test_a_browser_is_asked_for_the_token_once_and_then_finds_what_it_came_for(
    browser: Browser, tmp_path: Path
) -> None:
    with Server(tmp_path / "data", token=TOKEN) as server:
        context = browser.new_context(base_url=server.url)
        context.set_default_timeout(PATIENCE_MILLISECONDS)
        page = context.new_page()
        page.goto("/submit")
        expect(page.get_by_role("heading", name="Signalbox")).to_be_visible()
        page.get_by_label("Token").fill("wrong")
        page.get_by_role("button", name="Sign in").click()
        expect(page.get_by_role("alert")).to_have_text("That is not the token of this server.")
        page.get_by_label("Token").fill(TOKEN)
        page.get_by_label("Token").press("Enter")
        expect(page.get_by_role("heading", name="Submit")).to_be_visible()
        assert page.url.endswith("/submit")
        page.goto("/gpu")
        expect(page.get_by_role("heading", name="GPU")).to_be_visible()
        page.goto("/api/docs")
        expect(page.get_by_role("heading", name="Signalbox")).to_be_visible()
        other = context.new_page()
        other.goto("/jobs")
        expect(other.get_by_role("heading", name="Jobs")).to_be_visible()
        context.close()


class EmptyPage(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        self.send_response(200)
        self.send_header("Content-Type", "text/html")
        self.end_headers()

    def log_message(self, *_: object) -> None:
        """Nobody wants to know."""


@pytest.fixture
def hostile() -> Iterator[str]:
    """The address of a page of another site, which any page of another port is."""
    with ThreadingHTTPServer(("127.0.0.1", 0), EmptyPage) as site:
        thread = threading.Thread(target=site.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{site.server_port}/"
        site.shutdown()
        thread.join()


def test_a_page_of_another_site_can_neither_start_a_job_nor_read_one(
    browser: Browser, server: Server, hostile: str
) -> None:
    """It tries by fetch, with and without asking first, by WebSocket and by image."""
    before = jobs(server)
    with browser.new_page() as page:
        page.goto(hostile)
        told = page.evaluate(
            """async (victim) => {
                const tried = {}
                const json = { "Content-Type": "application/json" }
                const body = JSON.stringify({ recipe: "digits" })
                const attempt = async (name, options, path = "/api/training/execute") => {
                    try {
                        const answer = await fetch(victim + path, options)
                        tried[name] = answer.type === "opaque" ? "opaque" : answer.status
                    } catch { tried[name] = "refused" }
                }
                await attempt("json", { method: "POST", headers: json, body })
                await attempt("plain", { method: "POST", mode: "no-cors", body })
                await attempt("read", {}, "/api/training/jobs")
                tried.socket = await new Promise((done) => {
                    const socket = new WebSocket(victim.replace("http", "ws") + "/_stcore/stream")
                    socket.onopen = () => done("open")
                    socket.onerror = () => done("refused")
                })
                tried.image = await new Promise((done) => {
                    const image = new Image()
                    image.onload = () => done("read")
                    image.onerror = () => done("refused")
                    image.src = victim + "/api/training/jobs"
                })
                return tried
            }""",
            server.url,
        )
    assert set(told) == {"json", "plain", "read", "socket", "image"}
    assert set(told.values()) == {"refused"}
    assert jobs(server) == before


def jobs(server: Server) -> int:
    """How many there are."""
    return int(httpx.get(f"{server.url}/api/training/jobs").json()["total"])
