"""A store that cannot take a checkpoint."""

import errno
import os
from pathlib import Path

import pytest

from tests.run.toy import Trained, toy_config
from trainer.errors import RunError


def test_a_full_disk_ends_the_run_with_its_name_and_the_next_run_goes_on(
    tmp_path: Path, run_toy: Trained, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The background's error is the run's; the checkpoint before it is whole, and room on the disk is all that was missing."""
    config = toy_config(tmp_path, checkpoint_every_steps=3)
    sync, saved = os.fsync, tmp_path / "stage" / "checkpoints" / "step-000000006"

    def full(descriptor: int) -> None:
        if saved.exists():
            raise OSError(errno.ENOSPC, "No space left on device")
        sync(descriptor)

    with monkeypatch.context() as disk:
        disk.setattr("trainer.storage.file.os.fsync", full)
        with pytest.raises(RunError, match="the disk is full"):
            run_toy(config)
    assert run_toy(config).served.served[0] == 3
