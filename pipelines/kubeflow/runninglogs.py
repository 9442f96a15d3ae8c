"""The log of a step that still runs, or why it does not: from Kubernetes where we may read it; logs else from Kubeflow's UI.

Kubeflow's API gives the log of an ended step only: for a running one it asks Kubernetes without a namespace, and is refused.
"""

import os
from collections.abc import Callable

from pipelines.cluster.connection import POD, Cluster
from pipelines.cluster.watch import Object
from pipelines.jobs.stuck import stuck_pod
from pipelines.kubeflow.client import Kubeflow
from pipelines.kubeflow.endpoint import DEFAULT_NAMESPACE
from pipelines.kubeflow.nodes import Step
from trainer.errors import InputError, RunError

_CONTAINER = "main"
_RUN_LABEL = "pipeline/runid"
_TRIES = 6
"""Failed looks at running steps before the user is told that live logs cannot be had: a pod takes a while to start."""
_RETRY_SECONDS = 5.0


class RunningLogs:
    """Reads the logs of the running steps of one run, by the first way that gives one."""

    def __init__(self, server: Kubeflow, run: str, say: Callable[[str], None]) -> None:
        """Nothing is asked yet.

        Args:
            server: where the run is.
            run: its id.
            say: gets the one line that says that no way gives logs.
        """
        self._server, self._run, self._say = server, run, say
        self._namespace = server.endpoint.namespace or DEFAULT_NAMESPACE
        self._cluster: Cluster | None = None
        self._kubernetes, self._ui = True, True
        self._tries, self._read_once = 0, False

    def read(self, step: Step) -> str | None:
        """The log so far, or None if it cannot be read now."""
        text = self._from_kubernetes(step)
        if text is None and self._ui:
            text = self._server.running_log(self._run, step.pod)
        if text is not None:
            self._read_once = True
        elif not self._read_once:
            self._tries += 1
            if self._tries == _TRIES:
                self._say(
                    "logs of running steps cannot be read from here (no access to the cluster, and this address is not the UI's: KFP_UI)"
                )
                self._say("each step's log follows when the step has ended")
                self._ui = False
        return text

    def waits_for(self, step: Step) -> str:
        """Why the step's pod does not start, as Kubernetes says; empty if it does, or we may not look."""
        pod = self._pod(step)
        stuck = stuck_pod(pod, lambda name: ()) if pod is not None else None
        return stuck.text if stuck is not None and stuck.cause != "starting" else ""

    def _from_kubernetes(self, step: Step) -> str | None:
        try:
            pod, cluster = self._pod(step), self._cluster
            if pod is None or cluster is None:
                return None
            lines = list(cluster.log(step.pod, _CONTAINER, follow=False, timestamps=False, namespace=self._namespace))
        except (InputError, RunError):  # no permission to read logs, or out of reach
            self._kubernetes = False
            return None
        return "".join(f"{line}\n" for line in lines)

    def _pod(self, step: Step) -> Object | None:
        """The step's pod; None if it has not been made yet, or the kubeconfig's cluster is another one."""
        if not self._kubernetes:
            return None
        try:
            cluster = self._connected()
            pod = cluster.get(POD, step.pod, self._namespace) if cluster is not None else None
        except (InputError, RunError):  # no permission, or out of reach
            self._kubernetes = False
            return None
        return pod if pod is not None and (pod["metadata"].get("labels") or {}).get(_RUN_LABEL) == self._run else None

    def _connected(self) -> Cluster | None:
        if self._cluster is None and self._kubernetes:
            if "KUBECONFIG" not in os.environ and "KUBERNETES_SERVICE_HOST" not in os.environ:
                self._kubernetes = os.path.isfile(os.path.expanduser("~/.kube/config"))
            if self._kubernetes:
                self._cluster = Cluster.connect()
                self._cluster.limit_retries(_RETRY_SECONDS)
        return self._cluster
