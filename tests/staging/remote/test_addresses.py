"""Nothing is fetched from an address inside, however it is spelled, named or reached; one setting opens ranges."""

import contextlib
import json
import socket
import threading
import types
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.staging.conftest import picture
from tests.staging.remote.sources import write_yfcc
from tests.staging.remote.web import Web, web_server
from trainer.__main__ import main
from trainer.errors import InputError, RunError
from trainer.staging.remote import addresses
from trainer.staging.remote.addresses import PRIVATE_VARIABLE, PrivateAddressError, Reachable, check_peer
from trainer.staging.remote.download import download
from trainer.staging.remote.http import FetchError, HttpSettings, PoliteClient

SPELLINGS = [
    "127.0.0.1", "127.1", "127.0.1", "2130706433", "0x7f.0.0.1", "0x7f000001", "0177.0.0.1", "0", "0.0.0.0", "127.0.0.1.", "LOCALHOST",
    "localhost", "[::ffff:127.0.0.1]", "[::ffff:7f00:1]", "[0:0:0:0:0:ffff:127.0.0.1]", "[::127.0.0.1]", "[64:ff9b::127.0.0.1]",
    "[64:ff9b:1::127.0.0.1]", "[2002:7f00:1::]", "[::1]", "[::]", "127.255.255.254",
]  # fmt: skip
"""Each of which names this machine to some resolver."""


class Listener:
    """A server on every address of this machine that counts connections and says nothing."""

    def __init__(self) -> None:
        self._socket = socket.create_server(("", 0))
        self.port = self._socket.getsockname()[1]
        self.connections = 0
        self.received = b""
        self._thread = threading.Thread(target=self._accept)
        self._thread.start()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                connection, _ = self._socket.accept()
                self.connections += 1
                with connection:
                    connection.settimeout(20)
                    with contextlib.suppress(OSError):
                        self.received += connection.recv(1 << 16)

    def close(self) -> None:
        with contextlib.suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)
        self._socket.close()
        self._thread.join()


@pytest.fixture
def inside() -> Iterator[Listener]:
    """What must not be reached."""
    listener = Listener()
    yield listener
    listener.close()


@pytest.fixture
def closed(monkeypatch: pytest.MonkeyPatch) -> None:
    """The default: no range is open."""
    monkeypatch.delenv(PRIVATE_VARIABLE)


@pytest.fixture
def web() -> Iterator[Web]:
    """A server at 127.0.0.2, which stands for one on the Internet where that address alone is open."""
    with web_server("127.0.0.2") as web:
        yield web


@contextlib.contextmanager
def client() -> Iterator[PoliteClient]:
    """With short pauses."""
    client = PoliteClient(HttpSettings(tries=2, backoff_seconds=0.01, connect_seconds=20, read_seconds=20, total_seconds=20))
    try:
        yield client
    finally:
        client.close()


def refused(url: str) -> str:
    """The cause for which a URL gives nothing."""
    with client() as asking, pytest.raises(FetchError) as raised:
        asking.get(url)
    assert "\n" not in str(raised.value)
    return raised.value.cause


@pytest.mark.usefixtures("closed")
@pytest.mark.parametrize("host", SPELLINGS)
def test_no_spelling_leads_inside(host: str, inside: Listener, tmp_path: Path) -> None:
    """Not even a connection is made: whether a port inside is open stays unknown."""
    for scheme in ("http", "https"):
        assert refused(f"{scheme}://{host}:{inside.port}/x.png") in ("private address", "dns")  # a resolver may not know a spelling
    with pytest.raises((InputError, RunError), match=r"private address|NameResolution"):
        download(f"http://{host}:{inside.port}/list.csv", tmp_path / "list.csv", retry_seconds=0)
    assert not inside.connections
    assert not list(tmp_path.iterdir())


def test_the_setting_opens_a_range(monkeypatch: pytest.MonkeyPatch) -> None:
    """The positive control: the same spellings arrive where the range is open, and only there."""
    with web_server() as web:
        web.pages["/x"] = b"x"
        port = web.url.rpartition(":")[2]
        for host in ("127.0.0.1", "127.1", "2130706433", "0x7f.0.0.1", "[::ffff:127.0.0.1]"):
            with client() as asking:
                assert asking.get(f"http://{host}:{port}/x") == b"x"
        monkeypatch.setenv(PRIVATE_VARIABLE, "10.0.0.0/8, 127.0.0.2/32")
        assert refused(f"{web.url}/x") == "private address"
        assert web.asked["/x"] == 5


