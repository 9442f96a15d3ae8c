"""The request files in docs/examples: each can be planned, and says what its comments say."""

import re
from pathlib import Path

import pytest

from pipelines.planning.cost import Machines, Samples
from pipelines.planning.points import Points
from pipelines.planning.request import Request, merge
from pipelines.planning.resolving import resolve
from pipelines.planning.sources import LISTS, NIGHTS
from pipelines.planning.summary import preview
from pipelines.profile.profile import Profile
from pipelines.profile.settings import JobSettings
from pipelines.steps.checking import check_experiment
from pipelines.steps.dry_run import takes

EXAMPLES = Path(__file__).parents[2] / "docs" / "examples"
README = (EXAMPLES / "README.md").read_text()
FILES = sorted(EXAMPLES.glob("*.yaml"))
SMALL = ("dose-demo", "programme-smoke", "representation")
"""Those that a laptop runs, on the demo's data."""
NODE = JobSettings(
    gpus_per_node=8, gpu_memory="80Gi", pod_template={"spec": {"nodeSelector": {"nvidia.com/gpu.product": "NVIDIA-H100-80GB-HBM3"}}}
)
"""What the hours of docs/examples/README.md are of."""


def asked(path: Path) -> Request:
    return resolve(merge(str(path), {}))


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_an_example_can_be_planned_and_says_its_hours(path: Path, tmp_path: Path):
    """Every point fits its data and its warm-up, as far as the data are known; nothing is written."""
    request = asked(path)
    profile = Profile(backend="pytorchjob", jobs=JobSettings() if path.stem in SMALL else NODE)
    experiment, cells = preview(request, str(tmp_path))
    notes = check_experiment(experiment, cells, profile, request)
    lines = takes(experiment, cells, profile, request, notes)
    assert [cell.name for cell in cells] == request.cells
    unit = "process" if path.stem in SMALL else "GPU"
    (pool,) = [line for line in lines if line.startswith("pool ")]
    gpu = "" if path.stem in SMALL else ", NVIDIA-H100-80GB-HBM3"
    assert pool.startswith(f"pool queue {request.queue}{gpu}: " if request.queue else f"pool without a queue{gpu}: ")
    assert pool.endswith(f" {unit}-hours")
    assert any("of representation" in line for line in lines) == bool(request.representation)
    if path.stem not in SMALL:
        hours = re.search(r": (\S+) of training \+ (\S+) of evaluation", pool)
        assert hours
        assert f"| [{path.name}]({path.name}) | {hours[1]} + {hours[2]} |" in README
    assert any(line.startswith("axis triplets: perceptual.triplet_fraction") for line in lines) == bool(request.vary)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_every_point_of_an_example_can_be_trained(path: Path):
    """On NIGHTS and YFCC15M, or on what the demo makes of itself."""
    from pipelines.planning.checks import check_recipe

    demo = path.stem in SMALL
    pairs = Samples(count=1518 if demo else LISTS["yfcc15m-openai"], said="", known=True)
    triplets = Samples(count={"dose-demo": 3240}.get(path.stem, 86) if demo else NIGHTS, said="", known=True)
    for recipe, stages in Points(asked(path)).recipes().items():
        check_recipe(recipe, pairs, triplets, Machines(gpu_bytes=80 << 30), "pytorchjob", stages=stages)


def test_the_doses_make_a_cell_each_and_the_baseline_one_a_seed():
    cells = asked(EXAMPLES / "dose.yaml").cells
    assert len(cells) == 5 * (1 + 6)
    assert [cell for cell in cells if cell.startswith("random")] == [f"random-seed{seed}" for seed in range(5)]


def test_what_is_measured_of_the_full_runs_trains_nothing_of_its_own():
    """RSA and probes name the same experiment, recipe, arms and seeds, so the stages are those of the full runs."""
    full, *others = (asked(EXAMPLES / f"{name}.yaml") for name in ("full", "rsa", "probes"))
    for other in others:
        assert (other.experiment, other.cells, other.load_recipe()) == (full.experiment, full.cells, full.load_recipe())
        assert other.representation
        assert other.queue != full.queue  # the full runs have a pool of their own


def test_the_small_programme_has_one_of_each_kind_in_twelve_cells():
    """Doses, seeds, stage 2 through time, layers, an RDM, probes, a declared test."""
    request = asked(EXAMPLES / "programme-smoke.yaml")
    assert len(request.cells) <= 12
    assert request.load_recipe().evaluation.trajectory
    assert len(request.all_seeds) > 1
    assert request.vary
    assert request.tests
    assert request.representation.keys() == {"sets", "rdms", "probes"}


def test_every_example_is_listed():
    assert all(f"[{path.name}]({path.name})" in README for path in FILES)
