"""`withdraw`: a request that was given up no longer shows as missing cells; what is finished, or asked for by others, stays."""

from pathlib import Path

import pytest

from pipelines.__main__ import main
from tests.pipelines.data import commit
from tests.pipelines.planning.test_lanes import _planned
from trainer.storage import exists, layout
from trainer.storage.plans import read_plan


def test_what_a_request_alone_asked_for_goes(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    uri, first, _ = _planned(tmp_path, arms="random,perceptual,permuted")
    _, second, _ = _planned(tmp_path, arms="perceptual,shuffled", seeds="1")
    _, third, _ = _planned(tmp_path, arms="random")
    plan = read_plan(uri)
    assert plan is not None
    (done,) = [entry for entry in plan["cells"] if entry["cell"] == "permuted-seed0"]
    commit(done["contrastive"], done["recipe_hashes"]["contrastive"])

    assert main(["withdraw", "e", "--root", str(tmp_path)]) == 0
    said = capsys.readouterr().out
    assert f"{first}: 1 of 3 cells finished; not random-seed0, perceptual-seed0\n" in said
    assert f"{second}: 0 of 2 cells finished; not perceptual-seed1, shuffled-seed1\n" in said
    assert main(["withdraw", "e", "--root", str(tmp_path), "--request", first]) == 0
    assert capsys.readouterr().out == f"{first} withdrawn; taken from the plan: perceptual-seed0\n"

    left = read_plan(uri)
    assert left is not None
    assert sorted(entry["cell"] for entry in left["cells"]) == ["perceptual-seed1", "permuted-seed0", "random-seed0", "shuffled-seed1"]
    assert left["lanes"].keys() == {second, third}
    assert not exists(layout.request(uri, first))
    assert _planned(tmp_path, arms="random")[1] == third
    planned = read_plan(uri)
    assert planned is not None
    assert {entry["cell"] for entry in planned["cells"]} == {entry["cell"] for entry in left["cells"]}


def test_what_is_not_there_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    assert main(["withdraw", "e", "--root", str(tmp_path)]) == 2
    assert "experiments/e: no plan.json: nothing has been planned here" in capsys.readouterr().err
    _, first, _ = _planned(tmp_path, arms="random")
    assert main(["withdraw", "e", "--root", str(tmp_path), "--request", "0123"]) == 2
    assert f"has no request 0123; it has {first}\n" in capsys.readouterr().err
