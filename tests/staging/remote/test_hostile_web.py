"""Servers that cut, reset, drip, lie and flood: every fetch ends in time, with bytes, one reject or one line."""

import contextlib
import random
import re
import socket
import struct
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.mutating import mutations
from trainer.errors import InputError, RunError
from trainer.staging.remote.download import download
from trainer.staging.remote.http import FetchError, HttpSettings, PoliteClient, follow
from trainer.staging.remote.zips import read_directory

Serve = Callable[[socket.socket, bytes], None]
DATA = random.Random(3).randbytes(5000)
OK = b"HTTP/1.1 200 OK\r\nContent-Length: 5000\r\n\r\n" + DATA


@contextlib.contextmanager
def raw_server(serve: Serve) -> Iterator[str]:
    """A server that does to each connection's socket what it is told, given the request; its URL."""
    listener = socket.create_server(("127.0.0.1", 0))
    ended = threading.Event()

    def talk(connection: socket.socket) -> None:
        with connection, contextlib.suppress(OSError):
            connection.settimeout(30)
            while not ended.is_set() and (request := connection.recv(1 << 16)):
                serve(connection, request)

    def accept() -> None:
        with contextlib.suppress(OSError):
            while True:
                threading.Thread(target=talk, args=(listener.accept()[0],), daemon=True).start()

    thread = threading.Thread(target=accept)
    thread.start()
    try:
        yield f"http://127.0.0.1:{listener.getsockname()[1]}/x.png"
    finally:
        ended.set()
        with contextlib.suppress(OSError):
            listener.shutdown(socket.SHUT_RDWR)
        listener.close()
        thread.join()


def reset(connection: socket.socket) -> None:
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    connection.close()


def say(data: bytes, *, end: bool = True) -> Serve:
    def serve(connection: socket.socket, _: bytes) -> None:
        connection.sendall(data)
        if end:
            connection.close()

    return serve


def say_and_reset(data: bytes) -> Serve:
    def serve(connection: socket.socket, _: bytes) -> None:
        connection.sendall(data)
        time.sleep(0.05)
        reset(connection)

    return serve


def drip(before: bytes, drop: bytes) -> Serve:
    """Send the beginning, and then a few bytes again and again without end."""

    def serve(connection: socket.socket, _: bytes) -> None:
        connection.sendall(before)
        while True:
            connection.sendall(drop)
            time.sleep(0.05)

    return serve


def once(first: Serve, then: Serve) -> Serve:
    """The first request is served one way, all later ones another."""
    seen: list[bytes] = []

    def serve(connection: socket.socket, request: bytes) -> None:
        seen.append(request)
        (first if len(seen) == 1 else then)(connection, request)

    return serve


@contextlib.contextmanager
def client_of(total_seconds: float) -> Iterator[PoliteClient]:
    """A client that gives each of its two tries so long."""
    client = PoliteClient(
        HttpSettings(connect_seconds=20, read_seconds=10, total_seconds=total_seconds, tries=2, max_bytes=100_000, backoff_seconds=0.01)
    )
    try:
        yield client
    finally:
        client.close()


@pytest.fixture
def client() -> Iterator[PoliteClient]:
    with client_of(1.0) as client:
        yield client


def status(code: int, body: bytes = b"no such page", length: int | None = None) -> bytes:
    return b"HTTP/1.1 %d X\r\nContent-Length: %d\r\n\r\n" % (code, len(body) if length is None else length) + body