@pytest.mark.parametrize("host", SPELLINGS)
def test_no_redirect_leads_inside(host: str, web: Web, inside: Listener, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """At the first hop or the third, whatever the public server answers with."""
    monkeypatch.setenv(PRIVATE_VARIABLE, "127.0.0.2/32")
    web.pages["/1"] = lambda count: (302, {"location": "/2"}, b"")
    web.pages["/2"] = lambda count: (307, {"location": f"{web.url}/3"}, b"")
    web.pages["/3"] = lambda count: (301, {"location": f"http://{host}:{inside.port}/latest/meta-data"}, b"")
    assert refused(f"{web.url}/1") in ("private address", "dns")
    assert web.asked["/3"] == 1
    with pytest.raises((InputError, RunError), match=r"private address|NameResolution"):
        download(f"{web.url}/1", tmp_path / "list.csv", retry_seconds=0)
    assert not inside.connections


def resolver(monkeypatch: pytest.MonkeyPatch, *answers: list[str]) -> list[str]:
    """Make the guard's resolver give one answer after another, the last one for ever; the names it was asked for."""
    asked: list[str] = []

    def getaddrinfo(host: str, port: int, **_: Any) -> list[tuple[Any, ...]]:
        asked.append(host)
        found = answers[min(len(asked), len(answers)) - 1]
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (address, port)) for address in found]

    fake = types.SimpleNamespace(getaddrinfo=getaddrinfo, SOCK_STREAM=socket.SOCK_STREAM)
    monkeypatch.setattr(addresses, "socket", fake)
    return asked


