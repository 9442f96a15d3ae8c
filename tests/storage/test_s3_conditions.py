"""Creating and replacing objects on a server that takes conditions of writes for granted: claims decide instead."""

import threading
import time
from typing import Any

import pytest
from minio import Minio

from tests.servers import S3Server, new_store
from trainer.errors import RunError
from trainer.storage import join, read_bytes, write_bytes
from trainer.storage import s3_conditions as conditions
from trainer.storage.s3_client import Client
from trainer.storage.writers import beside_all


@pytest.mark.parametrize("kind", ["create", "replace"])
def test_one_of_many_claims_it(unconditional: str, kind: str, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of stores that write at once one succeeds; no claim and no probe stays; the log says how it was decided."""
    monkeypatch.setattr(conditions, "SETTLE_SECONDS", 1.2)  # on one machine; claims are ordered by whole seconds
    uri, wins = join(unconditional, "d", "x"), []
    stamp = write_bytes(uri, b"old").stamp if kind == "replace" else ""
    barrier = threading.Barrier(6)

    def write(number: int) -> None:
        store, data = new_store(unconditional), str(number).encode()
        barrier.wait(60)
        if store.create(uri, data) if kind == "create" else store.replace(uri, data, stamp):
            wins.append(data)

    threads = [threading.Thread(target=write, args=(number,)) for number in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(wins) == 1
    assert read_bytes(uri) == wins[0]
    store = new_store(unconditional)
    assert [item.object_name for item in store._client.list_objects(uri.split("/")[2], recursive=True, prefix=uri.split("/")[3])] == [
        uri.split("/", 3)[3]
    ]
    assert "does not support conditional writes" in caplog.text


def test_claim_of_a_killed_writer_is_passed_over(unconditional: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A claim that nobody took back counts until it is old by the server's clock, then no longer."""
    uri, store = join(unconditional, "d", "x"), new_store(unconditional)
    _, _, bucket, key = uri.split("/", 3)
    claim, probe = f"{beside_all(key, 'claim')}00000000-00000000-1-1-0000.partial", f"{key}-probe"

    def written(key: str) -> float:
        """Write it now; when that was by the server's clock, in whole seconds."""
        store._client.put(bucket, key, b"")
        return store._client.stat_object(bucket, key).last_modified.timestamp()

    made = written(claim)
    monkeypatch.setattr(conditions, "SETTLE_SECONDS", 0.2)
    monkeypatch.setattr(conditions, "STALE_SECONDS", 0.3)
    monkeypatch.setattr(store._client, "now", lambda: made)
    with pytest.raises(RunError, match="x: other writers kept it claimed"):
        store.create(uri, b"1")
    while written(probe) == made:
        time.sleep(0.05)
    monkeypatch.setattr(conditions, "STALE_SECONDS", 60.0)
    monkeypatch.setattr(store._client, "now", lambda: made + 60.5)  # too late for that claim, and not for one that is made now
    assert store.create(uri, b"2")
    assert read_bytes(uri) == b"2"


def test_conditions_are_asked_for_once(s3_root: str, s3_server: S3Server) -> None:
    """A server that checks conditions is asked once a bucket, and no probe stays."""
    store = new_store(s3_root)
    assert store.create(join(s3_root, "d", "x"), b"1")
    assert store._conditions == {s3_root.split("/")[2]: True}
    assert not store.create(join(s3_root, "d", "x"), b"2")
    left = s3_server.client.list_objects(s3_root.split("/")[2], prefix=s3_root.split("/")[3], recursive=True)
    assert [item.object_name for item in left] == [join(s3_root, "d", "x").split("/", 3)[3]]


def test_lost_answer_to_a_conditional_write(s3_root: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A write whose answer got lost, so that its next try is refused on its own object, is recognised."""
    uri, store = join(s3_root, "x"), new_store(s3_root)
    put = Client.put

    def twice(self: Client, *arguments: Any, **rest: Any) -> Any:
        put(self, *arguments, **rest)
        return put(self, *arguments, **rest)

    assert store.create(join(s3_root, "first"), b"1")  # which asks for conditions, too
    monkeypatch.setattr(Client, "put", lambda self, bucket, key, *rest: (twice if key.endswith("/x") else put)(self, bucket, key, *rest))
    assert store.create(uri, b"1")
    assert not store.create(uri, b"1")


def test_a_harmed_write_by_claims_is_found(unconditional: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """As one by the server's own conditions is: what the store holds then is compared with what was sent."""
    put = Minio._put_object

    def harm(self: Minio, bucket: str, key: str, data: bytes, headers: Any = None, query: Any = None) -> Any:
        if not key.endswith("/x"):
            return put(self, bucket, key, data, headers, query)
        return put(self, bucket, key, data[:-1] + b"?", {name: value for name, value in headers.items() if name != "Content-MD5"}, query)

    monkeypatch.setattr(Minio, "_put_object", harm)
    monkeypatch.setattr(conditions, "SETTLE_SECONDS", 0.2)
    with pytest.raises(RunError, match=r"x: .* has different bytes from those sent"):
        new_store(unconditional).create(join(unconditional, "x"), b"data")
