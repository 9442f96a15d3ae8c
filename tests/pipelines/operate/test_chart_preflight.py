"""`python -m pipelines check preflight` reads a rendering of the chart and asks a cluster."""

import contextlib
from collections.abc import Callable
from typing import Any

import pytest
import yaml

from pipelines.operate.chart_preflight import preflight, read_objects
from tests.pipelines.kubeflow_server import kubeflow_server
from tests.pipelines.operate.stub_api import StubApi
from trainer.errors import InputError


def _object(api_version: str, kind: str, name: str, namespace: str = "ml", **parts: Any) -> dict[str, Any]:
    return {"apiVersion": api_version, "kind": kind, "metadata": {"name": name, "namespace": namespace}, **parts}


def _label(key: str, value: str) -> dict[str, Any]:
    return {"key": key, "operator": "In", "values": [value]}


def _rendering(**profile: Any) -> str:
    settings = {"root": "s3://b/ml", "backend": "pytorchjob", **profile}
    upload = {"name": "upload", "env": [{"name": "KFP_ENDPOINT", "value": "http://ml-pipeline.kubeflow.svc:8888"}]}
    body = {"metadata": {"labels": {"app.kubernetes.io/component": "pipeline"}}, "spec": {"containers": [upload]}}
    checks = {"name": "check", "envFrom": [{"secretRef": {"name": "keys"}}]}
    editor = {"kind": "ServiceAccount", "name": "default-editor", "namespace": "ml"}
    objects = [
        _object("v1", "ConfigMap", "fs", data={"profile.yaml": yaml.safe_dump(settings)}),
        _object("v1", "PersistentVolumeClaim", "data", spec={}),
        _object("v1", "Pod", "check", spec={"containers": [checks]}),
        _object("rbac.authorization.k8s.io/v1", "RoleBinding", "run", subjects=[editor]),
        _object("batch/v1", "Job", "upload", spec={"template": body}),
        _object("v1", "ConfigMap", "kubeflow", "kubeflow", data={"profile.yaml": "backend: local"}),
    ]
    return yaml.safe_dump_all(objects)


def _failed(text: str) -> dict[str, str]:
    failures = {}
    for name, look in preflight(text):
        try:
            look()
        except InputError as error:
            failures[name] = str(error)
    return failures


@pytest.fixture
def ready(stub: StubApi) -> StubApi:
    """A cluster that has all that `_rendering` needs."""
    for path in ("ml/secrets/keys", "ml/serviceaccounts/default-editor", "kubeflow"):
        stub.objects[f"/api/v1/namespaces/{path}"] = {}
    stub.objects[SERVICE] = {"spec": {"selector": {"app": "ml-pipeline"}}}
    stub.objects[PROXY] = {"multi_user": False}
    stub.objects[POLICIES] = {"items": []}
    return stub


def test_preflight_of_a_ready_cluster(ready: StubApi) -> None:
    """Nothing is missing, GPUs included."""
    assert _failed(_rendering(jobs={"gpus_per_node": 8})) == {}


