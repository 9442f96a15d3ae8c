"""`stage fetch`: the pictures of a slice are fetched by threads, decoded and encoded by processes, and written in order.

A slice's memory is bounded by configuration: fetched responses wait for their turn within `buffer_mb`, and at most
`concurrency` more are in flight.
"""

import multiprocessing
import os
import sys
import threading
from collections import deque
from collections.abc import Generator, Sequence
from concurrent.futures import BrokenExecutor, Executor, Future, ProcessPoolExecutor, ThreadPoolExecutor
from contextlib import ExitStack, closing
from dataclasses import dataclass, field, replace
from itertools import islice
from typing import Any

from trainer import logs
from trainer.bounds import Budget
from trainer.errors import InputError, RunError
from trainer.progress import check_stop, progress
from trainer.redaction import without_signatures
from trainer.staging.images import shared_budget, use_budget
from trainer.staging.plans import Plan, rules_of, slices_to_make
from trainer.staging.remote.captions import clean_captions
from trainer.staging.remote.http import FetchError, HttpSettings, PoliteClient, base_of, is_web
from trainer.staging.remote.refetch import copies, copy_slice
from trainer.staging.remote.rows import SHOWN_SINCE, RemoteRow, read_plan, read_rows
from trainer.staging.remote.zips import Member, read_range, unpack_member
from trainer.staging.rows import Blob, PairRow, Reject, TripletRow
from trainer.staging.samples import PairMaker, Sample, TripletMaker
from trainer.staging.tokens import Tokenizer
from trainer.staging.writer import SliceWriter
from trainer.storage import MissingObject, join, open_store

INDEX_VARIABLE = "JOB_COMPLETION_INDEX"
"""The variable with a pod's completion index in an Indexed Job."""

_AHEAD = 2048  # rows started beyond the one being written, so that a slow response does not hold up the others
_MAKING = 32
_Samples = Generator[Sample | Reject, None, None]


@dataclass(frozen=True, kw_only=True)
class FetchSettings:
    """Speed, politeness and memory limits of fetching.

    Attributes:
        http: settings for HTTP servers.
        images: base URI that replaces the plan's image base (a mirror); empty: the plan's own.
        concurrency: requests at a time.
        processes: number of processes that decode and encode; 0: threads of this process.
        buffer_mb: MB of fetched data that wait for their turn.
    """

    http: HttpSettings = field(default_factory=HttpSettings)
    images: str = ""
    concurrency: int = 32
    processes: int = 0
    buffer_mb: int = 256

    def __post_init__(self) -> None:
        """Check ranges, and the base."""
        base_of("--images", self.images)
        for name, low in (("concurrency", 1), ("processes", 0), ("buffer_mb", 1)):
            if getattr(self, name) < low:
                raise InputError(f"--{name.replace('_', '-')} must be >= {low}, got {getattr(self, name)}")


def parse_part(text: str) -> tuple[int, int]:
    """Parse `i/n`; `index/n` takes i from JOB_COMPLETION_INDEX, which is set in each pod of an Indexed Job.

    Raises:
        InputError: i is not one of 0 … n-1, or the variable is not set.
    """
    part, _, parts = text.partition("/")
    given = f"--slice {text}"
    if part == "index":
        part = os.environ.get(INDEX_VARIABLE, "")
        given = f"{given} with {INDEX_VARIABLE}={part}"
        if not part:
            raise InputError(f"--slice {text} needs the variable {INDEX_VARIABLE}, which Kubernetes sets in pods of an Indexed Job")
    if not (part.isdecimal() and parts.isdecimal() and int(part) < int(parts)):
        raise InputError(f"--slice must be i/n with 0 <= i < n, such as 0/8, or index/n, got {given}")
    return int(part), int(parts)


