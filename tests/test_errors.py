"""What a command says that ran out of memory or disk, whoever noticed it."""

import errno

import pytest

from trainer.errors import RunError, exit_code


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (MemoryError(), "out of memory"),
        (MemoryError("Unable to allocate 2 GiB for an array"), "out of memory: Unable to allocate 2 GiB for an array"),
        (RuntimeError("can't start new thread"), "out of memory: can't start new thread"),
        (RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried 9 bytes"), "out of memory: [enforce fail]"),
        (RuntimeError("CUDA out of memory. Tried to allocate 2.00 GiB.\nGPU 0 has"), "out of memory: CUDA out of memory. Tried to"),
        (RuntimeError("std::bad_alloc"), "out of memory: std::bad_alloc"),
        (OSError(12, "Cannot allocate memory"), "[Errno 12] Cannot allocate memory"),
        (RunError("a process ended early (out of memory?)"), "a process ended early (out of memory?)"),
    ],
)
def test_a_command_without_memory_ends_with_one_line(error: Exception, line: str, capsys: pytest.CaptureFixture[str]) -> None:
    """Exit code 1 and no traceback."""

    def fail() -> int:
        raise error

    assert exit_code("trainer train", fail, verbose=False) == 1
    (said,) = capsys.readouterr().err.splitlines()
    assert said.startswith(f"trainer train: {line}")


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (OSError(errno.ENOSPC, "No space left on device", "/runs/report"), "/runs/report: the disk is full (No space left on device);"),
        (OSError(errno.EDQUOT, "Disk quota exceeded", b"/runs"), "/runs: the disk is full (Disk quota exceeded); make room and run"),
        (OSError(errno.ENXIO, "No such device or address", "/dev/x"), "/dev/x: No such device or address"),
        (OSError(errno.EADDRINUSE, "Address already in use"), f"[Errno {errno.EADDRINUSE}] Address already in use"),
    ],
)
def test_what_the_operating_system_refuses_is_named_with_its_reason(error: OSError, line: str, capsys: pytest.CaptureFixture[str]) -> None:
    """Of a full disk also what to do."""

    def fail() -> int:
        raise error

    assert exit_code("pipelines run", fail, verbose=False) == 1
    assert capsys.readouterr().err.startswith(f"pipelines run: {line}")


def test_an_error_that_nobody_foresaw_keeps_its_traceback() -> None:
    """It is firstsight's own fault, and for its developers."""

    def fail() -> int:
        raise RuntimeError("shapes differ")

    with pytest.raises(RuntimeError, match="shapes differ"):
        exit_code("trainer train", fail, verbose=False)
