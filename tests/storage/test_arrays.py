"""Arrays come back as numpy wrote them; whatever else the bytes are is one error that names the object, within bounds."""

import io
import random
import re
import struct
import subprocess
import sys
import time
import zipfile
from pathlib import Path

import numpy as np
import pytest

from trainer.errors import Corrupt
from trainer.storage import write_bytes
from trainer.storage.arrays import MAX_BYTES, MAX_PACKED_BYTES, decode_array, decode_arrays, read_arrays
from trainer.storage.base import MissingObject

URI = "s3://bucket/x.items.npz"
ARRAYS = {
    "key": np.array([f"picture-{n}" for n in range(40)]),
    "correct": np.arange(40) % 3 == 0,
    "rank": np.arange(40),
    "scores": np.asfortranarray(np.random.default_rng(0).random((40, 3), dtype=np.float32)),
    "none": np.zeros((0, 2)),
    "one": np.array(0.5),
}


def packed(arrays=None, save=np.savez_compressed):
    buffer = io.BytesIO()
    save(buffer, **(ARRAYS if arrays is None else arrays))
    return buffer.getvalue()


def saved(array, **options):
    buffer = io.BytesIO()
    np.save(buffer, array, **options)
    return buffer.getvalue()


def archive(members, method=zipfile.ZIP_DEFLATED):
    """An archive of raw members, [(name, bytes)]."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", method, compresslevel=1) as out:
        for name, data in members:
            out.writestr(name, data)
    return buffer.getvalue()


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_arrays_come_back_as_numpy_reads_them(save):
    """Values, types, shapes and order of every kind that an evaluation writes."""
    data = packed(save=save)
    found = decode_arrays(data, URI)
    with np.load(io.BytesIO(data), allow_pickle=False) as theirs:
        assert found.keys() == set(theirs.files)
        for name, array in found.items():
            assert array.dtype == theirs[name].dtype
            np.testing.assert_array_equal(array, theirs[name])


def test_only_what_is_wanted_is_unpacked():
    """Damage of another member costs nothing."""
    data = bytearray(packed({"a": np.arange(5), "b": np.arange(500)}, np.savez))
    data[data.index(np.arange(490, 500).tobytes())] ^= 1
    assert decode_arrays(bytes(data), URI, ("a", "c"))["a"].tolist() == [0, 1, 2, 3, 4]
    with pytest.raises(Corrupt, match="CRC"):
        decode_arrays(bytes(data), URI)


def damaged(data, seed):
    """Bits flipped, cut short, a piece put elsewhere, or bytes replaced by others of another number."""
    choose, changed = random.Random(seed), bytearray(data)
    place = choose.randrange(len(data))
    how = choose.choice(["flip", "flip", "cut", "splice", "replace"])
    if how == "flip":
        for _ in range(choose.choice([1, 1, 3])):
            changed[choose.randrange(len(data))] ^= 1 << choose.randrange(8)
    elif how == "cut":
        del changed[place:]
    elif how == "splice":
        source, count = choose.randrange(len(data)), choose.randrange(1, 200)
        changed[place : place + count] = data[source : source + count]
    else:
        changed[place : place + choose.randrange(12)] = choose.randbytes(choose.randrange(12))
    return bytes(changed)


def said_of(read, data):
    """What an archive or array is refused with; empty if it is read."""
    try:
        read(data, URI)
    except Corrupt as error:
        return str(error)
    return ""


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_damaged_archives_give_one_error_or_the_same_arrays(save):
    """Whatever is changed: the arrays that were packed, or Corrupt in one line; never other values."""
    data, refused = packed(save=save), 0
    for seed in range(1500):
        changed = damaged(data, seed)
        said = said_of(decode_arrays, changed)
        refused += bool(said)
        assert said.startswith(f"{URI}: ") == bool(said)
        assert "\n" not in said
        found = {} if said else decode_arrays(changed, URI)
        for name in found.keys() & ARRAYS.keys():
            np.testing.assert_array_equal(found[name], ARRAYS[name], err_msg=str(seed))
    assert refused > 1000


def test_damaged_headers_of_arrays_give_one_error():
    """Of an .npy file, which has no checksum, only the error is promised."""
    data = saved(np.arange(12).reshape(3, 4))
    said = [said_of(decode_array, damaged(data, seed)) for seed in range(2000)]
    assert all(line.startswith(f"{URI}: ") for line in said if line)
    assert sum(map(bool, said)) > 500


def header(text, version=(1, 0), rest=b""):
    body = text.encode()
    length = struct.pack("<H" if version == (1, 0) else "<I", len(body))
    return b"\x93NUMPY" + bytes(version) + length + body + rest


@pytest.mark.parametrize(
    "data",
    [
        header("{'descr': '<f8', 'fortran_order': False, 'shape': (1000000000000,), }\n"),
        header("{'descr': '<f8', 'fortran_order': False, 'shape': (" + "1000000, " * 9 + "1000000), }\n"),
        header("{'descr': '<U999999999', 'fortran_order': False, 'shape': (1,), }\n"),
        header("{'descr': '<U0', 'fortran_order': False, 'shape': (100000000000,), }\n"),
        header("{'descr': '<f8', 'fortran_order': False, 'shape': (" + "1, " * 99 + "1), }\n", rest=b"12345678"),
        header("{'descr': '<f8', 'fortran_order': False, 'shape': (" + "999999999999999, " * 300_000 + "1), }\n", (2, 0)),
        header("{'descr': '<f3', 'fortran_order': False, 'shape': (1,), }\n", rest=b"123"),
        header("{'descr': '|O', 'fortran_order': False, 'shape': (1,), }\n", rest=b"N."),
        header("{'descr': [('a', '<f8')], 'fortran_order': False, 'shape': (1,), }\n", rest=b"12345678"),
        header("{'descr': '<f8', 'fortran_order': False, 'shape': (1,), 'x': " + "[" * 5000 + "]" * 5000 + "}\n", (2, 0)),
        header("-" * 60000),
        header("{'descr': '<f8', 'fortran_order': False, 'shape': (-1,), }\n", rest=b"12345678"),
        b"\x93NUMPY\2\0\xff\xff\xff\xff{",
        b"\x93NUMPY\1\0",
        b"",
        saved(np.array([{}], dtype=object), allow_pickle=True),
    ],
)
def test_headers_that_ask_for_too_much_are_refused(data):
    """Shapes without bytes, types that are objects or none, code in place of a header: nothing is allocated or run."""
    began = time.process_time()
    with pytest.raises(Corrupt, match=re.escape(URI)) as raised:
        decode_array(data, URI)
    assert time.process_time() - began < 2
    assert len(str(raised.value)) < 1000
    with pytest.raises(Corrupt, match=re.escape(URI)):
        decode_arrays(archive([("a.npy", data)]), URI)


def lying_size(method):
    """A member of 320 MB whose entry says 100 bytes."""
    data = bytearray(archive([("a.npy", bytes(320 << 20))], method))
    size = struct.pack("<L", 320 << 20)
    while (place := data.find(size)) >= 0:
        data[place : place + 4] = struct.pack("<L", 100)
    return bytes(data)


BOMBS = {
    "one member": lambda: archive([("a.npy", bytes(MAX_BYTES + 1))]),
    "many members together": lambda: archive([(f"{n}.npy", bytes(4 << 20)) for n in range(40)]),
    "a member that is larger than it says": lambda: lying_size(zipfile.ZIP_DEFLATED),
    "a member packed by bzip2": lambda: lying_size(zipfile.ZIP_BZIP2),
    "a long directory": lambda: archive([(f"{n}.npy", b"") for n in range(5000)]),
}


@pytest.mark.parametrize("bomb", [pytest.param(bomb, marks=pytest.mark.slow) if "bzip2" in bomb else bomb for bomb in BOMBS])
def test_bombs_are_refused_within_bounds(tmp_path, bomb):
    """Small files that unpack to much more: one line, and less than 300 MB of memory."""
    path = tmp_path / "bomb.npz"
    path.write_bytes(BOMBS[bomb]())
    code = (
        "import sys\nfrom tests.peak import peak_bytes\n"
        "from trainer.errors import Corrupt\nfrom trainer.storage.arrays import read_arrays\n"
        "try:\n    read_arrays(sys.argv[1])\nexcept Corrupt as error:\n    print(error)\n"
        "print(peak_bytes() >> 10)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(path)], capture_output=True, text=True, check=True, cwd=Path(__file__).parents[2]
    )
    said, kilobytes = done.stdout.splitlines()
    assert said.startswith(f"{path}: ")
    assert int(kilobytes) < 300_000


@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_two_members_of_one_name_are_refused():
    """Which one counts would be a guess."""
    with pytest.raises(Corrupt, match="two members have the same name"):
        decode_arrays(archive([("a.npy", saved(np.arange(3))), ("a.npy", saved(np.arange(4)))]), URI)


def test_a_recorded_checksum_is_compared(tmp_path):
    """Another archive at its place, however whole, is not read."""
    uri = str(tmp_path / "x.npz")
    write_bytes(uri, packed({"a": np.arange(3)}))
    sealed = {"size": len(packed()), "sha256": "0" * 64}
    with pytest.raises(Corrupt, match="differ from those recorded"):
        read_arrays(uri, sealed=sealed)
    assert read_arrays(uri)["a"].tolist() == [0, 1, 2]


def test_an_object_that_is_too_large_is_not_fetched(tmp_path):
    """Its size alone refuses it."""
    path = tmp_path / "x.npz"
    with path.open("wb") as file:
        file.truncate(MAX_PACKED_BYTES + 1)
    with pytest.raises(Corrupt, match="too large for a firstsight array"):
        read_arrays(str(path))
    assert MAX_BYTES + MAX_PACKED_BYTES < 250e6


def test_what_is_not_there_is_missing(tmp_path):
    """As of any object."""
    with pytest.raises(MissingObject):
        read_arrays(str(tmp_path / "x.npz"))
