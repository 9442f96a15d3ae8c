"""Credentials by a cloud's workload identity: a stand-in for the STS and for EKS' agent, on loopback, before a real store."""

import datetime
import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import pytest

from tests.fault_proxy import FaultProxy, Status
from tests.loopback import Handler, serving
from tests.servers import S3Server, new_store
from trainer.errors import InputError, RunError
from trainer.storage import join, read_bytes, s3_identity, write_bytes
from trainer.storage.s3_settings import has_credentials, provider, settings_from_environment

ROLE = "arn:aws:iam::123456789012:role/team-a"
TOKEN = "eyJhbGciOi.of-the-pod.sEcReT"


@dataclass
class Cloud:
    """Gives keys for a token; what it answers, and what it was asked.

    Attributes:
        keys: access key, secret key and session token.
        seconds: how long they are good.
        refusals: statuses and bodies that come first.
        asked: method, query or headers of each request.
    """

    url: str = ""
    keys: tuple[str, str, str] = ("", "", "")
    seconds: float = 3600.0
    refusals: list[tuple[int, str]] = field(default_factory=list)
    asked: list[dict[str, Any]] = field(default_factory=list)

    def answer(self, method: str, path: str, headers: dict[str, str]) -> tuple[int, str]:
        """As AWS' STS does on POST, as EKS' agent does on GET."""
        query = {name: values[0] for name, values in parse_qs(urlsplit(path).query).items()}
        self.asked.append({"method": method, "path": urlsplit(path).path, "authorization": headers.get("Authorization", ""), **query})
        if self.refusals:
            return self.refusals.pop(0)
        until = (datetime.datetime.now(datetime.UTC) + datetime.timedelta(seconds=self.seconds)).strftime("%Y-%m-%dT%H:%M:%SZ")
        access, secret, session = self.keys
        if method == "GET":
            names = ("AccessKeyId", "SecretAccessKey", "Token", "Expiration", "AccountId")
            return 200, json.dumps(dict(zip(names, (access, secret, session, until, "123456789012"), strict=True)))
        inner = f"<AccessKeyId>{access}</AccessKeyId><SecretAccessKey>{secret}</SecretAccessKey><SessionToken>{session}</SessionToken>"
        inner = f"<Credentials>{inner}<Expiration>{until}</Expiration></Credentials>"
        name, space = "AssumeRoleWithWebIdentity", "https://sts.amazonaws.com/doc/2011-06-15/"
        return 200, f'<{name}Response xmlns="{space}"><{name}Result>{inner}</{name}Result></{name}Response>'


@pytest.fixture
def cloud(s3_server: S3Server) -> Iterator[Cloud]:
    """It gives the real store's keys; without a session token, which that store would not know."""
    found = Cloud(keys=(s3_server.access_key, s3_server.secret_key, ""))

    class Answering(Handler):
        protocol_version = "HTTP/1.0"

        def _do(self) -> None:
            status, body = found.answer(self.command, self.path, dict(self.headers))
            self.send_response(status)
            self.send_header("Content-Length", str(len(body.encode())))
            self.end_headers()
            self.wfile.write(body.encode())

        do_GET = do_POST = do_PUT = _do

    with serving(Answering) as server:
        found.url = f"http://127.0.0.1:{server.server_port}"
        yield found


