"""A proxy in front of an S3 server that misbehaves on request, to test a client's retries.

    with fault_proxy(server.endpoint) as proxy:
        proxy.faults += [Status(503), ResetAfter(1000)]   # the next two requests; then all is well again

Requests are forwarded byte for byte with their Host header, so signatures made for the proxy's address hold.
"""

import contextlib
import http.client
import socket
import struct
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from urllib.parse import urlsplit

from tests.loopback import Handler, serving


@dataclass(frozen=True)
class Status:
    """Answer with this status and an S3 error, without asking the server."""

    status: int
    code: str = "SlowDown"
    headers: tuple[tuple[str, str], ...] = ()
    body: bytes = b""


@dataclass(frozen=True)
class ResetAfter:
    """Send so many bytes of the true answer's body, then reset the connection (0: right after the headers)."""

    body_bytes: int


@dataclass(frozen=True)
class CutAfter:
    """Send so many bytes of the true answer's body, then close the connection as if that were all."""

    body_bytes: int


@dataclass(frozen=True)
class LoseAnswer:
    """Let the server do it, then reset the connection without a word."""


@dataclass(frozen=True)
class Refuse:
    """Reset the connection without asking the server."""


@dataclass(frozen=True)
class Stall:
    """Say nothing for so long, then reset the connection."""

    seconds: float


@dataclass(frozen=True)
class Slow:
    """Send the true answer with a pause after each piece."""

    piece_bytes: int
    pause_seconds: float


@dataclass(frozen=True)
class Break:
    """Break the true answer at one byte of one of its regions.

    Attributes:
        how: "cut" (close), "reset", "flip" (one bit), "delay" (go on after a pause), "hole" (never go on).
        region: "status" (its line), "headers", or "body"; an answer without a body is broken in its headers.
        at: where in the region, from 0 to 1.
        bit: which bit to flip, 0 to 7.
        status: answer with this status and an S3 error in place of the true answer.
        code: of that error.
    """

    how: str
    region: str
    at: float
    bit: int = 0
    status: int = 0
    code: str = "SlowDown"

    def find(self, regions: dict[str, bytes]) -> int:
        """Index of the byte in the whole answer."""
        region = self.region if regions[self.region] else "headers"
        begin = {"status": 0, "headers": len(regions["status"]), "body": len(regions["status"]) + len(regions["headers"])}[region]
        return begin + min(int(self.at * len(regions[region])), len(regions[region]) - 1)


@dataclass(frozen=True)
class FlipSent:
    """Flip one bit of what the client sends, if it sends a body."""

    at: float
    bit: int = 0


DELAY_SECONDS = 0.3

Fault = Break | FlipSent | Status | ResetAfter | CutAfter | LoseAnswer | Refuse | Stall | Slow


@dataclass
class FaultProxy:
    """A running proxy.

    Attributes:
        endpoint: to give to the client.
        faults: taken from the front, one a request that `applies`.
        always: for every request that `applies` once `faults` is empty.
        applies: which requests the faults are for, by method and path with query.
        log: (method, path with query) of every request that came.
        rewrite: changes headers and body of the true answer to a request, by method and path.
    """

    endpoint: str
    faults: list[Fault] = field(default_factory=list)
    always: Fault | None = None
    applies: Callable[[str, str], bool] = lambda method, path: True
    log: list[tuple[str, str]] = field(default_factory=list)
    rewrite: Callable[[str, str, dict[str, str], bytes], tuple[dict[str, str], bytes]] | None = None
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def next_fault(self, method: str, path: str) -> Fault | None:
        """The fault for the request that has come, if any."""
        with self._lock:
            self.log.append((method, path))
            if not self.applies(method, path):
                return None
            return self.faults.pop(0) if self.faults else self.always


@contextlib.contextmanager
def fault_proxy(upstream: str) -> Iterator[FaultProxy]:
    """A proxy before the server at `upstream` (http://host:port), on a free loopback port."""
    handler = type("Before", (_Handler,), {"upstream": urlsplit(upstream).netloc})
    with serving(handler) as server:
        handler.proxy = FaultProxy(f"http://127.0.0.1:{server.server_port}")
        yield handler.proxy


