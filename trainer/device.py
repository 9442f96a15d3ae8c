"""Between host and device without a wait: what goes there in one copy, and figures that come back when they are ready.

A copy from ordinary memory, and reading a number of the device, both hold the host until the device's queue is empty; meanwhile
nothing new is queued, and the device idles. On a CPU there is no queue: everything here is then immediate.
"""

from collections import deque
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

_ALIGNMENT = 16


def sent(parts: Sequence[Tensor], device: torch.device) -> list[Tensor]:
    """Tensors of the host on the device, all by one copy from pinned memory.

    Args:
        parts: contiguous, of any shapes and dtypes.
        device: on a CPU the parts come back as they are.
    """
    if device.type == "cpu":
        return list(parts)
    begins, size = [], 0
    for part in parts:
        begins.append(size)
        size += -(-part.nbytes // _ALIGNMENT) * _ALIGNMENT
    host = _pinned(size, torch.uint8)
    for begin, part in zip(begins, parts, strict=True):
        host[begin : begin + part.nbytes].view(part.dtype).copy_(part.flatten())
    there = host.to(device, non_blocking=True)
    return [there[begin : begin + part.nbytes].view(part.dtype).view(part.shape) for begin, part in zip(begins, parts, strict=True)]


class Leaving:
    """Figures of steps on their way to the host; known one step later, so that the queue never runs dry while the next is prepared."""

    def __init__(self, device: torch.device) -> None:
        self._lag = 0 if device.type == "cpu" else 1
        self._pending: deque[tuple[int, dict[str, float], list[str], Tensor | None, Any, Any]] = deque()

    def add(self, step: int, figures: Mapping[str, float | Tensor], about: Any = None) -> None:
        """Figures of step number `step`, and what comes back with them. Scalar tensors leave the device together, by one copy."""
        there = {name: value.detach() for name, value in figures.items() if isinstance(value, Tensor)}
        known = {name: float(value) for name, value in figures.items() if not (name in there and self._lag)}
        host = event = None
        if self._lag:
            host = _pinned(len(there), torch.float64)
            host.copy_(torch.stack([value.double() for value in there.values()]), non_blocking=True)
            event = _event()
        self._pending.append((step, known, list(there), host, event, about))

    def arrived(self, *, wait: bool) -> list[tuple[int, dict[str, float], Any]]:
        """(step, figures, about) of the steps that have ended, each once and in their order; `wait` for the last one too."""
        found = []
        while len(self._pending) > (0 if wait else self._lag):
            step, figures, names, host, event, about = self._pending.popleft()
            if host is not None:
                event.synchronize()
                figures |= dict(zip(names, host.tolist(), strict=True))
            found.append((step, figures, about))
        return found


def _pinned(size: int, dtype: torch.dtype) -> Tensor:
    """(size,), from which and to which the device copies by itself."""
    return torch.empty(size, dtype=dtype, pin_memory=True)


def _event() -> Any:
    """Passes when the device has done what is queued so far."""
    event = torch.cuda.Event()  # type: ignore[no-untyped-call]
    event.record()
    return event
