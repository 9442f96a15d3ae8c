"""What a cluster lacks for a chart, found by reading the objects that Helm rendered: nothing is made or changed.

helm template firstsight charts/firstsight -n ml -f values.yaml | python -m pipelines check preflight
"""

import re
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any

import yaml

from pipelines.cluster.api import Api, Refused
from pipelines.cluster.connection import Cluster
from pipelines.cluster.kueue import Kueue
from pipelines.operate.gpu_nodes import count_of, is_labelled, labels_of, major_of, why_not
from pipelines.operate.kubeflow_preflight import kubeflow_checks
from pipelines.operate.probes import Check, allowed, kueues, needed_kinds, served
from pipelines.profile.profile import Profile
from trainer.configs import load_yaml, parse_config
from trainer.configs.sizes import MINIMUM_DRIVERS
from trainer.errors import InputError
from trainer.progress import counted

Object = dict[str, Any]

MINIMUM = (1, 29)
"""Kubernetes' first version with an Indexed Job's backoffLimitPerIndex on by default."""
_CLUSTER_WIDE = ("ClusterRole", "ClusterRoleBinding")
_SOURCES = {"monitoring.coreos.com": "the Prometheus operator", "trainer.kubeflow.org": "Kubeflow Trainer v2"}


def preflight(text: str = "", cuda: str = "") -> Iterator[Check]:
    """The checks for the rendered chart in `text`; empty: on stdin.

    Args:
        text: what Helm rendered.
        cuda: the trainer image's CUDA; empty: the pinned torch's.

    Raises:
        InputError: it is no rendering of the chart, or no cluster can be found.
    """
    major = major_of(cuda)
    objects = read_objects(text or sys.stdin.read())
    api = Api.connect()
    yield "Kubernetes", partial(_version, api)
    made = {one["metadata"]["name"] for one in objects if one["kind"] == "Namespace"}
    for namespace in sorted({place for place in map(_namespace, objects) if place} - made):
        yield f"namespace {namespace}", partial(_exists, api, f"/api/v1/namespaces/{namespace}", f"kubectl create namespace {namespace}")
    for api_version, kind, namespace in sorted({(one["apiVersion"], one["kind"], _namespace(one)) for one in objects}):
        where = f" in {namespace}" if namespace else ""
        yield f"may make {kind}{where}", partial(_may_create, api, api_version, kind, namespace)
    yield from _references(api, objects)
    for name, namespace, profile in _profiles(objects):
        yield from _for_profile(api, name, namespace, profile, major)
    yield from _for_claims(api, objects)
    yield from _for_kubeflow(api, objects)


def read_objects(text: str) -> list[Object]:
    """The objects of a rendering."""
    try:
        objects = [document for document in yaml.safe_load_all(text) if document]
    except (yaml.YAMLError, ValueError, LookupError, AttributeError, RecursionError) as error:  # of tags, or nested without end
        raise InputError(f"preflight: stdin must be the output of `helm template`: {' '.join(str(error).split())}") from error
    if not objects or not all(isinstance(one, dict) and "kind" in one for one in objects):
        raise InputError("preflight: stdin must be the output of `helm template`, but contains no objects")
    return objects


def _version(api: Api) -> str:
    answer = api.call("GET", "/version")
    major, minor = int(answer["major"]), int(re.sub(r"\D.*", "", answer["minor"]))
    if (major, minor) < MINIMUM:
        raise InputError(f"{api.server} runs {answer['gitVersion']}: at least {MINIMUM[0]}.{MINIMUM[1]} is needed")
    return f"{answer['gitVersion']} at {api.server}"


def _namespace(one: Object) -> str:
    return "" if one["kind"] in _CLUSTER_WIDE else str(one["metadata"].get("namespace", ""))


def _may_create(api: Api, api_version: str, kind: str, namespace: str) -> str:
    plural = "networkpolicies" if kind == "NetworkPolicy" else f"{kind.lower()}s"
    group = api_version.rpartition("/")[0]
    if not api.serves(api_version, plural):
        raise InputError(
            f"the cluster has no {kind} in {api_version}: install {_SOURCES.get(group, 'the component that provides it')}, or disable it"
        )
    verbs = ("get", "create", "patch", "delete", *(("list",) if kind == "Role" else ()))  # the chart looks for another release's Roles
    missing = [verb for verb in verbs if not allowed(api, verb, f"{plural}.{group}".rstrip("."), namespace)]
    if missing:
        raise InputError(f"no permission to {', '.join(missing)} them")
    return "yes"


def _exists(api: Api, path: str, remedy: str) -> str:
    try:
        api.call("GET", path)
    except Refused as refused:
        if refused.refusal.status == 404:
            raise InputError(f"is missing: {remedy}") from refused
        raise InputError(f"cannot be read: {refused.refusal.message}") from refused
    return "there"


def _references(api: Api, objects: Sequence[Object]) -> Iterator[Check]:
    """Secrets and accounts that the rendering uses and does not bring."""
    made = {(one["kind"], _namespace(one), one["metadata"]["name"]) for one in objects}
    wanted: dict[tuple[str, str, str], str] = {}
    for one in objects:
        place = _namespace(one)
        for name in _secrets(_pod_spec(one)):
            wanted[("Secret", place, name)] = f"{one['kind']} {one['metadata']['name']} reads it: create it before installing the chart"
        if one["kind"] == "RoleBinding":
            for subject in one["subjects"]:
                wanted[("ServiceAccount", subject["namespace"], subject["name"])] = (
                    "runs use it: set serviceAccount.create=true, or correct its name"
                )
    for kind, place, name in sorted(set(wanted) - made):
        path = f"/api/v1/namespaces/{place}/{kind.lower()}s/{name}"
        yield f"{kind} {place}/{name}", partial(_exists, api, path, wanted[(kind, place, name)])


