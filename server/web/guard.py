"""What every request to the dashboard must fulfil, and the headers of every answer."""

import re
import socket
from collections.abc import Collection
from ipaddress import ip_address

from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

MOST_HEADERS, MOST_BODY = 16 << 10, 4 << 10
"""Bytes of a request."""
HOST = re.compile(r"(?P<name>\[[0-9a-fA-F:.]+\]|[A-Za-z0-9._-]+)(:[0-9]{1,5})?")
METHODS = ("GET", "HEAD", "POST")

POLICY = "; ".join(
    (
        "default-src 'self'",
        "base-uri 'none'",
        "form-action 'self'",
        "frame-ancestors 'none'",
        "object-src 'none'",
        "require-trusted-types-for 'script'",
        "trusted-types 'none'",
    )
)
SAFE = {
    "content-security-policy": POLICY,
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
    "permissions-policy": "camera=(), geolocation=(), microphone=()",
    "referrer-policy": "no-referrer",
    "x-content-type-options": "nosniff",
    "x-frame-options": "DENY",
}


class Guard:
    """Lets requests through that name this server, and are small; the answer to each has the safe headers.

    A page of another site can make a browser call any address, also under a name of its own that it lets point here
    (DNS rebinding). So the name that a request gives must be an IP address, or one of `names`.
    """

    def __init__(self, app: ASGIApp, names: Collection[str] = ()) -> None:
        self._app, self._names = app, {name.lower() for name in (*names, "localhost", socket.gethostname())}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return

        async def safe(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                for name, value in SAFE.items():
                    headers[name] = value
                headers.setdefault("cache-control", "no-store")
            await send(message)

        refused = self._refused(scope)
        await (refused or self._app)(scope, receive, safe)

    def _refused(self, scope: Scope) -> JSONResponse | None:
        headers = Headers(scope=scope)
        if scope["method"] not in METHODS:
            return JSONResponse({"error": "GET and POST are accepted"}, 405, {"allow": ", ".join(METHODS)})
        if not self._known(headers.get("host", "")):
            text = "this server is not known by that name; serve --web-name NAME lets one more be accepted"
            return JSONResponse({"error": text}, 421)
        if sum(len(name) + len(value) for name, value in scope["headers"]) > MOST_HEADERS:
            return JSONResponse({"error": f"headers of {MOST_HEADERS} bytes at most are accepted"}, 431)
        length = headers.get("content-length", "0")
        if not length.isdecimal() or int(length) > MOST_BODY:
            return JSONResponse({"error": f"a body of {MOST_BODY} bytes at most is accepted"}, 413)
        return None

    def _known(self, host: str) -> bool:
        found = HOST.fullmatch(host)
        name = found["name"].lower().removesuffix(".") if found else ""
        return name in self._names or _is_ip(name.strip("[]"))


def _is_ip(text: str) -> bool:
    try:
        return bool(ip_address(text))
    except ValueError:
        return False
