"""Every object that the report reads, damaged alone and in pairs: numbers are the right ones or left out, and what is damaged is named."""

import json
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.damage import KINDS, damage, files, restore
from tests.report.test_read import CATEGORIES, change, change_figures, path
from trainer.__main__ import main
from trainer.errors import Corrupt, InputError
from trainer.report import pictures
from trainer.report.read import read_experiment
from trainer.report.results import FORMAT_VERSION, build
from trainer.storage import read_json
from trainer.storage.checked import NAME as CHECKED
from trainer.storage.documents import read_document
from trainer.storage.plans import read_plan, write_plan

Figures = dict[tuple[Any, ...], Any]
KEYS = ("arm", "against", "seed", "stage", "step", "epoch", "endpoint", "label", "dataset", "task", "metric", "uri", "what")
"""By which a row of results.json is known; everything else in it is figures."""


def figures_of(uri: str) -> tuple[Figures, list[str]]:
    """Every figure of results.json by section, row and name, and what is left out."""
    experiment = read_experiment(uri)
    document, scores = build(experiment, [])
    subject = document["answer"]["subject"]
    examples = pictures.retrieval_examples(scores, subject), pictures.triplet_examples(scores, subject)
    found: Figures = {}
    for example in examples:
        for number, row in enumerate((example.get("queries") or example["triplets"]) if example else []):
            arms = row.pop("arms")
            found["examples", example["dataset"], number] = json.dumps(row)
            found.update({("examples", example["dataset"], number, arm["arm"]): json.dumps(arm) for arm in arms})
    for section in ("scores", "contrasts", "sets", "metrics", "two_afc", "through_time", "stages", "efficiency", "lineage", "data"):
        for row in document[section]:
            row_key = (section, *(str(row[key]) for key in KEYS if key in row))
            found.update({(*row_key, name): json.dumps(value) for name, value in row.items() if name not in KEYS})
    lost = [f"{row['what']}, {row['why']}" for row in experiment.excluded if not row["damaged"]]
    return found, [*experiment.damaged, *lost]


@pytest.fixture
def whole(fresh: str) -> tuple[str, Figures]:
    """An experiment with a checked plan, and its figures."""
    plan = read_plan(fresh)
    assert plan is not None
    write_plan(fresh, plan)
    found, damaged = figures_of(fresh)
    assert not damaged
    return fresh, found


def check(uri: str, expected: Figures, what: str) -> bool:
    """Whether the report named something; every figure that it still gives must be as expected."""
    try:
        found, damaged = figures_of(uri)
    except (InputError, Corrupt) as error:  # without a plan there is no experiment
        return "plan.json" in str(error)
    drawn = {key[:2] for key in expected}  # without its test split the triplets that are shown are of another
    known = {key: value for key, value in found.items() if key[0] != "examples" or key[:2] in drawn}
    wrong = {key: value for key, value in known.items() if value not in ("null", "[]", "{}", '""', expected.get(key))}
    assert not {key for key in wrong if key[-1] not in ("p_holm", "finding")}, what  # these depend on which rows there are
    assert bool(damaged) or found == expected, what
    return bool(damaged)


@pytest.mark.parametrize("stride", [2, pytest.param(1, marks=pytest.mark.campaign)])
def test_every_object_damaged_alone(whole: tuple[str, Figures], stride: int) -> None:
    """By turns missing, cut short and with a flipped bit: named, unless no figure comes from it."""
    uri, expected = whole
    root = Path(uri).parents[1]
    kept = {file: file.read_bytes() for file in files(root) if file.name != CHECKED}
    named, tried = set(), list(enumerate(kept))[::stride]
    for number, file in tried:
        damage(file, how := KINDS[number % 3], number)
        if check(uri, expected, f"{file} {how}"):
            named.add(file.relative_to(root).as_posix())
        restore(root, kept)
    unnamed = {file.relative_to(root).as_posix() for _, file in tried} - named
    # of items and shards only those are read that something is paired or drawn from, and a copy only where what it is of is damaged
    assert all(name.endswith((".items.npz", ".tar", ".index", "final/config.yaml")) for name in unnamed), unnamed
    assert sum(name.endswith(".items.npz") for name in named) >= 6 // stride


