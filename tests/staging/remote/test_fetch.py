"""`stage fetch`, `seal` and `refetch` over a web that misbehaves: the same bytes however often, in however many parts, it was killed."""

import json
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import BrokenExecutor, Future, ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.staging.conftest import slice_done
from tests.staging.remote.sources import LOST, picture, place, serve_yfcc, write_nights, write_rwkv, write_yfcc
from tests.staging.remote.web import Web, web_server
from trainer.__main__ import main
from trainer.staging.remote.fetch import _Pictures
from trainer.staging.remote.rows import read_plan, read_rows
from trainer.storage import join, open_store, read_bytes, read_json
from trainer.storage.documents import checksum
from trainer.storage.manifest import Manifest, require_manifest
from trainer.storage.samples import read_index, read_members

SMALL = ["--recipe", "smoke", "--set", "staging.shard_samples=2", "--set", "perceptual.min_votes=6"]
Planner = Callable[[pytest.CaptureFixture[str], Web, Path, str], str]
HASTE = ["--tries", "3", "--timeout", "2", "--backoff", ".01"]


@pytest.fixture
def web() -> Iterator[Web]:
    """A small web."""
    with web_server() as web:
        yield web


def run(capsys: pytest.CaptureFixture[str], *arguments: str) -> dict[str, str]:
    """A command that succeeds; what it prints."""
    code = main(["stage", *arguments])
    out, err = capsys.readouterr()
    assert code == 0, err
    return dict(json.loads(out))


def plan_yfcc(capsys: pytest.CaptureFixture[str], web: Web, folder: Path, root: str) -> str:
    """Plan the small YFCC over the small web."""
    files = write_yfcc(folder)
    return run(
        capsys, "plan", "yfcc15m-openai", "--root", root, "--list", files["list"], "--metadata", files["metadata"],
        "--images", f"{web.url}/images", "--captions", "slip", *SMALL,
    )["uri"]  # fmt: skip


def samples(folder: str, manifest: Manifest) -> dict[str, dict[str, bytes]]:
    """Every staged sample by key."""
    found = {}
    for shard in manifest.shards:
        index = read_index(folder, shard)
        found |= {key: read_members(folder, index, row) for row, key in enumerate(index.keys)}
    return found


def rejects(folder: str) -> Counter[str]:
    """Rejects by cause, as listed."""
    store = open_store(folder)
    lines = [line for info in store.list(join(folder, "rejects")) for line in read_bytes(info.uri).splitlines()]
    return Counter(json.loads(line)["cause"] for line in lines)


