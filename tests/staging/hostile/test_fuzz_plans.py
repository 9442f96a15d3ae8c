"""Plans, rows and requests whose bytes were changed: read as something that they may say, or refused in one line.

A checksum is made to fit again, so that the readers see the damage: whoever can write into a store can do that too.
FUZZ multiplies the number of variants, SEED draws others.
"""

import dataclasses
import io
import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipelines.planning.request import merge, read_request, write_request
from pipelines.planning.resolving import resolve
from tests.mutating import mutations
from tests.staging.hostile.test_fuzz import FUZZ, SEED
from trainer.errors import Corrupt, InputError, RunError
from trainer.staging import plans
from trainer.staging.plans import Plan
from trainer.staging.remote.rows import SCHEMA, RemoteRow, as_table, read_plan, read_rows, slice_rows_name, write_rows
from trainer.staging.rows import Reject
from trainer.storage.documents import encode_document

ODD: list[Any] = [None, True, -1, 1.5, "", "x", "\ud800", [], {}, [None], {"a": []}, 1 << 70, "x" * 5000, float("nan")]


def changed(value: Any, choose: random.Random) -> Any:
    """Plain data with one value somewhere in it replaced, left out or doubled."""
    if not isinstance(value, dict | list) or not value or choose.random() < 0.15:
        return choose.choice(ODD)
    if isinstance(value, list):
        place = choose.randrange(len(value))
        return [*value[:place], changed(value[place], choose), *value[place + 1 :]]
    key = choose.choice(sorted(value))
    kept = {name: one for name, one in value.items() if name != key}
    return kept if choose.random() < 0.2 else {**kept, key: changed(value[key], choose)}


def plan_of(rows: int) -> Plan:
    return Plan(
        kind="pairs", name="x-pairs", source={"uri": "/x", "fingerprint": "f", "remote": 1, "images": "", "classes": ["a"]},
        options={"image_policy": "original", "rules": 2}, shard_samples=2, splits=["train"], rows_read=rows, columns="pairs",
        lost={"gone": 1}, bad={"gone": 1}, examples={"gone": "x: y"},
    )  # fmt: skip


def test_plans(tmp_path: Path) -> None:
    """A document of which one value is another, under a checksum that fits."""
    folder = str(tmp_path)
    plans.write_plan(folder, plan_of(3), [Reject("x", "gone", "y")])
    path = tmp_path / plans.PLAN
    assert read_plan(folder).rows_read == 3
    _change_values(path, lambda: read_plan(folder))


def _change_values(path: Path, read: Callable[[], object]) -> None:
    whole = json.loads(path.read_bytes())
    for seed in range(200 * FUZZ):
        value = changed({key: one for key, one in whole.items() if key != "sha256"}, random.Random(SEED + seed))
        if not isinstance(value, dict):
            continue
        try:
            path.write_bytes(encode_document(value))
        except (ValueError, TypeError):
            continue
        _only_refused(read, seed, value)


def _only_refused(read: Callable[[], object], seed: int, value: object) -> None:
    said = ""
    try:
        read()
    except (InputError, RunError) as error:
        said = str(error)
    except Exception as error:
        raise AssertionError(f"seed {seed}: {str(value)[:300]}") from error
    assert "\n" not in said


@pytest.mark.parametrize("change", [{"splits": ["dev"]}, {"splits": [1]}, {"shard_samples": 0}, {"options": {"rules": "2"}}])
def test_a_plan_that_says_what_cannot_be_is_refused(tmp_path: Path, change: dict[str, Any]) -> None:
    plans.write_plan(str(tmp_path), dataclasses.replace(plan_of(3), **change))
    with pytest.raises(Corrupt, match=r"plan\.json: contains an unknown split, number of samples or version of the rules"):
        read_plan(str(tmp_path))


def test_a_plan_of_newer_rules_is_refused(tmp_path: Path) -> None:
    plans.write_plan(str(tmp_path), dataclasses.replace(plan_of(3), options={"rules": 99}))
    with pytest.raises(InputError, match="made by version 99 of the rules, this firstsight only knows versions up to 2"):
        read_plan(str(tmp_path))


def test_rows_of_a_slice(tmp_path: Path) -> None:
    """Of a plan of format 1, which has no checksum of them."""
    folder, plan = str(tmp_path), dataclasses.replace(plan_of(2), format_version=1)
    rows = [RemoteRow(key=f"k{n}", images=[f"https://x/{n}.jpg"], texts=["a", None], label="l", facts={"id": str(n)}) for n in range(2)]
    write_rows(folder, 0, as_table(rows))
    path = tmp_path / slice_rows_name(0)
    whole = path.read_bytes()
    assert read_rows(folder, plan, 0) == rows
    for number, data in enumerate(mutations(whole, SEED, 150 * FUZZ)):
        path.write_bytes(data)
        _only_refused(lambda: read_rows(folder, plan, 0), number, data)


@pytest.mark.parametrize(
    "change",
    [
        {"key": None}, {"images": None}, {"images": []}, {"images": [None]}, {"facts": "["}, {"facts": "[]"}, {"facts": "{" * 9000},
        {"facts": '{"a": ' + "9" * 5000 + "}"},
    ],
)  # fmt: skip
def test_a_row_that_cannot_be_is_refused_by_its_number(tmp_path: Path, change: dict[str, Any]) -> None:
    row = {"key": "k", "images": ["x"], "texts": None, "label": None, "facts": None}
    path = tmp_path / slice_rows_name(0)
    path.parent.mkdir()
    for records, ok in (([row, row], True), ([row, {**row, **change}], False)):
        stream = io.BytesIO()
        pq.write_table(pa.Table.from_pylist(records, schema=SCHEMA), stream)
        path.write_bytes(stream.getvalue())
        plan = dataclasses.replace(plan_of(2), format_version=1)
        if ok:
            assert [row.images for row in read_rows(str(tmp_path), plan, 0)] == [["x"], ["x"]]
        else:
            with pytest.raises(Corrupt, match=r"slice-00000\.parquet: not the rows of a slice: .*row 1: "):
                read_rows(str(tmp_path), plan, 0)


def test_requests(tmp_path: Path) -> None:
    """Stored ones: one value another, and bytes changed."""
    uri = write_request(resolve(merge("", {"recipe": "smoke", "arms": "random,perceptual", "seeds": "0,1"})), str(tmp_path))
    path = Path(uri)
    whole = path.read_bytes()
    assert read_request(uri).recipe == "smoke"
    _change_values(path, lambda: read_request(uri))
    for number, data in enumerate(mutations(whole, SEED, 60 * FUZZ)):
        path.write_bytes(data)
        _only_refused(lambda: read_request(uri), number, data)
