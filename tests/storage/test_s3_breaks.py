"""Answers of every kind of request, broken at any byte: retried within the time limit, never accepted, never a traceback."""

import io
import itertools
import random
import socket
from collections.abc import Callable, Iterator

import pytest

from tests.fault_proxy import Break, Fault, FaultProxy, FlipSent
from tests.servers import S3Server
from trainer.errors import InputError, RunError
from trainer.storage import join, read_bytes, write_bytes
from trainer.storage.base import MissingObject
from trainer.storage.s3 import PART_BYTES, S3Store
from trainer.storage.s3_settings import settings_from_environment

DATA = random.Random(0).randbytes(70_001)
LONG = random.Random(1).randbytes(PART_BYTES + 70_001)


@pytest.fixture
def proxy(proxy: FaultProxy, monkeypatch: pytest.MonkeyPatch) -> FaultProxy:
    """A proxy on the way to the store, which breaks answers, and a client that notices silence after two seconds and long goes on."""
    monkeypatch.setenv("FIRSTSIGHT_S3_RETRY_SECONDS", "600")
    monkeypatch.setenv("FIRSTSIGHT_S3_TIMEOUT_SECONDS", "2")
    return proxy


def _get(store: S3Store, root: str) -> None:
    assert store.get(join(root, "d", "x")) == DATA


def _get_range(store: S3Store, root: str) -> None:
    assert len(store.get_range(join(root, "d", "x"), 5, 60_000)) == 60_000


def _missing(store: S3Store, root: str) -> None:
    with pytest.raises(MissingObject, match="nothing"):
        store.get(join(root, "d", "nothing"))


def _head(store: S3Store, root: str) -> None:
    assert store.head(join(root, "d", "x")) is not None


def _put(store: S3Store, root: str) -> None:
    uri = join(root, "new", "x")
    store.put_stream(uri, io.BytesIO(DATA))
    assert read_bytes(uri) == DATA


def _delete(store: S3Store, root: str) -> None:
    store.delete(join(root, "gone"))


def _list(store: S3Store, root: str) -> None:
    assert [info.uri for info in store.list(join(root, "d"))] == [join(root, "d", "x")]


def _upload(store: S3Store, root: str) -> None:
    uri = join(root, "new", "long")
    store.put_stream(uri, io.BytesIO(LONG))
    assert read_bytes(uri) == LONG


KINDS: dict[str, tuple[Callable[[S3Store, str], None], Callable[[str, str], bool]]] = {
    "get": (_get, lambda method, path: method == "GET"),
    "range": (_get_range, lambda method, path: method == "GET"),
    "missing": (_missing, lambda method, path: method == "GET"),
    "head": (_head, lambda method, path: method == "HEAD"),
    "put": (_put, lambda method, path: method == "PUT"),
    "delete": (_delete, lambda method, path: method == "DELETE"),
    "list": (_list, lambda method, path: "list-type" in path),
    "begin": (_upload, lambda method, path: method == "POST" and "uploads" in path),
    "part": (_upload, lambda method, path: method == "PUT" and "partNumber=2" in path),
    "complete": (_upload, lambda method, path: method == "POST" and "uploadId" in path),
}


def prepare(root: str, s3_server: S3Server, monkeypatch: pytest.MonkeyPatch) -> None:
    """Write the objects that the requests use, bypassing the proxy."""
    with monkeypatch.context() as direct:
        direct.setenv("AWS_ENDPOINT_URL", s3_server.endpoint)
        write_bytes(join(root, "d", "x"), DATA)
        write_bytes(join(root, "gone"), b"x")


def run(kind: str, proxy: FaultProxy, root: str, faults: list[Fault]) -> None:
    """One request of this kind whose answers have these faults, by a client that has had no response before."""
    work, proxy.applies = KINDS[kind]
    proxy.faults = list(faults)
    work(S3Store(settings_from_environment(root)), root)
    assert proxy.faults == []


def cases() -> Iterator[object]:
    """Every kind of request broken in every way at every place; one seventeenth of them, covering each kind, runs in the plain tests."""
    for number, (kind, how, region, status) in enumerate(
        itertools.product(KINDS, ["cut", "reset", "hole", "delay"], ["status", "headers", "body"], [0, 503])
    ):
        often = number % 17 == 6
        yield pytest.param(kind, how, region, status, marks=() if often else pytest.mark.campaign, id=f"{kind}-{how}-{region}-{status}")