def test_a_name_that_rebinds_is_refused_at_its_second_look(web: Web, inside: Listener, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each connection asks the resolver once, and goes to the address that was judged."""
    monkeypatch.setenv(PRIVATE_VARIABLE, "127.0.0.2/32")
    port = web.url.rpartition(":")[2]
    web.pages["/x"] = lambda count: (200, {"connection": "close"}, b"x")
    asked = resolver(monkeypatch, ["127.0.0.2"], ["127.0.0.1"])
    with client() as asking:
        assert asking.get(f"http://pictures.example:{port}/x") == b"x"
        assert asked == ["pictures.example"]
        with pytest.raises(FetchError, match="private address"):
            asking.get(f"http://pictures.example:{inside.port}/x")
    assert not inside.connections


def test_only_the_addresses_that_are_allowed_are_tried(web: Web, inside: Listener, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a name with several, the others are passed over, whatever their order."""
    monkeypatch.setenv(PRIVATE_VARIABLE, "127.0.0.2/32")
    web.pages["/x"] = b"x"
    resolver(monkeypatch, ["127.0.0.1", "10.0.0.1", "127.0.0.2"])
    with client() as asking:
        assert asking.get(f"http://pictures.example:{web.url.rpartition(':')[2]}/x") == b"x"
    assert not inside.connections


def test_the_peer_of_the_connected_socket_is_judged_too(inside: Listener, monkeypatch: pytest.MonkeyPatch) -> None:
    """Should the address that was judged lead elsewhere, nothing is sent there."""
    monkeypatch.setenv(PRIVATE_VARIABLE, "")
    monkeypatch.setattr("trainer.staging.remote.patience.permitted", lambda host, port, reachable: ["127.0.0.1"])
    assert refused(f"http://pictures.example:{inside.port}/x") == "private address"
    with socket.create_connection(("127.0.0.1", inside.port)) as connection:
        with pytest.raises(PrivateAddressError):
            check_peer(connection, Reachable())
        assert connection.fileno() == -1
    assert not inside.received


INSIDE = [
    "127.0.0.1", "127.9.9.9", "0.0.0.0", "0.1.2.3", "10.0.0.1", "172.16.0.1", "172.31.255.255", "192.168.0.1", "169.254.0.1",
    "169.254.169.254", "100.64.0.1", "100.127.255.255", "100.100.100.200", "192.0.0.192", "168.63.129.16", "198.18.0.1", "192.0.2.1",
    "198.51.100.1", "203.0.113.1", "224.0.0.1", "239.255.255.255", "240.0.0.1", "255.255.255.255", "::", "::1", "::ffff:10.0.0.1",
    "::ffff:169.254.169.254", "::10.0.0.1", "64:ff9b::10.0.0.1", "64:ff9b::169.254.169.254", "64:ff9b:1::8.8.8.8", "2002:a00:1::",
    "2002:a9fe:a9fe::1", "2001:0:5db8:d822:0:0:f5ff:fffe", "fe80::1", "fe80::1%eth0", "fec0::1", "fc00::1", "fd00:ec2::254",
    "fd20:ce::254", "ff02::1", "ff0e::1", "2001:db8::1", "5f00::1", "100::1",
]  # fmt: skip
OUTSIDE = ["8.8.8.8", "93.184.216.34", "2606:4700::1111", "::ffff:8.8.8.8", "64:ff9b::8.8.8.8", "2002:808:808::1"]


@pytest.mark.parametrize("address", INSIDE)
def test_addresses_inside(address: str) -> None:
    """Loopback, private, shared, link-local, multicast, reserved and documentation ranges, and IPv6 forms that lead to them."""
    assert not Reachable().allows(address)


@pytest.mark.parametrize("address", OUTSIDE)
def test_addresses_outside(address: str) -> None:
    """The public Internet, also through the translators of a network that has IPv6 alone."""
    assert Reachable().allows(address)


@pytest.mark.parametrize(
    "address", ["169.254.169.254", "::ffff:169.254.169.254", "64:ff9b::169.254.169.254", "fd00:ec2::254", "168.63.129.16"]
)
def test_no_range_opens_what_hands_out_credentials(address: str) -> None:
    """Not even all of them."""
    assert not Reachable.parse(["0.0.0.0/0", "::/0"], "x").allows(address)


def test_a_range_opens_what_lies_in_it() -> None:
    """In each form in which a socket may name it."""
    some = Reachable.parse(["10.1.0.0/16", " fd00::/8 ", ""], "x")
    assert all(some.allows(address) for address in ("10.1.2.3", "::ffff:10.1.2.3", "fd00::1", "8.8.8.8"))
    assert not any(some.allows(address) for address in ("10.2.0.1", "127.0.0.1", "fe80::1"))


@pytest.mark.parametrize("text", ["10.0.0.0/33", "10.0.0.1/8", "all", "10.0.0.0-10.0.0.9", "127.1", "*", "::/129"])
def test_a_setting_that_is_no_range_is_refused(text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """By name, before anything is fetched."""
    monkeypatch.setenv(PRIVATE_VARIABLE, text)
    with pytest.raises(InputError, match=f"{PRIVATE_VARIABLE} must be CIDR blocks"):
        PoliteClient(HttpSettings())


def stage(*arguments: str) -> int:
    """A command of staging, in this process."""
    return main(["stage", *arguments])


@pytest.mark.usefixtures("closed")
def test_rows_that_name_hosts_inside_are_rejects(inside: Listener, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Each is counted by its cause and listed; the other rows would go on."""
    rows = [f"http://{host}:{inside.port}/{number}.png,picture {number}" for number, host in enumerate(SPELLINGS)]
    (tmp_path / "list.csv").write_text("\n".join(["url,caption", *rows, ""]))
    root = str(tmp_path / "root")
    assert stage("plan", "urls", "--root", root, "--list", str(tmp_path / "list.csv"), "--recipe", "smoke") == 0
    folder = json.loads(capsys.readouterr().out)["uri"]
    assert stage("fetch", "--plan", folder, "--tries", "1") == 0
    listed = [json.loads(line) for path in Path(folder).rglob("*.jsonl") for line in path.read_text().splitlines()]
    causes = {reject["cause"] for reject in listed}
    assert len(listed) == len(SPELLINGS)
    assert causes <= {"private address", "dns"}
    assert "private address" in causes
    assert not inside.connections


@pytest.mark.usefixtures("closed")
@pytest.mark.parametrize("host", ["127.1", "2130706433", "localhost", "[::ffff:7f00:1]", "[64:ff9b::7f00:1]"])
def test_no_other_uri_of_a_source_leads_inside(host: str, inside: Listener, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Lists, tables, metadata, ids, zips, folders of chunks, and the bases below which rows lie."""
    place, root = f"http://{host}:{inside.port}", str(tmp_path / "root")
    (tmp_path / "list.tsv").write_text("1\tabc\tdef\n")
    there = str(tmp_path / "list.tsv")
    commands = [
        ("plan", "urls", "--root", root, "--list", f"{place}/list.csv"),
        ("plan", "yfcc15m-openai", "--root", root, "--list", f"{place}/list.tsv", "--metadata", there, "--images", place),
        ("plan", "yfcc15m-openai", "--root", root, "--list", there, "--metadata", f"{place}/meta.tsv", "--images", place),
        ("plan", "yfcc15m-slip", "--root", root, "--list", there, "--metadata", there, "--ids", f"{place}/ids.npy", "--images", place),
        ("plan", "nights", "--root", root, "--list", f"{place}/nights.zip"),
        ("plan", "nights", "--root", root, "--list", place),
        ("plan", "nights", "--root", root, "--list", str(tmp_path), "--table", f"{place}/data.csv"),
        ("download", "--source", f"{place}/nights.zip", "--folder", str(tmp_path / "nights")),
        ("download", "--source", str(tmp_path), "--table", f"{place}/data.csv", "--folder", str(tmp_path / "nights")),
    ]
    for command in commands:
        assert stage(*command) == 2, command
        said = capsys.readouterr().err
        assert said.count("\n") == 1, said
    assert not inside.connections


@pytest.mark.usefixtures("closed")
@pytest.mark.parametrize("base", ["plan", "fetch"])
def test_no_base_leads_inside(base: str, inside: Listener, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """That of the plan, and that of a mirror at fetching."""
    files, place = write_yfcc(tmp_path), f"http://2130706433:{inside.port}/base"
    images = place if base == "plan" else "http://pictures.example/base"
    lists = ["--list", files["list"], "--metadata", files["metadata"], "--images", images, "--captions", "slip", "--recipe", "smoke"]
    assert stage("plan", "yfcc15m-openai", "--root", str(tmp_path / "root"), *lists) == 0
    folder = json.loads(capsys.readouterr().out)["uri"]
    assert stage("fetch", "--plan", folder, "--tries", "1", *(["--images", place] if base == "fetch" else [])) == 0
    listed = [json.loads(line) for path in Path(folder).glob("rejects/slice*") for line in path.read_text().splitlines()]
    assert {reject["cause"] for reject in listed} == {"private address"}
    assert not inside.connections


def test_nothing_of_one_host_is_told_to_another() -> None:
    """A redirect to another host carries neither credentials nor cookies nor where it came from; a user in a URL is refused."""
    with web_server() as first, web_server("127.0.0.2") as second:
        first.pages["/x?token=secret"] = lambda count: (302, {"location": f"{second.url}/y", "set-cookie": "session=secret"}, b"")
        second.pages["/y"] = picture(1)
        with client() as asking:
            assert asking.get(f"{first.url}/x?token=secret") == picture(1)
        assert second.headers["/y"].keys() == {"host", "user-agent", "accept", "accept-encoding"}
        for target in (f"http://user:secret@{second.url[7:]}/y", f"http://{second.url[7:]}\\@x/y"):
            first.pages["/z"] = lambda count, target=target: (302, {"location": target}, b"")
            assert refused(f"{first.url}/z") == "bad redirect"
            assert refused(target) == "bad URL"


def test_proxies_of_the_environment_are_not_used(inside: Listener, monkeypatch: pytest.MonkeyPatch) -> None:
    """Behind one the address that is reached is not known, and the guard would judge the proxy's."""
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.setenv(name, f"http://127.0.0.1:{inside.port}")
    with web_server() as web, client() as asking:
        web.pages["/x"] = b"x"
        assert asking.get(f"{web.url}/x") == b"x"
    assert not inside.connections
