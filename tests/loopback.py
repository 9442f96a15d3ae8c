"""HTTP servers in a thread of the test's own process."""

import contextlib
import ssl
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


class Handler(BaseHTTPRequestHandler):
    """Silent, and without the 40 ms that Nagle's algorithm holds a body back until the client has acknowledged the headers."""

    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True

    def log_message(self, format: str, *arguments: object) -> None:
        """Nothing: tests look at what the server was asked."""


class Listener(ThreadingHTTPServer):
    """On a free port, unless one is given; clients may go away in the middle of a response."""

    daemon_threads = True

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A closed connection is not an error."""
        if not isinstance(sys.exception(), OSError):
            super().handle_error(request, client_address)

    def start(self) -> None:
        """Serve in a thread; `shutdown` ends it within the interval."""
        threading.Thread(target=self.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()


@contextlib.contextmanager
def serving(handler: type[BaseHTTPRequestHandler], host: str = "127.0.0.1", tls: ssl.SSLContext | None = None) -> Iterator[Listener]:
    """A server on a free port, while the context lasts."""
    with Listener((host, 0), handler) as listener:
        if tls:
            listener.socket = tls.wrap_socket(listener.socket, server_side=True)
        listener.start()
        try:
            yield listener
        finally:
            listener.shutdown()
