"""Kubeflow Trainer v2 and JobSet, built from their Go modules: for `make e2e-trainjob` alone, since that takes long."""

import shutil
import subprocess
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

from tests.cluster import harness, images, node, programs, settings

TRAINER_IMAGE, JOBSET_IMAGE = "docker.io/kubeflow/trainer-controller-manager", "docker.io/jobset/jobset"
FETCHED = "../../third-party/jobset"
"""What Trainer's overlay would fetch: JobSet is deployed by us."""


@dataclass(frozen=True)
class Part:
    """One of the two.

    Attributes:
        version: of the module.
        tool: folder below tools/.
        program: as programs.py calls it.
    """

    version: str
    tool: str
    program: str


@dataclass(frozen=True)
class Release:
    """A version of Trainer, and the version of JobSet that it was made with."""

    trainer: Part
    jobset: Part


RELEASES = {
    "2.0": Release(Part("v2.0.0", "trainer", "trainer-controller-manager"), Part("v0.8.2", "jobset", "jobset")),
    "2.3": Release(Part("v2.3.0", "trainer-2.3", "trainer-controller-manager-2.3"), Part("v0.12.0", "jobset-0.12", "jobset-0.12")),
}
"""The oldest and the newest that are supported; schemas of those between: tests/pipelines/jobs/trainer_crds.py."""


def deploy(release: Release) -> None:
    """Both controllers with their CRDs and webhooks, in place of those of another release; returns when they are ready."""
    started = time.monotonic()
    for part, image in ((release.jobset, JOBSET_IMAGE), (release.trainer, TRAINER_IMAGE)):
        images.build_binary_image(part.program, f"{image}:{part.version}", programs.program(part.program), ["/manager"])
    node.import_images()
    for other in RELEASES.values():
        if other != release and _is_deployed(other):
            _remove(other)
    harness.kubectl("apply", "--server-side", "-f", "-", text=_jobset(release))
    harness.kubectl("-n", "jobset-system", "rollout", "status", "deploy/jobset-controller-manager", "--timeout=300s")
    harness.kubectl("apply", "--server-side", "-f", "-", text=_trainer(release))
    harness.kubectl("-n", "kubeflow-system", "rollout", "status", "deploy/kubeflow-trainer-controller-manager", "--timeout=300s")
    ready = time.monotonic() - started
    print(f"cluster: JobSet {release.jobset.version} and Trainer {release.trainer.version} ready after {ready:.0f} s", flush=True)


def _is_deployed(release: Release) -> bool:
    deployment = harness.get("deployments.apps", "kubeflow-system", "kubeflow-trainer-controller-manager")
    return deployment is not None and f"{TRAINER_IMAGE}:{release.trainer.version}" in str(deployment["spec"])


def _remove(release: Release) -> None:
    for kind in ("trainjobs", "trainingruntimes", "clustertrainingruntimes"):  # while their controller still takes finalizers off
        harness.kubectl("delete", f"{kind}.trainer.kubeflow.org", "--all", "--all-namespaces", "--timeout=60s")
    for rendered in (_trainer(release), _jobset(release)):
        harness.kubectl("delete", "--ignore-not-found", "--timeout=120s", "-f", "-", text=rendered)


def _trainer(release: Release) -> str:
    return _rendered("trainer", release.trainer, "github.com/kubeflow/trainer/v2", "manifests")


def _jobset(release: Release) -> str:
    return _rendered("jobset", release.jobset, "sigs.k8s.io/jobset", "config")


def _rendered(overlay: str, part: Part, module: str, base: str) -> str:
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch) / overlay
        shutil.copytree(settings.HERE / "manifests" / overlay, folder)
        shutil.copytree(programs.module_folder(part.tool, module) / base, folder / base)
        subprocess.run(["chmod", "-R", "u+w", scratch], check=True)  # the module cache is read-only
        for file in folder.rglob("kustomization.yaml"):
            lines = file.read_text().splitlines(keepends=True)
            text = "".join(line for line in lines if FETCHED not in line)
            file.write_text(text.replace("{version}", part.version) if file.parent == folder else text)
        return harness.kubectl("kustomize", str(folder))
