"""Fetching as a good citizen: bounded, named, backing off, and never led astray."""

import socket
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest

from tests.servers import free_ports
from tests.staging.remote.web import Web, web_server
from trainer.staging.remote.http import FetchError, HttpSettings, OutageError, PoliteClient


@pytest.fixture
def web() -> Iterator[Web]:
    """A small web."""
    with web_server() as web:
        yield web


@pytest.fixture
def client() -> Iterator[PoliteClient]:
    """A client with short limits."""
    client = PoliteClient(
        HttpSettings(
            contact="mailto:me@example.org",
            per_host=3,
            connect_seconds=1,
            read_seconds=0.5,
            total_seconds=1.5,
            max_bytes=100_000,
            backoff_seconds=0.01,
        )
    )
    yield client
    client.close()


def cause(client: PoliteClient, url: str) -> str:
    """Why a URL gives nothing."""
    with pytest.raises(FetchError) as raised:
        client.get(url)
    return raised.value.cause


def test_bytes_and_name(web: Web, client: PoliteClient) -> None:
    """The bytes come back, and the server was told who asks."""
    web.pages["/a"] = b"x" * 70_000
    assert client.get(f"{web.url}/a") == b"x" * 70_000
    assert web.agents == {"firstsight/0.1 (image fetcher; +mailto:me@example.org)"}


@pytest.mark.parametrize("status", [400, 401, 403, 404, 410, 451])
def test_what_stays_is_asked_once(web: Web, client: PoliteClient, status: int) -> None:
    """404 and 410 and their like are told apart, and never asked for again."""
    web.pages["/a"] = lambda count: (status, {}, b"")
    assert cause(client, f"{web.url}/a") == f"http {status}"
    assert web.asked["/a"] == 1


@pytest.mark.parametrize("status", [408, 429, 500, 502, 503, 504])
def test_what_passes_is_asked_again(web: Web, client: PoliteClient, status: int) -> None:
    """Errors that pass are waited out, and named where they do not pass."""
    web.pages["/a"] = lambda count: (status, {}, b"busy") if count < 4 else (200, {}, b"x")
    assert client.get(f"{web.url}/a") == b"x"
    web.pages["/b"] = lambda count: (status, {}, b"busy")
    assert cause(client, f"{web.url}/b") == f"http {status}"
    assert web.asked["/b"] == 4


def test_retry_after_is_obeyed(web: Web, client: PoliteClient) -> None:
    """A host that asks for a pause gets it, from all who ask it."""
    web.pages["/a"] = lambda count: (429, {"retry-after": "1"}, b"") if count == 1 else (200, {}, b"x")
    web.pages["/b"] = b"y"
    start = time.monotonic()
    assert client.get(f"{web.url}/a") == b"x"
    assert time.monotonic() - start > 0.9


def test_host_is_not_overrun(web: Web, client: PoliteClient) -> None:
    """No more than `per_host` requests are at one host, however many threads ask."""
    web.delay = 0.05
    web.pages |= {f"/{number}": b"x" for number in range(30)}
    with ThreadPoolExecutor(12) as pool:
        assert list(pool.map(client.get, (f"{web.url}/{number}" for number in range(30)))) == [b"x"] * 30
    assert 2 <= web.most_at_once <= 3


def test_truncated_and_slow(web: Web, client: PoliteClient) -> None:
    """A body that ends early is no body; one that does not come is a time-out, and so is one that drips."""
    web.pages["/short"] = b"x" * 1000
    web.cut["/short"] = 500
    assert cause(client, f"{web.url}/short") == "cut short"
    assert web.asked["/short"] == 4
    web.delay = 0.8
    assert cause(client, f"{web.url}/short") == "timeout"


def test_large_answers_are_refused(web: Web, client: PoliteClient) -> None:
    """More bytes than allowed are refused, announced or not."""
    web.pages["/large"] = b"x" * 100_001
    assert cause(client, f"{web.url}/large") == "too many bytes"
    assert web.asked["/large"] == 1


def test_large_error_pages_are_not_read(web: Web, client: PoliteClient) -> None:
    """The body of an error is not fetched where it is large."""
    web.pages["/a"] = lambda count: (404, {"content-length": str(10 << 30)}, b"x")
    assert cause(client, f"{web.url}/a") == "http 404"


def test_redirects(web: Web, client: PoliteClient) -> None:
    """Redirects are followed on the web, and nowhere else."""
    web.pages["/a"] = lambda count: (302, {"location": "/b"}, b"")
    web.pages["/b"] = lambda count: (301, {"location": f"{web.url}/c"}, b"moved")
    web.pages["/c"] = b"x"
    assert client.get(f"{web.url}/a") == b"x"
    for target in ("file:///etc/passwd", "ftp://127.0.0.1/x", "//", "gopher:x", "/loop"):
        web.pages["/loop"] = lambda count, target=target: (302, {"location": target}, b"")
        assert cause(client, f"{web.url}/loop") in ("bad redirect", "bad URL")


@pytest.mark.parametrize("url", ["file:///etc/passwd", "s3://b/x", "http://", "x.jpg", "", "http://[::1", "http://a b/"])
def test_what_is_no_url(client: PoliteClient, url: str) -> None:
    """A list may hold anything; only web addresses are asked."""
    assert cause(client, url) in ("bad URL", "dns")


def test_connect_and_dns_are_told_from_404(client: PoliteClient) -> None:
    """A closed port and an unknown host have causes of their own; a host that keeps failing is not asked any more."""
    url = f"http://127.0.0.1:{free_ports(1)[0]}/x"
    assert cause(client, url) == "connect"
    assert cause(client, url) == "connect"
    with pytest.raises(FetchError, match="its host failed 8 times in a row"):
        client.get(url)
    assert cause(client, "http://no-such-host.invalid/x") == "dns"


def test_outage_ends_the_slice(client: PoliteClient) -> None:
    """When nothing answers any more, it is not the URLs' fault."""
    url = f"http://127.0.0.1:{free_ports(1)[0]}/x"
    for _ in range(99):
        assert cause(client, url) == "connect"
    with pytest.raises(OutageError, match=r"100 URLs in a row failed \(connect\).*run the same command again"):
        client.get(url)


def test_connections_are_kept(web: Web, client: PoliteClient, monkeypatch: pytest.MonkeyPatch) -> None:
    """One connection serves many requests, errors among them."""
    web.pages["/a"] = b"x"
    made = []
    connect = socket.create_connection
    monkeypatch.setattr("urllib3.util.connection.create_connection", lambda *a, **k: made.append(1) or connect(a[0], timeout=2))
    for _ in range(5):
        assert client.get(f"{web.url}/a") == b"x"
        assert cause(client, f"{web.url}/none") == "http 404"
    assert len(made) <= 1