@pytest.mark.parametrize("seeds", [range(8), pytest.param(range(8, 25), marks=pytest.mark.campaign)])
def test_pairs_of_objects_damaged_together(whole: tuple[str, Figures], seeds: range) -> None:
    """No two damages make up for each other."""
    uri, expected = whole
    root = Path(uri).parents[1]
    kept = {file: file.read_bytes() for file in files(root) if file.name != CHECKED}
    for seed in seeds:
        choose = random.Random(seed)
        pair = choose.sample(list(kept), 2)
        for file in pair:
            damage(file, choose.choice(KINDS), seed)
        check(uri, expected, f"{pair}")
        restore(root, kept)


def lines_of(uri: str, capsys: pytest.CaptureFixture[str]) -> tuple[int, str, dict[str, Any]]:
    """Exit code of the command, what it printed last, and results.json."""
    capsys.readouterr()
    code = main(["report", "--experiment", uri])
    printed = capsys.readouterr()
    results = read_document(f"{uri}/report/results.json", "results", FORMAT_VERSION)
    assert results is not None
    return code, (printed.err or printed.out).splitlines()[-1], results


@pytest.mark.parametrize("name", ["progress.jsonl", "lineage.json", "config.yaml"])
def test_a_record_that_is_damaged_has_a_copy(whole: tuple[str, Figures], capsys: pytest.CaptureFixture[str], name: str) -> None:
    """The copy in final/ counts, and the command says what is damaged; without either copy the losses or the cell are left out by name."""
    uri, expected = whole
    damage(path(uri, "random-seed0", "contrastive", name), "flipped", 1)
    code, last, results = lines_of(uri, capsys)
    assert (code, figures_of(uri)[0]) == (1, expected)
    assert f"random-seed0/contrastive/{name}: " in last
    assert any(row["what"].endswith(name) and row["damaged"] for row in results["excluded"])

    damage(path(uri, "random-seed0", "contrastive", "final", name), "missing", 1)
    code, last, results = lines_of(uri, capsys)
    assert code == 1
    if name != "progress.jsonl":
        assert [row["cell"] for row in results["missing"] if row["damaged"]] == ["random-seed0"]
    else:
        assert [row["final_loss"] is None for row in results["stages"] if row["arm"] == "random"] == [True]
        assert any("shown without its losses" in row["why"] for row in results["excluded"])
    assert any(name in note for note in results["summary"]["notes"])


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (None, "missing"),
        ("", "it ends at step 0, but the stage ended at 100"),
        ('{"step": 1, "loss": 9}\n', "it ends at step 1"),
        ('{"step": 1, "loss": 9}\n{"step": 100, "lo', "line 2 is not a record"),
        ('{"step": 100}\n', "it ends at step 100"),
        ("\x00\xff", "line 1 is not a record"),
        ('{"step": true, "loss": 1}\n', "line 1 is not a record"),
    ],
)
def test_a_course_that_no_seal_vouches_for_must_reach_the_last_step(older: str, text: str | None, words: str) -> None:
    """Older seals say nothing of progress.jsonl: losses are never null without a word."""
    file = path(older, "random-seed0", "contrastive", "progress.jsonl")
    file.unlink() if text is None else file.write_bytes(text.encode("latin-1"))
    _, damaged = figures_of(older)
    assert any(line.startswith("random-seed0/contrastive/progress.jsonl: ") and words in line for line in damaged)


@pytest.mark.parametrize("value", ["[]", '"x"', "{", '{"world_size": "two"}', '{"start": []}', '{"seconds": "long"}', "\x00"])
def test_a_lineage_that_is_none_loses_the_cell_by_name(older: str, value: str) -> None:
    """Whatever lies there instead."""
    path(older, "random-seed0", "contrastive", "lineage.json").write_text(value)
    experiment = read_experiment(older)
    assert [row["cell"] for row in experiment.missing if row["damaged"]] == ["random-seed0"]
    assert "lineage.json" in experiment.damaged[0]


def test_a_flipped_hash_in_an_older_seal_does_not_reach_the_results(older: str) -> None:
    """It has no checksum of its own, so its files are compared."""
    file = path(older, "random-seed0", "contrastive", "final", "COMMITTED.json")
    change(file, files={"open_clip_model.safetensors": {"size": 64, "sha256": "0" * 64}})
    assert any("open_clip_model.safetensors: " in line for line in read_experiment(older).damaged)


