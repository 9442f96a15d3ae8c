"""Plain functions over kubectl that the tests share. Nothing here knows firstsight's launcher."""

import json
import os
import secrets
import subprocess
import time
from collections.abc import Callable
from typing import Any

from tests.cluster import node, programs, settings, volumes

Object = dict[str, Any]
RESTRICTED = {"pod-security.kubernetes.io/enforce": "restricted", "pod-security.kubernetes.io/enforce-version": "latest"}
NAMESPACE_LABEL = "firsttest/namespace"


def own_cluster() -> bool:
    """Whether the tests' cluster is the one of this machine (node.py), rather than another that KUBECONFIG names."""
    return os.environ.get("KUBECONFIG", str(settings.KUBECONFIG)) == str(settings.KUBECONFIG)


def environment() -> dict[str, str]:
    """For programs that talk to the tests' cluster: its kubeconfig, and the cluster's tools first in PATH."""
    found = settings.environment()
    return found if own_cluster() else {**found, "KUBECONFIG": os.environ["KUBECONFIG"]}


def kubectl(*arguments: str, text: str | None = None) -> str:
    """Run kubectl with `text` on its standard input; a failure is an AssertionError with what it said."""
    done = subprocess.run([programs.program("kubectl"), *arguments], input=text, capture_output=True, text=True, env=environment())
    assert done.returncode == 0, f"kubectl {' '.join(arguments)}: {done.stderr.strip()}"
    return done.stdout


def get(kind: str, namespace: str, name: str) -> Object | None:
    """The object, or None."""
    found = kubectl("-n", namespace, "get", kind, name, "--ignore-not-found", "-o", "json")
    return json.loads(found) if found.strip() else None


def listed(kind: str, namespace: str, selector: str = "") -> list[Object]:
    """All objects of a kind, those with these labels."""
    found: list[Object] = json.loads(kubectl("-n", namespace, "get", kind, "-l", selector, "-o", "json"))["items"]
    return found


def apply(objects: list[Object] | Object, namespace: str = "") -> None:
    """Make or change objects, in `namespace` or where each says; the server refuses fields that its schema does not know."""
    items = objects if isinstance(objects, list) else [objects]
    text = json.dumps({"apiVersion": "v1", "kind": "List", "items": items})
    place = ["-n", namespace] if namespace else []
    kubectl(*place, "apply", "--server-side", "--force-conflicts", "--validate=false", "-f", "-", text=text)


def wait_until(what: str, condition: Callable[[], Any], seconds: float, every: float = 0.3) -> Any:
    """What `condition` returns as soon as it is true; past `seconds` an AssertionError that says what was awaited."""
    deadline = time.monotonic() + seconds
    while not (found := condition()):
        assert time.monotonic() < deadline, f"waited {seconds:.0f} s for {what}"
        time.sleep(every)
    return found


def wait_for_kind(crd: str) -> None:
    """Wait until the API server serves the kind; `kubectl wait` itself fails where a CRD has no conditions yet."""

    def established() -> bool:
        conditions = json.loads(kubectl("get", "crd", crd, "-o", "json")).get("status", {}).get("conditions") or []
        return any(part["type"] == "Established" and part["status"] == "True" for part in conditions)

    wait_until(f"the kind {crd}", established, 60)


def ensure_namespace(name: str, labels: dict[str, str] | None = None) -> None:
    """A namespace of this name with these labels."""
    apply({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name, "labels": labels or {}}})


def make_namespace(prefix: str = "fs") -> str:
    """A new namespace that enforces restricted Pod Security, with the claims through which pods see Python."""
    name = f"{prefix}-{secrets.token_hex(3)}"
    ensure_namespace(name, RESTRICTED)
    if own_cluster():
        apply(volumes.manifests(name))
        kubectl("-n", name, "wait", "pvc", "--all", "--for=jsonpath={.status.phase}=Bound", "--timeout=60s")
    return name


def remove_namespace(name: str) -> None:
    """Delete it with all that it holds, pods at once; its name is never used again, so nobody waits until it is gone."""
    # A Job with backoffLimitPerIndex keeps failed pods until it has replaced them, which it may not in a namespace that goes.
    kubectl("-n", name, "delete", "jobs", "--all", "--wait=false")
    kubectl("-n", name, "delete", "pods", "--all", "--force", "--grace-period=0", "--wait=false")
    kubectl("delete", "namespace", name, "--wait=false")
    kubectl("delete", "persistentvolumes", "-l", f"{NAMESPACE_LABEL}={name}", "--wait=false")


def describe(namespace: str) -> str:
    """Pods, events and the ends of logs: what a failed test shows."""
    parts = [kubectl("-n", namespace, "get", "pods,pytorchjobs", "-o", "wide")]
    parts.append(kubectl("-n", namespace, "get", "events", "--sort-by=.metadata.creationTimestamp"))
    for pod in listed("pods", namespace):
        name = pod["metadata"]["name"]
        command = [programs.program("kubectl"), "-n", namespace, "logs", name, "--tail=15", "--all-containers"]
        done = subprocess.run(command, capture_output=True, text=True, env=environment())
        parts.append(f"--- {name}\n{done.stdout}{done.stderr}")
    return "\n".join(parts)


def node_fault(name: str) -> None:
    """Stop and start a process of the node, as a crash or an upgrade would."""
    node.stop(name)
    {"apiserver": node.start_apiserver, "kubelet": node.start_kubelet, "containerd": node.start_container_runtime}[name]()
