"""What a folder, a list or a table holds is written, lost by a named cause, or ignored by a rule of docs/DATA.md: one of the three.

What should become of each file is told here by code of its own, which looks at the disk.
"""

import os
import tempfile
from collections import Counter
from contextlib import ExitStack
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.staging.conftest import picture
from trainer.errors import InputError
from trainer.staging import stage
from trainer.staging.rows import Reject
from trainer.staging.samples import PairMaker, Sample, TripletMaker
from trainer.staging.sources import nights
from trainer.staging.sources.listing import list_source

JPEG, PNG = picture(1, (8, 6), "JPEG"), picture(1, (16, 16))
READ, UNREAD, TEXTS = ("jpg", "JPG", "png", "jfif"), ("heic", "svg", "JXL"), ("txt", "TXT", "json", "caption")
NAMES = st.builds(
    "{}{}.{}".format, st.sampled_from(["", "", "sub/", "sub/x/", ".hidden/", "sub/cap/"]), st.sampled_from(["a", "b", "A", "c.jpg", ".d"]),
    st.sampled_from([*READ, *UNREAD, *TEXTS, "md", "csv"]),
)  # fmt: skip
CONTENTS = st.sampled_from(
    [b"words", b"", b'"words"', b"{}", b"\xff\xfe", b"[" * 5000, b'{"caption": 3}', b'{"label": "l", "caption": "words"}']
)
PICTURES = st.sampled_from([JPEG, JPEG, JPEG, JPEG[:-30], b"", b"<html>"])
LINKS = st.lists(
    st.tuples(st.sampled_from(["a.png", "e.jpg", "to", "sub/up", "sub/e.txt"]), st.sampled_from(["a.jpg", "sub", "..", ".", "gone", "to"])),
    max_size=3,
)


def lay(folder: Path, files: dict[str, bytes], links: list[tuple[str, str]]) -> None:
    for name, data in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(data)
    for name, target in links:
        if not os.path.lexists(folder / name) and (folder / name).parent.is_dir():
            os.symlink(target, folder / name)


def kind(name: str) -> str:
    return os.path.splitext(name)[1][1:].lower()


def on_disk(folder: Path) -> tuple[set[str], set[str]]:
    """Names of the files that can be opened and are not hidden, each real folder by one of its names; and of links that lead nowhere."""
    files, broken, real = set(), set(), set()
    waiting = [folder]
    later: list[Path] = []
    while waiting or later:
        place = waiting.pop() if waiting else later.pop(0)
        if place.resolve() in real:
            continue
        real.add(place.resolve())
        for path in sorted(place.iterdir()):
            if path.name.startswith("."):
                continue
            if not os.path.exists(path):
                broken.add(str(path.relative_to(folder)))
            elif os.path.isdir(path):
                (later if os.path.islink(path) else waiting).append(path)
            else:
                files.add(str(path.relative_to(folder)))
    return files, broken


def taken(folder: Path, root: Path) -> tuple[dict[str, Sample], list[Reject]]:
    """What staging makes of a folder."""
    with ExitStack() as stack:
        rows = stage._read_pairs(stage._find(str(folder), str(root)), 0, stack)
    made = [(row.where, PairMaker("original")(row)) for row in rows.rows]
    rejects = [*rows.rejects, *(one for _, one in made if isinstance(one, Reject))]
    written = {where: one for where, one in made if isinstance(one, Sample)}
    assert len(written) + len(rejects) == len(rows.rows) + len(rows.rejects)
    return written, rejects


SLOW_DISK = settings(max_examples=120, deadline=None, suppress_health_check=[HealthCheck.too_slow])