def test_every_row_is_a_sample_or_counted(root: str, web: Web, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Over a web with every fault, what can be had is had, and the rest is listed by cause: nothing is missing."""
    serve_yfcc(web)
    folder = plan_yfcc(capsys, web, tmp_path / "yfcc", root)
    assert run(capsys, "fetch", "--plan", folder, *HASTE) == {"slices": 3, "made": 3}
    sealed = run(capsys, "seal", "--plan", folder, "--max-reject-fraction", ".5")
    assert sealed["uri"] == folder
    manifest = require_manifest(folder, sealed["identity"])
    assert manifest.rows["lost"] == LOST
    assert manifest.rows["read"] == 41 == manifest.rows["written"] + sum(LOST.values())
    assert rejects(folder) == LOST
    found = samples(folder, manifest)
    assert len(found) == manifest.rows["written"]
    assert found["1000"]["image"] == picture(0)
    assert found["1000"]["txt"].decode() == 'Title 0 "café"'
    assert json.loads(found["1000"]["json"])["captions"] == ['Title 0 "café"', "see the sea"]
    assert found["1003"]["image"] == picture(3)
    assert found["1012"]["image"] == picture(12)
    assert json.loads(found["1000"]["json"])["source"] == place(0)
    assert run(capsys, "seal", "--plan", folder)["identity"] == manifest.identity


def test_too_many_rejects(web: Web, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """More lost rows than allowed stop the seal, with the causes counted; so does a plan of which nothing came."""
    serve_yfcc(web)
    folder = plan_yfcc(capsys, web, tmp_path / "yfcc", str(tmp_path / "root"))
    run(capsys, "fetch", "--plan", folder, *HASTE)
    assert main(["stage", "seal", "--plan", folder]) == 2
    error = capsys.readouterr().err
    assert "11 of 40 samples are bad" in error
    assert "1 x http 404" in error
    web.pages.clear()
    folder = plan_yfcc(capsys, web, tmp_path / "yfcc", str(tmp_path / "root2"))
    run(capsys, "fetch", "--plan", folder, *HASTE)
    assert main(["stage", "seal", "--plan", folder, "--max-reject-fraction", "1"]) == 2
    assert "none of the 41 rows became a sample" in capsys.readouterr().err


def test_unfinished_slices(web: Web, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A plan of which slices are missing is not sealed; they are named."""
    serve_yfcc(web)
    folder = plan_yfcc(capsys, web, tmp_path / "yfcc", str(tmp_path / "root"))
    assert run(capsys, "fetch", "--plan", folder, "--slice", "1/3", *HASTE) == {"slices": 1, "made": 1}
    assert main(["stage", "seal", "--plan", folder]) == 1
    assert "2 of 3 slices are not done: 0, 2" in capsys.readouterr().err
    assert run(capsys, "fetch", "--plan", folder, "--slice", "1/3", *HASTE) == {"slices": 1, "made": 0}


def start_part(folder: str, part: int, parts: int) -> subprocess.Popen[bytes]:
    """A part in a process of its own, as a pod of an Indexed Job runs it, with decoding processes below it."""
    return subprocess.Popen(
        [
            sys.executable, "-m", "trainer", "stage", "fetch", "--plan", folder, "--slice", f"index/{parts}", "--processes", "1",
            "--concurrency", "4", *HASTE,
        ],
        env={**os.environ, "JOB_COMPLETION_INDEX": str(part)}, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True,
    )  # fmt: skip


def plan_nights(capsys: pytest.CaptureFixture[str], web: Web, folder: Path, root: str) -> str:
    """Plan a small NIGHTS over the small web, with every fault a server has."""
    if web.folder is None:
        web.folder = write_nights(folder)
    seven = (web.folder / "ref/000/007.png").read_bytes()
    web.pages["/ref/000/007.png"] = lambda count: (500, {}, b"") if count < 3 else (200, {}, seven)
    web.pages["/ref/000/010.png"] = b"<html>"
    web.pages["/distort/000/014_0.png"] = lambda count: (503, {}, b"")
    web.cut["/distort/000/012_0.png"] = 100
    return run(capsys, "plan", "nights", "--root", root, "--list", web.url, *SMALL)["uri"]


@pytest.mark.slow
@pytest.mark.parametrize("plan", [plan_yfcc, plan_nights])
def test_killed_and_run_again(plan: Planner, web: Web, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Three parts side by side, one of them killed and run again, seal to the very manifest of an undisturbed run."""
    serve_yfcc(web)
    calm = plan(capsys, web, tmp_path / "source", str(tmp_path / "calm"))
    run(capsys, "fetch", "--plan", calm, *HASTE)
    run(capsys, "seal", "--plan", calm, "--max-reject-fraction", "1")
    rough = plan(capsys, web, tmp_path / "source", str(tmp_path / "rough"))
    web.asked.clear()
    web.delay = 0.3
    parts = [start_part(rough, part, 3) for part in range(3)]
    deadline = time.monotonic() + 120
    while not web.asked and time.monotonic() < deadline:
        time.sleep(0.02)
    victim = parts[0]
    os.kill(victim.pid, signal.SIGKILL)
    victim.wait()
    web.delay = 0.0
    assert [part.wait(120) for part in parts[1:]] == [0, 0]
    assert not slice_done(rough, 0)
    assert main(["stage", "seal", "--plan", rough]) == 1
    assert start_part(rough, 0, 3).wait(120) == 0
    capsys.readouterr()
    run(capsys, "seal", "--plan", rough, "--max-reject-fraction", "1")
    assert read_bytes(join(rough, "manifest.json")) == read_bytes(join(calm, "manifest.json"))
    for name in ("rejects", "slices"):
        there, here = ([read_bytes(info.uri) for info in open_store(uri).list(join(uri, name))] for uri in (rough, calm))
        assert there == here
    rows = require_manifest(rough).rows
    assert rows["read"] == rows["written"] + sum(rows["lost"].values())
    assert rejects(rough) == rows["lost"]
    deadline = time.monotonic() + 30
    while _members_of(victim.pid) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert _members_of(victim.pid) == []


def _members_of(session: int) -> list[int]:
    """Processes of a session that still live."""
    found = []
    for entry in os.listdir("/proc"):
        if entry.isdecimal():
            try:
                fields = Path(f"/proc/{entry}/stat").read_text().rpartition(")")[2].split()
            except OSError:
                continue
            if int(fields[3]) == session and fields[0] != "Z":
                found.append(int(entry))
    return found


@pytest.mark.slow
def test_another_place_for_the_pictures(web: Web, tmp_path: Path, capsys: pytest.CaptureFixture[str], s3_root: str) -> None:
    """The same plan fetched from a local mirror and from a bucket gives the same data set as from the web."""
    serve_yfcc(web)
    mirror = tmp_path / "mirror"
    for number in range(40):
        page = web.pages[f"/images/{place(number)}"]
        if isinstance(page, bytes) and number != 15:
            (mirror / place(number)).parent.mkdir(parents=True, exist_ok=True)
            (mirror / place(number)).write_bytes(page)
            with open(mirror / place(number), "rb") as file:
                open_store(s3_root).put_stream(join(s3_root, place(number)), file)
    identities = set()
    for images in (str(mirror), s3_root):
        folder = plan_yfcc(capsys, web, tmp_path / "yfcc", str(tmp_path / f"root{len(identities)}-{images[:2].strip('/')}"))
        run(capsys, "fetch", "--plan", folder, "--images", images, *HASTE)
        identities.add(run(capsys, "seal", "--plan", folder, "--max-reject-fraction", "1")["identity"])
        lost = require_manifest(folder).rows["lost"]
        assert lost["no such file"] == 7
        assert lost["not an image"] == 1
    assert len(identities) == 1
    assert sum(web.asked.values()) == 0


def test_outage(web: Web, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """When the server is gone the slice ends with one line and is not done; later it is made as if nothing had been."""
    serve_yfcc(web)
    monkeypatch.setattr("trainer.staging.remote.http._OUTAGE_AFTER", 5)
    folder = plan_yfcc(capsys, web, tmp_path / "yfcc", str(tmp_path / "root"))
    assert main(["stage", "fetch", "--plan", folder, "--images", "http://127.0.0.1:9", *HASTE]) == 1
    assert "URLs in a row failed (connect)" in capsys.readouterr().err
    assert not slice_done(folder, 0)


def test_refetch(web: Web, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A second try for chosen causes copies what is there, asks for the rest alone, and is a data set of its own."""
    serve_yfcc(web)
    root = str(tmp_path / "root")
    first = plan_yfcc(capsys, web, tmp_path / "yfcc", root)
    run(capsys, "fetch", "--plan", first, *HASTE)
    run(capsys, "seal", "--plan", first, "--max-reject-fraction", "1")
    for number in (1, 4):
        web.pages[f"/images/{place(number)}"] = picture(number)
    web.asked.clear()
    second = run(capsys, "refetch", "--plan", first, "--causes", "http 503, http 404, cut short")["uri"]
    assert second != first
    run(capsys, "fetch", "--plan", second, *HASTE)
    assert set(web.asked) == {f"/images/{place(number)}" for number in (1, 4, 15)}
    run(capsys, "seal", "--plan", second, "--max-reject-fraction", "1")
    old, new = require_manifest(first), require_manifest(second)
    assert new.plan_id != old.plan_id
    assert new.identity != old.identity
    assert new.rows["written"] == old.rows["written"] + 2
    assert new.rows["lost"] == {cause: count for cause, count in LOST.items() if cause not in ("http 503", "http 404")}
    assert new.shards[: len(old.shards)] == old.shards
    found = samples(second, new)
    assert found["1001"]["image"] == picture(1)
    assert found["1000"]["image"] == picture(0)
    assert main(["stage", "refetch", "--plan", first, "--causes", "bad luck"]) == 2
    assert "causes present: 'bad redirect' (1)" in capsys.readouterr().err


@pytest.mark.slow
def test_token_lists(web: Web, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """RWKV's token ids become captions, and those the same ids."""
    serve_yfcc(web)
    arguments = ["--list", write_rwkv(tmp_path / "x.parquet"), "--images", f"{web.url}/images", "--captions", "tokens", *SMALL]
    folder = run(capsys, "plan", "yfcc15m-rwkv", "--root", str(tmp_path), *arguments)["uri"]
    run(capsys, "fetch", "--plan", folder, *HASTE)
    run(capsys, "seal", "--plan", folder, "--max-reject-fraction", "1")
    index = read_index(folder, require_manifest(folder).shards[0])
    assert index.captions(0)[0].tolist()[:4] == [49406, 320, 1125, 539]
    assert index.captions(0)[0].tolist()[5:] == [49407]


def test_url_list_with_heldout_part(web: Web, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A list of URLs with a held-out part brings its retrieval set along."""
    web.pages |= {f"/{number}.jpg": picture(number) for number in range(30)}
    lines = "".join(f"{web.url}/{number}.jpg,picture {number},{'even' if number % 2 else 'odd'}\n" for number in range(30))
    (tmp_path / "list.csv").write_text(f"url,caption,label\n{lines}")
    arguments = ["--list", str(tmp_path / "list.csv"), "--heldout-fraction", ".3", *SMALL]
    folder = run(capsys, "plan", "urls", "--root", str(tmp_path / "root"), *arguments)["uri"]
    run(capsys, "fetch", "--plan", folder, *HASTE)
    run(capsys, "seal", "--plan", folder)
    manifest = require_manifest(folder)
    assert manifest.facts["splits"]["train"] + manifest.facts["splits"]["test"] == 30
    assert {entry["task"] for entry in manifest.evaluation} == {"zeroshot_retrieval", "zeroshot_classification"}
    for entry in manifest.evaluation:
        assert require_manifest(join(str(tmp_path / "root"), entry["uri"]), entry["identity"])


def test_nights_over_http(web: Web, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """NIGHTS at a URL becomes the data set that the same folder becomes on this machine, sample by sample."""
    web.folder = write_nights(tmp_path / "nights")
    web.pages["/ref/000/007.png"] = lambda count: (500, {}, b"") if count < 3 else (200, {}, (web.folder / "ref/000/007.png").read_bytes())
    web.pages["/ref/000/010.png"] = b"<html>"
    root = str(tmp_path / "root")
    folder = run(capsys, "plan", "nights", "--root", root, "--list", web.url, *SMALL)["uri"]
    assert Counter(read_plan(folder).splits) == {"train": 1, "val": 1, "test": 1}
    for part in range(3):
        run(capsys, "fetch", "--plan", folder, "--slice", f"{part}/3", *HASTE)
    run(capsys, "seal", "--plan", folder, "--max-reject-fraction", ".2")
    manifest = require_manifest(folder)
    assert manifest.kind == "triplets"
    assert manifest.judge == "people"
    assert manifest.rows == {"read": 24, "written": 21, "lost": {"http 404": 1, "not an image": 1, "too few votes": 1}}
    (tmp_path / "nights/ref/000/010.png").write_bytes(b"<html>")
    local = run(capsys, "triplets", "--root", root, "--source", str(web.folder), "--max-reject-fraction", ".2", *SMALL)["uri"]
    assert samples(folder, manifest) == samples(local, require_manifest(local))


def test_paths_that_lead_out(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A data.csv whose paths lead out of its folder is refused."""
    nights = write_nights(tmp_path / "nights")
    (nights / "data.csv").write_text((nights / "data.csv").read_text().replace("ref/000/001.png", "../../etc/passwd"))
    assert main(["stage", "plan", "nights", "--root", str(tmp_path), "--list", str(nights), *SMALL]) == 2
    assert "must be relative and stay below its folder, got '../../etc/passwd'" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "rule"),
    [
        (["--slice", "3/3"], "--slice must be i/n"),
        (["--slice", "a"], "--slice must be i/n"),
        (["--slice", "index/4"], "--slice index/4 needs the variable JOB_COMPLETION_INDEX"),
        (["--concurrency", "0"], "--concurrency must be >= 1"),
        ([], "no plan here"),
    ],
)
def test_bad_arguments(tmp_path: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], rule: str) -> None:
    """Arguments that cannot be meant are refused in one line."""
    assert main(["stage", "fetch", "--plan", str(tmp_path), *arguments]) == 2
    assert rule in capsys.readouterr().err


def test_plan_changed_by_hand(web: Web, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A plan whose options are not those of its id is refused, and so is one of a newer format."""
    folder = plan_yfcc(capsys, web, tmp_path / "yfcc", str(tmp_path / "root"))
    value = read_json(join(folder, "plan.json"))
    newer = {**value, "format_version": 99}
    for changed, rule in (({**value, "options": {}}, "by hand"), (newer, "newer than this firstsight")):
        (Path(folder) / "plan.json").write_text(json.dumps({**changed, "sha256": checksum(newer) if changed is newer else value["sha256"]}))
        assert main(["stage", "fetch", "--plan", folder]) in (1, 2)
        assert rule in capsys.readouterr().err


def test_a_decoder_that_dies(web: Web, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """A decoding process that is killed ends the slice in one line, and the slice is not done."""

    class Broken(ThreadPoolExecutor):
        def submit(self, *_: object, **__: object) -> Future[object]:  # type: ignore[override]
            raise BrokenExecutor("a child process terminated abruptly")

    serve_yfcc(web)
    folder = plan_yfcc(capsys, web, tmp_path / "yfcc", str(tmp_path / "root"))
    monkeypatch.setattr("trainer.staging.remote.fetch._make_makers", lambda processes: Broken(1))
    assert main(["stage", "fetch", "--plan", folder, *HASTE]) == 1
    assert "a decoding process died" in capsys.readouterr().err
    assert not slice_done(folder, 0)


def test_memory_is_bounded(web: Web, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """While the first picture is late, the others wait within the buffer, and no more are asked for."""
    big = picture(0, 250)
    web.pages |= {f"/{number}.jpg": big for number in range(60)}
    (tmp_path / "list.csv").write_text("url,caption\n" + "".join(f"{web.url}/{number}.jpg,picture {number}\n" for number in range(60)))
    arguments = ["--root", str(tmp_path / "root"), "--list", str(tmp_path / "list.csv"), "--recipe", "smoke"]
    folder = run(capsys, "plan", "urls", *arguments)["uri"]
    first = read_rows(folder, read_plan(folder), 0)[0].images[0].removeprefix(web.url)

    most = [0]

    def late(count: int) -> tuple[int, dict[str, str], bytes]:
        end = time.monotonic() + 10
        while most[0] <= (1 << 20) - len(big) and time.monotonic() < end:
            time.sleep(0.02)
        time.sleep(0.3)  # in which more would be asked for
        return 200, {}, big

    web.pages[first] = late
    count_bytes = _Pictures.count

    def watched(self: _Pictures, num_bytes: int) -> None:
        count_bytes(self, num_bytes)
        most[0] = max(most[0], self.held)

    monkeypatch.setattr(_Pictures, "count", watched)
    run(capsys, "fetch", "--plan", folder, "--concurrency", "4", "--buffer-mb", "1", *HASTE)
    assert len(big) * 8 < 1 << 20 < len(big) * 40
    assert (1 << 20) - len(big) < most[0] <= (1 << 20) + 5 * len(big)
