"""Jobs in a queue of Kueue's: they wait, are preempted and admitted again, and none of that counts as a failure."""

import dataclasses
from collections.abc import Callable

import pytest

from pipelines.cluster.kueue import QUEUE_LABEL
from pipelines.jobs import monitor
from pipelines.profile.settings import JobSettings, Patience
from tests.pipelines import fake_kueue
from tests.pipelines.fake_kueue import NEVER, NO_ROOM, PREEMPTED, suspend
from tests.pipelines.launching import Launch, Scene, annotations, scene
from tests.pipelines.operator import JOBS, eventually

__all__ = ["scene"]
EVICTED = ("Evicted", "True", "Preempted", PREEMPTED)
QUEUED = JobSettings(nodes=2, labels={QUEUE_LABEL: "gpus"}, max_incidents=0)


@pytest.fixture
def queued(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> Scene:
    """A scene on a cluster with Kueue and a queue."""
    monkeypatch.setattr(monitor, "ASK_SECONDS", 0.05)
    fake_kueue.serve(scene.api, "v1beta1", "v1beta2")
    fake_kueue.queue(scene.api, "gpus")
    return scene


def preempt(scene: Scene, *, pods_go: bool = True) -> None:
    """As Kueue does it: the Workload says why, the job is suspended, and then its operator deletes the pods."""
    job = scene.job()
    assert job is not None
    fake_kueue.workload(scene.api, job, EVICTED, ("QuotaReserved", "False", "Pending", NO_ROOM))
    suspend(scene.api, scene.name)
    for index in (0, 1) if pods_go else ():
        scene.api.remove("pods", scene.pod(index))


def admit(scene: Scene) -> None:
    """Kueue lifts the suspension; the operator makes pods under the same names."""
    job = scene.job()
    assert job is not None
    fake_kueue.workload(scene.api, job, ("QuotaReserved", "True", "QuotaReserved", ""), ("Evicted", "False", "QuotaReserved", ""))
    suspend(scene.api, scene.name, suspended=False)
    scene.operator.make_pods(job)


def seen(launch: Launch) -> bool:
    """Whether the launcher knows both pods."""
    return len(launch.job._incidents._uids) == 2


def replace_pods(queued: Scene, launch: Launch) -> None:
    """The old pods go and the queue admits the job again, until the launcher has seen the new ones."""
    for index in (0, 1):
        queued.api.remove("pods", queued.pod(index))
    admit(queued)
    eventually(lambda: seen(launch))


def test_a_job_that_is_preempted_again_and_again_uses_up_no_incident(queued: Scene):
    """Not one is allowed. Who waits is told of each preemption at once, in Kueue's words."""
    launch = queued.running(settings=QUEUED)
    for times in (1, 2, 3):
        eventually(lambda: seen(launch))
        preempt(queued)
        eventually(lambda times=times: launch.text().count("was suspended, and resumes from its last checkpoint once admitted") == times)
        admit(queued)
    eventually(lambda: seen(launch))
    queued.succeed()

    assert launch.outcome().exit_code == 0
    assert launch.job._incidents.count == 0
    assert f"once admitted: preempted: {PREEMPTED}; it waits in queue gpus: {NO_ROOM}" in launch.text()
    assert "firstsight.dev/incidents" not in annotations(queued)


def test_pods_that_go_late_are_no_incident_of_those_that_come(queued: Scene):
    """The job is suspended and admitted again while the watch still shows the old pods."""
    launch = queued.running(settings=QUEUED)
    eventually(lambda: seen(launch))
    preempt(queued, pods_go=False)
    eventually(lambda: "was suspended" in launch.text())
    suspend(queued.api, queued.name, suspended=False)
    eventually(lambda: not launch.job._incidents._uids)
    replace_pods(queued, launch)
    queued.succeed()

    assert launch.outcome().exit_code == 0
    assert launch.job._incidents.count == 0


def test_what_happens_to_pods_after_a_preemption_counts_again(queued: Scene):
    launch = queued.running(settings=QUEUED)
    eventually(lambda: seen(launch))
    preempt(queued)
    eventually(lambda: "was suspended" in launch.text())
    admit(queued)
    eventually(lambda: seen(launch))
    queued.operator.restart(queued.pod(0), message="lost its node")

    outcome = launch.outcome()
    assert outcome.exit_code == 1
    assert "was interrupted again, more than 0 times (jobs.max_incidents): lost its node" in outcome.line


def test_a_launcher_that_comes_while_the_job_is_preempted_adopts_it(queued: Scene):
    """It never saw the job run, and says all the same why it waits."""
    first = queued.running(settings=QUEUED)
    eventually(lambda: seen(first))
    preempt(queued)
    second = queued.launch(settings=QUEUED)
    eventually(lambda: "adopted" in second.text() and f"waiting: preempted: {PREEMPTED}" in second.text())
    admit(queued)
    eventually(lambda: seen(second))
    queued.succeed()

    assert [first.outcome().exit_code, second.outcome().exit_code] == [0, 0]


@pytest.mark.parametrize(
    ("prepare", "line"),
    [
        (lambda scene: scene.api.remove(fake_kueue.QUEUES, "gpus"), "queue must name a LocalQueue of namespace team, got 'gpus'"),
        (lambda scene: scene.api.served.difference_update([path for path in scene.api.served if "kueue" in path]), "install Kueue"),
    ],
    ids=["no queue", "no Kueue"],
)
def test_no_job_is_made_for_a_queue_that_is_not_there(queued: Scene, prepare: Callable[[Scene], object], line: str):
    """Exit 2: it would wait for ever, or run without one."""
    prepare(queued)

    outcome = queued.launch(settings=QUEUED).outcome()

    assert outcome.exit_code == 2
    assert line in outcome.line
    assert queued.operator.created == []


def test_a_queue_that_is_stopped_in_mid_run_is_waited_for(queued: Scene):
    """Somebody serves the cluster: cells that come now wait with those that it evicted."""
    fake_kueue.queue(queued.api, "gpus", stopped="LocalQueue is stopped")
    launch = queued.launch(settings=QUEUED, suspended=True)
    job = eventually(queued.job)
    fake_kueue.workload(queued.api, job, ("QuotaReserved", "False", "Inadmissible", "LocalQueue gpus is inactive"))
    eventually(lambda: "waiting: it waits in queue gpus: LocalQueue gpus is inactive" in launch.text())
    admit(queued)
    eventually(lambda: seen(launch))
    queued.succeed()

    assert launch.outcome().exit_code == 0


@pytest.mark.parametrize(
    ("conditions", "patience", "line"),
    [
        (
            [("QuotaReserved", "False", "Pending", NEVER)],
            {"unschedulable": 1},
            "maximum capacity (2) (for 1 s: jobs.patience.unschedulable)",
        ),
        ([], {"ignored": 1}, "is kubeflow.org/pytorchjob among its integrations.frameworks? (for 1 s: jobs.patience.ignored)"),
        ([("QuotaReserved", "False", "Pending", NO_ROOM)], {"queued": 1}, f"{NO_ROOM} (for 1 s: jobs.patience.queued)"),
    ],
    ids=["never fits", "integration off", "no room"],
)
def test_a_queue_that_will_not_admit_it_is_waited_for_as_long_as_each_cause_says(
    queued: Scene, conditions: list[tuple[str, str, str, str]], patience: dict[str, int], line: str
):
    """A quota that is too small for ever is soon told, one that is used up is waited for."""
    launch = queued.launch(settings=dataclasses.replace(QUEUED, patience=Patience(**patience)), suspended=True)
    job = eventually(queued.job)
    if conditions:
        fake_kueue.workload(queued.api, job, *conditions)

    outcome = launch.outcome()

    assert outcome.exit_code == 1
    assert outcome.line.endswith(line)
    assert queued.clean()


def test_a_quota_that_shrank_under_a_job_that_ran_is_given_longer(queued: Scene):
    """As a node is that went: it may come back."""
    launch = queued.running(settings=dataclasses.replace(QUEUED, patience=Patience(unschedulable=0)))
    eventually(lambda: seen(launch))
    job = queued.job()
    assert job is not None
    fake_kueue.workload(queued.api, job, EVICTED, ("QuotaReserved", "False", "Pending", NEVER))
    suspend(queued.api, queued.name)
    eventually(lambda: "maximum capacity" in launch.text())
    replace_pods(queued, launch)
    queued.succeed()

    assert launch.outcome().exit_code == 0
    assert queued.api.find(JOBS, queued.name) is not None
