"""`python -m pipelines bucket`: the bucket of all runs, and on the bundled MinIO a user for each profile and namespace.

The chart runs it as a hook after every install and upgrade: whatever is there already is left as it is. A user reaches
its own root, and reads what its profile lists, so what one namespace leaks does not open another's data.
"""

import argparse
import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from trainer.config import require
from trainer.errors import InputError, RunError
from trainer.storage.confined import is_plain

if TYPE_CHECKING:
    from minio.credentials.providers import StaticProvider

    from trainer.storage.s3_settings import S3Settings

WAIT_SECONDS = 240.0
"""How long a store is waited for that does not answer yet: its image may still be on the way."""
USER_PREFIX = "firstsight."
"""Begins the name of every user that the chart makes; those it no longer lists are removed."""


@dataclass(frozen=True, kw_only=True)
class User:
    """Someone who may read and write below `root`, read below each of `reads`, and nothing else.

    Attributes:
        access_key: begins with USER_PREFIX.
        secret_key: at least 8 characters.
        root: `s3://bucket/prefix`.
        reads: likewise, or a whole bucket.
    """

    access_key: str
    secret_key: str
    root: str
    reads: tuple[str, ...] = ()


def add_command(commands: Any, common: argparse.ArgumentParser) -> None:
    """Add `bucket`."""
    parser = commands.add_parser("bucket", parents=[common], help="create the bucket for all runs, and the users of the bundled store")
    parser.add_argument("bucket", help="name of the bucket; the environment names the store (AWS_ENDPOINT_URL_S3, AWS_ACCESS_KEY_ID …)")
    parser.add_argument("--no-create", action="store_true", help="do not create the bucket; it must already exist")
    parser.add_argument("--users", default="", metavar="FILE", help="JSON list of users {accessKey, secretKey, root} to create on MinIO")
    parser.add_argument("--wait-seconds", type=float, default=WAIT_SECONDS, help="how long to wait for the store (default: %(default)s)")
    parser.set_defaults(run=_run)


def _run(options: argparse.Namespace) -> int:
    from trainer.storage.retries import Retries
    from trainer.storage.s3_settings import settings_from_environment

    require(
        "the bucket's name",
        options.bucket,
        "3 to 63 of a-z, 0-9, '.', '-'",
        bool(re.fullmatch(r"[a-z0-9][a-z0-9.-]{1,61}[a-z0-9]", options.bucket)),
    )
    settings = settings_from_environment(f"s3://{options.bucket}")
    users = read_users(options.users) if options.users else None
    retries = Retries(options.wait_seconds)
    while True:
        try:
            ensure_bucket(settings, options.bucket, create=not options.no_create)
            if users is not None:
                ensure_users(settings, users)
            return 0
        except RunError as error:
            retries.wait(str(error), at_least=1.0)


def read_users(path: str) -> list[User]:
    """The users in a JSON file, as the chart's Secret holds them; an empty file: none.

    Raises:
        InputError: not of that form.
    """
    try:
        with open(path, encoding="utf-8") as stream:
            entries = json.loads(stream.read() or "[]")
        users = [
            User(access_key=entry["accessKey"], secret_key=entry["secretKey"], root=entry["root"], reads=tuple(entry.get("reads", ())))
            for entry in entries
        ]
    except FileNotFoundError as error:
        raise InputError(f"--users {path}: no such file") from error
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise InputError(
            f"--users {path}: must be a JSON list of objects with accessKey, secretKey, root and, optionally, reads ({error})"
        ) from error
    for user in users:
        require(f"{path}: accessKey", user.access_key, f"begin with {USER_PREFIX}", user.access_key.startswith(USER_PREFIX))
        ok = bool(re.fullmatch(r"s3://[^/]+/.+", user.root)) and is_plain(user.root)
        require(f"{path}: root of {user.access_key}", user.root, "s3://bucket/prefix", ok)
        for place in user.reads:
            ok = is_plain(place)
            require(f"{path}: reads of {user.access_key}", place, "s3://bucket/prefix, or a local path", ok)
    return users


