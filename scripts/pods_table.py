"""Write the tables of docs/SECURITY.md about pods and rights from the rendered chart: `python scripts/pods_table.py`.

What each pod has is read from what Helm makes with every switch on, from the jobs that a launcher makes by its profile, and from the
compiled pipeline. Why it has that is in `WHY` and `WHY_RIGHT`: a pod or a right without a reason ends the script. Tests hold
the page against the chart, and a real cluster's pods and accounts against the same functions.
"""

import dataclasses
import json
import re
import subprocess
import sys
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import yaml

sys.path.insert(0, str(Path(__file__).parents[1]))

from pipelines.cluster.names import Identity
from pipelines.jobs.base import JobSpec
from pipelines.jobs.shapes import by_backend
from pipelines.jobs.shapes.indexed import IndexedJobs
from pipelines.kubeflow.compiled import FOLDER
from pipelines.profile.profile import Profile
from pipelines.profile.settings import JobSettings
from scripts.marked import rewrite
from trainer.configs import load_yaml, parse_config

Object = dict[str, Any]
REPOSITORY = Path(__file__).parents[1]
PAGE = REPOSITORY / "docs/SECURITY.md"
BEGIN, END = "<!-- written by scripts/pods_table.py -->\n", "<!-- end of what is written -->\n"
RELEASE = "fs"
PLACES = {
    "192.0.2.1/32": "the API server",
    "192.0.2.2/32": "the store",
    "192.0.2.3/32": "sources",
    "192.0.2.4/32": "Kubeflow",
    "192.0.2.5/32": "Prometheus",
}
"""Ranges that are in the values below for what a policy lets a pod reach."""
VALUES: dict[str, Any] = {
    "images": {name: {"digest": f"sha256:{'0' * 64}"} for name in ("pipelines", "trainer", "minio")},
    "objectStore": {"bundled": {"unstableCredentials": True}},
    "profileDefaults": {"namespaces": ["runs"]},
    "profiles": {"firstsight": {"jobs": {"queue": "gpus"}}, "v2": {"backend": "trainjob"}},
    "trainingRuntime": {"enabled": True},
    "kubeflow": {"endpoint": "https://kubeflow.example.org", "multiUser": True, "unregister": True, "systemNamespace": "kubeflow"},
    "networkPolicy": {
        "enabled": True,
        **{f"{name}Cidrs": [cidr] for name, cidr in zip(("apiServer", "store", "staging", "kubeflow", "prometheus"), PLACES, strict=True)},
    },
    "metrics": {"prometheusUrl": "https://prometheus.example.org"},
}
KINDS = ("trainer.kubeflow.org/v1alpha1/TrainingRuntime",)
STAGES = {
    "training": ("train", ("perceptual", "contrastive", "posthoc")),
    "evaluation": ("evaluate", ("evaluate",)),
    "staging that fetches": ("stage", ("stage-plan", "stage-fetch")),
    "staging that does not": ("stage", ("stage", "stage-seal")),
}
"""Jobs by what they do: the purpose by which a launcher makes them, and their stages."""
KUBEFLOWS = {
    "allowPrivilegeEscalation": False,
    "capabilities": {"drop": ["ALL"]},
    "seccompProfile": {"type": "RuntimeDefault"},
}
"""What Kubeflow Pipelines 2.17 itself says of a step's container (docs/KUBEFLOW.md)."""
WHY = {
    "Deployment minio": "the bundled store; only this pod has the volume and the root user's password",
    "Deployment reaper": "watches runs and jobs, ends jobs that no run is waiting for, serves metrics",
    "Job bucket": "creates the bucket and the users; the only hook that has the store's root keys",
    "Job upload": "registers the pipeline in Kubeflow with a token that is valid only there",
    "Job unregister": "unregisters the pipeline, with the same kind of token",
    "Job uninstall": "lists jobs, and refuses while any is running; removes leftover hooks and tests",
    "Pod check": "does what a run does, with a run's service account and keys, so that `helm test` finds the same errors",
    "Pod check-reaper": "checks the reaper's permissions, using the reaper's service account",
    "TrainingRuntime": "template of a TrainJob's pods; the job adds the store's keys",
    "step": "launches jobs, follows them, and writes records to the store",
    "training": "reads data, writes checkpoints; its pods talk to each other (NCCL, gloo)",
    "evaluation": "reads weights and evaluation sets, writes results; has the same network policies as every job",
    "staging that fetches": "the only pods that may reach the servers that lists name",
    "staging that does not": "accesses only the store",
}
"""Why each kind of pod has what it has."""
WHY_RIGHT = {
    ("run", "pytorchjobs.kubeflow.org"): "training; the runs that wait for a job are recorded in it by a patch",
    ("run", "trainjobs.trainer.kubeflow.org"): "training by Kubeflow Trainer",
    ("run", "jobs.batch"): "staging and evaluation",
    ("run", "pods"): "to report why a job does not start, and to delete a pod that hangs",
    ("run", "pods/log"): "to copy a job's log lines into the step's log",
    ("run", "events"): "the only place where refusals and failed image pulls are reported",
    ("run", "workloads.kueue.x-k8s.io"): "to report why a queue holds a job",
    ("run", "localqueues.kueue.x-k8s.io"): "to check that the queue exists before anything is staged",
    ("reaper", "workflows.argoproj.io"): "to find runs that were terminated or deleted",
    (
        "reaper",
        "pytorchjobs.kubeflow.org",
    ): "to end the jobs of such runs, or to remove a finished run from a job that another run needs",
    ("reaper", "trainjobs.trainer.kubeflow.org"): "as for PyTorchJobs",
    ("reaper", "jobs.batch"): "as for PyTorchJobs",
    ("reaper", "pods"): "to delete pods left behind by a deleted job",
    ("uninstall", "pytorchjobs.kubeflow.org"): "to check that none is running",
    ("uninstall", "trainjobs.trainer.kubeflow.org"): "to check that none is running",
    ("uninstall", "jobs.batch"): "to check that none is running, and to delete failed hooks, which are kept for their logs until then",
    ("uninstall", "pods"): "the same for the pods of tests",
    ("pipeline", "pipelines.pipelines.kubeflow.org"): "checked by Kubeflow, not by the API server: permission to write pipelines",
    ("pipeline", "pipelines/versions.pipelines.kubeflow.org"): "the same for its versions",
}
"""Why each account has each right."""


