"""Folders and lists as people have them: what each becomes, byte by byte, or the words with which it is refused."""

import io
import json
import os
import re
from contextlib import ExitStack
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.staging.conftest import picture
from trainer.config import Recipe
from trainer.errors import InputError
from trainer.staging import stage
from trainer.staging.rows import Reject
from trainer.staging.samples import PairMaker

A, B, C, D = (picture(number, (8, 6), "JPEG") for number in range(4))
PICTURES = {"a.jpg": A, "b.jpg": B, "c.jpg": C}
HEIC = "kind of file not read: .heic is not read: convert it to JPEG or PNG, for example with the Python package pillow-heif"
Files = dict[str, bytes | str]
Made = dict[str, str]
BOTH = {"a.jpg": "A dog", "b.jpg": "A cat"}
"""Picture -> captions separated by `/`, then `; label=…`, `; split=…` where there are any."""


def parquet(**columns: object) -> bytes:
    stream = io.BytesIO()
    pq.write_table(pa.table(columns), stream)
    return stream.getvalue()


def json_lines(*rows: object) -> str:
    return "".join(json.dumps(row) + "\n" for row in rows)


def coco(*names: str, captions: dict[int, list[object]], **more: object) -> str:
    images = [{"id": number, "file_name": name, "height": 6, "width": 8} for number, name in enumerate(names)]
    found = [{"id": number, "image_id": image, "caption": text} for image in captions for number, text in enumerate(captions[image])]
    return json.dumps({"info": {}, "licenses": [], "images": images, "annotations": found, **more})


def write(folder: Path, files: Files) -> Path:
    for name, content in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content.encode() if isinstance(content, str) else content)
    return folder


def made(source: str, root: Path) -> tuple[Made, list[Reject]]:
    """What staging writes of a source, each sample's members checked byte by byte, and what it leaves out."""
    with ExitStack() as stack:
        rows = stage._read_pairs(stage._find(source, str(root)), 0, stack)
    said = {}
    for row in rows.rows:
        sample = PairMaker("original")(row)
        assert not isinstance(sample, Reject), sample
        captions = [" ".join(caption.splitlines()) for caption in row.captions]
        facts = {"captions": captions, "height": 6, **({"label": row.label} if row.label else {}), "source": row.where, "width": 8}
        assert sample.members["txt"] == ("txt", captions[0].encode())
        assert sample.members["json"] == ("json", json.dumps(facts, sort_keys=True, ensure_ascii=False).encode())
        assert sample.members["image"] == ("jpg", row.image.read())
        said[row.where] = "/".join(captions) + "".join(f"; {key}={getattr(row, key)}" for key in ("label", "split") if getattr(row, key))
    return said, rows.rejects


