"""NIGHTS in its zips, of which nothing but directories and single members is ever read."""

import io
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.staging.remote.sources import write_nights
from tests.staging.remote.test_download import make_zip, nights_members
from tests.staging.remote.test_fetch import HASTE, SMALL, run, samples
from tests.staging.remote.web import Web, web_server
from trainer.__main__ import main
from trainer.staging.remote.http import FetchError
from trainer.staging.remote.zips import Member, unpack_member
from trainer.storage import join, open_store, read_json
from trainer.storage.manifest import require_manifest


@pytest.fixture
def web() -> Iterator[Web]:
    """A small web."""
    with web_server() as web:
        yield web


def serve_chunks(web: Web, members: dict[str, bytes]) -> None:
    """The chunks as MIT serves them, and data.csv beside their folder; a prefix that nobody asks for makes them large."""
    for sort, prefix in (("ref", "nights/ref/000/"), ("distort", "000/")):
        inside = {prefix + name.rpartition("/")[2]: data for name, data in members.items() if name.startswith(f"{sort}/")}
        padding = {f"{sort}/000/unused.png": bytes(range(256)) * 4096}
        web.pages[f"/chunks/{sort}/000.zip"] = make_zip(padding | inside, zipfile.ZIP_DEFLATED if sort == "ref" else zipfile.ZIP_STORED)
    web.pages["/data.csv"] = members["data.csv"]


def stage_in_a_job(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, root: str, *source: str) -> str:
    """Plan, three pods of an Indexed Job, seal; nothing is handed on but what the commands leave in the store."""
    arguments = ["plan", "nights", "--root", root, *source, *SMALL, "--result", join(root, "plan-result.json")]
    planned = run(capsys, *arguments)
    assert read_json(join(root, "plan-result.json")) == planned == {"uri": planned["uri"], "slices": 3, "rows": 24}
    for pod in range(3):
        monkeypatch.setenv("JOB_COMPLETION_INDEX", str(pod))
        assert run(capsys, "fetch", "--plan", planned["uri"], "--slice", "index/3", *HASTE) == {"slices": 1, "made": 1}
    result = join(root, "seal-result.json")
    sealed = run(capsys, "seal", "--plan", planned["uri"], "--max-reject-fraction", ".2", "--result", result)
    assert read_json(result) == sealed
    assert sealed["uri"] == planned["uri"]
    return str(sealed["uri"])


def test_chunks_become_the_folder_s_data_set(
    root: str, web: Web, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Chunk zips at a URL, fetched by three pods, give the samples that the unpacked folder gives; the zips are never read whole."""
    nights = write_nights(tmp_path / "nights")
    serve_chunks(web, {path.relative_to(nights).as_posix(): path.read_bytes() for path in sorted(nights.rglob("*")) if path.is_file()})
    folder = stage_in_a_job(capsys, monkeypatch, root, "--list", f"{web.url}/chunks", "--table", f"{web.url}/data.csv")
    manifest = require_manifest(folder)
    assert manifest.rows == {"read": 24, "written": 22, "lost": {"no such file": 1, "too few votes": 1}}
    local = run(capsys, "triplets", "--root", str(tmp_path / "local"), "--source", str(nights), "--max-reject-fraction", ".2", *SMALL)[
        "uri"
    ]
    assert samples(folder, manifest) == samples(local, require_manifest(local))
    stored = web.pages["/chunks/distort/000.zip"]
    assert isinstance(stored, bytes)
    assert web.sent["/chunks/distort/000.zip"] < len(stored) / 2


@pytest.mark.parametrize("where", ["web", "file", "s3"])
def test_nights_zip_wherever_it_lies(
    where: str, web: Web, tmp_path: Path, s3_root: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """nights.zip, its table inside, over HTTP, on a disk and in a bucket: one plan, one data set."""
    nights = write_nights(tmp_path / "nights")
    data = make_zip({f"nights/{path.relative_to(nights).as_posix()}": path.read_bytes() for path in nights.rglob("*") if path.is_file()})
    web.pages["/nights.zip"] = data
    (tmp_path / "nights.zip").write_bytes(data)
    with open(tmp_path / "nights.zip", "rb") as file:
        open_store(s3_root).put_stream(join(s3_root, "nights.zip"), file)
    source = join({"web": web.url, "file": str(tmp_path), "s3": s3_root}[where], "nights.zip")
    folder = stage_in_a_job(capsys, monkeypatch, str(tmp_path / "root"), "--list", source)
    assert require_manifest(folder).rows["written"] == 22


def test_zips_that_are_none(web: Web, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """No zip, a page in its place, a server without ranges, a name that leads out: one line that names it, and no plan."""
    members = nights_members(tmp_path)
    serve_chunks(web, members)
    good = web.pages["/chunks/ref/000.zip"]
    bad = {
        "/chunks/ref/000.zip: http 404": None,
        "/chunks/ref/000.zip: not a whole zip": b"<html>moved</html>" * 100,
        "no ranges": lambda count: (200, {}, good),
        "member 'a/../../x.png' would lead out": make_zip({"a/../../x.png": b"x"}),
    }
    arguments = ["--root", str(tmp_path / "root"), "--list", f"{web.url}/chunks", "--table", f"{web.url}/data.csv", *SMALL]
    for rule, page in bad.items():
        web.pages.pop("/chunks/ref/000.zip", None)
        if page is not None:
            web.pages["/chunks/ref/000.zip"] = page  # type: ignore[assignment]
        assert main(["stage", "plan", "nights", *arguments]) in (1, 2)
        assert rule in capsys.readouterr().err
    assert not (tmp_path / "root").exists()
    web.pages["/nights.zip"] = make_zip({"ref/000/000.png": b"x"})
    assert main(["stage", "plan", "nights", "--root", str(tmp_path), "--list", f"{web.url}/nights.zip", *SMALL]) == 2
    assert "contains no data.csv: pass it with --table" in capsys.readouterr().err


def test_members_that_are_not_what_the_directory_says() -> None:
    """Another member, a flipped byte, a bomb and a range cut short are told from a good one."""
    data = make_zip({"x.png": b"x" * 5000}, zipfile.ZIP_DEFLATED)
    with zipfile.ZipFile(io.BytesIO(data)) as file:
        info = file.infolist()[0]
    member = Member(archive="a.zip", name="x.png", start=0, length=len(data), packed=info.compress_size, crc32=info.CRC)
    assert Member.parse(str(member)) == member
    assert unpack_member(member, data, 5000) == b"x" * 5000
    flipped = bytearray(data)
    flipped[40] ^= 1
    for bad, rule in ((bytes(flipped), "damaged zip"), (data[7:], "damaged zip"), (data[:45], "damaged zip")):
        with pytest.raises(FetchError, match=rule):
            unpack_member(member, bad, 5000)
    with pytest.raises(FetchError, match="at most 4999"):
        unpack_member(member, data, 4999)
