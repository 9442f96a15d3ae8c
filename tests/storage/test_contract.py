"""One contract, two stores: what file:// does, s3:// does on a real server."""

import io
import multiprocessing
import os
import random
from multiprocessing.queues import Queue
from multiprocessing.synchronize import Barrier

import pytest

from tests.servers import S3Server
from trainer.errors import InputError, RunError
from trainer.storage import exists, join, open_store, read_bytes, read_json, write_bytes, write_json
from trainer.storage.base import MissingObject
from trainer.storage.s3 import PART_BYTES


class Dribble(io.RawIOBase):
    """A stream of unknown length that cannot be rewound and gives a few bytes a read."""

    def __init__(self, data: bytes, most: int) -> None:
        super().__init__()
        self._stream, self._most = io.BytesIO(data), most

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return False

    def read(self, size: int = -1) -> bytes:
        return self._stream.read(min(size if size >= 0 else self._most, self._most))


def test_bytes_come_back(root: str) -> None:
    """What was written is read, in whole and by head."""
    uri = join(root, "a", "b.bin")
    info = write_bytes(uri, b"seen before read")
    assert (info.uri, info.size) == (uri, 16)
    assert read_bytes(uri) == b"seen before read"
    head = open_store(uri).head(uri)
    assert head is not None
    assert (head.uri, head.size) == (uri, 16)
    assert abs(head.modified - info.modified) < 5


def test_empty_object(root: str) -> None:
    """An empty object is an object, whether its size was announced or not."""
    uri = join(root, "empty")
    write_bytes(uri, b"")
    assert read_bytes(uri) == b""
    open_store(uri).put_stream(join(root, "empty2"), io.BytesIO())
    assert exists(join(root, "empty2"))


def test_missing_object(root: str) -> None:
    """Reading nothing is an error of its own that names the URI; asking for it is not; deleting it neither."""
    write_bytes(join(root, "there"), b"x")
    uri = join(root, "not", "there")
    store = open_store(uri)
    for read in (store.get, lambda uri: store.get_range(uri, 0, 1)):
        with pytest.raises(MissingObject, match="not/there"):
            read(uri)
    assert store.head(uri) is None
    store.delete(uri)
    assert store.head(join(root, "not")) is None


def test_a_folder_is_no_object(root: str) -> None:
    """The folder of an object does not exist as one, and cannot be read."""
    write_bytes(join(root, "folder", "x"), b"x")
    assert not exists(join(root, "folder"))
    with pytest.raises(MissingObject):
        read_bytes(join(root, "folder"))


def test_ranges(root: str) -> None:
    """A range is exactly what was asked for, and past the end it is an error that says the object was cut short."""
    data = random.Random(0).randbytes(3 << 20)
    uri = join(root, "data")
    write_bytes(uri, data)
    store = open_store(uri)
    for start, length in [(0, 1), (0, 3 << 20), (5, 7), ((1 << 20) - 1, 2), ((3 << 20) - 1, 1), (17, 2 << 20), (4, 0)]:
        assert store.get_range(uri, start, length) == data[start : start + length]
    for start, length in [(0, (3 << 20) + 1), ((3 << 20) - 1, 2), (3 << 20, 1), (9 << 20, 5)]:
        with pytest.raises(RunError, match=r"data: .*truncated"):
            store.get_range(uri, start, length)


def test_stream_gives_pieces(root: str) -> None:
    """A stream gives the object in pieces of at most 1 MiB, from any byte on."""
    data = random.Random(1).randbytes((2 << 20) + 11)
    uri = join(root, "data")
    write_bytes(uri, data)
    pieces = list(open_store(uri).stream(uri))
    assert b"".join(pieces) == data
    assert max(map(len, pieces)) <= 1 << 20
    assert b"".join(open_store(uri).stream(uri, 100)) == data[100:]


def test_overwriting(root: str) -> None:
    """A second write replaces the first, and leaves nothing else in the folder."""
    uri = join(root, "folder", "x")
    write_bytes(uri, b"first, and longer")
    write_bytes(uri, b"second")
    assert read_bytes(uri) == b"second"
    assert [info.uri for info in open_store(root).list(join(root, "folder"))] == [uri]


