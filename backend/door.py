"""The door: who may come in, asked of every request and WebSocket before anybody answers it.

A server that starts programs must not be reachable from a web page that the reader happens to have
open. Such a page can make the browser send requests to 127.0.0.1, and by DNS rebinding even under a
name of its own; it cannot choose the headers `Host`, `Origin` and `Sec-Fetch-Site` (Fetch Standard,
"forbidden request-header"), nor a JSON content type without asking first (CORS preflight).
"""

import asyncio
import hashlib
import hmac
import ipaddress
import json
import logging
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from http import HTTPStatus
from pathlib import Path
from typing import Final
from urllib.parse import urlsplit

from starlette.datastructures import Headers, MutableHeaders
from starlette.requests import ClientDisconnect, Request
from starlette.responses import HTMLResponse, JSONResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

logger = logging.getLogger(__name__)

MAX_BODY_BYTES: Final = 2**20
"""Of a request to the API; a job's description has no use for more."""

API: Final = ("/api/", "/ws/")
OPEN: Final = frozenset({"/health", "/_stcore/health"})
"""Answered without a token: they say that the server lives, and nothing else."""

SIGN_IN: Final = "/sign-in"
COOKIE: Final = "signalbox"
COOKIE_SECONDS: Final = 30 * 86_400

_HOST: Final = re.compile(
    r"(\[[0-9A-Fa-f:.]{2,45}\]|[A-Za-z0-9][A-Za-z0-9._-]{0,252})(?::([0-9]{1,5}))?"
)
_NO_NAMES: Final = {"", "0.0.0.0", "::"}  # noqa: S104 (addresses to listen on, not to be called by)
_WITH_BODY: Final = frozenset({"POST", "PUT", "PATCH", "DELETE"})
_ADDED: Final = {
    "x-content-type-options": "nosniff",
    "x-frame-options": "SAMEORIGIN",  # a click on a hidden button of ours could start a program
    "referrer-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
}


@dataclass(frozen=True)
class Refusal:
    """Why somebody stays outside."""

    status: int
    sentence: str
    headers: Mapping[str, str] = field(default_factory=dict)


