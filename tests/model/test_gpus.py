"""A driver or a GPU that is too old is told in one line, and nobody trains on a CPU beside a GPU that does not work."""

import warnings
from pathlib import Path

import pytest
import torch

from pipelines.operate import gpu_nodes
from trainer.config import Placement
from trainer.errors import InputError
from trainer.evaluation import measure
from trainer.model import distributed, gpus

FILE = "NVRM version: NVIDIA UNIX x86_64 Kernel Module  535.104.05  Sat Aug 19 01:15:15 UTC 2023\nGCC version:  gcc version 12.3.0\n"


@pytest.fixture
def node(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A machine with a GPU whose driver is old: torch finds no CUDA."""

    def is_available() -> bool:
        warnings.warn("CUDA initialization: The NVIDIA driver on your system is too old", stacklevel=1)
        return False

    monkeypatch.setattr(torch.cuda, "is_available", is_available)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.setattr(torch.version, "cuda", "13.2")
    monkeypatch.setattr(gpus, "DRIVER_FILES", (str(tmp_path / "none"), str(tmp_path / "driver")))
    monkeypatch.setattr(gpus, "DEVICES", tmp_path)
    (tmp_path / "driver").write_text(FILE)
    (tmp_path / "nvidia0").touch()
    return tmp_path


@pytest.mark.parametrize("device", ["auto", "cuda"])
def test_an_old_driver_ends_training_and_evaluation_at_once(node: Path, device: str) -> None:
    """Not a run that takes a hundred times as long."""
    placement = Placement(device=device)  # type: ignore[arg-type]
    said = r"^NVIDIA driver 535\.104\.05 is too old: torch \S+ with CUDA 13\.2 needs 580 or newer; update"
    for choose in (lambda: distributed._device(placement, 0), lambda: measure._device(placement)):
        with pytest.raises(InputError, match=said):
            choose()


def test_a_gpu_that_does_not_work_ends_them_too(node: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its driver is new enough, and CUDA says what is wrong; a torch without CUDA asks for no GPU."""

    def init() -> None:
        raise RuntimeError("CUDA driver initialization failed,\nyou might not have a CUDA gpu.")

    (node / "driver").write_text(FILE.replace("535.104.05", "580.65.06"))
    monkeypatch.setattr(torch.cuda, "init", init)
    for choose in (lambda: distributed._device(Placement(), 0), lambda: measure._device(Placement())):
        with pytest.raises(InputError, match=r"driver 580\.65\.06, but torch cannot use it: CUDA driver initialization failed, you might"):
            choose()
    monkeypatch.setattr(torch.version, "cuda", None)
    assert measure._device(Placement()).type == "cpu"


@pytest.mark.parametrize("value", ["", "-1"])
def test_a_gpu_that_somebody_hides_is_none(node: Path, monkeypatch: pytest.MonkeyPatch, value: str) -> None:
    """However old its driver is."""
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", value)
    assert measure._device(Placement()).type == "cpu"


def test_whoever_asks_for_a_cpu_gets_one(node: Path) -> None:
    """So does a container to which no GPU was given, on a node with an old driver."""
    assert distributed._device(Placement(device="cpu"), 0).type == "cpu"
    (node / "nvidia0").unlink()
    (node / "nvidiactl").touch()
    assert distributed._device(Placement(), 0).type == "cpu"
    assert measure._device(Placement()).type == "cpu"


@pytest.mark.parametrize(("driver", "cuda"), [("580.65.06", "13.2"), ("535.104.05", "12.6"), ("", "13.2"), ("470.1", None)])
def test_a_driver_that_will_do(driver: str, cuda: str | None) -> None:
    """One that is new enough for torch's CUDA, or of which nothing is known."""
    gpus.require_driver(driver, cuda)


def test_an_old_gpu_is_named() -> None:
    """With what it is and what is needed."""
    with pytest.raises(InputError, match=r"^Tesla V100 is sm_70, but torch \S+ is built for sm_75 and newer"):
        gpus.require_capability("Tesla V100", (7, 0), ["sm_120", "sm_75", "compute_75"])
    gpus.require_capability("H100", (9, 0), ["sm_75", "sm_120"])


def test_the_chart_s_preflight_asks_what_this_torch_needs() -> None:
    """It cannot import torch, so it has the numbers of the pinned one."""
    assert int(str(torch.version.cuda).partition(".")[0]) == gpu_nodes.CUDA
    oldest = min(int(one[3:]) for one in torch.cuda.get_arch_list() if one.startswith("sm_"))
    assert divmod(oldest, 10) == gpu_nodes.CAPABILITY
