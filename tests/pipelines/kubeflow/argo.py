"""What Argo 4.0.5 makes of a pipeline that Kubeflow Pipelines 2.17.0 compiled: nodes, states, Retry, Terminate. No pods.

The rules were read off the recordings in tests/data/kfp-recordings, and test_argo.py holds this simulator to them: every node's
name, type, state and template. A pod "runs" by asking `outcome`; nothing takes time.

The controller is one pass over the template tree that makes what may be made now; it is repeated until nothing changes:
- every template has a retry strategy, so a node `x` is a Retry node, and `x(0)` its one attempt;
- a container step is a driver pod, then a DAG of one executor pod; a sub-pipeline is a driver, then a DAG; a loop is a DAG of
  a driver and a group of iterations;
- a task whose upstream did not succeed is Omitted, and an omitted task at a DAG's end counts as what it hangs on;
- before a node is made, a limit of its parent (`parallelism`) is compared with the parent's running pods and DAGs;
- Retry deletes failed pods, failed Retry nodes and omitted nodes, and sets failed DAGs and groups to Running. So a DAG whose Retry
  node may not be recreated, because it counts as active itself, waits for ever.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from tests.pipelines.kubeflow.argo_size import pod_spec_patch, text_of

RUNNING, SUCCEEDED, FAILED, OMITTED = "Running", "Succeeded", "Failed", "Omitted"
_ENDED = (SUCCEEDED, FAILED, OMITTED)
_ID = "50"  # of an execution in the metadata store
Outcome = Callable[["Pod"], str]
"""How a pod ends: Succeeded, Failed, or Running while it does not."""


@dataclass(frozen=True)
class Pod:
    """A pod that is asked how it ends.

    Attributes:
        step: name of the step; of a driver with `-driver`.
        iterations: the items of the loops around it, by number, from the outermost.
        run: 0, and one more after each Retry.
    """

    step: str
    iterations: tuple[int, ...]
    run: int


@dataclass
class Node:
    """One node of a Workflow's status."""

    name: str
    type: str
    template: "Template"
    boundary: str
    phase: str = RUNNING


@dataclass(frozen=True)
class Template:
    """A template of the Workflow: a pod, or a DAG of tasks.

    Attributes:
        name: as Argo has it.
        tasks: of a DAG, in order; empty for a pod.
        step: of a pod.
        loop: of the group of iterations in a loop's DAG: the key of its task.
        parallelism: how many pods and DAGs of this DAG may run at once; 0: any number.
        inputs: parameters that are repeated in each of its nodes.
        outputs: parameters that a driver adds.
    """

    name: str
    tasks: tuple["Task", ...] = ()
    step: str = ""
    loop: str = ""
    parallelism: int = 0
    inputs: tuple[tuple[str, str], ...] = ()
    outputs: tuple[tuple[str, str], ...] = ()


@dataclass(frozen=True)
class Task:
    """A task of a DAG: its template, the tasks that must have succeeded, and what runs when it has ended, however it did."""

    name: str
    template: Template
    needs: tuple[str, ...] = ()
    repeated: bool = False
    on_exit: Template | None = None


