"""Which cells a lane has, how many of them run at once, and whose the stages are that several lanes need."""

from pathlib import Path
from typing import Any

import pytest

from pipelines.planning import writing
from pipelines.planning.lanes import MOST, deal, planned, read_lanes
from pipelines.steps.planning import make_plan
from tests.pipelines.data import ask, commit, seal
from trainer.errors import Corrupt, InputError
from trainer.storage import layout
from trainer.storage.plans import read_plan, write_plan
from trainer.storage.recipes import write_config_file


@pytest.mark.parametrize(
    ("count", "parallel", "expected"),
    [
        (1, 1, [(1, 1)]),
        (4, 1, [(1, 4)]),
        (4, 2, [(1, 2), (1, 2)]),
        (4, 3, [(1, 2), (1, 1), (1, 1)]),
        (7, 5, [(2, 3), (2, 2), (1, 2)]),
        (2, 9, [(1, 1), (1, 1)]),
        (40, 0, [(14, 14), (13, 13), (13, 13)]),
        (40, 1, [(1, 40)]),
    ],
)
def test_cells_and_slots_are_dealt_evenly(count: int, parallel: int, expected: list[tuple[int, int]]):
    """As (slots, cells) of each lane; a lane never has more slots than cells."""
    cells = [f"random-seed{number}" for number in range(count)]
    lanes = deal(cells, parallel)

    assert [(lane.slots, len(lane.cells)) for lane in lanes] == expected
    assert sorted(cell for lane in lanes for cell in lane.cells) == sorted(cells)
    assert len(lanes) <= MOST
    assert [lane.name for lane in lanes] == [f"lane-{number + 1}-of-{len(lanes)}" for number in range(len(lanes))]


def test_cells_are_dealt_round_robin_in_the_order_of_the_plan():
    assert [lane.cells for lane in deal(["a", "b", "c", "d", "e"], 2)] == [("a", "c", "e"), ("b", "d")]


def test_a_shared_stage_belongs_to_the_first_lane_that_needs_it():
    """Whichever of the cells comes first: a lane waits for earlier lanes only."""
    entries: list[dict[str, Any]] = [
        {"cell": "a", "perceptual": "", "contrastive": "c/a", "posthoc": ""},
        {"cell": "b", "perceptual": "t/1", "contrastive": "c/b", "posthoc": ""},
        {"cell": "c", "perceptual": "t/1", "contrastive": "c/c", "posthoc": ""},
        {"cell": "d", "perceptual": "", "contrastive": "c/b", "posthoc": "p/d"},
    ]
    lanes = planned(deal(["a", "b", "c", "d"], 3), entries)

    assert [lane["cells"] for lane in lanes] == [["a", "d"], ["b"], ["c"]]
    assert [lane["owns"] for lane in lanes] == [["c/b"], ["t/1"], []]


def _planned(root: Path, **given: str) -> tuple[str, str, list[str]]:
    pairs, triplets = seal(str(root), "pairs"), seal(str(root), "triplets", judge="people")
    request = ask(str(root), experiment="e", backend="pytorchjob", **given)
    names, _ = make_plan(request=request, pairs=pairs, triplets=triplets)
    return f"{root}/experiments/e", layout.id_of_request(request), names


def test_the_plan_has_the_lanes_of_each_request(tmp_path: Path):
    """A second request leaves those of the first, whose run may still go on, while all its cells are planned."""
    uri, first, names = _planned(tmp_path, arms="random,perceptual,posthoc", parallel_cells="2")
    assert names == ["lane-1-of-2", "lane-2-of-2"]
    found = read_lanes(uri, first)
    assert [lane.cells for lane in found.lanes] == [("random-seed0", "posthoc-seed0"), ("perceptual-seed0",)]
    _, second, _ = _planned(tmp_path, arms="random,perceptual,posthoc", parallel_cells="3")

    assert len(read_lanes(uri, second).lanes) == 3
    assert read_lanes(uri, first) == found


def _cells(uri: str) -> list[str]:
    plan = read_plan(uri)
    assert plan is not None
    return [entry["cell"] for entry in plan["cells"]]


