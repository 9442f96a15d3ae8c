"""Does the Kubeflow that a rendered chart names answer, and does it let our upload in? Part of `python -m pipelines check preflight`."""

import json
import re
from collections.abc import Iterator, Mapping
from functools import partial
from typing import Any
from urllib.parse import urlsplit

from pipelines.cluster.api import Api, Refused, Unreachable
from pipelines.operate.probes import Check, allowed
from trainer.errors import InputError, RunError

Object = dict[str, Any]
Labels = Mapping[str, str]
HEALTH = "/apis/v2beta1/healthz"
LET_IN = (
    "its NetworkPolicy admits traffic only from its own namespace and those labelled app.kubernetes.io/part-of=kubeflow-profile "
    "(docs/OPERATIONS.md)"
)
"""Where an answer that never comes may be a packet that was dropped."""
_SECONDS = 10.0
_IN_CLUSTER = re.compile(r"([a-z0-9-]+)\.([a-z0-9-]+)(\.svc(\.[a-z0-9.-]+)?)?")
_OPERATORS = {
    "In": lambda value, values: value in values,
    "NotIn": lambda value, values: value not in values,
    "Exists": lambda value, values: value is not None,
    "DoesNotExist": lambda value, values: value is None,
}


def kubeflow_checks(api: Api, upload: Object, profiles: set[str], ca: str) -> Iterator[Check]:
    """Checks of the Kubeflow that the chart registers its pipeline with.

    Args:
        api: the cluster.
        upload: the Job that registers it.
        profiles: namespaces of the chart's run profiles.
        ca: CA certificates to trust for TLS, PEM; empty: the public ones.
    """
    environment = {one["name"]: one.get("value", "") for one in upload["spec"]["template"]["spec"]["containers"][0]["env"]}
    endpoint, multi_user = environment["KFP_ENDPOINT"], "KF_PIPELINES_SA_TOKEN_PATH" in environment
    parts = urlsplit(endpoint)
    service = _IN_CLUSTER.fullmatch(parts.hostname or "")
    inside = service if service and (service[3] or (parts.scheme == "http" and parts.port)) else None
    if inside is None:
        yield f"Kubeflow Pipelines {endpoint}", partial(_answers_here, endpoint, multi_user, ca)
        return
    name, namespace = inside[1], inside[2]
    port = parts.port or (443 if parts.scheme == "https" else 80)
    path = f"/api/v1/namespaces/{namespace}/services/{parts.scheme}:{name}:{port}/proxy{HEALTH}"
    yield f"Kubeflow Pipelines {endpoint}", partial(_answers_inside, api, path, namespace, multi_user)
    yield f"network policies of {namespace}", partial(_lets_in, api, name, namespace, upload)
    if not multi_user:
        yield f"profile in namespace {namespace}", partial(_has_profile, namespace, profiles)


def judge_health(endpoint: str, body: bytes | str, multi_user: bool | None = None) -> str:
    """What an answer to the health route says.

    Args:
        endpoint: that answered, for messages.
        body: of the answer.
        multi_user: as the chart has it; None: not compared.

    Raises:
        InputError: it is another server's, or Kubeflow serves users in another way than the chart has it.
    """
    try:
        health = json.loads(body)
        served = bool(health["multi_user"])
    except (ValueError, TypeError, LookupError):
        raise InputError(f"{endpoint} responds, but not like Kubeflow Pipelines 2: correct kubeflow.endpoint") from None
    if multi_user is not None and served != multi_user:
        raise InputError(f"{endpoint} is {'multi-user' if served else 'single-user'}: set kubeflow.multiUser={str(served).lower()}")
    return "responds (multi-user)" if served else "responds"


