"""A finished experiment one of whose objects is damaged: the same run makes it whole, and the next one finds all done."""

import itertools
import json
import re
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from pipelines.steps import page
from pipelines.steps.running import failures
from tests.damage import KINDS, damage
from tests.pipelines.whole import Whole
from trainer.storage import layout, read_json
from trainer.storage.documents import write_document
from trainer.storage.failures import write_failure
from trainer.storage.plans import read_plan

STAGE = "random-seed0/contrastive"
OBJECTS = (
    "plan.json",
    "requests/*.json",
    "staging/pairs/sealed.json",
    "staging/pairs/result.json",
    f"{STAGE}/config.yaml",
    "towers/*/config.yaml",
    f"{STAGE}/final/COMMITTED.json",
    f"{STAGE}/final/model.bin",
    "towers/*/final/model.bin",
    "posthoc-seed0/posthoc/final/COMMITTED.json",
    "random-seed0/evaluation/config.yaml",
    "report/index.html",
    "report/results.json",
    "report/made.json",
    "report/generation-*/results.json",
)


def damages() -> Iterator[object]:
    """Every object in every way; in plain tests every second one, and they take turns in the way."""
    for number, (name, kind) in enumerate(itertools.product(OBJECTS, KINDS)):
        turn = number // len(KINDS)
        plain = turn % 2 == 0 and number % len(KINDS) == turn % len(KINDS)
        yield pytest.param(name, kind, marks=() if plain else pytest.mark.campaign)


@pytest.mark.parametrize(("name", "kind"), list(damages()))
def test_one_damaged_object_is_made_whole_by_the_same_run(whole: Whole, name: str, kind: str):
    whole.run()
    (path,) = whole.folder.glob(name)
    if path.name != "made.json":
        before = path.read_bytes()
    damage(path, kind)

    assert whole.is_finished() == (path.name == "result.json")  # nothing is decided by the result of a job that was recorded
    whole.run()

    if path.name not in ("made.json", "result.json") and "generation-" not in str(path):  # a rebuilt page has its own folder
        assert path.read_bytes() == before
    assert whole.is_finished()


def test_empty_folders_in_the_places_of_objects_are_made_whole_by_the_same_run(whole: Whole):
    """On files; each counts as missing. The pretended trainer's own files are left out: it writes them past the store."""
    whole.run()
    paths = [next(whole.folder.glob(name)) for name in OBJECTS if not re.search(r"report/|result\.json|model\.bin", name)]
    before = {path: path.read_bytes() for path in paths}
    for path in paths:
        path.unlink()
        path.mkdir()
    whole.run()

    assert {path: path.read_bytes() for path in paths} == before
    assert whole.is_finished()


def test_a_finished_experiment_takes_no_job(whole: Whole):
    """Whether step by step, or at one look."""
    assert not whole.is_finished()
    assert whole.run()
    assert whole.is_finished()
    assert whole.run() == []
    assert whole.is_finished()


@pytest.mark.parametrize(
    "name", ["plan.json", "requests/*.json", "staging/pairs/sealed.json", f"{STAGE}/config.yaml", f"{STAGE}/final/model.bin"]
)
def test_the_look_of_each_step_finds_damage_though_the_page_is_of_today(whole: Whole, name: str):
    """The page's record, which would tell of any change, is made to say that nothing changed."""
    whole.run()
    (path,) = whole.folder.glob(name)
    damage(path, "flipped")
    made = read_json(str(whole.folder / "report/made.json"))
    write_document(str(whole.folder / "report/made.json"), {**made, "inputs": page.inputs_of(str(whole.folder))})

    assert not whole.is_finished()


def test_what_is_damaged_is_said_with_what_is_done(whole: Whole, capsys: pytest.CaptureFixture[str]):
    whole.run()
    damage(whole.folder / "plan.json", "flipped")
    damage(whole.folder / STAGE / "config.yaml", "truncated")
    damage(whole.folder / "posthoc-seed0/posthoc/final/model.bin", "flipped")
    capsys.readouterr()
    whole.run()
    said = capsys.readouterr().out

    assert re.search(rf"plan: {whole.folder}/plan\.json: (its checksum|not JSON).*; it is rewritten from the request", said)
    assert re.search(rf"plan: {whole.folder}/{STAGE}/config\.yaml: .*; rewritten as planned", said)
    assert re.search(rf"posthoc posthoc-seed0: {whole.folder}/posthoc-seed0/posthoc/final/model\.bin: .*; rebuilding it", said)


