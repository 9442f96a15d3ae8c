"""Temporary folders: gone with the block, swept where their process was killed, and never a living one's."""

import os
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from trainer.errors import RunError
from trainer.storage import scratch, writers
from trainer.storage.scratch import temporary_folder


@pytest.fixture(autouse=True)
def base(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The system's folder for temporary files."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    return tmp_path


def test_it_is_gone_with_the_block(base: Path) -> None:
    with temporary_folder("demo") as folder:
        (folder / "x").write_text("x")
        assert folder.parent == base
    assert list(base.iterdir()) == []


def test_a_disk_that_is_full_is_named(base: Path) -> None:
    """Python's own error of a write has no file's name."""
    with pytest.raises(RunError, match=rf"temporary files \(demo\): cannot be written: No space left in {base}: .* set TMPDIR"):
        with temporary_folder("demo"):
            Path("/dev/full").write_bytes(b"x")
    assert list(base.iterdir()) == []


def test_what_a_killed_process_left_is_swept_and_a_living_ones_stays(base: Path) -> None:
    """By whoever makes the next, of whatever kind; elsewhere too, where a folder was named."""
    code = (
        "import sys; from trainer.storage.scratch import temporary_folder\n"
        f"with temporary_folder('unpack', {str(base)!r}) as folder:\n"
        "    (folder / 'x').write_text('x'); print(folder, flush=True); sys.stdin.read()"
    )
    process = subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    left = Path(process.stdout.readline().strip())
    with temporary_folder("plan", str(base)) as folder:
        assert left.exists()
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert (left / "x").exists()
    with temporary_folder("plan", str(base)) as folder:
        assert list(base.iterdir()) == [folder]


def test_what_another_process_sweeps_at_the_same_time_is_no_error(base: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its folder is gone between the listing and the look at its owner."""
    place = base / "firstsight-demo-x"
    place.mkdir()

    def swept_meanwhile(name: str) -> bool:
        (base / name).rmdir()
        return True

    monkeypatch.setattr(scratch, "is_gone", swept_meanwhile)
    with temporary_folder("plan") as folder:
        assert list(base.iterdir()) == [folder]


@pytest.mark.parametrize("whose", ["another container's", "nobody's", "another user's", "a link"])
def test_what_is_not_known_to_be_left_stays(base: Path, tmp_path_factory: pytest.TempPathFactory, whose: str) -> None:
    """A name without a mark, a process that this kernel or container does not know, another user's folder, the target of a link."""
    boot, namespace = writers.mark().split("-")[:2]
    dead = f"{boot}-{namespace}-4194304-1"
    name = {"another container's": f"{boot}-00000000-4194304-1", "nobody's": "mine"}.get(whose, dead)
    place, target = base / f"firstsight-demo-{name}-x", tmp_path_factory.mktemp("target")
    (target / "x").touch()
    if whose == "a link":
        place.symlink_to(target)
    else:
        place.mkdir()
    if whose == "another user's":
        if os.getuid() != 0:
            pytest.skip("gives a folder to another user")
        os.chown(place, 12345, 12345)
    with temporary_folder("demo"):
        assert place.exists()
    assert (target / "x").exists()
