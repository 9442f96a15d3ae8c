"""What an S3 store is believed: bytes that its ETags prove, answers that a store gives, errors by their code."""

import io
import random
import time
from collections.abc import Callable
from typing import Any

import minio.api
import pytest
from minio import Minio

from tests.fault_proxy import FaultProxy, Status
from tests.servers import new_store
from trainer.errors import Corrupt, RunError
from trainer.storage import join, read_bytes, write_bytes
from trainer.storage.checked import describe, find_damaged, find_missized, forget, read_hashed
from trainer.storage.s3 import PART_BYTES, S3Store

DATA = random.Random(0).randbytes(70_001)
Headers = dict[str, str]


def flip(data: bytes) -> bytes:
    """Another last byte."""
    return data[:-1] + bytes([data[-1] ^ 1])


def harm_parts(monkeypatch: pytest.MonkeyPatch, harmed: Callable[[int], bool]) -> list[int]:
    """Have every PUT for which `harmed` says so, by its number, arrive with another byte at a server that compares nothing."""
    put, count = Minio._put_object, []

    def harm(self: Minio, bucket: str, key: str, data: bytes, headers: Any = None, query: Any = None) -> Any:
        if key.endswith(".partial"):
            return put(self, bucket, key, data, headers, query)
        count.append(len(data))
        kept = {name: value for name, value in (headers or {}).items() if name != "Content-MD5"}
        return put(self, bucket, key, flip(data) if harmed(len(count)) else data, kept, query)

    monkeypatch.setattr(Minio, "_put_object", harm)
    return count


@pytest.mark.parametrize("size", [1, 70_001, 2 * PART_BYTES + 5])
def test_harmed_writes_are_sent_again(s3_root: str, monkeypatch: pytest.MonkeyPatch, size: int) -> None:
    """What arrived otherwise than it was sent is sent again, in one request or in parts."""
    data, uri = random.Random(size).randbytes(size), join(s3_root, "x")
    count = harm_parts(monkeypatch, lambda number: number in (1, 2))
    new_store(uri).put_stream(uri, io.BytesIO(data))
    assert len(count) > 2
    assert read_bytes(uri) == data


@pytest.mark.parametrize("size", [70_001, PART_BYTES + 5])
def test_writes_that_are_always_harmed(s3_root: str, monkeypatch: pytest.MonkeyPatch, size: int) -> None:
    """They end the command with the URI, and are not taken for written."""
    monkeypatch.setenv("FIRSTSIGHT_S3_RETRY_SECONDS", "0")
    harm_parts(monkeypatch, lambda number: True)
    uri = join(s3_root, "x")
    with pytest.raises(RunError, match=f"^{uri}: .*(has|received) different bytes from those sent"):
        new_store(uri).put_stream(uri, io.BytesIO(random.Random(0).randbytes(size)))


@pytest.mark.parametrize("kind", ["random", "kms"])
@pytest.mark.parametrize("size", [70_001, PART_BYTES + 5])
def test_servers_whose_etags_are_no_md5(s3_root: str, proxy: FaultProxy, size: int, kind: str) -> None:
    """Their objects are read back after a write, and believed when they are read."""
    draw = random.Random(0)

    def other_etag(method: str, path: str, headers: Headers, body: bytes) -> tuple[Headers, bytes]:
        if "etag" in headers and "list-type" not in path:
            tag = f"{draw.getrandbits(128):032x}" if method == "PUT" else "0123456789abcdef0123456789abcdef"
            headers = {**headers, "etag": f'"{tag}"', **({"x-amz-server-side-encryption": "aws:kms"} if kind == "kms" else {})}
        return headers, body

    data, uri = random.Random(size).randbytes(size), join(s3_root, "x")
    proxy.applies, proxy.rewrite = lambda *_: False, lambda *seen: other_etag(*seen) if "uploadId" not in seen[1] else seen[2:]
    store = new_store(uri)
    before = len([line for line in proxy.log if line[0] == "GET"])
    if size < PART_BYTES:
        store.put_stream(uri, io.BytesIO(data))
        assert len([line for line in proxy.log if line[0] == "GET"]) > before
    else:
        store.put_stream(uri, io.BytesIO(data))
    assert store.get(uri) == data


def test_damage_at_rest_is_named(s3_root: str, proxy: FaultProxy) -> None:
    """Bytes that come twice the same way under an ETag that is not theirs were damaged in the store; a flip on the way is not."""
    uri = join(s3_root, "x")
    write_bytes(uri, DATA)
    left = [1]

    def harm(method: str, path: str, headers: Headers, body: bytes) -> tuple[Headers, bytes]:
        if method == "GET" and left and path.endswith("/x"):
            left.pop()
            return headers, flip(body)
        return headers, body

    proxy.rewrite = harm
    assert new_store(uri).get(uri) == DATA
    assert not left
    left += [1] * 100
    with pytest.raises(Corrupt, match=f"^{uri}: .*it was damaged in the store"):
        new_store(uri).get(uri)