def ensure_bucket(settings: "S3Settings", bucket: str, *, create: bool) -> None:
    """Make the bucket where it is missing.

    Raises:
        InputError: it is missing and must not be made, or the store refuses.
        RunError: the store does not answer, for now.
    """
    from minio.error import MinioException, S3Error

    from trainer.storage.s3_client import Client

    where = f"bucket {bucket} at {settings.endpoint}"
    client = Client(settings)
    try:
        if client.bucket_exists(bucket):
            print(f"{where}: there")
            return
        if not create:
            raise InputError(f"{where}: does not exist, and objectStore.createBucket is false")
        client.make_bucket(bucket, location=settings.region)
        print(f"{where}: created")
    except S3Error as error:
        if error.code in ("BucketAlreadyOwnedByYou", "BucketAlreadyExists"):  # another hook was first, or it is a stranger's
            print(f"{where}: there")
            return
        raise InputError(f"{where}: refused ({error.code}: {error.message})") from error
    except MinioException as error:
        raise RunError(f"{where}: {error}") from error


def ensure_users(settings: "S3Settings", users: Sequence[User]) -> None:
    """Make exactly these users on a MinIO: new keys for old names, no users of ours beside them.

    Raises:
        InputError: the server is no MinIO, or these keys may not make users.
    """
    from minio.error import MinioAdminException
    from minio.minioadmin import MinioAdmin

    from trainer.storage.s3_client import Connections

    parts = urlsplit(settings.endpoint)
    secure, pool = parts.scheme == "https", Connections(settings)
    admin = MinioAdmin(endpoint=parts.netloc, credentials=_keys(settings), region=settings.region, secure=secure, http_client=pool)
    try:
        existing = [name for name in json.loads(admin.user_list()) if name.startswith(USER_PREFIX)]
        for user in users:
            admin.user_add(user.access_key, user.secret_key)
            admin.policy_add(user.access_key, policy=policy(user.root, user.reads))
            admin.policy_set(user.access_key, user=user.access_key)
            more = f", and read below {', '.join(user.reads)}" if user.reads else ""
            print(f"user {user.access_key}: may read and write under {user.root}{more}")
        for name in sorted(set(existing) - {user.access_key for user in users}):
            admin.user_remove(name)
            admin.policy_remove(name)
            print(f"user {name}: removed")
    except MinioAdminException as error:
        raise InputError(f"users at {settings.endpoint}: access denied ({error})") from error


def policy(root: str, reads: Sequence[str] = ()) -> dict[str, Any]:
    """What the user of a root may do: everything with the objects below it, and list them; below `reads` get and list them."""
    objects = ["s3:GetObject", "s3:PutObject", "s3:DeleteObject", "s3:AbortMultipartUpload", "s3:ListMultipartUploadParts"]
    statements = _statements(root, objects)
    for place in reads:
        if place.startswith("s3://"):
            statements += _statements(place, ["s3:GetObject"])
    return {"Version": "2012-10-17", "Statement": statements}


def _statements(place: str, actions: list[str]) -> list[dict[str, Any]]:
    """Allow these actions on the objects below a place, and to list them."""
    bucket, _, prefix = place.removeprefix("s3://").rstrip("/").partition("/")
    listing: dict[str, Any] = {"Effect": "Allow", "Action": ["s3:ListBucket"], "Resource": [f"arn:aws:s3:::{bucket}"]}
    if prefix:
        listing["Condition"] = {"StringLike": {"s3:prefix": [f"{prefix}/*"]}}  # `prefix` alone lists `prefix-of-others/` too
    below = f"{bucket}/{prefix}/*" if prefix else f"{bucket}/*"
    return [{"Effect": "Allow", "Action": actions, "Resource": [f"arn:aws:s3:::{below}"]}, listing]


def _keys(settings: "S3Settings") -> "StaticProvider":
    from minio.credentials.providers import StaticProvider

    require("AWS_ACCESS_KEY_ID", settings.access_key, "set", bool(settings.access_key))
    return StaticProvider(settings.access_key, settings.secret_key, settings.session_token or None)
