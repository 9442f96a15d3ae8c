"""`run --dry-run`: the manifests that would be submitted and what they take; no cluster, nothing written."""

import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from pipelines.__main__ import main
from pipelines.jobs import owners
from pipelines.local import run
from pipelines.planning import plan
from pipelines.planning.arms import parse_arms
from pipelines.profile.profile import PROFILE_VARIABLE
from tests.pipelines.data import commit
from trainer.config import DataConfig, recipe_hash
from trainer.configs import load_recipe
from trainer.storage import layout

PROFILE = """
root: s3://bucket/root
backend: pytorchjob
jobs: {nodes: 2, gpus_per_node: 8, image: "registry.example/trainer:1"}
"""


@pytest.fixture(autouse=True)
def _no_cluster(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Neither a kubeconfig nor, except for one root that nobody reads from, a store."""
    for name in (PROFILE_VARIABLE, owners.HOLDER_VARIABLE):
        monkeypatch.setenv(name, "")
    monkeypatch.setenv("KUBECONFIG", str(tmp_path / "none"))
    (tmp_path / "profile.yaml").write_text(PROFILE)


def shown(capsys: pytest.CaptureFixture[str], tmp_path: Path, *arguments: str) -> tuple[list[dict[str, Any]], str]:
    """The documents and the whole text of a dry run over an empty root."""
    profile = yaml.safe_load((tmp_path / "profile.yaml").read_text())
    mount = {"name": "root", "mountPath": str(tmp_path / "r")}
    profile["jobs"]["pod_template"] = {"spec": {"containers": [{"name": "pytorch", "volumeMounts": [mount]}]}}
    (tmp_path / "profile.yaml").write_text(yaml.safe_dump(profile))
    code = main(["run", "--dry-run", "--root", str(tmp_path / "r"), "--profile", str(tmp_path / "profile.yaml"), *arguments])
    out = capsys.readouterr()
    assert code == 0, out.err
    assert not (tmp_path / "r").exists()
    return [job for job in yaml.safe_load_all(out.out) if job], out.out


def test_every_manifest_is_printed_once(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    """A tower that arms share is there once; each cell is evaluated by a Job."""
    jobs, _ = shown(capsys, tmp_path, "--recipe", "paper", "--arms", "random,perceptual,permuted")

    stages = [(job["kind"], job["metadata"]["labels"]["firstsight.dev/stage"]) for job in jobs]
    assert stages == [
        ("PyTorchJob", "contrastive"),
        ("Job", "evaluate"),
        ("PyTorchJob", "perceptual"),
        ("PyTorchJob", "contrastive"),
        ("Job", "evaluate"),
        ("PyTorchJob", "contrastive"),
        ("Job", "evaluate"),
    ]
    assert all(job["metadata"]["annotations"]["firstsight.dev/recipe-hash"] for job in jobs)


def test_what_a_run_asks_for_shapes_the_manifests(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    """Queue, image and nodes as given; resume reaches the trainer."""
    jobs, _ = shown(
        capsys, tmp_path, "--recipe", "paper", "--arms", "random", "--nodes", "4", "--queue", "night", "--image", "i:2", "--resume", "never"
    )

    worker = jobs[0]["spec"]["pytorchReplicaSpecs"]["Worker"]
    container = worker["template"]["spec"]["containers"][0]
    assert worker["replicas"] == 4
    assert container["image"] == "i:2"
    assert "placement.resume=never" in container["args"]
    assert jobs[0]["metadata"]["labels"]["kueue.x-k8s.io/queue-name"] == "night"


def test_the_hours_and_what_they_assume_are_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    """Of two nodes with eight GPUs each; stage 1 takes one of them, as its manifest does."""
    jobs, text = shown(capsys, tmp_path, "--recipe", "paper", "--arms", "perceptual")

    assert "not staged; assumed for YFCC15M" in text
    assert "46.6% of an H100's 798 TFLOP/s / 44.3 GFLOP" in text
    for kind, ranks in (("contrastive", "2 x 8 GPUs = 16"), ("perceptual", "1 x 8 GPUs = 8")):
        (job,) = [job for job in jobs if job["metadata"]["labels"]["firstsight.dev/stage"] == kind]
        nodes = job["spec"]["pytorchReplicaSpecs"]["Worker"]["replicas"]
        assert f"ranks: {ranks}" in text[text.index(f"# {kind}: 1 x (perceptual-seed0)") :].split("memory:", 1)[0]
        assert ranks.startswith(f"{nodes} x 8")
    assert "note: a rank needs an estimated 9.9 GB of GPU memory, which could not be checked: set jobs.gpu_memory" in text


@pytest.mark.parametrize("gpus", [1, 8])
def test_a_machine_of_one_or_eight_gpus(gpus: int, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    """`RECIPE=paper` for this machine, as a laptop's owner asks before renting one."""
    root = tmp_path / "r"
    assert main(["run", "--dry-run", "--root", str(root), "--recipe", "paper", "--gpus-per-node", str(gpus)]) == 0
    text = capsys.readouterr().out
    assert f"ranks: 1 x {gpus} GPU{'s' * (gpus > 1)} = {gpus}" in text
    assert not root.exists()


def test_one_gpu_of_80_gib_takes_the_paper_through_the_gradient_cache(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    """The profile's GPU by name and memory: row M's rate, three quarters of it."""
    template = {"spec": {"nodeSelector": {"nvidia.com/gpu.product": "NVIDIA-H100-80GB-HBM3"}}}
    settings = {"nodes": 1, "gpus_per_node": 1, "gpu_memory": "80Gi", "pod_template": template}
    (tmp_path / "profile.yaml").write_text(yaml.safe_dump({"backend": "pytorchjob", "jobs": settings}))

    command = ["run", "--dry-run", "--root", "s3://bucket/root", "--recipe", "paper", "--profile", str(tmp_path / "profile.yaml")]
    assert main([*command, "--backend", "local", "--root", str(tmp_path / "r"), "--gpus-per-node", "1"]) == 0
    text = capsys.readouterr().out

    assert "local_batch_size 2,048 (of 4,096, through the gradient cache)" in text
    assert "6,292 pairs/s per GPU" in text
    assert "row M of docs/BENCHMARKS.md, 8,390/s on an H100 x 3/4" in text
    assert "note: contrastive: 4,096 samples per rank need an estimated 91.4 GB, but a GPU has 85.9" in text


def test_a_recipe_that_cannot_fit_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    """Before anything is staged or written."""
    settings = {"gpu_memory": "80Gi"}
    recipe = "contrastive: {accumulation: independent}"
    (tmp_path / "profile.yaml").write_text(yaml.safe_dump({"jobs": settings}))
    (tmp_path / "recipe.yaml").write_text(recipe)
    command = ["run", "--dry-run", "--root", str(tmp_path / "r"), "--profile", str(tmp_path / "profile.yaml")]

    assert main([*command, "--recipe", str(tmp_path / "recipe.yaml"), "--arms", "random", "--gpus-per-node", "1"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "contrastive.accumulation independent never splits a contrast batch" in line
    assert not (tmp_path / "r").exists()


def test_a_finished_stage_s_rate_holds_for_the_others(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    """Measured on as many ranks; on another number it is assumed. What is done is not counted again."""
    command = ["run", "--dry-run", "--root", str(tmp_path / "r"), "--recipe", "smoke", "--arms", "random", "--seeds", "0,1"]
    cell = layout.cell(layout.experiment(str(tmp_path / "r"), "smoke"), "random", 0)
    smoke = plan.Experiment(root=str(tmp_path / "r"), name="smoke", recipe=load_recipe("smoke"), pairs=DataConfig(), triplets=DataConfig())
    finished = plan.resolve(smoke, parse_arms("random")[0], 0).contrastive
    commit(layout.stage(cell, "contrastive"), recipe_hash(finished), samples_per_second=500.0, world_size=1)

    assert main([*command, "--backend", "local"]) == 0
    text = capsys.readouterr().out
    assert "rate: 500 pairs/s per process x 1 = 500 pairs/s [measured: a finished contrastive stage of this experiment on 1 rank]" in text
    assert "# contrastive: 2 x (random-seed0, random-seed1)" in text
    assert "; excluding the 1 already done: " in text

    assert main([*command, "--backend", "local", "--placement", "processes_per_node=2"]) == 0
    assert "x 2 = 1,000 pairs/s [assumed: a finished contrastive stage" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("recipe", "more", "expected"),
    [
        ("base: paper\ncontrastive: {epochs: 8}", (), "recipe mine: differs from paper in\n#   contrastive.epochs: 32 -> 8\n# model"),
        ("base: paper-3m\ncontrastive.epochs: 8", (), "recipe mine: differs from paper-3m in\n#   contrastive.epochs: 16 -> 8\n# model"),
        ("", ("--set", "contrastive.epochs=8"), "recipe paper: differs from paper in\n#   contrastive.epochs: 32 -> 8\n# model"),
        ("", (), "recipe paper: the built-in paper, unchanged\n# model: 151.3 M parameters (vision 87.8 M, text 63.4 M)"),
    ],
    ids=["base", "another base", "set", "shipped"],
)
def test_a_recipe_s_differences_are_shown(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], recipe: str, more: tuple[str, ...], expected: str
):
    """From what it says under `base:`, or from itself as shipped."""
    (tmp_path / "mine.yaml").write_text(recipe)

    name = str(tmp_path / "mine.yaml") if recipe else "paper"
    _, text = shown(capsys, tmp_path, "--recipe", name, "--arms", "random", *more)

    assert expected in text


def test_a_backend_of_this_machine_has_no_manifests(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    """And what its cores would take is said."""
    jobs, text = shown(capsys, tmp_path, "--recipe", "paper", "--arms", "random", "--backend", "local", "--gpus-per-node", "0")

    assert jobs == []
    assert "process-hours" in text
    assert "# note: training at 224 px on " in text


def test_a_source_that_is_not_there_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    """By the plan, too, which looks at nothing else of it."""
    for command in (["plan"], ["run", "--dry-run"]):
        arguments = ["--root", str(tmp_path / "r"), "--pairs", str(tmp_path / "nosuch"), "--recipe", "smoke"]
        assert main([*command, *arguments]) == 2
        (line,) = capsys.readouterr().err.splitlines()
        assert f"pairs {tmp_path}/nosuch: no such file or folder" in line


def test_a_plan_shows_the_same(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    """What a dry run says in comments `plan` says below its table; on this machine what CPU cores take is said, too."""
    (tmp_path / "profile.yaml").write_text("{}")

    command = ["plan", "--root", str(tmp_path / "r"), "--recipe", "paper", "--profile", str(tmp_path / "profile.yaml"), "--seeds", "0,1"]
    assert main(command) == 0
    text = capsys.readouterr().out

    assert text.count("known once the data have been staged") == 6
    assert "recipe paper: the built-in paper, unchanged\nmodel: 151.3 M parameters" in text
    assert "contrastive: 4 x (random-seed0, perceptual-seed0, random-seed1, perceptual-seed1)" in text
    assert not (tmp_path / "r").exists()


def test_forty_cells_are_told_in_a_screen(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    """Runs that take the same stand together, and not all of them by name."""
    seeds = ",".join(map(str, range(10)))
    _, text = shown(
        capsys, tmp_path, "--recipe", "paper", "--arms", "random,perceptual,permuted,posthoc", "--seeds", seeds, "--backend", "local"
    )

    assert "# contrastive: 30 x (random-seed0, perceptual-seed0, permuted-seed0, " in text
    assert " and 24 more)" in text
    assert "# perceptual: 10 x (" in text
    assert "# posthoc: 10 x (" in text
    assert len(text.splitlines()) < 40


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (("--backend", "slurm"), "backend must be one of"),
        (("--profile", "nowhere.yaml"), "nowhere.yaml: no such file"),
        (("--experiment", "Has Capitals"), "experiment 'Has Capitals' must be 1 to 63 of a-z"),
    ],
)
def test_wrong_input_is_one_line(capsys: pytest.CaptureFixture[str], arguments: tuple[str, str], named: str):
    command = ["run", "--dry-run", "--recipe", "smoke", "--root", "s3://bucket/root", "--backend", "pytorchjob"]

    assert main([*command, *arguments]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert named in line


def test_a_profile_with_a_typo_names_the_key(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    (tmp_path / "profile.yaml").write_text("jobs: {nodez: 2}")

    assert main(["run", "--dry-run", "--recipe", "smoke", "--profile", str(tmp_path / "profile.yaml")]) == 2
    assert "nodez" in capsys.readouterr().err


@pytest.mark.parametrize("command", [("run", "--dry-run"), ("plan",)])
def test_a_store_that_cannot_be_read_from_here_is_a_note(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], command: tuple[str, ...]
):
    """What a run would do can be shown without its credentials; what is done of it cannot."""
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SHARED_CREDENTIALS_FILE"):
        monkeypatch.delenv(name, raising=False)

    assert main([*command, "--root", "s3://bucket/prefix", "--recipe", "smoke"]) == 0
    assert "note: what is staged and finished is unknown: s3://bucket/prefix: no S3 credentials" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("name", "value", "uri"),
    [
        ("pairs", "s3://other/pictures", ""),
        ("pairs", "s3://other/list.yaml", ""),
        ("triplets", "s3://other/nights", ""),
        ("eval-sets", "s3://other/sets/x", ""),
        ("arms", "random,from:s3://other/tower/final", "s3://other/tower/final"),
    ],
)
@pytest.mark.parametrize("root", ["s3://bucket/prefix", ""])
def test_whatever_a_request_names_in_a_store_that_cannot_be_read_is_a_note(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], name: str, value: str, uri: str, root: str
):
    """Beside the root, or where the root is a folder that can be read. A run itself is refused."""
    for variable in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SHARED_CREDENTIALS_FILE"):
        monkeypatch.delenv(variable, raising=False)
    asked = ["--root", root or str(tmp_path), "--recipe", "smoke", f"--{name}", value]

    assert main(["run", "--dry-run", *asked]) == 0
    assert f"note: what lies at {uri or value} is unknown: {uri or value}: no S3 credentials" in capsys.readouterr().out
    if not root:
        assert main(["run", *asked]) == 2


def test_an_experiment_is_checked_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """What is refused and noted is found before anything is shown, and not again."""
    seen = []
    check = run.check_experiment
    monkeypatch.setattr(run, "check_experiment", lambda *given: seen.append(1) or check(*given))
    monkeypatch.setattr("pipelines.steps.checking.check_experiment", lambda *given: seen.append(2))

    assert main(["run", "--dry-run", "--root", str(tmp_path), "--recipe", "smoke"]) == 0
    assert seen == [1]


def test_what_the_trajectorys_evaluation_takes_is_told_apart(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    """At most a tenth of the GPU-hours that `paper` trains for, with every factor; the demo's recipes have none."""
    _, text = shown(capsys, tmp_path, "--recipe", "paper", "--arms", "random,perceptual")
    found = re.findall(r"trajectory: 10 models at epochs [\d, ]+ x [\d,]+ pictures = [\d.]+ GPU-hours, ([\d.]+)% of the [\d.]+ of", text)
    assert len(found) == 2
    assert all(0 < float(share) <= 10 for share in found)
    assert "weights at epochs 0, 1, 2, 4, 8, 12, 16, 20, 24, 28: 10 x 0.61 GB" in text

    _, text = shown(capsys, tmp_path, "--recipe", "smoke", "--arms", "random")
    assert "trajectory:" not in text


def test_a_dose_is_a_job_of_its_own_with_its_hours(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    """The baseline is there once; jobs carry the point as a label; the hours shrink with the dose."""
    vary = "triplets: {perceptual.triplet_fraction: [0.5, 1]}"
    arguments = ("--recipe", "paper", "--set", "perceptual.optimizer.warmup_steps=20", "--seeds", "0", "--vary", vary)
    jobs, text = shown(capsys, tmp_path, *arguments)
    cells = [job["metadata"]["labels"].get("firstsight.dev/cell") for job in jobs if job["kind"] == "PyTorchJob"]
    points = {job["metadata"]["labels"].get("firstsight.dev/point", "") for job in jobs}
    assert [cell for cell in cells if cell] == ["random-seed0", "perceptual-triplets-0.5-seed0", "perceptual-seed0"]
    assert points == {"", "triplets-0.5"}
    assert len({job["metadata"]["name"] for job in jobs}) == len(jobs) == 8
    assert "axis triplets: perceptual.triplet_fraction 0.5, 1" in text
    assert "15,941 triplets (not staged; assumed for NIGHTS) x 0.5 = 7,970 // 768 = 10 steps x 32 epochs" in text


def test_an_axis_that_changes_no_arm_is_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    _, text = shown(capsys, tmp_path, "--recipe", "paper", "--arms", "random", "--vary", "a: {perceptual.margin: [0.1, 0.2]}")
    assert "note: axis 'a' changes no stage of the arms random" in text