class _Handler(Handler):
    proxy: FaultProxy
    upstream = ""

    def _serve(self) -> None:
        body = self.rfile.read(int(self.headers.get("content-length", "0")))
        fault = self.proxy.next_fault(self.command, self.path)
        if isinstance(fault, Refuse | Stall):
            time.sleep(fault.seconds if isinstance(fault, Stall) else 0)
            return self._reset()
        if isinstance(fault, Status):
            return self._answer_status(fault)
        if isinstance(fault, Break) and fault.status:
            text = f"<?xml version='1.0'?><Error><Code>{fault.code}</Code><Message>injected</Message></Error>".encode()
            text = b"" if self.command == "HEAD" else text
            return self._break(fault, fault.status, "Injected", [("content-type", "application/xml")], text)
        if isinstance(fault, FlipSent) and body:
            body = _flipped(body, min(int(fault.at * len(body)), len(body) - 1), fault.bit)
        connection = http.client.HTTPConnection(self.upstream, timeout=60)
        try:
            connection.putrequest(self.command, self.path, skip_host=True, skip_accept_encoding=True)
            for name, value in self.headers.items():
                if name.lower() not in ("connection", "expect"):
                    connection.putheader(name, value)
            connection.endheaders(body or None)
            with connection.getresponse() as response:
                self._relay(response, fault)
        finally:
            connection.close()

    do_GET = do_PUT = do_POST = do_DELETE = do_HEAD = _serve

    def _relay(self, response: http.client.HTTPResponse, fault: Fault | None) -> None:
        if isinstance(fault, LoseAnswer):
            response.read()
            return self._reset()
        data = b"" if self.command == "HEAD" else response.read()
        headers = response.getheaders()
        if self.proxy.rewrite:
            changed, data = self.proxy.rewrite(self.command, self.path, {name.lower(): value for name, value in headers}, data)
            headers = list(changed.items())
        if isinstance(fault, Break):
            return self._break(fault, response.status, response.reason, headers, data)
        self.send_response(response.status)
        for name, value in headers:
            if name.lower() not in ("connection", "transfer-encoding", "content-length", "date", "server"):
                self.send_header(name, value)
        self.send_header("content-length", response.headers.get("content-length", "0") if self.command == "HEAD" else str(len(data)))
        self.end_headers()
        if isinstance(fault, ResetAfter | CutAfter):
            self.wfile.write(data[: fault.body_bytes])
            self.wfile.flush()
            if isinstance(fault, ResetAfter):
                return self._reset()
            self.close_connection = True
        elif isinstance(fault, Slow):
            for start in range(0, len(data), fault.piece_bytes):
                self.wfile.write(data[start : start + fault.piece_bytes])
                time.sleep(fault.pause_seconds)
        else:
            self.wfile.write(data)

    def _break(self, fault: Break, status: int, reason: str, headers: list[tuple[str, str]], body: bytes) -> None:
        """Send an answer that is broken at one byte."""
        sent = [(name, value) for name, value in headers if name.lower() not in ("connection", "transfer-encoding")]
        if status not in (204, 304) and not any(name.lower() == "content-length" for name, _ in sent):
            sent.append(("content-length", str(len(body))))
        lines = "".join(f"{name}: {value}\r\n" for name, value in sent)
        regions = {
            "status": f"HTTP/1.1 {status} {reason}\r\n".encode(),
            "headers": f"{lines}\r\n".encode("latin-1"),
            "body": body,
        }
        raw, place = b"".join(regions.values()), fault.find(regions)
        if fault.how == "flip":
            self.wfile.write(_flipped(raw, place, fault.bit))
            self.close_connection = True  # what the client takes for the end of it may not be the end
            return
        self.wfile.write(raw[:place])
        self.wfile.flush()
        if fault.how == "reset":
            return self._reset()
        if fault.how == "hole":
            self.connection.settimeout(120)
            while self.connection.recv(1 << 16):  # until the client gives up
                pass
        if fault.how == "delay":
            time.sleep(DELAY_SECONDS)
            self.wfile.write(raw[place:])
        self.close_connection = fault.how != "delay"

    def _answer_status(self, fault: Status) -> None:
        body = fault.body or f"<?xml version='1.0'?><Error><Code>{fault.code}</Code><Message>injected</Message></Error>".encode()
        self.send_response(fault.status)
        for name, value in (("content-type", "application/xml"), *fault.headers):
            self.send_header(name, value)
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def _reset(self) -> None:
        with contextlib.suppress(OSError):
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))  # close sends RST
            self.connection.close()
        self.close_connection = True

    def handle(self) -> None:
        with contextlib.suppress(OSError, ValueError):  # the client went away, or was sent away
            super().handle()

    def finish(self) -> None:
        with contextlib.suppress(OSError, ValueError):
            super().finish()


def _flipped(data: bytes, place: int, bit: int) -> bytes:
    return data[:place] + bytes([data[place] ^ (1 << bit)]) + data[place + 1 :]
