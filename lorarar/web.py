"""Parts that the web servers share: a guard before every request, headers, files of the pages, the socket."""

from __future__ import annotations

import socket
from collections.abc import Callable, Collection
from urllib.parse import urlsplit

from starlette.responses import JSONResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from lorarar.errors import UserError

HEADERS = {
    "Content-Security-Policy": "default-src 'none'; img-src 'self'; script-src 'self'; style-src 'self'; "
    "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Permissions-Policy": "camera=(), geolocation=(), microphone=()",
    # Addresses hold tokens.
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "X-Robots-Tag": "noindex",
}
TYPES = {".css": "text/css", ".js": "text/javascript", ".svg": "image/svg+xml"}
SAFE = {"GET", "HEAD", "OPTIONS"}


class Guard:
    """Adds the security headers to every answer, and refuses a request before its body is read.

    Parameters
    ----------
    largest
        Request -> largest body in bytes.
    hosts
        Names by which the server may be asked, without port; none allows all, for a server behind a proxy. A page of
        another site whose name was pointed here (DNS rebinding) is refused so, and so are its requests across.
    """

    def __init__(self, app: ASGIApp, largest: Callable[[Scope], int], hosts: Collection[str] = ()) -> None:
        self.app, self.largest, self.hosts = app, largest, hosts

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return await self.app(scope, receive, send)

        async def guarded(message: Message) -> None:
            if message["type"] == "http.response.start":
                given = {name for name, _ in message["headers"]}
                extra = {"Cache-Control": "no-store", **HEADERS}
                message["headers"] = [
                    *message["headers"],
                    *((k.lower().encode(), v.encode()) for k, v in extra.items() if k.lower().encode() not in given),
                ]
            await send(message)

        answer = self._refusal(scope) or self.app
        return await answer(scope, receive, guarded)

    def _refusal(self, scope: Scope) -> Response | None:
        headers = dict(scope["headers"])
        if self.hosts and (refusal := self._stranger(scope["method"], headers)):
            return refusal
        length = headers.get(b"content-length", b"0")
        if b"transfer-encoding" in headers:
            return failure(411, "A body needs its length in the header.")
        if not length.isdigit() or int(length) > (largest := self.largest(scope)):
            return failure(413, f"The body is larger than {largest} bytes.")
        return None

    def _stranger(self, method: str, headers: dict[bytes, bytes]) -> Response | None:
        """A refusal if another site's page asks, be it by a name that was pointed here or by a request across."""
        host = headers.get(b"host", b"").decode("latin-1")
        if hostname(host) not in self.hosts:
            return failure(421, f"This server has another name than {host!r}; --allow-host adds a name.")
        if method in SAFE:
            return None
        origin = headers.get(b"origin")
        if origin is not None and urlsplit(origin.decode("latin-1")).netloc != host:
            return failure(403, "A page of another site asks.")
        if headers.get(b"sec-fetch-site", b"same-origin") not in (b"same-origin", b"none"):
            return failure(403, "A page of another site asks.")
        return None


def hostname(host: str) -> str:
    """The name in a Host header, in lower case and without port; empty if it is none."""
    try:
        return urlsplit(f"//{host}").hostname or ""
    except ValueError:
        return ""


def failure(status: int, message: str) -> JSONResponse:
    """An answer whose body is one line about a mistake."""
    return JSONResponse({"error": message}, status)


def listen(host: str, port: int) -> socket.socket:
    """A listening socket; port 0 takes a free one.

    Raises
    ------
    UserError : the address cannot be used.
    """
    try:
        return socket.create_server(
            (host, port), backlog=512, family=socket.AF_INET6 if ":" in host else socket.AF_INET
        )
    except OSError as error:
        raise UserError(f"{host}:{port}: cannot listen there ({error.strerror}); give another --port") from None
