"""Queues of a real Kueue: jobs wait for quota, are admitted, preempted by priority while they train, and go on.

What `status` says meanwhile is Kueue's own reason. One scenario is in `make e2e`, the others (marked kueue) in `make e2e-kueue`.
"""

import contextlib
import json
import secrets
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from pipelines.__main__ import main
from pipelines.cluster.connection import Cluster
from pipelines.cluster.kueue import Kueue
from pipelines.jobs.shapes.pytorchjob import PYTORCHJOB
from pipelines.steps.links import accept
from tests.cluster import harness, kueue, training
from tests.cluster.conftest import Kubectl
from tests.cluster.kueue import PRIORITY_LABEL, QUEUE, QUEUE_LABEL, URGENT, Queue
from tests.cluster.test_runs import pipelines
from tests.cluster.training import CHECKPOINT_EVERY, Experiment, Launcher, Staged
from trainer.storage import layout, read_json

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(900)]
TWO_NODES = "200m"
"""What one job of two nodes asks for."""


@pytest.fixture(scope="module", autouse=True)
def controller(kubectl: Kubectl) -> None:
    """Kueue, with its PyTorchJob integration switched on; on another cluster it must be there."""
    if harness.own_cluster():
        kueue.deploy()
    elif "kueue.x-k8s.io/" not in kubectl("api-versions"):
        pytest.skip("needs Kueue, with its integrations batch/job and kubeflow.org/pytorchjob")
    kueue.prepare()


@pytest.fixture
def queue(restricted_namespace: str) -> Iterator[Queue]:
    """A queue with room for one job of two nodes."""
    with kueue.queue(restricted_namespace, TWO_NODES) as made:
        yield made


@pytest.fixture
def profile(queue: Queue, staged: Staged, tmp_path: Path) -> str:
    """A run profile whose jobs name the queue; no incident is allowed them."""
    return training.write_profile(tmp_path, queue.namespace, staged, labels={QUEUE_LABEL: QUEUE}, max_incidents=0)


def row(queue: Queue, experiment: Experiment) -> dict[str, Any]:
    """What `status` says of the experiment's job; empty before it is made."""
    rows = json.loads(pipelines("status", "--namespace", queue.namespace, "--experiment", experiment.name, "--json"))
    return next((found for found in rows if found["job"] == experiment.identity.name), {})


def is_said(queue: Queue, experiment: Experiment, state: str, why: str) -> bool:
    """Whether `status` says this of the job."""
    found = row(queue, experiment)
    return bool(found) and found["state"] == state and why in found["why"]


def ended_well(experiment: Experiment, launcher: Launcher, queue: Queue) -> None:
    """The launcher ends with 0."""
    code = launcher.wait()
    assert code == 0, f"{launcher.tail()}\n{harness.describe(queue.namespace)}"


def test_a_job_waits_for_quota_is_preempted_while_it_trains_and_ends_with_the_same_weights(
    staged: Staged, queue: Queue, profile: str, tmp_path: Path
) -> None:
    """Kueue's reasons are what `status` and the launcher say; not one incident is counted, and no committed step is lost."""
    queue.fill("first", TWO_NODES)
    experiment = training.plan(staged, recipe="medium.yaml")
    with training.launcher(experiment, profile, tmp_path) as launcher:
        reason = "it waits in queue gpus: couldn't assign flavors to pod set worker: insufficient unused quota for cpu"
        harness.wait_until("status to say why the job waits", lambda: is_said(queue, experiment, "Queued", reason), 120, every=1)
        assert harness.listed("pods", queue.namespace, f"training.kubeflow.org/job-name={experiment.identity.name}") == []

        queue.free("first")
        committed = experiment.wait_for_commit(3 * CHECKPOINT_EVERY)
        queue.fill("second", TWO_NODES, **{PRIORITY_LABEL: URGENT})
        reason = "preempted: Preempted to accommodate a workload"
        harness.wait_until("status to say that it was preempted", lambda: is_said(queue, experiment, "Preempted", reason), 120, every=1)
        assert experiment.seal() is None, "ended before it could be preempted"
        harness.wait_until("the launcher to say so", lambda: launcher.said(f"resumes from its last checkpoint once admitted: {reason}"), 60)
        saved = experiment.committed_step()
        assert saved >= committed

        queue.free("second")
        ended_well(experiment, launcher, queue)

    assert training.final_weights(experiment) == staged.weights[experiment.recipe]
    steps = [record["step"] for record in experiment.records()]
    assert steps == list(range(1, len(steps) + 1)), "a step is missing, or there twice"
    assert not launcher.said("was interrupted")
    job = harness.get("pytorchjob", queue.namespace, experiment.identity.name)
    assert job is not None
    assert "firstsight.dev/incidents" not in job["metadata"]["annotations"]


