"""What the S3 store does when the store or the way to it fails: it waits out what passes, and says the rest in one line."""

import io
import random
import threading
import time

import pytest

from tests.fault_proxy import CutAfter, Fault, FaultProxy, LoseAnswer, Refuse, ResetAfter, Slow, Stall, Status
from tests.servers import S3Server, free_ports
from trainer.errors import InputError, RunError
from trainer.storage import exists, join, open_store, read_bytes, write_bytes
from trainer.storage.s3 import PART_BYTES

DATA = random.Random(0).randbytes((2 << 20) + 777)


@pytest.fixture
def proxy(proxy: FaultProxy, monkeypatch: pytest.MonkeyPatch) -> FaultProxy:
    """The proxy, and a client for which a connection that is silent for a second is broken."""
    monkeypatch.setenv("FIRSTSIGHT_S3_TIMEOUT_SECONDS", "1")
    return proxy


@pytest.fixture
def unhurried(proxy: FaultProxy, monkeypatch: pytest.MonkeyPatch) -> None:
    """No answer is late for the client: a busy machine may take seconds over a large part."""
    monkeypatch.setenv("FIRSTSIGHT_S3_TIMEOUT_SECONDS", "60")


def names(faults: list[Fault]) -> str:
    """What a test's parameters are called."""
    return "-".join(type(fault).__name__ + str(getattr(fault, "status", "")) for fault in faults)


PASSING: list[list[Fault]] = [
    [Status(503), Status(500, "InternalError"), Status(504)],
    [Status(429, "TooManyRequests", headers=(("retry-after", "1"),))],
    [Status(503, body=b"<html>nginx: upstream gone</html>", headers=(("content-type", "text/html"),))],
    [Refuse(), Refuse()],
    [Stall(1.1)],
    [LoseAnswer()],
]


@pytest.mark.parametrize("faults", PASSING, ids=names)
def test_reads_wait_out_what_passes(s3_root: str, proxy: FaultProxy, faults: list[Fault]) -> None:
    """Errors of the server, lost and stalled connections cost time and nothing else."""
    uri = join(s3_root, "x")
    write_bytes(uri, DATA)
    proxy.faults += faults
    assert read_bytes(uri) == DATA
    assert proxy.faults == []


@pytest.mark.parametrize("faults", PASSING, ids=names)
def test_writes_wait_out_what_passes(s3_root: str, proxy: FaultProxy, faults: list[Fault]) -> None:
    """A write arrives, once, whatever happened to its first tries."""
    uri = join(s3_root, "x")
    proxy.faults += faults
    write_bytes(uri, DATA)
    assert proxy.faults == []
    assert read_bytes(uri) == DATA


@pytest.mark.parametrize("faults", [[Status(503)], [Refuse()]], ids=names)
def test_the_rest_waits_too(s3_root: str, proxy: FaultProxy, faults: list[Fault]) -> None:
    """Listing, asking and deleting retry like reading and writing."""
    store, uri = open_store(s3_root), join(s3_root, "d", "x")
    write_bytes(uri, b"x")
    for work in (lambda: exists(uri), lambda: len(list(store.list(join(s3_root, "d")))) == 1, lambda: store.delete(uri) is None):
        proxy.faults += faults
        assert work()
        assert proxy.faults == []