def test_streams_are_not_hashed(s3_root: str, proxy: FaultProxy) -> None:
    """Shards have checksums of their own, which their reader compares: `stream` and `get_range` give what comes."""
    uri = join(s3_root, "x")
    write_bytes(uri, DATA)
    proxy.rewrite = lambda method, path, headers, body: (headers, flip(body) if method == "GET" and body else body)
    assert b"".join(new_store(uri).stream(uri)) == flip(DATA)


def test_bytes_of_a_source_are_compared(s3_root: str, proxy: FaultProxy) -> None:
    """Nobody knows the checksums of a source: a whole one is compared with its ETag, and a range is read until two readings agree."""
    uri, harmed = join(s3_root, "x"), [0]
    write_bytes(uri, DATA)

    def harm(method: str, path: str, headers: Headers, body: bytes) -> tuple[Headers, bytes]:
        if method != "GET" or not body or not harmed[0]:
            return headers, body
        harmed[0] -= 1
        return headers, body[: harmed[0]] + bytes([body[harmed[0]] ^ 1]) + body[harmed[0] + 1 :]  # another byte each time

    proxy.rewrite = harm
    store = new_store(uri)
    for readings in range(4):
        harmed[0] = readings
        assert store.get_unsealed(uri, 5, 100) == DATA[5:105]
        assert harmed == [0]
    harmed[0] = 100
    with pytest.raises(Corrupt, match=f"^{uri}: 5 readings of one range all differ"):
        store.get_unsealed(uri, 5, 100)
    harmed[0] = 1
    with pytest.raises(Corrupt, match=f"^{uri}: its bytes came with MD5 .* run the same command again"):
        list(store.stream_unsealed(uri))
    assert b"".join(store.stream_unsealed(uri)) == DATA


def test_a_flip_on_the_way_is_no_damage_at_rest(s3_root: str, proxy: FaultProxy) -> None:
    """An object of several parts has an ETag that is no MD5. What differs from its seal is read again before a stage is trained again."""
    uri, data = join(s3_root, "d", "x"), random.Random(4).randbytes(PART_BYTES + 5)
    write_bytes(uri, data)
    sealed, harmed = describe(data), [0]

    def harm(method: str, path: str, headers: Headers, body: bytes) -> tuple[Headers, bytes]:
        if method == "GET" and path.endswith("/x") and harmed[0]:
            harmed[0] -= 1
            return headers, flip(body)
        return headers, body

    proxy.rewrite = harm
    for look in (
        lambda: find_damaged(join(s3_root, "d"), {"x": sealed}) == {},
        lambda: read_hashed(uri, sealed["sha256"]) == (data, sealed["sha256"]),
    ):
        forget(join(s3_root, "d"))
        harmed[0] = 1
        assert look()
        assert harmed == [0]
    forget(join(s3_root, "d"))
    harmed[0] = 2
    assert list(find_damaged(join(s3_root, "d"), {"x": sealed})) == ["x"]


@pytest.mark.parametrize(
    ("before", "after"),
    [
        (b"<Size>", b"<Size>-"),
        (b"<Size>", b"<Size>x"),
        (b"IsTruncated>f", b"IsTruncated>g"),
        (b"</Key>", b"</Kex>"),
        (b"/d/x<", b"/e/x<"),
        (b"<LastModified>2", b"<LastModified>?"),
        (b"<Contents>", b"<Content>"),
        (b"Contents>", b"Contentz>"),
        (b"d/</Prefix>", b"e/</Prefix>"),
    ],
)
def test_listings_that_contradict_themselves(s3_root: str, proxy: FaultProxy, before: bytes, after: bytes) -> None:
    """Keys of another folder, sizes that are none, an end that is neither: the page is asked for again."""
    write_bytes(join(s3_root, "d", "x"), DATA)
    left = [1, 1]

    def harm(method: str, path: str, headers: Headers, body: bytes) -> tuple[Headers, bytes]:
        if "list-type" in path and left:
            left.pop()
            assert before in body
            return headers, body.replace(before, after)
        return headers, body

    proxy.rewrite = harm
    assert [info.size for info in new_store(s3_root).list(join(s3_root, "d"))] == [len(DATA)]
    assert left == []


def test_a_listing_without_end_is_not_followed(s3_root: str, proxy: FaultProxy, monkeypatch: pytest.MonkeyPatch) -> None:
    """A cache that gives the same page to every request would lead on and on."""
    write_bytes(join(s3_root, "d", "x"), b"x")
    monkeypatch.setenv("FIRSTSIGHT_S3_RETRY_SECONDS", "1")
    pages: list[bytes] = []

    def repeat(method: str, path: str, headers: Headers, body: bytes) -> tuple[Headers, bytes]:
        pages.append(body)
        assert len(pages) < 100
        more = b"<NextContinuationToken>again</NextContinuationToken><IsTruncated>true"
        return headers, body.replace(b"<IsTruncated>false", more)

    proxy.rewrite = repeat
    with pytest.raises(RunError, match=r"ListBucketResult with itself for its next page.*given up after"):
        list(new_store(s3_root).list(join(s3_root, "d")))


