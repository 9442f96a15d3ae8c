"""Where the runs of a campaign keep their objects: a small disk of their own, or an S3 server behind a proxy that misbehaves."""

import contextlib
import os
import shutil
import subprocess
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.fault_proxy import FaultProxy, fault_proxy
from tests.servers import S3Server, die_with_parent, minio, seaweedfs
from trainer.storage.base import local_path

STORES = ("file", "seaweedfs", "minio")
_DISK = "size=48m,nr_inodes=3000"


@dataclass(kw_only=True)
class Place:
    """A root, and what can be done to it.

    Attributes:
        folder: for what the campaign itself needs.
        root: store URI.
        sources: where pictures and triplets lie.
        tmp: the runs' TMPDIR.
        disks: mounts that can be filled: of the root (files alone) and of `tmp`; none where this user may not mount.
        environment: with which runs find the store.
        proxy: before the server.
        server: of an S3 store.
    """

    folder: Path
    root: str
    sources: str
    tmp: Path
    disks: list[Path] = field(default_factory=list)
    environment: dict[str, str] = field(default_factory=dict)
    proxy: FaultProxy | None = None
    server: "Server | None" = None
    _seen: int = 0
    _made: set[str] = field(default_factory=set)

    @property
    def abilities(self) -> set[str]:
        """Which faults are possible here, as they say what they need."""
        root_disk = {"root's disk"} if self.disks and self.disks[0] != self.tmp else set()
        return {""} | ({"store"} if self.server else {"source's folder"}) | root_disk | ({"disk"} if self.disks else set())

    def written(self) -> int:
        """How many objects have been written since `clear`."""
        if self.proxy is None:
            return sum(len(files) for _, _, files in os.walk(self.root))
        new, self._seen = self.proxy.log[self._seen :], len(self.proxy.log)
        self._made |= {path.partition("?")[0] for method, path in new if method == "PUT"}
        return len(self._made)

    def clear(self) -> None:
        """Remove all that runs left."""
        self._made.clear()
        for folder in (self.tmp, local_path(self.root)):
            if folder is not None:
                shutil.rmtree(folder, ignore_errors=True)
        self.tmp.mkdir(exist_ok=True)
        if self.server is not None:
            client, bucket, prefix = self.server.client, *self._bucket()
            for one in list(client.list_objects(bucket, prefix=f"{prefix}/", recursive=True)):
                client.remove_object(bucket, one.object_name)

    def leftovers(self) -> list[str]:
        """Partial files, temporary folders and multipart uploads, looked for behind firstsight's back."""
        found = [str(path) for path in self.tmp.glob("firstsight-*")]
        if self.server is None:
            return found + [str(path) for path in Path(self.root).rglob("*.partial")]
        bucket, prefix = self._bucket()
        names = [str(one.object_name) for one in self.server.client.list_objects(bucket, prefix=f"{prefix}/", recursive=True)]
        return found + [name for name in names if name.endswith(".partial")] + self.server.uploads(bucket)

    def _bucket(self) -> tuple[str, str]:
        bucket, _, prefix = self.root.removeprefix("s3://").partition("/")
        return bucket, prefix


class Server:
    """An S3 server that can be killed and started again."""

    def __init__(self, kept: S3Server, folder: Path) -> None:
        self._kept, self._folder, self._process = kept, folder, kept.process
        self.client = kept.client
        environment = Path(f"/proc/{kept.process.pid}/environ").read_bytes().decode().split("\0")
        self._environment = dict(pair.split("=", 1) for pair in environment if "=" in pair)

    @property
    def pid(self) -> int:
        """Of its process."""
        return self._process.pid

    def kill(self) -> None:
        """SIGKILL."""
        self._process.kill()
        self._process.wait()

    def start(self) -> None:
        """With the same data, on the same ports, where it does not run; returns at once."""
        if self._process.poll() is None:
            return
        with open(self._folder / "server.log", "ab") as log:
            pipes: dict[str, Any] = {"stdin": subprocess.DEVNULL, "stdout": log, "stderr": log}
            options: dict[str, Any] = {"start_new_session": True, "preexec_fn": die_with_parent, "cwd": self._folder}
            self._process = subprocess.Popen(self._kept.process.args, env=self._environment, **pipes, **options)

    def uploads(self, bucket: str) -> list[str]:
        """Multipart uploads under way: those that the server lists, and what lies on MinIO's disk, which lists none without a key."""
        listed = [f"upload of {one.object_name}" for one in self.client._list_multipart_uploads(bucket).uploads]
        parts = (self._folder / "data/.minio.sys/multipart").rglob("part.*")
        return listed + [str(path.relative_to(self._folder)) for path in parts]


@contextlib.contextmanager
def place(store: str, folder: Path, write_sources: Callable[[Path], None]) -> Iterator[Place]:
    """A fresh place for a campaign.

    Args:
        store: one of STORES.
        folder: that exists and is empty.
        write_sources: writes pictures and triplets into a folder.
    """
    tmp = folder / "tmp"
    tmp.mkdir()
    write_sources(folder / "source")
    with contextlib.ExitStack() as stack:
        disks = [tmp] if stack.enter_context(_mounted(tmp)) else []
        if store == "file":
            disk = folder / "disk"
            disk.mkdir()
            disks = [disk, *disks] if stack.enter_context(_mounted(disk)) else []
            yield Place(folder=folder, root=str(disk / "root"), sources=str(folder / "source"), tmp=tmp, disks=disks)
            return
        (folder / store).mkdir()
        context = seaweedfs(folder / store) if store == "seaweedfs" else minio(folder / store, tls=False)
        kept = stack.enter_context(context)
        server = Server(kept, folder / store)
        stack.callback(server.kill)
        bucket = kept.make_bucket()
        for path in (folder / "source").rglob("*.*"):
            kept.client.fput_object(bucket.removeprefix("s3://"), f"source/{path.relative_to(folder / 'source')}", str(path))
        proxy = stack.enter_context(fault_proxy(kept.endpoint))
        environment = {**kept.environment, "AWS_ENDPOINT_URL": proxy.endpoint}
        yield Place(
            folder=folder, root=f"{bucket}/root", sources=f"{bucket}/source", tmp=tmp, disks=disks,
            environment=environment, proxy=proxy, server=server,
        )  # fmt: skip


@contextlib.contextmanager
def _mounted(folder: Path) -> Iterator[bool]:
    """A small disk in this folder's place; False if this user may not mount."""
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", _DISK, "none", str(folder)], capture_output=True, check=False).returncode == 0
    try:
        yield mounted
    finally:
        if mounted:
            subprocess.run(["umount", "--lazy", str(folder)], check=False)