class Door:
    """ASGI middleware around the whole app: pages, API and WebSockets alike."""

    def __init__(
        self,
        app: ASGIApp,
        *,
        token: str | None = None,
        hosts: Iterable[str] = (),
        origins: Iterable[str] = (),
    ) -> None:
        """Guard `app`.

        Args:
            token: what `Authorization: Bearer` must hold; None: nobody is asked.
            hosts: names that the server may be called by besides local ones; `*.example.org` for
                all below it, `*` for any.
            origins: what browsers see as the server's address besides its Host, behind a proxy
                that changes that: `https://example.org:8443`.
        """
        self._app = app
        self._token = token
        self._hosts = {host.strip().lower().rstrip(".") for host in hosts} - _NO_NAMES
        self._origins = frozenset(origin.strip().lower().rstrip("/") for origin in origins)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] not in ("http", "websocket"):
            await self._app(scope, receive, send)
            return

        async def guarded(message: Message) -> None:
            if message["type"] in ("http.response.start", "websocket.http.response.start"):
                headers = MutableHeaders(scope=message)
                for name, value in _ADDED.items():
                    headers.setdefault(name, value)
            await send(message)

        headers = Headers(scope=scope)
        refusal = self._refusal(scope, headers)
        if refusal is None and scope["path"] == SIGN_IN and scope["type"] == "http" and self._token:
            await (await self._sign_in(Request(scope, receive)))(scope, receive, guarded)
            return
        if refusal is None and not self._knows_token(scope, headers):
            if _shows_pages(scope, headers):
                await _sign_in_page()(scope, receive, guarded)
                return
            sentence = (
                "That is not the token of this server; send it as Authorization: Bearer."
                if "authorization" in headers
                else "This server asks for its token: send it as Authorization: Bearer."
            )
            refusal = Refusal(401, sentence, {"www-authenticate": "Bearer"})
        if refusal is None:
            await self._app(scope, receive, guarded)
            return
        logger.info("Refused %r: %s", scope["path"], refusal.sentence)
        await _refuse(refusal, scope, receive, guarded)

    def _refusal(self, scope: Scope, headers: Headers) -> Refusal | None:
        hosts = headers.getlist("host")
        host = hosts[0] if len(hosts) == 1 else ""
        if not self._is_ours(host):
            return Refusal(
                400,
                "The name that this server was called by is none of its own; open it as 127.0.0.1 "
                "or localhost, or list the name in Streamlit's server.allowedHosts.",
            )
        if not self._token and not _is_loopback((scope.get("server") or ("", 0))[0]):
            return Refusal(
                403, "This server is open to the network, for which SIGNALBOX_TOKEN has to be set."
            )
        if any(not self._is_same_site(o, host) for o in headers.getlist("origin")):
            return Refusal(
                403,
                "The request comes from a page of another site; behind a proxy, list the address "
                "that browsers see in Streamlit's server.corsAllowedOrigins.",
            )
        if scope["type"] == "websocket":
            return None
        api = scope["path"].startswith(API)
        if api and "origin" not in headers and _is_made_by_another_site(headers):
            return Refusal(403, "The request comes from a page of another site.")
        method = scope["method"]
        if method == "POST" or (api and method in _WITH_BODY):
            return _refuse_body(method, headers, api)
        return None

    def _is_ours(self, host: str) -> bool:
        found = _HOST.fullmatch(host)
        if not found or (found[2] and int(found[2]) > 65535):
            return False
        name = found[1].strip("[]").lower().removesuffix(".")
        return _is_local(name) or any(
            pattern in ("*", name) or (pattern.startswith("*.") and name.endswith(pattern[1:]))
            for pattern in self._hosts
        )

    def _is_same_site(self, origin: str, host: str) -> bool:
        try:
            parts = urlsplit(origin.lower())
        except ValueError:
            return False
        if parts.scheme not in ("http", "https"):  # "null", of a sandboxed frame or a file
            return False
        return parts.netloc == host.lower() or origin.lower() in self._origins

    def _knows_token(self, scope: Scope, headers: Headers) -> bool:
        if not self._token or (scope["type"] == "http" and scope["path"] in OPEN):
            return True
        scheme, _, given = headers.get("authorization", "").partition(" ")
        if scheme.lower() == "bearer" and _is_same(given.strip(), self._token):
            return True
        return any(_is_same(given, self._pass()) for given in _cookies(scope, headers))

    def _pass(self) -> str:
        """What the cookie of a browser holds that knew the token: it does not tell the token."""
        assert self._token
        return hmac.digest(self._token.encode(), b"a browser of Signalbox", "sha256").hex()

    async def _sign_in(self, request: Request) -> Response:
        """Answer a browser that sends the token, as `{"token": "…"}`, with a cookie."""
        if request.method in ("GET", "HEAD"):
            return _sign_in_page(200)
        if request.method != "POST":
            sentence = f"{request.method} is not for this address."
            return JSONResponse({"detail": sentence}, 405, {"allow": "GET, POST"})
        try:
            given = str(json.loads(await read_body(request))["token"])
        except (ValueError, LookupError, TypeError, RecursionError):
            given = ""
        except (TooLargeError, ClientDisconnect):
            return JSONResponse({"detail": "The body is too large, or broken off."}, 400)
        assert self._token
        if not _is_same(given, self._token):
            return JSONResponse({"detail": "That is not the token of this server."}, 401)
        response = Response(status_code=204)
        response.set_cookie(
            _cookie_name(request.scope),
            self._pass(),
            max_age=COOKIE_SECONDS,
            httponly=True,
            samesite="lax",  # a link from elsewhere leads in; what it may do there the door decides
            secure=request.url.scheme == "https",
        )
        return response


def is_local_address(address: str | None) -> bool:
    """Whether a server that listens there is reached from its own machine alone.

    Args:
        address: as Streamlit's server.address; None listens everywhere.
    """
    return bool(address) and (str(address).startswith("unix:") or _is_local(str(address).lower()))


