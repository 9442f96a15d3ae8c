"""People at a shell: two at once, Ctrl-C, `cancel`, `status`."""

import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.cluster import harness, training, volumes
from tests.cluster.training import CHECKPOINT_EVERY, Experiment, Launcher, Staged

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(900)]


def pipelines(*arguments: str) -> str:
    """`python -m pipelines` at the shell of the cluster's kubeconfig; what it printed."""
    command = [sys.executable, "-m", "pipelines", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, env=harness.environment(), cwd=volumes.REPOSITORY)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def nothing_left(namespace: str, experiment: Experiment) -> bool:
    """Neither the job nor a pod."""
    return not harness.get("pytorchjob", namespace, experiment.identity.name) and not harness.listed("pods", namespace)


def job_uid(namespace: str, experiment: Experiment) -> str:
    """Of the experiment's job."""
    job = harness.get("pytorchjob", namespace, experiment.identity.name)
    assert job is not None
    return str(job["metadata"]["uid"])


def follows(launcher: Launcher) -> bool:
    """Whether it says how far the job is."""
    return launcher.said("adopted") or launcher.said("was created")


def test_cancel_leaves_nothing_but_the_store_within_30_seconds(staged: Staged, restricted_namespace: str, tmp_path: Path) -> None:
    """From another shell; the launcher that waited says so and fails. `status` names the job before, and nothing after."""
    experiment = training.plan(staged, recipe="long.yaml")
    profile = training.write_profile(tmp_path, restricted_namespace, staged)
    with training.launcher(experiment, profile, tmp_path) as launcher:
        experiment.wait_for_commit(CHECKPOINT_EVERY)
        table = json.loads(pipelines("status", "--namespace", restricted_namespace, "--json"))
        assert experiment.name in json.dumps(table)
        began = time.monotonic()

        pipelines("cancel", experiment.name, "--namespace", restricted_namespace)

        seconds = time.monotonic() - began
        print(f"\nmeasured: cancel: nothing left after {seconds:.1f} s")
        assert nothing_left(restricted_namespace, experiment)
        assert seconds <= 30
        assert launcher.wait(60) == 1, launcher.tail()
        assert experiment.committed_step() > 0


def test_ctrl_c_at_the_shell_ends_the_job(staged: Staged, restricted_namespace: str, tmp_path: Path) -> None:
    """Nobody else holds it."""
    experiment = training.plan(staged, recipe="long.yaml")
    profile = training.write_profile(tmp_path, restricted_namespace, staged, nodes=1)
    with training.launcher(experiment, profile, tmp_path) as launcher:
        experiment.wait_for_commit(CHECKPOINT_EVERY)
        launcher.send(signal.SIGINT)

        assert launcher.wait(60) != 0
        harness.wait_until("job and pods to go", lambda: nothing_left(restricted_namespace, experiment), 30)


def test_two_runs_of_one_experiment_share_one_job(staged: Staged, restricted_namespace: str, tmp_path: Path) -> None:
    """Both follow it; the one that leaves first leaves it to the other, who gets the weights."""
    experiment = training.plan(staged)
    profile = training.write_profile(tmp_path, restricted_namespace, staged)
    with (
        training.launcher(experiment, profile, tmp_path, FIRSTSIGHT_HOLDER="first") as first,
        training.launcher(experiment, profile, tmp_path, FIRSTSIGHT_HOLDER="second") as second,
    ):
        experiment.wait_for_commit(CHECKPOINT_EVERY)
        harness.wait_until("both to follow", lambda: follows(first) and follows(second), 60)
        uid = job_uid(restricted_namespace, experiment)
        first.send(signal.SIGINT)
        assert first.wait(60) != 0
        assert job_uid(restricted_namespace, experiment) == uid

        assert second.wait() == 0, second.tail()

    assert first.said("adopted") != second.said("adopted")
    assert training.final_weights(experiment) == staged.weights[experiment.recipe]


def test_another_recipe_under_the_same_name_is_refused(staged: Staged, restricted_namespace: str, tmp_path: Path) -> None:
    """The differing key is named, and the running job goes on."""
    experiment = training.plan(staged, recipe="long.yaml")
    profile = training.write_profile(tmp_path, restricted_namespace, staged, nodes=1)
    with training.launcher(experiment, profile, tmp_path):
        experiment.wait_for_commit(CHECKPOINT_EVERY)
        with pytest.raises(SystemExit) as refused:
            training.plan(staged, experiment.name)

        assert refused.value.code == 2
        assert job_uid(restricted_namespace, experiment)
