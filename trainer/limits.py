"""What the system lets a process do by default, and what it lets it do on request."""

import contextlib
import resource


def raise_descriptor_limit() -> None:
    """Let this process, and those that it starts, open as many files as the system allows: many systems begin with 1,024."""
    soft, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != most:
        with contextlib.suppress(OSError, ValueError):  # a sandbox that allows no change: the soft limit stays
            resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
