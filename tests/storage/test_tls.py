"""TLS with a private CA, on MinIO: trusted when its certificate is named, refused in one line when not."""

import pytest

from tests.servers import S3Server
from trainer.errors import InputError
from trainer.storage import join, read_bytes, write_bytes

pytestmark = pytest.mark.slow


def test_private_ca(minio_root: str, minio_server: S3Server, monkeypatch: pytest.MonkeyPatch) -> None:
    """Either variable that names the CA makes the store trusted."""
    uri = join(minio_root, "x")
    write_bytes(uri, b"x")
    monkeypatch.delenv("FIRSTSIGHT_S3_CA")
    monkeypatch.setenv("AWS_CA_BUNDLE", minio_server.ca_file)
    assert read_bytes(uri) == b"x"


def test_unknown_ca(minio_root: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without it the store is refused at once, and the message says what to set."""
    monkeypatch.delenv("FIRSTSIGHT_S3_CA")
    monkeypatch.delenv("AWS_CA_BUNDLE", raising=False)
    with pytest.raises(InputError, match=r"x: its TLS certificate is not trusted .*set FIRSTSIGHT_S3_CA to its CA"):
        read_bytes(join(minio_root, "x"))


def test_other_host_name(minio_root: str, minio_server: S3Server, monkeypatch: pytest.MonkeyPatch) -> None:
    """A certificate for another name is refused, whoever signed it."""
    monkeypatch.setenv("AWS_ENDPOINT_URL", minio_server.endpoint.replace("127.0.0.1", "localhost"))
    with pytest.raises(InputError, match="its TLS certificate is not trusted"):
        read_bytes(join(minio_root, "x"))


def test_plain_http_to_a_tls_port(minio_root: str, minio_server: S3Server, monkeypatch: pytest.MonkeyPatch) -> None:
    """http:// to a server that speaks TLS is named as a wrong endpoint."""
    monkeypatch.setenv("AWS_ENDPOINT_URL", minio_server.endpoint.replace("https://", "http://"))
    with pytest.raises(InputError, match="not an S3 store"):
        read_bytes(join(minio_root, "x"))


def test_wrong_key(minio_root: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """MinIO's refusal of wrong keys is an input error."""
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "wrong")
    with pytest.raises(InputError, match="check the credentials"):
        write_bytes(join(minio_root, "x"), b"x")


def test_missing_bucket(minio_root: str) -> None:
    """MinIO's word for a missing bucket is understood as well."""
    with pytest.raises(InputError, match="no such bucket"):
        read_bytes("s3://no-such-bucket-here/x")
