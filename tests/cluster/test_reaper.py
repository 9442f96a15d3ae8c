"""GPUs are freed when nobody wants them any more, and not before: Workflows end, and the reaper watches them."""

import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.cluster import harness, training
from tests.cluster.conftest import Kubectl
from tests.cluster.training import Staged
from tests.cluster.workflows import Workflow, reaper

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(900)]

GRACE = 15


@pytest.fixture
def workflow(staged: Staged, restricted_namespace: str, tmp_path: Path) -> Workflow:
    """A run of Kubeflow whose launch step has a job in training, for longer than the test."""
    return in_training(staged, restricted_namespace, tmp_path, "long.yaml", nodes=1)


def in_training(staged: Staged, namespace: str, folder: Path, recipe: str, nodes: int) -> Workflow:
    """A run whose job has committed a checkpoint."""
    experiment = training.plan(staged, recipe=recipe)
    profile = training.write_profile(folder, namespace, staged, nodes=nodes)
    run = Workflow(namespace, experiment, profile, staged.store.pod_environment)
    run.launch()
    experiment.wait_for_commit(training.CHECKPOINT_EVERY)
    return run


def job_of(run: Workflow) -> harness.Object | None:
    """The run's PyTorchJob."""
    return harness.get("pytorchjob", run.namespace, run.experiment.identity.name)


def trainers(namespace: str) -> list[str]:
    """Pods of the job that are there, in whatever phase."""
    return [pod["metadata"]["name"] for pod in harness.listed("pods", namespace, "app.kubernetes.io/part-of=firstsight")]


def nothing_left(run: Workflow) -> bool:
    """Neither the job nor a pod or Service of it."""
    return job_of(run) is None and not trainers(run.namespace) and not harness.listed("services", run.namespace)


def terminated(run: Workflow) -> None:
    """Kubeflow's Terminate: the deadline, and the launcher's container gone at once."""
    run.change({"spec": {"activeDeadlineSeconds": 0}})
    run.kill_launcher()


def succeeded(run: Workflow) -> None:
    """A run that ended well while a job of it still runs."""
    run.change({"status": {"phase": "Succeeded", "finishedAt": now()}})
    run.kill_launcher()


def deleted(run: Workflow) -> None:
    """The Workflow itself is gone, and its pods with it."""
    harness.kubectl("-n", run.namespace, "delete", "workflow", run.name, "--wait=false")


def now() -> str:
    """As Argo writes it."""
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())


@pytest.mark.parametrize("ended", [terminated, succeeded, deleted])
def test_pods_are_gone_30_seconds_after_the_run(workflow: Workflow, tmp_path: Path, ended: Callable[[Workflow], None]) -> None:
    """Nothing of it is left but what the store holds."""
    with reaper(workflow.namespace, GRACE, tmp_path):
        began = time.monotonic()
        ended(workflow)

        harness.wait_until("job and pods to go", lambda: nothing_left(workflow), 30)

    print(f"\nmeasured: {ended.__name__}: nothing left after {time.monotonic() - began:.1f} s")
    assert workflow.experiment.committed_step() > 0


def test_a_failed_run_keeps_its_job_for_the_grace_and_no_longer(workflow: Workflow, tmp_path: Path) -> None:
    """The launcher's node was drained: a Retry would find the job; none comes."""
    with reaper(workflow.namespace, GRACE, tmp_path):
        workflow.kill_launcher()
        workflow.change({"status": {"phase": "Failed", "finishedAt": now()}})
        time.sleep(GRACE - 8)
        assert len(trainers(workflow.namespace)) == 1

        harness.wait_until("job and pods to go", lambda: nothing_left(workflow), 8 + 30)


def test_a_retry_within_the_grace_adopts_the_living_job(staged: Staged, restricted_namespace: str, tmp_path: Path) -> None:
    """The launcher's pod is drained; its successor follows the same job, which outlives the grace and ends as if nothing had happened."""
    run, grace = in_training(staged, restricted_namespace, tmp_path, "medium.yaml", nodes=2), 8
    before = job_of(run)
    assert before is not None
    with reaper(run.namespace, grace, tmp_path):
        harness.kubectl("-n", run.namespace, "delete", "pod", run.pod)
        run.change({"status": {"phase": "Failed", "finishedAt": now()}})
        run.change({"status": {"phase": "Running", "finishedAt": None}})
        run.launch()
        harness.wait_until("the second launcher to adopt", lambda: started(run) and "adopted" in run.log(), 90)
        time.sleep(grace)

        assert len(trainers(run.namespace)) == 2
        harness.wait_until("the run's end", lambda: run.experiment.seal() is not None, 180)
    after = job_of(run)
    assert after is not None
    assert after["metadata"]["uid"] == before["metadata"]["uid"]
    assert training.final_weights(run.experiment) == staged.weights[run.experiment.recipe]


def test_deleting_one_of_two_runs_leaves_the_job_to_the_other(workflow: Workflow, tmp_path: Path) -> None:
    """Both Workflows own it; Kubernetes' own collector and the reaper agree that one of them is enough."""
    second = workflow.another()
    second.launch()
    harness.wait_until("the second run to adopt", lambda: started(second) and "adopted" in second.log(), 90)
    before = job_of(workflow)
    assert before is not None
    assert len(before["metadata"]["ownerReferences"]) == 2
    with reaper(workflow.namespace, GRACE, tmp_path):
        deleted(workflow)
        time.sleep(15)

        after = job_of(workflow)
        assert after is not None
        assert after["metadata"]["uid"] == before["metadata"]["uid"]
        deleted(second)
        harness.wait_until("job and pods to go", lambda: nothing_left(second), 30)


@pytest.mark.alone
def test_a_reaper_that_was_away_does_what_it_would_have_done(workflow: Workflow, tmp_path: Path, own_node: None) -> None:
    """It was killed before the run was terminated; and the API server was restarted, too."""
    with reaper(workflow.namespace, GRACE, tmp_path) as first:
        first.kill()
    terminated(workflow)
    with reaper(workflow.namespace, GRACE, tmp_path):
        harness.node_fault("apiserver")

        harness.wait_until("job and pods to go", lambda: nothing_left(workflow), 60)


def test_jobs_that_are_not_ours_are_left_alone(kubectl: Kubectl, workflow: Workflow, tmp_path: Path) -> None:
    """A pod of the Workflow without firstsight's label lives on when the run is terminated."""
    kubectl("-n", workflow.namespace, "label", "pod", workflow.pod, "team=another")
    with reaper(workflow.namespace, GRACE, tmp_path):
        workflow.change({"spec": {"activeDeadlineSeconds": 0}})
        harness.wait_until("the job to go", lambda: job_of(workflow) is None, 60)

        assert harness.get("pod", workflow.namespace, workflow.pod) is not None


def started(run: Workflow) -> bool:
    """Whether the launcher's container has started."""
    pod = harness.get("pod", run.namespace, run.pod)
    return bool(pod and pod["status"]["phase"] in ("Running", "Succeeded", "Failed"))
