"""A tenant's pod, with all that it is given, against another tenant's objects: on real stores, with the users that the chart and docs make.

What a pod has are its keys and any program that it likes, so requests are made here by a plain client and by hand, past every check
of firstsight's own.
"""

import datetime
import http.client
import io
import json
import re
import ssl
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
import urllib3
from minio import Minio
from minio.credentials.credentials import Credentials
from minio.deleteobjects import DeleteObject
from minio.signer import presign_v4

from pipelines.operate.bucket import USER_PREFIX, ensure_users, policy, read_users
from tests.servers import S3Server, seaweedfs
from tests.trespassing import BEYOND, DENIED, READS, WRITES, answers
from trainer.storage.s3_settings import settings_from_environment

BUCKET = "clips"
GUIDE = (Path(__file__).parents[3] / "docs/OPERATIONS.md").read_text()
KEYS = {"team-a": (f"{USER_PREFIX}team-a.run", "secret-of-team-a"), "team-b": (f"{USER_PREFIX}team-b.run", "secret-of-team-b")}


@dataclass
class Tenant:
    """Team A's pod: the store's address and the keys in its Secret."""

    server: S3Server
    access_key: str
    secret_key: str

    @property
    def client(self) -> Minio:
        """Minio's own client, nothing of firstsight's about it."""
        pool = urllib3.PoolManager(ca_certs=self.server.ca_file) if self.server.ca_file else None
        host, secure = urlsplit(self.server.endpoint).netloc, self.server.endpoint.startswith("https")
        return Minio(host, self.access_key, self.secret_key, secure=secure, region="us-east-1", http_client=pool)

    def by_hand(self, method: str, path: str, body: bytes | None = None) -> tuple[int, bytes]:
        """A signed request whose path goes out as it is written: clients tidy `..` away."""
        signed = presign_v4(
            method=method,
            url=urlsplit(f"{self.server.endpoint}{path}"),
            region="us-east-1",
            credentials=Credentials(self.access_key, self.secret_key),
            date=datetime.datetime.now(datetime.UTC),
            expires=600,
        ).geturl()
        host = urlsplit(self.server.endpoint).netloc
        plain = http.client.HTTPConnection(host, timeout=60)
        tls = ssl.create_default_context(cafile=self.server.ca_file) if self.server.ca_file else None
        connection = http.client.HTTPSConnection(host, timeout=60, context=tls) if tls else plain
        try:
            connection.request(method, signed.removeprefix(self.server.endpoint), body=body)
            answer = connection.getresponse()
            return answer.status, answer.read()
        finally:
            connection.close()


def documented(language: str) -> list[dict[str, Any]]:
    """The JSON that docs/OPERATIONS.md shows for a tenant on an external store."""
    blocks = re.findall(r"```json\n(.*?)```", GUIDE, re.DOTALL)
    return [value for value in map(json.loads, blocks) if language in value]


def identity(team: str) -> dict[str, Any]:
    """The documented identity of SeaweedFS, with a team's keys and prefix put in."""
    ((one,),) = (value["identities"] for value in documented("identities"))
    access, secret = KEYS[team]
    actions = [action.replace("BUCKET", BUCKET).replace("PREFIX", team) for action in one["actions"]]
    actions += [f"{what}:{BUCKET}/shared/*" for what in ("Read", "List")]
    return {"name": team, "credentials": [{"accessKey": access, "secretKey": secret}], "actions": actions}


@pytest.fixture(scope="module")
def seaweed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[S3Server]:
    """SeaweedFS with an identity for each tenant, as the docs have it."""
    with seaweedfs(tmp_path_factory.mktemp("tenants"), [identity(team) for team in KEYS]) as server:
        server.client.make_bucket(BUCKET)
        yield server


