"""Lists and pictures for the tests: small, and with every fault that a list has had."""

import csv
import hashlib
import io
import json
import struct
import zlib
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from tests.staging.remote.web import Web


def picture(seed: int, side: int = 24, kind: str = "JPEG") -> bytes:
    """Random pixels, encoded."""
    rng = np.random.default_rng(seed)
    stream = io.BytesIO()
    Image.fromarray(rng.integers(0, 256, (side, side + 8, 3), dtype=np.uint8)).save(stream, kind)
    return stream.getvalue()


def photo_hash(number: int) -> str:
    """The hash by which YFCC100M names photo `number`."""
    return hashlib.md5(str(number).encode()).hexdigest()


def place(number: int) -> str:
    """Where it lies below the image base."""
    name = photo_hash(number)
    return f"{name[:3]}/{name[3:6]}/{name}.jpg"


def write_yfcc(folder: Path, photos: int = 40) -> dict[str, str]:
    """A list and metadata in YFCC100M's columns; photo 7 is listed twice, photo 9 has no metadata, photo 11 no hash."""
    folder.mkdir(parents=True, exist_ok=True)
    listed = [f"{number}\t{1000 + number}\t{'' if number == 11 else photo_hash(number)}" for number in [*range(photos), 7]]
    (folder / "list.tsv").write_text("\n".join(listed) + "\n")
    lines = []
    for number in range(photos + 20):
        row = [f"x{column}" for column in range(25)]
        row[0], row[1], row[2] = str(number), str(1000 + number), photo_hash(number)
        row[8], row[9] = f"Title+{number}+%22caf%C3%A9%22", f"<a+href=x>see</a>+http://flic.kr/{number}+the+%3Cb%3Esea%3C/b%3E"
        if number == 5:
            row[8], row[9] = "", ""
        if number != 9:
            lines.append("\t".join(row))
    (folder / "metadata.tsv").write_text("\n".join(lines[::-1]) + "\n")
    np.save(folder / "ids.npy", np.arange(0, photos, 2))
    return {"list": str(folder / "list.tsv"), "metadata": str(folder / "metadata.tsv"), "ids": str(folder / "ids.npy")}


def write_declip(path: Path, photos: int = 10) -> str:
    """DeCLIP's JSON lines."""
    rows = [{"caption": f"photo {number}", "filename": f"x/{photo_hash(number)}.jpg", "url": "http://x/y.jpg"} for number in range(photos)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def write_rwkv(path: Path, photos: int = 10) -> str:
    """RWKV's parquet: token ids, padded."""
    texts = [[49406, 320, 1125, 539, 320 + number, 49407, 0, 0] for number in range(photos)]
    pq.write_table(pa.table({"hash": [photo_hash(number) for number in range(photos)], "texts": texts}), path)
    return str(path)


def serve_yfcc(web: Web) -> None:
    """Pictures of all photos, with every fault a server has: 404, 410, passing and lasting 500s, HTML, nothing, cut short, a redirect."""
    for number in range(40):
        web.pages[f"/images/{place(number)}"] = picture(number)
    faults = {
        1: lambda count: (404, {}, b"<html>none</html>"),
        2: lambda count: (410, {}, b""),
        3: lambda count: (500, {}, b"") if count < 3 else (200, {}, picture(3)),
        4: lambda count: (503, {}, b""),
        6: b"<html>this photo is no longer available</html>",
        8: b"",
        12: lambda count: (302, {"location": f"/moved/{place(12)}"}, b""),
        13: lambda count: (302, {"location": "file:///etc/passwd"}, b""),
        14: bomb(),
    }
    for number, page in faults.items():
        web.pages[f"/images/{place(number)}"] = page
    web.pages[f"/moved/{place(12)}"] = picture(12)
    web.cut[f"/images/{place(15)}"] = 100


LOST = {  # of serve_yfcc over write_yfcc under the policy `both`
    "duplicate": 1, "no metadata": 1, "bad row": 1, "empty caption": 1, "http 404": 1, "http 410": 1, "http 503": 1, "not an image": 1,
    "empty file": 1, "bad redirect": 1, "too many pixels": 1, "cut short": 1,
}  # fmt: skip


def bomb() -> bytes:
    """A PNG of a few bytes that declares 200 megapixels."""
    data = bytearray(picture(0, kind="PNG"))
    data[16:24] = struct.pack(">II", 20_000, 10_000)
    data[29:33] = struct.pack(">I", zlib.crc32(data[12:29]))
    return bytes(data)


def write_nights(folder: Path, triplets: int = 24) -> Path:
    """A folder in NIGHTS layout; triplet 3's right picture is missing, triplet 5 has too few votes."""
    rows = []
    for number in range(triplets):
        paths = (f"ref/000/{number:03d}.png", f"distort/000/{number:03d}_0.png", f"distort/000/{number:03d}_1.png")
        for seed, name in enumerate(paths):
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).write_bytes(picture(10 * number + seed, kind="PNG"))
        right = number % 2
        rows.append(
            {
                "id": number, "left_vote": 1 - right, "right_vote": right, "votes": 2 if number == 5 else 7,
                "ref_path": paths[0], "left_path": paths[1], "right_path": paths[2], "split": ("train", "train", "val", "test")[number % 4],
                "is_imagenet": number % 3 == 0, "prompt": "a thing",
            }
        )  # fmt: skip
    (folder / "distort/000/003_1.png").unlink()
    with open(folder / "data.csv", "w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    return folder