def _refuse_body(method: str, headers: Headers, api: bool) -> Refusal | None:
    """What is wrong with the announced body of a request that may change something."""
    length = headers.get("content-length", "")
    if length and not (length.isascii() and length.isdecimal()):
        return Refusal(400, "The content length is no number.")
    has_body = "transfer-encoding" in headers or int(length or 0) > 0
    is_json = headers.get("content-type", "").partition(";")[0].strip().lower() == (
        "application/json"
    )
    if has_body and not is_json:
        return Refusal(415, "The body must be JSON, sent with Content-Type: application/json.")
    if not has_body and not is_json and "x-requested-with" not in headers:
        return Refusal(
            415,
            f"A {method} without a body needs Content-Type: application/json or an "
            "X-Requested-With header, which a form of another site cannot send.",
        )
    if (api or has_body) and int(length or 0) > MAX_BODY_BYTES:
        return Refusal(413, str(TooLargeError()))
    return None


class TooLargeError(Exception):
    """A body is larger than is taken; the message is a sentence."""

    def __init__(self) -> None:
        super().__init__(f"The body is too large; at most {MAX_BODY_BYTES:,} bytes are taken.")


async def read_body(request: Request) -> bytes:
    """The whole body, of which nobody may send more than is taken, announced or not.

    Raises:
        TooLargeError: it is larger.
    """
    body = bytearray()
    async for chunk in request.stream():
        body += chunk
        if len(body) > MAX_BODY_BYTES:
            raise TooLargeError
    return bytes(body)


def _is_local(name: str) -> bool:
    return name == "localhost" or _is_loopback(name)


def _is_loopback(address: str) -> bool:
    """True also for what is no address: a socket of the file system, or a test's client."""
    try:
        return ipaddress.ip_address(address).is_loopback
    except ValueError:
        return "/" in address or address in ("", "localhost")


def _is_made_by_another_site(headers: Headers) -> bool:
    """An image or a script tag sends no Origin; that it leads here from elsewhere is told by
    browsers all the same. A link that the reader follows is none of that."""
    site, mode = headers.get("sec-fetch-site"), headers.get("sec-fetch-mode")
    return site in ("cross-site", "same-site") and mode != "navigate"


def _is_same(given: str, secret: str) -> bool:
    """Compare in a time that tells nothing, not even the length."""
    digests = (hashlib.sha256(text.encode("utf-8", "replace")).digest() for text in (given, secret))
    return hmac.compare_digest(*digests)


def _cookie_name(scope: Scope) -> str:
    """Browsers keep one set of cookies for all ports of a machine."""
    return f"{COOKIE}-{(scope.get('server') or ('', 0))[1]}"


def _cookies(scope: Scope, headers: Headers) -> Sequence[str]:
    """All values of our cookie, whatever others there are: their syntax is not ours to judge."""
    parts = ";".join(headers.getlist("cookie")).split(";")
    pairs = (part.strip().partition("=") for part in parts)
    return [value for name, _, value in pairs if name == _cookie_name(scope)]


def _shows_pages(scope: Scope, headers: Headers) -> bool:
    """Whether a person is there to be asked: a browser that opens an address."""
    return (
        scope["type"] == "http"
        and scope["method"] in ("GET", "HEAD")
        and "text/html" in headers.get("accept", "")
    )


def _sign_in_page(status: int = 401) -> Response:
    content = Path(__file__).with_name("sign_in.html").read_text(encoding="utf-8")
    return HTMLResponse(content, status, {"cache-control": "no-store"})


async def _refuse(refusal: Refusal, scope: Scope, receive: Receive, send: Send) -> None:
    response = JSONResponse(
        {"detail": refusal.sentence}, refusal.status, headers=dict(refusal.headers)
    )
    if scope["type"] == "http" or "websocket.http.response" in scope.get("extensions", {}):
        await response(scope, receive, send)
        # uvicorn 0.54 logs an error where the application returns before the connection is closed.
        await asyncio.sleep(0)
    else:
        reason = HTTPStatus(refusal.status).phrase
        await send({"type": "websocket.close", "code": 1008, "reason": reason})
