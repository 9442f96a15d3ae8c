"""Check that this machine's driver and GPUs can run the installed torch, and report a problem in one line before anything else fails."""

import os
import re
import warnings
from collections.abc import Sequence
from pathlib import Path

import torch

from trainer.configs.sizes import MINIMUM_DRIVERS
from trainer.errors import InputError

DRIVER_FILES = ("/sys/module/nvidia/version", "/proc/driver/nvidia/version")
"""File with the driver's version; inside a container it is that of the node."""
DEVICES = Path("/dev")
HIDING = ("", "-1")
"""What CUDA_VISIBLE_DEVICES says where somebody wants no GPU to be seen."""
_REMEDY = "update or restart the driver, use an image with another CUDA, or train without the GPU by placement.device=cpu"


def usable(device: str) -> bool:
    """Whether ranks may compute on GPUs here.

    Args:
        device: placement.device; with `cpu` nothing is checked.

    Raises:
        InputError: this machine was given a GPU that torch cannot use; continuing without it would take days instead of failing.
    """
    if device == "cpu":
        return False
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # what torch warns of is said below, in one line
        available = torch.cuda.is_available()
    if not available:
        if has_devices() and os.environ.get("CUDA_VISIBLE_DEVICES", "all") not in HIDING:
            require_driver(driver_version(), torch.version.cuda)
            require_cuda(driver_version(), torch.version.cuda)
        return False
    for number in range(torch.cuda.device_count()):
        require_capability(torch.cuda.get_device_name(number), torch.cuda.get_device_capability(number), torch.cuda.get_arch_list())
    return True


def driver_version() -> str:
    """The version of NVIDIA's driver; empty if there is none."""
    for name in DRIVER_FILES:
        try:
            text = Path(name).read_text()
        except OSError:
            continue
        if found := re.search(r"\b(\d{3,}(?:\.\d+)+)\b", text):
            return found[1]
    return ""


def has_devices() -> bool:
    """Whether this machine or container was given a GPU."""
    return any(re.fullmatch(r"nvidia\d+", entry.name) for entry in DEVICES.glob("nvidia*"))


def require_driver(driver: str, cuda: str | None) -> None:
    """Refuse a driver that is too old for torch's CUDA.

    Args:
        driver: the result of `driver_version`.
        cuda: torch.version.cuda; None: torch was built without CUDA.

    Raises:
        InputError: the message gives both versions, and the one that is needed.
    """
    least = MINIMUM_DRIVERS.get(int((cuda or "0").partition(".")[0]), 0)
    if driver and int(driver.partition(".")[0]) < least:
        raise InputError(f"NVIDIA driver {driver} is too old: torch {torch.__version__} with CUDA {cuda} needs {least} or newer; {_REMEDY}")


def require_cuda(driver: str, cuda: str | None) -> None:
    """Refuse GPUs that torch does not find although their driver is new enough: one that does not work, or waits for a restart.

    Args:
        driver: as `driver_version` gives it; empty: nothing is known.
        cuda: torch.version.cuda; None: torch was built without, and asks for none.

    Raises:
        InputError: with what CUDA says.
    """
    if not driver or not cuda:
        return
    try:
        torch.cuda.init()  # type: ignore[no-untyped-call]
        reason = "it counts none"
    except (RuntimeError, AssertionError) as error:
        reason = " ".join(str(error).split())
    raise InputError(f"a GPU was given to this machine, with NVIDIA driver {driver}, but torch cannot use it: {reason}; {_REMEDY}")


def require_capability(name: str, capability: tuple[int, int], architectures: Sequence[str]) -> None:
    """Refuse a GPU that is older than any that torch was built for.

    Args:
        name: name of the GPU.
        capability: its compute capability.
        architectures: torch.cuda.get_arch_list().

    Raises:
        InputError: the message gives both architectures.
    """
    built = sorted(int(found[1]) for one in architectures if (found := re.match(r"sm_(\d+)", one)))
    own = 10 * capability[0] + capability[1]
    if built and own < built[0]:
        raise InputError(f"{name} is sm_{own}, but torch {torch.__version__} is built for sm_{built[0]} and newer: use a newer GPU")
