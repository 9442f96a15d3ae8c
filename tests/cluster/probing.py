"""Pods that try to connect, and the policies of a namespace that denies by default: what the tests of network policies share."""

import json
from collections.abc import Mapping, Sequence
from typing import Any

from pipelines.cluster.merge import strategic_merge
from tests.cluster import harness, settings, volumes

USER = 10001
DENY: harness.Object = {
    "apiVersion": "networking.k8s.io/v1",
    "kind": "NetworkPolicy",
    "metadata": {"name": "default-deny"},
    "spec": {"podSelector": {}, "policyTypes": ["Ingress", "Egress"]},
}
_CONNECT = """
import concurrent.futures, json, socket, sys, time

def reached(address):
    host, port, kind, wanted = address
    deadline = time.monotonic() + (60 if wanted else 0)
    while True:
        try:
            if kind == "udp":
                with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET, socket.SOCK_DGRAM) as one:
                    one.settimeout(3)
                    one.sendto(b"?", (host, port))
                    return bool(one.recv(16))
            with socket.create_connection((host, port), timeout=3):
                return True
        except OSError:
            if time.monotonic() >= deadline:
                return False
            time.sleep(0.2)

with concurrent.futures.ThreadPoolExecutor(32) as pool:
    print(json.dumps(list(pool.map(reached, json.loads(sys.argv[1])))))
"""
_ANSWER = """
import socket, sys, threading

def udp(port):
    one = socket.socket(socket.AF_INET6, socket.SOCK_DGRAM)
    one.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
    one.bind(("::", port))
    while True:
        one.sendto(b"!", one.recvfrom(16)[1])

for port in map(int, sys.argv[1:]):
    threading.Thread(target=udp, args=(port,)).start()
    listener = socket.create_server(("::", port), family=socket.AF_INET6, dualstack_ipv6=True)
    threading.Thread(target=lambda listener=listener: [listener.accept()[0].close() for _ in iter(int, 1)]).start()
"""
"""Both protocols on each port, at addresses of both families."""
Address = tuple[str, int, str]
"""Host, port, and tcp or udp."""


def pod(name: str, labels: Mapping[str, str], program: str = "import time; time.sleep(3600)", *arguments: str) -> harness.Object:
    """A restricted pod that runs a Python program, and by default waits to be asked."""
    container = {
        "name": "main",
        "image": settings.BASE_IMAGE,
        "command": ["python", "-c", program, *arguments],
        "securityContext": {"allowPrivilegeEscalation": False, "readOnlyRootFilesystem": True, "capabilities": {"drop": ["ALL"]}},
    }
    spec: dict[str, Any] = {
        "restartPolicy": "Never",
        "automountServiceAccountToken": False,
        "terminationGracePeriodSeconds": 1,
        "securityContext": {"runAsNonRoot": True, "runAsUser": USER, "fsGroup": USER, "seccompProfile": {"type": "RuntimeDefault"}},
        "containers": [container],
    }
    plain = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name, "labels": dict(labels)}, "spec": spec}
    return strategic_merge(plain, volumes.pod_template("main") if harness.own_cluster() else {})


def answering(name: str, labels: Mapping[str, str], *ports: int) -> harness.Object:
    """A pod that answers on these ports, by TCP and UDP."""
    return pod(name, labels, _ANSWER, *map(str, ports))


def tenant(name: str, labels: Mapping[str, str], account: str, secrets: Sequence[str]) -> harness.Object:
    """A pod with an account's token, and with the keys of those of these Secrets that its namespace has."""
    environment = [{"secretRef": {"name": secret, "optional": True}} for secret in secrets]
    given = {"serviceAccountName": account, "automountServiceAccountToken": True, "containers": [{"name": "main", "envFrom": environment}]}
    return strategic_merge(pod(name, labels), {"spec": given})


def wait(namespace: str, *names: str) -> None:
    """Wait until these pods run."""
    harness.kubectl("-n", namespace, "wait", *(f"pod/{name}" for name in names), "--for=condition=Ready", "--timeout=180s")


def addresses_of(namespace: str, name: str) -> list[str]:
    """The pod's own addresses: of IPv4, then of IPv6."""
    found = harness.get("pod", namespace, name)
    assert found, f"no pod {namespace}/{name}"
    return [str(one["ip"]) for one in found["status"]["podIPs"]]


def reaches(namespace: str, name: str, wanted: Mapping[Address, bool]) -> dict[Address, bool]:
    """Which addresses a pod reaches, asked all at once: those that it should reach for a minute, the others once, for 3 seconds."""
    asked: Sequence[Any] = [[*address, allowed] for address, allowed in wanted.items()]
    said = harness.kubectl("-n", namespace, "exec", name, "--", "python", "-c", _CONNECT, json.dumps(asked))
    return dict(zip(wanted, json.loads(said), strict=True))
