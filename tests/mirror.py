"""A web server on the loopback that serves files well, haltingly, or not at all."""

from __future__ import annotations

import threading
import time
from collections import defaultdict
from collections.abc import Callable, Mapping
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

Reply = Callable[["Request"], None]


class Request(BaseHTTPRequestHandler):
    """One request; a reply sends what it likes through it."""

    protocol_version = "HTTP/1.1"
    timeout = 5

    def do_GET(self) -> None:
        mirror: Mirror = self.server.mirror  # type: ignore[attr-defined]
        with mirror.lock:
            mirror.asked[self.path].append(dict(self.headers))
            mirror.times.append(time.monotonic())
            mirror.at_once += 1
            mirror.most_at_once = max(mirror.most_at_once, mirror.at_once)
            replies = mirror.replies.get(self.path) or [status(404)]
            reply = replies.pop(0) if len(replies) > 1 else replies[0]
        try:
            reply(self)
        except OSError:
            self.close_connection = True  # the other side has hung up
        finally:
            with mirror.lock:
                mirror.at_once -= 1

    def head(self, code: int, headers: Mapping[str, str | int] | None = None) -> None:
        self.send_response(code)
        for name, value in (headers or {}).items():
            self.send_header(name, str(value))
        self.end_headers()

    def log_message(self, *_: object) -> None:
        pass


class Mirror:
    """`replies` has what each path answers, one by one and the last one for ever; all others are not found."""

    def __init__(self) -> None:
        self.replies: dict[str, list[Reply]] = {}
        self.asked: dict[str, list[dict[str, str]]] = defaultdict(list)
        self.times: list[float] = []
        self.at_once = self.most_at_once = 0
        self.lock = threading.Lock()
        self.http = ThreadingHTTPServer(("127.0.0.1", 0), Request)
        self.http.daemon_threads = True
        self.http.handle_error = lambda *_: None  # type: ignore[method-assign]  # the other side has hung up
        self.http.mirror = self  # type: ignore[attr-defined]
        self.host = f"127.0.0.1:{self.http.server_port}"
        self.url = f"http://{self.host}"
        threading.Thread(target=self.http.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()

    def serve(self, path: str, *replies: Reply) -> str:
        """Answer a path so; its address."""
        self.replies[path] = list(replies)
        return self.url + path

    def close(self) -> None:
        self.http.shutdown()
        self.http.server_close()


def whole(body: bytes, kind: str = "image/jpeg", pause: float = 0.0) -> Reply:
    """The whole file, as a good server sends it."""

    def reply(request: Request) -> None:
        time.sleep(pause)
        request.head(200, {"Content-Type": kind, "Content-Length": len(body)})
        request.wfile.write(body)

    return reply


def status(code: int, body: bytes = b"", **headers: str | int) -> Reply:
    """A status, and headers whose names have _ for -."""
    named = {name.replace("_", "-"): value for name, value in headers.items()}

    def reply(request: Request) -> None:
        request.head(code, {"Content-Length": len(body)} | named)
        request.wfile.write(body)

    return reply


def cut(body: bytes, sent: int) -> Reply:
    """The connection ends before the file does."""

    def reply(request: Request) -> None:
        request.head(200, {"Content-Length": len(body)})
        request.wfile.write(body[:sent])
        request.close_connection = True

    return reply


def silent(seconds: float) -> Reply:
    """Nothing, for some time."""

    def reply(request: Request) -> None:
        time.sleep(seconds)
        request.close_connection = True

    return reply


def drip(body: bytes, pause: float) -> Reply:
    """Byte by byte, never silent for long."""

    def reply(request: Request) -> None:
        request.head(200, {"Content-Length": len(body)})
        for byte in body:
            request.wfile.write(bytes([byte]))
            time.sleep(pause)

    return reply


def endless(request: Request) -> None:
    """No length, and no end."""
    request.head(200, {"Connection": "close"})
    while True:
        request.wfile.write(bytes(1 << 16))


def redirect(location: str) -> Reply:
    return status(302, Location=location)
