"""What an S3 store is believed: bytes that its ETags prove, answers that a store gives, errors by their code."""

import io
import random
import time
from collections.abc import Callable, Iterator
from typing import Any

import minio.api
import pytest
from minio import Minio

from tests.fault_proxy import FaultProxy, Status, fault_proxy
from tests.loopback import Handler, serving
from tests.servers import S3Server
from trainer.errors import Corrupt, InputError, RunError
from trainer.storage import join, read_bytes, write_bytes
from trainer.storage.s3 import PART_BYTES, S3Store
from trainer.storage.s3_settings import settings_from_environment

DATA = random.Random(0).randbytes(70_001)
Headers = dict[str, str]


@pytest.fixture
def proxy(s3_root: str, s3_server: S3Server, monkeypatch: pytest.MonkeyPatch) -> Iterator[FaultProxy]:
    """A proxy on the way to the store that changes its answers."""
    with fault_proxy(s3_server.endpoint) as proxy:
        monkeypatch.setenv("AWS_ENDPOINT_URL", proxy.endpoint)
        monkeypatch.setenv("FIRSTSIGHT_S3_RETRY_SECONDS", "20")
        yield proxy


def new_store(uri: str) -> S3Store:
    """A store that never had an answer."""
    return S3Store(settings_from_environment(uri))


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
    with pytest.raises(RunError, match=f"^{uri}: .*(holds|received) other bytes than were sent"):
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


class Portal(Handler):
    """Says 200 and the same page to everything."""

    headers_of_page: tuple[tuple[str, str], ...] = (("content-type", "text/html"),)
    page = b"<html><title>Hotel\r\n Wi-Fi</title>Please log in</html>"

    def do_GET(self) -> None:
        """Any request."""
        self.rfile.read(int(self.headers.get("content-length", "0")))
        self.send_response(200)
        for name, value in self.headers_of_page:
            self.send_header(name, value)
        self.send_header("content-length", str(len(self.page)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(self.page)

    do_PUT = do_POST = do_HEAD = do_DELETE = do_GET


@pytest.fixture(params=["page", "static file", "plain", "empty"])
def portal(request: pytest.FixtureRequest, s3_root: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """The endpoint of something that answers 200 and is no store."""
    kinds: dict[str, dict[str, object]] = {
        "page": {},
        "static file": {
            "headers_of_page": (("content-type", "text/html"), ("etag", '"65f-2aa"'), ("last-modified", "Mon, 02 Nov 2026 00:00:00 GMT"))
        },
        "plain": {"headers_of_page": (("content-type", "text/plain"),), "page": b"ok"},
        "empty": {"headers_of_page": (), "page": b""},
    }
    monkeypatch.setenv("FIRSTSIGHT_S3_RETRY_SECONDS", "5")
    with serving(type("Page", (Portal,), kinds[request.param])) as server:
        endpoint = f"http://127.0.0.1:{server.server_port}"
        monkeypatch.setenv("AWS_ENDPOINT_URL", endpoint)
        yield endpoint


def test_what_is_no_store_is_not_believed(portal: str, s3_root: str) -> None:
    """A login page, a web server or a health check in the store's place: each kind of request says so, with what it heard."""
    uri = join(s3_root, "x")
    works: list[Callable[[S3Store], object]] = [
        lambda store: store.get(uri),
        lambda store: store.get_range(uri, 0, 10),
        lambda store: store.put_stream(uri, io.BytesIO(b"x")),
        lambda store: store.put_stream(uri, io.BytesIO(bytes(PART_BYTES + 5))),
        lambda store: store.delete(uri),
        lambda store: store.head(uri),
        lambda store: list(store.list(s3_root)),
        lambda store: store.holds(s3_root),
        lambda store: store.create(uri, b"x"),
        lambda store: store.sweep(s3_root),
    ]
    for work in works:
        with pytest.raises(InputError) as raised:
            work(new_store(uri))
        message = str(raised.value)
        assert portal in message
        assert message.isprintable()
        assert "200" in message


PASSING_4XX = [
    (400, "RequestTimeout"), (403, "RequestTimeTooSkewed"), (409, "OperationAborted"), (409, "SomethingElse"), (400, "BadDigest"),
    (400, "IncompleteBody"), (400, "SlowDown"), (400, "InternalError"), (403, "Throttling"),
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