@pytest.mark.parametrize("kind", [*KINDS, "older"])
def test_a_damaged_plan_keeps_the_cells_of_earlier_runs(whole: Whole, kind: str):
    """Their stages' own configurations give them back, or the page would lack an arm without a word."""
    whole.run("random,perceptual")
    first = (whole.folder / "plan.json").read_bytes()
    whole.run("posthoc,shuffled")
    planned = read_plan(str(whole.folder))
    if kind == "older":
        (whole.folder / "plan.json").write_bytes(first)
    else:
        damage(whole.folder / "plan.json", kind)

    whole.run("permuted")

    found, cells = read_plan(str(whole.folder)), lambda plan: {cell["cell"]: cell for cell in plan["cells"]}
    assert planned is not None
    assert found is not None
    assert {name: cell for name, cell in cells(found).items() if name != "permuted-seed0"} == cells(planned)


def test_a_damaged_plan_beside_other_data_is_refused(whole: Whole, capsys: pytest.CaptureFixture[str]):
    """The configurations of the stages still say what the experiment was trained on."""
    whole.run("random")
    (whole.folder / "plan.json").unlink()
    shutil.rmtree(whole.root / "datasets/demo-pairs")
    shutil.rmtree(whole.folder / "staging")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("tests.pipelines.fake_trainer.seal", _seal_others)
        with pytest.raises(SystemExit) as ended:
            whole.run("permuted")

    assert ended.value.code == 2
    assert "(cell random-seed0) was planned with a different recipe or different data: pairs: " in capsys.readouterr().err


def _seal_others(root: str, kind: str, **given: str) -> str:
    from tests.pipelines.data import seal

    return seal(root, kind, **{**given, **({"sha256": "1" * 64} if kind == "pairs" else {})})  # type: ignore[arg-type]


@pytest.mark.parametrize("kind", KINDS)
def test_a_damaged_manifest_is_staged_again(whole: Whole, kind: str):
    whole.run()
    (path,) = whole.root.glob("datasets/demo-pairs/*/manifest.json")
    before = path.read_bytes()
    damage(path, kind)

    assert not whole.is_finished()
    jobs = whole.run()

    assert "stage pairs" in jobs
    assert path.read_bytes() == before


def test_a_failed_step_leaves_its_cause_last_and_in_the_record(whole: Whole, capsys: pytest.CaptureFixture[str]):
    """Whatever failed: here the store of a stage that is looked at, before any job starts."""
    whole.run("random")
    seal = whole.folder / STAGE / "final/COMMITTED.json"
    seal.unlink()
    seal.mkdir()
    (seal / "somebody's").touch()
    with pytest.raises(SystemExit) as ended:
        whole.run("random")
    failure = read_json(layout.failure(str(seal.parents[1])))

    assert ended.value.code in (1, 2)
    assert capsys.readouterr().err.splitlines()[-1] == f"contrastive: contrastive random-seed0: {failure['line']}"
    assert failure["exit_code"] == ended.value.code


def test_the_report_s_failure_is_said_before_its_cause(tmp_path: Path):
    """The last line is what a person reads: a report that lacks something fails because something else did."""
    uri = str(tmp_path)
    for place, stage in ((uri, "plan"), (layout.report(uri), "report"), (f"{uri}/staging/pairs", "stage pairs")):
        write_failure(place, stage=stage, exit_code=1, line="failed")

    assert [failure["stage"] for failure in failures(uri, [], 0.0)] == ["report", "stage pairs", "plan"]


def test_an_error_that_nobody_foresaw_is_recorded_with_its_type(whole: Whole, capsys: pytest.CaptureFixture[str]):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("pipelines.steps.cells.look", lambda *_: {}["x"])
        with pytest.raises(SystemExit) as ended:
            whole.run("random")

    assert ended.value.code == 1
    assert capsys.readouterr().err.splitlines()[-1] == "contrastive: contrastive random-seed0: KeyError: 'x'"
    assert json.loads((whole.folder / STAGE / "failure.json").read_text())["line"] == "KeyError: 'x'"


@pytest.mark.parametrize("name", ["report/made.json", "staging/pairs/sealed.json"])
def test_a_record_that_lacks_what_it_should_say_is_written_anew(whole: Whole, name: str):
    """Its checksum is right: somebody wrote it so."""
    whole.run("random")
    uri = str(whole.folder / name)
    before = json.loads((whole.folder / name).read_text())
    for key in before.keys() - {"format_version", "sha256"}:
        for value in ({}, [3], None):
            write_document(uri, {**before, key: value})
            assert not whole.is_finished("random")
        if before[key]:
            write_document(uri, {other: value for other, value in before.items() if other != key})
            assert not whole.is_finished("random")
    whole.run("random")

    assert whole.is_finished("random")


@pytest.mark.parametrize("kind", KINDS)
def test_a_run_s_damaged_record_is_written_anew_by_its_first_step(whole: Whole, kind: str):
    whole.run("random")
    path = Path(layout.kubeflow_run(str(whole.root), "a-run"))
    before = path.read_bytes()
    damage(path, kind)
    whole.run("random")

    assert path.read_bytes() == before
