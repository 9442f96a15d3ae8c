"""What the other tests stand on: Python in a restricted pod, and a store that outlives its pod. Prometheus: test_chart.py."""

import io

import pytest

from pipelines.cluster.merge import strategic_merge
from tests.cluster import harness, settings, volumes
from tests.cluster.conftest import Kubectl
from tests.cluster.store import Store

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(900)]

USER = 10001


def pod(command: list[str]) -> harness.Object:
    """A pod as restricted Pod Security wants it, with the tests' Python."""
    plain = {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": "python"},
        "spec": {
            "restartPolicy": "Never",
            "automountServiceAccountToken": False,
            "securityContext": {"runAsNonRoot": True, "runAsUser": USER, "fsGroup": USER, "seccompProfile": {"type": "RuntimeDefault"}},
            "containers": [
                {
                    "name": "main",
                    "image": settings.BASE_IMAGE,
                    "command": command,
                    "securityContext": {
                        "allowPrivilegeEscalation": False,
                        "readOnlyRootFilesystem": True,
                        "capabilities": {"drop": ["ALL"]},
                    },
                    "volumeMounts": [{"name": "tmp", "mountPath": "/tmp"}],
                }
            ],
            "volumes": [{"name": "tmp", "emptyDir": {}}],
        },
    }
    return strategic_merge(plain, volumes.pod_template("main"))


def test_a_restricted_pod_reads_this_machines_python_and_cannot_write_it(kubectl: Kubectl, restricted_namespace: str) -> None:
    """Not root, read-only root; this machine's files keep their owner."""
    before = volumes.FOLDERS["packages"][0].stat()
    program = (
        "import os, numpy, trainer.run.train; print(os.getuid(), *(os.access(f'/opt/{name}', os.W_OK) for name in ('source', 'packages')))"
    )
    harness.apply(pod(["python", "-c", program]), restricted_namespace)

    kubectl("-n", restricted_namespace, "wait", "pod/python", "--for=jsonpath={.status.phase}=Succeeded", "--timeout=180s")

    assert kubectl("-n", restricted_namespace, "logs", "python").split() == [str(USER), "False", "False"]
    after = volumes.FOLDERS["packages"][0].stat()
    assert (before.st_uid, before.st_gid, before.st_mode) == (after.st_uid, after.st_gid, after.st_mode)


@pytest.mark.alone
def test_the_stores_data_outlive_its_pod(store: Store) -> None:
    """The claim is of the default storage class: what a chart's MinIO gets on this cluster, too."""
    bucket = store.make_bucket().removeprefix("s3://")
    store.client.put_object(bucket, "kept", io.BytesIO(b"bytes"), 5)

    store.restart()

    assert store.client.get_object(bucket, "kept").data == b"bytes"
