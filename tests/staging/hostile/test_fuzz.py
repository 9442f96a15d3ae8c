"""Whatever a source holds, its reader gives rows, counts rejects, or says in one line what is wrong: never another error.

FUZZ multiplies the number of variants, SEED draws others.
"""

import gzip
import json
import os
import struct
import zlib
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import duckdb
import google_crc32c
import pytest
from PIL import Image

from tests.mutating import mutations
from tests.staging.conftest import picture
from tests.staging.hostile import copies
from tests.staging.hostile.copies import Files
from tests.staging.remote.sources import write_declip, write_rwkv, write_yfcc
from tests.storage.test_index import SMALL
from trainer.configs import load_recipe
from trainer.errors import Corrupt, InputError, RunError
from trainer.staging.evaluation_sets import tars as layout
from trainer.staging.evaluation_sets.copies import Copy, as_kept
from trainer.staging.evaluation_sets.folders import class_folders
from trainer.staging.evaluation_sets.prompts import NAMES_FILE, TEMPLATES_FILE, _read
from trainer.staging.evaluation_sets.stage import CONVERTERS
from trainer.staging.images import BadImageError, normalise, squash
from trainer.staging.remote.download import unpack
from trainer.staging.remote.http import FetchError, HttpSettings, PoliteClient
from trainer.staging.remote.inputs import Inputs, run
from trainer.staging.remote.sources import url_list, yfcc15m
from trainer.staging.remote.unpack import unpack_parquet
from trainer.staging.remote.zips import Member, read_directory, read_range, unpack_member
from trainer.staging.rows import Reject
from trainer.staging.samples import PairMaker, Sample, TripletMaker
from trainer.staging.sources import bapps, folder, nights, table, tars
from trainer.staging.sources.listing import Rows, SourceFile, list_source
from trainer.staging.tokens import Tokenizer
from trainer.storage.index import decode_index, encode_index

FUZZ, SEED = int(os.environ.get("FUZZ", "1")), int(os.environ.get("SEED", "0"))
pytestmark = pytest.mark.filterwarnings("ignore")  # what PIL, numpy and webdataset say of damage on the way


