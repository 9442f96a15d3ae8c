"""The real Kubeflow of KFP_ENDPOINT, where the chart is installed; with KUBECONFIG jobs can be seen and taken away."""

import os
import subprocess
import sys

from pipelines.cluster.names import DOMAIN
from pipelines.jobs.shapes import job_kinds
from pipelines.kubeflow.client import Kubeflow
from pipelines.kubeflow.endpoint import Endpoint
from tests.cluster import programs

RELEASE_VARIABLE = "E2E_KFP_UNINSTALL"
"""`namespace/release` of the chart that the last scenario uninstalls; empty: it stays."""
_NO_CLUSTER = "not done: no KUBECONFIG"


class Real:
    """The server that the environment names, as for `make pipeline-run KFP_ENDPOINT=…`."""

    seconds = 3600.0

    def __init__(self) -> None:
        get = os.environ.get
        namespace = get("KFP_NAMESPACE", "")
        endpoint = Endpoint.from_environment(host=get("KFP_ENDPOINT", ""), namespace=namespace, ca=get("KFP_CA", ""), ui=get("KFP_UI", ""))
        self.name, self.server = endpoint.host, Kubeflow(endpoint, retry_seconds=120.0)
        self.server.check(runs=True)

    def command(self, *arguments: str) -> list[str]:
        return [sys.executable, "-m", "pipelines", "submit", *arguments]

    def break_job(self, experiment: str, cell: str) -> str:
        if "KUBECONFIG" not in os.environ:
            return _NO_CLUSTER
        self._kubectl("delete", _resources(), *self._where(), "--wait=false", "-l", f"{_of(experiment)},{DOMAIN}/cell={cell}")
        return ""

    def jobs(self, experiment: str) -> list[str] | None:
        if "KUBECONFIG" not in os.environ:
            return None
        return self._kubectl("get", _resources(), "--all-namespaces", "-o", "name", "-l", _of(experiment)).split()

    def uninstall(self) -> str:
        namespace, _, release = os.environ.get(RELEASE_VARIABLE, "").partition("/")
        if not release:
            return f"not done: {RELEASE_VARIABLE} is not set to namespace/release"
        subprocess.run([programs.program("helm"), "uninstall", release, "-n", namespace], check=True)
        return ""

    def _where(self) -> list[str]:
        namespace = self.server.endpoint.namespace or "kubeflow"
        return ["-n", namespace]

    def _kubectl(self, *arguments: str) -> str:
        return subprocess.run([programs.program("kubectl"), *arguments], capture_output=True, text=True, check=True).stdout


def _of(experiment: str) -> str:
    return f"{DOMAIN}/experiment={experiment}"


def _resources() -> str:
    """Kinds that the cluster has."""
    known = subprocess.run(
        [programs.program("kubectl"), "api-resources", "-o", "name"], capture_output=True, text=True, check=True
    ).stdout.split()
    return ",".join(kind.resource for kind in job_kinds() if kind.resource in known)