@pytest.mark.parametrize("how", ["seal of the tower", "seal with figures", "never finished"])
def test_a_lost_seal_is_told_from_a_stage_that_never_ran(whole: tuple[str, Figures], how: str) -> None:
    """What came after the stage gives it away."""
    uri, _ = whole
    cell = path(uri, "perceptual-seed0")
    seal = next(path(uri, "towers").rglob("COMMITTED.json")) if how == "seal of the tower" else cell / "contrastive/final/COMMITTED.json"
    seal.unlink()
    if how == "never finished":
        for file in files(cell / "evaluation"):
            file.unlink()
    (row,) = read_experiment(uri).missing
    assert row["damaged"] == (how != "never finished")
    assert ("missing, although" in row["why"]) == row["damaged"]


def swapped(uri: str) -> Iterator[str]:
    """Whole figures in a place that is not theirs; what the report says of each."""
    folder = path(uri, "random-seed0", "evaluation", "contrastive-final")
    val, test = (folder / f"demo-triplets-{split}_2afc.json" for split in ("val", "test"))
    test.write_bytes(val.read_bytes())
    yield "copy of a file that belongs at contrastive-final/demo-triplets-val_2afc.json"
    other = path(uri, "perceptual-seed0", "evaluation", "contrastive-final", CATEGORIES)
    (folder / CATEGORIES).write_bytes(other.read_bytes())
    yield "it measures perceptual seed 0, which is not this cell"
    change_figures(path(uri, "random-seed0", "evaluation", "untrained-final", CATEGORIES), firstsight__recipe_hash="0" * 64)
    yield "recipe 000000000000 is not that of the untrained model"


def test_whole_objects_in_the_wrong_place_are_named(whole: tuple[str, Figures]) -> None:
    """A figure of another split, another cell, another model."""
    uri, _ = whole
    for words in swapped(uri):
        assert any(words in line for line in read_experiment(uri).damaged), words


def test_items_of_another_version_are_not_paired(whole: tuple[str, Figures]) -> None:
    """Whole, of the same items and with the same sum, but not those that the figures name."""
    uri, _ = whole
    file = path(uri, "random-seed0", "evaluation", "contrastive-final", CATEGORIES.replace(".json", ".items.npz"))
    arrays = dict(np.load(file))
    np.savez_compressed(file, **{**arrays, "correct": arrays["correct"][::-1]})
    _, said = figures_of(uri)
    assert any("differ from those recorded" in line and CATEGORIES.removesuffix(".json") in line for line in said)


def test_figures_that_were_never_measured_are_named_and_no_damage(whole: tuple[str, Figures]) -> None:
    """Of both arms, so that no other cell gives them away."""
    uri, _ = whole
    for arm in ("random", "perceptual"):
        path(uri, f"{arm}-seed0", "evaluation", "contrastive-final", CATEGORIES).unlink()
    experiment = read_experiment(uri)
    assert not experiment.damaged
    assert sum(CATEGORIES in row["what"] and "not measured, or lost" in row["why"] for row in experiment.excluded) == 2


def test_figures_by_other_class_names_are_not_compared(whole: tuple[str, Figures]) -> None:
    """The same pictures asked for by other words give another figure."""
    uri, _ = whole
    change_figures(path(uri, "random-seed0", "evaluation", "contrastive-final", CATEGORIES), firstsight__prompts="f" * 64)
    assert any("class names and templates" in row["why"] for row in read_experiment(uri).excluded)


PAGE = ("index.html", "results.json", "results.csv", "report.md")


def test_results_are_a_document(whole: tuple[str, Figures], capsys: pytest.CaptureFixture[str]) -> None:
    """With a checksum that others can compute; the report's own damaged outputs are rebuilt."""
    uri, _ = whole
    assert lines_of(uri, capsys)[0] == 0
    before = {file: file.read_bytes() for file in files(path(uri, "report")) if file.name in PAGE and file.parent.name == "report"}
    for number, file in enumerate(before):
        damage(file, KINDS[number % 3], number)
    assert lines_of(uri, capsys)[0] == 0
    assert {file: file.read_bytes() for file in files(path(uri, "report")) if file.name in PAGE and file.parent.name == "report"} == before
    assert read_json(f"{uri}/report/results.json")["sha256"]
