"""Keys, their file and the proxy on the way: what is wrong is named by variable or file, and no key is ever printed."""

import base64
import os
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
import urllib3

from tests.fault_proxy import FaultProxy, Status
from tests.loopback import Handler, serving
from tests.servers import S3Server
from trainer.errors import InputError, RunError
from trainer.storage import join, read_bytes, write_bytes
from trainer.storage.s3 import S3Store
from trainer.storage.s3_settings import bypasses_proxy, read_credentials, settings_from_environment

SECRET = "sEcReT/with+signs=%(x)s"


@pytest.mark.parametrize("name", ["AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN"])
@pytest.mark.parametrize("value", [f"{SECRET}\n", f"{SECRET}\r\n", f" {SECRET}", f"{SECRET}\x07x", f"{SECRET}é", f"{SECRET} x"])
def test_keys_that_no_header_takes(s3_root: str, monkeypatch: pytest.MonkeyPatch, name: str, value: str) -> None:
    """A key with a line break, a space or a control character is refused by its variable's name."""
    monkeypatch.setenv(name, value)
    with pytest.raises(InputError, match=f"{name} (contains|ends or begins with) a space, line break") as raised:
        read_bytes(join(s3_root, "x"))
    assert "sEcReT" not in str(raised.value)


@pytest.mark.parametrize("value", ["eu central", "eu-central-1\n", "eu/x"])
def test_a_region_that_is_none(s3_root: str, monkeypatch: pytest.MonkeyPatch, value: str) -> None:
    """It goes into the same header."""
    monkeypatch.setenv("AWS_REGION", value)
    with pytest.raises(InputError, match="AWS_REGION must be"):
        read_bytes(join(s3_root, "x"))


@pytest.mark.parametrize(
    "value", [f"http://user:{SECRET}@host:1", "http://[::1", "http://host:x", "http://host:0", "http://ho st:1", "ftp://h"]
)
def test_an_endpoint_that_is_none(s3_root: str, monkeypatch: pytest.MonkeyPatch, value: str) -> None:
    """Keys in its URL are not printed."""
    monkeypatch.setenv("AWS_ENDPOINT_URL", value)
    with pytest.raises(InputError, match="AWS_ENDPOINT_URL must be") as raised:
        read_bytes(join(s3_root, "x"))
    assert "sEcReT" not in str(raised.value)


GOOD = f"[default]\naws_access_key_id = AKIA\naws_secret_access_key = {SECRET}\n"


@pytest.mark.parametrize(
    "text",
    [
        GOOD.encode(),
        b"\xef\xbb\xbf" + GOOD.encode(),
        GOOD.replace("\n", "\r\n").encode(),
        f"# of the team\n[other]\nx = 1\n{GOOD}region = eu\n\n[third]\n".encode(),
        GOOD.replace(" = ", "=").upper().replace("DEFAULT", "default").replace(SECRET.upper(), SECRET).encode(),
    ],
)
def test_credentials_files(tmp_path: Path, text: bytes) -> None:
    """`%` is a letter; a byte order mark, Windows' line ends and other profiles do no harm."""
    (tmp_path / "credentials").write_bytes(text)
    found = read_credentials(str(tmp_path / "credentials"), "default")
    assert (found.access_key.upper(), found.secret_key, found.session_token) == ("AKIA", SECRET, None)


