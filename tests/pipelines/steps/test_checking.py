"""What a request cannot do is answered before anything is staged, by what this machine's driver says or the profile knows."""

from pathlib import Path

import pytest

from pipelines.__main__ import main
from pipelines.steps.checking import gpus_here

EIGHT = "".join("NVIDIA H100 80GB HBM3, 81559\n" for _ in range(8))


def driver(folder: Path, monkeypatch: pytest.MonkeyPatch, said: str, code: int = 0) -> None:
    """A machine whose nvidia-smi says this, and nothing else on PATH."""
    program = folder / "bin/nvidia-smi"
    program.parent.mkdir()
    program.write_text(f"#!/bin/sh\nprintf '%s' '{said}'\nexit {code}\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(program.parent))


@pytest.fixture(autouse=True)
def _asked_anew() -> None:
    """A process asks its driver once; each test has a driver of its own."""
    gpus_here.cache_clear()


def test_the_gpus_of_this_machine_are_those_of_its_driver(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    driver(tmp_path, monkeypatch, EIGHT)

    assert gpus_here() == [("NVIDIA H100 80GB HBM3", 81559 << 20)] * 8


@pytest.mark.parametrize(("said", "code"), [("", 0), ("No devices were found", 6), ("NVIDIA GH200, [N/A]\n", 0)])
def test_a_driver_that_says_nothing_useful_ends_no_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, said: str, code: int):
    driver(tmp_path, monkeypatch, said, code)

    assert gpus_here() == []


def test_a_machine_without_a_driver_has_no_gpus(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("PATH", str(tmp_path))

    assert gpus_here() == []


def test_a_batch_that_one_gpu_does_not_hold_goes_through_the_gradient_cache_and_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    """4,096 pairs of ViT-B/32 on one H100."""
    driver(tmp_path, monkeypatch, EIGHT)

    assert main(["plan", "--recipe", "paper", "--arms", "random", "--root", str(tmp_path / "runs")]) == 0

    out = capsys.readouterr().out
    assert "note: contrastive: 4,096 samples a rank need an estimated" in out
    assert "through the gradient cache" in out
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize("command", ["plan", "run"])
def test_without_the_gradient_cache_such_a_batch_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], command: str
):
    """Before anything is staged."""
    driver(tmp_path, monkeypatch, EIGHT)
    asked = ["--recipe", "paper", "--set", "contrastive.accumulation=independent", "--arms", "random", "--root", str(tmp_path / "runs")]

    assert main([command, *asked]) == 2

    (line,) = capsys.readouterr().err.splitlines()
    assert "independent" in line
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize("flag", ["--pairs", "--triplets"])
def test_a_source_that_is_missing_is_refused_by_plan_and_run(tmp_path: Path, capsys: pytest.CaptureFixture[str], flag: str):
    for command in ("plan", "run"):
        assert main([command, "--recipe", "smoke", flag, str(tmp_path / "nosuch"), "--root", str(tmp_path / "runs")]) == 2
        assert f"{flag.strip('-')} {tmp_path}/nosuch: no such file or folder" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []
