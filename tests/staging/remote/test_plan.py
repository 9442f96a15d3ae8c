"""`stage plan`: lists of every sort become slices of rows; every row is in one of them or counted as lost."""

import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.staging.remote.sources import photo_hash, place, write_declip, write_rwkv, write_yfcc
from tests.staging.remote.web import web_server
from trainer.__main__ import main
from trainer.staging.plans import plan_id
from trainer.staging.remote import plan as plans
from trainer.staging.remote.captions import clean_captions
from trainer.staging.remote.rows import RemoteRow, read_plan, read_rows
from trainer.storage import join, read_bytes

SMALL = ["--recipe", "smoke", "--set", "staging.shard_samples=2"]


def plan(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    """Plan by the command line; the folder it prints."""
    assert main(["stage", "plan", *arguments, *SMALL]) == 0
    return str(json.loads(capsys.readouterr().out)["uri"])


def refused(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    """The one line with which planning is refused."""
    assert main(["stage", "plan", *arguments, *SMALL]) == 2
    error = capsys.readouterr().err.strip()
    assert "\n" not in error
    return error


def all_rows(folder: str) -> list[RemoteRow]:
    """The rows of all slices."""
    return [row for number in range(len(read_plan(folder).splits)) for row in read_rows(folder, read_plan(folder), number)]


def yfcc(files: dict[str, str], root: str, which: str = "openai", captions: str = "both") -> list[str]:
    """The arguments for a list that is joined with metadata."""
    ids = ["--ids", files["ids"]] if which == "slip" else []
    return [
        f"yfcc15m-{which}", "--root", root, "--list", files["list"], "--metadata", files["metadata"], "--images", "http://x",
        "--captions", captions, *ids,
    ]  # fmt: skip


def test_openai_list(root: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The list is joined with the metadata; duplicates and rows that lead nowhere are counted and listed by cause."""
    folder = plan(capsys, *yfcc(write_yfcc(tmp_path / "yfcc"), root))
    planned = read_plan(folder)
    assert planned.rows_read == 41
    assert planned.lost == {"duplicate": 1, "no metadata": 1, "bad row": 1}
    assert planned.bad == {"no metadata": 1, "bad row": 1}
    rows = all_rows(folder)
    assert sorted(int(row.key) for row in rows) == [1000 + number for number in range(40) if number not in (9, 11)]
    row = next(row for row in rows if row.key == "1003")
    assert list(row.images) == [place(3)]
    assert list(row.texts) == ["Title+3+%22caf%C3%A9%22", "<a+href=x>see</a>+http://flic.kr/3+the+%3Cb%3Esea%3C/b%3E"]
    assert planned.splits == ["train"] * 3  # 38 rows, 16 a slice
    rejects = [json.loads(line) for line in read_bytes(join(folder, "rejects", "plan.jsonl")).splitlines()]
    assert [reject["where"] for reject in rejects] == ["row 7", "row 9", "row 11"]


def test_slip_list(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """SLIP's list is that part of OpenAI's whose line numbers SLIP names."""
    folder = plan(capsys, *yfcc(write_yfcc(tmp_path / "yfcc"), str(tmp_path), "slip", "slip"))
    assert sorted(int(row.key) for row in all_rows(folder)) == [1000 + number for number in range(0, 40, 2)]
    assert read_plan(folder).rows_read == 20


def test_lists_that_stand_alone(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """DeCLIP's JSON lines and RWKV's parquet need no metadata; token ids stay ids until the picture is there."""
    root = str(tmp_path / "root")
    folder = plan(capsys, "yfcc15m-declip", "--root", root, "--list", write_declip(tmp_path / "x.jsonl"), "--images", "http://x")
    assert {(row.key, row.images[0], row.texts[0]) for row in all_rows(folder)} == {
        (photo_hash(number), place(number), f"photo {number}") for number in range(10)
    }
    arguments = ["yfcc15m-rwkv", "--root", root, "--list", write_rwkv(tmp_path / "x.parquet"), "--images", "http://x"]
    folder = plan(capsys, *arguments, "--captions", "tokens")
    assert {(row.images[0], row.texts[0]) for row in all_rows(folder)} == {
        (place(number), f"49406 320 1125 539 {320 + number} 49407 0 0") for number in range(10)
    }


def test_url_lists_of_any_sort(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """CSV, TSV, JSON lines and parquet with the same rows plan the same slices, up to the name of the list."""
    rows = [{"url": f"http://h/{number}.jpg", "caption": f'the "{number}"\nsecond, line', "label": "cat"} for number in range(20)]
    rows += [{"url": "file:///etc/passwd", "caption": "x", "label": ""}, {"url": "http://h/e", "caption": " ", "label": ""}]
    table = pa.Table.from_pylist(rows)
    pq.write_table(table, tmp_path / "list.parquet")
    (tmp_path / "list.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    quoted = ['"{}","{}","{}"'.format(row["url"], row["caption"].replace('"', '""'), row["label"]) for row in rows]
    (tmp_path / "list.csv").write_text("URL, caption ,label\n" + "\n".join(quoted) + "\n")
    seen = []
    for suffix in ("csv", "jsonl", "parquet"):
        folder = plan(capsys, "urls", "--root", str(tmp_path / suffix), "--list", str(tmp_path / f"list.{suffix}"))
        planned = read_plan(folder)
        assert (planned.rows_read, planned.lost) == (22, {"bad URL": 1, "empty caption": 1})
        seen.append([(row.key, tuple(row.images), tuple(row.texts), row.label) for row in all_rows(folder)])
    assert seen[0] == seen[1] == seen[2]
    assert seen[0][0][2][1] == "second, line"


def test_order_is_a_permutation_by_key(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Rows come in an order that has nothing to do with the list's, and that the list's order does not change."""
    rows = [f"http://h/{number}.jpg,caption {number}" for number in range(64)]
    seen = []
    for name, lines in (("a", rows), ("b", rows[::-1])):
        (tmp_path / f"{name}.csv").write_text("\n".join(["url,caption", *lines]) + "\n")
        seen.append(
            [row.images[0] for row in all_rows(plan(capsys, "urls", "--root", str(tmp_path), "--list", str(tmp_path / f"{name}.csv")))]
        )
    assert seen[0] == seen[1]
    assert seen[0] != [line.split(",")[0] for line in rows]
    assert sorted(seen[0]) == sorted(line.split(",")[0] for line in rows)


def test_lists_on_the_web(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Lists at URLs are brought here first, and give the plan that the same files give on this machine."""
    files = write_yfcc(tmp_path / "yfcc")
    with web_server() as web:
        web.folder = tmp_path / "yfcc"
        remote = {name: f"{web.url}/{Path(path).name}" for name, path in files.items()}
        folder = plan(capsys, *yfcc(remote, str(tmp_path / "remote")))
        assert refused(capsys, *yfcc({**remote, "list": f"{web.url}/none.tsv"}, str(tmp_path))).endswith(
            "the server rejected the request (404 Not Found)"
        )
    assert Path(folder).name == Path(plan(capsys, *yfcc(files, str(tmp_path / "local")))).name


def test_planning_twice(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The same list with the same options is one plan; another option or a changed list is another."""
    files = write_yfcc(tmp_path / "yfcc")
    root = str(tmp_path / "root")
    first = plan(capsys, *yfcc(files, root))
    assert plan(capsys, *yfcc(files, root)) == first
    assert plan(capsys, *yfcc(files, root, captions="title")) != first
    with open(files["list"], "a") as file:
        file.write(f"50\t1050\t{photo_hash(50)}\n")
    assert plan(capsys, *yfcc(files, root)) != first


def test_heldout_rows(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A part of the rows can be held out, in slices of their own."""
    (tmp_path / "x.csv").write_text("url,caption\n" + "".join(f"http://h/{n}.jpg,caption {n}\n" for n in range(200)))
    folder = plan(capsys, "urls", "--root", str(tmp_path), "--list", str(tmp_path / "x.csv"), "--heldout-fraction", ".25")
    splits = read_plan(folder).splits
    rows = {
        split: sum(len(read_rows(folder, read_plan(folder), number)) for number, s in enumerate(splits) if s == split)
        for split in ("train", "test")
    }
    assert rows["train"] + rows["test"] == 200
    assert 30 <= rows["test"] <= 70


def test_rows_of_one_caption_share_a_split(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Whatever its case and blanks; what an older version has begun keeps the split by keys."""
    rows = [f"http://h/{n}.jpg,{'A  Dog' if n % 2 else 'a dog'} {n // 8}\n" for n in range(400)]
    (tmp_path / "x.csv").write_text("url,caption\n" + "".join(rows))
    arguments = ("urls", "--root", str(tmp_path), "--list", str(tmp_path / "x.csv"), "--heldout-fraction", ".25")

    def sides(folder: str) -> list[set[str]]:
        found: dict[str, set[str]] = {}
        for number, split in enumerate(read_plan(folder).splits):
            for row in read_rows(folder, read_plan(folder), number):
                found.setdefault(str(row.texts[0]).split()[-1], set()).add(split)
        return list(found.values())

    folder = plan(capsys, *arguments)
    assert {len(splits) for splits in sides(folder)} == {1}
    assert set.union(*sides(folder)) == {"train", "test"}
    made = read_plan(folder)
    options = {key: value for key, value in made.options.items() if key != "rules"}
    older = Path(folder).with_name(plan_id(made.source["fingerprint"], options))
    older.mkdir()
    (older / "plan.json").write_text("{}")
    assert plan(capsys, *arguments) == str(older)
    assert {len(splits) for splits in sides(str(older))} == {1, 2}


@pytest.mark.parametrize(
    ("change", "rule"),
    [
        (lambda files: Path(files["list"]).write_text("1\t2\n"), r"list\.tsv: line 1: expected number of columns: 3 found: 2"),
        (lambda files: Path(files["metadata"]).write_text("1\t2\t3\n"), "at least 10 columns; its first line has 3"),
        (lambda files: files.update(metadata=""), "--metadata is needed"),
        (lambda files: files.update(metadata=files["metadata"] + ".bz2"), "unpack or convert it first"),
        (lambda files: files.update(list=files["list"] + "x"), "listx?.*no such file"),
        (lambda files: Path(files["list"]).write_text(""), "no usable row among 0"),
    ],
)
def test_bad_lists(tmp_path: Path, capsys: pytest.CaptureFixture[str], change: object, rule: str) -> None:
    """A list that is not what it should be is refused in one line, and nothing is planned."""
    import re

    files = write_yfcc(tmp_path / "yfcc")
    change(files)  # type: ignore[operator]
    assert re.search(rule, refused(capsys, *yfcc(files, str(tmp_path / "root"))))
    assert not list((tmp_path / "root").rglob("plan.json"))


@pytest.mark.parametrize(
    ("arguments", "rule"),
    [
        (["urls", "--list", "{folder}/x.docx"], "must end in one of"),
        (["urls", "--list", "{folder}/x.txt"], "has no column 'url' or 'image_url' (it has http://h/x)"),
        (["urls", "--list", "{folder}/no-url.csv"], "has no column 'url' or 'image_url' (it has address, caption)"),
        (["urls", "--list", "{folder}/no-caption.csv"], "has no column 'caption'"),
        (["urls", "--list", "{folder}/wrong.parquet"], "wrong.parquet"),
        (["urls", "--list", "{folder}/ok.csv", "--captions", "slip"], "--captions must be as-is"),
        (["urls", "--list", "{folder}/ok.csv", "--captions", "best"], "--captions must be one of"),
        (["urls", "--list", "{folder}/ok.csv", "--heldout-fraction", "1"], "--heldout-fraction"),
        (["urls"], "--list must name the list"),
        (["yfcc15m-slip", "--list", "{folder}/ok.csv", "--metadata", "m", "--captions", "slip"], "--ids"),
        (["yfcc15m-rwkv", "--list", "{folder}/pictures.parquet"], "contains the pictures themselves"),
        (["yfcc15m-declip", "--list", "{folder}/declip.jsonl"], "--images is required"),
        (["nights", "--list", "{folder}"], "data.csv"),
    ],
)
def test_bad_arguments(tmp_path: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], rule: str) -> None:
    """Whatever is wrong is said by name, in one line."""
    (tmp_path / "x.txt").write_text("http://h/x\n")
    (tmp_path / "ok.csv").write_text("url,caption\nhttp://h/x,y\n")
    (tmp_path / "no-url.csv").write_text("address,caption\nhttp://h/x,y\n")
    (tmp_path / "no-caption.csv").write_text("url\nhttp://h/x\n")
    (tmp_path / "wrong.parquet").write_bytes(b"PAR1 and then nothing")
    pq.write_table(pa.table({"images": [{"bytes": b"x"}], "texts": [[1]]}), tmp_path / "pictures.parquet")
    write_declip(tmp_path / "declip.jsonl")
    filled = [argument.format(folder=tmp_path) for argument in arguments]
    assert rule in refused(capsys, filled[0], "--root", str(tmp_path / "root"), *filled[1:])


def test_npy_is_never_unpickled(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A file of line numbers that would have to be unpickled is refused."""
    files = write_yfcc(tmp_path / "yfcc")
    np.save(files["ids"], np.array([{"a": 1}], dtype=object))
    assert "not a .npy file of line numbers" in refused(capsys, *yfcc(files, str(tmp_path), "slip", "slip"))


@pytest.mark.parametrize(
    ("policy", "texts", "captions"),
    [
        ("title", ["Caf%C3%A9+au+lait", "x"], ["Café au lait"]),
        ("description", ["x", "a%0Ab++c"], ["a b c"]),
        ("both", ["a", "b"], ["a", "b"]),
        ("both", ["", "b"], ["b"]),
        ("both", [None, None], []),
        ("slip", ["<b>A</b>+<a href=x>link</a>", "see+https://x.y/z?a=b+www.x.y+it"], ["A link", "see it"]),
        ("slip", ["http%3A//only.url", "%2B"], []),
        ("as-is", ["1+1 = 2", " ", "50%25"], ["1+1 = 2", "50%25"]),
    ],
)
def test_caption_policies(policy: str, texts: list[str | None], captions: list[str]) -> None:
    """Each policy keeps what it says, and nothing empty."""
    assert clean_captions(policy, texts) == captions


def test_memory_that_is_not_to_be_had(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """One line, exit 1, and no plan that a later step could take for whole."""

    def refuse(*_: object) -> None:
        raise pa.ArrowMemoryError("malloc of size 1048576 failed")

    monkeypatch.setattr(plans, "write_rows", refuse)
    assert main(["stage", "plan", *yfcc(write_yfcc(tmp_path), str(tmp_path / "root")), *SMALL]) == 1
    assert capsys.readouterr().err == "trainer stage: out of memory: malloc of size 1048576 failed\n"
    assert not list(tmp_path.glob("root/**/plan.json"))


@pytest.mark.slow
def test_more_rows_than_memory(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A list and metadata larger than duckdb may keep in memory are joined and sorted by way of the disk."""
    rows = 450_000
    with open(tmp_path / "list.tsv", "w") as listed, open(tmp_path / "metadata.tsv", "w") as metadata:
        for number in range(rows):
            name = photo_hash(number)
            listed.write(f"{number}\t{number}\t{name}\n")
            metadata.write("\t".join([str(number), str(number), name, *"34567", "A+title+" * 10, "A+description+" * 30, "10"]) + "\n")
    files = {"list": str(tmp_path / "list.tsv"), "metadata": str(tmp_path / "metadata.tsv")}
    assert main(["stage", "plan", *yfcc(files, str(tmp_path / "root")), "--memory-mb", "240"]) == 0
    folder = str(json.loads(capsys.readouterr().out)["uri"])
    planned = read_plan(folder)
    assert planned.rows_read == rows
    assert len(planned.splits) == -(-rows // (8 * 1024))
    keys = {row.key for number in range(0, len(planned.splits), 40) for row in read_rows(folder, read_plan(folder), number)}
    assert len(keys) == len(range(0, len(planned.splits), 40)) * 8 * 1024