def _pod_spec(one: Object) -> Object:
    if one["kind"] == "Pod":
        return dict(one["spec"])
    return dict(one.get("spec", {}).get("template", {}).get("spec", {})) if one["kind"] in ("Deployment", "Job") else {}


def _secrets(spec: Object) -> Iterator[str]:
    yield from (entry["name"] for entry in spec.get("imagePullSecrets", ()))
    yield from (volume["secret"]["secretName"] for volume in spec.get("volumes", ()) if "secret" in volume)
    for container in spec.get("containers", ()):
        yield from (source["secretRef"]["name"] for source in container.get("envFrom", ()) if "secretRef" in source)
        for variable in container.get("env", ()):
            reference = variable.get("valueFrom", {}).get("secretKeyRef")
            if reference:
                yield reference["name"]


def _profiles(objects: Iterable[Object]) -> Iterator[tuple[str, str, Profile]]:
    for one in objects:
        if one["kind"] == "ConfigMap" and "profile.yaml" in one["data"]:
            name, namespace = one["metadata"]["name"], one["metadata"]["namespace"]
            source = f"profile {namespace}/{name}"
            yield name, namespace, parse_config(Profile, load_yaml(one["data"]["profile.yaml"], source), source=source)


def _for_profile(api: Api, name: str, namespace: str, profile: Profile, cuda: int) -> Iterator[Check]:
    for kind in needed_kinds(profile, kubeflow=False):
        yield f"kind {kind.kind} for profile {name}", partial(served, api, kind, profile.jobs)
    if profile.jobs.gpus_per_node and profile.backend != "local":
        yield f"GPUs for profile {name}", partial(_gpus, api, profile, cuda)
    for queue in kueues(profile):
        yield f"queue {namespace}/{queue} for profile {name}", partial(Kueue(Cluster(api)).require, queue, namespace)


def _gpus(api: Api, profile: Profile, cuda: int) -> str:
    """Whether nodes have room for all pods that train at the same time; a queue admits as many jobs as there is room for."""
    if not allowed(api, "list", "nodes", ""):
        return "not checked: no permission to list nodes"
    jobs = profile.jobs
    gpus, resource, selector = jobs.gpus_per_node, jobs.gpu_resource, jobs.node_selector("train")
    nodes = int(profile.placement.get("nodes") or jobs.nodes)
    cells = 1 if jobs.labels.get(jobs.queue_label) or profile.limits.queues else max(profile.parallel_cells, 1)
    found = [node for node in api.call("GET", "/api/v1/nodes")["items"] if selector.items() <= labels_of(node).items()]
    large = [node for node in found if count_of(node, resource) >= gpus]
    reasons = [(node, why_not(node, cuda)) for node in large]
    unfit = [reason for _, reason in reasons if reason]
    room = sum(count_of(node, resource) // gpus for node, reason in reasons if not reason)
    if room < nodes * cells:
        most = max((count_of(node, resource) for node in found), default=0)
        whose = f"{cells} jobs at once (parallelCells) need" if cells > 1 else "jobs need"
        where = f"nodes with {', '.join(f'{key}={value}' for key, value in selector.items())}" if selector else "nodes"
        pods = counted(nodes * cells, "pod")
        wanted = f"{whose} {pods} with {gpus} {resource}, but {where} have room for {room} (the largest has {most})"
        raise InputError("; ".join([wanted, *unfit[:3]]))
    unknown = resource.startswith("nvidia.com/") and not any(map(is_labelled, large))
    known = f"; their drivers are unknown; {MINIMUM_DRIVERS[cuda]} or newer is needed" if unknown else ""
    return f"pods with {gpus} that nodes have room for: {room}{known}"


def _for_claims(api: Api, objects: Iterable[Object]) -> Iterator[Check]:
    for one in objects:
        if one["kind"] == "PersistentVolumeClaim":
            name = one["spec"].get("storageClassName", "")
            yield f"storage class {name or '(default)'}", partial(_storage_class, api, name)


def _storage_class(api: Api, name: str) -> str:
    if name:
        return _exists(
            api, f"/apis/storage.k8s.io/v1/storageclasses/{name}", "name another in objectStore.bundled.persistence.storageClass"
        )
    for found in api.call("GET", "/apis/storage.k8s.io/v1/storageclasses")["items"]:
        annotations: Mapping[str, str] = found["metadata"].get("annotations") or {}
        if annotations.get("storageclass.kubernetes.io/is-default-class") == "true":
            return str(found["metadata"]["name"])
    raise InputError("the cluster has no default storage class: set one in objectStore.bundled.persistence.storageClass")


def _for_kubeflow(api: Api, objects: Sequence[Object]) -> Iterator[Check]:
    profiles = {namespace for _, namespace, _ in _profiles(objects)}
    ca = next((one["data"]["ca.crt"] for one in objects if one["kind"] == "ConfigMap" and "ca.crt" in one["data"]), "")
    for one in objects:
        if any(container["name"] == "upload" for container in _pod_spec(one).get("containers", ())):
            yield from kubeflow_checks(api, one, profiles, ca)
