"""Records of a run by its id: its stored request, its failed cells, and its started steps.

runs/<run id>.json names the request, so that a task that cannot take another task's output finds it. Its format 1, written by older
versions, has neither format_version nor checksum. The records below runs/<run id>/ belong to one run only: a new run of the same
request tries every cell again.
"""

import contextlib
import threading
import time
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass

from trainer.errors import Corrupt, InputError, RunError
from trainer.storage import join, layout, open_store
from trainer.storage.documents import read_document, write_document

FORMAT_VERSION = 2
CELL_VERSION, STEP_VERSION = 1, 1
LIFE_SECONDS = 60.0
"""Seconds between two heartbeats of a lane's step."""
DEAD_SECONDS = 600.0
"""Seconds without a heartbeat after which the lane is considered dead; it is long, since a queue of pods can delay steps."""


def sweep_leftovers(root: str, experiment_uri: str) -> None:
    """Remove what killed writers left beside the objects of an experiment, and beside the records that experiments share."""
    with contextlib.suppress(InputError, RunError):  # whoever may not list or remove them runs all the same
        for folder in (experiment_uri, join(root, "runs"), join(root, "datasets", "fingerprints")):
            open_store(folder).sweep(folder)


@dataclass(frozen=True, kw_only=True)
class CellFailure:
    """How a cell failed in a run.

    Attributes:
        cell: its name.
        stage: that failed: perceptual, contrastive, posthoc or evaluate.
        exit_code: 1 failed during the run, 2 wrong input.
        line: why, in one line.
    """

    cell: str
    stage: str
    exit_code: int
    line: str


@dataclass(frozen=True)
class Run:
    """Records through which the steps of one run communicate.

    Attributes:
        root: store URI.
        id: of the run.
    """

    root: str
    id: str

    def begin(self, lane: str, step: str) -> bool:
        """Record that a step of a lane starts. Returns whether this is its first start in the run, rather than one after a Retry."""
        uri = layout.run_start(self.root, self.id, lane, step)
        first = open_store(uri).head(uri) is None
        write_document(uri, {"format_version": STEP_VERSION, "time": time.time()})
        return first

    def fail(self, failure: CellFailure) -> None:
        """Record that a cell failed."""
        write_document(layout.run_failure(self.root, self.id, failure.cell), {"format_version": CELL_VERSION, **asdict(failure)})

    def forget(self, cells: Iterable[str]) -> None:
        """Remove the failure records of these cells, so that they are tried again."""
        for uri in self._recorded(cells).values():
            open_store(uri).delete(uri)

    def failed(self, cells: Iterable[str]) -> dict[str, CellFailure]:
        """The cells that failed in this run, by name. A damaged record counts as absent, so the cell is tried again."""
        found = ((cell, _failure(uri, cell)) for cell, uri in self._recorded(cells).items())
        return {cell: failure for cell, failure in found if failure is not None}

    def _recorded(self, cells: Iterable[str]) -> dict[str, str]:
        """The cells that have a failure record, with its URI, listed in one request, since most have none."""
        uris = {cell: layout.run_failure(self.root, self.id, cell) for cell in cells}
        folder = layout.run_failure(self.root, self.id, "").rpartition("/")[0]
        there = {info.uri for info in open_store(folder).list(folder)}
        return {cell: uri for cell, uri in uris.items() if uri in there}

    @contextlib.contextmanager
    def alive(self, lane: str) -> Iterator[None]:
        """Send heartbeats of a lane's step from a thread, for lanes that wait for it."""
        stop = threading.Event()
        thread = threading.Thread(target=self._give_signs, args=(lane, stop), name=f"life of {lane}", daemon=True)
        thread.start()
        try:
            yield
        finally:
            stop.set()

    def _give_signs(self, lane: str, stop: threading.Event) -> None:
        while True:
            with contextlib.suppress(InputError, RunError, OSError):  # the next heartbeat will do
                uri = layout.run_life(self.root, self.id, lane)
                write_document(uri, {"format_version": STEP_VERSION, "time": time.time()})
            if stop.wait(LIFE_SECONDS):
                return


def _failure(uri: str, cell: str) -> CellFailure | None:
    try:
        value = read_document(uri, "a record of a failed cell", CELL_VERSION)
    except Corrupt:
        return None
    if value is None:
        return None
    texts = {name: str(value.get(name, "")) for name in ("stage", "line")}
    return CellFailure(cell=cell, exit_code=2 if value.get("exit_code") == InputError.exit_code else 1, **texts)


class Watch:
    """Whether the steps of a lane are alive, as seen by another lane: from changes to its heartbeat, not from other machines' clocks."""

    def __init__(self, run: Run, lane: str) -> None:
        self._uri = layout.run_life(run.root, run.id, lane)
        self._stamp, self._seen = "", time.monotonic()

    def is_dead(self) -> bool:
        """Whether there has been no heartbeat for DEAD_SECONDS."""
        info = open_store(self._uri).head(self._uri)
        stamp = f"{info.stamp} {info.modified}" if info is not None else ""
        if stamp != self._stamp:
            self._stamp, self._seen = stamp, time.monotonic()
        return time.monotonic() - self._seen > DEAD_SECONDS


def write_run(root: str, run: str, request: str) -> None:
    """Record the URI of the request that the run stored."""
    write_document(layout.kubeflow_run(root, run), {"format_version": FORMAT_VERSION, "request": request})


def read_run(root: str, run: str) -> str | None:
    """The URI of the request that the run stored; None if it stored none.

    Raises:
        InputError: a newer firstsight wrote the record.
        Corrupt: it is not a record of a run, or names no stored request below `root`.
    """
    uri = layout.kubeflow_run(root, run)
    value = read_document(uri, "a run's record", FORMAT_VERSION, checked_from=2, bare=True)
    if value is None:
        return None
    if value["format_version"] == 1 and value.keys() != {"format_version", "request"}:
        raise Corrupt(f"{uri}: not a firstsight run record: no format_version")
    request = value.get("request")
    if not isinstance(request, str) or not request.startswith(f"{root.rstrip('/')}/experiments/"):
        raise Corrupt(f"{uri}: names no stored request: start the run again; its first step writes the record")
    return request
