"""A new parameter, arm, kind of labels or kind of job is one file and `make generate`: each is added to a copy and used there."""

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parents[2]

ARM = '''
"""Control: are the permuted weights of any tower as good?"""

from trainer.arms import Arm

ARM = Arm(
    name="permuted-judged", order=80, start="permuted", labels="flip",
    meaning="the weights of a tower that FLIP taught, permuted within each tensor",
    control="the norms of a tower that saw the same pictures",
)
'''
USE_ARM = """
import sys

from pipelines.planning import plan
from pipelines.planning.arms import parse_arms
from tests.report.fabricate import Fabrication, fabricate
from trainer.config import DataConfig
from trainer.configs import load_recipe
from trainer.report.write import write_report
from trainer.storage import read_json

(arm,) = parse_arms("permuted-judged")
data = DataConfig(uri="/data", identity="1" * 64)
experiment = plan.Experiment(root="/root", name="e", recipe=load_recipe("smoke"), pairs=data, triplets=data)
cell = plan.resolve(experiment, arm, 3)
assert (cell.name, cell.perceptual.labels, cell.contrastive.start.kind) == ("permuted-judged-seed3", "flip", "permuted"), cell
assert cell.perceptual == plan.resolve(experiment, parse_arms("judged")[0], 3).perceptual
fabrication = Fabrication(arms=("random", "perceptual", "permuted-judged"), judge="people", items=80)
results = read_json(write_report(fabricate(sys.argv[1], fabrication), [])["results"])
(found,) = [row for row in results["arms"] if row["arm"] == arm.name]
assert found["meaning"] == arm.meaning, found
assert "permuted-judged" in results["answer"]["controls"], results["answer"]
assert not results["missing"] + results["excluded"], results
"""

LABELS = '''
"""The opposite of what people said."""

from collections.abc import Sequence

from trainer.labels import Facts, Labels, Shown


class Contrary(Labels):
    """A control that nobody asked for."""

    name = "contrary"
    says = "the opposite of the triplets' judgements"
    tower = "contrary"

    def show(self, own: Facts, other: Facts, draws: Sequence[float]) -> Shown:
        """The votes for the first variant."""
        return Shown(1 - float(own()["target"]))


LABELS = Contrary()
'''
USE_LABELS = """
import dataclasses
import sys
from pathlib import Path

from tests.run import build
from trainer.config import Placement, recipe_hash
from trainer.data.loader import TripletsLoader
from trainer.run.train import launch
from trainer.storage.committed import read_committed

if __name__ == "__main__":
    config = dataclasses.replace(build.perceptual(Path(sys.argv[1]), epochs=1), labels="contrary")
    loader = TripletsLoader(
        config.data, seed=0, global_batch_size=6, rank=0, world_size=1, image_size=16, labels="contrary", split="train", mirror=False,
        placement=Placement(),
    )
    batch = next(loader.batches(0))
    loader.close()
    assert batch.target.tolist() == [1 - int(key) % 3 / 2 for key in batch.keys], batch
    launch("perceptual", build.written(config), [])
    assert read_committed(f"{config.output}/final").recipe_hash == recipe_hash(config)
"""

JOB = '''
"""A training stage as a Volcano Job: all its pods are scheduled at once, or none."""

from collections.abc import Mapping
from typing import Any

from pipelines.cluster.connection import Kind
from pipelines.jobs.base import JobSpec
from pipelines.jobs.shapes.base import Phase, Shape
from pipelines.jobs.shapes.pod import pod_template

VOLCANOJOB = Kind("batch.volcano.sh/v1alpha1", "jobs", "Job", "Volcano", "volcano.sh/job-name")


class VolcanoJobs(Shape):
    """How the launcher makes and reads Volcano Jobs."""

    kind = VOLCANOJOB
    container = "worker"
    backend = "volcano"
    about = "Volcano, of a test"

    def manifest(self, spec: JobSpec, attempt: int) -> dict[str, Any]:
        """One task of as many replicas as nodes."""
        assert spec.identity is not None
        labels = spec.identity.labels()
        template = pod_template(self._settings, self.container, spec.arguments, labels, {}, spec.environment)
        task = {"name": "worker", "replicas": self._settings.nodes, "template": template}
        return {
            "apiVersion": VOLCANOJOB.api_version,
            "kind": VOLCANOJOB.kind,
            "metadata": {"name": spec.identity.name, "labels": labels},
            "spec": {"minAvailable": self._settings.nodes, "tasks": [task]},
        }

    def phase(self, job: Mapping[str, Any]) -> Phase:
        """It has no conditions, but a word."""
        word = job.get("status", {}).get("state", {}).get("phase", "Pending")
        return Phase(name={"Completed": "succeeded", "Failed": "failed"}.get(word, "active"))

    def pods_wanted(self, job: Mapping[str, Any]) -> int:
        """One a node."""
        return int(job["spec"]["minAvailable"])

    def is_leader(self, pod: Mapping[str, Any]) -> bool:
        """The first."""
        return bool(pod["metadata"]["name"].endswith("-0"))


SHAPE = VolcanoJobs
'''
USE_JOB = """
import os
import sys
from pathlib import Path

from pipelines.cluster.connection import Cluster
from pipelines.jobs.holds import has_ended
from pipelines.jobs.launcher import annotated
from pipelines.jobs.shapes import by_backend
from pipelines.operate import status
from pipelines.operate.probes import REAPER_RIGHTS, needed_kinds
from pipelines.profile.profile import read_profile
from tests.pipelines.fake_api import FakeApi
from tests.pipelines.jobs.test_trainjob import SPEC

folder = Path(sys.argv[1])
(folder / "profile.yaml").write_text("{backend: volcano, root: 's3://bucket/root', jobs: {nodes: 2}}")
with FakeApi() as api:
    os.environ["KUBECONFIG"] = str(api.kubeconfig(folder / "kubeconfig"))
    profile, cluster = read_profile(str(folder / "profile.yaml")), Cluster.connect()
    assert [kind.resource for kind in needed_kinds(profile, kubeflow=False)] == ["jobs.batch.volcano.sh"]
    assert "jobs.batch.volcano.sh" in REAPER_RIGHTS
    shape = by_backend()[profile.backend](profile.jobs)
    job = cluster.create(shape.kind, annotated(shape, SPEC, 1))
    assert (job["apiVersion"], job["spec"]["minAvailable"]) == ("batch.volcano.sh/v1alpha1", 2), job
    status.read_progress = lambda outputs: {}
    (row,) = status.survey(cluster)
    assert (row.job, row.state, row.wanted) == (job["metadata"]["name"], "Pending", 2), row
    assert not has_ended(job)
    assert has_ended({**job, "status": {"state": {"phase": "Completed"}}})
"""