LISTS: dict[str, tuple[Files, Made]] = {
    "imagefolder, metadata.csv": ({"metadata.csv": "file_name,text\na.jpg,A dog\nb.jpg,A cat\n"}, BOTH),
    "imagefolder, metadata.jsonl": (
        {"metadata.jsonl": json_lines({"file_name": "a.jpg", "text": "A dog"}, {"file_name": "b.jpg", "caption": "A cat"})},
        BOTH,
    ),
    "imagefolder, metadata.parquet": ({"metadata.parquet": parquet(file_name=["a.jpg", "b.jpg"], caption=["A dog", "A cat"])}, BOTH),
    "imagefolder, metadata.csv of two splits": (
        {"metadata.csv": "file_name,text\ntrain/d.jpg,x\nvalidation/e.jpg,y\n", "train/d.jpg": C, "validation/e.jpg": D},
        {"train/d.jpg": "x; split=train", "validation/e.jpg": "y; split=val"},
    ),
    "imagefolder, a metadata.jsonl in each split": (
        {
            "train/metadata.jsonl": json_lines({"file_name": "d.jpg", "text": "x"}),
            "train/d.jpg": C,
            "test/metadata.jsonl": json_lines({"file_name": "d.jpg", "text": "y"}),
            "test/d.jpg": D,
        },
        {"train/d.jpg": "x; split=train", "test/d.jpg": "y; split=test"},
    ),
    "captions.tsv": (
        {"captions.tsv": 'file\tcaption\na.jpg\tA "big" dog\nb.jpg\t"A ""big"" cat"\n'},
        {"a.jpg": 'A "big" dog', "b.jpg": 'A "big" cat'},
    ),
    "captions.tsv with a quote that is never closed": (
        {"captions.tsv": 'file\tcaption\na.jpg\t"A dog\nb.jpg\tA cat"\n'},
        {"a.jpg": '"A dog', "b.jpg": 'A cat"'},
    ),
    "captions.tsv with lines in a field": (
        {"captions.tsv": 'file\tcaption\na.jpg\t"A dog\nA hound"\nb.jpg\tA cat\n'},
        {**BOTH, "a.jpg": "A dog/A hound"},
    ),
    "captions.parquet, several a picture": (
        {"captions.parquet": parquet(file=["a.jpg", "b.jpg"], captions=[["A dog", None, "A hound"], ["A cat"]])},
        {"a.jpg": "A dog/A hound", "b.jpg": "A cat"},
    ),
    "captions.json, a list of objects": (
        {"captions.json": json.dumps([{"image": "a.jpg", "caption": "A dog"}, {"image": "b.jpg", "caption": "A cat"}])},
        BOTH,
    ),
    "captions.json, captions by name": (
        {"captions.json": json.dumps({"a.jpg": ["A dog", "A hound"], "b.jpg": "A cat"})},
        {**BOTH, "a.jpg": "A dog/A hound"},
    ),
    "captions.json, objects within": (
        {"captions.json": json.dumps({"version": 1, "data": [{"image": "a.jpg", "caption": "A dog"}]})},
        {"a.jpg": "A dog"},
    ),
    "captions.json that is JSON lines": (
        {"captions.json": json_lines({"file": "a.jpg", "caption": "A dog"}, {"file": "b.jpg", "caption": "A cat"})},
        BOTH,
    ),
    "captions.jsonl that is JSON": ({"captions.jsonl": json.dumps([{"file": "a.jpg", "caption": "A\u2028dog"}])}, {"a.jpg": "A dog"}),
    "semicolons": ({"captions.csv": 'file;caption\na.jpg;"A dog; or so"\nb.jpg;A cat\n'}, {**BOTH, "a.jpg": "A dog; or so"}),
    "vertical bars, as Flickr30k's results.csv": (
        {"results.csv": "image_name| comment_number| comment\na.jpg| 0| A dog .\na.jpg| 1| A hound .\nb.jpg| 0| A cat .\n"},
        {"a.jpg": "A dog ./A hound .", "b.jpg": "A cat ."},
    ),
    "image,text": ({"captions.csv": "image,text\na.jpg,A dog\nb.jpg,A cat\n"}, BOTH),
    "File,Caption": ({"captions.csv": "File,Caption\na.jpg,A dog\nb.jpg,A cat\n"}, BOTH),
    "Image Path , Alt-Text": ({"captions.csv": "Image Path , Alt-Text \na.jpg,A dog\nb.jpg,A cat\n"}, BOTH),
    "Flickr8k's captions.txt": (
        {"captions.txt": 'image,caption\na.jpg,A dog\na.jpg,"A hound, or so"\nb.jpg,A cat\n'},
        {**BOTH, "a.jpg": "A dog/A hound, or so"},
    ),
    "Flickr8k's token file": (
        {"Flickr8k.token.txt": "a.jpg#0\tA dog\na.jpg#1\tA hound\nb.jpg#0\tA cat\n"},
        {**BOTH, "a.jpg": "A dog/A hound"},
    ),
    "pictures in a folder that the list leaves out": (
        {"captions.txt": "image,caption\nd.jpg,A dog\n", "Images/d.jpg": D},
        {"Images/d.jpg": "A dog"},
    ),
    "a list of captions in a field, as pandas writes it": (
        {"captions.csv": 'file,captions\na.jpg,"[\'A dog\', ""A dog\'s life""]"\nb.jpg,"[""A cat""]"\n'},
        {"a.jpg": "A dog/A dog's life", "b.jpg": "A cat"},
    ),
    "COCO": (
        {
            "annotations/captions_train2017.json": coco("d.jpg", captions={0: ["A dog", "A hound"]}),
            "train2017/d.jpg": C,
            "annotations/captions_val2017.json": coco("d.jpg", captions={0: ["A cat"]}),
            "val2017/d.jpg": D,
        },
        {"train2017/d.jpg": "A dog/A hound; split=train", "val2017/d.jpg": "A cat; split=val"},
    ),
    "COCO, one of its sets": ({"captions_val2014.json": coco("a.jpg", "b.jpg", captions={0: ["A dog"], 1: ["A cat"]})}, BOTH),
    "Karpathy": (
        {
            "dataset_flickr8k.json": json.dumps(
                {
                    "dataset": "flickr8k",
                    "images": [
                        {"filename": "a.jpg", "split": "restval", "sentences": [{"raw": "A dog"}, {"raw": "A hound"}]},
                        {"filename": "b.jpg", "split": "val", "sentences": [{"raw": "A cat"}]},
                        {"filename": "c.jpg", "split": "test", "sentences": [{"raw": "A cow"}]},
                    ],
                }
            ),
        },
        {"a.jpg": "A dog/A hound; split=train", "b.jpg": "A cat; split=val", "c.jpg": "A cow; split=test"},
    ),
    "splits by their other names": (
        {"captions.csv": "file,caption,split\na.jpg,A dog,Training\nb.jpg,A cat,validation\nc.jpg,A cow, testing\n"},
        {"a.jpg": "A dog; split=train", "b.jpg": "A cat; split=val", "c.jpg": "A cow; split=test"},
    ),
    "split=val": (
        {"captions.csv": "file,caption,split\na.jpg,A dog,train\nb.jpg,A cat,val\n"},
        {"a.jpg": "A dog; split=train", "b.jpg": "A cat; split=val"},
    ),
    "backslashes": (
        {"captions.csv": "file,caption\nsub\\d.jpg,A dog\n.\\a.jpg,A cat\n", "sub/d.jpg": D},
        {"sub/d.jpg": "A dog", "a.jpg": "A cat"},
    ),
    "./, ../ and double slashes": (
        {"captions.csv": "file,caption\n./a.jpg,A dog\nsub/../b.jpg,A cat\nsub//d.jpg,A cow\n", "sub/d.jpg": D},
        {**BOTH, "sub/d.jpg": "A cow"},
    ),
    "absolute, below the folder": ({"captions.csv": "file,caption\n{folder}/a.jpg,A dog\nfile://{folder}/b.jpg,A cat\n"}, BOTH),
    "absolute, of another machine": ({"captions.csv": "file,caption\n/data/set/a.jpg,A dog\nC:\\set\\b.jpg,A cat\n"}, BOTH),
    "without suffix": ({"captions.csv": "image_id,caption\na,A dog\nb,A cat\n"}, BOTH),
    "in another case": ({"captions.csv": "file,caption\nA.JPG,A dog\nB.jpg,A cat\n"}, BOTH),
    "in another Unicode form": (
        {"captions.csv": "file,caption\nE\u0301te\u0301.jpg,A dog\n", "\u00c9t\u00e9.jpg": D},
        {"\u00c9t\u00e9.jpg": "A dog"},
    ),
    "a byte order mark and Windows' line ends": ({"captions.csv": "\ufefffile,caption\r\na.jpg,A dog\r\nb.jpg,A cat\r\n"}, BOTH),
    "a label on several lines": (
        {"captions.csv": 'file,caption,label\na.jpg,A dog,"big\n dog\u2028\u0085 "\nb.jpg,A cat,\tcat\n'},
        {"a.jpg": "A dog; label=big dog", "b.jpg": "A cat; label=cat"},
    ),
    "labels with gaps, as pandas writes them to parquet": (
        {"captions.parquet": parquet(file=["a.jpg", "b.jpg"], caption=["A dog", "A cat"], label=[3.0, None])},
        {"a.jpg": "A dog; label=3", "b.jpg": "A cat"},
    ),
}