@SLOW_DISK
@given(files=st.dictionaries(NAMES, CONTENTS, max_size=9), images=st.dictionaries(NAMES, PICTURES, max_size=3), links=LINKS)
def test_every_file_of_a_folder(files: dict[str, bytes], images: dict[str, bytes], links: list[tuple[str, str]]) -> None:
    """Pictures, captions, links and everything else, in any case, cut, empty, twice."""
    files = {**files, **{name: data for name, data in images.items() if kind(name) in map(str.lower, READ)}}
    files = {name: JPEG if kind(name) in map(str.lower, READ) and data == b"words" else data for name, data in files.items()}
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch) / "source"
        folder.mkdir()
        lay(folder, files, links)
        there, broken = on_disk(folder)
        pictures = {name for name in there if kind(name) in map(str.lower, READ)}
        stems = Counter(os.path.splitext(name)[0] for name in pictures)
        beside = {name for name in there if kind(name) in map(str.lower, TEXTS)}
        named = {os.path.splitext(name)[0] for name in beside}
        refused = ""
        try:
            written, rejects = taken(folder, Path(scratch))
        except InputError as error:
            refused = str(error)
    if refused:
        if not there:
            assert "nothing there" in refused
        elif not pictures:
            assert f"no pictures among {len(there)} files" in refused
        elif max(stems.values()) > 1:
            assert "two samples are named" in refused
        else:
            assert f"{len(pictures)} picture" in refused
            assert "and no captions" in refused
            assert not named & (pictures | set(stems))
        return
    lost = Counter(reject.where for reject in rejects)
    assert max(lost.values(), default=0) <= 1
    faults = {reject.where for reject in rejects if reject.counts}
    assert pictures == (set(written) | lost.keys()) & pictures
    assert not set(written) & lost.keys()
    assert faults & pictures == pictures - set(written)
    unread = {name for name in there if kind(name) in map(str.lower, UNREAD)}
    assert unread <= lost.keys()
    assert broken <= lost.keys()
    used = beside - lost.keys()
    if named & (pictures | set(stems)):  # by the picture whose name it has
        assert all(os.path.splitext(name)[0] in stems or os.path.splitext(name)[0] in pictures for name in used)
    else:  # or by one in another folder, where no captions lie beside pictures
        last = Counter(os.path.basename(stem) for stem in stems)
        assert all(os.path.basename(os.path.splitext(name)[0]) in last for name in used)
        assert not used or 2 * len({os.path.splitext(name)[0] for name in used}) >= len(pictures)
    for name in beside & lost.keys():  # not used: no picture of this name, or another file is
        stem = os.path.splitext(name)[0]
        twin = {other for other in beside - {name} if os.path.splitext(other)[0] == stem and kind(other) == kind(name)}
        assert twin or (stem not in stems and stem not in pictures)
    ignored = there - pictures - beside - unread
    assert {kind(name) for name in ignored} <= {"md", "csv", ""}  # a link without a suffix may lead to a picture
    assert not ignored & lost.keys()
    assert all(any(f"{name}/".startswith(f"{link}/") for link, _ in links) for name in lost.keys() - there - broken)
    for name, sample in written.items():
        assert sample.members["image"][1] == JPEG
        assert sample.captions == [name.split("/")[-2]] if not used else ["words"]


CELLS = st.sampled_from(["a.jpg", "./b.jpg", "sub\\c.jpg", "A.JPG", "gone.jpg", "h.heic", "cut.jpg", "b", "", "../a.jpg"])
FORMS = st.sampled_from([("captions.csv", ","), ("captions.tsv", "\t"), ("list.txt", "|"), ("metadata.csv", ";")])