def test_another_request_adds_its_cells_and_takes_none_from_the_first(tmp_path: Path):
    """Neither of them has finished anything; the second names one of the first's cells too."""
    uri, first, _ = _planned(tmp_path, arms="random,perceptual", parallel_cells="2")
    found = read_lanes(uri, first)

    _, second, _ = _planned(tmp_path, arms="perceptual,shuffled", seeds="0,1")

    assert read_lanes(uri, first) == found
    assert [lane.cells for lane in read_lanes(uri, second).lanes] == [
        ("perceptual-seed0", "shuffled-seed0", "perceptual-seed1", "shuffled-seed1")
    ]
    assert sorted(_cells(uri)) == ["perceptual-seed0", "perceptual-seed1", "random-seed0", "shuffled-seed0", "shuffled-seed1"]
    _planned(tmp_path, arms="random,perceptual", parallel_cells="2")  # the first again: nothing of the second goes
    assert len(_cells(uri)) == 5


def test_a_request_that_was_deleted_takes_what_it_alone_asked_for_and_never_finished(tmp_path: Path):
    uri, first, _ = _planned(tmp_path, arms="random,perceptual", seeds="0,1")
    entry = next(entry for entry in (read_plan(uri) or {})["cells"] if entry["cell"] == "random-seed1")
    commit(entry["contrastive"], entry["recipe_hashes"]["contrastive"])
    Path(layout.request(uri, first)).unlink()

    _planned(tmp_path, arms="perceptual")

    assert _cells(uri) == ["random-seed1", "perceptual-seed0"]
    with pytest.raises(InputError, match="has no lanes for request"):
        read_lanes(uri, first)


def test_a_plan_that_another_run_writes_meanwhile_is_added_to(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Two runs of two requests plan at once; each read a plan without the other's cells."""
    written: list[str] = []

    def interfere(*arguments: Any) -> None:
        if not written:
            written.append("other")
            _planned(tmp_path, arms="shuffled")

    monkeypatch.setattr(writing, "write_config_file", lambda *arguments: (write_config_file(*arguments), interfere())[0])

    uri, first, _ = _planned(tmp_path, arms="random")

    assert written
    assert sorted(_cells(uri)) == ["random-seed0", "shuffled-seed0"]
    assert [lane.cells for lane in read_lanes(uri, first).lanes] == [("random-seed0",)]


def test_on_this_machine_there_is_one_lane_with_one_slot(tmp_path: Path):
    pairs, triplets = seal(str(tmp_path), "pairs"), seal(str(tmp_path), "triplets", judge="people")
    request = ask(str(tmp_path), experiment="e", backend="local", arms="random,perceptual", parallel_cells="3")

    names, _ = make_plan(request=request, pairs=pairs, triplets=triplets)

    assert names == ["lane-1-of-1"]
    assert [lane.slots for lane in read_lanes(f"{tmp_path}/experiments/e", layout.id_of_request(request)).lanes] == [1]


def test_a_request_that_the_plan_does_not_know_is_refused_with_what_to_do(tmp_path: Path):
    """As an older version's plan has no lanes at all; its cells are read."""
    uri, request, _ = _planned(tmp_path, arms="random")
    plan = read_plan(uri)
    assert plan is not None
    with pytest.raises(InputError, match=r"has no lanes for request 0123: start the run again"):
        read_lanes(uri, "0123")
    with pytest.raises(InputError, match=r"there is no lane 'lane-2-of-9'; the lanes are lane-1-of-1"):
        read_lanes(uri, request).find("lane-2-of-9")
    del plan["lanes"]
    write_plan(uri, plan)
    read = read_plan(uri)
    assert read is not None
    assert [entry["cell"] for entry in read["cells"]] == ["random-seed0"]


@pytest.mark.parametrize("lanes", [[], {"x": {}}, {"x": [{"lane": "l"}]}, {"x": [{"lane": 1, "slots": 1, "cells": [], "owns": []}]}])
def test_lanes_that_are_none_are_named(tmp_path: Path, lanes: Any):
    uri, _, _ = _planned(tmp_path, arms="random")
    plan = read_plan(uri)
    assert plan is not None
    write_plan(uri, {**plan, "lanes": lanes})
    with pytest.raises(Corrupt, match="no valid lanes"):
        read_plan(uri)