def fetch(folder: str, part: int, parts: int, settings: FetchSettings) -> dict[str, int]:
    """Make every slice whose number is `part` modulo `parts`, except those that are done and whole.

    Args:
        folder: the folder that `stage plan` printed.
        part: number of this machine, from 0.
        parts: number of machines; it never changes a byte.
        settings: see FetchSettings.

    Returns:
        Number of slices of this part, and how many of them were made now.

    Raises:
        OutageError: the network or the server is down; the slice is not done.
    """
    plan = read_plan(folder)
    mine = range(part, len(plan.splits), parts)
    made = 0
    with ExitStack() as stack:
        client = PoliteClient(settings.http)
        stack.callback(client.close)
        tokenize = Tokenizer()
        threads = _pool(stack, ThreadPoolExecutor(settings.concurrency))
        makers = _pool(stack, _make_makers(settings.processes))
        for number in slices_to_make(folder, plan, mine):
            if copies(plan, number):
                copy_slice(folder, plan, number)
                made += 1
                continue
            rows = read_rows(folder, plan, number)
            if plan.options.get("caption_policy") == "tokens":
                rows = [replace(row, texts=[tokenize.text_of_words(text or "") for text in row.texts]) for row in rows]
            try:
                _make_slice(folder, plan, number, len(rows), _samples(plan, rows, client, threads, makers, settings), tokenize)
            except BrokenExecutor as error:
                raise RunError("a decoding process died, probably out of memory: use fewer --processes") from error
            made += 1
            print(f"{folder}: slice {number} of {len(plan.splits)} done", file=sys.stderr)
    return {"slices": len(mine), "made": made}


def _make_slice(folder: str, plan: Plan, number: int, total: int, samples: _Samples, tokenize: Tokenizer) -> None:
    """Write the samples of one slice, in order."""
    step = f"fetch {plan.name} {number + 1}/{len(plan.splits)}"
    with closing(samples), SliceWriter(folder, plan, number) as writer:
        for count, sample in enumerate(samples, start=1):
            if isinstance(sample, Reject):
                writer.reject(sample)
            else:
                writer.add(sample.key, sample.members, tokenize(sample.captions), sample.note)
            if count % 100 == 0 or count == total:
                check_stop()
                progress(step, count, total, "images")


def _pool(stack: ExitStack, pool: Executor) -> Executor:
    """A pool that is shut down with the stack; after an error, pending tasks are cancelled."""
    stack.callback(pool.shutdown, cancel_futures=True)
    return pool


def _make_makers(processes: int) -> Executor:
    if processes:
        context = multiprocessing.get_context("spawn")
        return ProcessPoolExecutor(processes, context, initializer=_begin_maker, initargs=(shared_budget(context), logs.spoken()))
    return ThreadPoolExecutor(min(4, os.cpu_count() or 1))  # PIL releases the GIL while it works


def _samples(
    plan: Plan, rows: Sequence[RemoteRow], client: PoliteClient, threads: Executor, makers: Executor, settings: FetchSettings
) -> _Samples:
    """A sample or a reject for each row, in order: fetched ahead by threads, made ahead by `makers`."""
    base = settings.images or str(plan.source.get("images", ""))
    source = _Pictures(client, base, settings.buffer_mb << 20, zips=bool(plan.source.get("zips")))
    make = _Maker(plan)
    fetching: deque[tuple[int, Future[list[bytes]]]] = deque()
    making: deque[Future[Sample | Reject]] = deque()
    ahead = iter(range(len(rows)))
    try:
        while True:
            for number in islice(ahead, _AHEAD - len(fetching)):
                fetching.append((number, threads.submit(source.fetch, rows[number], number)))
            if fetching and len(making) < _MAKING:
                number, future = fetching.popleft()
                making.append(_hand_over(rows[number], number, future, source, make, makers))
            elif making:
                yield making.popleft().result()
            else:
                return
    finally:
        source.close()


def _hand_over(
    row: RemoteRow, number: int, future: "Future[list[bytes]]", source: "_Pictures", make: "_Maker", makers: Executor
) -> "Future[Sample | Reject]":
    """Wait for a row's pictures and pass them to a maker; a failed fetch becomes a reject."""
    source.turn_to(number)
    try:
        pictures = future.result()
        source.count(-sum(map(len, pictures)))
        return makers.submit(make, row, pictures)
    except FetchError as error:
        rejected: Future[Sample | Reject] = Future()
        rejected.set_result(Reject(row.key, error.cause, error.detail))
        return rejected


