"""What live pods and accounts have, held against what docs/SECURITY.md says of them by the same functions (scripts/pods_table.py)."""

import json
from collections.abc import Mapping
from typing import Any

import yaml

from scripts import pods_table
from tests.cluster import harness
from tests.cluster.chart import helm

_DEFAULT = "nobody-in-particular"  # an account that does not exist has what every account has


def installed(release: str, namespace: str) -> list[dict[str, Any]]:
    """All that Helm made of the chart, hooks and tests among it."""
    text = "\n---\n".join(helm("get", what, release, "-n", namespace) for what in ("manifest", "hooks"))
    return [one for one in yaml.safe_load_all(text) if one]


def differing(objects: list[dict[str, Any]], namespace: str) -> tuple[set[str], dict[str, Any]]:
    """Kinds of the live pods that are known, and by the name of each that has something else than it should, both."""
    known: dict[tuple[str, ...], tuple[str, dict[str, str]]] = {}
    for pod in pods_table.pods(objects):
        if pod.namespace == namespace and pod.kind != "step":  # here the tests make those themselves
            known[_key(pod.labels, pod.spec)] = pod.kind, pods_table.facts(pod.spec)
    seen, wrong = set(), {}
    for live in harness.listed("pods", namespace, "app.kubernetes.io/part-of=firstsight,app.kubernetes.io/component!=launcher"):
        kind, has = known.get(_key(live["metadata"]["labels"], live["spec"]), ("", {}))
        seen.add(kind)
        if (found := pods_table.facts(live["spec"])) != has:
            wrong[live["metadata"]["name"]] = (found, has)
    return seen, wrong


def _key(labels: Mapping[str, str], spec: Mapping[str, Any]) -> tuple[str, ...]:
    container = spec["containers"][0]["name"]
    account = str(spec.get("serviceAccountName", "default"))
    return labels["app.kubernetes.io/component"], labels.get("firstsight.dev/stage", ""), container, account


def rules(account: str, place: str) -> set[str]:
    """`verb resource` of all that an account (`namespace/name`) may do in a namespace beyond what every account may.

    This is what `kubectl auth can-i --list` prints.
    """
    namespace = account.partition("/")[0]
    return _asked(account, place) - _asked(f"{namespace}/{_DEFAULT}", place)


def _asked(account: str, place: str) -> set[str]:
    review = {"apiVersion": "authorization.k8s.io/v1", "kind": "SelfSubjectRulesReview", "spec": {"namespace": place}}
    user = f"--as=system:serviceaccount:{account.replace('/', ':')}"
    answer = json.loads(harness.kubectl("create", "-f", "-", "-o", "json", "--validate=false", user, text=json.dumps(review)))
    return {
        f"{verb} {resource}.{group}".rstrip(".")
        for rule in answer["status"]["resourceRules"]
        for verb in rule["verbs"]
        for group in rule.get("apiGroups", [""])
        for resource in rule.get("resources", [])
    }
