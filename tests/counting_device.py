"""A device that is none: it computes on the CPU, and counts what crosses to it, what crosses back, and what a host would wait for.

Its tensors have a device type of their own, so the trainer takes the path that it takes on a GPU: pinned buffers, copies that do not
block, figures that come a step later. `CountingDevice()` may be made once in a process, and changes how torch sees devices there: make
it in a process of its own (tests/ranks.py).
"""

from collections import Counter
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_map
from torch.utils.backend_registration import _DummyBackendModule, _setup_privateuseone_for_python_backend

_WAITS = ("_local_scalar_dense", "nonzero", "masked_select", "equal", "_unique2", "unique_consecutive", "unique_dim", "is_nonzero")
counts: Counter[str] = Counter()


class _There(Tensor):
    """A tensor of the device; `here` holds its numbers."""

    @staticmethod
    def __new__(cls, here: Tensor) -> "_There":
        there: _There = Tensor._make_wrapper_subclass(cls, here.shape, strides=here.stride(), dtype=here.dtype, device="counting:0")
        return there

    def __init__(self, here: Tensor) -> None:
        self.here = here

    __torch_function__ = torch._C._disabled_torch_function_impl

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _computed(func, args, kwargs or {})


class _Module(_DummyBackendModule):  # type: ignore[misc]
    """What torch asks a device's module for."""

    def get_amp_supported_dtype(self) -> list[torch.dtype]:
        """Of autocast, which stays off."""
        return [torch.bfloat16]


class CountingDevice:
    """The device; `counts` has `there`, `back` (copies that do not block) and `waits`, each wait also by its own name."""

    def __init__(self) -> None:
        _setup_privateuseone_for_python_backend("counting", backend_module=_Module())
        self.device = torch.device("counting:0")
        self._library = torch.library.Library("aten", "IMPL")
        self._library.impl("empty.memory_format", _empty, "PrivateUse1")
        self._library.impl("empty_strided", _empty_strided, "PrivateUse1")
        self._library.impl("_to_copy", _to_copy, "PrivateUse1")

    def pinned(self, size: int, dtype: torch.dtype) -> Tensor:
        """In place of trainer.device._pinned."""
        return torch.empty(size, dtype=dtype)

    def event(self) -> Any:
        """In place of trainer.device._event: counts who waits for it."""
        return self

    def synchronize(self) -> None:
        """A wait for an event."""
        counts["events waited for"] += 1


def _empty(size: Any, *_: Any, dtype: Any = None, **__: Any) -> Tensor:
    return _There(torch.empty(size, dtype=dtype))


def _empty_strided(size: Any, stride: Any, *_: Any, dtype: Any = None, **__: Any) -> Tensor:
    return _There(torch.empty_strided(size, stride, dtype=dtype))


def _to_copy(source: Tensor, *_: Any, dtype: Any = None, non_blocking: bool = False, **__: Any) -> Tensor:
    _crosses("there", non_blocking)
    return _There(source.detach().to(dtype or source.dtype, copy=True))


def _crosses(way: str, non_blocking: bool) -> None:
    counts[way] += 1
    if not non_blocking:
        _waits(f"copy {way}")


def _waits(what: str) -> None:
    counts["waits"] += 1
    counts[what] += 1


def _computed(func: Any, args: Any, kwargs: Any) -> Any:
    name = func.overloadpacket.__name__
    device = kwargs.get("device")
    leaves = device is not None and torch.device(device).type == "cpu"
    if name in _WAITS:
        _waits(name)
    if name == "copy_" and not (isinstance(args[0], _There) and isinstance(args[1], _There)):
        _crosses("there" if isinstance(args[0], _There) else "back", args[2] if len(args) > 2 else kwargs.get("non_blocking", False))
    elif name == "_to_copy" and leaves:
        _crosses("back", kwargs.get("non_blocking", False))
    elif any(isinstance(x, Tensor) and not isinstance(x, _There) and x.dim() for x in torch.utils._pytree.tree_leaves((args, kwargs))):
        _waits(f"{name} of a tensor of the host")
    if device is not None:
        kwargs = {**kwargs, "device": torch.device("cpu")}
    here = func(*tree_map(_here, args), **tree_map(_here, kwargs))
    changed = [
        x for x, about in zip(args, func._schema.arguments, strict=False) if about.alias_info is not None and about.alias_info.is_write
    ]
    changed += [kwargs[about.name] for about in func._schema.arguments if about.is_out and about.name in kwargs]
    if changed and isinstance(here, Tensor):
        return changed[0]
    return here if leaves else tree_map(lambda x: _There(x) if isinstance(x, Tensor) else x, here)


def _here(value: Any) -> Any:
    return value.here if isinstance(value, _There) else value
