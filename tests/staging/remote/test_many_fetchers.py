"""Several fetchers of the same slices, over a source that answers each of them differently: one attempt counts, whole."""

import hashlib
import json
import random
import time
from pathlib import Path

import pytest

from tests.staging.remote.sources import picture
from tests.staging.remote.test_fetch import rejects, run, samples
from tests.staging.remote.web import Answer, Web, web_server
from tests.staging.remote.workers import Worker, workers
from tests.staging.test_writer import tree
from trainer.__main__ import main
from trainer.staging.remote.rows import read_plan
from trainer.storage import join, open_store, read_bytes
from trainer.storage.manifest import require_manifest
from trainer.storage.samples import read_index

ROWS = 36
BUCKETS = (100, 102, 103, 104, 105)
FETCH = ["--tries", "1", "--timeout", "20", "--backoff", ".01", "--concurrency", "3"]
SMALL = ["--recipe", "smoke", "--set", "staging.shard_samples=2"]


def flapping(web: Web, seed: int, share: float) -> None:
    """Pictures that are there or not, as it comes: each time that one is asked for, by the seed."""
    for number in range(ROWS):

        def answer(count: int, number: int = number) -> Answer:
            if random.Random(f"{seed} {number} {count}").random() < share:
                return 404, {}, b""
            return 200, {}, picture(number)

        web.pages[f"/{number}.jpg"] = answer


def plan(capsys: pytest.CaptureFixture[str], web: Web, tmp_path: Path, root: str) -> str:
    """A plan of a list of pictures, a third of them held out: three slices."""
    lines = "".join(f"{web.url}/{number}.jpg,picture {number},{'even' if number % 2 else 'odd'}\n" for number in range(ROWS))
    (tmp_path / "list.csv").write_text(f"url,caption,label\n{lines}")
    return run(capsys, "plan", "urls", "--root", root, "--list", str(tmp_path / "list.csv"), "--heldout-fraction", ".3", *SMALL)["uri"]


def check_sealed(capsys: pytest.CaptureFixture[str], folder: str) -> str:
    """Seal, and see that every row is a sample or counted, all bytes are those of the manifest, and nothing else is left."""
    identity = run(capsys, "seal", "--plan", folder, "--max-reject-fraction", "1")["identity"]
    manifest = require_manifest(folder, identity)
    assert manifest.rows["read"] == ROWS == manifest.rows["written"] + sum(manifest.rows["lost"].values())
    assert rejects(folder) == manifest.rows["lost"]
    assert len(samples(folder, manifest)) == manifest.rows["written"]
    for shard in manifest.shards:
        read_index(folder, shard)
        assert hashlib.sha256(read_bytes(join(folder, shard.name))).hexdigest() == shard.sha256
    lost = {
        json.loads(line)["where"] for info in open_store(folder).list(join(folder, "rejects")) for line in read_bytes(info.uri).splitlines()
    }
    assert not lost & samples(folder, manifest).keys()
    names = {info.uri.removeprefix(f"{folder}/") for info in open_store(folder).list(folder)}
    assert names - manifest.all_files.keys() - read_plan(folder).files.keys() == {"plan.json", "manifest.json", "CHECKED.json"}
    assert main(["stage", "seal", "--plan", folder]) == 0
    assert capsys.readouterr().err == ""
    for entry in manifest.evaluation:
        assert require_manifest(join(folder.rpartition("/datasets/")[0], entry["uri"]), entry["identity"])
    return identity


def race(capsys: pytest.CaptureFixture[str], web: Web, folder: str, started: list[Worker], dice: random.Random, kills: int = 0) -> str:
    """Fetchers of all slices at once, some of them killed; one more where any was, and the seal. Returns the identity."""
    web.asked.clear()
    for worker in started:
        worker.start("stage", "fetch", "--plan", folder, *FETCH)
    for worker in started[:kills]:
        _wait_for_requests(web, dice.randrange(5, ROWS * len(started)))
        worker.kill()
    codes = [worker.wait() for worker in started]
    assert set(codes) <= {0, -9}, codes
    if kills:
        run(capsys, "fetch", "--plan", folder, *FETCH)
    return check_sealed(capsys, folder)


def race_once(capsys: pytest.CaptureFixture[str], tmp_path: Path, root: str, seed: int, fetchers: int, kills: int = 0) -> None:
    """One race over a flapping source."""
    with workers(fetchers) as started, web_server() as web:
        flapping(web, seed, 0.3)
        race(capsys, web, plan(capsys, web, tmp_path, root), started, random.Random(seed), kills)


def _wait_for_requests(web: Web, count: int) -> None:
    """Until the web was asked so often, or nobody asks any more."""
    last, quiet_since = -1, time.monotonic()
    while sum(web.asked.values()) < count:
        now = sum(web.asked.values())
        if now != last:
            last, quiet_since = now, time.monotonic()
        if now and time.monotonic() - quiet_since > 1:
            return
        time.sleep(0.005)