@dataclasses.dataclass(frozen=True)
class Pod:
    """A pod that will be made: its kind in `WHY`, its namespace, labels and spec."""

    kind: str
    namespace: str
    labels: Mapping[str, str]
    spec: Mapping[str, Any]


def pods(objects: Iterable[Object]) -> list[Pod]:
    """Every pod of a rendered chart, and of the jobs and steps of runs with its profiles."""
    objects = list(objects)
    return [*_of_chart(objects), *_of_jobs(objects), *_of_steps(objects)]


def _of_chart(objects: Iterable[Object]) -> Iterator[Pod]:
    for one in objects:
        namespace, kind = one["metadata"].get("namespace", ""), one["kind"]
        labels = one["metadata"].get("labels", {})
        if kind == "TrainingRuntime":
            for job in one["spec"]["template"]["spec"]["replicatedJobs"]:
                template = job["template"]["spec"]["template"]
                yield Pod(kind, namespace, template["metadata"]["labels"], template["spec"])
        elif kind == "Pod":
            name = "check-reaper" if one["spec"]["serviceAccountName"].endswith("-reaper") else labels["app.kubernetes.io/component"]
            yield Pod(f"Pod {name}", namespace, labels, one["spec"])
        elif kind in ("Deployment", "StatefulSet", "DaemonSet", "Job", "CronJob"):
            template = one["spec"]["template"]
            yield Pod(f"{kind} {template['spec']['containers'][0]['name']}", namespace, template["metadata"]["labels"], template["spec"])


def _of_jobs(objects: Iterable[Object]) -> Iterator[Pod]:
    for one in objects:
        if "profile.yaml" not in (one.get("data") or {}):
            continue
        profile = parse_config(Profile, load_yaml(one["data"]["profile.yaml"], "profile"), source="profile")
        if profile.backend == "trainjob":  # the runtime's pods, which are rendered
            continue
        settings = dataclasses.replace(profile.jobs, namespace=one["metadata"]["namespace"])
        for kind, (purpose, stages) in STAGES.items():
            for stage in stages:
                for template in _templates(_manifest(settings, profile.backend, purpose, stage)):
                    yield Pod(kind, settings.namespace, template["metadata"]["labels"], template["spec"])