@pytest.mark.parametrize("name", LISTS)
def test_lists(tmp_path: Path, name: str) -> None:
    """Nothing is lost but the pictures that the list does not name."""
    files, expected = LISTS[name]
    folder = tmp_path / "source"
    files = {place: text.replace("{folder}", str(folder)) if isinstance(text, str) else text for place, text in files.items()}
    found, rejects = made(str(write(folder, {**PICTURES, **files})), tmp_path)
    assert found == expected
    assert {(reject.where, reject.cause) for reject in rejects} == {
        (place, "not in the list") for place in PICTURES if place not in expected
    }
    assert not any(reject.counts for reject in rejects)


FOLDERS: dict[str, tuple[Files, Made]] = {
    "captions beside": (
        {"a.jpg": A, "a.txt": "A dog\nA hound\n", "b.jpg": B, "b.caption": "A cat"},
        {"a.jpg": "A dog/A hound", "b.jpg": "A cat"},
    ),
    "named after the whole picture": ({"a.jpg": A, "a.jpg.txt": "A dog", "b.jpg": B, "b.jpg.json": '"A cat"'}, BOTH),
    "suffixes in capitals": ({"a.JPG": A, "a.TXT": "A dog"}, {"a.JPG": "A dog"}),
    "an empty caption in JSON": (
        {"a.jpg": A, "a.json": '{"caption": "", "label": "dog", "split": "train"}', "a.txt": "A dog"},
        {"a.jpg": "A dog; label=dog; split=train"},
    ),
    "train and test folders": (
        {"train/a.jpg": A, "train/a.txt": "A dog", "test/b.jpg": B, "test/b.txt": "A cat"},
        {"train/a.jpg": "A dog; split=train", "test/b.jpg": "A cat; split=test"},
    ),
    "data/train and data/validation": (
        {"data/train/a.jpg": A, "data/train/a.txt": "A dog", "data/validation/b.jpg": B, "data/validation/b.txt": "A cat"},
        {"data/train/a.jpg": "A dog; split=train", "data/validation/b.jpg": "A cat; split=val"},
    ),
    "folders of classes": (
        {"cat/a.jpg": A, "big_dog/b.jpg": B, "cat/c.jpg": C},
        {"cat/a.jpg": "cat; label=cat", "big_dog/b.jpg": "big dog; label=big dog", "cat/c.jpg": "cat; label=cat"},
    ),
    "folders of classes in those of splits": (
        {"train/cat/a.jpg": A, "train/dog/b.jpg": B, "test/cat/a.jpg": C},
        {
            "train/cat/a.jpg": "cat; label=cat; split=train",
            "train/dog/b.jpg": "dog; label=dog; split=train",
            "test/cat/a.jpg": "cat; label=cat; split=test",
        },
    ),
    "folders of classes, with captions": (
        {"cat/a.jpg": A, "cat/a.txt": "A cat", "dog/b.jpg": B, "dog/b.txt": "A dog"},
        {"cat/a.jpg": "A cat; label=cat", "dog/b.jpg": "A dog; label=dog"},
    ),
    "folders of other things": (
        {"2019/05/a.jpg": A, "2019/05/a.txt": "A dog", "2020/b.jpg": B, "2020/b.txt": "A cat"},
        {"2019/05/a.jpg": "A dog", "2020/b.jpg": "A cat"},
    ),
    "train alone is no split": ({"train/a.jpg": A, "train/a.txt": "A dog"}, {"train/a.jpg": "A dog"}),
    "captions beside, and a list of other things": (
        {"a.jpg": A, "a.txt": "A dog", "metadata.csv": "id,width\n1,2\n", "train.csv": "file,caption\na.jpg,no\n"},
        {"a.jpg": "A dog"},
    ),
    "captions beside, and a list": ({"a.jpg": A, "a.txt": "no", "metadata.csv": "file_name,text\na.jpg,A dog\n"}, {"a.jpg": "A dog"}),
}


