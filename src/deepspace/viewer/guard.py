"""Who may ask: one browser on this machine that holds the token."""

from __future__ import annotations

import json
import secrets
from http.cookies import CookieError, SimpleCookie
from urllib.parse import parse_qs

from starlette.datastructures import MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

# browsers share cookies between ports, so each viewer has its own name
COOKIE = "deepspace-view-{port}"
HEADER = "x-deepspace-token"
MOST_BODY = 1 << 20
MOST_URL = 4096
METHODS = {"GET", "HEAD", "POST"}
SAFE_SITES = {"", "same-origin", "none"}
HEADERS = {
    "content-security-policy": (
        "default-src 'self'; img-src 'self' data: blob:; object-src 'none'; base-uri 'none'; "
        "frame-ancestors 'none'; form-action 'none'"
    ),
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "cross-origin-resource-policy": "same-origin",
    "cross-origin-opener-policy": "same-origin",
    "x-frame-options": "DENY",
}


class Guard:
    """Let through what the user's own page asks, and nothing else.

    Parameters
    ----------
    app : ASGI application
        What is guarded.
    token : str
        Secret of this run.
    hosts : set of str
        Values of the Host header that are answered: another one is a name that somebody has
        pointed to this machine (DNS rebinding).
    """

    def __init__(self, app: ASGIApp, token: str, hosts: set[str]) -> None:
        self.app = app
        self._token = token
        self._hosts = hosts
        self._cookie = COOKIE.format(port=min(hosts).rpartition(":")[2])

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer, or refuse with a status and a word."""
        if scope["type"] == "lifespan":
            await self.app(scope, receive, send)
            return
        if scope["type"] != "http":  # no websockets are spoken here
            await send({"type": "websocket.close", "code": 1008})
            return
        headers = {k.decode("latin-1"): v.decode("latin-1") for k, v in scope["headers"]}
        refusal = self._refusal(scope, headers)
        if refusal is not None:
            await _answer(send, *refusal)
            return
        if self._comes_with_token(scope):
            await _welcome(send, f"{self._cookie}={self._token}")
            return
        if not self._knows_token(headers):
            await _answer(send, 401, "open the address that deepspace printed")
            return
        limited = _Limited(receive)
        await self.app(scope, limited, _hardened(send))

    def _refusal(self, scope: Scope, headers: dict[str, str]) -> tuple[int, str] | None:
        found = (check(scope, headers) for check in (_method, _size, self._host, self._site))
        return next((refusal for refusal in found if refusal is not None), None)

    def _host(self, scope: Scope, headers: dict[str, str]) -> tuple[int, str] | None:
        del scope
        if headers.get("host", "") not in self._hosts:
            return 403, "this host is not served"
        return None

    def _site(self, scope: Scope, headers: dict[str, str]) -> tuple[int, str] | None:
        origin, site = headers.get("origin"), headers.get("sec-fetch-site", "")
        foreign = origin is not None and origin not in {f"http://{host}" for host in self._hosts}
        # a link may be followed to the page itself, which shows nothing without the cookie
        opened = scope["path"] == "/" and headers.get("sec-fetch-mode") == "navigate"
        if foreign or (site not in SAFE_SITES and not opened):
            return 403, "other sites may not ask"
        return None

    def _comes_with_token(self, scope: Scope) -> bool:
        if scope["path"] != "/" or scope["method"] != "GET":
            return False
        query = parse_qs(scope.get("query_string", b"").decode("latin-1"))
        return any(self._same(given) for given in query.get("token", []))

    def _knows_token(self, headers: dict[str, str]) -> bool:
        if self._same(headers.get(HEADER, "")):
            return True
        try:
            cookies = SimpleCookie(headers.get("cookie", ""))
        except CookieError:
            return False
        return self._cookie in cookies and self._same(cookies[self._cookie].value)

    def _same(self, given: str) -> bool:
        return secrets.compare_digest(given.encode(), self._token.encode())


def _method(scope: Scope, headers: dict[str, str]) -> tuple[int, str] | None:
    del headers
    if scope["method"] not in METHODS:
        return 405, "only GET, HEAD and POST are answered"
    return None


def _size(scope: Scope, headers: dict[str, str]) -> tuple[int, str] | None:
    if len(scope.get("raw_path") or b"") + len(scope.get("query_string", b"")) > MOST_URL:
        return 414, "the address is too long"
    length = headers.get("content-length", "0")
    if not length.isdecimal() or len(length) > len(str(MOST_BODY)) or int(length) > MOST_BODY:
        return 413, "the request is too large"
    return None


class TooLargeError(Exception):
    """A body that is longer than it may be."""


class _Limited:
    """What a client sends, up to `MOST_BODY` bytes, whatever length it has announced."""

    def __init__(self, receive: Receive) -> None:
        self._receive = receive
        self._seen = 0

    async def __call__(self) -> Message:
        message = await self._receive()
        self._seen += len(message.get("body", b""))
        if self._seen > MOST_BODY:
            raise TooLargeError
        return message


def _hardened(send: Send) -> Send:
    async def with_headers(message: Message) -> None:
        if message["type"] == "http.response.start":
            headers = MutableHeaders(scope=message)
            for name, value in HEADERS.items():
                headers[name] = value
            headers.setdefault("cache-control", "private, no-store")
        await send(message)

    return with_headers


async def _answer(send: Send, status: int, why: str) -> None:
    body = json.dumps({"error": why}).encode()
    start: Message = {
        "type": "http.response.start",
        "status": status,
        "headers": [(b"content-type", b"application/json")],
    }
    hardened = _hardened(send)
    await hardened(start)
    await hardened({"type": "http.response.body", "body": body})


async def _welcome(send: Send, pair: str) -> None:
    """Put the token into a cookie and take it out of the address."""
    cookie = f"{pair}; HttpOnly; SameSite=Strict; Path=/"
    hardened = _hardened(send)
    await hardened(
        {
            "type": "http.response.start",
            "status": 303,
            "headers": [(b"location", b"/"), (b"set-cookie", cookie.encode())],
        }
    )
    await hardened({"type": "http.response.body", "body": b""})