def _manifest(settings: JobSettings, backend: str, purpose: Any, stage: str) -> Object:
    shape = by_backend()[backend] if purpose == "train" and backend in by_backend() else IndexedJobs
    identity = Identity(root="s3://b", output=f"s3://b/{stage}", experiment="e", cell="c", arm="random", seed=0, stage=stage)
    spec = JobSpec(name=stage, arguments=(), folder="s3://b/f", purpose=purpose, identity=identity, recipe_hash="0" * 64)
    return shape(settings).manifest(spec, 0)


def _templates(value: Any) -> Iterator[Object]:
    if isinstance(value, dict):
        if isinstance(value.get("spec"), dict) and "containers" in value["spec"]:
            yield value
        value = list(value.values())
    for part in value if isinstance(value, list) else ():
        yield from _templates(part)


def _of_steps(objects: Iterable[Object]) -> Iterator[Pod]:
    """As Kubeflow makes them: what the compiled pipeline says, the rest being Kubeflow's."""
    _, platform = yaml.safe_load_all((FOLDER / "firstsight.yaml").read_text(encoding="utf-8"))
    roles = {one["metadata"]["namespace"]: one for one in objects if "profile.yaml" in (one.get("data") or {})}
    for executor in platform["platforms"]["kubernetes"]["deploymentSpec"]["executors"].values():
        user = {**KUBEFLOWS, **{key: int(value) if str(value).isdecimal() else value for key, value in executor["securityContext"].items()}}
        maps = [
            {"name": "profile", "configMap": {"name": "the profile's"}, "at": one["mountPath"]} for one in executor["configMapAsVolume"]
        ]
        empty = [{"name": one["volumeName"], "emptyDir": {}, "at": one["mountPath"]} for one in executor["emptyDirMounts"]]
        volumes = maps + empty
        container = {
            "name": "main",
            "securityContext": {**KUBEFLOWS, **user},
            "volumeMounts": [{"name": volume["name"], "mountPath": volume["at"]} for volume in volumes],
            "envFrom": [{"secretRef": {"name": "the profile's"}} for _ in executor["secretAsEnv"]],
        }
        for namespace in roles:
            spec = {"serviceAccountName": "the profile's", "containers": [container], "volumes": volumes}
            yield Pod("step", namespace, executor["podMetadata"]["labels"], spec)


def facts(spec: Mapping[str, Any]) -> dict[str, str]:
    """What a pod is allowed and given, in words; of a live pod the same as of the template that it was made from."""
    (container, *_) = spec["containers"]
    context = {**spec.get("securityContext", {}), **container.get("securityContext", {})}
    held = {
        "non-root": context.get("runAsNonRoot") is True,
        "seccomp": context.get("seccompProfile") == {"type": "RuntimeDefault"},
        "no escalation": context.get("allowPrivilegeEscalation") is False,
        "no capabilities": context.get("capabilities") == {"drop": ["ALL"]},
        "read-only root": context.get("readOnlyRootFilesystem") is True,
    }
    missing = [name for name, holds in held.items() if not holds]
    extra = [key for key in ("hostNetwork", "hostPID", "hostIPC") if spec.get(key)] + (["privileged"] if context.get("privileged") else [])
    return {
        "user": str(context.get("runAsUser", "the cluster's")),
        "restricted": ", ".join([f"without {name}" for name in missing] + extra) or "yes",
        "mounts": ", ".join(sorted(_mounts(spec, container))),
        "secrets": ", ".join(sorted(_secrets(container))) or "none",
        "token": _token(spec, container),
    }


_API_TOKEN = "/var/run/secrets/kubernetes.io/serviceaccount"  # where the kubelet puts an account's token


