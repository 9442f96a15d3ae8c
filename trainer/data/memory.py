"""Whether decoded pictures may stay in memory, so that a small data set is decoded once and not once an epoch."""

import os
from pathlib import Path

_PART = 4  # decoded pictures may take a quarter of what is free: the model and the system need the rest


def memory_for_pictures(processes_per_node: int) -> int:
    """Bytes that one rank may keep decoded pictures in."""
    return available_memory() // _PART // processes_per_node


def available_memory() -> int:
    """Bytes that are free on this machine, or in this container where it has less."""
    free = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_AVPHYS_PAGES")
    for line in Path("/proc/meminfo").read_text().splitlines():
        if line.startswith("MemAvailable:"):
            free = int(line.split()[1]) * 1024
    try:
        limit, used = (Path(f"/sys/fs/cgroup/memory.{name}").read_text().strip() for name in ("max", "current"))
        return free if limit == "max" else max(min(free, int(limit) - int(used)), 0)
    except (OSError, ValueError):  # no cgroup v2 here
        return free
