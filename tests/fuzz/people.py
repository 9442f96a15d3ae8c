"""Targets: what people write and what data sets consist of."""

import contextlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tests.fuzz.registry import Read, as_file, target
from tests.staging.conftest import picture
from tests.staging.hostile import copies
from trainer.errors import InputError, RunError

_RECIPE = b"""base: paper
name: mine
contrastive: {epochs: 8, optimizer: {eps: 1e-6}}
perceptual: &p
  epochs: 4
staging: {shard_samples: 64}
"""


@target("recipe", lambda: [_RECIPE])
def _recipe(data: bytes, place: Path) -> None:
    from trainer.storage.recipes import read_recipe

    read_recipe(as_file(place, "recipe.yaml", data))


@target("request", lambda: [b"recipe: smoke\narms: [random, perceptual]\nseeds: [0, 1]\nset: {contrastive.epochs: 2}\nnodes: 2\n"])
def _request(data: bytes, place: Path) -> None:
    from pipelines.planning.request import merge
    from pipelines.planning.resolving import resolve

    resolve(merge(as_file(place, "request.yaml", data), {}), kubeflow=True)


@target(
    "profile", lambda: [b"root: s3://b/r\nbackend: pytorchjob\njobs: {nodes: 2, pod_template: {spec: {containers: [{name: pytorch}]}}}\n"]
)
def _profile(data: bytes, place: Path) -> None:
    from pipelines.profile.profile import read_profile

    read_profile(as_file(place, "profile.yaml", data))


@target("description of a list", lambda: [b"kind: urls\nlist: s3://b/list.csv\nimages: https://x\nconcurrency: 3\n"])
def _description(data: bytes, place: Path) -> None:
    from pipelines.steps.staging import remote_list

    remote_list("pairs", as_file(place, "list.yaml", data))


@target("credentials file", lambda: [b"[default]\naws_access_key_id = a\naws_secret_access_key = b\n[other]\nregion=x\n"])
def _credentials(data: bytes, place: Path) -> None:
    from trainer.storage.s3_settings import read_credentials

    read_credentials(as_file(place, "credentials", data), "default")


@target("RDM", lambda: [b",a,b,c,d\na,0,1,2,3\nb,1,0,4,5\nc,2,4,0,6\nd,3,5,6,0\n", copies.array([[0.0, 1], [1, 0]], "<f8")])
def _rdm(data: bytes, place: Path) -> None:
    from trainer.storage.rdms import read_rdm

    as_file(place, "x.txt", b"a\nb\n")
    for name in ("x.csv", "x.npy"):
        with contextlib.suppress(InputError, RunError):
            read_rdm(as_file(place, name, data))


def _pictures() -> list[bytes]:
    kinds = ("PNG RGB", "PNG P", "JPEG RGB", "JPEG CMYK", "WEBP RGBA", "GIF P", "TIFF LA", "AVIF RGB")
    return [picture(1, (20, 15), *kind.split()) for kind in kinds]


def _bad_image() -> type[Exception]:
    from trainer.staging.images import BadImageError

    return BadImageError


@target("picture", _pictures, _bad_image())
def _picture(data: bytes, place: Path) -> None:
    from trainer.staging.images import normalise, squash

    for policy in ("original", "short256"):
        with contextlib.suppress(_bad_image()):
            normalise(data, policy)
    squash(data, 16)


def _all(rows: Any) -> None:
    """Every row becomes a sample or a reject, with captions that become tokens."""
    from trainer.staging.samples import PairMaker, TripletMaker
    from trainer.staging.tokens import Tokenizer

    tokenize = Tokenizer()
    for row in rows.rows:
        made = (PairMaker("original") if hasattr(row, "captions") else TripletMaker(16))(row)
        if hasattr(made, "captions"):
            tokenize(made.captions)


