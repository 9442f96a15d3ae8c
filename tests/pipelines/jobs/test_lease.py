"""Heartbeats and what disturbs them, on a store that fails on request."""

import contextlib
import dataclasses
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from pipelines.jobs import lease
from pipelines.jobs.lease import Lease, Lost, Taken, parse_holder
from tests.fault_proxy import Fault, FaultProxy, Refuse, Stall, Status
from trainer.errors import InputError, RunError
from trainer.storage import ObjectInfo, join, open_store, read_bytes, write_bytes
from trainer.storage.documents import encode_document
from trainer.storage.file import FileStore
from trainer.storage.s3 import S3Store
from trainer.storage.s3_settings import settings_from_environment

TOLERANT_SECONDS = 60.0
OTHER = encode_document({"format_version": 2, "id": "1" * 32, "beats": 1, "pid": 7})


def make(root: str, ended: Callable[[lease.Holder], bool] = lambda holder: False) -> Lease:
    """A lease of this test, which stands for a process."""
    return Lease(root, {"pid": 1}, ended=ended, say=lambda line: None)


class Clock:
    """What the lease calls `time`, and nobody else: moved by hand and by the lease's pauses."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now, self.during = 0.0, lambda: None
        self.time = time.time
        monkeypatch.setattr(lease, "time", self)

    def monotonic(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.now += seconds
        self.during()


class FailingStore(FileStore):
    """Files whose `fails` raise, whose answers get lost, and whose clock can be set."""

    def __init__(self) -> None:
        self.fails: dict[str, Exception] = {}
        self.loses_answers = False
        self.ahead = 0.0

    def _fail(self, name: str) -> None:
        if name in self.fails:
            raise self.fails[name]

    def head(self, uri: str) -> ObjectInfo | None:
        self._fail("head")
        info = super().head(uri)
        return dataclasses.replace(info, modified=info.modified + self.ahead) if info and ".partial" in uri else info

    def create(self, uri: str, data: bytes) -> bool:
        self._fail("create")
        return super().create(uri, data) and not self.loses_answers

    def replace(self, uri: str, data: bytes, stamp: str) -> bool:
        self._fail("replace")
        return super().replace(uri, data, stamp) and not self.loses_answers


@pytest.fixture
def store(monkeypatch: pytest.MonkeyPatch) -> FailingStore:
    store = FailingStore()
    monkeypatch.setattr(lease, "open_store", lambda uri: store)
    return store


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    return Clock(monkeypatch)


@pytest.fixture
def lock_uri(tmp_path: Path) -> str:
    return f"{tmp_path}/run.lock"


@pytest.mark.parametrize("damage", [None, b"", b"{}", OTHER.replace(b"1", b"2", 1), b"\xff"])
def test_a_lock_object_that_is_missing_or_damaged_is_written_again(root: str, damage: bytes | None):
    """Nobody else may take it in the meantime, so it was ours."""
    one = make(root)
    one.take()
    if damage is None:
        open_store(root).delete(join(root, "run.lock"))
    else:
        write_bytes(join(root, "run.lock"), damage)

    one.beat()

    assert parse_holder(read_bytes(join(root, "run.lock")))["id"] == one.id
    with pytest.raises(Taken, match="process 1 "):
        make(root).take()


def test_a_heartbeat_that_finds_another_holder_says_so_and_leaves_it(root: str):
    """So does the release."""
    one = make(root)
    one.take()
    write_bytes(join(root, "run.lock"), OTHER)

    for call in (one.beat, one.release):
        with pytest.raises(Lost, match="process 7 "):
            call()
    assert read_bytes(join(root, "run.lock")) == OTHER


@pytest.mark.parametrize("error", [InputError("403"), RunError("503"), OSError("eio"), KeyError("bug")])
@pytest.mark.parametrize("request_", ["head", "replace"])
def test_a_heartbeat_that_fails_is_no_end(store: FailingStore, clock: Clock, tmp_path: Path, error: Exception, request_: str):
    """The next one succeeds, and the time counts from it."""
    one = make(str(tmp_path))
    one.take()
    for _ in range(3):
        clock.now += 100
        store.fails[request_] = error
        with pytest.raises(RunError) as failed:
            one.beat()
        assert not isinstance(failed.value, Lost)
        store.fails.clear()
        one.beat()


@pytest.mark.parametrize(("request_", "error"), [("replace", RunError("503")), ("replace", InputError("403")), ("head", InputError("403"))])
def test_a_run_that_can_write_no_heartbeat_is_told(store: FailingStore, clock: Clock, tmp_path: Path, request_: str, error: Exception):
    """Others may have the store, and will take it for dead."""
    one = make(str(tmp_path))
    one.take()
    clock.now += 121
    store.fails[request_] = error

    with pytest.raises(Lost, match=r"no heartbeat could be written to .*run\.lock for 121 s \(\d03\)"):
        one.beat()


def test_a_run_cut_off_from_the_store_goes_on_where_nobody_took_over(store: FailingStore, clock: Clock, tmp_path: Path, lock_uri: str):
    """An outage of the store that the jobs survive must not end the run."""
    one = make(str(tmp_path))
    one.take()
    clock.now += 250
    store.fails["head"] = RunError("cannot be reached")
    with pytest.raises(RunError, match="cannot be reached") as failed:
        one.beat()
    assert not isinstance(failed.value, Lost)
    store.fails.clear()
    one.beat()

    clock.now += 250
    write_bytes(lock_uri, OTHER)
    with pytest.raises(Lost, match="process 7 "):
        one.beat()


@pytest.mark.parametrize("damage", [None, b"damaged"])
def test_a_lock_that_is_gone_after_an_outage_is_lost(
    store: FailingStore, clock: Clock, tmp_path: Path, lock_uri: str, damage: bytes | None
):
    """Whoever took it over may have ended by now."""
    one = make(str(tmp_path))
    one.take()
    clock.now += 121
    if damage is None:
        Path(lock_uri).unlink()
    else:
        write_bytes(lock_uri, damage)
    with pytest.raises(Lost, match="missing or damaged, and no heartbeat was written for 121 s"):
        one.beat()


def test_a_lost_answer_is_no_other_holder(store: FailingStore, tmp_path: Path):
    """The store wrote it and said no, as a retried conditional write does."""
    store.loses_answers = True
    one = make(str(tmp_path))
    one.take()
    with pytest.raises(RunError, match="changed by others each time"):
        one.beat()
    store.loses_answers = False
    one.beat()


def test_a_stale_holder_is_watched_and_then_taken_over(store: FailingStore, clock: Clock, tmp_path: Path, lock_uri: str):
    """Its age is known by the store's clock alone."""
    write_bytes(lock_uri, OTHER)
    store.ahead = 119
    with pytest.raises(Taken, match=r"process 7 .*; its last heartbeat is 119 s old: if it was killed, try again in 1 s"):
        make(str(tmp_path)).take()
    store.ahead = 121
    began, one = clock.now, make(str(tmp_path))

    one.take()

    assert clock.now - began >= lease.WATCH_SECONDS
    assert parse_holder(read_bytes(lock_uri))["id"] == one.id


