"""Runs of the stand-in server: the simulator of Argo, told in the words of the v2beta1 API."""

import datetime
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

from pipelines.kubeflow.nodes import node_id
from tests.pipelines.kubeflow.argo import FAILED, OMITTED, RUNNING, SUCCEEDED, Node, Pod, Workflow

STATES = {RUNNING: "RUNNING", SUCCEEDED: "SUCCEEDED", FAILED: "FAILED"}
CANCELING_LOOKS = 2
"""Looks at a run that is being terminated before it has ended."""


@dataclass
class Run:
    """One run.

    Attributes:
        body: what it was created with.
        pipeline: the documents of its version.
        workflow: the name of its Workflow.
        outcome: how each pod ends that a look finds running; RUNNING: it goes on.
        items: of each loop.
    """

    body: dict[str, Any]
    pipeline: list[dict[str, Any]]
    workflow: str
    outcome: Callable[[Pod], str]
    items: Callable[[str, tuple[int, ...]], int]
    run_id: str = field(default_factory=lambda: str(uuid.uuid4()))
    state: str = "PENDING"
    looks: int = 0
    canceled_at: int = 0

    def __post_init__(self) -> None:
        """Nothing runs yet."""
        self.created = now()
        self.history = [{"update_time": self.created, "state": "PENDING"}]
        self._ended: dict[Pod, str] = {}
        self._asked: list[Pod] = []
        self.argo = Workflow(self.pipeline, self._ask, self.items)

    def look(self) -> dict[str, Any]:
        """The run as it stands at this look; each look brings every running pod to its end."""
        self.looks += 1
        if self.state == "CANCELING":
            if self.looks >= self.canceled_at + CANCELING_LOOKS:
                self._enter(STATES[self.argo.phase])
        elif self.looks > 1 and self.state in ("PENDING", "RUNNING"):
            if self.argo.nodes:
                self._ended |= {pod: self.outcome(pod) for pod in self._asked}
            self._asked = []
            self._enter(STATES[self.argo.go()])
        return self.told()

    def terminate(self) -> None:
        """`:terminate`, which ends what runs at once."""
        self.canceled_at = self.looks
        self._enter("CANCELING")
        self.argo.terminate()

    def retry(self) -> None:
        """`:retry`."""
        self._ended, self._asked = {}, []
        self._enter(STATES[self.argo.retry()])

    def told(self) -> dict[str, Any]:
        """As the API tells it."""
        details = {"task_details": [*self._tasks()]}
        told = {**self.body, "run_id": self.run_id, "created_at": self.created, "state": self.state}
        return {**told, "state_history": [*self.history], "run_details": details}

    def pods(self) -> Iterator[tuple[str, str, str]]:
        """Step, node id and state of each step's own pod."""
        for node in self.argo.nodes.values():
            if node.type == "Pod" and node.name.endswith(".executor(0)"):
                yield node.template.step, node_id(self.workflow, node.name), STATES[node.phase]

    def _ask(self, pod: Pod) -> str:
        if pod not in self._ended or self._ended[pod] == RUNNING:
            self._asked.append(pod)
        return self._ended.get(pod, RUNNING)

    def _enter(self, state: str) -> None:
        if state != self.state:
            self.state = state
            self.history.append({"update_time": now(), "state": state})

    def _tasks(self) -> Iterator[dict[str, Any]]:
        children = self._children()
        for number, node in enumerate(self.argo.nodes.values()):
            state = {} if node.phase == OMITTED else {"state": STATES[node.phase]}
            below = [{"pod_name": node_id(self.workflow, name)} for name in children.get(node.name, [])]
            yield {
                "run_id": self.run_id,
                "task_id": f"{self.run_id[:-4]}{number:04d}",
                "display_name": node.name[len(node.boundary) + 1 :] if node.boundary else f"{self.workflow}{node.name}",
                "create_time": self.created,
                "start_time": self.created,
                **state,
                "state_history": [{"update_time": self.created, **state}],
                **({"child_tasks": below} if below else {}),
            }

    def _children(self) -> dict[str, list[str]]:
        """Argo hangs a node below the nodes that it waits for; an attempt below its Retry node."""
        found: dict[str, list[str]] = {}
        for node in self.argo.nodes.values():
            for parent in self._parents(node):
                found.setdefault(parent, []).append(node.name)
        return found

    def _parents(self, node: Node) -> list[str]:
        if node.type in ("Pod", "DAG"):
            return [node.name.removesuffix("(0)")]
        boundary = self.argo.nodes.get(node.boundary)
        if boundary is None:
            return []
        name = node.name[len(node.boundary) + 1 :]
        task = next((task for task in boundary.template.tasks if task.name == name), None)
        if task is None:  # an iteration, or an exit task
            return [node.name.rpartition("(")[0] if name.endswith(")") else node.name.removesuffix(".onExit")]
        return [f"{node.boundary}.{need}(0)" for need in task.needs] or [node.boundary]


def now() -> str:
    """As the API writes times."""
    return datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
