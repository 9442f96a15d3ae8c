"""What killed writers leave in a bucket: uploads with their parts, records, claims; swept by whoever comes next, the living's kept."""

import hashlib
import io
import os
import random
import subprocess
import sys
from collections.abc import Iterator

import pytest
import urllib3
from minio import Minio
from minio.error import S3Error

from pipelines.jobs.lease import Lease, Taken
from tests.servers import S3Server
from trainer.storage import join, open_store, read_bytes, s3_client, s3_uploads, write_bytes, writers
from trainer.storage.s3 import PART_BYTES, S3Store
from trainer.storage.s3_answers import Damaged
from trainer.storage.s3_client import Client
from trainer.storage.s3_settings import settings_from_environment
from trainer.storage.s3_uploads import Target, Upload

WRITER = """
import sys
from trainer.storage import open_store
class Slow:
    sent = 0
    def seekable(self): return False
    def read(self, size):
        self.sent += 1
        if self.sent > 3:
            print("writing", flush=True); sys.stdin.read()
        return bytes(size)
open_store(sys.argv[1]).put_stream(sys.argv[1], Slow())
"""


@pytest.fixture(params=["s3", pytest.param("minio", marks=pytest.mark.slow)])
def server(request: pytest.FixtureRequest) -> S3Server:
    """Each server; `bucket_root` is a folder there."""
    found: S3Server = request.getfixturevalue(f"{request.param}_server")
    return found


@pytest.fixture
def folder(server: S3Server, request: pytest.FixtureRequest) -> str:
    """A fresh folder on the server, which the environment names."""
    kind = "minio" if server.ca_file else "s3"
    return join(str(request.getfixturevalue(f"{kind}_root")), "d")