@pytest.mark.parametrize("seed", [0, pytest.param(1, marks=pytest.mark.slow)])
def test_two_and_three_fetchers_of_the_same_slices(seed: int, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The set is readable and adds up, whichever attempt was chosen."""
    race_once(capsys, tmp_path, str(tmp_path / "root"), seed, 2 + seed % 2)


@pytest.mark.parametrize("seed", [1, pytest.param(0, marks=pytest.mark.slow)])
def test_fetchers_that_are_killed(seed: int, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """One or two of three, anywhere; what they left is used or swept."""
    race_once(capsys, tmp_path, str(tmp_path / "root"), seed, 3, kills=1 + seed % 2)


def test_identity_does_not_depend_on_how_many_fetched(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Of a source that always answers the same: through one fetcher, three, and three of which two were killed."""
    with workers(7) as started, web_server() as web:
        flapping(web, 1, 0.0)
        del web.pages["/7.jpg"]
        found = []
        for number, (part, kills) in enumerate(((started[:1], 0), (started[1:4], 0), (started[4:], 2))):
            folder = plan(capsys, web, tmp_path, str(tmp_path / f"root{number}"))
            found.append(race(capsys, web, folder, part, random.Random(number), kills))
    assert len(set(found)) == 1


def test_fetchers_on_a_bucket(tmp_path: Path, capsys: pytest.CaptureFixture[str], s3_root: str) -> None:
    """The same where the store is S3."""
    race_once(capsys, tmp_path, s3_root, 1, 3, kills=1)


@pytest.mark.campaign
@pytest.mark.parametrize("seed", range(100, 160))
def test_many_seeds(seed: int, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The same, for longer."""
    race_once(capsys, tmp_path, str(tmp_path / "root"), seed, 2 + seed % 2, kills=seed % 3)


@pytest.mark.parametrize(
    "seed", [pytest.param(101, marks=pytest.mark.slow), *(pytest.param(seed, marks=pytest.mark.campaign) for seed in BUCKETS)]
)
def test_many_seeds_on_buckets(seed: int, tmp_path: Path, capsys: pytest.CaptureFixture[str], request: pytest.FixtureRequest) -> None:
    """The same, on both servers: each of them sets the environment to itself, so a test takes one."""
    root = request.getfixturevalue(("s3_root", "minio_root")[seed % 2])
    race_once(capsys, tmp_path, root, seed, 2 + seed % 2, kills=seed % 3)


def heal(capsys: pytest.CaptureFixture[str], web: Web, tmp_path: Path, folder: str) -> str:
    """The commands of the pipeline, again: plan, fetch, seal; the identity."""
    assert plan(capsys, web, tmp_path, folder.rpartition("/datasets/")[0]) == folder
    run(capsys, "fetch", "--plan", folder, *FETCH)
    return run(capsys, "seal", "--plan", folder, "--max-reject-fraction", "1")["identity"]


@pytest.mark.parametrize(
    ("sealed", "stride"), [(True, 9), pytest.param(True, 1, marks=pytest.mark.campaign), pytest.param(False, 1, marks=pytest.mark.campaign)]
)
def test_every_object_damaged(sealed: bool, stride: int, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Of a fetched data set, sealed or not: the same commands give back the very same bytes, rows and rejects of the plan too."""
    with web_server() as web:
        flapping(web, 0, 0.0)
        del web.pages["/7.jpg"]
        folder = plan(capsys, web, tmp_path, str(tmp_path / "root"))
        identity = heal(capsys, web, tmp_path, folder)
        whole = tree(tmp_path / "root" / "datasets")
        dice = random.Random(int(sealed))
        for name in list(whole)[::stride]:
            if not sealed:
                (Path(folder) / "manifest.json").unlink()
            path = tmp_path / "root" / "datasets" / name
            data = path.read_bytes() if path.exists() else b""
            kind = dice.choice(("missing", "flipped", "cut short"))
            if kind == "missing":
                path.unlink(missing_ok=True)
            else:
                at = dice.randrange(max(1, len(data) - 1))
                path.write_bytes(data[:at] if kind == "cut short" else data[:at] + bytes([(data or b"x")[at] ^ 1]) + data[at + 1 :])
            assert heal(capsys, web, tmp_path, folder) == identity, (name, kind)
            assert tree(tmp_path / "root" / "datasets") == whole, (name, kind)


def test_a_source_that_changed_is_refused_by_name(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A sealed shard is damaged and its pictures are gone: nothing is mixed, and what is whole stays."""
    with web_server() as web:
        flapping(web, 0, 0.0)
        folder = plan(capsys, web, tmp_path, str(tmp_path / "root"))
        identity = heal(capsys, web, tmp_path, folder)
        victim = Path(folder) / require_manifest(folder).shards[0].name
        data = victim.read_bytes()
        victim.write_bytes(data[:-1])
        web.pages.clear()
        assert main(["stage", "seal", "--plan", folder]) == 1
        assert victim.name in capsys.readouterr().err
        assert main(["stage", "fetch", "--plan", folder, *FETCH]) == 1
        assert "its source no longer yields the sealed bytes" in capsys.readouterr().err
        victim.write_bytes(data)
        assert heal(capsys, web, tmp_path, folder) == identity