def test_listing(root: str) -> None:
    """A listing is every object below the folder, in the order of their URIs, and only that folder's."""
    names = ["d/a", "d/a-b", "d/a.b", "d/a/b/c", "d/a/b", "d/aa", "d/Z", "d/é", "d2/x"]
    names.remove("d/a/b")  # an object below another one is something that files cannot have
    names.remove("d/a")
    for name in names:
        write_bytes(join(root, name), name.encode())
    listed = list(open_store(root).list(join(root, "d")))
    assert [info.uri for info in listed] == [join(root, name) for name in sorted(names) if name.startswith("d/")]
    assert [info.size for info in listed] == [len(name.encode()) for name in sorted(names) if name.startswith("d/")]
    assert len(list(open_store(root).list(root))) == len(names)
    assert list(open_store(root).list(join(root, "nothing"))) == []
    held = {name: open_store(root).holds(join(root, name)) for name in ("d", "d/", "d/a", "", "nothing", "d2/x")}
    assert held == {"d": True, "d/": True, "d/a": True, "": True, "nothing": False, "d2/x": False}


def test_bucket_as_root(s3_root: str, s3_server: S3Server) -> None:
    """A whole bucket is a root like any folder."""
    root = s3_server.make_bucket()
    write_bytes(join(root, "x"), b"x")
    assert [info.uri for info in open_store(root).list(root)] == [join(root, "x")]
    assert [info.uri for info in open_store(root).list(root + "/")] == [join(root, "x")]


def test_deleted_object_is_gone(root: str) -> None:
    """A deleted object is neither read nor listed."""
    uri = join(root, "d", "x")
    write_bytes(uri, b"x")
    open_store(uri).delete(uri)
    assert not exists(uri)
    assert list(open_store(root).list(join(root, "d"))) == []


@pytest.mark.parametrize("name", ["with space", "plus+sign", "percent%41", "ünïcode-日本", "a&b=c?d#e", "quote'\"", "tilde~*()!"])
def test_awkward_names(root: str, name: str) -> None:
    """A name is a name, whatever a URL would make of it."""
    uri = join(root, "d", name)
    write_bytes(uri, name.encode())
    assert read_bytes(uri) == name.encode()
    assert [info.uri for info in open_store(root).list(join(root, "d"))] == [uri]


@pytest.mark.parametrize("announced", [True, False])
@pytest.mark.parametrize(
    "size",
    [
        pytest.param(PART_BYTES - 1, marks=pytest.mark.slow),
        PART_BYTES,
        pytest.param(PART_BYTES + 1, marks=pytest.mark.slow),
        2 * PART_BYTES + 5,
    ],
)
def test_large_streams(root: str, size: int, announced: bool) -> None:
    """Streams around the size of a part come back whole, of known and of unknown length, with short reads."""
    data = random.Random(size).randbytes(size)
    uri = join(root, "large")
    info = open_store(uri).put_stream(uri, Dribble(data, 3_000_001), size if announced else None)
    assert info.size == size
    assert read_bytes(uri) == data


@pytest.mark.parametrize("held", [0, 99, 101, PART_BYTES + 5])
def test_wrong_announced_size(root: str, held: int) -> None:
    """A stream that is not as long as announced is refused, and the old object stays."""
    uri = join(root, "x")
    write_bytes(uri, b"old")
    with pytest.raises(RunError, match="100 were announced"):
        open_store(uri).put_stream(uri, Dribble(b"n" * held, 1 << 20), 100)
    assert read_bytes(uri) == b"old"
    assert [info.uri for info in open_store(root).list(root)] == [uri]


def test_stream_that_fails(root: str) -> None:
    """Where the source of a long write fails midway, its error is the one that is seen and the old object stays."""

    class Failing(Dribble):
        def read(self, size: int = -1) -> bytes:
            if self._stream.tell() > PART_BYTES + 100:
                raise RunError("the source broke")
            return super().read(size)

    uri = join(root, "x")
    write_bytes(uri, b"old")
    with pytest.raises(RunError, match="the source broke"):
        open_store(uri).put_stream(uri, Failing(bytes(3 * PART_BYTES), 1 << 20))
    assert read_bytes(uri) == b"old"


def test_json(root: str) -> None:
    """Equal values are equal bytes; what is not JSON is refused, naming the URI."""
    uri = join(root, "x.json")
    write_json(uri, {"b": [1, 2.5, None], "a": "é"})
    first = read_bytes(uri)
    write_json(uri, {"a": "é", "b": [1, 2.5, None]})
    assert read_bytes(uri) == first
    assert read_json(uri) == {"a": "é", "b": [1, 2.5, None]}
    for wrong in (b"{", b"", b"\xff\xfe"):
        write_bytes(uri, wrong)
        with pytest.raises(RunError, match=r"x\.json: not JSON"):
            read_json(uri)


