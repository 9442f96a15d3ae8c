"""What of folders and lists is lost, or refused: word for word."""

import json
import os
import re
from pathlib import Path

import pytest

from tests.staging.layouts import PICTURES, A, B, C, D, Files, Made, check_losses, coco, json_lines, made, parquet, write
from trainer.config import Recipe
from trainer.errors import InputError
from trainer.staging import stage

HEIC = "kind of file not read: .heic is not read: convert it to JPEG or PNG, for example with the Python package pillow-heif"
LIST = "file,caption\n"
LOST: dict[str, tuple[Files, Made, dict[str, str]]] = {
    "kinds of pictures that are not read": (
        {"a.jpg": A, "a.txt": "A dog", "b.HEIC": b"x", "b.txt": "A cat", "c.svg": "<svg/>", "a.jxl": b"x", "notes.md": "x"},
        {"a.jpg": "A dog"},
        {
            "b.HEIC": HEIC,
            "c.svg": "kind of file not read: .svg is not read: convert it to PNG or JPEG (ImageMagick: magick mogrify -format png '*.svg')",
            "a.jxl": "kind of file not read: .jxl is not read: convert it to PNG or JPEG (ImageMagick: magick mogrify -format "
            "png '*.jxl') (no fault)",
            "b.txt": "caption without picture: no picture with this name (no fault)",
        },
    ),
    "captions without pictures": (
        {"a.jpg": A, "a.txt": "A dog", "x.txt": "x", "y.json": "{}", "z.caption": "z"},
        {"a.jpg": "A dog"},
        {name: "caption without picture: no picture with this name (no fault)" for name in ("x.txt", "y.json", "z.caption")},
    ),
    "two files of captions": (
        {"a.jpg": A, "a.txt": "no", "a.TXT": "A dog"},
        {"a.jpg": "A dog"},
        {"a.txt": "second caption file: a.TXT is read (no fault)"},
    ),
    "one bad JSON": (
        {
            "a.jpg": A,
            "a.json": "[" * 100_000,
            "b.jpg": B,
            "b.json": f'{{"caption": "x", "n": {"9" * 5000}}}',
            "c.jpg": C,
            "c.json": '{"caption": "\\ud800"}',
            "d.jpg": D,
            "d.txt": "A cow",
        },
        {"d.jpg": "A cow"},
        {
            "a.jpg": "caption not JSON: a.json: nested deeper than 64 levels",
            "b.jpg": "caption not JSON: b.json: not JSON: Exceeds the limit (4300 digits) for integer string conversion: value "
            "has 5000 digits; use sys.set_int_max_str_digits() to increase the limit",
            "c.jpg": r"caption not UTF-8: c.json: half a character, '\ud800'",
        },
    ),
    "rows": (
        {**PICTURES, "captions.csv": LIST + "a.jpg,A dog\nx.jpg,x\nb.jpg\nb.jpg, \na.jpg,A dog\n,x\nc.jpg,a,b\nc.jpg,A cow\n"},
        {"a.jpg": "A dog", "c.jpg": "A cow"},
        {
            "x.jpg": "no such file: row 3 of captions.csv: not a file of this folder",
            "captions.csv: row 4": "bad row: line 4 must have 2 columns, as the first line has, and has 1",
            "b.jpg": "empty caption: row 5 of captions.csv",
            "a.jpg": "duplicate: row 6 of captions.csv: says what row 2 of captions.csv says (no fault)",
            "row 7": "no such file: row 7 of captions.csv: not a file of this folder",
            "captions.csv: row 8": "bad row: line 8 must have 2 columns, as the first line has, and has 3",
        },
    ),
    "lines": (
        {
            **PICTURES,
            "captions.jsonl": json_lines(
                {"file": "a.jpg", "caption": "A dog"}, {"file": "b.jpg", "caption": {"a": 1}}, {"file": ["c.jpg"], "caption": "x"}, [1]
            )
            + "[" * 100_000
            + "\n{\n"
            + '{"file": "c.jpg", "caption": "\\udfff"}\n',
        },
        {"a.jpg": "A dog"},
        {
            "b.jpg": "caption is not text: line 2 of captions.jsonl: {'a': 1}",
            "captions.jsonl: line 3": "bad row: the picture's name must be text, got ['c.jpg']",
            "captions.jsonl: line 4": "bad row: expected an object, got [1]",
            "captions.jsonl: line 5": "bad row: line 5: nested deeper than 64 levels",
            "captions.jsonl: line 6": "bad row: line 6: not JSON: Expecting property name enclosed in double quotes: line 1 "
            "column 2 (char 1)",
            "c.jpg": r"caption not UTF-8: line 7 of captions.jsonl: half a character, '\udfff'",
        },
    ),
    "numbers and truth in parquet": (
        {
            **PICTURES,
            "captions.parquet": parquet(file=["a.jpg", "b.jpg", "c.jpg"], text=["A dog", None, None], caption=[1.5, 2.5, float("nan")]),
        },
        {"a.jpg": "A dog"},
        {"b.jpg": "caption is not text: row 2 of captions.parquet: 2.5", "c.jpg": "empty caption: row 3 of captions.parquet"},
    ),
    "names that may be several files": (
        {"x/a.jpg": A, "y/a.jpg": B, "captions.csv": LIST + "a.jpg,A dog\nx/a.jpg,A cat\n"},
        {"x/a.jpg": "A cat"},
        {
            "a.jpg": "ambiguous name: row 2 of captions.csv: 'a.jpg' may be x/a.jpg or y/a.jpg",
            "y/a.jpg": "not in the list: captions.csv does not name it (no fault)",
        },
    ),
    "paths out of the folder": (
        {"a.jpg": A, "captions.csv": LIST + "../b.jpg,A dog\na.jpg,A cat\n"},
        {"a.jpg": "A cat"},
        {"../b.jpg": "no such file: row 2 of captions.csv: not a file of this folder"},
    ),
    "a listed kind that is not read": (
        {"a.jpg": A, "b.heic": b"x", "captions.csv": LIST + "a.jpg,A dog\nb.heic,A cat\n"},
        {"a.jpg": "A dog"},
        {"b.heic": HEIC},
    ),
    "rows that contradict each other": (
        {"a.jpg": A, "captions.csv": "file,caption,label\na.jpg,A dog,dog\na.jpg,A cat,cat\n"},
        {"a.jpg": "A dog; label=dog"},
        {"captions.csv: row 3": "bad row: label 'cat' of a.jpg, but 'dog' in row 2 of captions.csv"},
    ),
    "COCO's images without captions, and captions without images": (
        {"a.jpg": A, "b.jpg": B, "captions.json": coco("a.jpg", "b.jpg", captions={0: ["A dog", None], 7: ["x"]})},
        {"a.jpg": "A dog"},
        {
            "b.jpg": "empty caption: image 2 of captions.json",
            "captions.json: image 7": "bad row: has captions, but no entry among the images",
        },
    ),
}


