"""Who is let in, and who is not: pages, API and WebSockets of a real server."""

import subprocess
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
import websockets.exceptions
from websockets.sync.client import connect

from backend.door import is_local_address
from tests.api.conftest import open_client
from tests.server import Server

TOKEN = "a-long-random-word"
EVERYWHERE = [
    "/",
    "/job?id=1",
    "/_stcore/host-config",
    "/health",
    "/api/training/jobs",
    "/api/docs",
]
HERE = {"X-Requested-With": "test"}


@pytest.fixture(scope="module")
def locked(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A server that asks for a token."""
    with Server(tmp_path_factory.mktemp("locked") / "data", token=TOKEN) as server:
        yield server


@pytest.fixture
def stranger(locked: Server) -> Iterator[httpx.Client]:
    """A client of that server that has no token."""
    with open_client(locked) as client:
        yield client


def count(client: httpx.Client) -> int:
    return int(client.get("/api/training/jobs").json()["total"])


def refused(answer: httpx.Response, status: int) -> str:
    """The sentence of a refusal."""
    assert answer.status_code == status, answer.text
    assert list(answer.json()) == ["detail"]
    return str(answer.json()["detail"])


@pytest.mark.parametrize("path", EVERYWHERE)
@pytest.mark.parametrize(
    "host",
    ["evil.example", "127.0.0.1.evil.example", "localhost@evil", "a b", ".", "...", "[.]", "[]"],
)
def test_a_foreign_host_is_refused_everywhere(
    client: httpx.Client, server: Server, path: str, host: str
) -> None:
    assert "allowedHosts" in refused(client.get(path, headers={"Host": host}), 400)
    assert client.get(path, headers={"Host": f"127.0.0.1:{server.port}"}).status_code == 200


@pytest.mark.parametrize("host", ["localhost", "LOCALHOST.", "127.0.0.1", "[::1]", "127.0.0.2"])
def test_this_machine_may_be_called_by_each_of_its_names(
    client: httpx.Client, server: Server, host: str
) -> None:
    for name in (host, f"{host}:{server.port}"):
        assert client.get("/api/training/jobs", headers={"Host": name}).status_code == 200


@pytest.mark.parametrize("path", EVERYWHERE)
@pytest.mark.parametrize(
    "origin",
    [
        "http://evil.example",
        "null",
        "http://127.0.0.1:1",
        "http://127.0.0.1",
        "file://",
        "http://[",
    ],
)
def test_a_page_of_another_site_is_refused_everywhere(
    client: httpx.Client, path: str, origin: str
) -> None:
    assert "another site" in refused(client.get(path, headers={"Origin": origin}), 403)


def test_a_page_of_this_server_is_let_in(client: httpx.Client, server: Server) -> None:
    for path in EVERYWHERE:
        assert client.get(path, headers={"Origin": server.url}).status_code == 200


def test_an_image_of_another_site_is_no_way_in_and_a_link_is(client: httpx.Client) -> None:
    image = {"Sec-Fetch-Site": "cross-site", "Sec-Fetch-Mode": "no-cors"}
    link = {"Sec-Fetch-Site": "cross-site", "Sec-Fetch-Mode": "navigate"}
    assert "another site" in refused(client.get("/api/training/jobs", headers=image), 403)
    for path in ("/", "/job?id=1", "/api/training/jobs"):
        assert client.get(path, headers=link).status_code == 200


@pytest.mark.parametrize("path", ["/ws/training/1", "/_stcore/stream"])
@pytest.mark.parametrize(
    ("headers", "status"),
    [({"Host": "evil.example"}, 400), ({"Origin": "http://evil.example"}, 403)],
)
def test_websockets_are_behind_the_same_door(
    server: Server, path: str, headers: dict[str, str], status: int
) -> None:
    address = server.url.replace("http", "ws") + path
    with pytest.raises(websockets.exceptions.InvalidStatus) as refusal:
        connect(address, additional_headers=headers).close()
    assert refusal.value.response.status_code == status


@pytest.mark.parametrize(
    ("content_type", "content"),
    [
        ("application/x-www-form-urlencoded", b"recipe=digits"),
        ("multipart/form-data; boundary=x", b"--x--"),
        ("text/plain", b'{"recipe": "digits"}'),
        ("text/plain; application/json", b'{"recipe": "digits"}'),
        ("", b'{"recipe": "digits"}'),
    ],
)
def test_a_post_that_a_form_could_send_is_refused(
    client: httpx.Client, content_type: str, content: bytes
) -> None:
    before = count(client)
    for path in ("/api/training/execute", "/api/training/cancel/1", "/api/gpu/empty-cache"):
        headers = {"Content-Type": content_type, **HERE}
        assert "JSON" in refused(client.post(path, content=content, headers=headers), 415)
    assert count(client) == before


def test_a_post_without_a_body_needs_a_header_that_a_form_cannot_send(client: httpx.Client) -> None:
    path = "/api/gpu/empty-cache"
    assert "X-Requested-With" in refused(client.post(path), 415)
    assert client.post(path, headers=HERE).status_code == 200
    assert client.post(path, headers={"Content-Type": "application/json"}).status_code == 200


@pytest.mark.parametrize("announced", [True, False])
def test_a_body_is_bounded_and_the_bound_is_named(client: httpx.Client, announced: bool) -> None:
    body = b'{"recipe": "digits", "name": "' + b"x" * 2**20 + b'"}'
    content = body if announced else iter([body[:1000], body[1000:]])
    answer = client.post(
        "/api/training/execute", content=content, headers={"Content-Type": "application/json"}
    )
    assert "1,048,576 bytes" in refused(answer, 413)


def test_every_answer_tells_browsers_to_keep_others_out(client: httpx.Client) -> None:
    for path in (*EVERYWHERE, "/api/nothing"):
        headers = client.get(path).headers
        assert headers["x-content-type-options"] == "nosniff"
        assert headers["x-frame-options"] == "SAMEORIGIN"
        assert "access-control-allow-origin" not in headers


# The token


@pytest.mark.parametrize(
    "authorization", [None, "", "Bearer", "Bearer wrong", f"Basic {TOKEN}", f"Bearer {TOKEN}x", "é"]
)
def test_without_the_token_nobody_comes_in(
    stranger: httpx.Client, authorization: str | None
) -> None:
    headers = {} if authorization is None else {"Authorization": authorization.encode()}
    for path in ("/", "/_stcore/host-config", "/api/training/jobs", "/api/openapi.json", "/x.js"):
        answer = stranger.get(path, headers=headers)
        assert "token" in refused(answer, 401)
        assert answer.headers["www-authenticate"] == "Bearer"
    answer = stranger.post("/api/gpu/empty-cache", headers={**headers, **HERE})
    refused(answer, 401)


def test_with_the_token_everything_answers(locked: Server) -> None:
    with open_client(locked, headers={"Authorization": f"Bearer {TOKEN}"}) as client:
        for path in EVERYWHERE:
            assert client.get(path).status_code == 200


def test_that_the_server_lives_is_told_without_a_token(stranger: httpx.Client) -> None:
    assert stranger.get("/health").json() == {"status": "ok"}
    assert stranger.get("/_stcore/health").status_code == 200


@pytest.mark.parametrize("path", ["/ws/training/1", "/_stcore/stream"])
def test_websockets_ask_for_the_token(locked: Server, path: str) -> None:
    address = locked.url.replace("http", "ws") + path
    with pytest.raises(websockets.exceptions.InvalidStatus) as refusal:
        connect(address).close()
    assert refusal.value.response.status_code == 401


def test_a_browser_signs_in_once_and_its_cookie_does_not_hold_the_token(
    locked: Server, stranger: httpx.Client
) -> None:
    with open_client(locked) as browser:
        page = browser.get("/jobs", headers={"Accept": "text/html,*/*"})
        assert page.status_code == 401
        assert "Sign in" in page.text
        assert page.headers["cache-control"] == "no-store"
        refused(browser.post("/sign-in", json={"token": "wrong"}), 401)
        refused(browser.post("/sign-in", json=["token"]), 401)
        refused(
            browser.post("/sign-in", content=b"{", headers={"Content-Type": "application/json"}),
            401,
        )
        refused(browser.get("/api/training/jobs"), 401)
        welcome = browser.post("/sign-in", json={"token": TOKEN})
        assert welcome.status_code == 204
        cookie = welcome.headers["set-cookie"]
        assert TOKEN not in cookie
        assert "HttpOnly" in cookie
        assert "SameSite=lax" in cookie
        assert browser.put("/sign-in", json={}).status_code == 405
        for path in EVERYWHERE:
            assert browser.get(path).status_code == 200
        (mine,) = browser.cookies.items()
        headers = {"Cookie": f"{mine[0]}={mine[1]}"}
        for others in ('tok={"a":1}', 'a="x', "weird[]=1", f"{mine[0]}=old"):
            jar = {"Cookie": f"{others}; {headers['Cookie']}"}
            assert stranger.get("/jobs", headers=jar).status_code == 200
    with connect(locked.url.replace("http", "ws") + "/_stcore/stream", additional_headers=headers):
        pass
    wrong = {"Cookie": f'{mine[0]}="; a=\x01'}
    refused(stranger.get("/jobs", headers=wrong), 401)


@pytest.mark.parametrize(
    ("address", "is_local"),
    [
        *((address, False) for address in ("0.0.0.0", "::", "", None, "192.168.1.20", "a.example")),
        *((address, True) for address in ("127.0.0.1", "::1", "localhost", "unix:/run/socket")),
    ],
)
def test_an_address_is_for_this_machine_alone_or_for_others(
    address: str | None, is_local: bool
) -> None:
    assert is_local_address(address) is is_local


def test_a_server_for_others_does_not_start_without_a_token(tmp_path: Path) -> None:
    server = Server(tmp_path / "data")
    server.options = ("--server.address", "")  # which is everywhere
    assert server.launch().wait(60) != 0
    assert "set SIGNALBOX_TOKEN, or listen on 127.0.0.1" in server.output
    assert "Traceback" not in server.output
    assert not (tmp_path / "data").exists()


def test_a_server_for_others_starts_with_a_token_and_knows_the_names_that_it_was_given(
    tmp_path: Path,
) -> None:
    server = Server(tmp_path / "data", token=TOKEN)
    server.options = ("--server.address", "0.0.0.0", "--server.allowedHosts", "box.example")
    with server, open_client(server) as client:
        for host, status in (("box.example", 200), ("127.0.0.1", 200), ("0.0.0.0", 400)):
            headers = {"Host": host, "Authorization": f"Bearer {TOKEN}"}
            assert client.get("/api/gpu", headers=headers).status_code == status


def test_an_app_that_another_program_serves_to_others_asks_for_a_token(tmp_path: Path) -> None:
    """Whoever starts app.py by uvicorn goes past Streamlit's address, and not past the door."""
    found = subprocess.run(["hostname", "-I"], capture_output=True, text=True, check=False)
    addresses = [word for word in found.stdout.split() if "." in word]
    if not addresses:
        pytest.skip("This machine has no address besides its own")
    server = Server(tmp_path / "data")
    server.program = ("uvicorn", "app:app", "--host", "0.0.0.0", "--port", str(server.port))
    with server:
        answer = httpx.get(f"http://{addresses[0]}:{server.port}/", headers={"Host": "localhost"})
        assert "SIGNALBOX_TOKEN" in refused(answer, 403)
