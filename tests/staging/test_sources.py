import csv
import io
import json
import re
import tarfile
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.staging.conftest import facts, photo_folder, picture, samples
from trainer.config import Recipe
from trainer.errors import InputError
from trainer.evaluation.read_sets import describe_set, read_set
from trainer.staging.sources import listing
from trainer.staging.stage import stage_pairs
from trainer.storage import write_bytes
from trainer.storage.manifest import Manifest

Stage = Callable[..., tuple[str, Manifest]]


def write_csv(folder: Path, header: list[str], rows: list[list[str]]) -> Path:
    """captions.csv in a folder."""
    with open(folder / "captions.csv", "w", encoding="utf-8", newline="") as stream:
        csv.writer(stream).writerows([header, *rows])
    return folder


def write_tar(path: Path, members: list[tuple[str, bytes]]) -> Path:
    """A tar as other tools write it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as tar:
        for name, data in members:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return path


def test_a_folder_with_captions_beside_the_pictures(tmp_path: Path, stage: Stage) -> None:
    """Every picture becomes a sample with all its captions; a fifth is held out, and makes the retrieval set alone."""
    uri, manifest = stage(photo_folder(tmp_path / "My Photos!"))
    staged = samples(uri, manifest)
    assert manifest.name == "my-photos-pairs"
    assert sorted(staged) == [f"p{number:03d}" for number in range(20)]
    assert staged["p007"][1] == b"picture number 7"
    assert facts(staged["p007"])["captions"] == ["picture number 7", "another caption of 7"]
    assert manifest.facts["splits"] == {"train": 16, "test": 4}
    assert [entry["task"] for entry in manifest.evaluation] == ["zeroshot_retrieval"]


def test_json_captions_with_labels_make_a_zero_shot_set(tmp_path: Path, stage: Stage) -> None:
    """Labels are in the .json beside a picture; the held-out part has some of each."""
    for number in range(20):
        (tmp_path / f"x{number}.jpg").write_bytes(picture(number, kind="JPEG"))
        caption = {"caption": f"a thing {number}", "label": "cat" if number % 2 else "dog"}
        (tmp_path / f"x{number}.json").write_text(json.dumps(caption), encoding="utf-8")
    _, manifest = stage(tmp_path)
    assert [entry["task"] for entry in manifest.evaluation] == ["zeroshot_retrieval", "zeroshot_classification"]
    folder = tmp_path / "root" / manifest.evaluation[1]["uri"]
    assert (folder / "classnames.txt").read_text(encoding="utf-8").split() == ["cat", "dog"]
    assert (folder / "test" / "nshards.txt").read_text(encoding="utf-8") == "1"


def test_labels_survive_being_written_one_a_line(tmp_path: Path, stage: Stage) -> None:
    """Blanks, tabs, line ends of any kind and byte order marks: the class names of the set are those of the samples."""
    photo_folder(tmp_path, 12)
    labels = ["big\u2028dog", " big  dog ", "a\tcat\x85", "a cat", "\ufeffcow\r\n", "cow"]
    rows = [[f"p{n:03d}.png", f"one\u2028two \x85 {n}\x0bthree", labels[n % 6]] for n in range(12)]
    uri, manifest = stage(write_csv(tmp_path, ["file", "caption", "label"], rows))
    assert {facts(members)["label"] for members in samples(uri, manifest).values()} == {"a cat", "big dog", "cow"}
    retrieval, categories = (describe_set(str(tmp_path / "root" / entry["uri"]), entry["identity"]) for entry in manifest.evaluation)
    folder = tmp_path / "root" / manifest.evaluation[1]["uri"]
    assert (
        (folder / "classnames.txt").read_text(encoding="utf-8").splitlines() == list(categories.classnames) == ["a cat", "big dog", "cow"]
    )
    assert all(re.fullmatch(r"one two   \d+ three", *item.captions) for item in read_set(retrieval))


def test_captions_csv_with_its_own_splits(tmp_path: Path, stage: Stage) -> None:
    """The split column is obeyed, several captions are in one field."""
    photo_folder(tmp_path, 6)
    rows = [[f"p{n:03d}.png", f"caption {n}\nsecond {n}", "test" if n > 3 else "train"] for n in range(6)]
    uri, manifest = stage(write_csv(tmp_path, ["file", "caption", "split"], rows))
    assert manifest.facts["splits"] == {"train": 4, "test": 2}
    assert facts(samples(uri, manifest)["p005"])["captions"] == ["caption 5", "second 5"]


def test_families_of_captions_csv_share_a_split(tmp_path: Path, stage: Stage) -> None:
    """Pictures of one family are all in training or all held out."""
    photo_folder(tmp_path, 20)
    rows = [[f"p{n:03d}.png", f"caption {n}", f"family {n % 5}"] for n in range(20)]
    uri, manifest = stage(write_csv(tmp_path, ["file", "caption", "family"], rows))
    heldout = {int(key[1:]) % 5 for shard in manifest.split("test") for key in samples(uri, manifest) if key in _keys(uri, shard)}
    trained = {int(key[1:]) % 5 for shard in manifest.split("train") for key in samples(uri, manifest) if key in _keys(uri, shard)}
    assert heldout
    assert not heldout & trained


def _keys(uri: str, shard: object) -> set[str]:
    from trainer.staging.shards import read_shard

    return {key for key, _ in read_shard(uri, shard)}  # type: ignore[arg-type]


def test_img2dataset_tars_with_failed_samples(tmp_path: Path, stage: Stage) -> None:
    """Pictures, captions and facts come in; what img2dataset could not fetch is counted, and is no fault of the tars."""
    for shard in range(2):
        keys = [f"{shard:05d}{number:04d}" for number in range(10)]
        members = []
        for number, key in enumerate(keys[:9]):
            caption = f"tar {shard} sample {number}"
            members += [
                (f"{key}.jpg", picture(shard * 10 + number, kind="JPEG")),
                (f"{key}.json", json.dumps({"caption": caption, "status": "success", "width": 40, "label": None}).encode()),
                (f"{key}.txt", caption.encode()),
            ]
        write_tar(tmp_path / "tars" / f"{shard:05d}.tar", members)
        (tmp_path / "tars" / f"{shard:05d}_stats.json").write_text("{}", encoding="utf-8")
        outcomes = {"status": ["success"] * 9 + ["failed_to_download"], "error_message": [None] * 9 + ["HTTP Error 404: Not Found"]}
        pq.write_table(pa.table({"key": keys, **outcomes}), tmp_path / "tars" / f"{shard:05d}.parquet")
    uri, manifest = stage(tmp_path / "tars")
    assert manifest.rows == {"read": 20, "written": 18, "lost": {"not fetched by its maker": 2}}
    assert {members[1] for members in samples(uri, manifest).values()} >= {b"tar 0 sample 0", b"tar 1 sample 8"}
    assert b"tar 0 sample 9" not in {members[1] for members in samples(uri, manifest).values()}
    (tmp_path / "tars" / "00001.parquet").write_bytes(b"PAR1")
    with pytest.raises(InputError, match=r"00001\.parquet: not a whole parquet file"):
        stage(tmp_path / "tars")


def test_webdataset_tars_with_classes(tmp_path: Path, stage: Stage) -> None:
    """Keys may repeat from tar to tar; .cls takes its name from classnames.txt."""
    for shard in range(3):
        members = []
        for number in range(6):
            members += [
                (f"{number}.png", picture(shard * 6 + number)),
                (f"{number}.txt", b"a caption"),
                (f"{number}.cls", b"%d" % (number % 2)),
            ]
        write_tar(tmp_path / "tars" / f"{shard}.tar", members)
    (tmp_path / "tars" / "classnames.txt").write_text("night\nday\n", encoding="utf-8")
    uri, manifest = stage(tmp_path / "tars")
    assert manifest.rows["written"] == 18
    assert {facts(members)["label"] for members in samples(uri, manifest).values()} == {"night", "day"}


def test_our_own_shards_can_be_staged_again(tmp_path: Path, stage: Stage) -> None:
    """What we write is a source like any other."""
    uri, manifest = stage(photo_folder(tmp_path / "photos"))
    _, again = stage(uri)
    assert again.rows["written"] == manifest.rows["written"] == 20


def test_one_changed_byte_makes_another_data_set(tmp_path: Path, stage: Stage) -> None:
    """Same names, sizes and times do not fool the fingerprint."""
    folder = photo_folder(tmp_path / "photos", 6)
    _, before = stage(folder)
    (folder / "p001.txt").write_text("picture number X\nanother caption of 1\n", encoding="utf-8")
    _, after = stage(folder)
    assert before.plan_id != after.plan_id


def table(header: str, *rows: str, encoding: str = "utf-8") -> Callable[[Path], object]:
    """Writes captions.csv beside three pictures."""
    return lambda folder: (photo_folder(folder, 3) / "captions.csv").write_text("\n".join((header, *rows)), encoding=encoding)


def tar(*members: tuple[str, bytes], length: int | None = None) -> Callable[[Path], object]:
    """Writes a tar, or the beginning of one."""

    def write(folder: Path) -> None:
        path = write_tar(folder / "a.tar", list(members))
        path.write_bytes(path.read_bytes()[:length])

    return write


@pytest.mark.parametrize(
    ("prepare", "message"),
    [
        (lambda folder: None, "nothing there"),
        (lambda folder: (folder / "notes.md").write_text("x", encoding="utf-8"), "no pictures among 1 files"),
        (lambda folder: [(folder / f"a.{kind}").write_bytes(picture(1)) for kind in ("png", "webp")], "two samples are named 'a'"),
        (table("file,words", "p000.png,x"), "no column 'caption'"),
        (table("file,caption,split", "p000.png,x,dev"), "row 2: split must be train, val or test, got 'dev'"),
        (table("file,caption"), "no rows"),
        (table("file,caption", "p000.png,caf\xe9", encoding="latin-1"), "line 2 has byte 0xe9"),
        (table("file,caption", "p000.png"), "line 2 must have 2 columns"),
        (tar(("a.png", picture(1)), ("a.txt", b"x"), ("b.txt", b"x"), ("a.txt", b"x")), "two samples are named 'a'"),
        (tar(("a.png", picture(1)), ("a.png", picture(1))), "appears twice"),
        (tar(("a.png", picture(1)), length=700), "truncated"),
        (lambda folder: (folder / "a.tar").write_bytes(b"not a tar" * 200), "not a whole tar"),
    ],
)
def test_a_bad_source_is_refused_in_one_line(tmp_path: Path, stage: Stage, prepare: Callable[[Path], object], message: str) -> None:
    """Naming what, where and the rule; nothing is sealed."""
    folder = tmp_path / "source"
    folder.mkdir()
    prepare(folder)
    with pytest.raises(InputError, match=message) as caught:
        stage(folder)
    assert "\n" not in str(caught.value)
    assert not list((tmp_path / "root").rglob("manifest.json"))


def test_a_folder_that_is_not_there(tmp_path: Path, stage: Stage) -> None:
    """Says so."""
    with pytest.raises(InputError, match="nowhere: no such folder"):
        stage(tmp_path / "nowhere")


@pytest.mark.parametrize(
    ("spoil", "cause"),
    [
        (lambda folder: (folder / "p001.txt").write_bytes("caf\xe9".encode("latin-1")), "caption not UTF-8 .*p001.png.*0xe9 at 3"),
        (lambda folder: (folder / "p001.png").write_bytes(picture(1)[:-60]), "truncated image .*p001.png"),
        (lambda folder: (folder / "p001.txt").write_text("  \n", encoding="utf-8"), "empty caption"),
        (lambda folder: (folder / "p001.txt").unlink(), "no caption"),
        (lambda folder: (folder / "p001.png").write_bytes(b"<html>"), "not an image .*HTML"),
    ],
)
def test_too_many_bad_samples_stop_staging_with_the_causes(
    tmp_path: Path, stage: Stage, spoil: Callable[[Path], object], cause: str
) -> None:
    """The causes are counted: one of 20 is 5 %; with a higher limit the same command goes on and lists the reject."""
    folder = photo_folder(tmp_path / "photos")
    spoil(folder)
    with pytest.raises(InputError, match=f"1 of 20 samples are bad .5.0%, .*allows 1.0%.: 1 x {cause}"):
        stage(folder)
    assert not list((tmp_path / "root").rglob("manifest.json"))
    uri, manifest = stage(folder, limit=0.1)
    assert manifest.rows["written"] == 19
    (listed,) = Path(uri, "rejects").glob("*.jsonl")
    assert json.loads(listed.read_text(encoding="utf-8"))["where"] == "p001.png"


def test_what_is_bad_by_its_name_alone_stops_staging_before_a_picture_is_read(
    tmp_path: Path, stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    """150 HEIC beside 150 PNG: the line names cause, example and list, and nothing was decoded."""
    folder = photo_folder(tmp_path / "photos", 15)
    for number in range(15):
        (folder / f"h{number:03d}.heic").write_bytes(b"x")
    monkeypatch.setattr("trainer.staging.samples.normalise", lambda *given: pytest.fail("a picture was read"))
    with pytest.raises(
        InputError, match=r"15 of 30 samples are bad .50\.0%.*: 15 x kind of file not read \(such as h000\.heic: "
    ) as caught:
        stage(folder)
    listed = Path(str(caught.value).rpartition("all are listed in ")[2])
    assert len((listed / "plan.jsonl").read_text().splitlines()) == 15


def test_a_source_and_a_root_on_s3(tmp_path: Path, s3_root: str, smoke: Recipe) -> None:
    """The same folder staged from S3 to S3 has the identity that it has on disk."""
    local = photo_folder(tmp_path / "photos", 6)
    for path in local.iterdir():
        write_bytes(f"{s3_root}/photos/{path.name}", path.read_bytes())
    _, on_s3 = stage_pairs(root=f"{s3_root}/root", source=f"{s3_root}/photos", recipe=smoke, max_reject_fraction=0.01)
    _, on_disk = stage_pairs(root=str(tmp_path / "root"), source=str(local), recipe=smoke, max_reject_fraction=0.01)
    assert on_s3 == on_disk


def test_a_remembered_fingerprint_is_read_again_where_it_is_damaged(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A large source is read once; what was noted of it is believed only whole, and of this very listing."""
    monkeypatch.setattr("trainer.staging.sources.listing._ALWAYS_READ_BYTES", 0)
    reads: list[str] = []
    original = listing._file_hash
    monkeypatch.setattr(listing, "_file_hash", lambda file: reads.append(file.name) or original(file))
    files = listing.list_source(str(photo_folder(tmp_path / "photos", 2)))
    first = listing.fingerprint(files, str(tmp_path))
    assert listing.fingerprint(files, str(tmp_path)) == first
    assert len(reads) == len(files)
    (note,) = (tmp_path / "datasets" / "fingerprints").iterdir()
    whole = note.read_bytes()
    for damaged in (whole.replace(first[:8].encode(), b"00000000"), whole[:20], b'{"sha256": "0"}', b"[]"):
        note.write_bytes(damaged)
        assert listing.fingerprint(files, str(tmp_path)) == first
        assert note.read_bytes() == whole