def _child(uri: str) -> None:
    data = read_bytes(uri)
    write_bytes(f"{uri}-{os.getpid()}", data)


@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_forked_children_have_connections_of_their_own(root: str) -> None:
    """Processes forked after the store was used read and write beside their parent."""
    uri = join(root, "x")
    write_bytes(uri, b"shared" * 100_000)
    context = multiprocessing.get_context("fork")
    children = [context.Process(target=_child, args=(uri,)) for _ in range(4)]
    for child in children:
        child.start()
    for _ in range(20):
        assert read_bytes(uri) == b"shared" * 100_000
    for child in children:
        child.join(60)
    assert [child.exitcode for child in children] == [0] * 4
    assert len(list(open_store(root).list(root))) == 5


def test_unknown_scheme() -> None:
    """A scheme that no store serves is refused, naming it."""
    with pytest.raises(InputError, match="gs://bucket/x: unsupported scheme"):
        open_store("gs://bucket/x")


def _compete(uri: str, number: int, start: Barrier, winners: "Queue[str]") -> None:
    """Create the object at the same time as others, then replace it at the same time as others."""
    store, data = open_store(uri), str(number).encode()
    start.wait(60)
    if store.create(uri, data):
        winners.put(f"create {number}")
    start.wait(60)
    found = store.head(uri)
    assert found is not None
    start.wait(60)
    if store.replace(uri, b"new " + data, found.stamp):
        winners.put(f"replace {number}")


def test_one_of_many_writes(root: str) -> None:
    """Of processes that create or replace an object at once one succeeds, and it is that one's bytes that lie there."""
    uri = join(root, "folder", "x")
    context = multiprocessing.get_context("spawn")
    start, winners = context.Barrier(3), context.Queue()
    children = [context.Process(target=_compete, args=(uri, number, start, winners)) for number in range(3)]
    for child in children:
        child.start()
    for child in children:
        child.join(120)
    assert [child.exitcode for child in children] == [0] * 3
    won = dict(winners.get(timeout=10).split() for _ in range(2))
    assert winners.empty()
    assert won.keys() == {"create", "replace"}
    assert read_bytes(uri) == f"new {won['replace']}".encode()
    assert [info.uri for info in open_store(root).list(root)] == [uri]


def test_create_and_replace(root: str) -> None:
    """An object is created once, and replaced only by who knows its version; what is absent is not replaced."""
    uri, store = join(root, "folder", "x"), open_store(root)
    assert not store.replace(uri, b"0", "nothing")
    assert store.create(uri, b"1")
    assert not store.create(uri, b"2")
    first = store.head(uri)
    assert first is not None
    assert store.replace(uri, b"3", first.stamp)
    assert not store.replace(uri, b"4", first.stamp)
    assert read_bytes(uri) == b"3"
    store.delete(uri)
    assert not store.replace(uri, b"5", first.stamp)
    assert store.create(uri, b"6")


@pytest.mark.parametrize("size", [0, 100, 2 * PART_BYTES + 5])
def test_copy(root: str, size: int) -> None:
    """A copy has the bytes of its source, replaces what lay there, and outlives the source."""
    data = random.Random(size).randbytes(size)
    source, target, store = join(root, "a b", "source"), join(root, "new", "target"), open_store(root)
    info = store.put_stream(source, io.BytesIO(data), size)
    store.copy(source, target)
    assert read_bytes(target) == data
    write_bytes(target, b"another")
    copied = store.copy(source, target)
    assert (copied.uri, copied.size) == (target, size)
    assert store.copy(source, source).size == size
    assert store.copy(source, target) == store.head(target)
    store.delete(source)
    assert read_bytes(target) == data
    assert [info.uri for info in store.list(root)] == [target]
    with pytest.raises(MissingObject, match=source):
        store.copy(source, target)
    assert read_bytes(target) == data
    assert info.size == size


def test_stamps_tell_versions_apart(root: str) -> None:
    """The stamp that a write returns is that of the object, in a head as in a listing, until it is written again."""
    uri, store = join(root, "d", "x"), open_store(root)
    written = write_bytes(uri, b"one")
    [listed] = store.list(join(root, "d"))
    head = store.head(uri)
    assert head is not None
    assert written.stamp == listed.stamp == head.stamp != ""
    assert write_bytes(uri, b"two").stamp != written.stamp
