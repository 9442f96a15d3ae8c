"""Two-node PyTorchJobs on demo shards in MinIO: undisturbed, and through everything that clusters do to them.

Whatever happened, the final weights are those of two ranks on this machine, and no step is lost after the last commit.
"""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.cluster import harness, training
from tests.cluster.conftest import Kubectl
from tests.cluster.training import CHECKPOINT_EVERY, Experiment, Launcher, Staged

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(900)]


@dataclass(frozen=True)
class Loss:
    """What broke a run off: the step committed before, and the POSIX times between which it came and was made good."""

    what: str
    committed: int
    since: float
    until: float


class Run:
    """A launched two-node experiment, in the middle of its steps."""

    def __init__(self, staged: Staged, namespace: str, experiment: Experiment, launcher: Launcher, profile: str, folder: Path) -> None:
        self.staged, self.namespace, self.experiment, self.launcher = staged, namespace, experiment, launcher
        self.profile, self.folder = profile, folder
        self.name = experiment.identity.name
        self.losses: list[Loss] = []

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
        assert training.final_weights(self.experiment) == self.staged.weights[self.experiment.recipe]

    def loses(self, what: str, act: Callable[[], object]) -> None:
        """Do something that breaks the run off, some steps later perhaps, and wait until it has gone on and saved again."""
        committed, since, restarts = self.wait_for_the_middle(), time.time(), self.experiment.restarts()
        act()
        harness.wait_until(f"a checkpoint after: {what}", lambda: self.experiment.restarts() > restarts, 600)
        self.losses.append(Loss(what, committed, since, until=time.time()))

    def recovered(self) -> list[float]:
        """When the run has ended (its log is whole then): of each loss, seconds to its first new step, which is after the commit."""
        found = []
        for loss in self.losses:
            seconds, step = self.experiment.recovery(loss.since, loss.until)
            assert step > loss.committed, f"{loss.what}: began again at step {step}, though {loss.committed} was committed"
            print(f"\nmeasured: {loss.what}: first new step (step {step}) after {seconds:.1f} s")
            found.append(seconds)
        return found

    def is_in_the_middle(self) -> bool:
        """Whether there are steps to come, so that what was done to it was done mid-run."""
        return self.experiment.seal() is None


@contextmanager
def launched(staged: Staged, namespace: str, folder: Path, recipe: str) -> Iterator[Run]:
    """Plan an experiment and launch its job."""
    experiment = training.plan(staged, recipe=recipe)
    profile = training.write_profile(folder, namespace, staged)
    with training.launcher(experiment, profile, folder) as launcher:
        yield Run(staged, namespace, experiment, launcher, profile, folder)


@pytest.fixture
def run(staged: Staged, restricted_namespace: str, tmp_path: Path) -> Iterator[Run]:
    """A job that has just been launched."""
    with launched(staged, restricted_namespace, tmp_path, "short.yaml") as running:
        yield running


@pytest.fixture
def longer_run(staged: Staged, restricted_namespace: str, tmp_path: Path) -> Iterator[Run]:
    """A job that has just been launched, with time enough for all that is to happen to it."""
    with launched(staged, restricted_namespace, tmp_path, "medium.yaml") as running:
        yield running


def test_two_nodes_end_with_the_weights_of_two_local_ranks(run: Run) -> None:
    """The log of rank 0 and progress reach the one who waits; the job itself stays to be looked at, its pods are cleaned."""
    run.ends_with_the_same_weights()

    assert run.launcher.said("PyTorchJob")
    assert run.launcher.said("final model committed")
    assert harness.get("pytorchjob", run.namespace, run.name) is not None


def test_lost_processes_cost_seconds_and_no_weight(longer_run: Run, kubectl: Kubectl) -> None:
    """Pods deleted by force, worker-0's too, with which the rendezvous is lost; a rank killed, as the kernel does for lack of memory."""
    namespace = longer_run.namespace

    def delete(index: int) -> None:
        kubectl("-n", namespace, "delete", "pod", longer_run.pod(index), "--force", "--grace-period=0")

    def kill_a_rank() -> None:
        ranks = "$(pgrep -o -P 1)"  # children of the agent, which is the init's
        kubectl("-n", namespace, "exec", longer_run.pod(1), "--", "sh", "-c", f"pkill -KILL -P {ranks}")

    longer_run.loses("worker-1 deleted by force", lambda: delete(1))
    longer_run.loses("worker-0 deleted by force", lambda: delete(0))
    before = restarts(namespace)
    longer_run.loses("training process killed", kill_a_rank)
    assert longer_run.is_in_the_middle()
    assert restarts(namespace) == before, "the group is to restart in place, without its containers"

    longer_run.ends_with_the_same_weights()
    of_worker_1, of_worker_0, _ = longer_run.recovered()
    assert of_worker_1 <= 60, "9 to 11 s on a quiet machine"
    assert of_worker_0 <= 180, "12 to 14 s on a quiet machine"


def restarts(namespace: str) -> list[int]:
    """Of the workers' containers."""
    return [pod["status"]["containerStatuses"][0]["restartCount"] for pod in harness.listed("pods", namespace)]


@pytest.mark.alone
def test_a_store_and_a_launcher_that_come_again(longer_run: Run) -> None:
    """MinIO's pod is deleted and comes back with its data. SIGKILL of the launcher leaves the job alone: the same command adopts it."""
    longer_run.wait_for_the_middle()
    longer_run.staged.store.restart()
    job = harness.get("pytorchjob", longer_run.namespace, longer_run.name)
    assert job is not None
    assert longer_run.is_in_the_middle()
    longer_run.launcher.process.kill()
    longer_run.launcher.wait(10)

    with training.launcher(longer_run.experiment, longer_run.profile, longer_run.folder) as second:
        longer_run.ends_with_the_same_weights(second)

        assert second.said("adopted")
    after = harness.get("pytorchjob", longer_run.namespace, longer_run.name)
    assert after is not None
    assert after["metadata"]["uid"] == job["metadata"]["uid"]


@pytest.mark.alone
def test_a_node_that_is_drained_and_whose_servers_restart_costs_nothing_but_time(longer_run: Run, kubectl: Kubectl) -> None:
    """Evicted pods save on SIGTERM; the job waits for a node and goes on. Containers outlive API server, kubelet and containerd."""
    run = longer_run
    run.wait_for_the_middle()
    node = harness.listed("nodes", run.namespace)[0]["metadata"]["name"]
    selector = f"--pod-selector=firstsight.dev/experiment={run.experiment.name}"
    kubectl("drain", node, selector, "--ignore-daemonsets", "--delete-emptydir-data", "--force", "--timeout=200s")
    drained = run.experiment.committed_step()
    try:
        harness.wait_until("a pod that waits for a node", lambda: pending(run.namespace), 60)
    finally:
        kubectl("uncordon", node)
    assert drained % CHECKPOINT_EVERY or drained > 3 * CHECKPOINT_EVERY  # what SIGTERM saved
    run.experiment.wait_for_commit(drained + CHECKPOINT_EVERY)
    for name in ("apiserver", "kubelet", "containerd") if harness.own_cluster() else ():  # another's servers are not ours to stop
        assert run.is_in_the_middle(), f"had ended before {name} was restarted"
        harness.node_fault(name)

    run.ends_with_the_same_weights()


def pending(namespace: str) -> bool:
    """Whether a pod of the namespace waits for a node."""
    return any(
        pod["status"]["phase"] == "Pending" and "deletionTimestamp" not in pod["metadata"] for pod in harness.listed("pods", namespace)
    )