@pytest.mark.parametrize(("before", "after"), [(b"<Size>7", b"<Size>6"), (b"/d/x<", b"/d/y<")])
def test_a_damaged_listing_is_no_damage_of_files(s3_root: str, proxy: FaultProxy, before: bytes, after: bytes) -> None:
    """A flipped digit or letter of a listing would have a finished stage trained again: the object is asked for by itself."""
    uri, sealed = join(s3_root, "d", "x"), {"x": describe(DATA)}
    write_bytes(uri, DATA)

    def harm(method: str, path: str, headers: Headers, body: bytes) -> tuple[Headers, bytes]:
        return headers, body.replace(before, after) if "list-type" in path else body

    proxy.rewrite = harm
    assert find_missized(join(s3_root, "d"), sealed) == {}
    assert find_damaged(join(s3_root, "d"), sealed) == {}
    S3Store.from_environment(uri).delete(uri)
    assert find_damaged(join(s3_root, "d"), sealed) == {"x": "missing"}
    write_bytes(uri, DATA[:-1])
    assert find_missized(join(s3_root, "d"), sealed) == {"x": f"{len(DATA) - 1} bytes, sealed were {len(DATA)}"}


PASSING_4XX = [
    (400, "RequestTimeout"), (403, "RequestTimeTooSkewed"), (409, "OperationAborted"), (409, "SomethingElse"), (400, "BadDigest"),
    (400, "IncompleteBody"), (400, "SlowDown"), (400, "InternalError"), (403, "Throttling"),
    (400, "KMS.ThrottlingException"), (403, "QpsLimitExceeded"),
]  # fmt: skip


@pytest.mark.parametrize(("status", "code"), PASSING_4XX)
def test_errors_that_pass_whatever_their_status(
    s3_root: str, proxy: FaultProxy, monkeypatch: pytest.MonkeyPatch, status: int, code: str
) -> None:
    """Whatever their status they are waited out; where they stay the command may be run again (exit 1). One is met by every request."""
    uri = join(s3_root, "x")
    write_bytes(uri, DATA)
    works: list[Callable[[S3Store], object]] = [
        lambda store: store.get(uri),
        lambda store: store.head(uri),
        lambda store: store.put_stream(uri, io.BytesIO(DATA)),
        lambda store: list(store.list(s3_root)),
        lambda store: store.delete(join(s3_root, "y")),
    ]
    works = works if code == "RequestTimeout" else works[:1]
    for work in works:
        proxy.faults = [Status(status, code)]
        work(new_store(uri))
        assert proxy.faults == []
    monkeypatch.setenv("FIRSTSIGHT_S3_RETRY_SECONDS", "0.1")
    proxy.always = Status(status, code)
    for work in works:
        with pytest.raises(RunError, match="given up after"):
            work(new_store(uri))


@pytest.mark.parametrize("status", [200, 500])
def test_errors_after_a_completion_has_begun(s3_root: str, proxy: FaultProxy, status: int) -> None:
    """A store that answers 200 before it knows may end in an error all the same."""
    data, uri = random.Random(3).randbytes(PART_BYTES + 5), join(s3_root, "x")
    proxy.applies = lambda method, path: method == "POST" and "uploadId" in path
    proxy.faults = [Status(status, "InternalError")] * 2
    new_store(uri).put_stream(uri, io.BytesIO(data))
    assert proxy.faults == []
    assert read_bytes(uri) == data


def test_both_clocks_are_named(s3_root: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine whose clock is wrong learns it from the store's refusal, for each kind of request, and may be run again."""
    monkeypatch.setenv("FIRSTSIGHT_S3_RETRY_SECONDS", "0.1")
    utcnow, uri = minio.api.time.utcnow, join(s3_root, "x")
    monkeypatch.setattr(minio.api.time, "utcnow", lambda: utcnow().replace(year=utcnow().year + 1))
    for work in (lambda store: store.get(uri), lambda store: store.head(uri), lambda store: store.put_stream(uri, io.BytesIO(b"x"))):
        with pytest.raises(RunError, match=r"RequestTimeTooSkewed.*this machine's clock says \d{4}-.* UTC, the store's \d{4}-.* UTC"):
            work(new_store(uri))


def test_a_wait_longer_than_a_signature_holds(s3_root: str, proxy: FaultProxy) -> None:
    """Each try is signed again, so that a wait of an hour does not end in a refusal of its date."""
    uri, seen = join(s3_root, "x"), []
    write_bytes(uri, DATA)
    store = new_store(uri)
    build = store._client._build_headers

    def spy(*arguments: Any, **rest: Any) -> Any:
        headers, date = build(*arguments, **rest)
        seen.append(date)
        return headers, date

    store._client._build_headers = spy  # type: ignore[method-assign]
    proxy.faults = [Status(503), Status(503)]
    assert store.get(uri) == DATA
    assert len(seen) == 3
    assert len(set(seen)) == 3
    assert time.time() - seen[-1].timestamp() < 60
