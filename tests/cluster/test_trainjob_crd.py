"""TrainJobs and the chart's TrainingRuntime before the schemas of Trainer's oldest and newest release, and Indexed Jobs before batch/v1's.

Their controllers run in `make e2e-trainjob` alone, for they take long to build; here the API server knows just the CRDs.
"""

import contextlib
import dataclasses
import subprocess
from collections.abc import Iterator
from typing import Any

import pytest
import yaml

from pipelines.cluster.api import Api
from pipelines.jobs.shapes.indexed import IndexedJobs
from pipelines.jobs.shapes.trainjob import RUNTIME, TRAINJOB, Form, TrainJobs, form_of
from pipelines.profile.settings import JobSettings
from tests.cluster import harness, programs, trainer_v2, volumes
from tests.cluster.conftest import Kubectl
from tests.pipelines.jobs import trainer_crds
from tests.pipelines.jobs.test_trainjob import SPEC, TEMPLATE
from trainer.errors import InputError

pytestmark = [pytest.mark.cluster, pytest.mark.alone, pytest.mark.timeout(900)]  # others look at a cluster without that kind

CHART = volumes.REPOSITORY / "charts" / "firstsight"
CRDS = "trainer.kubeflow.org_trainjobs.yaml", "trainer.kubeflow.org_trainingruntimes.yaml"


@pytest.fixture(scope="module", params=trainer_v2.RELEASES)
def served(request: pytest.FixtureRequest, kubectl: Kubectl) -> Iterator[TrainJobs]:
    """TrainJobs in the form of the CRDs of a release, which are taken away again where there were none before."""
    part = trainer_v2.RELEASES[request.param].trainer
    form = form_of(trainer_crds.schemas(part.version)["TrainJob"], "")
    there = kubectl("get", "crd", f"{TRAINJOB.plural}.trainer.kubeflow.org", "--ignore-not-found", "-o", "name").strip()
    folder = programs.module_folder(part.tool, trainer_crds.MODULE) / "manifests" / "base" / "crds"
    files = [part for name in CRDS for part in ("-f", str(folder / name))]
    try:
        kubectl("apply", "--server-side", *files)  # their schemas are larger than a client-side apply can remember
        harness.wait_until("the CRDs to be served", lambda: {"trainjobs", "trainingruntimes"} <= served_by(kubectl), seconds=60)
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("KUBECONFIG", harness.environment()["KUBECONFIG"])
            api = Api.connect()
        shape = harness.wait_until("their schemas to be published", lambda: published(api, form), seconds=180)
        yield shape
    finally:
        if not there:
            kubectl("delete", *files, "--wait=true", "--ignore-not-found")


def published(api: Api, form: Form) -> TrainJobs | None:
    """The shape as the server's own documents have it, once that is this form: they follow a CRD by some seconds."""
    with contextlib.suppress(InputError):
        shape = TrainJobs(JobSettings()).served_by(api)
        return shape if shape.form == form else None
    return None


def served_by(kubectl: Kubectl) -> set[str]:
    """The kinds of Trainer's group that the API server knows by now."""
    names = kubectl("api-resources", "--api-group", TRAINJOB.api_version.partition("/")[0], "--cached=false", "-o", "name")
    return {line.partition(".")[0] for line in names.splitlines()}


def accepted(kubectl: Kubectl, namespace: str, thing: dict[str, Any]) -> str:
    """What kubectl says of creating it, in a server-side dry run; an unknown field is a failure."""
    return kubectl("-n", namespace, "create", "--dry-run=server", "--validate=strict", "-f", "-", text=yaml.safe_dump(thing))


