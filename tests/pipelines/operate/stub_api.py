"""A read-only stub of an API server."""

from typing import Any

from pipelines.cluster.api import Api, Refusal, Refused


class StubApi:
    """What an API server returns for read-only queries: permissions, kinds, single objects."""

    namespace, home, server, source = "team", "team", "https://stub", "a test"

    def __init__(self) -> None:
        self.refused: set[tuple[str, str]] = set()  # verb, resource
        self.kinds = {
            "v1": "namespaces secrets configmaps serviceaccounts services persistentvolumeclaims pods",
            "apps/v1": "deployments",
            "batch/v1": "jobs",
            "rbac.authorization.k8s.io/v1": "roles rolebindings clusterroles clusterrolebindings",
            "kubeflow.org/v1": "pytorchjobs",
        }
        self.objects: dict[str, Any] = {
            "/version": {"major": "1", "minor": "34+", "gitVersion": "v1.34.4"},
            "/api/v1/namespaces/ml": {},
            "/apis/storage.k8s.io/v1/storageclasses": {
                "items": [{"metadata": {"name": "disk", "annotations": {"storageclass.kubernetes.io/is-default-class": "true"}}}]
            },
            "/api/v1/nodes": {"items": [{"status": {"allocatable": {"nvidia.com/gpu": "8"}}}, {"status": {}}]},
        }

    def call(self, method: str, path: str, query: object = None, body: Any = None) -> Any:
        if path.endswith("selfsubjectaccessreviews"):
            asked = body["spec"]["resourceAttributes"]
            resource = asked["resource"] + (f"/{asked['subresource']}" if asked["subresource"] else "")
            resource += f".{asked['group']}" if asked["group"] else ""
            return {"status": {"allowed": (asked["verb"], resource) not in self.refused}}
        known = self.kinds.get(path.removeprefix("/apis/").removeprefix("/api/"))
        if known:
            return {"resources": [{"name": name} for name in known.split()]}
        if path in self.objects:
            return self.objects[path]
        raise Refused(Refusal(status=404, message=f"{path} not found", reason="NotFound"))

    once = call
    versions, serves, _discovered = Api.versions, Api.serves, Api._discovered