PASSING = {
    "reset before an answer": say_and_reset(b""),
    "closed before an answer": say(b""),
    "reset in a status line": say_and_reset(b"HTTP/1.1 20"),
    "reset in the headers": say_and_reset(b"HTTP/1.1 200 OK\r\nContent-Le"),
    "reset in the body": say_and_reset(OK[:2000]),
    "cut in the body": say(OK[:2000]),
    "length is too large": say(b"HTTP/1.1 200 OK\r\nContent-Length: 6000\r\n\r\n" + DATA),
    "chunk's size is garbage": say(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\nabc\r\n"),
    "chunk's size is negative": say(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n-5\r\nabc\r\n"),
    "chunk is cut": say(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nff\r\nabc"),
    "not HTTP": say(b"SSH-2.0-x\r\n\r\n"),
    "headers without end": say(b"HTTP/1.1 200 OK\r\n" + b"".join(b"X-%d: y\r\n" % number for number in range(500)) + b"\r\n"),
    "a header of 100 kB": say(b"HTTP/1.1 200 OK\r\nX: " + b"y" * 100_000 + b"\r\n\r\n"),
    "reset in the body of a 503": say_and_reset(status(503, length=5000)),
    "cut in the body of a 429": say(status(429, length=5000)),
    "body of a 500 drips": drip(b"HTTP/1.1 500 X\r\nContent-Length: 60000\r\n\r\n", b"x"),
    "headers drip": drip(b"HTTP/1.1 200 OK\r\nX: ", b"y"),
    "100 Continue without end": drip(b"", b"HTTP/1.1 100 Continue\r\n\r\n"),
    "body drips": drip(b"HTTP/1.1 200 OK\r\nContent-Length: 5000\r\n\r\n", b"x"),
    "silence in the body": drip(OK[:100], b""),
}


@pytest.mark.parametrize("fault", PASSING)
def test_a_fault_that_passes_is_tried_again(client: PoliteClient, fault: str) -> None:
    """Whatever it was, the second try brings the bytes; where it stays, it is one reject after all tries."""
    with raw_server(once(PASSING[fault], say(OK))) as url:
        assert client.get(url) == DATA
    with raw_server(PASSING[fault]) as url, client_of(0.15) as impatient, pytest.raises(FetchError) as caught:
        impatient.get(url)
    assert caught.value.cause in ("cut short", "timeout", "http 503", "http 429", "http 500", "connect")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("serve", "cause"),
    [
        (say_and_reset(status(404, length=5000)), "http 404"),
        (say(status(403, length=5000)), "http 403"),
        (drip(b"HTTP/1.1 404 X\r\nContent-Length: 60000\r\n\r\n", b"x"), "http 404"),
        (say(b"HTTP/1.1 404 X\r\nContent-Length: " + b"9" * 5000 + b"\r\n\r\n"), "http 404"),
        (say(b"HTTP/1.1 200 OK\r\nContent-Length: 999999\r\n\r\n" + DATA), "too many bytes"),
        (say(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n" + b"ffff\r\n" + bytes(65535) + b"\r\n" + b"ffff\r\n" + bytes(65535)),
         "too many bytes"),
        (say(b"HTTP/1.1 302 X\r\nLocation: /x.png\r\nContent-Length: 9\r\n\r\nab"), "bad redirect"),
        (say_and_reset(b"HTTP/1.1 301 X\r\nLocation: http://[fe80::1::2]/\r\n\r\n"), "bad redirect"),
        (say(b"HTTP/1.1 307 X\r\nLocation: \xff\xfe\r\n\r\n"), "bad redirect"),
        (say(b"HTTP/1.1 206 X\r\nContent-Length: 2\r\n\r\nab"), "http 206"),
        (say(b"HTTP/1.1 304 X\r\n\r\n"), "http 304"),
    ],
)  # fmt: skip
def test_a_fault_that_stays_is_one_reject_at_once(client: PoliteClient, serve: Serve, cause: str) -> None:
    """A damaged body of an answer that is no picture changes nothing."""
    asked: list[bytes] = []

    def count(connection: socket.socket, request: bytes) -> None:
        asked.append(request)
        serve(connection, request)

    with raw_server(count) as url, pytest.raises(FetchError) as caught:
        client.get(url)
    assert caught.value.cause == cause
    assert len(asked) == 1 or cause == "bad redirect"


def test_a_packed_answer_is_never_unpacked(client: PoliteClient) -> None:
    """A decompression bomb under Content-Encoding stays as small as it came."""
    head = b"HTTP/1.1 200 OK\r\nContent-Encoding: gzip\r\nContent-Length: 5000\r\n\r\n"
    with raw_server(say(head + DATA)) as url:
        assert client.get(url) == DATA


def partial(said: bytes, body: bytes) -> Serve:
    return say(b"HTTP/1.1 206 X\r\nContent-Range: %s\r\nContent-Length: %d\r\n\r\n" % (said, len(body)) + body)


@pytest.mark.parametrize(
    "serve",
    [
        partial(b"bytes 0-9/5000", DATA[:10]),
        partial(b"bytes 100-299/5000", DATA[100:300]),
        partial(b"bytes 100-109/5000", DATA[100:300]),
        partial(b"bytes 100-109/50", DATA[100:110]),
        partial(b"bytes 100-90/5000", b""),
        partial(b"bytes " + b"9" * 5000 + b"-9/9", b""),
        partial(b"nonsense", DATA[100:110]),
        say(b"HTTP/1.1 206 X\r\nContent-Length: 10\r\n\r\n" + DATA[100:110]),
    ],
)
def test_a_range_that_was_not_asked_for_is_never_taken(client: PoliteClient, serve: Serve) -> None:
    """Another one, a longer one, one that contradicts itself; a right answer to the next try is."""
    with raw_server(once(serve, partial(b"bytes 100-109/5000", DATA[100:110]))) as url:
        assert client.get_range(url, 100, 10).data == DATA[100:110]
    with raw_server(serve) as url, pytest.raises(FetchError, match="wrong range"):
        client.get_range(url, 100, 10)


def test_a_zip_behind_a_failing_server_is_one_line(client: PoliteClient) -> None:
    """What may pass is exit code 1, what will not is 2; neither is a traceback."""
    with raw_server(say(b"")) as url, pytest.raises(RunError, match=re.escape(url)):
        list(read_directory(client, url, "x.zip", ""))
    with raw_server(say(status(404))) as url, pytest.raises(InputError, match="http 404"):
        list(read_directory(client, url, "x.zip", ""))


@pytest.mark.parametrize("seed", range(3))
def test_any_damage_to_an_answer_ends_in_bytes_or_a_reject(seed: int) -> None:
    """Of headers and body, in an answer with a length and in one of chunks."""
    client = PoliteClient(HttpSettings(total_seconds=0.5, read_seconds=5, tries=1, max_bytes=100_000, backoff_seconds=0.01))
    chunked = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nETag: x\r\n\r\n5\r\nabcde\r\n3;x=y\r\nabc\r\n0\r\nT: x\r\n\r\n"
    moved = b"HTTP/1.1 302 Found\r\nLocation: /y.png\r\nRetry-After: 1\r\nContent-Length: 3\r\n\r\nabc"
    answers = [answer for good in (OK[:200], chunked, moved) for answer in mutations(good, seed, 25)]

    def serve(connection: socket.socket, _: bytes) -> None:
        connection.sendall(answers.pop() if answers else b"")
        connection.close()

    with raw_server(serve) as url:
        while answers:
            with contextlib.suppress(FetchError):
                client.get(url)
    client.close()


@pytest.mark.parametrize(
    "location", ["http://[::1", "http://[fe80::1::2]/", "//", "http://a:99999999/", "\0", "http://[v1.x]/", "x" * 100_000]
)
def test_a_location_that_is_none_is_a_bad_redirect(location: str) -> None:
    with contextlib.suppress(FetchError):
        assert follow("http://a/x", location).startswith("http")


@pytest.mark.parametrize("contact", ["a\r\nX: y", "a\0", "é", "a\tb"])
def test_a_contact_that_would_break_a_header_is_refused(contact: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="--contact must be printable ASCII"):
        HttpSettings(contact=contact)
    with pytest.raises(InputError, match="--contact must be printable ASCII"):
        download("http://127.0.0.1:9/x", tmp_path / "x", contact=contact)


def whole(_: bytes = b"") -> Serve:
    """A server that honours ranges."""

    def serve(connection: socket.socket, request: bytes) -> None:
        asked = re.search(rb"Range: bytes=(\d+)-", request)
        start = int(asked[1]) if asked else 0
        head = b"HTTP/1.1 206 X\r\nContent-Range: bytes %d-4999/5000\r\n" % start if asked else b"HTTP/1.1 200 OK\r\n"
        connection.sendall(head + b'ETag: "v"\r\nContent-Length: %d\r\n\r\n' % (5000 - start) + DATA[start:])
        connection.close()

    return serve


TAGGED = OK.replace(b"\r\n\r\n", b'\r\nETag: "v"\r\n\r\n', 1)


@pytest.mark.parametrize(
    "first",
    [
        say_and_reset(b""), say_and_reset(TAGGED[:1000]), say(TAGGED[:1000]), say_and_reset(status(503, length=5000)),
        say(b"SSH-2.0\r\n\r\n"), say(status(599)), say_and_reset(b"HTTP/1.1 200 OK\r\nContent-Le"),
    ],
)  # fmt: skip
def test_a_download_outlives_faults(first: Serve, tmp_path: Path) -> None:
    with raw_server(once(first, whole())) as url:
        download(url, tmp_path / "x")
    assert (tmp_path / "x").read_bytes() == DATA


def test_a_download_never_joins_what_does_not_belong_together(tmp_path: Path) -> None:
    """A server that answers a range with another one is asked again, and given up in the end."""
    (tmp_path / "x.partial").write_bytes(DATA[:1000])
    (tmp_path / "x.partial.json").write_text('{"version": "\\"v\\""}')
    with raw_server(once(partial(b"bytes 0-4999/5000", DATA), whole())) as url:
        download(url, tmp_path / "x")
    assert (tmp_path / "x").read_bytes() == DATA


@pytest.mark.parametrize(
    "note", [b"", b"[]", b"{", b"\xff", b'{"version": 5}', b'{"version": "a\\r\\nX: y"}', b"[" * 100_000, b'{"version": null}']
)
def test_a_damaged_note_of_an_earlier_try_begins_afresh(tmp_path: Path, note: bytes) -> None:
    """Without knowing which version a part is of, it is worth nothing."""
    (tmp_path / "x.partial").write_bytes(b"of another file")
    (tmp_path / "x.partial.json").write_bytes(note)
    with raw_server(whole()) as url:
        download(url, tmp_path / "x")
    assert (tmp_path / "x").read_bytes() == DATA
    assert [path.name for path in tmp_path.iterdir()] == ["x"]


@pytest.mark.parametrize(
    "serve",
    [
        drip(b"HTTP/1.1 200 OK\r\nContent-Length: 9999999\r\n\r\n", b"x"),
        say(status(503)), say_and_reset(b""),
        drip(b"HTTP/1.1 302 X\r\nLocation: /x.png\r\nContent-Length: 60000\r\n\r\n", b"x"),
    ],
)  # fmt: skip
def test_a_download_that_gets_nowhere_is_given_up_within_its_patience(serve: Serve, tmp_path: Path) -> None:
    """However steadily a byte comes now and then."""
    with raw_server(serve) as url, pytest.raises(RunError, match=re.escape(url)):
        download(url, tmp_path / "x", retry_seconds=0.6)
