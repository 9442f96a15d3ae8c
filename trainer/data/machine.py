"""The memory, cores and descriptors that this machine, or the container's limits, let a process use. No torch."""

import os
from pathlib import Path

CGROUP = Path("/sys/fs/cgroup")
"""Where a container finds its limits (cgroup v2)."""

_PART = 4  # decoded pictures may take a quarter of what is free: the model and the system need the rest


def memory_for_pictures(processes_per_node: int) -> int:
    """Memory for a rank's decoded pictures, in bytes, so that a small data set is decoded once rather than in each epoch."""
    return available_memory() // _PART // processes_per_node


def available_memory() -> int:
    """Bytes that are free."""
    free = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_AVPHYS_PAGES")
    for line in Path("/proc/meminfo").read_text().splitlines():
        if line.startswith("MemAvailable:"):
            free = int(line.split()[1]) * 1024
    try:
        limit, used = ((CGROUP / f"memory.{name}").read_text().strip() for name in ("max", "current"))
        return free if limit == "max" else max(min(free, int(limit) - int(used)), 0)
    except (OSError, ValueError):  # no cgroup v2 here
        return free


def available_cores() -> int:
    """Cores that may be used: those of the process's affinity, whole ones of the CPU limit where that is less; at least 1."""
    cores = len(os.sched_getaffinity(0))
    try:
        quota, period = (CGROUP / "cpu.max").read_text().split()
        return cores if quota == "max" else max(1, min(cores, int(quota) // int(period)))
    except (OSError, ValueError):  # no cgroup v2 here
        return cores
