"""What cannot be: said within its patience and a minute, the reason in the last line, nothing left running."""

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.cluster import harness, training
from tests.cluster.conftest import Kubectl
from tests.cluster.training import Staged

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(900)]

PATIENCE = 5
IMPATIENT = {cause: PATIENCE for cause in ("unschedulable", "image", "configuration", "refused", "ignored", "queued")}


def last_line(launcher: training.Launcher) -> str:
    """What it said last."""
    return [line for line in launcher.lines() if line.strip()][-1]


def fails(staged: Staged, namespace: str, folder: Path, code: int, /, *, placement: dict[str, Any] | None = None, **changes: Any) -> str:
    """Launch with these settings of jobs; the last line of what must fail with this exit code."""
    experiment = training.plan(staged, **(placement or {}))
    profile = training.write_profile(folder, namespace, staged, **{"patience": IMPATIENT, **changes})
    with training.launcher(experiment, profile, folder) as launcher:
        assert launcher.wait(PATIENCE + 60) == code, launcher.tail()
        assert experiment.seal() is None
        job = harness.get("pytorchjob", namespace, experiment.identity.name)
        assert job is None or not running_pods(namespace), harness.describe(namespace)
        return last_line(launcher)


def refused(staged: Staged, namespace: str, folder: Path, config: dict[str, Any]) -> str:
    """Launch with this kubeconfig; the last line of what must be refused within a minute."""
    kubeconfig = folder / "kubeconfig"
    kubeconfig.write_text(json.dumps(config))
    profile = training.write_profile(folder, namespace, staged)
    with training.launcher(training.plan(staged), profile, folder, KUBECONFIG=str(kubeconfig)) as launcher:
        assert launcher.wait(60) == 2, launcher.tail()
        return last_line(launcher)


def running_pods(namespace: str) -> list[str]:
    """Names of the pods that hold something."""
    return [pod["metadata"]["name"] for pod in harness.listed("pods", namespace) if pod["status"]["phase"] in ("Pending", "Running")]


@pytest.mark.parametrize(
    ("changes", "code", "reason"),
    [
        pytest.param({"cpu": "1000"}, 1, "Insufficient cpu", id="more CPU than any node has"),
        pytest.param({"gpus_per_node": 1}, 2, "jobs.gpus_per_node", id="a GPU where there is none"),
        pytest.param({"gpus_per_node": 1, "gpu_resource": "nvidia.com/mig-1g.10gb"}, 2,
                     "the nvidia.com/mig-1g.10gb count of the largest node",
                     id="a MIG slice where there is none"),
        pytest.param({"training_pod_template": {"spec": {"tolerationz": [{"operator": "Exists"}]}}}, 2,
                     'strict decoding error: unknown field "spec.pytorchReplicaSpecs', id="a typo in a template"),
        pytest.param({"image": "registry.invalid/firstsight:none"}, 1, "registry.invalid/firstsight:none", id="an unavailable image"),
        pytest.param({"store_secret": "elsewhere"}, 1, 'secret "elsewhere" not found', id="a missing secret"),
        pytest.param({"pod_template": {"spec": {"volumes": [{"name": "x", "persistentVolumeClaim": {"claimName": "none"}}]}}}, 1,
                     'persistentvolumeclaim "none" not found', id="a missing volume"),
        pytest.param({"pod_template": {"spec": {"hostNetwork": True}}}, 1, "violates PodSecurity", id="a pod that policy forbids"),
        pytest.param({"namespace": "fs-nowhere"}, 2, "fs-nowhere", id="a missing namespace"),
    ],
)  # fmt: skip
def test_what_can_never_start_is_said(
    staged: Staged, restricted_namespace: str, tmp_path: Path, changes: dict[str, Any], code: int, reason: str
) -> None:
    """One case for each cause; the reason is the cluster's own words."""
    assert reason in fails(staged, restricted_namespace, tmp_path, code, **changes)


def test_a_quota_that_leaves_no_pod_is_said(staged: Staged, restricted_namespace: str, tmp_path: Path) -> None:
    """The job is there and its pods are refused."""
    quota = {"apiVersion": "v1", "kind": "ResourceQuota", "metadata": {"name": "none"}, "spec": {"hard": {"pods": "0"}}}
    harness.apply(quota, restricted_namespace)

    assert "exceeded quota: none" in fails(staged, restricted_namespace, tmp_path, 1)


def test_an_account_without_rights_is_told_the_verb_and_the_resource(
    staged: Staged, restricted_namespace: str, tmp_path: Path, kubectl: Kubectl
) -> None:
    """A kubeconfig whose user may do nothing."""
    kubectl("-n", restricted_namespace, "create", "serviceaccount", "nobody")
    token = kubectl("-n", restricted_namespace, "create", "token", "nobody").strip()
    config: dict[str, Any] = yaml.safe_load(kubectl("config", "view", "--raw", "--minify", "-o", "json"))
    config["users"] = [{"name": config["users"][0]["name"], "user": {"token": token}}]

    line = refused(staged, restricted_namespace, tmp_path, config)

    assert "pytorchjobs" in line
    assert "nobody" in line