def charts_runtime(namespace: str) -> dict[str, Any]:
    """The TrainingRuntime that the chart makes in a run namespace."""
    values = f"trainingRuntime.enabled=true,profileDefaults.backend=trainjob,profileDefaults.namespaces={{{namespace}}}"
    values += ",objectStore.bundled.unstableCredentials=true"
    command = [
        programs.program("helm"),
        "template",
        "firstsight",
        str(CHART),
        "--set",
        values,
        "--show-only",
        "templates/runtime/trainingruntime.yaml",
    ]
    command += ["--api-versions", "trainer.kubeflow.org/v1alpha1/TrainingRuntime"]
    done = subprocess.run(command, capture_output=True, text=True, env=harness.environment())
    assert done.returncode == 0, done.stderr
    (runtime,) = [thing for thing in yaml.safe_load_all(done.stdout) if thing]
    return dict(runtime)


@pytest.mark.parametrize("jobs", [JobSettings(), JobSettings(nodes=2, gpus_per_node=8, store_secret="store", pod_template=TEMPLATE)])
def test_a_trainjob_is_accepted(kubectl: Kubectl, served: TrainJobs, restricted_namespace: str, jobs: JobSettings) -> None:
    """The plainest one, and one that says all that a TrainJob can say."""
    manifest = TrainJobs(dataclasses.replace(jobs, namespace=restricted_namespace), served.form).manifest(SPEC, 1)

    assert "created (server dry run)" in accepted(kubectl, restricted_namespace, manifest)


def test_nothing_of_a_trainjob_is_pruned(kubectl: Kubectl, served: TrainJobs, restricted_namespace: str) -> None:
    """What the API server keeps is what was sent, apart from what it adds."""
    jobs = JobSettings(namespace=restricted_namespace, nodes=2, gpus_per_node=8, store_secret="store", pod_template=TEMPLATE)
    sent = TrainJobs(jobs, served.form).manifest(SPEC, 1)
    harness.apply(sent, restricted_namespace)
    kept = harness.get("trainjobs.trainer.kubeflow.org", restricted_namespace, sent["metadata"]["name"])

    assert kept is not None
    assert sent["spec"] == {part: value for part, value in kept["spec"].items() if part in sent["spec"]}
    assert kept["spec"].keys() - sent["spec"].keys() <= {"suspend", "managedBy"}


def test_the_charts_training_runtime_is_of_the_same_schema_and_the_one_that_trainjobs_name(
    kubectl: Kubectl, served: TrainJobs, restricted_namespace: str
) -> None:
    """Rendered by helm as it would be installed."""
    runtime = charts_runtime(restricted_namespace)

    assert runtime["metadata"]["name"] == RUNTIME
    assert "created (server dry run)" in accepted(kubectl, restricted_namespace, runtime)


def test_an_indexed_job_is_accepted_and_its_pods_are_admitted_under_restricted_pod_security(
    kubectl: Kubectl, restricted_namespace: str
) -> None:
    """Pods exist only if admission let them; each has its index where the trainer reads it."""
    spec = dataclasses.replace(SPEC, purpose="stage", slices=2, arguments=("stage", "fetch", "--plan", "s3://b/d", "--slice", "index/2"))
    jobs = JobSettings(namespace=restricted_namespace, image="firstsight.invalid/trainer:none", staging_cpu="50m", staging_memory="64Mi")
    manifest = IndexedJobs(jobs).manifest(spec, 0)
    assert "created (server dry run)" in accepted(kubectl, restricted_namespace, manifest)
    harness.apply(manifest, restricted_namespace)
    name = manifest["metadata"]["name"]

    def pods() -> list[dict[str, Any]]:
        found = harness.listed("pods", restricted_namespace, f"batch.kubernetes.io/job-name={name}")
        return found if len(found) == 2 else []

    made = harness.wait_until("two pods", pods, seconds=60)

    assert [IndexedJobs(jobs).is_leader(pod) for pod in made].count(True) == 1
    for pod in made:
        environment = {entry["name"]: entry for entry in pod["spec"]["containers"][0]["env"]}
        assert "job-completion-index" in str(environment["JOB_COMPLETION_INDEX"])