@pytest.mark.parametrize(
    ("text", "rule"),
    [
        (GOOD + "aws_secret_access_key = x\n", r"line 4: aws_secret_access_key appears twice in \[default\]"),
        (GOOD + GOOD, r"line 4: \[default\] appears twice"),
        (GOOD.replace("default", "other"), r"no profile \[default\] \(it has: \[other\]\); AWS_PROFILE names"),
        ("", r"no profile \[default\] \(it has: none\)"),
        (GOOD.replace(f"aws_secret_access_key = {SECRET}", SECRET[:6]), "line 3: neither .*profile.* nor name = value"),
        (GOOD.removeprefix("[default]\n"), "line 1: a line before the first"),
        (GOOD.replace("aws_access_key_id", "access_key"), r"\[default\] has no aws_access_key_id"),
        (GOOD.replace(SECRET, ""), r"\[default\] has no aws_secret_access_key"),
        (GOOD.replace(SECRET, SECRET + "\n  more"), r"aws_secret_access_key of \[default\] contains"),
        (GOOD.replace(SECRET, SECRET + "\0"), r"aws_secret_access_key of \[default\] contains"),
        (GOOD.encode("utf-16"), "not UTF-8 text at byte 0"),
        (GOOD.replace(SECRET, "\xe9").encode("latin-1"), "not UTF-8 text at byte"),
        (b"\0" * (2 << 20), "larger than 1 MiB"),
    ],
)
def test_wrong_credentials_files(s3_root: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str | bytes, rule: str) -> None:
    """Each is one line that names file and cause, for whatever is asked of the store."""
    file = tmp_path / "credentials"
    file.write_bytes(text if isinstance(text, bytes) else text.encode())
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(file))
    for work in (lambda: read_bytes(join(s3_root, "x")), lambda: write_bytes(join(s3_root, "x"), b"x")):
        with pytest.raises(InputError, match=rule) as raised:
            work()
        assert str(file) in str(raised.value)
        assert "sEcReT" not in str(raised.value)
        assert str(raised.value).isprintable()


def write_keys(file: Path, access_key: str, secret_key: str) -> None:
    """As a mounted Secret is replaced: at once, by another file."""
    new = file.with_name("new")
    new.write_text(f"[default]\naws_access_key_id={access_key}\naws_secret_access_key={secret_key}\n")
    os.replace(new, file)


@pytest.fixture
def rotating(proxy: FaultProxy, s3_server: S3Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[FaultProxy, Path]:
    """A proxy on the way to the store, and the file that the keys come from."""
    file = tmp_path / "credentials"
    write_keys(file, s3_server.access_key, s3_server.secret_key)
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(file))
    monkeypatch.setenv("FIRSTSIGHT_S3_RETRY_SECONDS", "60")
    return proxy, file


def test_rotated_keys(s3_root: str, s3_server: S3Server, rotating: tuple[FaultProxy, Path]) -> None:
    """Keys that the store drops before the file has the new ones are waited for, through a file that is missing or torn."""
    _, file = rotating
    uri = join(s3_root, "x")
    write_bytes(uri, b"x")
    write_keys(file, "old", "dropped")
    steps = [
        threading.Timer(0.1, file.unlink),
        threading.Timer(0.2, lambda: file.write_text("[default]\naws_access")),
        threading.Timer(0.4, lambda: write_keys(file, s3_server.access_key, s3_server.secret_key)),
    ]
    for step in steps:
        step.start()
    assert read_bytes(uri) == b"x"
    for step in steps:
        step.join()


@pytest.mark.parametrize("code", ["ExpiredToken", "InvalidToken", "TokenRefreshRequired"])
def test_expired_tokens(
    s3_root: str, s3_server: S3Server, rotating: tuple[FaultProxy, Path], monkeypatch: pytest.MonkeyPatch, code: str
) -> None:
    """They are waited for where a file may bring others, and end in exit 1; from the environment none can come."""
    proxy, _ = rotating
    uri = join(s3_root, "x")
    write_bytes(uri, b"x")
    proxy.faults = [Status(400, code), Status(403, code)]
    assert read_bytes(uri) == b"x"
    store = S3Store(settings_from_environment(uri))
    proxy.faults = [Status(400, code), Status(400, code)]  # the answer to HEAD has no code: the object is asked for
    assert store.head(uri) is not None
    monkeypatch.setenv("FIRSTSIGHT_S3_RETRY_SECONDS", "0.1")
    proxy.always = Status(400, code)
    with pytest.raises(RunError, match=f"{code}; waiting for new keys in .*credentials"):
        read_bytes(uri)
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", s3_server.access_key)
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", s3_server.secret_key)
    with pytest.raises(InputError, match=f"{code}.*check the credentials"):
        read_bytes(uri)