@pytest.mark.parametrize("name", LOST)
def test_what_is_lost_is_named(tmp_path: Path, name: str) -> None:
    """Each file and row is a sample, or lost by a cause, word for word."""
    check_losses(tmp_path, *LOST[name])


def test_links(tmp_path: Path) -> None:
    """Linked folders are read, once each; a link that leads back or nowhere is named."""
    folder = write(tmp_path / "source", {"a.jpg": A, "a.txt": "A dog", "sub/c.jpg": C, "sub/c.txt": "A cow"})
    write(tmp_path / "other", {"b.jpg": B, "b.txt": "A cat"})
    for link, target in (
        ("linked", tmp_path / "other"),
        ("sub/back", folder),
        ("aa", folder / "sub"),
        ("d.jpg", "nowhere.jpg"),
        ("loop", "loop"),
    ):
        os.symlink(target, folder / link)
    os.symlink(folder / "a.jpg", folder / "e.jpg")
    os.symlink(folder / "a.txt", folder / "e.txt")
    os.mkfifo(folder / "pipe.txt")
    found, rejects = made(str(folder), tmp_path)
    assert found == {"a.jpg": "A dog", "e.jpg": "A dog", "linked/b.jpg": "A cat", "sub/c.jpg": "A cow"}
    assert {(reject.where, reject.cause, reject.counts) for reject in rejects} == {
        ("sub/back", "folder that is read already", False),
        ("aa", "folder that is read already", False),
        ("d.jpg", "broken link", True),
        ("loop", "broken link", False),
        ("pipe.txt", "not a file", False),
    }