def _mounts(spec: Mapping[str, Any], container: Mapping[str, Any]) -> Iterator[str]:
    volumes = {volume["name"]: volume for volume in spec.get("volumes", ())}
    for mount in container.get("volumeMounts", ()):
        volume = volumes[mount["name"]]
        if mount["mountPath"] == _API_TOKEN or _audience(volume):
            continue
        kind = next(key for key in ("emptyDir", "configMap", "secret", "persistentVolumeClaim", "projected", "hostPath") if key in volume)
        said = {"emptyDir": "scratch", "configMap": "ConfigMap", "secret": "Secret", "persistentVolumeClaim": "claim"}.get(kind, kind)
        yield f"`{mount['mountPath']}` {said}"


def _secrets(container: Mapping[str, Any]) -> set[str]:
    """The Secrets of the environment."""
    found = {source["secretRef"]["name"] for source in container.get("envFrom", ()) if "secretRef" in source}
    found |= {reference["name"] for one in container.get("env", ()) if (reference := one.get("valueFrom", {}).get("secretKeyRef"))}
    return {name.replace(f"{RELEASE}-firstsight", "…") for name in found}


def _token(spec: Mapping[str, Any], container: Mapping[str, Any]) -> str:
    """Whom the pod has a token for: the API server, another audience, nobody."""
    mounted = any(mount["mountPath"] == _API_TOKEN for mount in container.get("volumeMounts", ()))
    live = "nodeName" in spec or any(volume["name"].startswith("kube-api-access-") for volume in spec.get("volumes", ()))
    account = str(spec.get("serviceAccountName", "default")).replace(f"{RELEASE}-firstsight", "…")
    audiences = [f"`{found}`" for volume in spec.get("volumes", ()) if (found := _audience(volume))]
    if mounted if live else spec.get("automountServiceAccountToken") is not False:
        audiences.insert(0, f"the API server, as `{account}`")
    return ", ".join(audiences) or "none"


def _audience(volume: Mapping[str, Any]) -> str:
    """Whom the token of a projected volume is for; empty: it is no such volume."""
    sources = volume.get("projected", {}).get("sources", ())
    return next((found for one in sources if (found := one.get("serviceAccountToken", {}).get("audience", ""))), "")


def flows(pod: Pod, policies: Iterable[Object]) -> str:
    """From where and to where the policies let it."""
    found: dict[str, list[str]] = {"Ingress": [], "Egress": []}
    for policy in policies:
        spec = policy["spec"]
        if policy["metadata"]["namespace"] != pod.namespace or not _selects(spec["podSelector"], pod.labels):
            continue
        for direction, key in (("Ingress", "from"), ("Egress", "to")):
            for rule in spec.get(direction.lower(), ()) if direction in spec["policyTypes"] else ():
                found[direction] += [_place(peer) for peer in rule.get(key, ({},))]
    said = {direction: ", ".join(dict.fromkeys(places)) or "nothing" for direction, places in found.items()}
    return f"in: {said['Ingress']}; out: {said['Egress']}"


def _selects(selector: Mapping[str, Any], labels: Mapping[str, str]) -> bool:
    """For the operators that the chart uses."""
    return all(labels.get(key) == value for key, value in selector.get("matchLabels", {}).items()) and all(
        (labels.get(one["key"]) in one["values"]) is (one["operator"] == "In") for one in selector.get("matchExpressions", ())
    )


def _place(peer: Mapping[str, Any]) -> str:
    if "ipBlock" in peer:
        return PLACES.get(
            peer["ipBlock"]["cidr"], "nodes' DNS" if peer["ipBlock"]["cidr"] == "169.254.20.10/32" else peer["ipBlock"]["cidr"]
        )
    component = peer.get("podSelector", {}).get("matchLabels", {}).get("app.kubernetes.io/component")
    if component or "podSelector" in peer:
        return {"trainer": "jobs of the namespace", "minio": "the store", None: "pods of firstsight"}.get(component, str(component))
    namespace = peer.get("namespaceSelector", {}).get("matchLabels", {}).get("kubernetes.io/metadata.name", "")
    return {"kube-system": "DNS", "monitoring": "Prometheus", "kubeflow": "Kubeflow", "": "anywhere"}.get(namespace, namespace)