def damage(place: Path, files: Files, read: Callable[[str], None], count: int) -> None:
    """Read the source once as it is, then with one of its files in `count` variants; only errors for users may come."""

    def write(name: str, data: bytes) -> None:
        path = place / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)

    for name, data in files.items():
        write(name, data)
    read(str(place))
    for name, data in files.items():
        for number, changed in enumerate(mutations(data, SEED + len(name), count * FUZZ // 5)):
            write(name, changed)
            try:
                read(str(place))
            except (InputError, RunError):
                continue
            except Exception as error:
                raise AssertionError(f"variant {number} of {name} of seed {SEED}: {changed[:300]!r}") from error
        write(name, data)


def staged(rows: Rows, make: Callable[..., Sample | Reject]) -> None:  # type: ignore[type-arg]
    """Every row becomes a sample or a reject, with captions that become tokens."""
    tokenize = Tokenizer()
    for row in rows.rows:
        made = make(row)
        assert isinstance(made, Sample | Reject)
        if isinstance(made, Sample):
            tokenize(made.captions)
            made.key.encode()


PAIRS = {"folder": (copies.folder, folder.read), "csv": (copies.captions_csv, table.read), "tars": (copies.tars, tars.read)}


@pytest.mark.parametrize("kind", PAIRS)
def test_pairs(tmp_path: Path, kind: str) -> None:
    files, read = PAIRS[kind]
    damage(tmp_path, files(), lambda uri: staged(read(uri, list_source(uri)), PairMaker("original")), 40)


@pytest.mark.parametrize(("files", "read"), [(copies.nights, nights.read), (copies.bapps, bapps.read)])
def test_triplets(tmp_path: Path, files: Callable[[], Files], read: Callable[[str, list[SourceFile], int], Rows]) -> None:  # type: ignore[type-arg]
    damage(tmp_path, files(), lambda uri: staged(read(uri, list_source(uri), 0), TripletMaker(16)), 60)


@pytest.mark.parametrize("name", copies.copies())
def test_evaluation_sets(tmp_path: Path, name: str) -> None:
    def read(uri: str) -> None:
        copy = Copy(uri, list_source(uri))
        converted = layout.read_layout(copy) if layout.is_layout(copy) else CONVERTERS.get(name, class_folders)(copy)
        for row in converted.rows:
            as_kept(row.image(), row.name)
            "\n".join((*row.captions, *converted.classnames, *converted.templates)).encode()

    damage(tmp_path, copies.copies()[name], read, 30)


def test_prompts(tmp_path: Path) -> None:
    files = {NAMES_FILE: json.dumps({"cars": ["a", "b"]}).encode(), TEMPLATES_FILE: json.dumps({"cars": ["a {c}"]}).encode()}
    damage(tmp_path, files, lambda uri: [_read(uri, name, "cars") for name in files] and None, 100)


_PICTURES = [
    ("PNG", "RGB"), ("PNG", "RGBA"), ("PNG", "P"), ("PNG", "I;16"), ("JPEG", "RGB"), ("JPEG", "CMYK"), ("WEBP", "RGBA"), ("GIF", "P"),
    ("BMP", "RGB"), ("TIFF", "RGB"), ("TIFF", "LA"), ("PPM", "RGB"),
    ("JPEG2000", "RGB"), ("AVIF", "RGB"), ("TGA", "RGBA"), ("PCX", "P"), ("SGI", "RGB"),
]  # fmt: skip


@pytest.mark.parametrize(("kind", "mode"), _PICTURES)
def test_pictures(kind: str, mode: str) -> None:
    exif = Image.Exif()
    exif[0x0112], exif[0x010E] = 6, "a description"
    options = {"exif": exif} if kind in ("PNG", "JPEG", "WEBP", "TIFF") else {}
    data = picture(1, (40, 30), kind, mode, **options) if mode != "I;16" else picture(1, (40, 30), kind, "L")
    for changed in mutations(data, SEED, 100 * FUZZ // 5):
        for read in (lambda data: normalise(data, "original"), lambda data: normalise(data, "short256"), lambda data: squash(data, 16)):
            with suppress(BadImageError):
                read(changed)


def test_pngs_with_right_checksums() -> None:
    """Chunks that lie, but whose CRC-32 is right, so that what they say is believed."""
    data = picture(1, (40, 30), "PNG", "P")
    for changed in mutations(data, SEED, 200 * FUZZ // 5):
        fixed, position = bytearray(changed), 8
        while position + 12 <= len(fixed):
            length = int.from_bytes(fixed[position : position + 4], "big")
            end = position + 8 + length
            if end + 4 > len(fixed):
                break
            fixed[end : end + 4] = zlib.crc32(fixed[position + 4 : end]).to_bytes(4, "big")
            position = end + 4
        with suppress(BadImageError):
            normalise(bytes(fixed), "original")


def test_indexes_with_right_checksums() -> None:
    """Header and arrays that lie."""
    good = encode_index(SMALL)
    for changed in mutations(good[:-4], SEED, 1500 * FUZZ // 5):
        if changed[:12] == good[:12]:
            with suppress(Corrupt):
                index = decode_index(changed + struct.pack("<I", google_crc32c.value(changed)), "x.index")
                for sample in range(index.num_samples):
                    index.captions(sample)


@pytest.mark.parametrize("compression", [0, 8])
def test_zips(tmp_path: Path, compression: int) -> None:
    members = {f"nights/{name}": data for name, data in copies.nights().items()}
    client = PoliteClient(HttpSettings())

    def read(uri: str) -> None:
        with suppress(RunError, OSError):  # OSError: a name that no file system takes
            unpack(Path(uri) / "nights.zip", tmp_path / "unpacked")
        for member in read_directory(client, f"{uri}/nights.zip", "nights.zip", ""):
            again = Member.parse(str(member))
            with suppress(FetchError):
                unpack_member(again, read_range(client, f"{uri}/nights.zip", again.start, again.length), 1 << 20)

    damage(tmp_path / "source", {"nights.zip": copies.archive(members, compression)}, read, 200)


@pytest.mark.parametrize("kind", ["csv", "tsv", "jsonl", "parquet", "csv.gz"])
def test_lists_of_urls(tmp_path: Path, kind: str) -> None:
    rows = [{"url": f"http://x/{number}.jpg", "caption": f"a cat {number}", "label": "cat", "id": number} for number in range(5)]
    header = list(rows[0])
    made = {
        "csv": lambda: copies.lines([header, *(list(row.values()) for row in rows)]),
        "tsv": lambda: copies.lines([header, *(list(row.values()) for row in rows)], "\t"),
        "jsonl": lambda: "".join(json.dumps(row) + "\n" for row in rows).encode(),
        "parquet": lambda: copies.table({name: [row[name] for row in rows] for name in header}),
        "csv.gz": lambda: gzip.compress(copies.lines([header, *(list(row.values()) for row in rows)]), mtime=0),
    }[kind]()

    def read(uri: str) -> None:
        with duckdb.connect() as database:
            run(database, "SET threads = 1")
            found = url_list.table(database, Inputs(tmp_path), list_uri=f"{uri}/list.{kind}", captions="as-is")
            run(database, f"CREATE TABLE source AS {found.query}")
            run(database, "SELECT * FROM source")

    damage(tmp_path / "source", {f"list.{kind}": made}, read, 40)


@pytest.mark.parametrize("which", ["openai", "slip", "declip", "rwkv"])
def test_yfcc(tmp_path: Path, which: str) -> None:
    place = tmp_path / "source"
    place.mkdir()
    write_yfcc(place, 4)
    write_declip(place / "declip.jsonl", 4)
    write_rwkv(place / "rwkv.parquet", 4)
    wanted = {"openai": ["list.tsv", "metadata.tsv"], "slip": ["ids.npy"], "declip": ["declip.jsonl"], "rwkv": ["rwkv.parquet"]}[which]
    captions = {"openai": "both", "slip": "slip", "declip": "as-is", "rwkv": "tokens"}[which]

    def read(uri: str) -> None:
        names = {"declip": "declip.jsonl", "rwkv": "rwkv.parquet"}
        more = {"metadata_uri": f"{uri}/metadata.tsv"} if which in ("openai", "slip") else {"metadata_uri": ""}
        more["ids_uri"] = f"{uri}/ids.npy" if which == "slip" else ""
        with duckdb.connect() as database:
            list_uri = f"{uri}/{names.get(which, 'list.tsv')}"
            found = yfcc15m.table(database, Inputs(tmp_path), which=which, list_uri=list_uri, captions=captions, **more)
            for row in run(database, f"SELECT texts FROM ({found.query})"):
                if which == "rwkv":
                    Tokenizer().text_of_words(row[0][0] or "")

    damage(place, {name: (place / name).read_bytes() for name in wanted}, read, 40)


def test_parquet_with_pictures(tmp_path: Path) -> None:
    rows: dict[str, list[object]] = {"image": [{"bytes": copies.PNG, "path": "x"}] * 3, "text": [["a", "b"], ["c"], []]}

    def read(uri: str) -> None:
        target = tmp_path / "tars"
        for path in target.glob("*.tar"):
            path.unlink()
        unpack_parquet(uri, str(target))

    damage(tmp_path / "source", {"a.parquet": copies.table(rows)}, read, 100)


def test_recipes() -> None:
    text = "base: paper\nname: mine\n"
    text += "contrastive: {epochs: 8, optimizer: {eps: 1e-6}}\nperceptual: &p\n  epochs: 4\nstaging: {shard_samples: 64}\n"
    for changed in mutations(text.encode(), SEED, 300 * FUZZ // 5):
        with suppress(InputError):
            load_recipe(changed.decode("utf-8", "replace") + "\n", source="x.yaml")
