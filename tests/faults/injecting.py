"""The faults of a campaign: each a function that does one thing to running commands or to their place, and says what it did."""

import contextlib
import os
import random
import resource
import shutil
import signal
import subprocess
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from tests.fault_proxy import Break, Fault, FlipSent, LoseAnswer, Refuse, Stall, Status
from tests.faults.forked import descendants, role
from tests.faults.places import Place

_JOBS = ("stage", "train", "evaluate", "report", "rank")
_CGROUPS = Path("/sys/fs/cgroup/memory")


@dataclass(kw_only=True)
class Scene:
    """Commands that run, and what was done to them so far.

    Attributes:
        place: theirs.
        zygote: pid of their ancestor.
        draw: decides what a fault leaves open.
        hits: pid -> signals that it got from a fault.
        later: (time, what to do) that ends a fault; all is done at the end of an attempt at the latest.
    """

    place: Place
    zygote: int
    draw: random.Random
    hits: dict[int, set[int]] = field(default_factory=dict)
    later: list[tuple[float, Callable[[], None]]] = field(default_factory=list)

    def victim(self, among: str = "") -> tuple[int, str]:
        """A process, each role with the same chance, and its role; (0, "") where there is none.

        Args:
            among: "job": the trainer's processes alone.
        """
        roles: dict[str, list[int]] = {}
        for pid in descendants(self.zygote):
            roles.setdefault(role(pid), []).append(pid)
        names = sorted(name for name in roles if name.startswith(_JOBS if among else (*_JOBS, "pipeline", "step")) and name != "stepper")
        name = self.draw.choice(names) if names else ""
        return (self.draw.choice(roles[name]), name) if name else (0, "")

    def after(self, seconds: float, end: Callable[[], None]) -> None:
        """Do this in so many seconds."""
        self.later.append((time.monotonic() + seconds, end))

    def end_faults(self, *, all_of_them: bool) -> None:
        """End the faults whose time is over."""
        while due := [one for one in self.later if all_of_them or one[0] <= time.monotonic()]:
            for one in reversed(due):
                self.later.remove(one)
                one[1]()

    def remove(self, path: Path) -> None:
        """Remove what fills a disk, as soon as the disk can be written."""
        shutil.rmtree(path, ignore_errors=True)
        with contextlib.suppress(OSError):
            path.unlink(missing_ok=True)
        if path.exists():
            time.sleep(0.02)
            self.after(0.3, lambda: self.remove(path))


@dataclass(frozen=True)
class Known:
    """A fault: what it needs of a place, and what does it. It returns to what it was done, or nothing if it was not possible."""

    needs: str
    do: Callable[[Scene], str]


FAULTS: dict[str, Known] = {}


def fault(name: str, needs: str = "") -> Callable[[Callable[[Scene], str]], Callable[[Scene], str]]:
    """Register a fault by its name in the counts."""

    def register(do: Callable[[Scene], str]) -> Callable[[Scene], str]:
        FAULTS[name] = Known(needs, do)
        return do

    return register


# ------------------------------------------------------------------------------------------------------ processes


def _send(scene: Scene, number: int) -> str:
    pid, name = scene.victim()
    with contextlib.suppress(ProcessLookupError):
        if pid:
            os.kill(pid, number)
            scene.hits.setdefault(pid, set()).add(number)
    return name


@fault("SIGKILL of a process")
def kill(scene: Scene) -> str:
    """As the kernel does it, or a person."""
    return _send(scene, signal.SIGKILL)


@fault("SIGTERM of a process")
def terminate(scene: Scene) -> str:
    """As Kubernetes does it."""
    return _send(scene, signal.SIGTERM)


@fault("SIGINT of a process")
def interrupt(scene: Scene) -> str:
    """Ctrl-C."""
    return _send(scene, signal.SIGINT)


@fault("SIGSTOP, and SIGCONT later")
def pause(scene: Scene) -> str:
    """A machine that swaps, or a suspended laptop."""
    name = _send(scene, signal.SIGSTOP)
    for pid in [pid for pid, numbers in scene.hits.items() if signal.SIGSTOP in numbers]:
        scene.hits[pid].discard(signal.SIGSTOP)
        scene.after(scene.draw.choice((0.2, 1.0, 3.0, 10.0)), lambda pid=pid: _continue(pid))
    return name


def _continue(pid: int) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, signal.SIGCONT)


@fault("address space limited (RLIMIT_AS)")
def limit_memory(scene: Scene) -> str:
    """A job gets a few megabytes more than it has."""
    pid, name = scene.victim("job")
    if not pid:  # 0 would stand for this process
        return ""
    try:
        pages = int(Path(f"/proc/{pid}/statm").read_text().split()[0])
        limit = pages * resource.getpagesize() + scene.draw.choice((1, 4, 16, 64)) * (1 << 20)
        resource.prlimit(pid, resource.RLIMIT_AS, (limit, resource.RLIM_INFINITY))
    except (OSError, ValueError):
        return ""
    return name


@fault("memory limited (cgroup)")
def limit_group(scene: Scene) -> str:
    """A job gets a few megabytes beside what it shares with others; the kernel kills it where that does not do."""
    pid, name = scene.victim("job")
    if not pid:  # 0 would stand for this process
        return ""
    group = _CGROUPS / f"firstsight-{os.getpid()}-{pid}"
    try:
        group.mkdir()
        scene.after(600, lambda: _remove_group(group))
        (group / "memory.limit_in_bytes").write_text(str(scene.draw.choice((2, 8, 24)) << 20))
        (group / "cgroup.procs").write_text(str(pid))
    except OSError:
        return ""
    scene.hits.setdefault(pid, set()).add(signal.SIGKILL)
    return name


