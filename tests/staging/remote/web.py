"""A small web on loopback that misbehaves as told: pictures, 404s, 500s that pass, slow and truncated answers, redirects."""

import contextlib
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from tests.loopback import Handler, serving

Answer = tuple[int, dict[str, str], bytes]


@dataclass
class Web:
    """A running web server.

    Attributes:
        url: its address.
        pages: path -> bytes, or what makes an answer from the number of times the path was asked for (from 1).
        asked: how often each path was.
        sent: bytes of bodies, by path.
        agents: the user agents seen.
        headers: of the last request, by path.
        most_at_once: requests that were served at one time.
        folder: where further files are served from, or None; ranges are honoured.
        delay: seconds before each answer.
        cut: path -> bytes after which its answers end, whatever was announced.
    """

    url: str = ""
    pages: dict[str, bytes | Callable[[int], Answer]] = field(default_factory=dict)
    asked: Counter[str] = field(default_factory=Counter)
    sent: Counter[str] = field(default_factory=Counter)
    agents: set[str] = field(default_factory=set)
    headers: dict[str, dict[str, str]] = field(default_factory=dict)
    most_at_once: int = 0
    folder: Path | None = None
    delay: float = 0.0
    cut: dict[str, int] = field(default_factory=dict)
    _now: int = 0
    _lock: threading.Lock = field(default_factory=threading.Lock)

    @contextlib.contextmanager
    def serving(self, path: str, agent: str) -> Iterator[int]:
        """Count a request; gives how often its path was asked for."""
        with self._lock:
            self.asked[path] += 1
            self.agents.add(agent)
            self._now += 1
            self.most_at_once = max(self.most_at_once, self._now)
            count = self.asked[path]
        try:
            yield count
        finally:
            with self._lock:
                self._now -= 1


@contextlib.contextmanager
def web_server(host: str = "127.0.0.1") -> Iterator[Web]:
    """A Web on a free port of a loopback address."""
    web = Web()
    with serving(type("OfWeb", (_Handler,), {"web": web}), host) as server:
        web.url = f"http://{host}:{server.server_port}"
        yield web


class _Handler(Handler):
    web: Web

    def do_GET(self) -> None:
        self.web.headers[self.path] = {name.lower(): value for name, value in self.headers.items()}
        with self.web.serving(self.path, self.headers.get("user-agent", "")) as count:
            time.sleep(self.web.delay)
            status, headers, body = self._find(count)
            self.send_response(status)
            for name, value in {"content-length": str(len(body)), **headers}.items():
                self.send_header(name, value)
            self.end_headers()
            cut = self.web.cut.get(self.path)
            if cut is not None and cut < len(body):
                body, self.close_connection = body[:cut], True
            self.web.sent[self.path] += len(body)
            self.wfile.write(body)

    def _find(self, count: int) -> Answer:
        page = self.web.pages.get(self.path)
        if callable(page):
            return page(count)
        if page is None and self.web.folder is not None:
            file = self.web.folder / self.path.lstrip("/")
            page = file.read_bytes() if file.is_file() else None
        if page is None:
            return 404, {"content-type": "text/html"}, b"<html>no such page</html>"
        wanted = self.headers.get("range", "")
        if wanted:
            start, _, last = wanted.removeprefix("bytes=").partition("-")
            part = page[int(start) : int(last) + 1 if last else None]
            if not part:
                return 416, {"content-range": f"bytes */{len(page)}"}, b""
            return 206, {"content-range": f"bytes {start}-{int(start) + len(part) - 1}/{len(page)}", "etag": '"v1"'}, part
        return 200, {"etag": '"v1"'}, page

    def handle(self) -> None:
        with contextlib.suppress(OSError, ValueError):  # the client went away
            super().handle()