@pytest.mark.parametrize(("kind", "how", "region", "status"), list(cases()))
def test_answers_that_break(
    s3_root: str, s3_server: S3Server, proxy: FaultProxy, monkeypatch: pytest.MonkeyPatch, kind: str, how: str, region: str, status: int
) -> None:
    """A response that ends, stalls or is delayed inside its status line, headers or body is requested again."""
    prepare(s3_root, s3_server, monkeypatch)
    silent, large = how == "hole", KINDS[kind][0] is _upload  # the least that shows silence, and time for the part on a busy machine
    monkeypatch.setenv("FIRSTSIGHT_S3_TIMEOUT_SECONDS", "8" if silent and large else "0.5" if silent else "60")
    run(kind, proxy, s3_root, [Break(how, region, 0.5, status=status)])


@pytest.mark.parametrize("seed", [0, *(pytest.param(seed, marks=pytest.mark.campaign) for seed in range(1, 30))])
def test_random_breaks(s3_root: str, s3_server: S3Server, proxy: FaultProxy, monkeypatch: pytest.MonkeyPatch, seed: int) -> None:
    """Breaks of any kind at any byte, two in a row: the request succeeds as if there were none.

    A flip in an answer that has no checksum (a head, a listing, a date) may pass; but it must not raise an unexpected error.
    """
    prepare(s3_root, s3_server, monkeypatch)
    draw = random.Random(seed)
    for _ in range(4):
        kind = draw.choice([name for name in KINDS if name not in ("head", "list")])
        faults: list[Fault] = []
        for _ in range(2):
            how = draw.choice(["cut", "reset", "flip", "flip", "delay"])
            region = draw.choice(["status", "headers", "body"]) if how != "flip" else draw.choice(["status", "body"])
            status = draw.choice([0, 0, 503]) if how != "flip" else 0
            faults.append(Break(how, region, draw.random(), draw.randrange(8), status))
        work, proxy.applies = KINDS[kind]
        proxy.faults = list(faults)
        try:
            work(S3Store(settings_from_environment(s3_root)), s3_root)
        except (AssertionError, Exception) as error:
            raise AssertionError(f"{kind} with {faults}: {error!r}") from error


@pytest.mark.parametrize("seed", [0, *(pytest.param(seed, marks=pytest.mark.campaign) for seed in range(1, 30))])
def test_flips_in_headers(s3_root: str, s3_server: S3Server, proxy: FaultProxy, monkeypatch: pytest.MonkeyPatch, seed: int) -> None:
    """A flipped bit in a header, a listing or an error's text never gives wrong bytes and never anything but an error of ours."""
    prepare(s3_root, s3_server, monkeypatch)
    monkeypatch.setenv("FIRSTSIGHT_S3_RETRY_SECONDS", "6")
    draw = random.Random(seed)
    for _ in range(6):
        kind = draw.choice(list(KINDS))
        fault = Break("flip", draw.choice(["headers", "body"]), draw.random(), draw.randrange(8), draw.choice([0, 0, 503]))
        work, proxy.applies = KINDS[kind]
        proxy.faults, lines = [fault], [""]
        try:
            work(S3Store(settings_from_environment(s3_root)), s3_root)
        except (InputError, RunError) as error:
            lines = str(error).splitlines()
        except AssertionError:
            lines = [""] if kind in ("list", "head") else []  # these responses have no checksum
        except BaseException as error:
            raise AssertionError(f"{kind} with {fault}: {error!r}") from error
        assert len(lines) == 1, f"{kind} with {fault}: {lines}"


@pytest.mark.parametrize(("size", "at"), [(1, 0.0), (70_001, 0.5), (PART_BYTES + 5, 1.0)])
def test_bits_flipped_during_upload(s3_root: str, s3_server: S3Server, proxy: FaultProxy, size: int, at: float) -> None:
    """A bit that flips on the way to the store is not stored."""
    uri, data = join(s3_root, "x"), LONG[:size]
    proxy.applies = lambda method, path: method == "PUT"
    proxy.faults = [FlipSent(at), FlipSent(at, 7)]
    S3Store(settings_from_environment(uri)).put_stream(uri, io.BytesIO(data))
    assert proxy.faults == []
    assert read_bytes(uri) == data


def test_a_black_hole_ends_the_request(s3_root: str, s3_server: S3Server, proxy: FaultProxy, monkeypatch: pytest.MonkeyPatch) -> None:
    """A store that never finishes a response is given up after the time limit, with a one-line error."""
    prepare(s3_root, s3_server, monkeypatch)
    monkeypatch.setenv("FIRSTSIGHT_S3_RETRY_SECONDS", "0.1")
    monkeypatch.setenv("FIRSTSIGHT_S3_TIMEOUT_SECONDS", "0.5")
    for kind in ("missing", "put"):
        work, proxy.applies = KINDS[kind]
        proxy.always = Break("hole", "body", 0.5, status=503)
        with pytest.raises(RunError, match="given up after") as raised:
            work(S3Store(settings_from_environment(s3_root)), s3_root)
        assert "\n" not in str(raised.value)
    assert socket.getdefaulttimeout() is None
