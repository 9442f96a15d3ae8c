"""Tars as people bring them: every member is written, lost by a named cause, or left out by a rule of docs/DATA.md."""

import bz2
import gzip
import io
import json
import lzma
import tarfile
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from tests.staging.conftest import picture
from trainer.errors import InputError
from trainer.staging import kinds
from trainer.staging.rows import PairRow
from trainer.staging.sources import tars
from trainer.staging.sources.listing import Rows, list_source

PNG = picture(1)
Entry = tuple[str, bytes, bytes, str]  # name, type, content, target of a link


def file(name: str, data: bytes = PNG) -> Entry:
    return name, tarfile.REGTYPE, data, ""


def link(name: str, target: str, kind: bytes = tarfile.LNKTYPE) -> Entry:
    return name, kind, b"", target


def pack(entries: Sequence[Entry]) -> bytes:
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w") as tar:
        for name, kind, data, target in entries:
            info = tarfile.TarInfo(name)
            info.type, info.size, info.linkname = kind, len(data), target
            tar.addfile(info, io.BytesIO(data))
    return stream.getvalue()


def read(folder: Path, data: bytes, **others: bytes) -> Rows[PairRow]:
    folder.mkdir(exist_ok=True)
    (folder / "a.tar").write_bytes(data)
    for name, content in others.items():
        (folder / name.replace("__", ".")).write_bytes(content)
    return tars.read(str(folder), list_source(str(folder)))


PAIR = [file("x.png"), file("x.txt", b"a caption")]
END = 512 + -(-len(PNG) // 512) * 512 + 1024
"""Of the pair's members in a tar."""
TWO = [*PAIR, file("y.png"), file("y.txt", b"another")]


@pytest.mark.parametrize(
    ("data", "line"),
    [
        (pack(TWO)[: END + 200], f"cut short in the header after x.txt, at byte {END}"),
        (pack(TWO)[:END], "cut short after x.txt: a tar ends with blocks of zeros, and this one has none"),
        (pack(PAIR)[: END + 1], "cut short after x.txt: a tar ends with blocks of zeros, and this one has none"),
        (pack(TWO)[: END + 513], r"truncated: y\.png should end at byte"),
        (pack(TWO)[: END - 100], "not a whole tar file: unexpected end of data"),
        (pack(PAIR) + pack([file("y.png")]), r"has data after its end mark, from byte 10240 on, .*cat\?"),
        (pack(PAIR)[: END + 1024] + b"x" + bytes(511), f"has data after its end mark, from byte {END + 1024} on"),
        (pack(PAIR).replace(b"x.txt", b"z.txt"), r"damaged: the data after x\.png, at byte \d+, is not a tar header"),
        (pack([file("x.png"), ("y", tarfile.GNUTYPE_SPARSE, b"", ""), *TWO]), "y is a sparse file"),
        (pack([("x.png", b"M", b"", ""), *TWO]), r"is one volume of a multi-volume tar, starting with the rest of x\.png"),
        (b"", "not a whole tar file: empty file"),
        (gzip.compress(pack(PAIR)), r"a\.tar: compressed with gzip, judging by .*: decompress it first \(gzip -dc < PACKED > PLAIN\.tar\)"),
        (bz2.compress(pack(PAIR)), "compressed with bzip2"),
        (lzma.compress(pack(PAIR)), "compressed with xz"),
        (b"\x28\xb5\x2f\xfd" + bytes(20), "compressed with zstd"),
        (b"PK\x03\x04" + bytes(20), "a zip file, judging by its first bytes: unzip it first"),
        (pack([*PAIR, file("y.png"), file("y.PNG")]), r"'y\.PNG' appears twice in it"),
        (pack([*TWO, file("x.cls", b"1")]), "two samples are named 'x'"),
        (pack([*PAIR, link("x.png", "x.txt")]), r"'x\.png' appears twice in it"),
        (pack([]), "no pictures in its tars"),
    ],
)  # fmt: skip
def test_a_tar_that_is_not_whole_is_refused_by_name(tmp_path: Path, data: bytes, line: str) -> None:
    with pytest.raises(InputError, match=line) as caught:
        read(tmp_path / "tars", data)
    assert "a.tar" in str(caught.value) or "no pictures" in line
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("entries", "captions", "lost"),
    [
        ([*PAIR, link("y.png", "x.png"), file("y.txt", b"twin")], {"x": "a caption", "y": "twin"}, {}),
        ([*PAIR, link("d/y.png", "../x.png", tarfile.SYMTYPE), link("d/y.txt", "../x.txt", tarfile.SYMTYPE)],
         {"x": "a caption", "d/y": "a caption"}, {}),
        ([link("y.png", "x.png", tarfile.SYMTYPE), file("y.txt", b"earlier"), *PAIR], {"x": "a caption", "y": "earlier"}, {}),
        ([*PAIR, link("y.png", "./x.png"), link("y.txt", "z.md"), file("z.md", b"by its target")], {"x": "a caption", "y": "by its target"},
         {"no picture": 1}),
        ([*PAIR, link("y.png", "/etc/passwd", tarfile.SYMTYPE), file("y.txt", b"out")], {"x": "a caption"}, {"broken link": 1}),
        ([*PAIR, link("y.png", "y.png"), file("y.txt", b"round")], {"x": "a caption"}, {"broken link": 1}),
        ([*PAIR, file("y.png"), link("y.txt", "gone.txt")], {"x": "a caption"}, {"broken link": 1}),
        ([*PAIR, file("y.heic"), file("y.txt", b"phone")], {"x": "a caption"}, {kinds.UNREAD_CAUSE: 1}),
        ([*PAIR, file("y.png"), file("y.cls", b"7")], {"x": "a caption"}, {"no caption": 1}),
        ([*PAIR, file("y.png"), file("y.txt", b"caf\xe9")], {"x": "a caption"}, {"caption not UTF-8": 1}),
        ([*PAIR, file("y.png"), file("y.txt", b"a"), file("y.cls", b"\xff")], {"x": "a caption"}, {"class not UTF-8": 1}),
        ([*PAIR, file("y.PNG"), file("y.TXT", b"LOUD"), file("y.jpg", b"of two pictures the first in the order counts")],
         {"x": "a caption", "y": "LOUD"}, {}),
        ([*PAIR, file("README", b"x"), file(".y.png"), file("__notes__/y.png"), ("pipe.png", tarfile.FIFOTYPE, b"", ""),
          ("d.png", tarfile.DIRTYPE, b"", "")], {"x": "a caption"}, {}),
        ([*PAIR, file("y.png"), file("y.json", b'{"caption": "", "label": "cat"}'), file("y.txt", b"text")],
         {"x": "a caption", "y": "text"}, {}),
    ],
)  # fmt: skip
def test_members_become_rows_or_are_lost_by_name(
    tmp_path: Path, entries: Sequence[Entry], captions: dict[str, str], lost: dict[str, int]
) -> None:
    """Links stand for the member that they lead to; what cannot be read is a reject of its sample and of no other."""
    rows = read(tmp_path / "tars", pack(entries))
    assert {row.where.removeprefix("a.tar: "): row.captions[0] for row in rows.rows} == captions
    assert Counter(reject.cause for reject in rows.rejects) == lost
    assert all(row.image.read() == PNG or b"two pictures" in row.image.read() for row in rows.rows)


