"""The field's own evaluator, clip-benchmark from PyPI, counts what we count: on our final model and our staged sets."""

import csv
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from tests.evaluation import build
from tests.reference import run_reference
from trainer.configs import dump_yaml, load_recipe
from trainer.storage.manifest import require_manifest

CLIP_BENCHMARK = """
import json, sys
from clip_benchmark.cli import main
for arguments in json.loads(sys.argv[1]):
    sys.argv = ["clip_benchmark", *arguments]
    main()
"""

REPOSITORY = Path(__file__).parents[2]
pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]


@pytest.fixture(scope="module")
def measured(tmp_path_factory):
    """An experiment's cell, its model trained in both stages: on the demo's two sets, JPEGs of three classes, and a multi-label set."""
    root = tmp_path_factory.mktemp("peers")
    further = [build.classification_set(str(root), "jpegs", tuple(k * k % 3 for k in range(100)), "jpg"), build.multilabel_set(str(root))]
    recipe = load_recipe("smoke", ["staging.demo_side=48", "contrastive.epochs=4"])
    (root / "recipe.yaml").write_text(dump_yaml(recipe))
    command = [sys.executable, "-m", "pipelines", "run", "--root", root, "--experiment", "peers", "--recipe", root / "recipe.yaml"]
    sets_argument = ",".join(uri for uri, _ in further)
    done = subprocess.run(
        [*command, "--arms", "perceptual", "--eval-sets", sets_argument], cwd=REPOSITORY, check=False, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout + done.stderr
    experiment = root / "experiments" / "peers"
    plan = json.loads((experiment / "plan.json").read_text())
    sets = {entry["name"]: f"{root}/{entry['uri']}" for entry in require_manifest(plan["pairs"]["uri"]).evaluation}
    sets |= {manifest.name: uri for uri, manifest in further}
    return experiment / "perceptual-seed0", sets


@pytest.fixture(scope="module")
def theirs(measured):
    """Metrics of clip-benchmark by set, float32 and R@1, 5, 10, and its table of our results: one process, its imports take long."""
    cell, sets = measured
    place = cell / "theirs"
    (place / "sets").mkdir(parents=True)
    for name, uri in sets.items():
        (place / "sets" / name).symlink_to(uri)
    retrieval = ["demo-retrieval"]
    commands = [
        [
            "eval", "--dataset", *(f"wds/{name}" for name in names), "--dataset_root", f"{place}/sets/{{dataset}}", "--task", task,
            "--model", f"local-dir:{cell}/contrastive/final", "--pretrained", "", "--no_amp", "--recall_k", "1", "5", "10",
            "--num_workers", "0", "--output", f"{place}/{{dataset}}.json",
        ]
        for task, names in (("zeroshot_classification", sorted(sets.keys() - set(retrieval))), ("zeroshot_retrieval", retrieval))
    ]  # fmt: skip
    commands.append(["build", str(cell / "evaluation" / "contrastive-final"), "--output", "table.csv"])
    run_reference("-c", CLIP_BENCHMARK, json.dumps(commands), cwd=place)
    with open(place / "table.csv", newline="") as stream:
        table = {row["dataset"]: row for row in csv.DictReader(stream)}
    return {name: json.loads((place / f"{name}.json").read_text())["metrics"] for name in sets}, table


def ours(cell: Path, name: str, task: str) -> tuple[dict, dict]:
    """Our metrics and items of one set."""
    place = cell / "evaluation" / "contrastive-final"
    with np.load(place / f"{name}_{task}.items.npz") as arrays:
        return json.loads((place / f"{name}_{task}.json").read_text())["metrics"], dict(arrays)


def assert_same_count(own: float, peer: float, num_items: int) -> None:
    """Equal counts, except for one item that may tie within rounding."""
    assert abs(round(own * num_items) - round(peer * num_items)) <= 1


def test_the_model_has_learnt(measured):
    """What is compared is no coin: the trained model is well above chance on both of the demo's sets."""
    cell, _ = measured
    assert ours(cell, "demo-categories", "zeroshot_classification")[0]["mean_per_class_recall"] > 1.5 / 9
    assert ours(cell, "demo-retrieval", "zeroshot_retrieval")[0]["image_retrieval_recall@10"] > 2 * 10 / 380


def test_classification_counts_are_clip_benchmarks(measured, theirs):
    """acc1, acc5 and mean per-class recall on two sets, mAP on a third; acc5 of three classes is their NaN and our null."""
    cell, _ = measured
    task = "zeroshot_classification"
    peer, _ = theirs

    for name in ("demo-categories", "jpegs"):
        metrics, items = ours(cell, name, task)
        count = len(items["key"])
        assert_same_count(metrics["acc1"], peer[name]["acc1"], count)
        smallest_class = int(np.bincount(items["label"])[np.unique(items["label"])].min())
        assert metrics["mean_per_class_recall"] == pytest.approx(peer[name]["mean_per_class_recall"], abs=1.01 / smallest_class)
    metrics, items = ours(cell, "demo-categories", task)
    assert_same_count(metrics["acc5"], peer["demo-categories"]["acc5"], len(items["key"]))
    assert np.isnan(peer["jpegs"]["acc5"])
    assert ours(cell, "jpegs", task)[0]["acc5"] is None
    assert ours(cell, "several", task)[0]["mean_average_precision"] == pytest.approx(peer["several"]["mean_average_precision"], abs=1e-3)


def test_retrieval_counts_are_clip_benchmarks(measured, theirs):
    """R@1, 5, 10 both ways."""
    cell, _ = measured
    peer = theirs[0]["demo-retrieval"]
    metrics, items = ours(cell, "demo-retrieval", "zeroshot_retrieval")

    for k in (1, 5, 10):
        assert_same_count(metrics[f"image_retrieval_recall@{k}"], peer[f"image_retrieval_recall@{k}"], len(items["text"]))
        assert_same_count(metrics[f"text_retrieval_recall@{k}"], peer[f"text_retrieval_recall@{k}"], len(items["key"]))
    assert {name for name in metrics if "any_twin" not in name} == set(peer)


def test_clip_benchmark_builds_a_table_from_our_results(measured, theirs):
    """Its `build` reads our JSON, 2AFC too: a row for each result, with its columns."""
    cell, sets = measured
    rows = theirs[1]

    assert set(rows) == {*sets, "demo-triplets-val", "demo-triplets-test"}
    assert float(rows["jpegs"]["acc1"]) == ours(cell, "jpegs", "zeroshot_classification")[0]["acc1"]
    assert rows["jpegs"]["model_fullname"] == "perceptual-seed0 contrastive-final"
