"""Processes that access a store as if from separate machines: own network, same hostname, different clock and user.

    with machines.Machine(proxy.endpoint, code, root, skew=180) as machine:
        assert machine.line() == "ready"

Each runs in new network and UTS namespaces. All that leads out of them is a Unix socket: inside, 127.0.0.1 at the port of the
store's endpoint leads to the real one. Its temporary folder is its own too. Not to be used where `are_possible()` is false.
"""

import contextlib
import functools
import os
import selectors
import shutil
import socket
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from urllib.parse import urlsplit

HOSTNAME = "pod"
_INSIDE = """
import fcntl, os, socket, struct, sys, time
from tests.machines import forward, HOSTNAME
relay, port, skew, user, code, *arguments = sys.argv[1:]
socket.sethostname(HOSTNAME)
with socket.socket() as up:
    fcntl.ioctl(up, 0x8914, struct.pack("16sH14x", b"lo", 0x41))  # SIOCSIFFLAGS: up and running
listener = socket.create_server(("127.0.0.1", int(port)))
forward(listener, lambda: _unix(relay))
def _unix(path):
    out = socket.socket(socket.AF_UNIX)
    out.connect(path)
    return out
real = time.time
time.time = lambda: real() + float(skew)
from pipelines.jobs import lease, lock
with lock.exclusive(f"{arguments[0]}-{port}"):  # imports what another user may not be allowed to read
    pass
if int(user):
    os.setgid(int(user))
    os.setuid(int(user))
sys.argv = ["machine", *arguments]
exec(code)
"""


@functools.cache
def are_possible() -> bool:
    """Whether this user may make namespaces."""
    return sys.platform == "linux" and subprocess.run([*_unshare(), "true"], capture_output=True, check=False).returncode == 0


def _unshare() -> list[str]:
    return ["unshare", "--net", "--uts"] if os.getuid() == 0 else ["unshare", "--user", "--map-root-user", "--net", "--uts"]


class Machine:
    """One process, spoken to by lines.

    Args:
        endpoint: URL of the store, http://127.0.0.1:<port>.
        code: what it runs, with `lease` and `lock` imported.
        arguments: its sys.argv[1:]; the first is a URI of the store.
        skew: seconds that its clock is ahead.
        user: id that it runs as; 0: this one's.
    """

    def __init__(self, endpoint: str, code: str, *arguments: str, skew: float = 0.0, user: int = 0) -> None:
        self._folder = Path(tempfile.mkdtemp(prefix="machine-"))
        self._folder.chmod(0o777)
        relay, host = self._folder / "relay", urlsplit(endpoint)
        self._listener = socket.socket(socket.AF_UNIX)
        self._listener.bind(str(relay))
        self._listener.listen(64)
        relay.chmod(0o777)
        forward(self._listener, lambda: socket.create_connection((host.hostname or "", host.port or 0)))
        command = [*_unshare(), sys.executable, "-c", _INSIDE, str(relay), str(host.port), str(skew), str(user), code, *arguments]
        environment = {
            **os.environ,
            "AWS_ENDPOINT_URL": endpoint,
            "TMPDIR": str(self._folder),
            "PYTHONPATH": str(Path(__file__).parents[1]),
        }
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
        self.process = subprocess.Popen(command, env=environment, text=True, bufsize=1, **pipes)

    def say(self, line: str = "") -> None:
        """One line to its stdin."""
        assert self.process.stdin is not None
        self.process.stdin.write(f"{line}\n")
        self.process.stdin.flush()

    def line(self) -> str:
        """The next line of its stdout; empty if it has ended."""
        assert self.process.stdout is not None
        return self.process.stdout.readline().rstrip("\n")

    def kill(self) -> None:
        """SIGKILL, as when a node is lost, and with it its temporary folder."""
        self.process.kill()  # unshare has become Python: it does not fork
        self.process.wait()
        for folder in self._folder.glob("firstsight-*"):
            shutil.rmtree(folder)

    def __enter__(self) -> "Machine":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.kill()
        self._listener.shutdown(socket.SHUT_RDWR)
        for stream in (self.process.stdin, self.process.stdout, self._listener):
            assert stream is not None
            stream.close()
        shutil.rmtree(self._folder)


def forward(listener: socket.socket, connect: Callable[[], socket.socket]) -> None:
    """Pass on whatever comes to `listener`, to a new connection each time, until it is shut down."""

    def accept() -> None:
        with contextlib.suppress(OSError):
            while True:
                threading.Thread(target=_pass_on, args=(listener.accept()[0], connect), daemon=True).start()

    threading.Thread(target=accept, daemon=True).start()


def _pass_on(one: socket.socket, connect: Callable[[], socket.socket]) -> None:
    with one, contextlib.suppress(OSError), connect() as other, selectors.DefaultSelector() as ready:
        ready.register(one, selectors.EVENT_READ, other)
        ready.register(other, selectors.EVENT_READ, one)
        while True:
            for key, _ in ready.select():
                data = key.fileobj.recv(1 << 16)  # type: ignore[union-attr]
                if not data:
                    return
                key.data.sendall(data)
