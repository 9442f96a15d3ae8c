"""Small sources and copies of evaluation sets, file by file, for tests that damage one of them."""

import csv
import gzip
import io
import json
import struct
import tarfile
import zipfile
import zlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image
from scipy.io import savemat

from tests.staging.conftest import picture

Files = dict[str, bytes]
JPEG, PNG = picture(1, (16, 12), "JPEG"), picture(2, (16, 12))


def write(place: Path, files: Files) -> str:
    """Write files below a folder; returns the folder."""
    for name, data in files.items():
        path = place / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    return str(place)


def tar(members: Sequence[tuple[str, bytes]]) -> bytes:
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w") as file:
        for name, data in members:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            file.addfile(info, io.BytesIO(data))
    return stream.getvalue()


def archive(members: Files, compression: int = zipfile.ZIP_DEFLATED) -> bytes:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", compression) as file:
        for name, data in members.items():
            file.writestr(name, data)
    return stream.getvalue()


def table(columns: dict[str, list[object]]) -> bytes:
    stream = io.BytesIO()
    pq.write_table(pa.table(columns), stream)
    return stream.getvalue()


def array(values: object, dtype: str) -> bytes:
    stream = io.BytesIO()
    np.save(stream, np.array(values, dtype))
    return stream.getvalue()


def matlab(**variables: object) -> bytes:
    stream = io.BytesIO()
    savemat(stream, variables, do_compression=True)
    return stream.getvalue()


def _element(kind: int, data: bytes) -> bytes:
    return struct.pack("<II", kind, len(data)) + data + bytes(-len(data) % 8)


def matrix(kind: int, sides: Sequence[int], content: bytes = b"", name: bytes = b"") -> bytes:
    """A matrix as a MATLAB file has it: 1 of cells, 2 a struct, 6 of numbers."""
    head = _element(6, struct.pack("<II", kind, 0)) + _element(5, struct.pack(f"<{len(sides)}i", *sides)) + _element(1, name)
    return _element(14, head + content)


def nested_cells(depth: int) -> bytes:
    """A cell in a cell in a cell."""
    inner, head = matrix(6, (1, 1), _element(9, bytes(8))), matrix(1, (1, 1))[8:]
    sizes = [len(inner) + level * (len(head) + 8) for level in range(depth)]
    return b"".join(struct.pack("<II", 14, len(head) + size) + head for size in reversed(sizes)) + inner


def matlab_of(content: bytes, *, packed: bool = False) -> bytes:
    """A MATLAB file of version 5 with one variable, `class_names`: one cell that holds `content`."""
    variable = matrix(1, (1, 1), content, b"class_names")
    if packed:
        deflated = zlib.compress(variable)
        variable = struct.pack("<II", 15, len(deflated)) + deflated
    return b"MATLAB 5.0 MAT-file".ljust(124) + struct.pack("<H", 0x100) + b"IM" + variable


def lines(rows: Sequence[Sequence[object]], delimiter: str = ",") -> bytes:
    stream = io.StringIO(newline="")
    csv.writer(stream, delimiter=delimiter, lineterminator="\n").writerows(rows)
    return stream.getvalue().encode()


def folder() -> Files:
    facts = {"captions": ["a cat", "é"], "label": "cat", "split": "train", "family": "f"}
    return {"a/x.png": PNG, "a/x.json": json.dumps(facts).encode(), "y.jpg": JPEG, "y.json": b'"dog"', "y.txt": "one\nçwo\n".encode()}


def captions_csv() -> Files:
    rows = [
        ["file", "caption", "label", "split", "family"],
        ["x.png", "a, b\nc", "cat", "train", "1"],
        ["y.jpg", "dog", "dog", "test", "2"],
    ]
    return {"captions.csv": lines(rows), "x.png": PNG, "y.jpg": JPEG}


def tars() -> Files:
    members = [("0.jpg", JPEG), ("0.txt", b"a cat"), ("0.cls", b"1"), ("1.png", PNG), ("1.json", b'{"caption": "dog", "split": ""}')]
    rows: dict[str, list[object]] = {"key": ["0", "2"], "status": ["success", "failed"], "error_message": [None, "404"]}
    return {"0.tar": tar(members), "0.parquet": table(rows), "classnames.txt": b"cat\ndog\n"}


def nights() -> Files:
    header = "id left_vote right_vote votes ref_path left_path right_path split is_imagenet prompt judge flip_left flip_right".split()
    rows = [
        [n, 1, 0, 7, "ref/0.png", "distort/0.png", "distort/1.png", split, True, "a cat", "people", 0.25, 0.5]
        for n, split in enumerate(("train", "val", "test"))
    ]
    return {"data.csv": lines([header, *rows]), **{name: PNG for name in ("ref/0.png", "distort/0.png", "distort/1.png")}}


def bapps() -> Files:
    pictures = {f"train/cnn/{part}/000.png": PNG for part in ("ref", "p0", "p1")}
    return {**pictures, "train/cnn/judge/000.npy": array([0.5], "<f4")}