@pytest.mark.parametrize("name", FOLDERS)
def test_folders(tmp_path: Path, name: str) -> None:
    """Nothing is lost."""
    files, expected = FOLDERS[name]
    assert made(str(write(tmp_path / "source", files)), tmp_path) == (expected, [])


def test_a_list_may_be_the_source(tmp_path: Path) -> None:
    """Of the pictures in its folder; another list in the folder is another source."""
    folder = write(tmp_path / "source", {**PICTURES, "mine.csv": "file,caption\na.jpg,A dog\n", "captions.csv": "file,caption\na.jpg,no\n"})
    assert made(str(folder / "mine.csv"), tmp_path)[0] == {"a.jpg": "A dog"}
    assert stage._find(str(folder / "mine.csv"), str(tmp_path)).fingerprint != stage._find(str(folder), str(tmp_path)).fingerprint


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
            "b.txt": "caption without picture: no picture of this name (no fault)",
        },
    ),
    "captions without pictures": (
        {"a.jpg": A, "a.txt": "A dog", "x.txt": "x", "y.json": "{}", "z.caption": "z"},
        {"a.jpg": "A dog"},
        {name: "caption without picture: no picture of this name (no fault)" for name in ("x.txt", "y.json", "z.caption")},
    ),
    "two files of captions": (
        {"a.jpg": A, "a.txt": "no", "a.TXT": "A dog"},
        {"a.jpg": "A dog"},
        {"a.txt": "second file of captions: a.TXT is read (no fault)"},
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
    files, expected, lost = LOST[name]
    found, rejects = made(str(write(tmp_path / "source", files)), tmp_path)
    assert found == expected
    assert {r.where: f"{r.cause}: {r.detail}{'' if r.counts else ' (no fault)'}" for r in rejects} == lost
    assert len(rejects) == len(lost)


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
        "{folder}: 3 pictures (such as a.jpg) and no captions: found 1 .csv (info.csv), 1 .md (notes.md); read are {read}; to "
        "begin a list: "
        "(echo file,caption; cd '{folder}' && find . -type f | sed 's/$/,a caption/') > captions.csv",
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
        "either may be the "
        "list: keep one, or call it captions.csv",
    ),
    "UTF-16": (
        {**PICTURES, "captions.csv": "file,caption\na.jpg,x\n".encode("utf-16")},
        "{folder}/captions.csv: must be UTF-8, is UTF-16 by its first bytes: convert it with iconv -f UTF-16 -t UTF-8",
    ),
    "Latin-1": (
        {**PICTURES, "captions.tsv": "file\tcaption\na.jpg\tcaf\u00e9\n".encode("latin-1")},
        "{folder}/captions.tsv: must be UTF-8, line 2 has byte 0xe9 at 22, perhaps Latin-1 (Windows-1252): convert it with "
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
        "{folder}/captions.parquet: holds the pictures themselves, in the column 'image': turn it into tars by python -m "
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
        "b.jpg: has no split, but other rows have one: give every row a split, or none",
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
