"""The hook that makes bucket and users, on real stores: safe to repeat, users kept to their root, bad input in one line."""

import json
from pathlib import Path

import pytest

from pipelines.__main__ import main
from pipelines.operate.bucket import policy
from tests.servers import S3Server
from trainer.errors import InputError
from trainer.storage import join, open_store, read_bytes, write_bytes


@pytest.fixture
def environment(s3_server: S3Server, monkeypatch: pytest.MonkeyPatch) -> S3Server:
    for name, value in s3_server.environment.items():
        monkeypatch.setenv(name, value)
    return s3_server


def test_makes_the_bucket_once(environment: S3Server, capsys: pytest.CaptureFixture[str]) -> None:
    """A second run finds it and changes nothing."""
    assert main(["bucket", "made-by-hook"]) == 0
    assert main(["bucket", "made-by-hook"]) == 0
    assert environment.client.bucket_exists("made-by-hook")
    assert [line.rpartition(" ")[2] for line in capsys.readouterr().out.splitlines()] == ["created", "there"]


def test_missing_bucket_that_must_exist(environment: S3Server, capsys: pytest.CaptureFixture[str]) -> None:
    """--no-create refuses a missing bucket, by the chart's key."""
    assert main(["bucket", "not-there", "--no-create"]) == 2
    assert "bucket not-there at http" in (said := capsys.readouterr().err)
    assert "objectStore.createBucket" in said
    assert not environment.client.bucket_exists("not-there")


@pytest.mark.parametrize("name", ["x", "Capital", "under_score", "-dash"])
def test_bad_name(environment: S3Server, name: str, capsys: pytest.CaptureFixture[str]) -> None:
    """A name that S3 does not take is refused before anything is asked."""
    assert main(["bucket", "--wait-seconds=1", "--", name]) == 2
    assert "the bucket's name must be" in capsys.readouterr().err


def test_store_that_does_not_answer(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """Patience has an end, and the last line names the endpoint."""
    for name, value in {"AWS_ENDPOINT_URL_S3": "http://127.0.0.1:9", "AWS_ACCESS_KEY_ID": "a", "AWS_SECRET_ACCESS_KEY": "b" * 8}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("FIRSTSIGHT_S3_RETRY_SECONDS", "0.2")
    assert main(["bucket", "some-bucket", "--wait-seconds=1.5"]) == 1
    assert "http://127.0.0.1:9 cannot be reached" in capsys.readouterr().err


def test_wrong_keys(environment: S3Server, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """Keys that the store does not know are the user's to fix."""
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "wrong")
    assert main(["bucket", "some-bucket"]) == 2
    assert "refused" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("{", "must be a JSON list"),
        ('[{"accessKey": "firstsight.a"}]', "must be a JSON list"),
        ('[{"accessKey": "admin", "secretKey": "x", "root": "s3://b/p"}]', "accessKey must be begin with"),
        *(
            (f'[{{"accessKey": "firstsight.a", "secretKey": "x", "root": "{root}"}}]', "root of firstsight.a must be s3://bucket/prefix")
            for root in ("s3://b", "s3://b/x/../y", "s3://b/*", "s3://b/${aws:username}")
        ),
    ],
)
def test_bad_users(environment: S3Server, tmp_path: Path, text: str, said: str, capsys: pytest.CaptureFixture[str]) -> None:
    """A list of users that cannot be meant is refused before anything is made."""
    (tmp_path / "users.json").write_text(text)
    assert main(["bucket", "for-users", f"--users={tmp_path}/users.json"]) == 2
    assert said in capsys.readouterr().err
    assert not environment.client.bucket_exists("for-users")


def test_policy_is_kept_to_the_root() -> None:
    """No action on objects beyond the prefix, none on the bucket but listing below it."""
    objects, listing = policy("s3://b/team/x/")["Statement"]
    assert objects["Resource"] == ["arn:aws:s3:::b/team/x/*"]
    assert listing["Action"] == ["s3:ListBucket"]
    assert listing["Condition"] == {"StringLike": {"s3:prefix": ["team/x/*"]}}


@pytest.mark.slow
def test_users(minio_server: S3Server, minio_root: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """On a MinIO each user reaches its own root and nothing else; one that is no longer listed is gone, a changed key holds."""
    bucket = minio_root.removeprefix("s3://").partition("/")[0]
    users = [
        {"accessKey": f"firstsight.{team}.run", "secretKey": f"secret-of-{team}", "root": f"s3://{bucket}/{team}"} for team in ("a", "b")
    ]
    file = tmp_path / "users.json"
    file.write_text(json.dumps(users))
    assert main(["bucket", bucket, f"--users={file}"]) == 0
    write_bytes(join(users[1]["root"], "x"), b"theirs")
    root_keys = {name: minio_server.environment[name] for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY")}

    monkeypatch.setenv("AWS_ACCESS_KEY_ID", users[0]["accessKey"])
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", users[0]["secretKey"])
    own = join(users[0]["root"], "folder", "x")
    write_bytes(own, b"mine" * (8 << 20))  # in parts
    assert [info.uri for info in open_store(own).list(users[0]["root"])] == [own]
    assert open_store(own).head(join(users[0]["root"], "missing")) is None
    open_store(own).delete(own)
    for refused in (lambda: read_bytes(join(users[1]["root"], "x")), lambda: list(open_store(own).list(users[1]["root"]))):
        with pytest.raises(InputError, match="refused by"):
            refused()
    with pytest.raises(InputError, match="refused by"):
        write_bytes(join(users[1]["root"], "x"), b"overwritten")

    for name, value in root_keys.items():
        monkeypatch.setenv(name, value)
    users[0]["secretKey"] = "another-secret"
    file.write_text(json.dumps(users[:1]))
    assert main(["bucket", bucket, f"--users={file}"]) == 0
    assert read_bytes(join(users[1]["root"], "x")) == b"theirs"  # the data of a user who is gone stay
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", users[0]["accessKey"])
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "another-secret")
    write_bytes(own, b"mine")
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", users[1]["accessKey"])
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", users[1]["secretKey"])
    with pytest.raises(InputError, match="refused by"):
        read_bytes(join(users[1]["root"], "x"))
