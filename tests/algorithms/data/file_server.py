"""A real HTTP server on this machine that misbehaves as it is told, one request after another."""

from __future__ import annotations

import hashlib
import threading
from collections import defaultdict
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Self


class FileServer(ThreadingHTTPServer):
    """Serves `content` at `/ADDRESS/NAME`, by the script of that address.

    A script is a list with a behaviour for each request; the last one stays. Behaviours: a status
    (404, 503), or `good`, `cut` (after half of what was asked for), `stall` (as well), `drop`
    (before any answer), `no_range` (always all of it), `one_byte` (of it is wrong), `short` and
    `long` (whose length is), `no_length` (told at all), `cut_no_length`, `page`
    (of a web site), `other_part`.
    """

    daemon_threads = True

    def __init__(self, content: bytes) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.content = content
        self.marks = True  # whether there are ETags
        self.scripts: dict[str, list[str | int]] = defaultdict(lambda: ["good"])
        self.asked: list[tuple[str, str | None, str | None]] = []  # address, Range, If-Range
        self.sent = 0  # bytes of bodies
        self.end_of_test = threading.Event()

    def url(self, address: str, name: str = "file") -> str:
        return f"http://127.0.0.1:{self.server_port}/{address}/{name}"

    def handle_error(self, request: object, client_address: object) -> None:
        """Whoever asks may go away before the end."""

    def __enter__(self) -> Self:
        threading.Thread(target=self.serve_forever, args=(0.01,), daemon=True).start()
        return self

    def __exit__(self, *error: object) -> None:
        self.end_of_test.set()
        self.shutdown()
        self.server_close()


class Handler(BaseHTTPRequestHandler):
    server: FileServer

    def log_message(self, *words: object) -> None:
        pass

    def do_GET(self) -> None:
        server = self.server
        address = self.path.split("/")[1]
        script = server.scripts[address]
        behaviour = script.pop(0) if len(script) > 1 else script[0]
        server.asked.append((address, self.headers["Range"], self.headers["If-Range"]))
        self.close_connection = True
        if isinstance(behaviour, int):
            self.send_error(behaviour)
        elif behaviour != "drop":
            self.serve(behaviour)

    def serve(self, behaviour: str) -> None:
        content = b"<html>Please log in</html>" if behaviour == "page" else self.server.content
        etag = f'"{hashlib.sha256(content).hexdigest()[:8]}"'
        length = len(content) + {"short": -1, "long": 1}.get(behaviour, 0)
        start = 0
        if behaviour != "no_range" and self.headers["If-Range"] in (None, etag):
            start = int((self.headers["Range"] or "bytes=0-").removeprefix("bytes=")[:-1])
        if start >= len(content):
            self.send_error(416)
            return
        self.send_response(206 if start else 200)
        if start:
            first = start + (behaviour == "other_part")
            self.send_header("Content-Range", f"bytes {first}-{length - 1}/{length}")
        if self.server.marks:
            self.send_header("ETag", etag)
        if "no_length" not in behaviour:
            self.send_header("Content-Length", str(length - start))
        self.end_headers()
        if behaviour == "one_byte":
            content = content[:-10] + bytes([content[-10] ^ 1]) + content[-9:]
        body = content[start:]
        if behaviour in ("cut", "cut_no_length", "stall"):
            body = body[: len(body) // 2]
        self.wfile.write(body)
        self.server.sent += len(body)
        if behaviour == "stall":
            self.server.end_of_test.wait(5)