@pytest.mark.parametrize("code", ["InvalidAccessKeyId", "SignatureDoesNotMatch", "AccessDenied"])
def test_wrong_keys_in_a_file(s3_root: str, rotating: tuple[FaultProxy, Path], code: str) -> None:
    """Keys that were never accepted are wrong at once."""
    proxy, _ = rotating
    proxy.always = Status(403, code)
    with pytest.raises(InputError, match=f"{code}.*check the credentials"):
        S3Store(settings_from_environment(s3_root)).get(join(s3_root, "x"))
    assert len(proxy.log) == 1


@pytest.mark.parametrize(
    ("host", "port", "no_proxy", "bypasses"),
    [
        ("minio", 9000, "", False),
        ("minio", 9000, "*", True),
        ("minio.ml.svc", 9000, "ml.svc", True),
        ("minio.ml.svc", 9000, ".ml.svc, x", True),
        ("minio.ml.svc", 9000, "minio.ml.svc:9000", True),
        ("minio.ml.svc", 9000, "minio.ml.svc:9001", False),
        ("10.1.2.3", 80, "10.0.0.0/8", True),
        ("11.1.2.3", 80, "10.0.0.0/8,::1", False),
        ("10.1.2.3", 80, "10.1.2.3", True),
        ("::1", 80, "[::1]", True),
        ("fd00::7", 80, "x, fd00::/8", True),
        ("127.0.0.1", 80, "localhost,127.0.0.1", True),
        ("example.org", 443, "10.0.0.0/8,ample.org", False),
        ("minio", 9000, "localhost, *", True),
        ("minio.ml.svc", 9000, "*.svc", True),
        ("minio.ml.svc", 9000, "localhost ml.svc", True),
        ("minio.ml.svc", 9000, ".SVC:9000", True),
        ("minio.ml.svc", 9000, "*.svc:9001", False),
        ("minio.ml.svc.", 9000, "minio.ml.svc", True),
        ("minio.ml.svc", 9000, ".svc.", True),
        ("10.1.2.3", 9000, "10.0.0.0/8:9000", True),
        ("10.1.2.3", 9000, "10.1.0.0/255.255.0.0", True),
        ("::1", 9000, "[::1]:9000", True),
        ("::1", 9000, "[::1]:9001", False),
        ("fd00::7", 80, "[fd00::]/8", True),
        ("fd00::7", 80, "fd00::9", False),
        ("minio", 9000, ".,*.,:9000,,", False),
    ],
)
def test_no_proxy(host: str, port: int, no_proxy: str, bypasses: bool) -> None:
    """Names, suffixes, ports, addresses and networks."""
    assert bypasses_proxy(host, port, no_proxy) is bypasses


class HttpProxy(Handler):
    """An HTTP proxy that asks for a user and password, and answers what it was told to."""

    seen: list[str]
    status = 0
    keys = "Basic " + base64.b64encode(f"user:{SECRET}".encode()).decode()

    def do_GET(self) -> None:
        """Forward a request for an absolute URL."""
        self.seen.append(self.path)
        body = self.rfile.read(int(self.headers.get("content-length", "0")))
        if self.headers.get("proxy-authorization") != self.keys:
            return self._answer(407, b"who?")
        if self.status:
            return self._answer(self.status, b"<html>squid</html>")
        kept = {name: value for name, value in self.headers.items() if not name.lower().startswith("proxy-")}
        response = urllib3.request(self.command, self.path, body=body or None, headers=kept, decode_content=False)
        self._answer(response.status, response.data, dict(response.headers))

    do_PUT = do_POST = do_HEAD = do_DELETE = do_GET

    def do_CONNECT(self) -> None:
        """Refuse."""
        self.seen.append(self.path)
        self._answer(self.status if self.headers.get("proxy-authorization") == self.keys else 407, b"")

    def _answer(self, status: int, body: bytes, headers: dict[str, str] | None = None) -> None:
        self.send_response(status)
        kept = headers or {"content-type": "text/html"}
        for name, value in kept.items():
            if name.lower() not in ("content-length", "date", "server", "transfer-encoding", "connection"):
                self.send_header(name, value)
        length = kept.get("Content-Length", "0") if self.command == "HEAD" else str(len(body))
        if status != 204:
            self.send_header("content-length", length)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)