def _answers_inside(api: Api, path: str, namespace: str, multi_user: bool) -> str:
    """By the API server's proxy, which connects to the Service's pods as the upload will."""
    if not allowed(api, "get", "services/proxy", namespace):
        return "not checked: no permission to connect through services/proxy; `helm test` will check it"
    try:
        health = api.once("GET", path)
    except (Refused, Unreachable) as error:
        raise InputError(f"does not respond ({error}): install Kubeflow Pipelines, or correct kubeflow.endpoint") from error
    except ValueError:
        health = None
    return judge_health(path.partition("/proxy")[0], json.dumps(health), multi_user)


def _answers_here(endpoint: str, multi_user: bool, ca: str) -> str:
    """From this machine. Before a login only that something answers can be told: the upload brings its credentials."""
    import urllib3

    url = endpoint.rstrip("/") + HEALTH
    pool = urllib3.PoolManager(ca_cert_data=ca) if ca else urllib3.PoolManager()
    try:
        answer = pool.request("GET", url, timeout=_SECONDS, retries=False, redirect=False)
    except urllib3.exceptions.HTTPError as error:
        raise RunError(f"is not reachable from this machine: {error}") from error
    if answer.status in (301, 302, 303, 307, 308, 401, 403):
        return f"responds with {answer.status}, which suggests a login page"
    if answer.status != 200:
        raise InputError(f"{url} responds with {answer.status}: correct kubeflow.endpoint")
    return judge_health(endpoint, answer.data, multi_user)


def _lets_in(api: Api, service: str, namespace: str, upload: Object) -> str:
    """Whether the policies before Kubeflow's API let in the upload's pod."""
    try:
        selector = api.call("GET", f"/api/v1/namespaces/{namespace}/services/{service}").get("spec", {}).get("selector") or {}
        policies = api.call("GET", f"/apis/networking.k8s.io/v1/namespaces/{namespace}/networkpolicies")["items"]
    except Refused as refused:
        return f"not checked: {refused.refusal.message}"
    before = [one for one in policies if "Ingress" in _types(one) and _selects(one["spec"].get("podSelector"), selector)]
    own = upload["metadata"]["namespace"]
    labels = {"kubernetes.io/metadata.name": own, **_labels_of(api, own)}
    pod = upload["spec"]["template"]["metadata"].get("labels") or {}
    rules = [rule for one in before for rule in one["spec"].get("ingress") or []]
    if before and not any(_admits(rule, own == namespace, labels, pod) for rule in rules):
        names = ", ".join(one["metadata"]["name"] for one in before)
        raise InputError(
            f"{names} in namespace {namespace} block all traffic from namespace {own}: "
            f"kubectl label namespace {own} app.kubernetes.io/part-of=kubeflow-profile, or install the chart in {namespace}"
        )
    return "let the upload in" if before else "none before Kubeflow's API"


def _labels_of(api: Api, namespace: str) -> Labels:
    try:
        return api.call("GET", f"/api/v1/namespaces/{namespace}").get("metadata", {}).get("labels") or {}
    except Refused:
        return {}


def _types(policy: Object) -> list[str]:
    return policy["spec"].get("policyTypes") or ["Ingress"]


def _admits(rule: Object, same: bool, namespace: Labels, pod: Labels) -> bool:
    """Whether a rule of a policy admits a pod; an address range is not looked into, and counts as one that may."""
    return not rule.get("from") or any(
        "ipBlock" in peer
        or (
            (_selects(peer["namespaceSelector"], namespace) if "namespaceSelector" in peer else same)
            and _selects(peer.get("podSelector"), pod)
        )
        for peer in rule["from"]
    )


def _selects(selector: Object | None, labels: Labels) -> bool:
    selector = selector or {}
    equal = all(labels.get(key) == value for key, value in (selector.get("matchLabels") or {}).items())
    return equal and all(
        _OPERATORS[one["operator"]](labels.get(one["key"]), one.get("values") or ()) for one in selector.get("matchExpressions") or ()
    )


def _has_profile(namespace: str, profiles: set[str]) -> str:
    if namespace not in profiles:
        raise InputError(f"is missing, and this Kubeflow runs everything in {namespace}: profileDefaults.namespaces: [{namespace}]")
    return "there"
