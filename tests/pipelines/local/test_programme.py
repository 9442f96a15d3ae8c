"""The follow-on team's programme in small: docs/examples/programme-smoke.yaml, one of each kind, through every step on this machine."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.report.test_schema import SCHEMA, faults

REPOSITORY = Path(__file__).parents[3]
pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, Any], str]:
    """The results of the run, and its page."""
    root = tmp_path_factory.mktemp("root")
    command = [sys.executable, "-m", "pipelines", "run", "--root", str(root), "--request", "docs/examples/programme-smoke.yaml"]
    done = subprocess.run(command, cwd=REPOSITORY, check=False, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    report = root / "experiments" / "programme-smoke" / "report"
    return json.loads((report / "results.json").read_text()), (report / "index.html").read_text()


def test_every_cell_is_there_and_nothing_was_left_out(finished: tuple[dict[str, Any], str]):
    """Two seeds of the baseline, and of two doses of the perceptual arm."""
    results, _ = finished
    assert results["missing"] == results["failures"] == results["excluded"] == []
    assert {(row["arm"], row["point"], row["seed"]) for row in results["stages"] if row["stage"] == "contrastive"} == {
        (arm, point, seed) for arm, point in (("random", ""), ("perceptual", ""), ("perceptual", "triplets-0.5")) for seed in (0, 1)
    }
    assert not list(faults(results, SCHEMA))


def test_there_is_a_figure_of_each_kind(finished: tuple[dict[str, Any], str]):
    """Doses with a declared test, stage 2 through time, layers, an RDM and probes, at the other dose too."""
    results, page = finished
    (curve,) = results["axes"]
    assert [point["value"] for point in curve["points"]] == [0.5, 1]
    assert {row["name"] for row in results["tests"]} == {"dose"}
    assert not results["declared"][0]["after_results"]
    (other,) = results["at_points"]
    for found in (results, other):
        assert {row["epoch"] for row in found["through_time"]} == {0, 1, 2, 3}
        assert found["trajectory"]["onsets"]
        assert found["trajectory"]["lacking"] == []
        represented = found["representation"]
        assert {row["to"] for row in represented["similarity"]} == {"start", "tower", "tower of perceptual", "random"}
        assert {row["rdm"] for row in represented["rsa"]} == {"category-rdm"}
        assert {row["epoch"] for row in represented["through_time"]} == {0, 1, 2, 3}
        assert {row["task"] for row in represented["probe_scores"]} == {
            "linear_probe", "knn", "few_shot_1", "few_shot_5", "few_shot_16"
        }  # fmt: skip
    for heading in ("axes", "course", "representation"):
        assert f'id="{heading}"' in page
