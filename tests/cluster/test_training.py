"""Two-node PyTorchJobs on demo shards in MinIO: undisturbed, and through everything that clusters do to them.

Whatever happened, the final weights are those of two ranks on this machine, and no step is lost behind the last commit.
"""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.cluster import harness, training
from tests.cluster.conftest import Kubectl
from tests.cluster.training import CHECKPOINT_EVERY, Experiment, Launcher, Staged

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(3600)]  # the first use builds the servers


class Run:
    """A launched two-node experiment, in the middle of its steps."""

    def __init__(self, staged: Staged, namespace: str, experiment: Experiment, launcher: Launcher, profile: str, folder: Path) -> None:
        self.staged, self.namespace, self.experiment, self.launcher = staged, namespace, experiment, launcher
        self.profile, self.folder = profile, folder
        self.name = experiment.identity.name

    def pod(self, index: int) -> str:
        """Name of a worker's pod."""
        return f"{self.name}-worker-{index}"

    def wait_for_the_middle(self) -> int:
        """Wait until a few checkpoints are committed; the newest one's step."""
        return self.experiment.wait_for_commit(3 * CHECKPOINT_EVERY)

    def ends_with_the_same_weights(self, launcher: Launcher | None = None) -> None:
        """The launcher ends well, and the seal names the reference's weights."""
        launcher = launcher or self.launcher
        code = launcher.wait()
        assert code == 0, f"{launcher.tail()}\n{harness.describe(self.namespace)}"
        seal = self.experiment.seal()
        assert seal is not None
        assert seal.facts["weights_sha256"] == self.staged.weights

    def recovered(self, since: float, committed: int, what: str) -> float:
        """Seconds from a time to the first new step, which does not lie before the commit."""
        seconds, step = self.experiment.recovery(since)
        assert step > committed, f"began again at step {step}, though {committed} was committed"
        print(f"\nmeasured: {what}: first new step (step {step}) after {seconds:.1f} s")
        return seconds


@contextmanager
def launched(staged: Staged, namespace: str, folder: Path) -> Iterator[Run]:
    """Plan an experiment and launch its job."""
    experiment = training.plan(staged)
    profile = training.write_profile(folder, namespace, staged)
    with training.launcher(experiment, profile, folder) as launcher:
        yield Run(staged, namespace, experiment, launcher, profile, folder)


@pytest.fixture
def run(staged: Staged, restricted_namespace: str, tmp_path: Path) -> Iterator[Run]:
    """A job that has just been launched."""
    with launched(staged, restricted_namespace, tmp_path) as running:
        yield running


def test_two_nodes_end_with_the_weights_of_two_local_ranks(run: Run) -> None:
    """The log of rank 0 and progress reach the one who waits; the job itself stays to be looked at, its pods are cleaned."""
    run.ends_with_the_same_weights()

    assert run.launcher.said("PyTorchJob")
    assert run.launcher.said("final model committed")
    assert harness.get("pytorchjob", run.namespace, run.name) is not None


def test_a_worker_deleted_by_force_is_back_within_20_seconds(run: Run, kubectl: Kubectl) -> None:
    """Worker-0's container is not restarted: the group restarts in place around it."""
    committed, since = run.wait_for_the_middle(), time.time()
    kubectl("-n", run.namespace, "delete", "pod", run.pod(1), "--force", "--grace-period=0")

    run.ends_with_the_same_weights()

    assert run.recovered(since, committed, "worker-1 deleted by force") <= 20


def test_worker_0_deleted_by_force_is_back_within_60_seconds(run: Run, kubectl: Kubectl) -> None:
    """The rendezvous is lost with it, so every container starts anew."""
    committed, since = run.wait_for_the_middle(), time.time()
    kubectl("-n", run.namespace, "delete", "pod", run.pod(0), "--force", "--grace-period=0")

    run.ends_with_the_same_weights()

    assert run.recovered(since, committed, "worker-0 deleted by force") <= 60


@pytest.mark.slow
def test_a_killed_training_process_restarts_the_group_in_place(run: Run, kubectl: Kubectl) -> None:
    """SIGKILL of one rank, as the kernel does when memory is short: no container restarts."""
    committed, since = run.wait_for_the_middle(), time.time()
    kubectl("-n", run.namespace, "exec", run.pod(1), "--", "pkill", "-KILL", "-P", "1", "-f", "train contrastive")

    run.experiment.wait_for_commit(committed + 2 * CHECKPOINT_EVERY)
    restarts = [pod["status"]["containerStatuses"][0]["restartCount"] for pod in harness.listed("pods", run.namespace)]
    run.ends_with_the_same_weights()

    assert restarts == [0, 0]
    run.recovered(since, committed, "training process killed")


@pytest.mark.slow
def test_a_restart_of_the_store_is_waited_out(run: Run) -> None:
    """MinIO's pod is deleted in mid-run and comes back with its data."""
    committed = run.wait_for_the_middle()
    run.staged.store.restart()

    run.ends_with_the_same_weights()

    assert committed <= run.experiment.records()[-1]["steps"]


@pytest.mark.slow
def test_a_restart_of_the_api_server_is_waited_out(run: Run, own_node: None) -> None:
    """Trainers do not notice; the launcher's watches go on where they were."""
    run.wait_for_the_middle()
    harness.node_fault("apiserver")

    run.ends_with_the_same_weights()


@pytest.mark.slow
def test_restarts_of_kubelet_and_containerd_are_waited_out(run: Run, own_node: None) -> None:
    """Containers outlive both."""
    run.wait_for_the_middle()
    harness.node_fault("kubelet")
    harness.node_fault("containerd")

    run.ends_with_the_same_weights()


@pytest.mark.slow
def test_a_drained_node_costs_nothing_but_time(run: Run, kubectl: Kubectl) -> None:
    """Evicted pods save on SIGTERM; the job waits for a node and goes on."""
    run.wait_for_the_middle()
    node = harness.listed("nodes", run.namespace)[0]["metadata"]["name"]
    selector = f"--pod-selector=firstsight.dev/experiment={run.experiment.name}"
    kubectl("drain", node, selector, "--ignore-daemonsets", "--delete-emptydir-data", "--force", "--timeout=200s")
    drained = run.experiment.committed_step()
    try:
        harness.wait_until("a pod that waits for a node", lambda: pending(run.namespace), 60)
    finally:
        kubectl("uncordon", node)

    run.ends_with_the_same_weights()

    assert drained % CHECKPOINT_EVERY or drained > 3 * CHECKPOINT_EVERY  # what SIGTERM saved


def pending(namespace: str) -> bool:
    """Whether a pod of the namespace waits for a node."""
    return any(
        pod["status"]["phase"] == "Pending" and "deletionTimestamp" not in pod["metadata"] for pod in harness.listed("pods", namespace)
    )


@pytest.mark.slow
def test_a_launcher_that_was_killed_is_followed_by_one_that_adopts(run: Run) -> None:
    """SIGKILL leaves the job alone; the same command finds it and follows it to its end."""
    run.wait_for_the_middle()
    job = harness.get("pytorchjob", run.namespace, run.name)
    assert job is not None
    run.launcher.process.kill()
    run.launcher.wait(10)

    with training.launcher(run.experiment, run.profile, run.folder) as second:
        run.ends_with_the_same_weights(second)

        assert second.said("adopted")
    after = harness.get("pytorchjob", run.namespace, run.name)
    assert after is not None
    assert after["metadata"]["uid"] == job["metadata"]["uid"]