@pytest.fixture(params=["IAM roles for service accounts", "EKS pod identity"])
def pod(request: pytest.FixtureRequest, cloud: Cloud, s3_root: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Cloud:
    """A pod as each kind of identity makes it: a projected token, and variables that say where it is taken."""
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SHARED_CREDENTIALS_FILE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("FIRSTSIGHT_S3_RETRY_SECONDS", "60")
    (tmp_path / "token").write_text(TOKEN)
    if request.param == "EKS pod identity":
        monkeypatch.setenv("AWS_CONTAINER_CREDENTIALS_FULL_URI", f"{cloud.url}/v1/credentials")
        monkeypatch.setenv("AWS_CONTAINER_AUTHORIZATION_TOKEN_FILE", str(tmp_path / "token"))
    else:
        monkeypatch.setenv("AWS_WEB_IDENTITY_TOKEN_FILE", str(tmp_path / "token"))
        monkeypatch.setenv("AWS_ROLE_ARN", ROLE)
        monkeypatch.setenv("AWS_ENDPOINT_URL_STS", cloud.url)
    return cloud


def test_a_pod_without_keys_reads_and_writes(pod: Cloud, s3_root: str) -> None:
    """Its token is changed for keys, once, and shown to nobody else."""
    assert has_credentials()
    uri = join(s3_root, "x")
    write_bytes(uri, b"mine")
    assert read_bytes(uri) == b"mine"
    (asked,) = pod.asked
    if asked["method"] == "GET":
        assert (asked["path"], asked["authorization"]) == ("/v1/credentials", TOKEN)
    else:
        assert (asked["Action"], asked["RoleArn"], asked["WebIdentityToken"]) == ("AssumeRoleWithWebIdentity", ROLE, TOKEN)


def test_a_session_token_is_part_of_the_keys(pod: Cloud, s3_root: str) -> None:
    """Real ones have one, and requests carry it."""
    pod.keys = ("AKIA", "secret", "a-session")
    found = provider(settings_from_environment(s3_root)).retrieve()
    assert (found.access_key, found.secret_key, found.session_token) == pod.keys


def test_keys_are_renewed_before_they_expire(pod: Cloud, s3_root: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With the token as the kubelet has rotated it; while they last for long nobody is asked."""
    monkeypatch.setattr(s3_identity, "_PAUSE_SECONDS", 0.0)
    store, uri = new_store(s3_root), join(s3_root, "x")
    pod.seconds = s3_identity.RENEW_SECONDS / 2
    store.create(uri, TOKEN.encode())
    (tmp_path / "token").write_text("rotated")
    pod.seconds = 3600
    before = len(pod.asked)
    assert store.get(uri) == TOKEN.encode()
    assert store.head(uri) is not None
    assert len(pod.asked) == before + 1
    assert "rotated" in pod.asked[-1].values()


def test_an_outage_is_survived_by_keys_that_are_still_good(pod: Cloud, s3_root: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """And is asked about only now and then."""
    keys = provider(settings_from_environment(s3_root))
    pod.seconds = s3_identity.RENEW_SECONDS / 2
    first = keys.retrieve()
    monkeypatch.setattr(s3_identity, "_PAUSE_SECONDS", 0.0)
    pod.refusals = [(503, "busy")]
    assert keys.retrieve() is first
    assert "answers 503" in keys.trouble  # type: ignore[attr-defined]
    monkeypatch.setattr(s3_identity, "_PAUSE_SECONDS", 1e6)
    before = len(pod.asked)
    assert keys.retrieve() is first
    assert len(pod.asked) == before


def test_an_outage_before_there_are_keys_is_waited_for(pod: Cloud, s3_root: str) -> None:
    """As one of the store is."""
    pod.refusals = [(503, "busy"), (429, "{}"), (400, "<Error><Code>IDPCommunicationError</Code><Message>no</Message></Error>")]
    store = new_store(s3_root)
    assert store.head(join(s3_root, "none")) is None
    assert len(pod.asked) == 4


def test_an_outage_without_end_ends_the_request(pod: Cloud, s3_root: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """With exit code 1, and who did not answer."""
    monkeypatch.setenv("FIRSTSIGHT_S3_RETRY_SECONDS", "0.2")
    pod.refusals = [(500, "")] * 50
    with pytest.raises(RunError, match=f"{pod.url} answers 500"):
        new_store(s3_root).head(join(s3_root, "x"))


@pytest.mark.parametrize(
    ("status", "body", "said"),
    [
        (
            403,
            "<ErrorResponse><Error><Code>AccessDenied</Code><Message>Not authorized to perform "
            "sts:AssumeRoleWithWebIdentity</Message></Error></ErrorResponse>",
            "answers 403 AccessDenied: Not authorized to perform sts:AssumeRoleWithWebIdentity: check the role",
        ),
        (400, '{"code": "InvalidToken", "message": "no\\nassociation\\u0007"}', "answers 400 InvalidToken: no association"),
        (404, "not found", "answers 404 not found"),
        (200, "<html>login</html>", "returned none"),
        (200, '{"AccessKeyId": 1}', "returned none"),
        (301, "", "answers 301"),
    ],
)
def test_a_refusal_is_one_line_without_the_token(pod: Cloud, s3_root: str, status: int, body: str, said: str) -> None:
    """At once, naming who refuses and why."""
    pod.refusals = [(status, body)] * 3
    with pytest.raises(InputError) as raised:
        new_store(s3_root).head(join(s3_root, "x"))
    line = str(raised.value)
    assert said in line
    assert pod.url in line
    assert line.isprintable()
    assert "sEcReT" not in line
    assert len(pod.asked) == 1


def test_a_token_that_is_not_there(pod: Cloud, s3_root: str, tmp_path: Path) -> None:
    """The file is named."""
    (tmp_path / "token").unlink()
    with pytest.raises(InputError, match=f"{tmp_path}/token"):
        new_store(s3_root).head(join(s3_root, "x"))


def test_keys_that_the_store_rejects_are_renewed(pod: Cloud, s3_root: str, proxy: FaultProxy) -> None:
    """Where they expire before their time."""
    store, uri = new_store(s3_root), join(s3_root, "x")
    store.create(uri, b"x")
    before = len(pod.asked)
    proxy.faults.append(Status(400, "ExpiredToken"))
    assert store.get(uri) == b"x"
    assert len(pod.asked) == before + 1


@pytest.mark.parametrize(
    ("variables", "said"),
    [
        ({"AWS_ROLE_ARN": ""}, "AWS_WEB_IDENTITY_TOKEN_FILE is set without AWS_ROLE_ARN"),
        ({"AWS_ENDPOINT_URL_STS": "sts.example.org"}, "AWS_ENDPOINT_URL_STS must be http"),
    ],
)
def test_an_identity_that_cannot_be_meant(
    s3_root: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, variables: dict[str, str], said: str
) -> None:
    """Said by the variable's name."""
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    for name, value in {"AWS_WEB_IDENTITY_TOKEN_FILE": str(tmp_path), "AWS_ROLE_ARN": ROLE, **variables}.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(InputError, match=said):
        settings_from_environment(s3_root)


def test_keys_win_over_an_identity(cloud: Cloud, s3_root: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As keys do over a file: what is set by hand is meant."""
    monkeypatch.setenv("AWS_WEB_IDENTITY_TOKEN_FILE", str(tmp_path / "none"))
    monkeypatch.setenv("AWS_ROLE_ARN", ROLE)
    monkeypatch.setenv("AWS_ENDPOINT_URL_STS", cloud.url)
    assert new_store(s3_root).head(join(s3_root, "none")) is None
    assert cloud.asked == []


def test_aws_own_sts_is_that_of_the_region(s3_root: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """China's has another domain."""
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_WEB_IDENTITY_TOKEN_FILE", str(tmp_path))
    monkeypatch.setenv("AWS_ROLE_ARN", ROLE)
    for region, host in (("eu-central-1", "sts.eu-central-1.amazonaws.com"), ("cn-north-1", "sts.cn-north-1.amazonaws.com.cn")):
        monkeypatch.setenv("AWS_REGION", region)
        assert settings_from_environment(s3_root).identity == f"https://{host}"
