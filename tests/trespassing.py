"""Requests by which a tenant might reach what is another's, past every check of firstsight's own; a pod runs this file as a program.

As a program it is given a JSON object: `endpoint`, `bucket`, `own` (its prefix), `theirs` (another's), and paths of the API server to
ask for. It prints what became of each request. Only the standard library and minio are imported: pods have no tests.
"""

import io
import json
import os
import ssl
import sys
import urllib.request
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any
from urllib.error import HTTPError
from urllib.parse import urlsplit

from minio import Minio
from minio.commonconfig import ComposeSource, CopySource
from minio.error import S3Error

Ask = Callable[[Minio, str, str, str], Any]
"""With a client, in a bucket, from a prefix of its own, of another's prefix; in both lies an object `x`."""
ACCOUNT = Path("/var/run/secrets/kubernetes.io/serviceaccount")
DONE, DENIED = "done", "AccessDenied"
_PARTS = 11 << 20
READS: dict[str, Ask] = {
    "get": lambda client, bucket, own, there: client.get_object(bucket, f"{there}/x"),
    "stat": lambda client, bucket, own, there: client.stat_object(bucket, f"{there}/x"),
    "list": lambda client, bucket, own, there: list(client.list_objects(bucket, f"{there}/", recursive=True)),
    "copy from there": lambda client, bucket, own, there: client.copy_object(bucket, f"{own}/copy", CopySource(bucket, f"{there}/x")),
    "compose": lambda client, bucket, own, there: client.compose_object(bucket, f"{own}/part", [ComposeSource(bucket, f"{there}/x")]),
}
WRITES: dict[str, Ask] = {
    "put": lambda client, bucket, own, there: client.put_object(bucket, f"{there}/x", io.BytesIO(b"A"), 1),
    "put in parts": lambda client, bucket, own, there: client.put_object(
        bucket, f"{there}/x", io.BytesIO(b"A" * _PARTS), -1, part_size=5 << 20
    ),
    "copy there": lambda client, bucket, own, there: client.copy_object(bucket, f"{there}/x", CopySource(bucket, f"{own}/x")),
    "delete": lambda client, bucket, own, there: client.remove_object(bucket, f"{there}/x"),
}
BEYOND: dict[str, Ask] = {
    "list uploads": lambda client, bucket, own, there: client._list_multipart_uploads(bucket, prefix=f"{there}/"),
    "list all": lambda client, bucket, own, there: list(client.list_objects(bucket, recursive=True)),
    "list by half a name": lambda client, bucket, own, there: list(client.list_objects(bucket, own[:-1], recursive=True)),
    "list by its own name, which others begin with": lambda client, bucket, own, there: list(
        client.list_objects(bucket, own, recursive=True)
    ),
    "list folders by it": lambda client, bucket, own, there: list(client.list_objects(bucket, own)),
    "get what lies above": lambda client, bucket, own, there: client.get_object(bucket, "x"),
    "make a bucket": lambda client, bucket, own, there: client.make_bucket(f"of-{own}"),
    "remove the bucket": lambda client, bucket, own, there: client.remove_bucket(bucket),
    "set a policy": lambda client, bucket, own, there: client.set_bucket_policy(bucket, json.dumps({"Version": "2012-10-17"})),
    "get the policy": lambda client, bucket, own, there: client.get_bucket_policy(bucket),
}
"""What no tenant's keys allow, its own prefix included."""


def answers(asked: Mapping[str, Ask], client: Minio, bucket: str, own: str, there: str) -> dict[str, str]:
    """The store's answer to each request: DONE, or the code of its error."""
    found = {}
    for name, ask in asked.items():
        try:
            ask(client, bucket, own, there)
            found[name] = DONE
        except S3Error as error:
            found[name] = str(error.code)
    return found


def ask_api(requests: Mapping[str, tuple[str, str, Any]]) -> dict[str, int]:
    """The API server's status for each request (method, path, body), as the pod's account; its address is the pod's environment's."""
    token = (ACCOUNT / "token").read_text()
    server = f"https://{os.environ['KUBERNETES_SERVICE_HOST']}:{os.environ['KUBERNETES_SERVICE_PORT']}"
    context = ssl.create_default_context(cafile=str(ACCOUNT / "ca.crt"))
    found = {}
    for name, (method, path, body) in requests.items():
        headers = {"Authorization": f"Bearer {token}", "Content-Type": "application/json"}
        data = None if body is None else json.dumps(body).encode()
        try:
            with urllib.request.urlopen(urllib.request.Request(server + path, data, headers, method=method), context=context) as answer:
                found[name] = answer.status
        except HTTPError as error:
            found[name] = error.code
    return found


def main(endpoint: str, bucket: str, own: str, theirs: str, api: Mapping[str, tuple[str, str, Any]]) -> dict[str, Any]:
    """What became of all requests: on its own prefix, on the other's with its keys and with none, of the API server."""
    parts = urlsplit(endpoint)
    keys = (os.environ["AWS_ACCESS_KEY_ID"], os.environ["AWS_SECRET_ACCESS_KEY"])
    client = Minio(parts.netloc, *keys, secure=parts.scheme == "https", region="us-east-1")
    nobody = Minio(parts.netloc, secure=parts.scheme == "https", region="us-east-1")

    def of_its_own() -> dict[str, str]:
        client.put_object(bucket, f"{own}/x", io.BytesIO(b"A"), 1)
        return answers({"put": WRITES["put"], **READS, **WRITES}, client, bucket, own, f"{own}/below")

    found: dict[str, Any] = {"before": of_its_own()}
    found["theirs"] = answers({**READS, **WRITES, **BEYOND}, client, bucket, own, theirs)
    found["anonymous"] = answers({**READS, **WRITES, **BEYOND}, nobody, bucket, own, theirs)
    found["api"] = ask_api(api)
    return {**found, "after": of_its_own()}


if __name__ == "__main__":
    print(json.dumps(main(**json.loads(sys.argv[1]))))