@pytest.mark.kueue
def test_three_cells_at_once_are_admitted_one_by_one(staged: Staged, queue: Queue, profile: str, tmp_path: Path) -> None:
    """All are submitted, suspended, to a queue with room for one; `status` shows who waits; all end well.

    Evaluation is an Indexed Job, which is suspended and admitted in the same way.
    """
    asked = {"parallel_cells": "0", "backend": "pytorchjob", "queue": QUEUE}
    cells = training.plan_cells(staged, range(3), f"e-{secrets.token_hex(3)}", "short.yaml", asked)
    lanes = [f"lane-{number}-of-3" for number in (1, 2, 3)]
    with contextlib.ExitStack() as stack:
        launchers = [stack.enter_context(training.launcher(cell, profile, tmp_path, lane)) for cell, lane in zip(cells, lanes, strict=True)]
        harness.wait_until("all jobs to be submitted", lambda: len(jobs(queue)) == 3, 300)
        waiting = harness.wait_until("two to wait", lambda: (rows := queued(queue)) and len(rows) == 2 and rows, 120, every=1)
        assert all("it waits in queue gpus: couldn't assign flavors" in one["why"] for one in waiting)
        most = 0
        while any(launcher.process.poll() is None for launcher in launchers):
            most = max(most, sum(not job["spec"]["runPolicy"].get("suspend") and not has_ended(job) for job in jobs(queue)))
            assert most <= 1, "more ran at once than the quota has room for"
            with contextlib.suppress(Exception):
                launchers[0].process.wait(0.5)
        for cell, launcher in zip(cells, launchers, strict=True):
            ended_well(cell, launcher, queue)

        with training.launcher(cells[0], profile, tmp_path, lanes[0], step="evaluate") as launcher:
            ended_well(cells[0], launcher, queue)
            (evaluation,) = harness.listed("jobs", queue.namespace, "firstsight.dev/stage=evaluate")

    assert evaluation["metadata"]["labels"][QUEUE_LABEL] == QUEUE
    assert [one["status"] for one in evaluation["status"]["conditions"] if one["type"] == "Suspended"] == ["False"]
    assert most == 1
    assert all(cell.seal() for cell in cells)
    assert training.final_weights(cells[0]) == staged.weights["short.yaml"]


def jobs(queue: Queue) -> list[dict[str, Any]]:
    """PyTorchJobs of the queue's namespace."""
    return harness.listed("pytorchjobs", queue.namespace)


def has_ended(job: dict[str, Any]) -> bool:
    """Whether its conditions say so."""
    return any(one["type"] in ("Succeeded", "Failed") and one["status"] == "True" for one in job.get("status", {}).get("conditions") or [])


def queued(queue: Queue) -> list[dict[str, Any]]:
    """Rows of `status` that wait."""
    return [one for one in json.loads(pipelines("status", "--namespace", queue.namespace, "--json")) if one["state"] == "Queued"]