@dataclass
class Workflow:
    """A run of a compiled pipeline.

    Attributes:
        pipeline: the documents of the compiled YAML: the pipeline's spec, and the platform's where there is one.
        outcome: how each pod ends.
        items: (key of the loop's task, iterations around it) -> number of items.
    """

    pipeline: list[Mapping[str, Any]]
    outcome: Outcome
    items: Callable[[str, tuple[int, ...]], int]
    nodes: dict[str, Node] = field(default_factory=dict)
    terminated: bool = False
    runs: int = 0
    limits: dict[str, int] = field(default_factory=dict)
    """Name of a DAG node -> its template's limit."""

    def __post_init__(self) -> None:
        """Make the template tree."""
        self.entrypoint = compile_templates(self.pipeline)

    @property
    def phase(self) -> str:
        """The run's state: Running also where nothing will ever change."""
        return self.nodes[""].phase if "" in self.nodes else RUNNING

    def go(self) -> str:
        """Let the controller work until nothing changes any more; returns the state."""
        before: object = None
        while before != (before := self._state()):
            self._retry_node("", self.entrypoint, "", ())
        return self.phase

    def terminate(self) -> str:
        """`:terminate`: running pods are killed, and whatever starts now ends at once."""
        self.terminated = True
        for node in self.nodes.values():
            if node.type == "Pod" and node.phase == RUNNING:
                node.phase = FAILED
        return self.go()

    def retry(self) -> str:
        """`:retry` of a run that failed or was terminated."""
        if self.phase != FAILED:
            raise ValueError(f"a run that is {self.phase} cannot be retried (409)")
        self.terminated, self.runs = False, self.runs + 1
        for node in list(self.nodes.values()):
            if node.phase == OMITTED or (node.phase == FAILED and node.type in ("Pod", "Retry")):
                del self.nodes[node.name]
            elif node.phase == FAILED:
                node.phase = RUNNING
        return self.go()

    @property
    def hangs(self) -> bool:
        """Whether the run is Running although no pod is: nothing but a new Workflow gets on from here."""
        return self.phase == RUNNING and not any(node.type == "Pod" and node.phase == RUNNING for node in self.nodes.values())

    def _state(self) -> tuple[tuple[str, str], ...]:
        return tuple((node.name, node.phase) for node in self.nodes.values())

    def _retry_node(self, name: str, template: Template, boundary: str, iterations: tuple[int, ...]) -> Node | None:
        """Make or go on with the Retry node of a template; None if a limit does not let it be made."""
        node = self.nodes.get(name)
        if node is None:
            if self._at_limit(boundary):
                return None
            node = self.nodes[name] = Node(name, "Retry", template, boundary)
        if node.phase == RUNNING:
            attempt = self._attempt(f"{name}(0)", template, boundary, iterations)
            node.phase = attempt.phase
        return node

    def _at_limit(self, boundary: str) -> bool:
        limit = self.limits.get(boundary, 0)
        siblings = (node for node in self.nodes.values() if node.boundary == boundary and node.type in ("Pod", "DAG"))
        return 0 < limit <= sum(node.phase == RUNNING for node in siblings)

    def _attempt(self, name: str, template: Template, boundary: str, iterations: tuple[int, ...]) -> Node:
        """Make or go on with a pod or a DAG."""
        node = self.nodes.get(name)
        if node is None:
            node = self.nodes[name] = Node(name, "DAG" if template.tasks else "Pod", template, boundary)
            if template.parallelism:
                self.limits[name] = template.parallelism
        if node.phase != RUNNING:
            return node
        if template.tasks:
            node.phase = self._dag(name, template, iterations)
        else:
            node.phase = FAILED if self.terminated else self.outcome(Pod(template.step, iterations, self.runs))
        return node

    def _dag(self, name: str, template: Template, iterations: tuple[int, ...]) -> str:
        """Go on with a DAG's tasks; its state."""
        ends: dict[str, str] = {}  # of each task, or of what it hangs on where it was omitted
        for task in template.tasks:
            upstream = [ends.get(need, RUNNING) for need in task.needs]
            exact = [self._phase(f"{name}.{need}") for need in task.needs]
            if any(phase not in _ENDED for phase in exact) or any(end not in _ENDED for end in upstream):
                continue
            full = f"{name}.{task.name}"
            if any(phase != SUCCEEDED for phase in exact):
                self.nodes.setdefault(full, Node(full, "Skipped", task.template, name, OMITTED))
                ends[task.name] = next(end for end, phase in zip(upstream, exact, strict=True) if phase != SUCCEEDED)
                continue
            node = self._group(full, task, name, iterations) if task.repeated else self._retry_node(full, task.template, name, iterations)
            if node is None or node.phase not in _ENDED:
                continue
            ends[task.name] = node.phase
            if task.on_exit is not None:
                hook = self._retry_node(f"{full}.onExit", task.on_exit, name, iterations)
                if hook is None or hook.phase not in _ENDED:
                    del ends[task.name]
                elif any(task.name in other.needs for other in template.tasks):
                    ends[task.name] = hook.phase  # what comes after hangs on the hook
        return self._sum(template, ends)

    def _sum(self, template: Template, ends: Mapping[str, str]) -> str:
        """A DAG's state: that of its last tasks, once all have ended."""
        if len(ends) < len(template.tasks):
            return RUNNING
        needed = {need for task in template.tasks for need in task.needs}
        last = [ends[task.name] for task in template.tasks if task.name not in needed]
        return FAILED if FAILED in last else SUCCEEDED

    def _group(self, name: str, task: Task, boundary: str, iterations: tuple[int, ...]) -> Node:
        """The iterations of a loop."""
        node = self.nodes.setdefault(name, Node(name, "TaskGroup", task.template, boundary))
        if node.phase == RUNNING:
            count = self.items(task.template.loop, iterations)
            made = [
                self._retry_node(f"{name}({number}:{number})", task.template, boundary, (*iterations, number)) for number in range(count)
            ]
            phases = [RUNNING if child is None else child.phase for child in made]
            node.phase = RUNNING if RUNNING in phases else FAILED if FAILED in phases else SUCCEEDED
        return node

    def _phase(self, name: str) -> str:
        node = self.nodes.get(name)
        return RUNNING if node is None else node.phase


def compile_templates(pipeline: list[Mapping[str, Any]]) -> Template:
    """The template tree that KFP's back end makes of a compiled pipeline."""
    spec = pipeline[0]
    platform = pipeline[1] if len(pipeline) > 1 else {}
    executors = platform.get("platforms", {}).get("kubernetes", {}).get("deploymentSpec", {}).get("executors", {})
    return Template("entrypoint", tuple(_Compiler(spec, executors).driven("root", spec["root"], "root", ())))