def test_a_holder_that_sends_a_heartbeat_is_not_taken_over_whatever_the_stores_clocks_say(
    store: FailingStore, clock: Clock, tmp_path: Path, lock_uri: str
):
    """Several servers of one store may each have a clock of their own."""
    holder = make(str(tmp_path))
    holder.take()
    store.ahead = 121
    clock.during = lambda: (holder.beat(), setattr(store, "ahead", 0.0))  # type: ignore[assignment, func-returns-value]

    with pytest.raises(Taken, match="process 1 "):
        make(str(tmp_path)).take()


def test_a_stores_clock_that_was_set_back_does_not_shut_everybody_out(store: FailingStore, clock: Clock, tmp_path: Path, lock_uri: str):
    """Then the holder is watched for as long as it takes a heartbeat to expire."""
    write_bytes(lock_uri, OTHER)
    store.ahead = -3600

    make(str(tmp_path)).take()

    assert clock.now >= lease.STALE_SECONDS


def test_the_probe_of_the_stores_clock_is_removed_and_never_listed(root: str):
    """Whether or not the lock is taken."""
    write_bytes(join(root, "run.lock"), OTHER)
    with pytest.raises(Taken):
        make(root).take()

    assert [info.uri for info in open_store(root).list(root)] == [join(root, "run.lock")]


