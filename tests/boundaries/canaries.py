"""Credentials that are easy to find again, in every place where one may be, and a search of all that a run leaves behind."""

import base64
import contextlib
import gzip
import io
import json
import zipfile
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from urllib.parse import quote

import pytest

from tests.loopback import Handler, serving

ENVIRONMENT = {
    "AWS_SECRET_ACCESS_KEY": "c4n4ry-aws-secret-1",
    "AWS_SESSION_TOKEN": "c4n4ry-aws-session-2",
    "KFP_TOKEN": "c4n4ry-kfp-token-3",
    "KFP_COOKIE": "session=c4n4ry-kfp-cookie-4",
    "WANDB_API_KEY": "c4n4ry-wandb-key-5",
    "MLFLOW_TRACKING_PASSWORD": "c4n4ry-mlflow-password-6",
    "NO_PROXY": "127.0.0.1,localhost",
    "HTTPS_PROXY": "http://user:c4n4ry-proxy-password-7@proxy.example:3128",
}
FILE = "c4n4ry-file-secret-8"
URL_SIGNATURE, URL_PASSWORD = "c4n4ry-url-signature-9", "c4n4ry-url-password-0"
ANY = "c4n4ry"
"""What each of them contains, so that a part of one is found too."""


def set_free(patch: pytest.MonkeyPatch, folder: Path, *, but: Iterable[str] = ()) -> None:
    """Put a canary into every variable that may hold a credential, with some exceptions, and into a credentials file."""
    for name, value in ENVIRONMENT.items():
        if name not in but:
            patch.setenv(name, value)
    (folder / "credentials").write_text(f"[default]\naws_access_key_id = someone\naws_secret_access_key = {FILE}\n")


def found_in(things: Mapping[str, bytes | str], *canaries: str) -> list[str]:
    """Names of things that hold a canary: as it is, in base64, quoted as in a URL, or inside a zip or gzip."""
    wanted = [form for canary in canaries or (ANY,) for form in _forms(canary)]
    return [name for name, thing in things.items() if any(form in part for part in _parts(thing) for form in wanted)]


def _forms(canary: str) -> list[bytes]:
    return [canary.encode(), quote(canary, safe="").encode(), base64.b64encode(canary.encode())[: len(canary) // 3 * 4]]


def _parts(thing: bytes | str) -> Iterator[bytes]:
    data = thing.encode() if isinstance(thing, str) else thing
    yield data
    if data[:2] == b"\x1f\x8b":
        yield gzip.decompress(data)
    if data[:2] == b"PK":
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            yield from (archive.read(name) for name in archive.namelist())


@contextlib.contextmanager
def echo_server(status: int) -> Iterator[str]:
    """A server that refuses everything and repeats in its refusal all that it was sent; its URL."""

    class Echo(Handler):
        def do_GET(self) -> None:
            self.rfile.read(int(self.headers.get("content-length") or 0))
            sent = f"{self.path} {json.dumps(dict(self.headers))}"
            body = f"<Error><Code>AccessDenied</Code><Message>{sent}</Message></Error>"
            if "/apis/" in self.path:
                body = json.dumps({"error": sent, "code": 16, "message": sent, "details": []})
            self.send_response(status)
            self.send_header("content-type", "application/json" if "/apis/" in self.path else "application/xml")
            self.send_header("content-length", str(len(body.encode())))
            self.send_header("location", f"http://{self.headers.get('host')}/elsewhere?token={URL_SIGNATURE}")
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(body.encode())

        do_HEAD = do_PUT = do_POST = do_DELETE = do_GET

    with serving(Echo) as server:
        yield f"http://127.0.0.1:{server.server_port}"
