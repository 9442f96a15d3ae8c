"""A MinIO in the cluster, reached by pods through its Service and by this machine through its node port."""

import base64
import os
import secrets
from dataclasses import dataclass

from minio import Minio

from tests.cluster import harness, settings, volumes

MINIO_VARIABLE = "FIRSTSIGHT_E2E_MINIO"
"""Image of MinIO on a cluster given by KUBECONFIG, which has no image of the tests."""


@dataclass(frozen=True, kw_only=True)
class Store:
    """A running MinIO.

    Attributes:
        namespace: where its pod runs.
        inside: endpoint for pods.
        outside: endpoint for this machine.
        access_key: of its root user.
        secret_key: likewise.
    """

    namespace: str
    inside: str
    outside: str
    access_key: str
    secret_key: str

    @property
    def environment(self) -> dict[str, str]:
        """What trainer.storage reads on this machine."""
        return {**self.secret, "AWS_ENDPOINT_URL_S3": self.outside, "AWS_REGION": "us-east-1"}

    @property
    def pod_environment(self) -> dict[str, str]:
        """What of it is no secret, for `jobs.store_environment`."""
        return {"AWS_ENDPOINT_URL_S3": self.inside, "AWS_REGION": "us-east-1"}

    @property
    def secret(self) -> dict[str, str]:
        """The keys, for `jobs.store_secret`."""
        return {"AWS_ACCESS_KEY_ID": self.access_key, "AWS_SECRET_ACCESS_KEY": self.secret_key}

    @property
    def client(self) -> Minio:
        """The plain client, for what a test prepares or checks."""
        return Minio(self.outside.partition("://")[2], self.access_key, self.secret_key, secure=False, region="us-east-1")

    def make_bucket(self) -> str:
        """A new bucket; its URI."""
        name = f"test-{secrets.token_hex(6)}"
        self.client.make_bucket(name)
        return f"s3://{name}"

    def put_secret(self, namespace: str, name: str = "store") -> None:
        """The keys as a Secret of another namespace, for its pods."""
        harness.apply({"apiVersion": "v1", "kind": "Secret", "metadata": {"name": name}, "stringData": self.secret}, namespace)

    def restart(self) -> None:
        """Delete its pod and wait for the next one; the data stay."""
        harness.kubectl("-n", self.namespace, "delete", "pod", "-l", "app=minio", "--wait=true")
        self.wait()

    def wait(self) -> None:
        """Wait until it answers."""
        harness.kubectl("-n", self.namespace, "rollout", "status", "deploy/minio", "--timeout=180s")
        harness.wait_until("MinIO to answer", self._answers, 60)

    def _answers(self) -> bool:
        try:
            self.client.list_buckets()
        except Exception:  # whatever a server that is not up yet does
            return False
        return True


def minio_image() -> str:
    """Of this machine's build, or the one that the cluster can pull."""
    return settings.MINIO_IMAGE if harness.own_cluster() else os.environ[MINIO_VARIABLE]


def deploy_store(namespace: str) -> Store:
    """MinIO in this namespace, with keys of its own; the one that is there already, if any."""
    harness.ensure_namespace(namespace, harness.RESTRICTED)
    keys = {"AWS_ACCESS_KEY_ID": "firsttester", "AWS_SECRET_ACCESS_KEY": secrets.token_hex(16)}
    if harness.get("secret", namespace, "store") is None:
        harness.apply({"apiVersion": "v1", "kind": "Secret", "metadata": {"name": "store"}, "stringData": keys}, namespace)
    harness.apply(_claim(namespace))
    manifest = (settings.HERE / "manifests/minio.yaml").read_text().replace(settings.MINIO_IMAGE, minio_image())
    harness.kubectl("-n", namespace, "apply", "--server-side", "-f", "-", text=manifest)
    store = _store(namespace)
    store.wait()
    return store


def _claim(namespace: str) -> list[harness.Object]:
    """Where the data outlive the pod: a folder of the node, since what its provisioner makes is for root alone; elsewhere the default."""
    if harness.own_cluster():
        folder = settings.STATE / "volumes" / f"{namespace}-minio"
        folder.mkdir(parents=True, exist_ok=True)
        return volumes.local_volume(namespace, "minio", folder, "ReadWriteOnce")
    spec = {"accessModes": ["ReadWriteOnce"], "resources": {"requests": {"storage": "5Gi"}}}
    metadata = {"name": "minio", "namespace": namespace}
    return [{"apiVersion": "v1", "kind": "PersistentVolumeClaim", "metadata": metadata, "spec": spec}]


def _store(namespace: str) -> Store:
    secret = harness.get("secret", namespace, "store")
    service = harness.get("service", namespace, "minio")
    assert secret
    assert service
    keys = {name: base64.b64decode(value).decode() for name, value in secret["data"].items()}
    addresses = [address for item in harness.listed("nodes", namespace) for address in item["status"]["addresses"]]
    host = next(address["address"] for address in addresses if address["type"] == "InternalIP")
    return Store(
        namespace=namespace,
        inside=f"http://minio.{namespace}.svc:9000",
        outside=f"http://{host}:{service['spec']['ports'][0]['nodePort']}",
        access_key=keys["AWS_ACCESS_KEY_ID"],
        secret_key=keys["AWS_SECRET_ACCESS_KEY"],
    )
