"""What one worker of `make test` takes at a time: a test file, or several that share an expensive fixture, which is then made once."""

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
"""Reports that many files read; the server that forks ranks, which first imports torch and open_clip."""


class BySharedFixtures(LoadFileScheduling):
    """`--dist loadfile`, except that the files above are scheduled together."""

    def _split_scope(self, nodeid: str) -> str:
        return next((name for name, places in TOGETHER.items() if nodeid.startswith(places)), super()._split_scope(nodeid))


def scheduler(config: pytest.Config, log: Producer) -> LoadFileScheduling | None:
    """In place of xdist's own for `--dist loadfile`."""
    return BySharedFixtures(config, log) if config.getoption("dist") == "loadfile" else None
