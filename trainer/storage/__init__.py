"""Objects by URI: `file://` (or a plain path) and `s3://`, behind one protocol. Never imports torch.

`open_store(uri)` returns the store for a URI; `base` contains the protocol and the small helpers
that all modules here use; `layout` says where objects are under one root; `index`, `manifest` and
`committed` encode and decode them.
"""

from trainer.storage.base import (
    MissingObject,
    ObjectInfo,
    ObjectStore,
    exists,
    join,
    open_store,
    read_bytes,
    read_json,
    read_text,
    write_bytes,
    write_json,
)

__all__ = [
    "MissingObject",
    "ObjectInfo",
    "ObjectStore",
    "exists",
    "join",
    "open_store",
    "read_bytes",
    "read_json",
    "read_text",
    "write_bytes",
    "write_json",
]
