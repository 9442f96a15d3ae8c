"""Large files: resumed by ranges, whole or not there; zips that would do harm are refused."""

import errno
import io
import os
import random
import stat
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.staging.remote.sources import write_nights
from tests.staging.remote.web import Web, web_server
from trainer.errors import InputError, RunError
from trainer.staging.remote.download import download, fetch_nights, unpack

DATA = random.Random(0).randbytes((3 << 20) + 17)


@pytest.fixture
def web() -> Iterator[Web]:
    """A small web."""
    with web_server() as web:
        yield web


def make_zip(members: dict[str, bytes], compression: int = zipfile.ZIP_STORED) -> bytes:
    """A zip of these members."""
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", compression) as file:
        for name, data in members.items():
            file.writestr(name, data)
    return stream.getvalue()


def test_a_broken_download_goes_on(web: Web, tmp_path: Path) -> None:
    """A body that ends early is completed by ranges; the partial file is gone when the whole one is there."""
    web.pages["/x"] = DATA
    web.cut["/x"] = 1 << 20
    download(f"{web.url}/x", tmp_path / "x")
    assert (tmp_path / "x").read_bytes() == DATA
    assert web.asked["/x"] == 4
    assert os.listdir(tmp_path) == ["x"]
    download(f"{web.url}/x", tmp_path / "x")
    assert web.asked["/x"] == 4


def test_a_killed_download_goes_on(web: Web, tmp_path: Path) -> None:
    """What an earlier process left is not fetched again, and of another version nothing is kept."""
    web.pages["/x"] = DATA
    (tmp_path / "x.partial").write_bytes(DATA[: 2 << 20])
    (tmp_path / "x.partial.json").write_text('{"version": "\\"v1\\""}')
    download(f"{web.url}/x", tmp_path / "x")
    assert (tmp_path / "x").read_bytes() == DATA
    (tmp_path / "x").unlink()
    (tmp_path / "x.partial").write_bytes(b"of nobody knows what")
    download(f"{web.url}/x", tmp_path / "x")
    assert (tmp_path / "x").read_bytes() == DATA


def test_busy_server(web: Web, tmp_path: Path) -> None:
    """503 is waited for; 404 is not; a busy server is given up in the end."""
    web.pages["/x"] = lambda count: (503, {}, b"") if count < 3 else (200, {}, b"x")
    download(f"{web.url}/x", tmp_path / "x")
    assert (tmp_path / "x").read_bytes() == b"x"
    with pytest.raises(InputError, match=r"/none: the server rejected the request \(404"):
        download(f"{web.url}/none", tmp_path / "none")
    web.pages["/y"] = lambda count: (503, {}, b"")
    with pytest.raises(RunError, match="answers 503"):
        download(f"{web.url}/y", tmp_path / "y", retry_seconds=0.5)