def _remove_group(group: Path) -> None:
    for pid in (group / "cgroup.procs").read_text().split():
        with contextlib.suppress(OSError):
            (_CGROUPS / "cgroup.procs").write_text(pid)
    with contextlib.suppress(OSError):
        group.rmdir()


# ------------------------------------------------------------------------------------------------------- source


@fault("the source away for a while", "source's folder")
def move_source(scene: Scene) -> str:
    """A share that is unmounted and comes back."""
    folder = Path(scene.place.sources, scene.draw.choice(("pairs", "triplets")))
    away, seconds = folder.with_name(f"{folder.name}-away"), scene.draw.choice((0.1, 0.5, 3.0))
    if not folder.exists():  # it is away already
        return ""
    folder.rename(away)
    scene.after(seconds, lambda: away.rename(folder))
    return f"{folder.name} for {seconds} s"


# ---------------------------------------------------------------------------------------------------------- store


def _answers(name: str, make: Callable[[random.Random], Fault]) -> None:
    @fault(name, "store")
    def misbehave(scene: Scene) -> str:
        assert scene.place.proxy is not None
        count = scene.draw.choice((1, 1, 2, 4))
        scene.place.proxy.faults += [make(scene.draw) for _ in range(count)]
        return f"{count} requests"


def _break(how: str, status: int = 0) -> Callable[[random.Random], Fault]:
    def make(draw: random.Random) -> Fault:
        region = draw.choice(("status", "headers", "body"))
        return Break(how, region, draw.random(), draw.randrange(8), draw.choice((status, 0)) if status else 0)

    return make


_answers("an answer reset", _break("reset", 404))
_answers("an answer cut", _break("cut", 503))
_answers("a bit of an answer flipped", _break("flip"))
_answers("an answer delayed", _break("delay"))
_answers("an answer that never ends", _break("hole"))
_answers("a bit of an upload flipped", lambda draw: FlipSent(draw.random(), draw.randrange(8)))
_answers("a lost answer", lambda draw: LoseAnswer())
_answers("a refused connection", lambda draw: Refuse())
_answers("a silent connection", lambda draw: Stall(3.0))
_answers("503 or 500", lambda draw: draw.choice((Status(503), Status(500, "InternalError"), Status(429, "TooManyRequests"))))


@fault("the store out of reach", "store")
def cut_off(scene: Scene) -> str:
    """For seconds, within the clients' patience or beyond."""
    proxy, seconds = scene.place.proxy, scene.draw.choice((0.5, 3.0, 12.0))
    assert proxy is not None
    proxy.always = scene.draw.choice((Status(503), Refuse()))
    scene.after(seconds, lambda: setattr(proxy, "always", None))
    return f"{seconds} s"


@fault("the store killed and started", "store")
def restart_store(scene: Scene) -> str:
    """SIGKILL; its data lie on a disk."""
    server, seconds = scene.place.server, scene.draw.choice((0.1, 1.0, 5.0))
    assert server is not None
    server.kill()
    scene.after(seconds, server.start)
    return f"down for {seconds} s"


@fault("the store stopped and continued", "store")
def pause_store(scene: Scene) -> str:
    """It takes connections, and says nothing."""
    server, seconds = scene.place.server, scene.draw.choice((0.5, 3.0, 12.0))
    assert server is not None
    pid = server.pid
    os.kill(pid, signal.SIGSTOP)
    scene.after(seconds, lambda: _continue(pid))
    return f"{seconds} s"


# ---------------------------------------------------------------------------------------------------------- disks


def _fill(scene: Scene, disk: Path) -> str:
    ballast, seconds = disk / "ballast", scene.draw.choice((0.5, 3.0, 600.0))
    with contextlib.suppress(OSError), open(ballast, "wb", buffering=0) as file:
        for size in (1 << 20, 1 << 12, 1):
            with contextlib.suppress(OSError):
                while file.write(bytes(size)):
                    pass
    scene.after(seconds, lambda: scene.remove(ballast))
    return f"for {seconds} s"


@fault("the root's disk full", "root's disk")
def fill_root(scene: Scene) -> str:
    """Not a byte is left."""
    return _fill(scene, scene.place.disks[0])


@fault("the temporary folder's disk full", "disk")
def fill_tmp(scene: Scene) -> str:
    """Not a byte is left."""
    return _fill(scene, scene.place.disks[-1])


@fault("the root's disk out of inodes", "root's disk")
def use_inodes(scene: Scene) -> str:
    """There is space left, but no inode for another file."""
    folder, seconds = scene.place.disks[0] / "inodes", scene.draw.choice((0.5, 3.0, 600.0))
    with contextlib.suppress(OSError):
        folder.mkdir()
        for number in range(10_000):
            (folder / str(number)).touch()
    scene.after(seconds, lambda: scene.remove(folder))
    return f"for {seconds} s"


@fault("the root's disk read-only", "root's disk")
def make_read_only(scene: Scene) -> str:
    """As a file system becomes it after an error; not possible while a file is open for writing."""
    disk, seconds = scene.place.disks[0], scene.draw.choice((0.5, 3.0, 600.0))
    for _ in range(20):
        if _remount(disk, "ro"):
            scene.after(seconds, lambda: _remount(disk, "rw"))
            return f"for {seconds} s"
        time.sleep(0.02)
    return ""


def _remount(disk: Path, how: str) -> bool:
    return subprocess.run(["mount", "-o", f"remount,{how}", str(disk)], capture_output=True, check=False).returncode == 0