def test_where_no_sample_has_a_caption_its_class_is_one(tmp_path: Path) -> None:
    """By name, in .cls or JSON; a number without a name says nothing, and beside captions a class alone is a loss, as it was."""
    entries = [file("x.png"), file("x.cls", b"1"), file("y.png"), file("y.json", b'{"label": "big_cat"}'), file("z.png")]
    rows = read(tmp_path / "tars", pack(entries), classnames__txt=b"night\nday_time\n")
    assert {row.where: (row.captions, row.label) for row in rows.rows} == {
        "a.tar: x": (("day time",), "day_time"), "a.tar: y": (("big cat",), "big_cat")
    }  # fmt: skip
    assert [(reject.where, reject.cause) for reject in rows.rejects] == [("a.tar: z", "no caption")]
    rows = read(tmp_path / "numbers", pack([file("x.png"), file("x.cls", b"1")]))
    assert rows.rows == []
    assert rows.rejects[0].detail.endswith("; class 1 has no name: put names in classnames.txt next to the tars, one per line")
    rows = read(tmp_path / "mixed", pack([*PAIR, file("y.png"), file("y.cls", b"cat")]))
    assert [row.where for row in rows.rows] == ["a.tar: x"]
    assert [reject.cause for reject in rows.rejects] == ["no caption"]


def test_a_class_that_is_not_named_is_one_reject(tmp_path: Path) -> None:
    """The names are lines of classnames.txt, with or without a byte order mark."""
    entries = [*PAIR, file("x.cls", b"1"), file("y.png"), file("y.txt", b"b"), file("y.cls", b"5")]
    rows = read(tmp_path / "tars", pack(entries), classnames__txt="\ufeffnight\nday\u2028time\n".encode())
    assert [row.label for row in rows.rows] == ["day time"]
    assert [(reject.cause, reject.detail) for reject in rows.rejects] == [("no such class", "a.tar: y.cls: 5, classnames.txt has 2 lines")]