@pytest.fixture
def tenant(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Tenant:
    """Team A on the store that a test names."""
    if request.param == "seaweedfs":
        server: S3Server = request.getfixturevalue("seaweed")
    else:
        server = request.getfixturevalue("minio_server")
        if not server.client.bucket_exists(BUCKET):
            server.client.make_bucket(BUCKET)
        for name, value in server.environment.items():
            monkeypatch.setenv(name, value)
        shared = [f"s3://{BUCKET}/shared"]
        users = [
            {"accessKey": access, "secretKey": secret, "root": f"s3://{BUCKET}/{team}", "reads": shared}
            for team, (access, secret) in KEYS.items()
        ]
        (tmp_path / "users.json").write_text(json.dumps(users))
        ensure_users(settings_from_environment(f"s3://{BUCKET}"), read_users(str(tmp_path / "users.json")))
    for key in ("team-a/x", "team-a-evil/x", "team-b/x", "shared/x", "x"):
        server.client.put_object(BUCKET, key, io.BytesIO(key.encode()), len(key))
    return Tenant(server, *KEYS["team-a"])


BOTH = pytest.mark.parametrize("tenant", ["seaweedfs", pytest.param("minio", marks=pytest.mark.slow)], indirect=True)
THEIRS = ("team-b", "team-a-evil")
SPELLED = (
    "team-a/../team-b/{}",
    "team-a/%2e%2e/team-b/{}",
    "team-a/..%2fteam-b/{}",
    "team-a%2f..%2fteam-b/{}",
    "team-a//../team-b/{}",
    "team-a/./../team-b/{}",
    "/team-b/{}",
    "./team-b/{}",
    "team-a\\..\\team-b\\{}",
)


@BOTH
def test_a_tenant_reaches_nothing_of_another_s(tenant: Tenant) -> None:
    """Whatever request its keys sign, while its own prefix is open to it; and nothing there has changed."""
    client = tenant.client
    assert client.get_object(BUCKET, "team-a/x").data == b"team-a/x"
    assert [found.object_name for found in client.list_objects(BUCKET, "team-a/", recursive=True)] == ["team-a/x"]
    for there in THEIRS:
        asked = {**READS, **WRITES, **BEYOND}
        assert answers(asked, client, BUCKET, "team-a", there) == dict.fromkeys(asked, DENIED)
        failed = list(client.remove_objects(BUCKET, [DeleteObject(f"{there}/x")]))
        assert [one.code for one in failed] == [DENIED]
    for there in THEIRS:
        assert tenant.server.client.get_object(BUCKET, f"{there}/x").data == f"{there}/x".encode()
    for name in ("copy", "part"):
        assert f"team-a/{name}" not in [found.object_name for found in tenant.server.client.list_objects(BUCKET, recursive=True)]


@BOTH
def test_no_spelling_of_a_key_leads_out(tenant: Tenant) -> None:
    """Sent as it is written; a tidy request of the same kind is answered, so it is the spelling that is refused."""
    assert tenant.by_hand("GET", f"/{BUCKET}/team-a/x") == (200, b"team-a/x")
    assert tenant.by_hand("PUT", f"/{BUCKET}/team-a/new", b"A")[0] == 200
    for spelled in SPELLED:
        status, body = tenant.by_hand("GET", f"/{BUCKET}/{spelled.format('x')}")
        assert status >= 400, (spelled, body)
        assert b"team-b/x" != body
        tenant.by_hand("PUT", f"/{BUCKET}/{spelled.format('new')}", b"A")
    found = [one.object_name for one in tenant.server.client.list_objects(BUCKET, recursive=True)]
    assert not [name for name in found if str(name).startswith(("team-b/", "team-a-evil/")) and not str(name).endswith("/x")]
    for name in found:  # MinIO and SeaweedFS may keep odd names; they lie below the tenant's own prefix
        if str(name).endswith("new"):
            assert str(name).startswith("team-a/")


@BOTH
def test_what_is_listed_may_be_read_and_not_written(tenant: Tenant) -> None:
    """`reads` of a profile."""
    client = tenant.client
    assert client.get_object(BUCKET, "shared/x").data == b"shared/x"
    assert [found.object_name for found in client.list_objects(BUCKET, "shared/", recursive=True)] == ["shared/x"]
    assert answers(WRITES, client, BUCKET, "team-a", "shared") == dict.fromkeys(WRITES, DENIED)


def test_the_documented_policy_is_the_bundled_store_s() -> None:
    """So what the test of MinIO shows holds for who follows the docs."""
    (shown,) = documented("Statement")
    made = policy("s3://BUCKET/PREFIX")
    assert shown["Version"] == made["Version"]
    assert shown["Statement"] == made["Statement"]
