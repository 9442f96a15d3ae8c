"""The bytes of a checkpoint's files in host memory, uploaded without another copy.

The buffers *are* the files' bytes: safetensors' own writer would copy every tensor once more and hold the interpreter's lock
while it writes.
"""

import json
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any, BinaryIO, cast

import torch
from torch import Tensor

from trainer.errors import Corrupt
from trainer.staging.ranges import RangeReader
from trainer.storage import checked, join, open_store
from trainer.storage.base import ObjectInfo, local_path

DTYPES = {
    torch.float64: "F64", torch.float32: "F32", torch.bfloat16: "BF16", torch.float16: "F16",
    torch.int64: "I64", torch.int32: "I32", torch.uint8: "U8", torch.bool: "BOOL",
}  # fmt: skip


class FileImage:
    """The bytes of one safetensors file in host memory: laid out once, refilled at each save."""

    def __init__(self, tensors: Mapping[str, Tensor]) -> None:
        self._layout = self._describe(tensors)
        header: dict[str, Any] = {}
        position = 0
        for name in sorted(tensors, key=lambda name: (-tensors[name].element_size(), name)):  # wide types first keep all aligned
            tensor = tensors[name]
            end = position + tensor.numel() * tensor.element_size()
            header[name] = {"dtype": DTYPES[tensor.dtype], "shape": list(tensor.shape), "data_offsets": [position, end]}
            position = end
        text = json.dumps(header, separators=(",", ":")).encode()
        text += b" " * (-len(text) % 8)
        prefix = len(text).to_bytes(8, "little") + text
        self._buffer = torch.empty(len(prefix) + position, dtype=torch.uint8, pin_memory=torch.cuda.is_available())
        self._buffer[: len(prefix)] = torch.frombuffer(bytearray(prefix), dtype=torch.uint8)
        self.views = {}
        for name, entry in header.items():
            start, end = (len(prefix) + offset for offset in entry["data_offsets"])
            self.views[name] = self._buffer[start:end].view(tensors[name].dtype).view(tensors[name].shape)

    @staticmethod
    def _describe(tensors: Mapping[str, Tensor]) -> dict[str, tuple[torch.dtype, torch.Size]]:
        return {name: (tensor.dtype, tensor.shape) for name, tensor in tensors.items()}

    def fits(self, tensors: Mapping[str, Tensor]) -> bool:
        """Whether the layout is still that of `tensors`."""
        return self._layout == self._describe(tensors)

    def fill(self, tensors: Mapping[str, Tensor]) -> None:
        """Copy in; from a GPU without waiting for each tensor."""
        for name, view in self.views.items():
            view.copy_(tensors[name].detach(), non_blocking=True)

    def bytes(self) -> memoryview:
        """The file."""
        return self._buffer.numpy().data


def put_file(folder: str, name: str, data: memoryview) -> tuple[dict[str, Any], ObjectInfo]:
    """Store one file; how a seal names it, and what the store says of it.

    A store on S3 has compared what it received; a file is read back.

    Raises:
        Corrupt: the file system does not give back what was written.
    """
    uri = join(folder, name)
    store = open_store(uri)
    with ThreadPoolExecutor(1) as beside:  # hashing takes as long as writing
        described = beside.submit(checked.describe, data)
        stream = RangeReader(len(data), lambda start, length: data[start : start + length])  # without a copy of it
        info = store.put_stream(uri, cast(BinaryIO, stream), len(data))
        if local_path(uri) is not None and not _are_equal(store.stream(uri), data):
            raise Corrupt(f"{uri}: the file system did not return what was just written")
        return described.result(), info


def _are_equal(pieces: Iterable[bytes], data: memoryview) -> bool:
    position = 0
    for piece in pieces:
        if piece != data[position : position + len(piece)].tobytes():
            return False
        position += len(piece)
    return position == len(data)