REFUSED: dict[str, tuple[Files, str]] = {
    "no captions": (
        {**PICTURES, "notes.md": "x", "info.csv": "id,width\n1,2\n"},
        "{folder}: 3 pictures (such as a.jpg) and no captions: found 1 .csv (info.csv), 1 .md (notes.md); info.csv (CSV with id, width); "
        "read are {read}; to start a list: cd {folder} && (printf 'file\\tcaption\\n'; find * -name '*.jpg' | sed 's/$/\\ta caption/') "
        "> captions.tsv",
    ),
    "no pictures": (
        {"a.heic": b"x", "b.heic": b"x", "c.txt": "x"},
        "{folder}: no pictures among 3 files: found 2 .heic (a.heic, b.heic), 1 .txt (c.txt); looked for {kinds}, lists "
        "(captions.csv and others) "
        "and .tar",
    ),
    "a list of other columns": (
        {**PICTURES, "metadata.jsonl": json_lines({"id": 1, "words": "A dog"})},
        "{folder}/metadata.jsonl: has no column 'file' and no column 'caption' (found: JSON lines with id, words); read are "
        "{read}; to convert it: "
        "python -c \"import pandas as p; F='metadata.jsonl'; p.read_json(F, lines=True).rename(columns=dict(NAME='file', NAME='caption'))"
        ".to_csv('captions.csv', index=False)\"",
    ),
    "a CSV of other columns": (
        {**PICTURES, "captions.csv": "file;words\na.jpg;A dog\n"},
        "{folder}/captions.csv: has no column 'caption' (found: CSV separated by semicolons with file, words); read are {read}; "
        "to rename its "
        "columns: sed -i '1s/NAME/caption/' captions.csv (NAME: the column that is the caption)",
    ),
    "boxes instead of captions": (
        {
            **PICTURES,
            "captions.json": json.dumps(
                {"images": [{"id": 1, "file_name": "a.jpg"}], "annotations": [{"id": 1, "image_id": 1, "bbox": [1]}]}
            ),
        },
        "{folder}/captions.json: has no column 'caption' (found: COCO's JSON with file); read are {read}; to convert it: python -c "
        "\"import pandas as p; F='captions.json'; p.read_json(F).rename(columns=dict(NAME='caption')).to_csv('captions.csv', "
        'index=False)"',
    ),
    "two lists": (
        {**PICTURES, "metadata.csv": "file,caption\na.jpg,x\n", "captions.tsv": "file\tcaption\na.jpg\ty\n"},
        "{folder}: found captions.tsv (CSV separated by tabs with file, caption) and metadata.csv (CSV with file, caption), and "
        "either could be the "
        "list: keep only one, or rename the right one to captions.csv",
    ),
    "UTF-16": (
        {**PICTURES, "captions.csv": "file,caption\na.jpg,x\n".encode("utf-16")},
        "{folder}/captions.csv: must be UTF-8, but its first bytes look like UTF-16: convert it with iconv -f UTF-16 -t UTF-8",
    ),
    "Latin-1": (
        {**PICTURES, "captions.tsv": "file\tcaption\na.jpg\tcaf\u00e9\n".encode("latin-1")},
        "{folder}/captions.tsv: must be UTF-8, but line 2 has byte 0xe9 at 22, perhaps Latin-1 (Windows-1252): convert it with "
        "iconv -f WINDOWS-1252 "
        "-t UTF-8",
    ),
    "URLs": (
        {**PICTURES, "captions.csv": "file,caption\nHTTP://h/a.jpg,x\n"},
        "{folder}/captions.csv: row 2: HTTP://h/a.jpg is a URL: a list of URLs is planned and fetched, by python -m trainer "
        "stage plan urls --list "
        "{folder}/captions.csv or with a YAML file of kind urls as the source (docs/DATA.md)",
    ),
    "pictures in parquet": (
        {"captions.parquet": parquet(image=[{"bytes": b"x", "path": "a.jpg"}], text=["x"])},
        "{folder}/captions.parquet: contains the pictures themselves, in the column 'image': convert it to tars with python -m "
        "trainer stage unpack "
        "--source FOLDER --folder TARS, then stage TARS",
    ),
    "no row that can be used": (
        {**PICTURES, "captions.csv": "file,caption\nx.jpg,A dog\ny.jpg,A cat\na.jpg,\n"},
        "{folder}: no picture is left for training (0 usable): 1 x empty caption (such as a.jpg: row 4 of captions.csv); 2 x no "
        "such file (such as "
        "x.jpg: row 2 of captions.csv: not a file of this folder); 2 x not in the list (such as b.jpg: captions.csv does not "
        "name it); all are "
        "listed in {target}/rejects/plan.jsonl",
    ),
    "an unknown split": (
        {**PICTURES, "captions.csv": "file,caption,split\na.jpg,x,holdout\n"},
        "{folder}/captions.csv: row 2: split must be train, val or test, got 'holdout'",
    ),
    "a split for some": (
        {**PICTURES, "captions.csv": "file,caption,split\na.jpg,x,train\nb.jpg,x,\n"},
        "b.jpg: has no split, but other rows do: give a split to every row, or to none",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_refused_says_why(tmp_path: Path, name: str, smoke: Recipe) -> None:
    """In one line, word for word: what was found, what is read, how to convert it; or cause, first example and the list's place."""
    from trainer.staging import kinds
    from trainer.staging.sources.table import READ

    files, message = REFUSED[name]
    folder = write(tmp_path / "source", files)
    with pytest.raises(InputError) as caught:
        stage.stage_pairs(root=str(tmp_path / "root"), source=str(folder), recipe=smoke, max_reject_fraction=0.01)
    target = re.search(r"(\S+)/rejects/plan.jsonl", str(caught.value))
    values = {"folder": folder, "read": READ, "kinds": ", ".join(kinds.READ), "target": target[1] if target else ""}
    for key, value in values.items():
        message = message.replace(f"{{{key}}}", str(value))
    assert str(caught.value) == message
    if target:
        causes = [json.loads(line)["cause"] for line in Path(target[0]).read_text().splitlines()]
        assert sorted(causes) == ["empty caption", "no such file", "no such file", "not in the list", "not in the list"]


@pytest.mark.parametrize(
    "files", [{"metadata.csv": "file,label\na.jpg,3\nb.jpg,cat\n"}, {"a.json": '{"label": 3}', "b.json": '{"label": "cat"}'}]
)
def test_a_number_of_a_class_is_no_caption(tmp_path: Path, files: Files) -> None:
    """Where labels are the captions, in a list as beside the pictures."""
    found, rejects = made(str(write(tmp_path / "source", {"a.jpg": A, "b.jpg": B, **files})), tmp_path)
    assert found == {"b.jpg": "cat; label=cat"}
    assert [(reject.where, reject.cause) for reject in rejects] == [("a.jpg", "class is a number")]
    assert rejects[0].detail.endswith(": '3' is not a caption: use the name of the class")


def test_brackets_are_no_caption(tmp_path: Path) -> None:
    """A list in a field of a CSV file of which nothing is text, as of one in JSON."""
    text = 'file,caption\na.jpg,[]\nb.jpg,"[1, null]"\nc.jpg,"[[""x""]]"\nd.jpg,A dog\n'
    found, rejects = made(str(write(tmp_path / "source", {**PICTURES, "d.jpg": D, "captions.csv": text})), tmp_path)
    assert found == {"d.jpg": "A dog"}
    causes = {reject.where: reject.cause for reject in rejects}
    assert causes == {"a.jpg": "empty caption", "b.jpg": "caption is not text", "c.jpg": "caption is not text"}
