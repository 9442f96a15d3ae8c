"""Python, torch and a copy of this checkout in pods, by read-only volumes: importing an image of 6 GB would be needless.

Restricted Pod Security forbids hostPath, so they are static `local` volumes, bound to claims of one namespace. They are
mounted read-only by the claim, else the kubelet would give every file to the pod's group. A local volume may lie below
a folder that the pod's user could not enter: the mount begins behind it.
"""

import compileall
import os
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path
from typing import Any

from tests.cluster import settings

REPOSITORY = settings.HERE.parents[1]
SOURCE = settings.STATE / "source"
FOLDERS = {  # volume -> (folder of this machine, where pods see it)
    "python": (Path(sys.base_prefix), "/opt/python"),
    "packages": (Path(sysconfig.get_path("purelib")), "/opt/packages"),
    "source": (SOURCE, "/opt/source"),
}
ENVIRONMENT = {
    "PATH": "/opt/python/bin:/usr/local/bin:/usr/bin:/bin",
    "PYTHONPATH": "/opt/source:/opt/packages",
    "LD_LIBRARY_PATH": "/opt/python/lib",
    "PYTHONDONTWRITEBYTECODE": "1",
    "PYTHONUNBUFFERED": "1",
    "OMP_NUM_THREADS": "1",
    "HOME": "/tmp",
}


def prepare() -> None:
    """Copy trainer/ and pipelines/ as they are now, and have bytecode written where pods can only read."""
    for name in ("trainer", "pipelines"):
        _mirror(REPOSITORY / name, SOURCE / name)
    compileall.compile_dir(SOURCE, quiet=1, stripdir=str(SOURCE), prependdir="/opt/source")
    subprocess.run(["chmod", "-R", "a+rX", str(SOURCE)], check=True)
    written = settings.STATE / f"bytecode-{FOLDERS['packages'][0].stat().st_mtime_ns}"
    if not written.exists():
        imports = "import trainer.run.loop, trainer.run.elastic, trainer.stages.contrastive, trainer.evaluation, kubernetes, minio"
        subprocess.run([sys.executable, "-c", imports], check=True, cwd=SOURCE, env={"PATH": "/usr/bin:/bin"})
        written.touch()


def _mirror(source: Path, target: Path) -> None:
    """Make `target` hold the files of `source`, touching only what differs: pods of another session may be reading."""
    wanted = {path.relative_to(source) for path in source.rglob("*") if path.is_file() and "__pycache__" not in path.parts}
    for path in wanted:
        copy = target / path
        if not copy.exists() or copy.read_bytes() != (source / path).read_bytes():
            copy.parent.mkdir(parents=True, exist_ok=True)
            partial = copy.with_name(f".{copy.name}.{os.getpid()}")
            shutil.copy2(source / path, partial)
            partial.replace(copy)
    for copy in list(target.rglob("*")):
        ours = copy.is_file() and "__pycache__" not in copy.parts and not copy.name.startswith(".")
        if ours and copy.relative_to(target) not in wanted:
            copy.unlink(missing_ok=True)


def manifests(namespace: str) -> list[dict[str, Any]]:
    """The volumes and claims that pods of this namespace mount."""
    return [part for name, (folder, _) in FOLDERS.items() for part in local_volume(namespace, name, folder)]


def local_volume(namespace: str, name: str, folder: Path, mode: str = "ReadOnlyMany") -> list[dict[str, Any]]:
    """A folder of the node as a volume for the claim `name` of this namespace."""
    this_node = {"key": "kubernetes.io/hostname", "operator": "In", "values": [settings.NODE]}
    volume = {
        "apiVersion": "v1",
        "kind": "PersistentVolume",
        "metadata": {"name": f"{namespace}-{name}", "labels": {"firsttest/namespace": namespace}},
        "spec": {
            "capacity": {"storage": "20Gi"},
            "accessModes": [mode],
            "storageClassName": "",
            "persistentVolumeReclaimPolicy": "Retain",
            "claimRef": {"namespace": namespace, "name": name},
            "local": {"path": str(folder)},
            "nodeAffinity": {"required": {"nodeSelectorTerms": [{"matchExpressions": [this_node]}]}},
        },
    }
    claim = {
        "apiVersion": "v1",
        "kind": "PersistentVolumeClaim",
        "metadata": {"name": name, "namespace": namespace},
        "spec": {
            "accessModes": [mode],
            "storageClassName": "",
            "volumeName": f"{namespace}-{name}",
            "resources": {"requests": {"storage": "20Gi"}},
        },
    }
    return [volume, claim]


def pod_template(container: str, *, python: bool = True) -> dict[str, Any]:
    """What to lay over a pod by strategic merge (`jobs.pod_template`), so that `python -m trainer` runs in this container.

    Args:
        container: its name.
        python: whether Python itself comes by a volume, too; else the image has this machine's in /usr/local.
    """
    folders = {name: path for name, (_, path) in FOLDERS.items() if python or name != "python"}
    environment = {name: value for name, value in ENVIRONMENT.items() if python or "/opt/python" not in value}
    return {
        "spec": {
            "containers": [
                {
                    "name": container,
                    "env": [{"name": name, "value": value} for name, value in environment.items()],
                    "volumeMounts": [{"name": name, "mountPath": path, "readOnly": True} for name, path in folders.items()],
                }
            ],
            "volumes": [{"name": name, "persistentVolumeClaim": {"claimName": name, "readOnly": True}} for name in folders],
        }
    }
