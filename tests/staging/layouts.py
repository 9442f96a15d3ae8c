"""Small sources of every layout, and what staging makes of them."""

import io
import json
from contextlib import ExitStack
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from tests.staging.conftest import picture
from trainer.staging import stage
from trainer.staging.rows import Reject
from trainer.staging.samples import PairMaker

A, B, C, D = (picture(number, (8, 6), "JPEG") for number in range(4))
PICTURES = {"a.jpg": A, "b.jpg": B, "c.jpg": C}
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


def check_losses(root: Path, files: Files, expected: Made, lost: dict[str, str]) -> None:
    """Of a folder with these files, `expected` is made, and what is lost is named once, with its cause word for word."""
    found, rejects = made(str(write(root / "source", files)), root)
    assert found == expected
    assert {r.where: f"{r.cause}: {r.detail}{'' if r.counts else ' (no fault)'}" for r in rejects} == lost
    assert len(rejects) == len(lost)
