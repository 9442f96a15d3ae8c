"""What a firstsight cluster has beside Kubernetes: the training operator and Prometheus, from their modules' own manifests."""

import shutil
import subprocess
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from tests.cluster import harness, programs, settings

kubectl = harness.kubectl


def deploy() -> None:
    """Both, side by side: most of it is waiting for pods."""
    with ThreadPoolExecutor() as pool:
        for deployed in [pool.submit(deploy_training_operator), pool.submit(deploy_monitoring)]:
            deployed.result()


def deploy_training_operator() -> None:
    """CRDs, RBAC, webhook and Deployment into namespace kubeflow; returns when it is ready."""
    started = time.monotonic()
    module = programs.module_folder("training-operator", "github.com/kubeflow/training-operator")
    rendered = kustomize(settings.HERE / "manifests/operator", {"manifests": module / "manifests"})
    # server side: the CRDs are larger than the annotation that a client-side apply would keep
    kubectl("apply", "--server-side", "-f", "-", text=rendered)
    harness.wait_for_kind("pytorchjobs.kubeflow.org")
    kubectl("-n", "kubeflow", "rollout", "status", "deploy/training-operator", "--timeout=300s")
    _say("training operator", started)


def deploy_monitoring() -> None:
    """The Prometheus operator, and one Prometheus that takes up every PodMonitor and PrometheusRule, in namespace monitoring."""
    started = time.monotonic()
    module = programs.module_folder("prometheus-operator", "github.com/prometheus-operator/prometheus-operator")
    own = settings.HERE / "manifests/monitoring"
    kubectl("apply", "--server-side", "-f", str(module / "example/prometheus-operator-crd"))
    harness.wait_for_kind("prometheuses.monitoring.coreos.com")
    harness.ensure_namespace("monitoring")
    kubectl("apply", "--server-side", "-f", "-", text=kustomize(own, {"example": module / "example"}))
    kubectl("apply", "--server-side", "-f", str(own / "prometheus.yaml"))
    kubectl("-n", "monitoring", "rollout", "status", "deploy/prometheus-operator", "--timeout=300s")
    kubectl("-n", "monitoring", "wait", "--for=condition=Available", "prometheus/e2e", "--timeout=300s")
    _say("Prometheus", started)


def prometheus_address() -> str:
    """URL of its API as seen from this machine."""
    return f"http://{kubectl('-n', 'monitoring', 'get', 'service', 'prometheus', '-o', 'jsonpath={.spec.clusterIP}')}:9090"


def kustomize(overlay: Path, bases: dict[str, Path]) -> str:
    """Render an overlay whose bases lie in the module cache: a base must be a relative path, and the cache is read-only."""
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch) / "overlay"
        shutil.copytree(overlay, folder)
        for name, base in bases.items():
            shutil.copytree(base, folder / name)
        subprocess.run(["chmod", "-R", "u+w", scratch], check=True)
        return kubectl("kustomize", str(folder))


def _say(what: str, started: float) -> None:
    print(f"cluster: {what} ready after {time.monotonic() - started:.0f} s", flush=True)
