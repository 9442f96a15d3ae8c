import subprocess
import sys
from pathlib import Path

import pytest

from pipelines.__main__ import main
from pipelines.planning.request import merge
from pipelines.planning.resolving import default_experiment, resolve


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (("--arms", "percetual"), "'percetual'"),
        (("--seeds", "-1"), "seeds"),
        (("--seeds=-1",), "'-1'"),
        (("--recipe", "missing.yaml"), "missing.yaml"),
        (("--arms", "judged"), "FLIP"),
        (("--root", "gs://bucket"), "gs://bucket"),
        (("--root", "s3://bucket/root"), "no S3 credentials"),
    ],
)
def test_wrong_arguments_are_refused_before_anything_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], arguments: tuple[str, ...], named: str
):
    """One line, exit code 2."""
    monkeypatch.chdir(tmp_path)
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SHARED_CREDENTIALS_FILE"):
        monkeypatch.delenv(name, raising=False)

    assert main(["run", "--root", "runs", "--recipe", "smoke", *arguments]) == 2

    (line,) = capsys.readouterr().err.splitlines()
    assert named in line
    assert list(tmp_path.iterdir()) == []


def test_the_demo_is_named_after_its_recipe():
    """So that `smoke` and `demo` on one root do not meet."""
    assert default_experiment("demo", "", "") == "demo"
    assert default_experiment("paper-3m", "", "") == "paper-3m"


def test_own_data_gives_the_experiment_its_name():
    """Equal arguments give the same name, other data or another recipe another."""
    photos = "s3://bucket/My Photos/"
    name = default_experiment("demo", photos, "")

    assert name.startswith("my-photos-")
    assert name == default_experiment("demo", photos, "")
    assert len({name, default_experiment("demo", "s3://other/My Photos/", ""), default_experiment("smoke", photos, "")}) == 3


def test_paths_are_made_absolute(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Steps run in other folders; store URIs stay as they are."""
    monkeypatch.chdir(tmp_path)
    given = {"root": "runs", "recipe": "smoke", "pairs": "photos", "triplets": "s3://bucket/nights", "eval_sets": "a, s3://bucket/b"}

    resolved = resolve(merge("", given))

    assert (resolved.root, resolved.pairs) == (f"{tmp_path}/runs", f"{tmp_path}/photos")
    assert resolved.triplets == "s3://bucket/nights"
    assert resolved.eval_sets == (f"{tmp_path}/a", "s3://bucket/b")
    assert resolved.experiment.startswith("photos-")


def test_a_plan_is_shown_without_writing(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    """Nothing is staged yet, and the table says so."""
    assert main(["plan", "--root", str(tmp_path), "--recipe", "smoke", "--arms", "random,posthoc"]) == 0

    out = capsys.readouterr().out
    assert "pairs: to be staged" in out
    assert out.count("contrastive  to do") == 2
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("module", ["torch", "kfp", "yaml", "rich", "numpy", "matplotlib"])
def test_a_step_imports_nothing_slow(module: str):
    """A step that is done ends in a fraction of a second."""
    code = f"import sys, pipelines.steps.cells; sys.exit({module!r} in sys.modules)"

    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
