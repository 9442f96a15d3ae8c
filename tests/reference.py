"""Environments of what firstsight is compared with: requirements/reference.txt and layouts.txt, each made once in a cache folder.

They never lie in the tree, and are named by the hash of their requirements, so a change makes a new one.
"""

import hashlib
import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

from tests.locking import one_at_a_time

REQUIREMENTS = Path(__file__).parents[1] / "requirements" / "reference.txt"


def reference_python(requirements: Path = REQUIREMENTS) -> Path:
    """The Python of an environment; the first call makes it (minutes, where the packages are not in uv's cache)."""
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "firstsight"
    folder = cache / f"{requirements.stem}-{hashlib.sha256(requirements.read_bytes()).hexdigest()[:16]}"
    python, ready = folder / "bin" / "python", folder / "ready"
    with one_at_a_time(cache / f"{requirements.stem}.lock"):
        if not ready.exists():
            uv = Path(sys.executable).with_name("uv")
            subprocess.run([uv, "venv", "--quiet", "--clear", "--python", sys.executable, folder], check=True)
            subprocess.run([uv, "pip", "sync", "--quiet", "--require-hashes", "--python", python, requirements], check=True)
            ready.touch()
    return python


def run_reference(*arguments: str | Path, cwd: Path, requirements: Path = REQUIREMENTS, environment: Mapping[str, str] = os.environ) -> str:
    """Run `python <arguments>` there, offline, and give its output; a failure shows it.

    Raises:
        AssertionError: it exited non-zero.
    """
    offline = {**environment, "HF_HUB_OFFLINE": "1", "PYTHONPATH": ""}
    done = subprocess.run(
        [reference_python(requirements), *arguments], cwd=cwd, env=offline, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-4000:]
    return done.stdout