def copies() -> dict[str, Files]:
    """A copy of each kind, by the name of a set."""
    names = b"\n".join(b"name%d" % number for number in range(10))
    boxes = "".join(f"<{side}>{value}</{side}>" for side, value in (("xmin", 1), ("ymin", 2), ("xmax", 9), ("ymax", 8)))
    voc = f"<annotation><object><name>cat</name><bndbox>{boxes}</bndbox></object></annotation>".encode()
    cars = np.array([("1.jpg", 2)], dtype=[("fname", object), ("class", object)])
    scene = {"scenes": [{"image_filename": "1.png", "objects": [{"pixel_coords": [1, 2, 8.5 + n]} for n in range(3)]}]}
    karpathy = {"images": [{"split": "test", "filename": "1.jpg", "sentences": [{"raw": "a cat"}, {"raw": "b"}]}]}
    coco = {"images": [{"id": 1, "file_name": "1.jpg"}], "annotations": [{"id": 3, "image_id": 1, "caption": "a cat"}]}
    layout = [("a.jpg", JPEG), ("a.cls", b"1"), ("b.png", PNG), ("b.cls", b"0")]
    targets = [("a.jpg", JPEG), ("a.npy", array([0, 1, 0], "<i8"))]
    retrieval = [("a.jpg", JPEG), ("a.txt", b"one\ntwo")]
    return {
        "cifar-10": {"test_batch.bin": bytes(2 * 3073), "batches.meta.txt": names},
        "cifar-100": {"test.bin": bytes(2 * 3074), "fine_label_names.txt": names},
        "mnist": {
            "t10k-images-idx3-ubyte.gz": gzip.compress(struct.pack(">IIII", 0x803, 2, 28, 28) + bytes(2 * 784), mtime=0),
            "t10k-labels-idx1-ubyte": struct.pack(">II", 0x801, 2) + bytes(2),
        },
        "stl-10": {"test_X.bin": bytes(2 * 3 * 96 * 96), "test_y.bin": b"\1\2", "class_names.txt": names},
        "svhn": {"test_32x32.mat": matlab(X=np.zeros((32, 32, 3, 2), np.uint8), y=np.array([[1], [10]], np.uint8))},
        "food-101": {"meta/test.txt": b"cat/1\ndog/2\n", "images/cat/1.jpg": JPEG, "images/dog/2.jpg": JPEG},
        "dtd": {"labels/test1.txt": b"cat/1.jpg\n", "images/cat/1.jpg": JPEG},
        "birdsnap": {"test_images.txt": b"path\ncat/1.jpg\n", "images/cat/1.jpg": JPEG},
        "aircraft": {"images_variant_test.txt": b"1 cat a\n", "variants.txt": b"cat a\ndog\n", "images/1.jpg": JPEG},
        "sun397": {"ClassName.txt": b"/a/cat\n", "Testing_01.txt": b"/a/cat/1.jpg\n", "a/cat/1.jpg": JPEG},
        "pets": {"annotations/test.txt": b"# x\ncat_1 1 2 3\n", "images/cat_1.jpg": JPEG},
        "flowers-102": {"imagelabels.mat": matlab(labels=[[1, 2]]), "setid.mat": matlab(tstid=[[1, 2]]), "image_00001.jpg": JPEG,
                        "image_00002.jpg": JPEG},
        "cars": {"cars_test_annos_withlabels.mat": matlab(annotations=cars), "cars_test/1.jpg": JPEG,
                 "cars_meta.mat": matlab(class_names=np.array(["a", "b"], object))},
        "gtsrb": {"GT-final_test.csv": b"Filename;ClassId\n0.ppm;3\n", "Images/0.ppm": _ppm()},
        "voc2007": {"ImageSets/Main/test.txt": b"1\n", "Annotations/1.xml": voc, "JPEGImages/1.jpg": JPEG},
        "voc2007-multilabel": {"ImageSets/Main/test.txt": b"1\n", "Annotations/1.xml": voc, "JPEGImages/1.jpg": JPEG},
        "clevr-count": {"scenes/CLEVR_val_scenes.json": json.dumps(scene).encode(), "images/val/1.png": PNG},
        "clevr-dist": {"scenes/CLEVR_val_scenes.json": json.dumps(scene).encode(), "images/val/1.png": PNG},
        "kitti-distance": {"training/label_2/1.txt": b"Car 0 0 0 1 2 3 4 5 6 7 8 9 12.5 0\n", "training/image_2/1.png": PNG},
        "flickr30k-retrieval": {"dataset_flickr30k.json": json.dumps(karpathy).encode(), "1.jpg": JPEG},
        "coco-retrieval": {"captions.json": json.dumps(coco).encode(), "1.jpg": JPEG},
        "resisc45": {"val/airport/1.jpg": JPEG, "val/beach/1.png": PNG},
        "imagenet-a": {"n01440764/1.jpg": JPEG, "LOC_synset_mapping.txt": b"n01440764 tench, Tinca\n"},
        "eurosat": {"test/nshards.txt": b"1", "test/0.tar": tar(layout), "classnames.txt": b"a\nb\n",
                    "zeroshot_classification_templates.txt": b"a {c}\n"},
        "pcam": {"test/nshards.txt": b"1", "test/0.tar": tar(targets), "dataset_type.txt": b"multilabel\n"},
        "country211": {"test/nshards.txt": b"1", "test/0.tar": tar(retrieval), "dataset_type.txt": b"retrieval\n"},
    }  # fmt: skip


def _ppm() -> bytes:
    stream = io.BytesIO()
    Image.open(io.BytesIO(PNG)).save(stream, "PPM")
    return stream.getvalue()
