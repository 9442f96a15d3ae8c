"""What is fuzzed: for each kind of bytes good ones to begin with, and the reader that must answer or refuse them in one line."""

import contextlib
import dataclasses
import json
import struct
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import google_crc32c

from tests import old_store
from tests.staging.conftest import picture
from tests.staging.hostile import copies
from tests.storage.test_index import SMALL
from trainer.errors import InputError, RunError
from trainer.storage.index import encode_index

Read = Callable[[bytes, Path], object]
TARGETS: dict[str, "Target"] = {}


@dataclass(frozen=True)
class Target:
    """One reader.

    Attributes:
        name: of the target, and of the folder of its findings in tests/data/fuzz.
        seeds: makes good inputs.
        read: gives one to the reader; the folder is its own.
        refusals: what a reader may raise.
    """

    name: str
    seeds: Callable[[], list[bytes]]
    read: Read
    refusals: tuple[type[Exception], ...] = (InputError, RunError)

    def outcome(self, data: bytes, place: Path) -> str:
        """`read`, or what kind of refusal it was; any other error is a finding, and so is a refusal of several lines."""
        try:
            self.read(data, place)
        except self.refusals as error:
            text = str(error)
            if "\n" in text:
                raise AssertionError(f"a refusal of several lines: {text[:500]!r}") from error
            return f"{type(error).__name__}: {''.join(letter for letter in text if not letter.isdigit())[-60:]}"
        return "read"


def target(name: str, seeds: Callable[[], list[bytes]], *refusals: type[Exception]) -> Callable[[Read], Read]:
    """Register a reader."""

    def register(read: Read) -> Read:
        TARGETS[name] = Target(name, seeds, read, (InputError, RunError, *refusals))
        return read

    return register


def as_file(place: Path, name: str, data: bytes) -> str:
    """Its path."""
    path = place / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)
    return str(path)


def found(pattern: str) -> Callable[[], list[bytes]]:
    """The files of a name in the store that an older firstsight wrote."""

    def read() -> list[bytes]:
        import tempfile

        with tempfile.TemporaryDirectory() as folder:
            root = old_store.unpack(Path(folder))
            return [path.read_bytes() for path in sorted(root.rglob(pattern)) if path.is_file()][:6]

    return read


def as_value(data: bytes) -> Any:
    """JSON, or None."""
    with contextlib.suppress(ValueError, RecursionError):
        return json.loads(data)
    return None


def with_checksum(data: bytes) -> bytes:
    """A document under a checksum that fits, so that the reader sees what it says; other bytes as they are."""
    from trainer.storage.documents import encode_document

    value = as_value(data)
    if isinstance(value, dict) and "sha256" in value:
        with contextlib.suppress(ValueError, TypeError, RecursionError):
            return encode_document({key: part for key, part in value.items() if key != "sha256"})
    return data


# ------------------------------------------------------------------------------------------------ what firstsight wrote


@target("index", lambda: [encode_index(SMALL)])
def _index(data: bytes, place: Path) -> None:
    from trainer.storage.index import decode_index

    fixed = data[:-4] + struct.pack("<I", google_crc32c.value(data[:-4]))
    for one in (data, fixed):
        with contextlib.suppress(InputError, RunError):
            index = decode_index(one, "x.index")
            for sample in range(min(index.num_samples, 100)):
                index.captions(sample)


@target("manifest", found("manifest.json"))
def _manifest(data: bytes, place: Path) -> None:
    from trainer.storage.manifest import read_manifest

    as_file(place, "manifest.json", with_checksum(data))
    read_manifest(str(place))


@target("seal", found("COMMITTED.json"))
def _seal(data: bytes, place: Path) -> None:
    from trainer.storage.committed import find_damage, read_committed

    as_file(place, "final/COMMITTED.json", with_checksum(data))
    seal = read_committed(str(place / "final"))
    if seal is not None:
        find_damage(str(place), seal)


@target("plan", found("plan.json"))
def _plan(data: bytes, place: Path) -> None:
    from trainer.staging import plans as staging
    from trainer.storage.plans import read_plan

    as_file(place, "plan.json", with_checksum(data))
    for read in (read_plan, staging.read_plan):
        with contextlib.suppress(InputError, RunError):
            read(str(place))


@target("configuration", found("config.yaml"))
def _configuration(data: bytes, place: Path) -> None:
    from trainer.storage.recipes import read_stage

    read_stage(as_file(place, "config.yaml", data))


def _asked() -> Any:
    from pipelines.planning.request import merge

    return merge("", {"recipe": "smoke", "arms": "random,perceptual", "vary": "triplets: {perceptual.triplet_fraction: [0.5, 1]}"})


def _requests() -> list[bytes]:
    from trainer.storage.documents import encode_document

    return [encode_document({"format_version": 2, **_asked().stored()})]


@target("stored request", _requests)
def _stored_request(data: bytes, place: Path) -> None:
    from pipelines.planning.request import read_request

    read_request(as_file(place, f"experiments/e/requests/{_asked().id}.json", with_checksum(data)))