class _Pictures:
    """Fetches the pictures of rows, over HTTP or from a store, never further ahead than the buffer allows."""

    def __init__(self, client: PoliteClient, base: str, most: int, *, zips: bool) -> None:
        self._client = client
        self._base = base
        self._zips = zips  # the pictures are members of zips
        self._most = most
        self._turn = threading.Condition()
        self._next = 0  # the row that everybody waits for
        self._closed = False
        self.held = 0  # bytes that were fetched and wait for their turn

    def fetch(self, row: RemoteRow, number: int) -> list[bytes]:
        """All pictures of a row; if one fails, the row fails.

        Rows start in order, so the row that everybody waits for has started before any row that waits for room here.
        """
        with self._turn:
            self._turn.wait_for(lambda: self.held < self._most or number <= self._next or self._closed)
        pictures = [self._get(image) for image in row.images]
        self.count(sum(map(len, pictures)))
        return pictures

    def count(self, num_bytes: int) -> None:
        """Add bytes that arrived, or (negative) that were consumed."""
        with self._turn:
            self.held += num_bytes
            self._turn.notify_all()

    def turn_to(self, number: int) -> None:
        """Announce that row `number` is next: it need not wait for room."""
        with self._turn:
            self._next = number
            self._turn.notify_all()

    def close(self) -> None:
        """Release all that wait."""
        with self._turn:
            self._closed = True
            self._turn.notify_all()

    def _get(self, image: str) -> bytes:
        member = Member.parse(image) if self._zips else None
        place = member.archive if member else image
        uri = place if "://" in place else join(self._base, place) if self._base else ""
        local = not is_web(uri)
        if local and (not uri or "://" in place or ".." in place.split("/")):  # a list contains URLs or paths below the base
            raise FetchError("bad URL", image[:200])
        try:
            if member:
                data = read_range(self._client, uri, member.start, member.length)
                return unpack_member(member, data, self._client.settings.max_bytes)
            return open_store(uri).get(uri) if local else self._client.get(uri)
        except MissingObject as error:
            raise FetchError("no such file", uri) from error


@dataclass(frozen=True)
class _Held(Blob):
    """Bytes that are here already."""

    data: bytes = b""

    def read(self) -> bytes:
        return self.data


class _Maker:
    """Makes a sample of a row and its pictures, in another process."""

    def __init__(self, plan: Plan) -> None:
        self._kind = plan.kind
        self._captions = plan.options.get("caption_policy", "")
        self._pairs = PairMaker(plan.options.get("image_policy", ""), rules_of(plan.options))
        self._triplets = TripletMaker(int(plan.options.get("triplet_side", 0)))
        self._splits = plan.splits
        self._shown = without_signatures if plan.source.get("remote", 0) >= SHOWN_SINCE else str

    def __call__(self, row: RemoteRow, pictures: list[bytes]) -> Sample | Reject:
        """The sample, or why there is none, by the row's key."""
        sample = self._pair(row, pictures[0]) if self._kind == "pairs" else self._triplet(row, pictures)
        return replace(sample, where=row.key, detail=f"{sample.detail} ({', '.join(row.images)})") if isinstance(sample, Reject) else sample

    def _pair(self, row: RemoteRow, picture: bytes) -> Sample | Reject:
        captions = clean_captions(self._captions, row.texts)
        if not captions:
            return Reject(row.key, "empty caption", f"nothing is left under the policy {self._captions!r}")
        image = _Held(row.images[0], data=picture)
        where = self._shown(row.images[0])  # becomes part of the sample
        return self._pairs(PairRow(key=row.key, where=where, image=image, captions=tuple(captions), label=row.label))

    def _triplet(self, row: RemoteRow, pictures: list[bytes]) -> Sample | Reject:
        ref, left, right = (_Held(uri, data=data) for uri, data in zip(row.images, pictures, strict=True))
        facts = {**row.facts, "flip": tuple(row.facts["flip"]) if row.facts["flip"] else None}
        return self._triplets(TripletRow(key=row.key, where=facts.pop("id"), ref=ref, left=left, right=right, **facts))


def _begin_maker(budget: Budget, spoken: dict[str, Any]) -> None:
    """Initialise a decoding process: share the parent's budget and log format, and exit if the parent is killed."""
    use_budget(budget)
    logs.speak_as(spoken)
    threading.Thread(target=_wait_for_parent, daemon=True).start()


def _wait_for_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)