@pytest.mark.kueue
def test_queues_that_admit_nothing_are_refused_before_a_run_and_said_in_one(
    staged: Staged, queue: Queue, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One that is missing, one that is stopped, one whose ClusterQueue is missing: by the step `links`, in one line."""
    monkeypatch.setenv("KUBECONFIG", harness.environment()["KUBECONFIG"])
    missing = training.write_profile(tmp_path, queue.namespace, staged, labels={QUEUE_LABEL: "nights"})
    named = training.write_profile(tmp_path, queue.namespace, staged, labels={QUEUE_LABEL: QUEUE})
    lost = {"apiVersion": kueue.API, "kind": "LocalQueue", "metadata": {"name": "lost"}, "spec": {"clusterQueue": "nowhere"}}
    harness.apply(lost, queue.namespace)
    assert refusal(staged, missing, monkeypatch).endswith(f"of namespace {queue.namespace}, got 'nights': there are gpus, lost")
    assert refusal(staged, named, monkeypatch) == ""

    queue.stop("Hold")
    harness.wait_until("the refusal of a stopped queue", lambda: "LocalQueue is stopped" in refusal(staged, named, monkeypatch), 60)
    queue.stop("None")
    harness.wait_until("the queue to go on", lambda: not refusal(staged, named, monkeypatch), 60)
    nowhere = training.write_profile(tmp_path, queue.namespace, staged, labels={QUEUE_LABEL: "lost"})
    assert "of ClusterQueue nowhere accepts no jobs: Can't submit new workloads" in refusal(staged, nowhere, monkeypatch)


def refusal(staged: Staged, profile: str, patch: pytest.MonkeyPatch) -> str:
    """What `links` refuses a run with; empty: it takes it."""
    patch.setenv("FIRSTSIGHT_PROFILE", profile)
    name = f"e-{secrets.token_hex(3)}"
    given = {"arms": "random", "seeds": "0", "pairs": "demo", "triplets": "demo"}
    try:
        accept(request="", profile="", run=name, experiment=name, **given)
    except SystemExit as ended:
        if ended.code != 2:
            raise
        return str(read_json(layout.failure(layout.experiment(staged.root, name)))["line"])
    return ""


@pytest.mark.kueue
def test_a_job_that_no_quota_will_ever_admit_is_given_up_with_kueues_words(staged: Staged, queue: Queue, tmp_path: Path) -> None:
    """Long before the patience with a queue is used up; nothing is left."""
    labels, patience = {QUEUE_LABEL: QUEUE}, {"unschedulable": 10}
    profile = training.write_profile(tmp_path, queue.namespace, staged, labels=labels, patience=patience, cpu="4")
    experiment = training.plan(staged)
    with training.launcher(experiment, profile, tmp_path) as launcher:
        assert launcher.wait(180) == 1, launcher.tail()

    assert launcher.said("> maximum capacity (200m) (for 10 s: jobs.patience.unschedulable)")
    assert harness.get("pytorchjob", queue.namespace, experiment.identity.name) is None


@pytest.mark.kueue
def test_a_queue_that_is_drained_gives_its_job_back(staged: Staged, queue: Queue, profile: str, tmp_path: Path) -> None:
    """An operator stops the queue under a job that trains, and lets it go on: the same weights, no incident."""
    experiment = training.plan(staged, recipe="medium.yaml")
    with training.launcher(experiment, profile, tmp_path) as launcher:
        experiment.wait_for_commit(3 * CHECKPOINT_EVERY)
        queue.stop("HoldAndDrain")
        harness.wait_until("status to say why", lambda: is_said(queue, experiment, "Preempted", "LocalQueue is stopped"), 120, every=1)
        assert experiment.seal() is None, "ended before its queue was drained"
        harness.wait_until("its pods to go", lambda: not harness.listed("pods", queue.namespace), 60)
        queue.stop("None")
        ended_well(experiment, launcher, queue)

    assert launcher.said("resumes from its last checkpoint once admitted: evicted: ")
    assert not launcher.said("was interrupted")
    assert training.final_weights(experiment) == staged.weights[experiment.recipe]


@pytest.mark.kueue
def test_a_kind_of_job_that_kueue_does_not_manage_is_said_to_be_one(staged: Staged, queue: Queue, tmp_path: Path, own_node: None) -> None:
    """As newer Kueues are shipped: a job that was created suspended waits for nobody."""
    labels, patience = {QUEUE_LABEL: QUEUE}, {"ignored": 10}
    profile = training.write_profile(tmp_path, queue.namespace, staged, labels=labels, patience=patience)
    asked = {"parallel_cells": "0", "backend": "pytorchjob", "queue": QUEUE}
    (experiment,) = training.plan_cells(staged, (0,), f"e-{secrets.token_hex(3)}", "short.yaml", asked)
    with kueue.integrations("batch/job"), training.launcher(experiment, profile, tmp_path) as launcher:
        assert launcher.wait(180) == 1, launcher.tail()

    assert launcher.said("is kubeflow.org/pytorchjob among its integrations.frameworks? (for 10 s: jobs.patience.ignored)")
    assert harness.get("pytorchjob", queue.namespace, experiment.identity.name) is None


@pytest.mark.kueue
def test_cancel_leaves_nothing_of_a_job_that_runs_and_of_one_that_waits(
    staged: Staged, queue: Queue, profile: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nor a Workload, which holds quota; and what waited for that quota is admitted."""
    monkeypatch.setenv("KUBECONFIG", harness.environment()["KUBECONFIG"])
    running, waiting, last = training.plan(staged, recipe="long.yaml"), training.plan(staged), training.plan(staged)
    with training.launcher(running, profile, tmp_path) as first:
        running.wait_for_commit(CHECKPOINT_EVERY)
        with training.launcher(waiting, profile, tmp_path) as second, training.launcher(last, profile, tmp_path) as third:
            harness.wait_until("two to wait", lambda: len(queued(queue)) == 2, 120, every=1)
            for experiment, launcher in ((waiting, second), (running, first)):
                began = time.monotonic()
                assert main(["cancel", experiment.name, "--namespace", queue.namespace]) == 0
                assert time.monotonic() - began < 30
                assert harness.get("pytorchjob", queue.namespace, experiment.identity.name) is None
                assert launcher.wait(60) == 1, launcher.tail()
            ended_well(last, third, queue)

    assert len(harness.listed("workloads", queue.namespace)) == 1


@pytest.mark.kueue
def test_each_version_of_the_api_says_the_same(
    staged: Staged, queue: Queue, profile: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The cluster serves two; a client that knows but the older one reads the same of a job."""
    monkeypatch.setenv("KUBECONFIG", harness.environment()["KUBECONFIG"])
    queue.fill("first", TWO_NODES)
    experiment = training.plan(staged)
    with training.launcher(experiment, profile, tmp_path):
        harness.wait_until("the job to wait", lambda: is_said(queue, experiment, "Queued", "couldn't assign flavors"), 120, every=1)
        job = harness.get("pytorchjob", queue.namespace, experiment.identity.name)
        assert job is not None
        said = []
        for versions in (["v1beta2"], ["v1beta1"]):
            cluster = Cluster.connect(queue.namespace)
            assert set(versions) < set(cluster.api.versions("kueue.x-k8s.io", "workloads"))
            monkeypatch.setattr(cluster.api, "versions", lambda group, plural, versions=versions: versions)
            said.append((Kueue(cluster).why(job, PYTORCHJOB), Kueue(cluster).require(QUEUE)))

    assert said[0] == said[1]
    assert said[0][0].text.startswith("it waits in queue gpus: couldn't assign flavors")
