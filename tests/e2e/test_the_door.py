"""A browser at the door of a server that asks for its token."""

from pathlib import Path

import httpx
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


def test_a_page_of_another_site_can_neither_start_a_job_nor_read_one(
    browser: Browser, server: Server, tmp_path: Path
) -> None:
    """It tries by fetch, with and without asking first, by WebSocket and by image."""
    before = jobs(server)
    with Server(tmp_path / "data") as hostile:  # any page of another port
        page = browser.new_page()
        page.goto(f"{hostile.url}/api/docs")
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
        page.close()
    assert set(told) == {"json", "plain", "read", "socket", "image"}
    assert set(told.values()) == {"refused"}
    assert jobs(server) == before


def jobs(server: Server) -> int:
    """How many there are."""
    return int(httpx.get(f"{server.url}/api/training/jobs").json()["total"])