def test_of_many_who_take_over_a_dead_holder_one_wins(root: str):
    """They all know that it is dead."""
    write_bytes(join(root, "run.lock"), OTHER)
    every = [make(root, lambda holder: holder["id"] == "1" * 32) for _ in range(4)]
    (winner,) = _take_at_once(every)
    winner.beat()


@pytest.mark.slow
def test_a_store_without_conditions_keeps_the_lock_by_claims(
    unconditional: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
):
    """Of those who begin at once one wins and keeps it by heartbeats; who takes it over wins, and the one before is told."""
    monkeypatch.setattr(lease, "open_store", lambda uri: S3Store(settings_from_environment(uri)))  # which asks for conditions again
    every = [make(unconditional) for _ in range(3)]
    won = _take_at_once(every)
    assert len(won) == 1
    won[0].beat()
    with pytest.raises(Taken, match="is being run by process 1 "):
        make(unconditional).take()
    heirs = [make(unconditional, lambda holder: holder["id"] == won[0].id) for _ in range(2)]
    after = _take_at_once(heirs)
    assert len(after) == 1
    with pytest.raises(Lost, match="is being run by process 1 "):
        won[0].beat()
    after[0].release()
    assert list(open_store(unconditional).list(unconditional)) == []
    assert "does not support conditional writes" in caplog.text


def _take_at_once(leases: list[Lease]) -> list[Lease]:
    """Those that take it, of all that want it at the same time."""
    won: list[Lease] = []

    def take(one: Lease) -> None:
        with contextlib.suppress(Taken):
            one.take()
            won.append(one)

    threads = [threading.Thread(target=take, args=(one,)) for one in leases]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return won


@pytest.mark.parametrize(
    "fault",
    [
        Status(403, "AccessDenied"),
        Status(503, "SlowDown"),
        Status(400, "RequestTimeout"),
        Status(400, "ExpiredToken"),
        Stall(TOLERANT_SECONDS),
        Refuse(),
    ],
    ids=str,
)
@pytest.mark.parametrize("method", ["HEAD", "PUT"])
def test_what_a_store_answers_to_one_heartbeat_is_no_end(
    proxy: FaultProxy, s3_root: str, fault: Fault, method: str, monkeypatch: pytest.MonkeyPatch
):
    """A 403 of a server that reads its policies again, an answer that never comes."""
    monkeypatch.setattr(lease, "HEARTBEAT_SECONDS", 0.3)
    one = make(s3_root)
    one.take()
    one.impatient()
    proxy.applies = lambda asked, path: asked == method and "run.lock" in path
    proxy.always = fault
    with pytest.raises(RunError) as failed:
        one.beat()
    assert not isinstance(failed.value, Lost)

    proxy.always = None
    monkeypatch.setattr(lease, "HEARTBEAT_SECONDS", TOLERANT_SECONDS)
    one.impatient()
    one.beat()


def test_a_heartbeat_gives_up_long_before_the_stores_patience_ends(proxy: FaultProxy, s3_root: str, monkeypatch: pytest.MonkeyPatch):
    """Or a run would not see for minutes that it has lost the lock."""
    monkeypatch.setattr(lease, "HEARTBEAT_SECONDS", 1.0)
    monkeypatch.setenv("FIRSTSIGHT_S3_RETRY_SECONDS", "100000")
    one = make(s3_root)
    one.take()
    one.impatient()
    proxy.applies = lambda method, path: method == "PUT" and "run.lock" in path
    proxy.always = Status(503)

    with pytest.raises(RunError, match="503"):
        one.beat()
