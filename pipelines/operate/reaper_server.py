"""What the reaper shows of itself: /metrics for Prometheus and /healthz for the kubelet."""

import contextlib
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any
from wsgiref.simple_server import WSGIRequestHandler, make_server

from trainer.errors import InputError

Object = Mapping[str, Any]


class Metrics:
    """Counters of one reaper, in a registry of their own.

    Attributes:
        count: the same figures for this process: releases, deletions, errors.
    """

    def __init__(self, look: Callable[[], tuple[Sequence[Object], Sequence[Object]]] = lambda: ((), ())) -> None:
        """`look` gives the jobs and Workflows that the reaper knows at that moment."""
        from prometheus_client import CollectorRegistry, Counter, Gauge

        from pipelines.operate.observed import Observed

        self.registry = CollectorRegistry()
        self.count = {"released": 0, "deleted": 0, "errors": 0}
        self._released = Counter(
            "firstsight_reaper_released", "Holds removed from jobs because their runs had ended.", registry=self.registry
        )
        self._deleted = Counter("firstsight_reaper_deleted_jobs", "Jobs deleted with their last hold.", registry=self.registry)
        self._errors = Counter("firstsight_reaper_errors", "Reads and actions that failed.", registry=self.registry)
        self._jobs = Gauge("firstsight_reaper_jobs", "Labelled jobs that are watched.", registry=self.registry)
        self.registry.register(Observed(look))

    def jobs(self, number: int) -> None:
        """So many jobs are known."""
        self._jobs.set(number)

    def acted(self, what: str, ended_holds: int) -> None:
        """A job was released of some holds, or deleted with its last ones."""
        self.count["released"] += ended_holds
        self._released.inc(ended_holds)
        if what == "delete":
            self.count["deleted"] += 1
            self._deleted.inc()

    def failed(self) -> None:
        """Something could not be read or done."""
        self.count["errors"] += 1
        self._errors.inc()


class _Quiet(WSGIRequestHandler):
    def log_message(self, format: str, *args: Any) -> None:
        """A probe every few seconds is no news."""


@contextlib.contextmanager
def serve(port: int, metrics: Metrics, healthy: Callable[[], bool]) -> Iterator[int]:
    """Serve while the context lasts; yields the port.

    Args:
        port: to listen on; 0: any.
        metrics: shown at /metrics.
        healthy: /healthz answers 200 while it says so, else 503.

    Raises:
        InputError: the port is taken.
    """
    from prometheus_client import make_wsgi_app
    from prometheus_client.exposition import ThreadingWSGIServer

    show_metrics: Callable[[Any, Any], Iterable[bytes]] = make_wsgi_app(metrics.registry)

    def answer(environment: Any, start: Any) -> Iterable[bytes]:
        if environment["PATH_INFO"] == "/metrics":
            return show_metrics(environment, start)
        known = environment["PATH_INFO"] == "/healthz"
        status = "404 Not Found" if not known else "200 OK" if healthy() else "503 Service Unavailable"
        start(status, [("Content-Type", "text/plain")])
        return [f"{status}\n".encode()]

    try:
        server = make_server("", port, answer, ThreadingWSGIServer, _Quiet)
    except (OSError, OverflowError) as error:
        raise InputError(f"--port must be a free port, got {port}: {error}") from error
    thread = threading.Thread(target=server.serve_forever, name="metrics", daemon=True)
    thread.start()
    try:
        yield server.server_port
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