@SLOW_DISK
@given(
    rows=st.lists(st.tuples(CELLS, st.sampled_from(["one", "two", "", "three"]), st.sampled_from(["", "extra"])), min_size=1, max_size=12),
    form=FORMS,
)
def test_every_row_of_a_list(rows: list[tuple[str, str, str]], form: tuple[str, str]) -> None:
    """Each row is among a sample's captions, or lost by name; each picture is a sample, lost, or named as not listed."""
    name, separator = form
    lines = [separator.join(["file", "caption"]), *(separator.join([*row[:2], *filter(None, row[2:])]) for row in rows)]
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch) / "source"
        folder.mkdir()
        lay(
            folder,
            {"a.jpg": JPEG, "b.jpg": JPEG, "sub/c.jpg": JPEG, "cut.jpg": JPEG[:-30], "h.heic": b"x", name: "\n".join(lines).encode()},
            [],
        )
        written, rejects = taken(folder, Path(scratch))
    meant = {
        "a.jpg": "a.jpg",
        "./b.jpg": "b.jpg",
        "sub\\c.jpg": "sub/c.jpg",
        "A.JPG": "a.jpg",
        "b": "b.jpg",
        "cut.jpg": "cut.jpg",
        "h.heic": "h.heic",
    }
    expected: dict[str, list[str]] = {}
    causes = Counter[str]()
    for cell, caption, extra in rows:
        file = meant.get(cell)
        if extra:
            causes["bad row"] += 1
        elif file is None:
            causes["no such file"] += 1
        elif file == "h.heic":
            causes["kind of file not read"] += 1
        elif not caption:
            causes["empty caption"] += 1
        elif caption in expected.setdefault(file, []):
            causes["duplicate"] += 1
        else:
            expected[file].append(caption)
    listed = set(expected) | {
        meant[cell] for cell, caption, extra in rows if cell in meant and not extra and (not caption or cell == "h.heic")
    }
    causes["truncated image"] += "cut.jpg" in expected
    causes["not in the list"] = len({"a.jpg", "b.jpg", "sub/c.jpg", "cut.jpg", "h.heic"} - listed)
    assert {where: list(sample.captions) for where, sample in written.items()} == {
        file: found for file, found in expected.items() if file != "cut.jpg"
    }
    assert Counter(reject.cause for reject in rejects) == +causes


VOTES = st.sampled_from(["0", "1", "3.5", "", "nan", " "])


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    rows=st.lists(
        st.tuples(VOTES, VOTES, st.sampled_from(["8", "2", ""]), st.sampled_from(["a.png", "cut.png", "gone.png", "./a.png"])),
        min_size=1, max_size=8,
    )
)  # fmt: skip
def test_every_row_of_a_table_of_triplets(rows: list[tuple[str, str, str, str]]) -> None:
    """Each row is a triplet, or lost by one cause; one whose vote is empty has no votes, and that is no fault."""
    text = "id,left_vote,right_vote,votes,ref_path,left_path,right_path,split\n"
    text += "".join(f"{number},{','.join(row)},a.png,a.png,train\n" for number, row in enumerate(rows))
    with tempfile.TemporaryDirectory() as folder:
        lay(Path(folder), {"a.png": PNG, "cut.png": PNG[:-40], "data.csv": text.encode()}, [])
        found = nights.read(folder, list_source(folder), 6)
        made = [(row.where, TripletMaker(16)(row)) for row in found.rows]
    told = {
        reject.where: (reject.cause, reject.counts) for reject in [*found.rejects, *(one for _, one in made if isinstance(one, Reject))]
    }
    assert {where for where, one in made if isinstance(one, Sample)} | told.keys() == {str(number) for number in range(len(rows))}
    assert len(made) + len(found.rejects) == len(rows)
    for number, (left, right, votes, picture_name) in enumerate(rows):
        given = [vote for vote in (left, right) if vote not in ("", "nan", " ")]
        cast = float(votes) if votes else sum(map(float, given))
        if len(given) < 2 or not sum(map(float, given)):
            expected = ("no votes", False)
        elif picture_name in ("gone.png", "./a.png"):
            expected = ("no such file", True)
        elif cast < 6:
            expected = ("too few votes", False)
        else:
            expected = ("truncated image", True) if picture_name == "cut.png" else ("", False)
        assert told.get(str(number), ("", False)) == expected


def test_the_oracle_sees_a_file_that_is_dropped(monkeypatch: pytest.MonkeyPatch) -> None:
    """The test above fails where a reader forgets a file."""
    original = stage.folder._unread
    monkeypatch.setattr(stage.folder, "_unread", lambda files, stems: original(files, stems)[1:])
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch) / "source"
        folder.mkdir()
        lay(folder, {"a.jpg": JPEG, "a.txt": b"words", "b.heic": b"x"}, [])
        _, rejects = taken(folder, Path(scratch))
        assert "b.heic" not in {reject.where for reject in rejects}
