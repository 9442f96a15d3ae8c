"""How long a Workflow is as JSON: Argo keeps it in one object of at most 1 MiB, and Retry has a limit of its own.

What makes it long is copied: a step's inputs (its component, task, container and platform settings as JSON, its pod's patch) stand
in each of its six nodes. The rules were read off the recordings, and the recorded sizes hold this module to them.
"""

import json
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tests.pipelines.kubeflow.argo import Node, Template, Workflow

_NAME = "firstsight-abcde"
_NODE_ID = f"{_NAME}-1234567890"
_A_VALUE = "x" * 12  # of a parameter that only a run has
_RUN = "00000000-0000-0000-0000-000000000000"
_SERVERS = [
    "--ml_pipeline_server_address", "ml-pipeline.kubeflow.svc.cluster.local", "--ml_pipeline_server_port", "8887",
    "--mlmd_server_address", "metadata-grpc-service.kubeflow.svc.cluster.local", "--mlmd_server_port", "8080",
]  # fmt: skip
_POD_TEMPLATE_BYTES, _DAG_TEMPLATE_BYTES, _REST_BYTES = 2_000, 300, 1_400
"""Of a pod's and a DAG's template without its parameters and tasks, and of all that is neither a template, an argument nor a node."""
_PARAMETER_BYTES, _TASK_BYTES, _ARGUMENT_BYTES = 40, 250, 80
"""Of a template's parameter, of a task in a template, of an argument of such a task, beside their values."""


def text_of(value: Any) -> str:
    """JSON as the back end writes it into parameters."""
    text = json.dumps(value, separators=(",", ":"), ensure_ascii=False, sort_keys=True)
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


def pod_spec_patch(step: str, task: Mapping[str, Any], component: Mapping[str, Any], container: Mapping[str, Any], platform: Any) -> str:
    """What a driver makes of a step's settings for its pod."""
    folder = f"minio://mlpipeline/v2/artifacts/firstsight/{_RUN}/{step}/{_RUN}"
    wired = task.get("inputs", {}).get("parameters", {})
    inputs = {name: value.get("runtimeValue", {}).get("constant", _A_VALUE) for name, value in wired.items()}
    artifacts = {"executor-logs": {}, **component.get("outputDefinitions", {}).get("artifacts", {})}
    outputs = {
        name: {"artifacts": [{"name": name, "type": kind.get("artifactType", {}), "uri": f"{folder}/{name}"}]}
        for name, kind in artifacts.items()
    }
    given = {"inputs": {"parameterValues": inputs}, "outputs": {"artifacts": outputs, "outputFile": f"{folder}/output_metadata.json"}}
    launcher = [
        "/kfp-launcher/launch",
        "--pipeline_name",
        "firstsight",
        "--run_id",
        _RUN,
        "--execution_id",
        "50",
        "--executor_input",
        text_of(given),
    ]
    rest = [
        "--pod_name",
        "$(KFP_POD_NAME)",
        "--pod_uid",
        "$(KFP_POD_UID)",
        *_SERVERS,
        "--publish_logs",
        "true",
        "--publish_logs",
        "true",
        "--",
    ]
    main = {
        "name": "main",
        "image": container["image"],
        "command": [*launcher, "--component_spec", text_of(component), *rest],
        "args": [*container.get("command", ()), *container.get("args", ())],
        "env": [_variable(secret, pair) for secret in platform.get("secretAsEnv", ()) for pair in secret["keyToEnv"]],
        "resources": container.get("resources", {}),
        "volumeMounts": [{"name": "firstsight", "mountPath": volume["mountPath"]} for volume in platform.get("configMapAsVolume", ())],
        "securityContext": platform.get("securityContext", {}),
    }
    return text_of(
        {"containers": [main], "volumes": [{"name": "firstsight", "configMap": {}} for _ in platform.get("configMapAsVolume", ())]}
    )


def _variable(secret: Mapping[str, Any], pair: Mapping[str, str]) -> dict[str, Any]:
    key = {"name": "firstsight", "key": pair["secretKey"], "optional": secret.get("optional", False)}
    return {"name": pair["envVar"], "valueFrom": {"secretKeyRef": key}}


def workflow_size(workflow: "Workflow") -> int:
    """Bytes of the Workflow as compact JSON."""
    return sum(node_size(node) for node in workflow.nodes.values()) + _spec_size(workflow)


def node_size(node: "Node") -> int:
    """Bytes of one node of the status."""
    template = node.template
    value: dict[str, Any] = {
        "id": _NODE_ID, "name": f"{_NAME}{node.name}", "displayName": node.name.rpartition(".")[2], "type": node.type,
        "templateName": template.name, "templateScope": f"local/{_NAME}", "boundaryID": _NODE_ID, "children": [_NODE_ID],
        "phase": node.phase, "progress": "1/1", "resourcesDuration": {"cpu": 1, "memory": 10},
        "startedAt": "2026-01-01T00:00:00Z", "finishedAt": "2026-01-01T00:00:00Z", "nodeFlag": {"retried": True},
    }  # fmt: skip
    if node.type not in ("Skipped", "TaskGroup"):
        value["inputs"] = {"parameters": [{"name": name, "value": text} for name, text in template.inputs]}
    if template.step and node.phase not in ("Omitted", "Running"):
        parameters = [
            {"name": name, "value": text, "valueFrom": {"default": "", "path": f"/tmp/outputs/{name}"}} for name, text in template.outputs
        ]
        log = f"private-artifacts/kubeflow/{_NAME}/2026/01/01/{_NAME}-{template.name}-1234567890/main.log"
        value["outputs"] = {"parameters": parameters, "exitCode": "0", "artifacts": [{"name": "main-logs", "s3": {"key": log}}]}
    return len(json.dumps({_NODE_ID: value}, separators=(",", ":"))) - 1


def _spec_size(workflow: "Workflow") -> int:
    """Templates are written once each; components, implementations and platform settings are arguments, once each too."""
    seen: dict[str, Template] = {}
    _collect(workflow.entrypoint, seen)
    size, arguments = _REST_BYTES, {}
    for template in seen.values():
        size += (_DAG_TEMPLATE_BYTES if template.tasks else _POD_TEMPLATE_BYTES) + _PARAMETER_BYTES * len(template.inputs)
        for task in template.tasks:
            given = dict(task.template.inputs)
            size += len(json.dumps(given.get("task", ""))) + _TASK_BYTES + _ARGUMENT_BYTES * len(given)
            arguments.update({given[name]: None for name in ("component", "container", "kubernetes-config") if name in given})
    return size + sum(len(json.dumps(text)) + 120 for text in arguments)


def _collect(template: "Template", seen: dict[str, "Template"]) -> None:
    if template.name not in seen:
        seen[template.name] = template
        for task in template.tasks:
            _collect(task.template, seen)
            if task.on_exit is not None:
                _collect(task.on_exit, seen)
