"""Kubeflow Trainer v2.0.0 and JobSet v0.8.2, built from their Go modules: for `make e2e-trainjob` alone, since that takes long."""

import shutil
import subprocess
import tempfile
import time
from pathlib import Path

from tests.cluster import harness, images, node, programs, settings

REFERENCES = {
    "jobset": ("docker.io/jobset/jobset:v0.8.2", ["/manager"]),
    "trainer-controller-manager": ("docker.io/kubeflow/trainer-controller-manager:v2.0.0", ["/manager"]),
}
FETCHED = "../../third-party/jobset"
"""What Trainer's overlay would fetch: JobSet is deployed by us."""


def deploy() -> None:
    """Both controllers with their CRDs and webhooks; returns when they are ready."""
    started = time.monotonic()
    for name, (reference, entrypoint) in REFERENCES.items():
        images.build_binary_image(name, reference, programs.program(name), entrypoint)
    node.import_images()
    harness.kubectl("apply", "--server-side", "-f", "-", text=_rendered("jobset", "jobset", "sigs.k8s.io/jobset", "config"))
    harness.kubectl("-n", "jobset-system", "rollout", "status", "deploy/jobset-controller-manager", "--timeout=300s")
    harness.kubectl(
        "apply", "--server-side", "-f", "-", text=_rendered("trainer", "trainer", "github.com/kubeflow/trainer/v2", "manifests")
    )
    harness.kubectl("-n", "kubeflow-system", "rollout", "status", "deploy/kubeflow-trainer-controller-manager", "--timeout=300s")
    print(f"cluster: JobSet and Trainer ready after {time.monotonic() - started:.0f} s", flush=True)


def _rendered(overlay: str, tool: str, module: str, base: str) -> str:
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch) / overlay
        shutil.copytree(settings.HERE / "manifests" / overlay, folder)
        shutil.copytree(programs.module_folder(tool, module) / base, folder / base)
        subprocess.run(["chmod", "-R", "u+w", scratch], check=True)  # the module cache is read-only
        for file in folder.rglob("kustomization.yaml"):
            lines = file.read_text().splitlines(keepends=True)
            file.write_text("".join(line for line in lines if FETCHED not in line))
        return harness.kubectl("kustomize", str(folder))