def test_preflight_of_a_namespace_that_the_chart_makes(ready: StubApi) -> None:
    """It need not be there; the right to make it is asked for, as for everything else."""
    made = yaml.safe_dump_all(
        [{"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "ml-runs"}}, _object("v1", "ConfigMap", "fs", "ml-runs", data={})]
    )
    assert _failed(f"{_rendering()}---\n{made}") == {}
    ready.refused.add(("create", "namespaces"))
    assert _failed(f"{_rendering()}---\n{made}") == {"may make Namespace": "no permission to create them"}


NAMESPACES, CLASSES = "/api/v1/namespaces", "/apis/storage.k8s.io/v1/storageclasses"
OLD = {"major": "1", "minor": "27", "gitVersion": "v1.27.1"}
SERVICE = f"{NAMESPACES}/kubeflow/services/ml-pipeline"
PROXY = f"{NAMESPACES}/kubeflow/services/http:ml-pipeline:8888/proxy/apis/v2beta1/healthz"
POLICIES = "/apis/networking.k8s.io/v1/namespaces/kubeflow/networkpolicies"
POLICY = {
    "metadata": {"name": "ml-pipeline"},
    "spec": {
        "podSelector": {"matchExpressions": [{"key": "app", "operator": "In", "values": ["ml-pipeline"]}]},
        "ingress": [
            {
                "from": [
                    {"namespaceSelector": {"matchExpressions": [_label("app.kubernetes.io/part-of", "kubeflow-profile")]}},
                    {"namespaceSelector": {"matchExpressions": [_label("kubernetes.io/metadata.name", "istio-system")]}},
                ]
            }
        ],
        "policyTypes": ["Ingress"],
    },
}
"""Of kubeflow/manifests, common/networkpolicies/base/ml-pipeline.yaml."""
BEFORE = "network policies of kubeflow"
KFP = "Kubeflow Pipelines http://ml-pipeline.kubeflow.svc:8888"
LACKS: dict[str, tuple[Callable[[StubApi], Any], str, str]] = {  # what is taken away, the check that fails, what it says
    "version": (lambda api: api.objects.update({"/version": OLD}), "Kubernetes", "at least 1.29"),
    "namespace": (lambda api: api.objects.pop(f"{NAMESPACES}/ml"), "namespace ml", "kubectl create namespace ml"),
    "role": (lambda api: api.refused.add(("patch", "rolebindings.rbac.authorization.k8s.io")), "may make RoleBinding in ml", "to patch"),
    "operator": (lambda api: api.kinds.pop("kubeflow.org/v1"), "kind PyTorchJob for profile fs", "install the training operator"),
    "secret": (lambda api: api.objects.pop(f"{NAMESPACES}/ml/secrets/keys"), "Secret ml/keys", "Pod check reads it"),
    "account": (
        lambda api: api.objects.pop(f"{NAMESPACES}/ml/serviceaccounts/default-editor"),
        "ServiceAccount ml/default-editor",
        "create",
    ),
    "storage": (lambda api: api.objects.update({CLASSES: {"items": []}}), "storage class (default)", "persistence.storageClass"),
    "Kubeflow": (lambda api: api.objects.pop(PROXY), KFP, "does not respond"),
    "Kubeflow of several": (lambda api: api.objects.update({PROXY: {"multi_user": True}}), KFP, "set kubeflow.multiUser=true"),
    "another server": (lambda api: api.objects.update({PROXY: {"hello": "world"}}), KFP, "not like Kubeflow Pipelines 2"),
    "a way in": (lambda api: api.objects.update({POLICIES: {"items": [POLICY]}}), BEFORE, "kubectl label namespace ml app.kubernetes"),
    "GPUs": (lambda api: api.objects.update({"/api/v1/nodes": {"items": []}}), "GPUs for profile fs", "but nodes have room for 0"),
}


@pytest.mark.parametrize("what", LACKS)
def test_preflight_finds(ready: StubApi, what: str) -> None:
    """What the cluster lacks is the one failure, with what to do."""
    take_away, name, said = LACKS[what]
    take_away(ready)
    failures = _failed(_rendering(jobs={"gpus_per_node": 8}))
    assert list(failures) == [name]
    assert said in failures[name]


@pytest.mark.parametrize(("resource", "gpus", "fits"), [("nvidia.com/mig-1g.10gb", 1, True), ("amd.com/gpu", 8, False)])
def test_preflight_counts_gpus_by_the_name_that_jobs_ask_for(ready: StubApi, resource: str, gpus: int, fits: bool) -> None:
    """Eight of NVIDIA's are none of AMD's, and slices are counted as slices."""
    nodes = [{"status": {"allocatable": {"nvidia.com/gpu": "8", "nvidia.com/mig-1g.10gb": "7"}}}]
    ready.objects["/api/v1/nodes"] = {"items": nodes}
    failures = _failed(_rendering(jobs={"gpus_per_node": gpus, "gpu_resource": resource}))

    said = f"jobs need 1 pod with 8 {resource}, but nodes have room for 0 (the largest has 0)"
    assert failures == ({} if fits else {"GPUs for profile fs": said})


@pytest.mark.parametrize(("pods", "fits"), [(7, True), (8, False)])
def test_preflight_counts_the_pods_of_one_node(ready: StubApi, pods: int, fits: bool) -> None:
    """A process sees one slice, so jobs of slices have more nodes, of which one machine takes several."""
    ready.objects["/api/v1/nodes"] = {"items": [{"status": {"allocatable": {"nvidia.com/mig-1g.10gb": "7"}}}]}
    failures = _failed(_rendering(jobs={"nodes": pods, "gpus_per_node": 1, "gpu_resource": "nvidia.com/mig-1g.10gb"}))
    said = "jobs need 8 pods with 1 nvidia.com/mig-1g.10gb, but nodes have room for 7 (the largest has 7)"
    assert failures == ({} if fits else {"GPUs for profile fs": said})


AT_ONCE: dict[str, tuple[dict[str, Any], str]] = {  # the profile, and what does not fit on two nodes of 8; one of them is of the pool big
    "its jobs": ({"jobs": {"nodes": 2}}, ""),
    "more nodes by its placement": ({"placement": {"nodes": 3}}, "jobs need 3 pods with 8 nvidia.com/gpu, but nodes have room for 2 ("),
    "fewer nodes by its placement": ({"jobs": {"nodes": 3}, "placement": {"nodes": 2}}, ""),
    "cells": ({"parallel_cells": 3}, "3 jobs at once (parallelCells) need 3 pods with 8 nvidia.com/gpu, but nodes have room for 2"),
    "cells of two nodes": ({"jobs": {"nodes": 2}, "parallel_cells": 2}, "2 jobs at once (parallelCells) need 4 pods"),
    "cells that a queue admits": ({"jobs": {"labels": {"queue": "gpus"}, "queue_label": "queue"}, "parallel_cells": 3}, ""),
    "cells that a queue will have to admit": ({"limits": {"queues": ["gpus"]}, "jobs": {"queue_label": "queue"}, "parallel_cells": 3}, ""),
    "all cells": ({"parallel_cells": 0}, ""),
    "a pool": ({"jobs": {"training_pod_template": {"spec": {"nodeSelector": {"pool": "big"}}}}}, ""),
    "a pool that is too small": (
        {"jobs": {"nodes": 2, "pod_template": {"spec": {"nodeSelector": {"pool": "big"}}}}},
        "but nodes with pool=big have room for 1 (the largest has 8)",
    ),
    "this machine": ({"backend": "local", "jobs": {"nodes": 9}}, ""),
}


@pytest.mark.parametrize("case", AT_ONCE)
def test_preflight_counts_all_pods_that_train_at_the_same_time(ready: StubApi, case: str) -> None:
    """However the profile asks for machines; a queue would hold back what does not fit, and pods without one would wait in vain."""
    profile, said = AT_ONCE[case]
    gpus = {"status": {"allocatable": {"nvidia.com/gpu": "8"}}}
    ready.objects["/api/v1/nodes"] = {"items": [{"metadata": {"labels": {"pool": "big"}}, **gpus}, gpus]}
    failures = _failed(_rendering(**{**profile, "jobs": {"gpus_per_node": 8, **profile.get("jobs", {})}}))
    assert list(failures) == (["GPUs for profile fs"] if said else [])
    assert said in failures.get("GPUs for profile fs", "")


def _gpu_node(name: str, **labels: str) -> dict[str, Any]:
    named = {f"nvidia.com/{key.replace('__', '-').replace('_', '.')}": value for key, value in labels.items()}
    return {"metadata": {"name": name, "labels": named}, "status": {"allocatable": {"nvidia.com/gpu": "8"}}}


@pytest.mark.parametrize(
    ("node", "said"),
    [
        (
            _gpu_node("old", cuda_driver__version_major="535", gpu_compute_major="9"),
            "old has driver 535",
        ),
        (_gpu_node("older", cuda_driver_major="470"), "older has driver 470, but 580 or newer is needed"),
        (_gpu_node("volta", cuda_driver_major="580", gpu_compute_major="7", gpu_compute_minor="0"), "capability 7.0, but 7.5 or"),
        (_gpu_node("good", cuda_driver_major="580", gpu_compute_major="7", gpu_compute_minor="5"), ""),
        (_gpu_node("unlabelled"), ""),
        (_gpu_node("odd", cuda_driver_major="unknown"), ""),
    ],
)
def test_preflight_reads_what_gpu_nodes_can_run(ready: StubApi, node: dict[str, Any], said: str) -> None:
    """Driver and GPU, where NVIDIA's labels say them; a node that is good enough beside it will do."""
    ready.objects["/api/v1/nodes"] = {"items": [node]}
    failures = _failed(_rendering(jobs={"gpus_per_node": 8}))
    assert list(failures) == (["GPUs for profile fs"] if said else [])
    assert said in failures.get("GPUs for profile fs", "")
    ready.objects["/api/v1/nodes"] = {"items": [node, _gpu_node("good", cuda_driver_major="590")]}
    assert _failed(_rendering(jobs={"gpus_per_node": 8})) == {}


def test_preflight_of_an_image_with_another_cuda(ready: StubApi) -> None:
    """Asks for that CUDA's driver, and nothing of GPUs that its torch may be built for; a CUDA that is not known is refused."""
    rendering = _rendering(jobs={"gpus_per_node": 8})
    for version, driver, good in (("12.6", "535", True), ("cu128", "525", True), ("12", "470", False), ("13.0", "535", False)):
        ready.objects["/api/v1/nodes"] = {"items": [_gpu_node("one", cuda_driver_major=driver, gpu_compute_major="6")]}
        (look,) = (look for name, look in preflight(rendering, version) if name.startswith("GPUs"))
        with contextlib.nullcontext() if good else pytest.raises(InputError, match="one has driver"):
            look()
    for wrong in ("11.8", "cu", "x"):
        with pytest.raises(InputError, match=r"^--cuda must be the trainer image's CUDA, 12 or 13"):
            next(preflight(rendering, wrong))


@pytest.mark.parametrize(
    ("peer", "labels", "admitted"),
    [
        (POLICY["spec"]["ingress"][0]["from"][0], {"app.kubernetes.io/part-of": "kubeflow-profile"}, True),
        (POLICY["spec"]["ingress"][0]["from"][1], {}, False),
        ({"podSelector": {}}, {}, False),  # of the policy's own namespace
        ({"namespaceSelector": {}}, {}, True),
        ({"namespaceSelector": {}, "podSelector": {"matchLabels": {"app.kubernetes.io/component": "pipeline"}}}, {}, True),
        ({"namespaceSelector": {}, "podSelector": {"matchLabels": {"app": "other"}}}, {}, False),
        ({"namespaceSelector": {"matchExpressions": [{"key": "team", "operator": "Exists"}]}}, {"team": "a"}, True),
        ({"namespaceSelector": {"matchExpressions": [{"key": "team", "operator": "DoesNotExist"}]}}, {"team": "a"}, False),
        ({"namespaceSelector": {"matchExpressions": [{"key": "team", "operator": "NotIn", "values": ["a"]}]}}, {"team": "a"}, False),
    ],
)
def test_preflight_reads_policies_as_kubernetes_does(ready: StubApi, peer: dict[str, Any], labels: dict[str, str], admitted: bool) -> None:
    """The proxy of the API server is let in where our upload may not be."""
    ready.objects[f"{NAMESPACES}/ml"] = {"metadata": {"labels": labels}}
    ready.objects[POLICIES] = {"items": [{**POLICY, "spec": {**POLICY["spec"], "ingress": [{"from": [peer]}]}}]}

    assert list(_failed(_rendering())) == ([] if admitted else [BEFORE])


def test_preflight_wants_a_profile_where_kubeflow_runs(ready: StubApi) -> None:
    """A Kubeflow for one user runs everything in its own namespace."""
    text = _rendering().replace("name: kubeflow\n  namespace: kubeflow", "name: kubeflow\n  namespace: ml")

    assert _failed(text)["profile in namespace kubeflow"].endswith("profileDefaults.namespaces: [kubeflow]")


def test_preflight_connects_to_a_kubeflow_outside(ready: StubApi) -> None:
    """From this machine, which can tell no more than that a login is in the way."""
    with kubeflow_server() as server:
        text = _rendering().replace("http://ml-pipeline.kubeflow.svc:8888", server.url)
        assert _failed(text) == {}
        server.faults.answers = {"healthz": [(302, ""), (200, "<html>Log in</html>"), (404, "Not Found")]}
        assert [*map(list, (_failed(text), _failed(text), _failed(text)))] == [[], *[[f"Kubeflow Pipelines {server.url}"]] * 2]


@pytest.mark.parametrize(
    ("versions", "active", "failed"),
    [
        ((), "", "has no localqueues.kueue.x-k8s.io: install Kueue"),
        (("v1beta1",), "False", "LocalQueue ml/gpus of ClusterQueue all accepts no jobs: LocalQueue is stopped"),
        (("v1beta1",), "True", ""),
        (("v1beta2", "v1beta1"), "True", ""),
    ],
)
def test_preflight_of_a_queue(ready: StubApi, versions: tuple[str, ...], active: str, failed: str) -> None:
    """A queue by name must be there and take jobs, in whichever version the cluster serves it."""
    if versions:
        ready.objects["/apis/kueue.x-k8s.io"] = {"versions": [{"version": version} for version in versions]}
    for version in versions:
        ready.kinds[f"kueue.x-k8s.io/{version}"] = "workloads localqueues"
    if active:
        condition = {"type": "Active", "status": active, "message": "LocalQueue is stopped"}
        path = f"/apis/kueue.x-k8s.io/{versions[0]}/namespaces/ml/localqueues/gpus"
        ready.objects[path] = {"metadata": {"name": "gpus"}, "spec": {"clusterQueue": "all"}, "status": {"conditions": [condition]}}

    found = _failed(_rendering(jobs={"labels": {"kueue.x-k8s.io/queue-name": "gpus"}}))

    assert list(found) == (["queue ml/gpus for profile fs"] if failed else [])
    assert failed in "".join(found.values())


@pytest.mark.parametrize("text", ["", "just words", "a: [", "- 1"])
def test_no_rendering(text: str) -> None:
    """Anything but Helm's output is refused in one line."""
    with pytest.raises(InputError, match="helm template"):
        read_objects(text)