@pytest.fixture
def writer(folder: str) -> Iterator[subprocess.Popen[str]]:
    """A process in the middle of an upload to folder/x."""
    process = subprocess.Popen([sys.executable, "-c", WRITER, join(folder, "x")], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "writing\n"
    yield process
    process.kill()
    process.wait()
    for stream in (process.stdin, process.stdout):
        assert stream is not None
        stream.close()


def new_client() -> Client:
    """One for the environment as it is."""
    return Client(settings_from_environment("s3://x/y"))


def left(folder: str) -> tuple[list[str], list[str]]:
    """What lies in the folder, hidden names included, and the ids of uploads to its x."""
    _, _, bucket, key = folder.split("/", 3)
    client = new_client()
    names = [str(item.object_name) for item in client.list_objects(bucket, prefix=f"{key}/", recursive=True)]
    return names, client.list_uploads(bucket, f"{key}/x")


def test_uploads_of_killed_writers_are_swept(folder: str, writer: subprocess.Popen[str]) -> None:
    """A living writer's upload stays, and its record is no object; when it was killed the next one to come removes both."""
    store = open_store(folder)
    store.sweep(folder)
    names, uploads = left(folder)
    assert (len(names), len(uploads)) == (1, 1)
    assert list(store.list(folder)) == []
    assert not store.holds(folder)
    writer.kill()
    writer.wait()
    store.sweep(folder)
    assert left(folder) == ([], [])


def test_a_finished_upload_leaves_nothing(folder: str) -> None:
    """Neither a record nor a part."""
    data = random.Random(0).randbytes(PART_BYTES + 5)
    open_store(folder).put_stream(join(folder, "x"), io.BytesIO(data))
    assert left(folder) == ([f"{folder.split('/', 3)[3]}/x"], [])


@pytest.mark.parametrize("end", ["finished", "failed", "killed"])
def test_an_upload_whose_answer_got_lost_is_ended_too(folder: str, end: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The request is sent again, and begins a second upload; nobody knows the id of the first."""
    _, _, bucket, key = folder.split("/", 3)
    checked, lost = s3_client.check_answer, []

    def lose(method: str, name: str | None, query: dict[str, str], *rest: object, **options: object) -> None:
        checked(method, name, query, *rest, **options)  # type: ignore[arg-type]
        if method == "POST" and "uploads" in query and not lost:
            lost.append(name)
            raise Damaged("an answer that ends early")

    with monkeypatch.context() as patch:
        patch.setattr(s3_client, "check_answer", lose)
        if end == "killed":
            patch.setattr(writers, "mark", lambda: writers._own_mark(os.getpid()).rpartition("-")[0] + "-1")
        upload = Upload(Target(new_client(), join(folder, "x"), bucket, f"{key}/x"))
    assert len(left(folder)[1]) == 2
    if end == "finished":
        upload.send(b"data", hashlib.md5(b"data").hexdigest())
        upload.complete()
        upload.forget()
    elif end == "failed":
        upload.abort()
    else:
        open_store(folder).sweep(folder)
    assert left(folder) == ([f"{key}/x"] if end == "finished" else [], [])


@pytest.mark.parametrize("records_id", [True, False])
def test_writers_elsewhere_are_judged_by_the_stores_clock(folder: str, monkeypatch: pytest.MonkeyPatch, records_id: bool) -> None:
    """Another machine's upload is ended when its record is older than any living writer's, wherever that writer was killed."""
    _, _, bucket, key = folder.split("/", 3)
    client = new_client()
    with monkeypatch.context() as elsewhere:
        elsewhere.setattr(writers, "mark", lambda: "00000000-00000000-1-1")
        if not records_id:
            elsewhere.setattr(Client, "begin_upload", lambda self, bucket, key: ("", True))  # killed before the record has it
        upload = Upload(Target(client, join(folder, "x"), bucket, f"{key}/x"))
    if not records_id:
        client.begin_upload(bucket, f"{key}/x")
    assert (upload.id != "") is records_id
    store = S3Store(settings_from_environment(folder))
    store.sweep(folder)
    assert (len(left(folder)[0]), len(left(folder)[1])) == (1, 1)
    now = Client.now
    monkeypatch.setattr(Client, "now", lambda self: now(self) + 900 + 300 + 60 + 30)
    store.sweep(folder)
    assert left(folder) == ([], [])


def test_a_dead_writers_sweep_spares_the_living(folder: str, writer: subprocess.Popen[str]) -> None:
    """Of two uploads to one object, the dead writer's is ended by its id."""
    _, _, bucket, key = folder.split("/", 3)
    client = new_client()
    dead = Upload(Target(client, join(folder, "x"), bucket, f"{key}/x"))
    boot, namespace, process, _ = writers.mark().split("-")
    client.put(
        bucket,
        f"{key}/.x.upload-{boot}-{namespace}-{process}-1-0000.partial",
        b'{"key": "%s/x", "upload_id": "%s", "stale_seconds": 9}' % (key.encode(), dead.id.encode()),
    )
    dead.forget()
    assert len(left(folder)[1]) == 2
    open_store(folder).sweep(folder)
    names, uploads = left(folder)
    assert (len(names), len(uploads)) == (1, 1)
    assert uploads != [dead.id]


def test_a_damaged_record_leads_to_its_upload(folder: str) -> None:
    """Its name says which object it was for."""
    _, _, bucket, key = folder.split("/", 3)
    client = new_client()
    client.begin_upload(bucket, f"{key}/x")
    boot, namespace, process, _ = writers.mark().split("-")
    client.put(bucket, f"{key}/.x.upload-{boot}-{namespace}-{process}-1-0000.partial", b'{"key"')
    open_store(folder).sweep(folder)
    assert left(folder) == ([], [])


def test_lost_answer_to_a_completion(folder: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """An upload that the store has already completed is known by its ETag, so that a stream that cannot be rewound survives."""
    complete = Minio._complete_multipart_upload

    def twice(self: Minio, *arguments: object) -> object:
        complete(self, *arguments)  # type: ignore[arg-type]
        return complete(self, *arguments)  # type: ignore[arg-type]

    class Once(io.BytesIO):
        def seekable(self) -> bool:
            return False

    monkeypatch.setattr(Minio, "_complete_multipart_upload", twice)
    data = random.Random(0).randbytes(PART_BYTES + 5)
    open_store(folder).put_stream(join(folder, "x"), Once(data))
    assert read_bytes(join(folder, "x")) == data
    assert left(folder)[1] == []


def test_old_claims_are_swept(folder: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Claims and probes of writers elsewhere, once they are old; objects of like names stay."""
    _, _, bucket, key = folder.split("/", 3)
    client = new_client()
    for name in (".x.claim-00000000-00000000-1-1-0000.partial", ".x.probe-00000000-00000000-1-1-0000.partial", "x.partial", ".x.partial"):
        client.put(bucket, f"{key}/{name}", b"")
    store = S3Store(settings_from_environment(folder))
    store.sweep(folder)
    assert len(left(folder)[0]) == 4
    now = Client.now
    monkeypatch.setattr(Client, "now", lambda self: now(self) + s3_uploads._CLAIM_STALE_SECONDS + 30)
    store.sweep(folder)
    assert left(folder)[0] == [f"{key}/.x.partial", f"{key}/x.partial"]


def test_leftovers_that_may_not_be_removed_stop_nobody(
    folder: str, writer: subprocess.Popen[str], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Keys without the right to end uploads (s3:AbortMultipartUpload): a line says so, the record stays, and the next one may."""
    writer.kill()
    writer.wait()
    response = urllib3.HTTPResponse(status=403)
    refused = S3Error(response, "AccessDenied", "", None, None, None)

    def refuse(*arguments: object) -> None:
        raise refused

    with monkeypatch.context() as weak:
        weak.setattr(Client, "abort_upload", refuse)
        open_store(folder).sweep(folder)
    assert "cannot be removed: AccessDenied" in caplog.text
    assert tuple(map(len, left(folder))) == (1, 1)
    open_store(folder).sweep(folder)
    assert left(folder) == ([], [])


def test_the_probe_of_a_killed_locker_is_swept(folder: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """What the lock writes to ask for the store's clock, where it could not remove it."""
    write_bytes(join(folder, "run.lock"), b"{}")
    with monkeypatch.context() as killed:
        killed.setattr(S3Store, "delete", lambda self, uri: None)
        killed.setattr(writers, "mark", lambda: "00000000-00000000-1-1")
        with pytest.raises(Taken):
            Lease(folder, {}, ended=lambda holder: False, say=print).take()
    assert len(left(folder)[0]) == 2
    store, now = S3Store(settings_from_environment(folder)), Client.now
    monkeypatch.setattr(Client, "now", lambda self: now(self) + 700)
    store.sweep(folder)
    assert [name.rpartition("/")[2] for name in left(folder)[0]] == ["run.lock"]
