"""What a command says that ran out of memory, whoever noticed it."""

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


def test_an_error_that_nobody_foresaw_keeps_its_traceback() -> None:
    """It is firstsight's own fault, and for its developers."""

    def fail() -> int:
        raise RuntimeError("shapes differ")

    with pytest.raises(RuntimeError, match="shapes differ"):
        exit_code("trainer train", fail, verbose=False)
