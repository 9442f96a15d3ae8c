"""What a firstsight cluster has beside Kubernetes: the training operator, from its module's own manifests."""

import os
import shutil
import subprocess
import tempfile
import time
from pathlib import Path

from tests.cluster import settings


def deploy_training_operator() -> None:
    """CRDs, RBAC, webhook and Deployment into namespace kubeflow; returns when it is ready."""
    started = time.monotonic()
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        for name in ("kustomization.yaml", "initContainer.yaml"):
            shutil.copy(settings.HERE / "operator" / name, folder)
        shutil.copytree(_module_folder("training-operator", "github.com/kubeflow/training-operator") / "manifests", folder / "manifests")
        subprocess.run(["chmod", "-R", "u+w", scratch], check=True)  # the module cache is read-only
        rendered = _kubectl("kustomize", scratch)
    # server side: the CRDs are larger than the annotation that a client-side apply would keep
    _kubectl("apply", "--server-side", "-f", "-", text=rendered)
    _kubectl("wait", "--for=condition=Established", "crd/pytorchjobs.kubeflow.org", "--timeout=30s")
    _kubectl("-n", "kubeflow", "rollout", "status", "deploy/training-operator", "--timeout=180s")
    print(f"cluster: training operator ready after {time.monotonic() - started:.0f} s", flush=True)


def _module_folder(tool: str, module: str) -> Path:
    listing = ["go", "list", "-m", "-f", "{{.Dir}}", module]
    found = subprocess.run(listing, cwd=settings.HERE / "tools" / tool, check=True, capture_output=True, text=True, env=os.environ)
    return Path(found.stdout.strip())


def _kubectl(*arguments: str, text: str | None = None) -> str:
    done = subprocess.run(["kubectl", *arguments], input=text, capture_output=True, text=True, env=settings.environment())
    if done.returncode:
        raise RuntimeError(f"kubectl {' '.join(arguments)}: {done.stderr.strip()}")
    return done.stdout
