"""What one worker of `make test` takes at a time: a file, or files that share what takes long to make, which then is made once."""

import pytest
from xdist.remote import Producer
from xdist.scheduler import LoadFileScheduling

TOGETHER = {
    "pages": ("tests/report/",),
    "ranks": (
        "tests/faults/test_agents.py", "tests/model/test_collectives.py", "tests/run/test_placing.py", "tests/run/test_preflight.py",
        "tests/run/test_waits.py", "tests/stages/test_equals_reference.py",
    ),
}  # fmt: skip
"""Reports that many files read, and the server that forks ranks: it imports torch and open_clip first."""


class BySharedFixtures(LoadFileScheduling):
    """`--dist loadfile`, but for the files above."""

    def _split_scope(self, nodeid: str) -> str:
        return next((name for name, places in TOGETHER.items() if nodeid.startswith(places)), super()._split_scope(nodeid))


def scheduler(config: pytest.Config, log: Producer) -> LoadFileScheduling | None:
    """In place of xdist's own for `--dist loadfile`."""
    return BySharedFixtures(config, log) if config.getoption("dist") == "loadfile" else None