def rights(objects: Iterable[Object]) -> dict[tuple[str, str, str], dict[str, tuple[str, ...]]]:
    """Verbs by resource of each account: (its namespace and name, where, which Role's)."""
    objects = list(objects)
    roles = {
        (one["kind"], one["metadata"].get("namespace", ""), one["metadata"]["name"]): one["rules"] for one in objects if "rules" in one
    }
    found: dict[tuple[str, str, str], dict[str, tuple[str, ...]]] = {}
    for one in objects:
        if one["kind"] in ("RoleBinding", "ClusterRoleBinding"):
            place, reference = one["metadata"].get("namespace", ""), one["roleRef"]
            rules = roles[(reference["kind"], place if reference["kind"] == "Role" else "", reference["name"])]
            for subject in one["subjects"]:
                given = found.setdefault((f"{subject['namespace']}/{subject['name']}", place, reference["name"].rsplit("-", 1)[1]), {})
                for resource, verbs in _verbs(rules):
                    given[resource] = tuple(dict.fromkeys((*given.get(resource, ()), *verbs)))
    return found


def _verbs(rules: Iterable[Mapping[str, Any]]) -> Iterator[tuple[str, tuple[str, ...]]]:
    for rule in rules:
        for group in rule["apiGroups"]:
            for resource in rule["resources"]:
                yield f"{resource}.{group}".rstrip("."), tuple(rule["verbs"])


def tables(objects: Iterable[Object]) -> str:
    """Both tables.

    Raises:
        ValueError: a pod without a reason.
        KeyError: a right without one.
    """
    objects = list(objects)
    policies = [one for one in objects if one["kind"] == "NetworkPolicy"]
    profiles = [one["metadata"]["name"] for one in objects if "profile.yaml" in (one.get("data") or {})]
    lines = ["| pod | user | restricted | mounts | keys from Secret | token for | network, where policies are on | why |", "|---" * 8 + "|"]
    for pod in sorted(pods(objects), key=lambda pod: [*WHY].index(pod.kind)):
        has = facts(pod.spec)
        has["secrets"] = "the profile's" if has["secrets"] in profiles else has["secrets"]
        has["token"] = re.sub(rf"`({'|'.join(profiles)}|the profile's)`", "the profile's account", has["token"])
        row = (pod.kind, *(has[name] for name in ("user", "restricted", "mounts", "secrets", "token")), flows(pod, policies), WHY[pod.kind])
        if (line := f"| {' | '.join(row)} |") not in lines:
            lines.append(line)
    lines += ["", "| account of | where | may | why |", "|---|---|---|---|"]
    whose = {"run": "a run's steps", "reaper": "the reaper", "uninstall": "the uninstall hook", "pipeline": "upload, unregister"}
    where = {"runs": "the run's namespace", "ml": "the release's namespace", "kubeflow": "Kubeflow's namespace"}
    asked: dict[tuple[str, str, tuple[str, ...]], list[str]] = {}
    for (_, place, role), given in rights(objects).items():
        for resource, verbs in given.items():
            places = asked.setdefault((role, resource, verbs), [])
            places += [] if where[place] in places else [where[place]]
    for (role, resource, verbs), places in asked.items():
        name, _, group = resource.partition(".")
        what = f"{name.replace('/', ': ')} of {group or 'the core'}: {' '.join(verbs)}"
        lines.append(f"| {whose[role]} | {', '.join(places)} | {what} | {WHY_RIGHT[(role, resource)]} |")
    return "\n".join([*lines, ""])


def rendered(helm: Path | str) -> list[Object]:
    """The chart with every switch on that makes a pod or a right."""
    command = [str(helm), "template", RELEASE, "charts/firstsight", "-n", "ml", "--kube-version", "1.34.4", "--values", "-"]
    command += [part for kind in KINDS for part in ("--api-versions", kind)]
    done = subprocess.run(command, input=json.dumps(VALUES), capture_output=True, text=True, cwd=REPOSITORY)
    if done.returncode:
        raise RuntimeError(done.stderr)
    return [one for one in yaml.safe_load_all(done.stdout) if one]


def page(current: str, objects: Iterable[Object]) -> str:
    """The page with its tables rewritten."""
    return rewrite(current, BEGIN, END, tables(objects))


if __name__ == "__main__":
    from tests.cluster import programs

    PAGE.write_text(page(PAGE.read_text(encoding="utf-8"), rendered(programs.program("helm"))), encoding="utf-8")