def test_shards_that_img2dataset_has_not_finished_are_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Those without their stats, where others have them; what its table calls fetched and the tar lacks is a loss."""
    folder = tmp_path / "tars"
    read(folder, pack(TWO), a_stats__json=b"{}")
    assert capsys.readouterr().err == ""
    (folder / "b.tar").write_bytes(pack(TWO))
    tars.read(str(folder), list_source(str(folder)))
    told = "img2dataset has not finished it (no b_stats.json beside it): let it finish, or remove the tar"
    assert capsys.readouterr().err == f"{folder}/b.tar: {told}\n"
    (folder / "b.tar").write_bytes(pack(TWO)[:END])
    with pytest.raises(InputError, match=r"b\.tar: cut short after x\.txt: .*: img2dataset has not finished it"):
        tars.read(str(folder), list_source(str(folder)))
    (folder / "b.tar").unlink()
    stream = io.BytesIO()
    pq.write_table(pa.table({"key": ["x", "y", "z"], "status": ["success"] * 3, "error_message": [None] * 3}), stream)
    rows = read(folder, pack(TWO), a__parquet=stream.getvalue())
    assert [(reject.where, reject.cause) for reject in rows.rejects] == [("a.tar: z", "not in its tar")]


def test_what_lies_beside_tars_is_counted_or_refused(tmp_path: Path) -> None:
    """Loose pictures would be lost without a word, and so would a tar that is packed."""
    rows = read(tmp_path / "tars", pack(PAIR), loose__jpg=PNG, phone__heic=b"x", notes__md=b"x")
    assert [(reject.where, reject.cause) for reject in rows.rejects] == [
        ("loose.jpg", "picture beside tars"), ("phone.heic", "picture beside tars"),
    ]  # fmt: skip
    with pytest.raises(InputError, match=r"more\.tar\.gz: compressed tars are not supported: decompress it first"):
        read(tmp_path / "tars", pack(PAIR), more__tar__gz=b"x")


NAMES = ["x", "y", "X", "d/x", "./z", ".x", "__m__/x"]
SUFFIXES = ["png", "JPG", "txt", "TXT", "json", "cls", "md", "heic", ""]
CONTENT = {"json": json.dumps({"caption": "from json"}).encode(), "cls": b"3"}


@st.composite
def entries(draw: Callable[..., object]) -> list[Entry]:
    made: list[Entry] = []
    for _ in range(draw(st.integers(0, 9))):  # type: ignore[call-overload]
        suffix = str(draw(st.sampled_from(SUFFIXES)))
        name = f"{draw(st.sampled_from(NAMES))}.{suffix}" if suffix else str(draw(st.sampled_from(NAMES)))
        kind = draw(st.sampled_from(["file"] * 6 + ["hard", "symbolic", "folder"]))
        if kind == "file":
            made.append(file(name, CONTENT.get(suffix.lower(), b"" if draw(st.integers(0, 5)) == 0 else b"some content")))
        elif kind == "folder":
            made.append((name, tarfile.DIRTYPE, b"", ""))
        else:
            target = str(draw(st.sampled_from([*(entry[0] for entry in made), "nowhere.png"])))
            made.append(link(name, target, tarfile.LNKTYPE if kind == "hard" else tarfile.SYMTYPE))
    return sorted(made, key=lambda entry: entry[0].partition(".")[0]) if draw(st.booleans()) else made


@example(entries=PAIR, length=END + 1)  # cut inside the first block of the end mark
@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(entries=entries(), length=st.one_of(st.none(), st.integers(0, 20 * 512)))
def test_every_member_is_accounted_for(tmp_path: Path, entries: list[Entry], length: int | None) -> None:
    """Counted by another reading of the same list: a sample is written, or lost by one cause; all that is left out has a rule."""
    whole, samples = pack(entries), grouped(entries)
    data = whole[:length]
    try:
        rows = read(tmp_path / "tars", data)
    except InputError:
        pictures = any(suffix in ("png", "jpg", "heic") for _, suffixes in samples for suffix in suffixes)
        names = [stem for stem, _ in samples]
        repeated = len(names) > len(set(names)) or any(len(suffixes) > len(set(suffixes)) for _, suffixes in samples)
        assert data != whole or repeated or not pictures
        return
    assert data[-512:] == bytes(512)  # what was cut inside a block, or between members, is refused
    told = [row.where for row in rows.rows] + [reject.where for reject in rows.rejects]
    assert len(told) == len(set(told))
    assert {where.removeprefix("a.tar: ") for where in told} == {stem for stem, _ in samples}


def grouped(entries: Sequence[Entry]) -> list[tuple[str, list[str]]]:
    """Samples that the list spells: neighbours of one stem, with their suffixes."""
    found: list[tuple[str, list[str]]] = []
    for name, kind, _, _ in entries:
        base = name.split("/")[-1]
        if kind == tarfile.DIRTYPE or name.startswith("__m__") or "." not in base or base[0] == ".":
            continue
        stem, suffix = name[: len(name) - len(base) + base.index(".")], base[base.index(".") + 1 :].lower()
        if not found or found[-1][0] != stem:
            found.append((stem, []))
        found[-1][1].append(suffix)
    return found
