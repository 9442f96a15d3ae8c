"""Folders and lists as people have them: what each becomes, byte by byte."""

import json
from pathlib import Path

import pytest

from tests.staging.layouts import BOTH, PICTURES, A, B, C, D, Files, Made, coco, json_lines, made, parquet, write
from trainer.staging import stage

LABELLED = {"a.jpg": "big dog; label=big_dog", "b.jpg": "cat; label=cat"}
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
    "lists in a field of which some is text": (
        {"captions.csv": 'file,captions\na.jpg,"[null, ""A dog"", NaN]"\nb.jpg,"[\'\', \'A cat\']"\nc.jpg,[a cow\n'},
        {**BOTH, "c.jpg": "[a cow"},
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
    "labels, and no captions": ({"metadata.csv": "file_name,label\na.jpg,big_dog\nb.jpg,cat\n"}, LABELLED),
    "labels in JSON lines": (
        {"captions.jsonl": json_lines({"image": "a.jpg", "class": "big_dog"}, {"image": "b.jpg", "class": "cat"})},
        LABELLED,
    ),
    "labels in parquet": ({"metadata.parquet": parquet(file_name=["a.jpg", "b.jpg"], label=["big_dog", "cat"])}, LABELLED),
    "labels in a list of any name, separated by semicolons": ({"labels.csv": "Image;Class Name\na.jpg;big_dog\nb.jpg;cat\n"}, LABELLED),
    "captions take precedence over labels": (
        {"captions.tsv": "file\tlabel\tcaption\na.jpg\tbig_dog\tA dog\nb.jpg\tcat\tA cat\n"},
        {"a.jpg": "A dog; label=big_dog", "b.jpg": "A cat; label=cat"},
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
    "folders of classes, and lists of labels": (
        {"cat/a.jpg": A, "dog/b.jpg": B, "one.csv": "file,class\na.jpg,x\n", "two.csv": "file,class\nb.jpg,y\n"},
        {"cat/a.jpg": "cat; label=cat", "dog/b.jpg": "dog; label=dog"},
    ),
    "labels in JSON, and no captions": (
        {
            "a.jpg": A,
            "a.json": '{"label": "big_dog", "split": "train"}',
            "b.jpg": B,
            "b.json": '{"caption": null, "label": "cat", "split": "test"}',
            "b.txt": "",
        },
        {"a.jpg": "big dog; label=big_dog; split=train", "b.jpg": "cat; label=cat; split=test"},
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