@dataclass(frozen=True)
class _Compiler:
    spec: Mapping[str, Any]
    executors: Mapping[str, Any]

    def driven(self, name: str, component: Mapping[str, Any], template: str, needs: tuple[str, ...], task: Any = None) -> Iterator[Task]:
        """A sub-pipeline: its driver, then its DAG."""
        yield Task(f"{name}-driver", self._dag_driver(f"{name}-driver", component, task), needs)
        inputs = (("parent-dag-id", _ID),)
        yield Task(name, Template(template, tuple(self._tasks(component["dag"]["tasks"])), inputs=inputs), (f"{name}-driver",))

    def _dag_driver(self, step: str, component: Mapping[str, Any], task: Any) -> Template:
        given = (("component", text_of(component)), ("runtime-config", ""), ("task", text_of(task) if task else ""), ("task-name", step))
        numbers = (("parent-dag-id", _ID), ("iteration-index", "-1"), ("driver-type", "DAG"))
        outputs = (("execution-id", _ID), ("iteration-count", "0"), ("condition", "nil"))
        return Template("system-dag-driver", step=step, inputs=(*given, *numbers), outputs=outputs)

    def _tasks(self, tasks: Mapping[str, Any]) -> Iterator[Task]:
        exits = {
            task["dependentTasks"][0]: name
            for name, task in tasks.items()
            if task.get("triggerPolicy", {}).get("strategy") == "ALL_UPSTREAM_TASKS_COMPLETED"
        }
        for name in _in_order({key: value for key, value in tasks.items() if key not in exits.values()}):
            task = tasks[name]
            needs = tuple(task.get("dependentTasks", ()))
            made = list(self._task(name, task, needs))
            if name in exits:
                hook = Template(f"exit-hook-root-{exits[name]}", tuple(self._task(exits[name], tasks[exits[name]], ())))
                made[-1] = Task(made[-1].name, made[-1].template, made[-1].needs, on_exit=hook)
            yield from made

    def _task(self, name: str, task: Mapping[str, Any], needs: tuple[str, ...]) -> Iterator[Task]:
        reference = task["componentRef"]["name"]
        component = self.spec["components"][reference]
        if "parameterIterator" in task:
            yield Task(name, self._loop(name, task, reference, component), needs)
        elif "dag" in component:
            yield from self.driven(name, component, reference, needs, task)
        else:
            yield from self._container(name, task, component, needs)

    def _container(self, name: str, task: Mapping[str, Any], component: Mapping[str, Any], needs: tuple[str, ...]) -> Iterator[Task]:
        """A step: its driver, then a DAG of its one pod."""
        label = component["executorLabel"]
        container, platform = self.spec["deploymentSpec"]["executors"][label]["container"], self.executors.get(label, {})
        patch = ("pod-spec-patch", pod_spec_patch(name, task, component, container, platform))
        metadata = platform.get("podMetadata", {})
        pairs = [(kind, *item) for kind in ("annotation", "label") for item in sorted(metadata.get(f"{kind}s", {}).items())]
        named = [(f"pod-metadata-{kind}-{part}-1", text) for kind, key, value in pairs for part, text in (("key", key), ("val", value))]
        prefix = f"metadata-{len(metadata.get('annotations', {}))}-{len(metadata.get('labels', {}))}-" if metadata else ""
        given = (("component", text_of(component)), ("task", text_of(task)), ("container", text_of(container)), ("task-name", name))
        numbers = (("parent-dag-id", _ID), ("iteration-index", "-1"), ("kubernetes-config", text_of(platform) if platform else ""))
        outputs = (patch, ("cached-decision", "false"), ("condition", "nil"))
        driver = Template("system-container-driver", step=f"{name}-driver", inputs=(*given, *numbers), outputs=outputs)
        pod = Template(f"{prefix}system-container-impl", step=name, inputs=(patch, *named))
        yield Task(f"{name}-driver", driver, needs)
        inputs = (patch, ("cached-decision", "false"), *named)
        yield Task(name, Template(f"{prefix}system-container-executor", (Task("executor", pod),), inputs=inputs), (f"{name}-driver",))

    def _loop(self, name: str, task: Mapping[str, Any], reference: str, component: Mapping[str, Any]) -> Template:
        body = Template(f"{reference}-iteration", tuple(self.driven("iteration-item", component, reference, (), task)), loop=name)
        tasks = (
            Task("iteration-driver", self._dag_driver(f"{name}-driver", component, task)),
            Task("iteration-iterations", body, ("iteration-driver",), repeated=True),
        )
        limit = int(task.get("iteratorPolicy", {}).get("parallelismLimit", 0))
        return Template(f"{reference}-{name}-iterator", tasks, parallelism=limit)


def _in_order(tasks: Mapping[str, Any]) -> list[str]:
    """Names of tasks, each after those that it depends on."""
    order: list[str] = []
    while len(order) < len(tasks):
        order += [name for name, task in tasks.items() if name not in order and set(task.get("dependentTasks", ())) <= set(order)]
    return order