@pytest.mark.parametrize("fault", [ResetAfter, CutAfter])
@pytest.mark.parametrize("after", [0, 1, 1 << 20, len(DATA) - 1])
def test_broken_bodies_are_taken_up_where_they_broke(s3_root: str, proxy: FaultProxy, fault: type[Fault], after: int) -> None:
    """A body that ends early, by reset or by a plain close, is completed by a range, never returned short."""
    uri = join(s3_root, "x")
    write_bytes(uri, DATA)
    proxy.faults += [fault(after), fault(after // 2)]  # type: ignore[call-arg]
    assert read_bytes(uri) == DATA
    proxy.faults += [fault(after)]  # type: ignore[call-arg]
    assert open_store(uri).get_range(uri, 100, len(DATA) - 100) == DATA[100:]


def test_replaced_while_read(s3_root: str, proxy: FaultProxy) -> None:
    """Two versions of an object are never glued together."""
    uri = join(s3_root, "x")
    write_bytes(uri, DATA)
    proxy.faults += [CutAfter((1 << 20) + 1)]
    pieces = open_store(uri).stream(uri)
    next(pieces)
    write_bytes(uri, DATA[::-1])
    with pytest.raises(RunError, match=r"x: the object was replaced while it was read"):
        list(pieces)


@pytest.mark.usefixtures("unhurried")
def test_slow_answers_are_answers(s3_root: str, proxy: FaultProxy) -> None:
    """A slow body is read to its end, as long as bytes keep coming."""
    uri = join(s3_root, "x")
    write_bytes(uri, DATA[:400_000])
    proxy.faults += [Slow(40_000, 0.15)]
    assert read_bytes(uri) == DATA[:400_000]
    assert len([line for line in proxy.log if line[0] == "GET"]) == 1


@pytest.mark.usefixtures("unhurried")
@pytest.mark.parametrize(
    ("applies", "fault"),
    [
        (lambda method, path: "partNumber=2" in path, Status(503)),
        (lambda method, path: "partNumber=1" in path, LoseAnswer()),
        (lambda method, path: method == "POST" and path.endswith("?uploads="), Refuse()),
        (lambda method, path: method == "POST" and "uploadId" in path, Status(500)),
        (lambda method, path: method == "POST" and "uploadId" in path, LoseAnswer()),
    ],
)
def test_multipart_survives(s3_root: str, proxy: FaultProxy, applies: object, fault: Fault) -> None:
    """A fault in any phase of a multipart upload is waited out, the lost answer to its completion included."""
    uri, data = join(s3_root, "x"), DATA * 10
    assert len(data) > PART_BYTES
    proxy.applies, proxy.faults = applies, [fault]  # type: ignore[assignment]
    open_store(uri).put_stream(uri, io.BytesIO(data))
    assert proxy.faults == []
    assert read_bytes(uri) == data


@pytest.mark.usefixtures("unhurried")
def test_failed_multipart_leaves_no_parts(s3_root: str, proxy: FaultProxy, monkeypatch: pytest.MonkeyPatch) -> None:
    """An upload that cannot be finished is an error naming the URI, and is taken back."""
    uri = join(s3_root, "x")
    write_bytes(uri, b"old")
    monkeypatch.setenv("FIRSTSIGHT_S3_RETRY_SECONDS", "0.1")
    proxy.applies, proxy.always = lambda method, path: "partNumber=2" in path, Status(503)
    with pytest.raises(RunError, match=rf"{uri}: .*503 SlowDown"):
        open_store(uri).put_stream(uri, io.BytesIO(DATA * 20))
    assert any(method == "DELETE" and "uploadId" in path for method, path in proxy.log)
    assert read_bytes(uri) == b"old"


@pytest.mark.parametrize(
    ("fault", "cause"),
    [
        (Status(503), r"answers 503 SlowDown \(given up after \d+ tries in \d+ s\)"),
        (Refuse(), "cannot be reached: .*(reset|closed)"),
        (Stall(1.1), "cannot be reached: .*(timed out|[Tt]imeout)"),
        (CutAfter(0), "reading stopped at byte 0"),
    ],
)
def test_outage_beyond_patience(s3_root: str, proxy: FaultProxy, monkeypatch: pytest.MonkeyPatch, fault: Fault, cause: str) -> None:
    """A store that stays away ends the command with one line that names URI and cause."""
    uri = join(s3_root, "x")
    write_bytes(uri, DATA)
    monkeypatch.setenv("FIRSTSIGHT_S3_RETRY_SECONDS", "0.1")
    proxy.always = fault
    with pytest.raises(RunError, match=cause) as raised:
        read_bytes(uri)
    assert str(raised.value).startswith(f"{uri}: ")
    assert "\n" not in str(raised.value)
    assert "0x" not in str(raised.value)


def test_outage_that_ends(s3_root: str, s3_server: S3Server, proxy: FaultProxy) -> None:
    """An outage shorter than the patience is survived by readers and writers at work."""
    uri = join(s3_root, "x")
    write_bytes(uri, DATA)
    proxy.always = Refuse()
    start = time.monotonic()
    threading.Timer(0.5, lambda: setattr(proxy, "always", None)).start()
    assert read_bytes(uri) == DATA
    assert time.monotonic() - start > 0.5


@pytest.mark.parametrize(
    ("fault", "rule"),
    [
        (Status(403, "AccessDenied"), "AccessDenied.*check the credentials"),
        (Status(403, "SignatureDoesNotMatch"), "SignatureDoesNotMatch.*check the credentials"),
        (Status(400, "AuthorizationHeaderMalformed"), "check AWS_REGION"),
        (Status(301, "PermanentRedirect", headers=(("location", "file:///etc/passwd"),)), "check AWS_REGION"),
        (Status(404, body=b"<html>not found</html>", headers=(("content-type", "text/html"),)), "not an S3 store"),
        (Status(200, body=b"<html>welcome</html>", headers=(("content-type", "text/html"),)), "not an S3 store"),
        (Status(501, "NotImplemented"), "NotImplemented"),
    ],
)
def test_what_waiting_cannot_mend(s3_root: str, proxy: FaultProxy, fault: Fault, rule: str) -> None:
    """A refusal is said at once, in one line; what no store says is asked once more, since one flipped bit may be the cause."""
    uri = join(s3_root, "x")
    proxy.always = fault
    with pytest.raises((InputError, RunError), match=rule) as raised:
        open_store(uri).get_range(uri, 0, 1000)
    assert str(raised.value).startswith(f"{uri}: ")
    assert len(proxy.log) <= (2 if "S3" in rule else 1)


def test_wrong_key(s3_root: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The server's own refusal of a wrong secret is an input error, for every kind of request."""
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "wrong")
    store, uri = open_store(s3_root), join(s3_root, "x")
    for work in (lambda: store.get(uri), lambda: store.head(uri), lambda: write_bytes(uri, b"x"), lambda: list(store.list(s3_root))):
        with pytest.raises(InputError, match="check the credentials"):
            work()


def test_missing_bucket(s3_root: str) -> None:
    """A missing bucket is an input error, not a missing object, for every kind of request."""
    root = "s3://no-such-bucket-here"
    store, uri = open_store(root), join(root, "x")
    for work in (
        lambda: store.get(uri),
        lambda: store.head(uri),
        lambda: write_bytes(uri, b"x"),
        lambda: list(store.list(join(root, "d"))),
    ):
        with pytest.raises(InputError, match=r"no such bucket|no bucket"):
            work()


def test_no_credentials(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without credentials the message says which variables are missing, and names the URI."""
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SHARED_CREDENTIALS_FILE"):
        monkeypatch.delenv(name, raising=False)
    with pytest.raises(InputError, match=r"s3://b/x: no S3 credentials: set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY"):
        read_bytes("s3://b/x")


def test_nobody_listens(s3_root: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A port where nothing listens is waited for, as a store may be starting, then named."""
    monkeypatch.setenv("FIRSTSIGHT_S3_RETRY_SECONDS", "0.1")
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{free_ports(1)[0]}")
    with pytest.raises(RunError, match=r"x: http://127\.0\.0\.1:\d+ cannot be reached: .*refused"):
        read_bytes(join(s3_root, "x"))


@pytest.mark.parametrize(
    ("variable", "value", "rule"),
    [
        ("AWS_ENDPOINT_URL", "http://no-such-host.invalid:1", "no such host"),
        ("AWS_ENDPOINT_URL", "127.0.0.1:9000", r"must be http\(s\)://host"),
        ("AWS_ENDPOINT_URL", "http://127.0.0.1:9000/minio", r"must be http\(s\)://host"),
        ("FIRSTSIGHT_S3_CA", "/nowhere/ca.pem", "/nowhere/ca.pem, which is not a file"),
        ("FIRSTSIGHT_S3_ADDRESSING", "host", "must be path or virtual"),
        ("FIRSTSIGHT_S3_RETRY_SECONDS", "soon", "must be seconds"),
    ],
)
def test_wrong_settings(s3_root: str, monkeypatch: pytest.MonkeyPatch, variable: str, value: str, rule: str) -> None:
    """A setting that cannot work is an input error at once, in one line."""
    monkeypatch.setenv(variable, value)
    with pytest.raises(InputError, match=rule):
        read_bytes(join(s3_root, "x"))


def test_https_to_a_plain_port(s3_root: str, s3_server: S3Server, monkeypatch: pytest.MonkeyPatch) -> None:
    """https:// to a server that speaks plain HTTP is named as that."""
    monkeypatch.setenv("AWS_ENDPOINT_URL", s3_server.endpoint.replace("http://", "https://"))
    with pytest.raises(InputError, match="does not speak TLS"):
        read_bytes(join(s3_root, "x"))


@pytest.mark.parametrize("uri", ["s3://", "s3://bucket", "s3://bucket/", "s3:///key", "s3://Bad_Bucket!/x"])
def test_wrong_uris(s3_root: str, uri: str) -> None:
    """A URI that names no object is refused."""
    with pytest.raises(InputError):
        read_bytes(uri)