@target("captions", lambda: [b"a circle\nanother caption &amp; more\n", b'{"caption": "a", "captions": ["b", "c"], "label": "x"}'])
def _captions(data: bytes, place: Path) -> None:
    from trainer.staging.sources import folder
    from trainer.staging.sources.listing import list_source

    for suffix in ("txt", "json", "xml"):
        as_file(place, f"{suffix}/a.png", copies.PNG)
        as_file(place, f"{suffix}/a.{suffix}", data)
        with contextlib.suppress(InputError, RunError):
            _all(folder.read(str(place / suffix), list_source(str(place / suffix))))


def _listed(make: Callable[[], copies.Files], name: str) -> Callable[[], list[bytes]]:
    return lambda: [make()[name]]


@target("table of captions", lambda: list(copies.captions_csv().values())[:1])
def _table(data: bytes, place: Path) -> None:
    from trainer.staging.sources import table
    from trainer.staging.sources.listing import list_source

    names = list(copies.captions_csv())
    for name, whole in copies.captions_csv().items():
        as_file(place, name, data if name == names[0] else whole)
    _all(table.read(str(place), list_source(str(place))))


@target("NIGHTS' table", _listed(copies.nights, "data.csv"))
def _nights(data: bytes, place: Path) -> None:
    from trainer.staging.sources import nights
    from trainer.staging.sources.listing import list_source

    for name, whole in copies.nights().items():
        as_file(place, name, data if name == "data.csv" else whole)
    _all(nights.read(str(place), list_source(str(place)), 0))


def _judgements() -> list[str]:
    return [name for name in copies.bapps() if name.endswith(".npy")]


@target("BAPPS' judgements", lambda: [copies.bapps()[_judgements()[0]]])
def _bapps(data: bytes, place: Path) -> None:
    from trainer.staging.sources import bapps
    from trainer.staging.sources.listing import list_source

    for name, whole in copies.bapps().items():
        as_file(place, name, data if name == _judgements()[0] else whole)
    _all(bapps.read(str(place), list_source(str(place)), 0))


@target("zip", lambda: [copies.archive({"nights/data.csv": b"id,votes\n1,2\n", "nights/ref/a.png": copies.PNG}, kind) for kind in (0, 8)])
def _zip(data: bytes, place: Path) -> None:
    from trainer.staging.remote.download import unpack
    from trainer.staging.remote.http import FetchError, HttpSettings, PoliteClient
    from trainer.staging.remote.zips import Member, read_directory, read_range, unpack_member

    uri = as_file(place, "nights.zip", data)
    with contextlib.suppress(InputError, RunError, OSError):  # OSError: a name that no file system takes
        unpack(Path(uri), place / "unpacked")
    client = PoliteClient(HttpSettings())
    for member in list(read_directory(client, uri, "nights.zip", ""))[:20]:
        again = Member.parse(str(member))
        with contextlib.suppress(FetchError):
            unpack_member(again, read_range(client, uri, again.start, again.length), 1 << 20)


_LIST = [{"url": f"http://x/{number}.jpg", "caption": f"a cat {number}", "label": "cat", "id": number} for number in range(3)]


def _read_list(suffix: str) -> Read:
    def read(data: bytes, place: Path) -> None:
        import duckdb

        from trainer.staging.remote.inputs import Inputs, run
        from trainer.staging.remote.sources import url_list

        uri = as_file(place, f"list.{suffix}", data)
        with duckdb.connect() as database:
            run(database, "SET threads = 1")
            made = url_list.table(database, Inputs(place), list_uri=uri, captions="as-is")
            run(database, f"SELECT * FROM ({made.query})")

    return read


target("list in CSV", lambda: [copies.lines([list(_LIST[0]), *(list(row.values()) for row in _LIST)])])(_read_list("csv"))
target("list in JSON lines", lambda: ["".join(json.dumps(row) + "\n" for row in _LIST).encode()])(_read_list("jsonl"))
target("list in parquet", lambda: [copies.table({name: [row[name] for row in _LIST] for name in _LIST[0]})])(_read_list("parquet"))


@target("tar of samples", lambda: [*copies.tars().values()])
def _samples(data: bytes, place: Path) -> None:
    from trainer.staging.sources import tars
    from trainer.staging.sources.listing import list_source

    as_file(place, "a.tar", data)
    _all(tars.read(str(place), list_source(str(place))))
