"""The images of the cluster as docker archives, which containerd imports: there is no registry to pull from."""

import hashlib
import io
import json
import os
import shutil
import subprocess
import tarfile
import tempfile
from pathlib import Path

from tests.cluster import programs, settings

PROGRAMS = {  # program, and its image's name -> (reference, where it lies in the image)
    "training-operator": (settings.OPERATOR_IMAGE, ["/manager"]),
    "kueue": (settings.KUEUE_IMAGE, ["/manager"]),
    "minio": (settings.MINIO_IMAGE, ["/minio"]),
    "prometheus": (settings.PROMETHEUS_IMAGE, ["/bin/prometheus"]),
    "prometheus-operator": (settings.PROMETHEUS_OPERATOR_IMAGE, ["/operator"]),
    "prometheus-config-reloader": (settings.CONFIG_RELOADER_IMAGE, ["/bin/prometheus-config-reloader"]),  # where the operator expects it
}
LIBRARIES = (  # that CPython and torch's wheels link to; procps and iproute2 for a look inside
    "ca-certificates", "libssl3", "libsqlite3-0", "libffi8", "libbz2-1.0", "liblzma5", "libreadline8", "libncursesw6", "libexpat1",
    "libuuid1", "libgomp1", "procps",
)  # fmt: skip


def build_images() -> None:
    """One image a server, and `base`: a Debian in which a mounted Python runs."""
    settings.IMAGES.mkdir(parents=True, exist_ok=True)
    debian_rootfs()
    programs.debian("catatonit")
    build_binary_image("pause", "docker.io/library/pause:local", Path("/usr/bin/catatonit"), ["/catatonit", "-P"])
    for name, (reference, entrypoint) in PROGRAMS.items():
        build_binary_image(name, reference, programs.program(name), entrypoint)
    write_image(settings.IMAGES / "base.tar", settings.BASE_IMAGE, settings.ROOTFS, [])


def build_binary_image(image: str, reference: str, binary: Path, entrypoint: list[str]) -> None:
    """An image that holds one static binary, unless there is one that is newer than the binary."""
    archive = settings.IMAGES / f"{image}.tar"
    if archive.exists() and archive.stat().st_mtime > binary.stat().st_mtime:
        return
    with tempfile.TemporaryDirectory() as scratch:
        target = Path(scratch) / entrypoint[0].lstrip("/")
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(binary, target)
        write_image(archive, reference, Path(scratch), entrypoint)


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
    print(f"cluster: image {reference}: {archive.stat().st_size / 1e6:.0f} MB", flush=True)


def debian_rootfs() -> None:
    """A minimal Debian with an init and the libraries that CPython and torch's wheels link to; Python itself comes by a volume."""
    if not (settings.ROOTFS / "etc/os-release").exists():
        _make_rootfs()
    init = settings.ROOTFS / "usr/bin/catatonit"  # static, as on this machine; a tree of an older checkout has none
    if not init.exists():
        programs.debian("catatonit")
        shutil.copy2("/usr/bin/catatonit", init)
        init.touch()  # newer than an archive that was made without it


def _make_rootfs() -> None:
    programs.debian("debootstrap")
    print("cluster: debootstrap a Debian for the pods", flush=True)
    site = subprocess.run(["apt-get", "indextargets", "--format", "$(SITE)"], check=True, capture_output=True, text=True).stdout
    partial = settings.ROOTFS.with_suffix(".partial")
    shutil.rmtree(partial, ignore_errors=True)
    command = ["debootstrap", "--variant=minbase", f"--include={','.join(LIBRARIES)}", settings.DEBIAN, str(partial), site.split("\n")[0]]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL, env={**os.environ, "LC_ALL": "C"})
    for waste in ("var/cache/apt", "var/lib/apt/lists", "usr/share/doc", "usr/share/man", "usr/share/locale"):
        shutil.rmtree(partial / waste, ignore_errors=True)
    for device in (partial / "dev").iterdir():  # whoever copies the tree would read from /dev/full for ever
        if device.is_char_device():
            device.unlink()
    partial.rename(settings.ROOTFS)


def _owned_by_root(member: tarfile.TarInfo) -> tarfile.TarInfo:
    member.uid = member.gid = 0
    member.uname = member.gname = ""
    return member