@target("figures", found("*_retrieval.json"))
def _figures(data: bytes, place: Path) -> None:
    from trainer.storage.figures import read_figures

    read_figures(as_file(place, "x.json", data))


@target("items", found("*.items.npz"))
def _items(data: bytes, place: Path) -> None:
    from trainer.storage.arrays import decode_arrays

    decode_arrays(data, "x.npz")


@target("progress", found("progress.jsonl"))
def _progress(data: bytes, place: Path) -> None:
    from pipelines.operate.experiments import last_record
    from trainer.progress import read_step_line

    last_record(as_file(place, "progress.jsonl", data))
    read_step_line(data.decode(errors="replace"))


@target("record", lambda: [*found("failure.json")(), b'{"time": 1.0, "stage": "x", "exit_code": 1, "line": "y"}'])
def _record(data: bytes, place: Path) -> None:
    from trainer.storage.failures import read_failure
    from trainer.storage.fence import read_claim
    from trainer.storage.pages import read_page

    for name in ("failure.json", "attempt.json", "report/made.json"):
        as_file(place, name, with_checksum(data))
    read_failure(str(place))
    for read in (read_claim, read_page):
        with contextlib.suppress(InputError, RunError):
            read(str(place))


@target("tar of samples", found("shard-*.tar"))
def _samples(data: bytes, place: Path) -> None:
    from trainer.staging.sources import tars
    from trainer.staging.sources.listing import list_source

    as_file(place, "a.tar", data)
    _all(tars.read(str(place), list_source(str(place))))


def _rows_of_a_slice() -> list[bytes]:
    import tempfile

    from trainer.staging.remote.rows import RemoteRow, as_table, slice_rows_name, write_rows

    rows = [RemoteRow(key=f"k{n}", images=[f"https://x/{n}.jpg"], texts=["a", None], label="l", facts={"id": str(n)}) for n in range(3)]
    with tempfile.TemporaryDirectory() as folder:
        write_rows(folder, 0, as_table(rows))
        return [(Path(folder) / slice_rows_name(0)).read_bytes()]


@target("rows of a slice", _rows_of_a_slice)
def _rows(data: bytes, place: Path) -> None:
    from tests.staging.hostile.test_fuzz_plans import plan_of
    from trainer.staging.remote.rows import read_rows, slice_rows_name

    as_file(place, slice_rows_name(0), data)
    read_rows(str(place), dataclasses.replace(plan_of(2), format_version=1), 0)


# ------------------------------------------------------------------------------------------------ what people wrote

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


# ------------------------------------------------------------------------------------------------ what servers say


@target("jobs and Workflows", lambda: list(_cluster_objects()))
def _objects(data: bytes, place: Path) -> None:
    """As the API server's schemas let them be: names are texts, lists are lists; a Workflow's status may be anything."""
    from pipelines.cluster.connection import POD
    from pipelines.jobs.holds import decide
    from pipelines.jobs.shapes import job_kinds
    from pipelines.operate.status import _row

    value = as_value(data)
    if not isinstance(value, dict) or not fits(value, json.loads(next(_cluster_objects()))):
        return
    job, workflow, pod = value["job"], value["workflow"], value["pod"]
    assert POD
    kind = next((kind for kind in job_kinds() if (kind.kind, kind.api_version) == (job["kind"], job["apiVersion"])), None)
    if kind is None:
        return
    decide([job], {("team", "run"): workflow}, 1.8e9)
    _row(kind, job, [pod], {}, 1.8e9)


def _cluster_objects() -> Iterator[bytes]:
    when = "2026-11-30T08:00:00Z"
    owner = {"apiVersion": "argoproj.io/v1alpha1", "kind": "Workflow", "name": "run", "uid": "u1"}
    for api, kind, spec in (
        ("kubeflow.org/v1", "PyTorchJob", {"pytorchReplicaSpecs": {"Worker": {"replicas": 2, "template": {}}}}),
        ("batch/v1", "Job", {"completions": 2, "parallelism": 2, "suspend": False, "template": {}}),
    ):
        metadata = {
            "name": "j", "namespace": "team", "uid": "j1", "resourceVersion": "7", "creationTimestamp": when, "ownerReferences": [owner],
            "labels": {"firstsight.dev/experiment": "e"},
            "annotations": {"firstsight.dev/held-by.ana": when, "firstsight.dev/incidents": "3", "firstsight.dev/attempt": "2"},
        }  # fmt: skip
        conditions = [{"type": "Running", "status": "True", "reason": "x", "message": "y", "lastTransitionTime": when}]
        waiting = {"waiting": {"reason": "ImagePullBackOff", "message": "no"}}
        container = {"name": "pytorch", "restartCount": 1, "state": waiting, "image": "i"}
        scheduled = {"type": "PodScheduled", "status": "False", "message": "m"}
        status = {"phase": "Pending", "conditions": [scheduled], "containerStatuses": [container]}
        pod = {"metadata": {"name": "p", "labels": {"training.kubeflow.org/replica-index": "0"}}, "spec": {}, "status": status}
        ended = {"phase": "Failed", "finishedAt": when}
        run = {"metadata": {"name": "run", "namespace": "team", "uid": "u1"}, "spec": {"shutdown": ""}, "status": ended}
        job = {"apiVersion": api, "kind": kind, "metadata": metadata, "spec": spec, "status": {"conditions": conditions}}
        yield json.dumps({"job": job, "workflow": run, "pod": pod}).encode()


_REQUIRED = {
    "metadata": {"name", "namespace", "uid", "creationTimestamp"}, "job": {"metadata", "spec", "kind", "apiVersion"},
    "workflow": {"metadata"}, "pod": {"metadata"}, "conditions": {"type", "status"}, "References": {"name", "kind", "uid", "apiVersion"},
}  # fmt: skip
"""What a schema asks for below a key that ends so."""


def fits(value: Any, like: Any, where: str = "") -> bool:
    """Whether a value has the types of another, as a schema would ask; what the schema leaves open may be anything."""
    if where in ("workflow.status", "workflow.spec"):
        return isinstance(value, dict)
    if isinstance(like, dict):
        if not isinstance(value, dict):
            return False
        required = {"job", "workflow", "pod", "pytorchReplicaSpecs", "Worker"}
        for end, names in _REQUIRED.items():
            required |= names if where.endswith(end) else set()
        if (required & like.keys()) - value.keys():
            return False
        free = where.endswith(("labels", "annotations"))
        if free and not all(isinstance(part, str) for part in value.values()):
            return False
        return free or all(fits(part, like[key], f"{where}.{key}".lstrip(".")) for key, part in value.items() if key in like)
    if isinstance(like, list):
        return isinstance(value, list) and all(fits(part, like[0], where) for part in value)
    return type(value) is type(like)


_WATCH = b'{"type": "ADDED", "object": {"metadata": {"name": "a", "resourceVersion": "3"}}}'


_LISTED = b'{"metadata": {"resourceVersion": "3", "continue": ""}, "items": [{"metadata": {"name": "a"}}]}'
_REFUSED = b'{"kind": "Status", "code": 410, "message": "gone", "details": {"retryAfterSeconds": 3}}'


@target("answers of Kubernetes", lambda: [_WATCH, _LISTED, _REFUSED])
def _kubernetes(data: bytes, place: Path) -> None:
    from pipelines.cluster.api import Api, _refusal
    from pipelines.cluster.connection import POD, Cluster

    for status in (403, 500):
        _refusal(status, data, 0.0)
    api = Api.__new__(Api)
    api.server, api.namespace, api.home = "https://api", "team", "team"
    api._streams, api._lock = set(), threading.Lock()
    pages = iter([data] * 3)
    api._open = lambda *_: _Body(next(pages, b'{"metadata": {}}'))  # type: ignore[method-assign]
    api.call = api.once  # type: ignore[method-assign]
    cluster = Cluster(api)
    for ask in (
        lambda: cluster.list(POD),
        lambda: cluster.get(POD, "a"),
        lambda: list(cluster._changes(POD, "team", {}, "1", threading.Event(), None)),
    ):
        with contextlib.suppress(InputError, RunError):
            ask()


@dataclass(eq=False)
class _Body:
    data: bytes

    def read(self) -> bytes:
        return self.data

    def stream(self, size: int) -> Iterator[bytes]:
        yield self.data

    def release_conn(self) -> None:
        """Nothing."""

    def close(self) -> None:
        """Nothing."""


def _kubeflow_answers() -> list[bytes]:
    from tests.pipelines.kubeflow import recordings

    return [recordings.answer(f"{name}/run.v2beta1.http").body for name in ("product-succeeded", "product-failed", "product-training")]


@target("answers of Kubeflow", _kubeflow_answers)
def _kubeflow(data: bytes, place: Path) -> None:
    from pipelines.kubeflow.client import Kubeflow
    from pipelines.kubeflow.endpoint import Endpoint
    from pipelines.kubeflow.follow import RunFollower

    server = Kubeflow(Endpoint(host="http://127.0.0.1:9", ui="http://127.0.0.1:9"), retry_seconds=0)
    server._client.last_response = _Answer()  # type: ignore[assignment]
    answer = type("Answer", (), {"data": data.decode(errors="replace")})()
    server._runs.run_service_get_run = lambda run, **_: server._client.deserialize(answer, "V2beta1Run")
    run = server.run("run")
    follower = RunFollower(server, "run", lambda line: None)
    follower._take = lambda *a, **k: None  # type: ignore[method-assign]
    follower._complete = lambda step: None  # type: ignore[method-assign]
    follower._running.read = lambda step: None  # type: ignore[method-assign]
    follower._followed(run, follower._look(run))


class _Answer:
    def getheader(self, name: str) -> str:
        return "application/json"


@target("log of a step", lambda: [b"links: hello\n{'a': 1}\nI0101 12:00:00 launcher.go:1] x\nexit status 2\n"])
def _steplog(data: bytes, place: Path) -> None:
    from pipelines.kubeflow.steplog import StepLog

    log, text = StepLog(), data.decode(errors="replace")
    for end in (len(text) // 3, len(text) // 2, len(text)):
        log.take(text[:end])
    log.take(text, ended=True)