@pytest.fixture
def http_proxy(s3_root: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[type[HttpProxy], str]]:
    """A running HTTP proxy that the environment names, and its host and port."""
    handler = type("Running", (HttpProxy,), {"seen": []})
    for name in ("http_proxy", "https_proxy", "all_proxy", "no_proxy"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)
    monkeypatch.setenv("FIRSTSIGHT_S3_RETRY_SECONDS", "0.1")
    with serving(handler) as server:
        host = f"127.0.0.1:{server.server_port}"
        for name in ("HTTP_PROXY", "HTTPS_PROXY"):
            monkeypatch.setenv(name, f"http://user:{SECRET.replace('/', '%2F').replace('%(', '%25(')}@{host}")
        yield handler, host


def test_proxy(s3_root: str, s3_server: S3Server, http_proxy: tuple[type[HttpProxy], str], monkeypatch: pytest.MonkeyPatch) -> None:
    """Requests go through the proxy with its user and password, unless NO_PROXY names the store's host."""
    handler, _ = http_proxy
    uri = join(s3_root, "d", "x")
    write_bytes(uri, b"x")
    assert read_bytes(uri) == b"x"
    assert [info.uri for info in S3Store.from_environment(uri).list(s3_root)] == [uri]
    S3Store.from_environment(uri).delete(uri)
    assert len(handler.seen) == 4
    assert all(url.startswith(s3_server.endpoint) for url in handler.seen)
    monkeypatch.setenv("NO_PROXY", "10.0.0.0/8,127.0.0.0/8")
    write_bytes(uri, b"x")
    assert len(handler.seen) == 4


@pytest.mark.parametrize("scheme", ["http", "https"])
@pytest.mark.parametrize("status", [407, 403, 503])
def test_proxies_that_refuse(
    s3_root: str, s3_server: S3Server, http_proxy: tuple[type[HttpProxy], str], monkeypatch: pytest.MonkeyPatch, scheme: str, status: int
) -> None:
    """The proxy is named, its variable too, and never its password; what may pass is exit 1."""
    handler, host = http_proxy
    handler.status = status
    if status == 407:
        for name in ("HTTP_PROXY", "HTTPS_PROXY"):
            monkeypatch.setenv(name, f"http://user:{SECRET[:6]}@{host}")
    monkeypatch.setenv("AWS_ENDPOINT_URL", s3_server.endpoint.replace("http", scheme))
    kind = RunError if status == 503 else InputError
    with pytest.raises(
        kind, match=rf"through the proxy http://{host} of {scheme.upper()}_PROXY.*{'' if status == 407 else status}"
    ) as raised:
        read_bytes(join(s3_root, "x"))
    assert "sEcReT" not in str(raised.value)
    assert "Authorization" not in str(raised.value)


@pytest.mark.parametrize("value", [f"socks5://user:{SECRET}@host:1080", f"http://user:{SECRET}@host:x", f"http://user:{SECRET}@ho st:1"])
def test_wrong_proxies(s3_root: str, monkeypatch: pytest.MonkeyPatch, value: str) -> None:
    """A proxy of another kind is refused by its variable's name."""
    monkeypatch.delenv("http_proxy", raising=False)
    monkeypatch.setenv("HTTP_PROXY", value)
    monkeypatch.setenv("NO_PROXY", "")
    monkeypatch.delenv("no_proxy", raising=False)
    with pytest.raises(InputError, match="HTTP_PROXY must be http") as raised:
        read_bytes(join(s3_root, "x"))
    assert "sEcReT" not in str(raised.value)


def test_settings_are_not_printed(s3_root: str, s3_server: S3Server) -> None:
    """Neither keys nor the proxy's password are in what a debugger or a log shows of the settings."""
    assert s3_server.secret_key not in repr(settings_from_environment(s3_root))
