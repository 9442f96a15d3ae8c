"""What a container may use of its machine."""

import os
from pathlib import Path

import pytest

from trainer.data import machine


@pytest.mark.parametrize(
    ("limit", "cores"),
    [("max 100000", 8), ("400000 100000", 4), ("350000 100000", 3), ("50000 100000", 1), ("1600000 100000", 8), ("", 8)],
)
def test_cores_are_those_of_the_container(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, limit: str, cores: int) -> None:
    """Whole ones of its CPU limit, at least one, and no more than the process may run on."""
    (tmp_path / "cpu.max").write_text(limit)
    monkeypatch.setattr(machine, "CGROUP", tmp_path)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(8)))
    assert machine.available_cores() == cores


def test_without_cgroups_cores_are_the_processs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its affinity alone."""
    monkeypatch.setattr(machine, "CGROUP", tmp_path)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {3, 5})
    assert machine.available_cores() == 2
