"""Targets: what firstsight itself wrote into a store, where others may have changed it."""

import contextlib
import dataclasses
import struct
from pathlib import Path
from typing import Any

import google_crc32c

from tests.fuzz.registry import as_file, found, target, with_checksum
from tests.storage.test_index import SMALL
from trainer.errors import InputError, RunError
from trainer.storage.index import encode_index


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