USE_PARAMETER = """
import os
import sys

from pipelines.__main__ import _parser
from pipelines.planning.flags import request_of
from pipelines.planning.request import merge, read_request, write_request
from pipelines.planning.resolving import resolve
from pipelines.steps import links

request = resolve(request_of(_parser().parse_args(["run", "--recipe", "smoke", "--notebook", "https://x.example"])))
assert read_request(write_request(request, sys.argv[1])).notebook == "https://x.example"
assert merge("notebook: https://y.example", {}).notebook == "https://y.example"
stored, _ = links.accept(run="1", profile="firstsight", request="", recipe="smoke", root=sys.argv[1], notebook="https://z.example")
assert read_request(stored.partition("#")[0]).notebook == "https://z.example"
"""


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """A copy of the tree, as git would give it to somebody else."""
    command = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    names = subprocess.run(command, cwd=REPOSITORY, check=True, capture_output=True, text=True).stdout
    for name in filter(None, names.split("\0")):
        if (REPOSITORY / name).exists():
            (tmp_path / "tree" / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(REPOSITORY / name, tmp_path / "tree" / name)
    return tmp_path / "tree"


def add(tree: Path, name: str, source: str) -> None:
    """Add the one file, and generate."""
    (tree / name).write_text(source.lstrip())
    run(tree, "scripts/registry_files.py")


def use(tree: Path, source: str) -> None:
    """Run Python in the copy, with a folder of its own as argument."""
    (tree.parent / "scratch").mkdir()
    (tree / "use.py").write_text(source)
    run(tree, "use.py", str(tree.parent / "scratch"))


def run(tree: Path, *arguments: str) -> None:
    done = subprocess.run([sys.executable, *arguments], cwd=tree, check=False, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_an_arm(tree: Path):
    """It is parsed, planned on the tower that another arm shares, compared, explained, and in the table of the docs."""
    add(tree, "trainer/arms/permuted_judged.py", ARM)
    use(tree, USE_ARM)

    assert "| `permuted-judged` | its tower, permuted | `flip` |" in (tree / "docs/RECIPES.md").read_text()


@pytest.mark.slow
def test_labels(tree: Path):
    """A loader makes its targets of them, and stage 1 trains on them to its end."""
    add(tree, "trainer/labels/contrary.py", LABELS)
    use(tree, USE_LABELS)

    assert "| `contrary` | trained on the opposite of the triplets' judgements |" in (tree / "docs/RECIPES.md").read_text()


def test_a_kind_of_job(tree: Path):
    """A profile takes it, its manifest is submitted, its status read; the chart has its rights, and values may name it."""
    add(tree, "pipelines/jobs/shapes/volcano.py", JOB)
    use(tree, USE_JOB)

    chart = tree / "charts/firstsight"
    rules = re.findall(
        r"apiGroups: \[batch\.volcano\.sh\]\n  resources: \[jobs\]\n  verbs: \[(.*)\]", (chart / "templates/_kinds.tpl").read_text()
    )
    assert rules == ["get, list, watch, create, patch, delete", "get, list, watch, patch, delete", "list"]
    schema = json.loads((chart / "values.schema.json").read_text())
    assert "volcano" in schema["definitions"]["profile"]["properties"]["backend"]["enum"]
    assert "`volcano` (Volcano, of a test)" in (chart / "values.yaml").read_text()
    assert "| `volcano.py` | `volcano` | Job |" in (tree / "docs/ARCHITECTURE.md").read_text()


@pytest.mark.slow
def test_a_parameter(tree: Path):
    """A line in planning/request.py becomes a flag, a make variable, a field of Kubeflow's form, and a row of the tables."""
    path = tree / "pipelines/planning/request.py"
    line = '    notebook: str = text("", "a page that explains the experiment", otherwise="none", form="study_notebook")\n'
    head, marker, rest = path.read_text().partition("    resume: str = text(")
    path.write_text(f"{head}{line}{marker}{rest}")
    before = (tree / "Makefile").read_text()
    run(tree, "scripts/request_files.py")
    run(tree, "-m", "pipelines", "compile", str(tree / "pipelines/kubeflow/compiled/firstsight.yaml"))
    use(tree, USE_PARAMETER)

    assert "NOTEBOOK ?=## a page that explains the experiment (default: none)" in (tree / "scripts/request.mk").read_text()
    assert (
        "| `notebook` | `--notebook` | `NOTEBOOK=` | none | a page that explains the experiment |" in (tree / "docs/REQUEST.md").read_text()
    )
    assert before == (tree / "Makefile").read_text()
    compiled = (tree / "pipelines/kubeflow/compiled/firstsight.yaml").read_text()
    assert "    study_notebook: str [Default: '']" in compiled
    assert "description: 'a page that explains the experiment. Default: none.'" in compiled
