"""Small sealed data sets and seals for tests that need no trainer."""

import hashlib
from typing import Any

from pipelines.planning.request import merge, write_request
from pipelines.planning.resolving import resolve
from trainer.storage import join, layout, write_bytes
from trainer.storage.committed import Committed, write_committed
from trainer.storage.manifest import Kind, Manifest, Shard, write_manifest


def seal(root: str, kind: Kind, *, judge: str = "", sha256: str = "0" * 64) -> str:
    """A data set with a manifest and one byte; its folder."""
    shard = Shard(name="shard-00000-0.tar", split="train", num_samples=50_000, size=1, sha256=sha256, crc32c=0, index_crc32c=0)
    rows = {"read": 50_000, "written": 50_000, "lost": {}}
    manifest = Manifest(kind=kind, name=f"demo-{kind}", plan_id="p", source={}, options={}, rows=rows, shards=[shard], judge=judge)
    folder = layout.dataset(root, f"demo-{kind}", "p")
    write_bytes(join(folder, shard.name), b"0")
    write_manifest(folder, manifest)
    return folder


def commit(stage_uri: str, recipe_hash: str, **facts: object) -> None:
    """The seal of a finished stage, and the file that it seals."""
    data = recipe_hash.encode()
    write_bytes(join(layout.final(stage_uri), "model.bin"), data)
    files = {"model.bin": {"size": len(data), "sha256": hashlib.sha256(data).hexdigest()}}
    write_committed(layout.final(stage_uri), Committed(recipe_hash=recipe_hash, attempt=0, step=1, files=files, facts=facts))


def ask(root: str, **given: Any) -> str:
    """A stored request of the smoke recipe with one arm; its URI."""
    return write_request(resolve(merge("", {"recipe": "smoke", "arms": "random", **given})), root)
