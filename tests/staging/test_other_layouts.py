"""Layouts of other tools and collections: read right, or refused by a message that says what was found and what to do, word for word."""

import io
import json
import subprocess
import zipfile
from pathlib import Path

import pyarrow as pa
import pyarrow.ipc
import pytest

from tests.staging.conftest import picture
from tests.staging.layouts import BOTH, PICTURES, A, B, C, D, Files, Made, check_losses, json_lines, made, parquet, write
from trainer.errors import InputError
from trainer.staging import kinds
from trainer.staging.sources.table import READ

TWO = {"a.jpg": A, "b.jpg": B}
URLS, TEXTS = ["http://h/a.jpg", "HTTPS://h/b.jpg"], ["A dog", "A cat"]


def zipped(files: Files) -> bytes:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w") as packed:
        for name, content in files.items():
            packed.writestr(name, content)
    return stream.getvalue()


def arrow() -> bytes:
    stream, table = io.BytesIO(), pa.table({"image": [{"bytes": A, "path": "a.jpg"}], "text": ["x"]})
    with pa.ipc.new_stream(stream, table.schema) as writer:
        writer.write_table(table)
    return stream.getvalue()


FOUND: dict[str, tuple[Files, Made]] = {
    "images/ and captions/": (
        {"images/a.jpg": A, "images/b.jpg": B, "captions/a.txt": "A dog\nA hound", "captions/b.txt": "A cat"},
        {"images/a.jpg": "A dog/A hound", "images/b.jpg": "A cat"},
    ),
    "images/ and captions/, each with splits": (
        {"images/train/a.jpg": A, "images/test/a.jpg": B, "captions/train/a.txt": "A dog", "captions/test/a.txt": "A cat"},
        {"images/train/a.jpg": "A dog; split=train", "images/test/a.jpg": "A cat; split=test"},
    ),
    "splits, each with images/ and captions/": (
        {"train/images/a.jpg": A, "test/images/a.jpg": B, "train/captions/a.txt": "A dog", "test/captions/a.txt": "A cat"},
        {"train/images/a.jpg": "A dog; split=train", "test/images/a.jpg": "A cat; split=test"},
    ),
    "images/ and text/ of classes, as CUB has them": (
        {"images/001.Dog/a.jpg": A, "images/002.Cat/b.jpg": B, "text/001.Dog/a.txt": "A dog", "text/002.Cat/b.txt": "A cat"},
        {"images/001.Dog/a.jpg": "A dog; label=001.Dog", "images/002.Cat/b.jpg": "A cat; label=002.Cat"},
    ),
    "JSON in a folder of its own": (
        {"img/a.jpg": A, "img/b.jpg": B, "ann/a.jpg.json": '{"caption": "A dog", "label": "dog"}', "ann/b.jpg.json": '"A cat"'},
        {"img/a.jpg": "A dog; label=dog", "img/b.jpg": "A cat"},
    ),
    "captions in a folder below the pictures": ({"a.jpg": A, "b.jpg": B, "text/a.txt": "A dog", "text/b.txt": "A cat"}, BOTH),
    "pictures in a folder below the captions": (
        {"img/a.jpg": A, "img/b.jpg": B, "a.txt": "A dog", "b.txt": "A cat"},
        {"img/a.jpg": "A dog", "img/b.jpg": "A cat"},
    ),
    "img2dataset's folder of files": (
        {
            "00000/000000000.jpg": A,
            "00000/000000000.txt": "A dog",
            "00000/000000000.json": '{"caption": "A dog", "url": "http://h/a.jpg", "key": "000000000", "status": "success"}',
            "00000.parquet": parquet(key=["000000000"], url=["http://h/a.jpg"], caption=["A dog"], status=["success"]),
        },
        {"00000/000000000.jpg": "A dog"},
    ),
    "a column prompt": ({"a.jpg": A, "b.jpg": B, "metadata.csv": "file_name,prompt\na.jpg,A dog\nb.jpg,A cat\n"}, BOTH),
    "objects by file name": (
        {"a.jpg": A, "b.jpg": B, "captions.json": json.dumps({"a.jpg": {"caption": "A dog", "label": "dog"}, "b.jpg": {"text": "A cat"}})},
        {"a.jpg": "A dog; label=dog", "b.jpg": "A cat"},
    ),
    "objects by name without suffix, as kohya-ss writes them": (
        {"a.jpg": A, "b.jpg": B, "meta_cap.json": json.dumps({"a": {"caption": "A dog"}, "b": {"caption": "A cat"}})},
        BOTH,
    ),
    "captions by name without suffix": (
        {"a.jpg": A, "b.jpg": B, "descriptions.json": json.dumps({"a": ["A dog", "A hound"], "b": ["A cat"]})},
        {"a.jpg": "A dog/A hound", "b.jpg": "A cat"},
    ),
    "Localized Narratives of Open Images": (
        {**TWO, "captions.jsonl": json_lines({"image_id": "a", "caption": "A dog"}, {"image_id": "b", "caption": "A cat"})},
        BOTH,
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", FOUND)
def test_what_is_read(tmp_path: Path, name: str) -> None:
    """Nothing is lost."""
    files, expected = FOUND[name]
    assert made(str(write(tmp_path / "source", files)), tmp_path) == (expected, [])


LOST: dict[str, tuple[Files, Made, dict[str, str]]] = {
    "boxes": (
        {"images/a.jpg": A, "images/b.jpg": B, "labels/a.txt": "0 0.5 0.5 0.2 0.3\n1 .1 .2 .3 .4 -.5", "labels/b.txt": "0 1 2 3"},
        {"images/b.jpg": "0 1 2 3"},
        {"images/a.jpg": "boxes, not captions: images/a.txt: '0 0.5 0.5 0.2 0.3', like YOLO labels"},
    ),
    "JSON without captions": (
        {"a.jpg": A, "a.txt": "A dog", "b.jpg": B, "b.json": '{"url": "http://h/b.jpg", "key": "b", "prompt": "A cat"}'},
        {"a.jpg": "A dog"},
        {"b.jpg": "empty caption: b.json: has url, key, prompt, but none of captions, caption, text, texts"},
    ),
    "packed files beside pictures": (
        {"a.jpg": A, "a.txt": "A dog", "more.zip": zipped(PICTURES), "more.7z": b"7z", "sub/b.tar.gz": b"\x1f\x8b"},
        {"a.jpg": "A dog"},
        {
            "more.zip": "packed file not opened: unpack more.zip first (unzip more.zip) (no fault)",
            "more.7z": "packed file not opened: unpack more.7z first (7z x more.7z) (no fault)",
            "sub/b.tar.gz": "packed file not opened: unpack b.tar.gz first (gzip -d b.tar.gz) (no fault)",
        },
    ),
    "captions in two folders of one shape": (
        {"images/a.jpg": A, "images/a.txt": "A dog", "captions/a.txt": "no"},
        {"images/a.jpg": "A dog"},
        {"captions/a.txt": "caption without picture: no picture with this name (no fault)"},
    ),
}


@pytest.mark.parametrize("name", LOST)
def test_what_is_lost(tmp_path: Path, name: str) -> None:
    """By a cause, word for word."""
    check_losses(tmp_path, *LOST[name])


PLANNED = "which is planned and fetched, by python -m trainer stage plan urls --list {list} or with a YAML file of kind urls as the source "
PLANNED += "(docs/DATA.md)"
UNPACKED = "convert it to tars with python -m trainer stage unpack --source FOLDER --folder TARS, then stage TARS"
BEGIN = r"cd {folder} && (printf 'file\tcaption\n'; find * -name '*.jpg' | sed 's/$/\ta caption/') > captions.tsv"
BEGIN_FOLDERS = (
    "to start a list whose captions and labels are the folders of the pictures: cd {folder} && (printf 'file\\tcaption\\tlabel\\n'; "
    "find * -name '*.jpg' | awk -F/ -v OFS='\\t' '{print $0, $(NF-1), $(NF-1)}') > captions.tsv"
)
REFUSED: dict[str, tuple[Files, str]] = {
    "LAION's parquet": (
        {"part-0.parquet": parquet(SAMPLE_ID=[1, 2], URL=URLS, TEXT=TEXTS)},
        "{list}: a list of URLs (parquet with SAMPLE_ID, URL, TEXT), " + PLANNED,
    ),
    "CC3M's list": (
        {"Train.tsv": f"A dog, big\t{URLS[0]}\nA cat\t{URLS[1]}\n"},
        "{list}: a list of URLs (CSV separated by tabs with A dog, big, http://h/a.jpg), " + PLANNED,
    ),
    "Open Images' list": (
        {"images.csv": f"ImageID,Subset,OriginalURL,Title\n1,train,{URLS[0]},A dog\n"},
        "{list}: a list of URLs (CSV with ImageID, Subset, OriginalURL, Title), " + PLANNED,
    ),
    "URLs, one per line": (
        {"urls.txt": "\n".join(URLS)},
        "{list}: a list of URLs (CSV with http://h/a.jpg) without captions: it needs columns url and caption, one row per picture",
    ),
    "a parquet of datasets": (
        {"train-00000-of-00001.parquet": parquet(image=[{"bytes": A, "path": "a.jpg"}], text=["x"])},
        "{list}: contains the pictures themselves, in the column 'image': " + UNPACKED,
    ),
    "a zip": (
        {"photos.zip": zipped({"a.jpg": A})},
        "{given}: no pictures among 1 files: found 1 .zip (photos.zip); unpack photos.zip first (unzip photos.zip); looked for {kinds}, "
        "lists (captions.csv and others) and .tar",
    ),
    "what datasets saves to disk": (
        {"data.arrow": arrow(), "state.json": "{}", "dataset_info.json": "{}"},
        "{folder}: no pictures among 3 files: found 2 .json (dataset_info.json, state.json), 1 .arrow (data.arrow); data.arrow is not "
        "read: datasets.load_from_disk('FOLDER').to_parquet('NAME.parquet'), then python -m trainer stage unpack; looked for {kinds}, "
        "lists (captions.csv and others) and .tar",
    ),
    "classes two folders deep": (
        {"pets/dog/a.jpg": A, "pets/cat/b.jpg": B, "farm/cow/c.jpg": C},
        "{folder}: 3 pictures (such as farm/cow/c.jpg) and no captions; read are {read}; " + BEGIN_FOLDERS,
    ),
    "labels without captions": (
        {"a.jpg": A, "b.jpg": B, "labels.csv": "id,breed\na,boxer\nb,dingo\n"},
        "{folder}: 2 pictures (such as a.jpg) and no captions: found 1 .csv (labels.csv); labels.csv (CSV with id, breed); read are "
        "{read}; to start a list: " + BEGIN,
    ),
    "a spreadsheet": (
        {"a.jpg": A, "captions.xlsx": b"PK"},
        "{folder}: 1 picture (such as a.jpg) and no captions: found 1 .xlsx (captions.xlsx); captions.xlsx is not read: save it as "
        "CSV; read are {read}; to start a list: " + BEGIN,
    ),
    "LLaVA's conversations": (
        {"a.jpg": A, "chat.json": json.dumps([{"id": "a", "image": "a.jpg", "conversations": [{"from": "gpt", "value": "A dog"}]}])},
        "{folder}: 1 picture (such as a.jpg) and no captions: found 1 .json (chat.json); chat.json (JSON with id, image, "
        "conversations); read are {read}; to start a list: " + BEGIN,
    ),
    "captions that fit in two ways": (
        {"x/a.jpg": A, "x/b.jpg": B, "x/y/a.jpg": C, "x/y/b.jpg": D, "x/z/a.txt": "A dog"},
        "{folder}: 4 pictures (such as x/a.jpg) and no captions: found 1 .txt (x/z/a.txt); read are {read}; " + BEGIN_FOLDERS,
    ),
    "one picture": ({"a.jpg": A}, ""),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_refused(tmp_path: Path, name: str) -> None:
    """Whether the folder or the one file in it is the source: what was found, and what to do."""
    files, message = REFUSED[name]
    folder = write(tmp_path / "source", files)
    if not message:
        message = "{given} is a single picture: a source must be a folder of pictures, a list of them, or a tar"
    sources = [folder, folder / next(iter(files))] if len(files) == 1 else [folder]
    for given in sources[name == "one picture" :]:
        values = {"folder": folder, "given": given, "list": folder / next(iter(files)), "read": READ, "kinds": ", ".join(kinds.READ)}
        with pytest.raises(InputError) as caught:
            made(str(given), tmp_path)
        expected = message
        for key, value in values.items():
            expected = expected.replace(f"{{{key}}}", str(value))
        assert str(caught.value) == expected


@pytest.mark.parametrize("name", ["classes two folders deep", "labels without captions"])
def test_the_command_that_begins_a_list_works(tmp_path: Path, name: str) -> None:
    """Run as it stands, in a folder with a blank and names with commas and quotes."""
    files, _ = REFUSED[name]
    another = "pets/dog/d, 'big'.jpg" if "deep" in name else "d, 'big'.jpg"
    folder = write(tmp_path / "my photos", {**files, another: picture(7, (8, 6), "JPEG")})
    with pytest.raises(InputError) as caught:
        made(str(folder), tmp_path)
    command = str(caught.value).partition("to start a list")[2].partition(": ")[2]
    subprocess.run(["bash", "-c", command], check=True, cwd=tmp_path)
    found, rejects = made(str(folder), tmp_path)
    assert not rejects
    if "deep" in name:
        assert found[another] == found["pets/dog/a.jpg"] == "dog; label=dog"
    assert len(found) == len(list(folder.rglob("*.jpg")))