def test_a_server_that_does_not_answer_is_named(staged: Staged, restricted_namespace: str, tmp_path: Path, kubectl: Kubectl) -> None:
    """A kubeconfig of a cluster that is gone."""
    config: dict[str, Any] = yaml.safe_load(kubectl("config", "view", "--raw", "--minify", "-o", "json"))
    config["clusters"][0]["cluster"]["server"] = "https://127.0.0.1:9"

    assert "https://127.0.0.1:9" in refused(staged, restricted_namespace, tmp_path, config)


def test_a_kind_that_the_cluster_does_not_have_is_named(
    staged: Staged, restricted_namespace: str, tmp_path: Path, kubectl: Kubectl
) -> None:
    """TrainJobs, where no Trainer v2 is installed."""
    if "trainjobs.trainer.kubeflow.org" in kubectl("get", "crd", "-o", "name"):
        pytest.skip("this cluster has Trainer v2")
    experiment = training.plan(staged)
    profile = Path(training.write_profile(tmp_path, restricted_namespace, staged))
    profile.write_text(yaml.safe_dump({**yaml.safe_load(profile.read_text()), "backend": "trainjob"}))

    with training.launcher(experiment, str(profile), tmp_path) as launcher:
        assert launcher.wait(60) == 2, launcher.tail()
        assert "trainjobs.trainer.kubeflow.org" in last_line(launcher)


def test_a_suspended_job_waits_for_its_queue_and_says_so_if_none_comes(
    staged: Staged, restricted_namespace: str, tmp_path: Path, kubectl: Kubectl
) -> None:
    """`suspend` set as a queue does and never lifted."""
    experiment = training.plan(staged)
    patience = {"queued": PATIENCE}
    profile = training.write_profile(tmp_path, restricted_namespace, staged, patience=patience)
    with training.launcher(experiment, profile, tmp_path) as launcher:
        suspend(kubectl, restricted_namespace, experiment.identity.name, True)

        assert launcher.wait(PATIENCE + 60) == 1, launcher.tail()
        assert "no queue has admitted it" in last_line(launcher)


def test_a_queue_that_lifts_suspend_lets_the_job_run(staged: Staged, restricted_namespace: str, tmp_path: Path, kubectl: Kubectl) -> None:
    """Taken back mid-run, held for a while, then admitted again: the same weights as ever."""
    experiment = training.plan(staged)
    profile = training.write_profile(tmp_path, restricted_namespace, staged)
    with training.launcher(experiment, profile, tmp_path) as launcher:
        experiment.wait_for_commit(training.CHECKPOINT_EVERY)
        suspend(kubectl, restricted_namespace, experiment.identity.name, True)
        harness.wait_until("its pods to go", lambda: not harness.listed("pods", restricted_namespace), 60)
        suspend(kubectl, restricted_namespace, experiment.identity.name, False)

        assert launcher.wait() == 0, launcher.tail()
        assert training.final_weights(experiment) == staged.weights[experiment.recipe]


def suspend(kubectl: Kubectl, namespace: str, name: str, value: bool) -> None:
    """Set `suspend` of a job as soon as it is there."""
    harness.wait_until("the job", lambda: harness.get("pytorchjob", namespace, name), 60)
    patch = json.dumps({"spec": {"runPolicy": {"suspend": value}}})
    kubectl("-n", namespace, "patch", "pytorchjob", name, "--type=merge", "-p", patch)


@pytest.mark.parametrize(
    ("placement", "changes", "reason"),
    [
        pytest.param({}, {"nodes": 3}, "contrastive.global_batch_size", id="found before the agent starts ranks"),
        pytest.param({"device": "cuda"}, {}, "placement.device", id="found by a rank"),
    ],
)
def test_a_configuration_error_ends_the_job_at_once(
    staged: Staged, restricted_namespace: str, tmp_path: Path, placement: dict[str, Any], changes: dict[str, Any], reason: str
) -> None:
    """Exit code 2, the trainer's own line, and no restart loop: the job is gone or has no container that ever restarted."""
    said = fails(staged, restricted_namespace, tmp_path, 2, placement=placement, patience={}, **changes)

    assert reason in said


def test_a_worker_that_exits_0_early_does_not_make_the_stage_done(staged: Staged, restricted_namespace: str, tmp_path: Path) -> None:
    """The operator then says Succeeded; the launcher looks for the seal."""
    experiment = training.plan(staged)
    profile = training.write_profile(tmp_path, restricted_namespace, staged, max_incidents=0, pod_template=leaving_worker())
    with training.launcher(experiment, profile, tmp_path) as launcher:
        assert launcher.wait() == 1, launcher.tail()

        assert "ended without its result" in last_line(launcher)
        assert experiment.seal() is None


def leaving_worker() -> dict[str, Any]:
    """Pods of which worker-1 ends well before it has done anything."""
    template = training.trainer_template()
    script = 'case "$HOSTNAME" in *-worker-1) exit 0;; esac; exec python -m trainer "$@"'
    template["spec"]["containers"][0]["command"] = ["sh", "-c", script, "trainer"]
    return template
