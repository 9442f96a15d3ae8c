"""Two-node TrainJobs on the real controllers of Trainer and JobSet, launched as the pipeline does: `make e2e-trainjob`.

On the oldest and on the newest release that is supported, one after the other.
"""

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from pipelines.jobs.shapes.trainjob import RUNTIME
from tests.cluster import harness, trainer_v2, training
from tests.cluster.conftest import Kubectl
from tests.cluster.test_trainjob_crd import charts_runtime
from tests.cluster.training import CHECKPOINT_EVERY, Experiment, Staged

pytestmark = [pytest.mark.cluster, pytest.mark.trainjob, pytest.mark.timeout(5400)]


FIELDS = {"2.0": "podSpecOverrides", "2.3": "runtimePatches"}


@pytest.fixture(scope="module", autouse=True, params=trainer_v2.RELEASES)
def trainer(request: pytest.FixtureRequest, kubectl: Kubectl) -> str:
    """Both controllers of a release, by its name; another cluster than this machine's has the one that it has."""
    name = str(request.param)
    if harness.own_cluster():
        trainer_v2.deploy(trainer_v2.RELEASES[name])
    elif name != next(iter(trainer_v2.RELEASES)):
        pytest.skip("the cluster that KUBECONFIG names has one version of Trainer, which was tested before")
    return name


@pytest.fixture
def profile(staged: Staged, restricted_namespace: str, tmp_path: Path) -> str:
    """A run profile for TrainJobs, beside the chart's TrainingRuntime in a namespace of their own."""
    harness.apply(charts_runtime(restricted_namespace), restricted_namespace)
    path = Path(training.write_profile(tmp_path, restricted_namespace, staged))
    path.write_text(yaml.safe_dump({**yaml.safe_load(path.read_text()), "backend": "trainjob"}))
    return str(path)


@pytest.fixture
def launched(staged: Staged, profile: str, tmp_path: Path) -> Iterator[tuple[Experiment, training.Launcher]]:
    """A planned experiment and the launcher of its job."""
    experiment = training.plan(staged)
    with training.launcher(experiment, profile, tmp_path) as launcher:
        yield experiment, launcher


def ended_well(experiment: Experiment, launcher: training.Launcher, staged: Staged, namespace: str) -> None:
    """The launcher ends well, and the seal names the weights of two ranks on this machine."""
    code = launcher.wait(600)
    assert code == 0, f"{launcher.tail()}\n{harness.describe(namespace)}"
    assert training.final_weights(experiment) == staged.weights[experiment.recipe]


def job(namespace: str, experiment: Experiment) -> dict[str, Any] | None:
    """The TrainJob, or None."""
    return harness.get("trainjobs.trainer.kubeflow.org", namespace, experiment.identity.name)


def test_two_nodes_end_with_the_weights_of_two_local_ranks(
    launched: tuple[Experiment, training.Launcher], staged: Staged, restricted_namespace: str, trainer: str
) -> None:
    """As PyTorchJobs do, under restricted Pod Security and with the chart's runtime, in the form that this release serves."""
    experiment, launcher = launched

    ended_well(experiment, launcher, staged, restricted_namespace)

    assert launcher.said("final model committed")
    found = job(restricted_namespace, experiment)
    assert found is not None
    assert found["spec"]["runtimeRef"]["name"] == RUNTIME
    if harness.own_cluster():
        assert FIELDS[trainer] in found["spec"]


def test_a_node_deleted_by_force_costs_no_committed_step(
    launched: tuple[Experiment, training.Launcher], staged: Staged, restricted_namespace: str, kubectl: Kubectl
) -> None:
    """Its Job recreates the pod under the old host name, and the group resumes from the last commit."""
    experiment, launcher = launched
    committed, since = experiment.wait_for_commit(2 * CHECKPOINT_EVERY), time.time()
    selector = f"jobset.sigs.k8s.io/jobset-name={experiment.identity.name},batch.kubernetes.io/job-completion-index=1"
    kubectl("-n", restricted_namespace, "delete", "pods", "-l", selector, "--force", "--grace-period=0")

    ended_well(experiment, launcher, staged, restricted_namespace)

    seconds, step = experiment.recovery(since)
    assert step > committed, f"began again at step {step}, though {committed} was committed"
    print(f"\nmeasured: TrainJob, node 1 deleted by force: first new step after {seconds:.1f} s")


def test_cancel_frees_its_pods_within_30_seconds(
    launched: tuple[Experiment, training.Launcher], restricted_namespace: str, profile: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The TrainJob, its JobSet and its pods; the launcher says that it was not by its doing."""
    from pipelines.__main__ import main

    experiment, launcher = launched
    experiment.wait_for_commit(CHECKPOINT_EVERY)
    monkeypatch.setenv("KUBECONFIG", harness.environment()["KUBECONFIG"])
    began = time.monotonic()

    assert main(["cancel", experiment.name, "--namespace", restricted_namespace]) == 0

    assert time.monotonic() - began < 30
    assert job(restricted_namespace, experiment) is None
    assert harness.listed("pods", restricted_namespace, f"jobset.sigs.k8s.io/jobset-name={experiment.identity.name}") == []
    assert launcher.wait(60) == 1
    assert launcher.said("was deleted by someone else before it finished")