def test_full_disk(web: Web, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A full disk is said at once, not waited for."""
    web.pages["/x"] = DATA

    def full(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr("trainer.staging.remote.download.progress", full)
    with pytest.raises(RunError, match=r"/x: cannot be written: No space left"):
        download(f"{web.url}/x", tmp_path / "x")


def test_redirect_out_of_the_web(web: Web, tmp_path: Path) -> None:
    """A redirect to a file is refused."""
    web.pages["/x"] = lambda count: (302, {"location": "file:///etc/passwd"}, b"")
    with pytest.raises(InputError, match="bad redirect"):
        download(f"{web.url}/x", tmp_path / "x")


@pytest.mark.parametrize("name", ["../x.png", "/etc/x.png", "a/../../x.png", "..\\x.png", "C:/x.png", "a/b\\..\\x"])
def test_names_that_lead_out(tmp_path: Path, name: str) -> None:
    """A member that would be written elsewhere ends the unpacking, and nothing is written."""
    (tmp_path / "bad.zip").write_bytes(make_zip({name: b"x"}))
    with pytest.raises(RunError, match="would lead out of its folder"):
        unpack(tmp_path / "bad.zip", tmp_path / "folder")
    assert not (tmp_path / "folder").exists()


def test_links_in_a_zip(tmp_path: Path) -> None:
    """A symbolic link is refused."""
    link = zipfile.ZipInfo("x.png")
    link.external_attr = (stat.S_IFLNK | 0o777) << 16
    with zipfile.ZipFile(tmp_path / "bad.zip", "w") as file:
        file.writestr(link, "/etc/passwd")
    with pytest.raises(RunError, match="would lead out of its folder"):
        unpack(tmp_path / "bad.zip", tmp_path / "folder")


def test_bombs_and_damage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An oversized member, a flipped byte, a zip cut short and a page that is no zip are refused, naming the file, and leave nothing."""
    monkeypatch.setattr("trainer.staging.remote.download.MAX_MEMBER_BYTES", 1 << 20)
    whole = make_zip({"ref/000.png": DATA[: 1 << 19]})
    flipped = bytearray(whole)
    flipped[5000] ^= 1
    bad = {
        "decompression bomb": make_zip({"ref/bomb.png": bytes(5 << 20)}, zipfile.ZIP_DEFLATED),
        "Bad CRC-32": bytes(flipped),
        "not a whole zip": whole[:-100],
        "not a whole zip: File is not a zip file": b"<html>no such file</html>",
    }
    for rule, data in bad.items():
        (tmp_path / "bad.zip").write_bytes(data)
        with pytest.raises(RunError, match=rule):
            unpack(tmp_path / "bad.zip", tmp_path / "folder")
        assert not list((tmp_path / "folder").rglob("*.png"))


def nights_members(tmp_path: Path) -> dict[str, bytes]:
    """The files of a small NIGHTS, by name."""
    folder = write_nights(tmp_path / "original", 8)
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def test_nights_zip(web: Web, tmp_path: Path) -> None:
    """nights.zip becomes the folder, the zip is deleted, and nothing is fetched twice."""
    members = nights_members(tmp_path)
    web.pages["/nights.zip"] = make_zip({f"nights/{name}": data for name, data in members.items()})
    for _ in range(2):
        folder = fetch_nights(f"{web.url}/nights.zip", "", tmp_path / "nights")
    assert {name: (folder / name).read_bytes() for name in members} == members
    assert web.asked["/nights.zip"] == 1
    assert not list(folder.rglob("*.zip"))


@pytest.mark.parametrize("prefix", ["nights/{sort}/", "{sort}/", ""])
def test_nights_chunks(web: Web, tmp_path: Path, prefix: str) -> None:
    """The chunks and data.csv become the folder, however their members are named; a broken chunk is fetched again alone."""
    members = nights_members(tmp_path)
    for sort in ("ref", "distort"):
        inside = {name.removeprefix(f"{sort}/"): data for name, data in members.items() if name.startswith(f"{sort}/")}
        web.pages[f"/chunks/{sort}/000.zip"] = make_zip({prefix.format(sort=sort) + name: data for name, data in inside.items()})
    web.pages["/data.csv"] = members["data.csv"]
    good, web.pages["/chunks/distort/000.zip"] = web.pages["/chunks/distort/000.zip"], b"<html>"
    arguments = (f"{web.url}/chunks", f"{web.url}/data.csv", tmp_path / "nights")
    with pytest.raises(RunError, match="not a whole zip"):
        fetch_nights(*arguments, chunks=1)
    web.pages["/chunks/distort/000.zip"] = good
    folder = fetch_nights(*arguments, chunks=1)
    assert {name: (folder / name).read_bytes() for name in members} == members
    assert web.asked["/chunks/ref/000.zip"] == 1


def test_nights_without_table(web: Web, tmp_path: Path) -> None:
    """Chunks without data.csv are not enough, and the message says what is missing."""
    web.pages["/chunks/ref/000.zip"] = web.pages["/chunks/distort/000.zip"] = make_zip({"000/000.png": b"x"})
    with pytest.raises(InputError, match="pass it with --table"):
        fetch_nights(f"{web.url}/chunks", "", tmp_path / "nights", chunks=1)
