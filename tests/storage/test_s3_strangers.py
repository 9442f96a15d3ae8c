"""Answers of what stands before an S3 store, or in its place: an ingress, a proxy, a login page. Nothing that they say is believed."""

import io
import random
from collections.abc import Callable, Iterator

import pytest

from tests.fault_proxy import FaultProxy, Status
from tests.loopback import Handler, serving
from tests.servers import new_store
from trainer.errors import InputError, RunError
from trainer.storage import join, write_bytes
from trainer.storage.s3 import PART_BYTES, S3Store

DATA = random.Random(0).randbytes(70_001)


BACKEND = Status(404, headers=(("content-type", "text/html"),), body=b"<html>default backend - 404</html>")


def test_a_404_of_something_before_the_store_is_waited_out(s3_root: str, proxy: FaultProxy, monkeypatch: pytest.MonkeyPatch) -> None:
    """An ingress whose store is being restarted says 404 to everything: no object is missing for that, and no bucket."""
    uri = join(s3_root, "x")
    write_bytes(uri, DATA)
    works: list[Callable[[S3Store], object]] = [
        lambda store: store.head(uri),
        lambda store: store.get(uri),
        lambda store: list(store.list(s3_root)),
        lambda store: store.delete(join(s3_root, "y")),
    ]
    for work in works:
        store = new_store(uri)
        store.head(uri)  # that the keys were accepted shows that the endpoint is a store's
        proxy.faults = [BACKEND] * 3
        assert work(store) not in (None, []) or work is works[-1]
        assert proxy.faults == []
    monkeypatch.setenv("FIRSTSIGHT_S3_RETRY_SECONDS", "0.5")
    store = new_store(uri)
    store.head(uri)
    proxy.always = BACKEND
    for work in works:
        with pytest.raises(RunError, match=r"404 .*given up after"):
            work(store)


def test_a_head_of_what_is_missing_is_believed_after_a_get(s3_root: str, proxy: FaultProxy) -> None:
    """A store whose answers to HEAD have no header of S3's is asked with GET, whose answer has a code."""
    drop = ("x-amz-", "server")
    proxy.rewrite = lambda method, path, headers, body: ({k: v for k, v in headers.items() if not k.startswith(drop)}, body)
    write_bytes(join(s3_root, "x"), DATA)
    assert new_store(s3_root).head(join(s3_root, "missing")) is None
    with pytest.raises(InputError, match="no such bucket"):
        new_store(s3_root).head("s3://no-such-bucket-anywhere/x")


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
