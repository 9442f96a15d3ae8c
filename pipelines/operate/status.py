"""`python -m pipelines status`: what runs, where, how far, held by whom. One table from the cluster's objects and the store."""

import argparse
import json
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from pipelines.cluster.connection import POD, Cluster, Kind
from pipelines.cluster.kueue import Kueue
from pipelines.cluster.names import DOMAIN
from pipelines.jobs.finding import PART_OF, find_jobs, identity_of
from pipelines.jobs.holds import STALE_SECONDS, holds, posix_time
from pipelines.jobs.shapes import job_kinds, shape_of
from pipelines.jobs.shapes.base import Shape
from pipelines.jobs.stuck import find_stuck
from pipelines.jobs.view import View
from pipelines.operate.experiments import Progress, last_record, survey_root
from pipelines.profile.profile import read_profile, use_store_of_profile
from pipelines.steps.running import root_of_run
from trainer.errors import InputError
from trainer.progress import counted
from trainer.storage import join, layout, open_store

STORE_SECONDS = 5.0
"""So long the store may take to say how far all jobs are; it may not be reachable from here."""
WIDTH = 240
"""Of the table, wherever it is shown: a folded name can be copied by nobody."""
Object = dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class Row:
    """What is said of one job.

    Attributes:
        job: its name.
        kind: of its object, such as PyTorchJob.
        experiment: it belongs to.
        cell: as labelled; empty: cells share it, or it is not of one.
        arm: as labelled.
        point: as labelled.
        seed: as labelled.
        stage: as labelled.
        state: Queued, Preempted, Pending, Running, Restarting, Ending, Succeeded or Failed.
        why: of a state that is not self-evident, in the words of whoever keeps it so.
        ready: pods that are ready.
        wanted: pods that run when all is well.
        step: optimiser steps done; None if it is not known here.
        steps: in all.
        samples_per_second: of the last logged steps.
        age_seconds: since it was created.
        held_by: runs that hold it; empty: it was made by hand, or has ended.
    """

    job: str
    kind: str
    experiment: str
    cell: str
    arm: str
    point: str
    seed: str
    stage: str
    state: str
    why: str
    ready: int
    wanted: int
    step: int | None
    steps: int | None
    samples_per_second: float | None
    age_seconds: float
    held_by: tuple[str, ...]


def add_command(commands: "argparse._SubParsersAction[argparse.ArgumentParser]", common: argparse.ArgumentParser) -> None:
    """Add `status`."""
    status = commands.add_parser(
        "status", parents=[common], help="show what is running on the cluster or stored in a root, its progress, and who holds it"
    )
    status.add_argument("--namespace", default="", help="where the jobs are (default: the profile's, else the context's)")
    status.add_argument("--experiment", default="", help="only this experiment")
    status.add_argument("--root", default="", help="show the experiments stored in this root instead (default without a cluster: runs)")
    status.add_argument("--json", action="store_true", help="print JSON instead of a table")
    status.set_defaults(run=_run)


def _run(options: argparse.Namespace) -> int:
    use_store_of_profile()
    profile = read_profile()
    root = root_of_run(options.root, profile, default="runs")
    if options.root:
        return _show_root(root, options)
    try:
        cluster = connect(options.namespace)
    except InputError:
        if options.namespace or profile.backend != "local" or not open_store(root).holds(join(root, "experiments")):
            raise
        return _show_root(root, options)
    rows = survey(cluster, options.experiment)
    if options.json:
        print(json.dumps([asdict(row) for row in rows], indent=1))
    elif rows:
        _print(rows)
    else:
        of = f" of experiment {options.experiment}" if options.experiment else ""
        print(f"no jobs{of} in namespace {cluster.namespace}")
    return 0


def _show_root(root: str, options: argparse.Namespace) -> int:
    found = survey_root(root, options.experiment)
    if options.json:
        print(json.dumps([asdict(row) for row in found], indent=1))
    elif found:
        print(f"no cluster was queried; this is what is in {root}")
        _print_root(found)
    else:
        print(f"no experiments in {root}")
    return 0


def connect(namespace: str) -> Cluster:
    """The cluster of this shell, in the namespace given, else the profile's, else the context's."""
    return Cluster.connect(namespace or read_profile().jobs.namespace)


def survey(cluster: Cluster, experiment: str = "") -> list[Row]:
    """A row for each job.

    Args:
        cluster: its namespace counts.
        experiment: of this one only; empty: of all.
    """
    jobs = find_jobs(cluster, experiment=layout.check_name("experiment", experiment) if experiment else "")
    pods: dict[tuple[Kind, str], list[Object]] = {}
    for pod in cluster.list(POD, labels=PART_OF) if jobs else []:
        for kind in job_kinds():
            pods.setdefault((kind, (pod["metadata"].get("labels") or {}).get(kind.pod_label, "")), []).append(pod)
    outputs = {str((job["metadata"].get("annotations") or {}).get(f"{DOMAIN}/output", "")) for _, job in jobs} - {""}
    progress = read_progress(sorted(outputs))
    now = time.time()
    kueue = Kueue(cluster)
    return [_row(kueue, kind, job, pods.get((kind, job["metadata"]["name"]), []), progress, now) for kind, job in jobs]


def read_progress(outputs: Sequence[str], seconds: float = STORE_SECONDS) -> dict[str, Mapping[str, Any]]:
    """The last line of each stage's progress.jsonl, of those that the store gives within so many seconds."""
    found: dict[str, Mapping[str, Any]] = {}

    def read(output: str) -> None:
        try:
            found[output] = _last_line(layout.progress(output))
        except Exception:  # whatever keeps the store from answering here: the table is of the cluster first
            return

    threads = [threading.Thread(target=read, args=(output,), daemon=True) for output in outputs]
    end = time.monotonic() + seconds
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(max(0.0, end - time.monotonic()))
    return dict(found)


def _row(kueue: Kueue, kind: Kind, job: Object, pods: list[Object], progress: Mapping[str, Mapping[str, Any]], now: float) -> Row:
    metadata, shape = job["metadata"], shape_of(job)
    ready = [pod for pod in pods if _is_ready(pod)]
    state, why = _state(kueue, job, shape, pods, len(ready))
    last = progress.get(str((metadata.get("annotations") or {}).get(f"{DOMAIN}/output", "")), {})
    return Row(
        job=metadata["name"],
        kind=kind.kind,
        **identity_of(job),
        state=state,
        why=" ".join(why.split()),
        ready=len(ready),
        wanted=shape.pods_wanted(job),
        step=last.get("step"),
        steps=last.get("steps"),
        samples_per_second=last.get("samples_per_second"),
        age_seconds=max(0.0, now - (posix_time(metadata["creationTimestamp"]) or now)),
        held_by=tuple(_holder(hold.holder, hold.ends, now) for hold in holds(job, {})),
    )


def _state(kueue: Kueue, job: Object, shape: Shape, pods: list[Object], ready: int) -> tuple[str, str]:
    """The state, and why it is so where that is not self-evident."""
    phase = shape.phase(job)
    if "deletionTimestamp" in job["metadata"]:
        return "Ending", f"{counted(len(pods), 'pod')} left"
    if phase.name == "suspended":
        admission = kueue.why(job, shape.kind)
        return "Preempted" if admission.preempted else "Queued", admission.text
    if phase.ended:
        return phase.name.capitalize(), phase.message if phase.name == "failed" else ""
    restarts = sum(int(status.get("restartCount", 0)) for pod in pods for status in pod.get("status", {}).get("containerStatuses") or [])
    if ready >= shape.pods_wanted(job):
        return "Running", f"{counted(restarts, 'restart')} of containers" if restarts else ""
    stuck = find_stuck(_Snapshot(job, pods), shape, has_run=bool(restarts))
    return "Restarting" if restarts else "Pending", stuck[0].text if stuck else ""


class _Snapshot(View):
    """A job and its pods as they were when they were listed."""

    def __init__(self, job: Object, pods: list[Object]) -> None:
        self.job = job
        self._listed = pods

    def pods(self) -> list[Object]:
        """As listed."""
        return self._listed

    def warnings(self, name: str) -> list[Object]:
        """None were read."""
        return []


def _is_ready(pod: Object) -> bool:
    conditions = pod.get("status", {}).get("conditions") or []
    return any(entry["type"] == "Ready" and entry["status"] == "True" for entry in conditions)


def _holder(name: str, ends: float, now: float) -> str:
    """A Workflow may have ended without this table knowing it; a shell says itself when it was last there."""
    return f"{name} (silent for {now - ends + STALE_SECONDS:.0f} s)" if ends <= now else name


def _last_line(uri: str) -> Mapping[str, Any]:
    return last_record(uri)[0]


def _print(rows: Sequence[Row]) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table(box=None, header_style="bold", pad_edge=False)
    points = ("point",) if any(row.point for row in rows) else ()
    for name in ("experiment", "arm", *points, "seed", "stage", "state", "pods", "step", "samples/s", "age", "held by", "job"):
        table.add_column(name, overflow="fold", justify="right" if name in ("seed", "pods", "step", "samples/s", "age") else "left")
    for row in rows:
        step = f"{row.step:,}/{row.steps:,}" if row.step is not None and row.steps else ""
        rate = f"{row.samples_per_second:,.1f}" if row.samples_per_second is not None else ""
        pods, held = f"{row.ready}/{row.wanted}", ", ".join(row.held_by) or "nobody"
        whose = (row.experiment, row.arm, *([row.point] if points else []), row.seed, row.stage)
        table.add_row(*whose, row.state, pods, step, rate, _age(row.age_seconds), held, row.job)
    Console(highlight=False, width=WIDTH).print(table)
    for row in rows:
        if row.why:
            print(f"{row.job}: {row.state.lower()}: {row.why}")


def _print_root(rows: Sequence[Progress]) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table(box=None, header_style="bold", pad_edge=False)
    for name in ("experiment", "cell", "stage", "state", "step", "samples/s"):
        table.add_column(name, overflow="fold", justify="right" if name in ("step", "samples/s") else "left")
    for row in rows:
        step = f"{row.step:,}/{row.steps:,}" if row.step is not None and row.steps else ""
        rate = f"{row.samples_per_second:,.1f}" if row.samples_per_second is not None else ""
        table.add_row(row.experiment, row.cell, row.stage, row.state, step, rate)
    Console(highlight=False, width=WIDTH).print(table)
    for row in rows:
        if row.why:
            print(f"{row.experiment}: {row.stage} {row.cell}: {row.state.lower()}: {row.why}")


def _age(seconds: float) -> str:
    """`3d4h`, `2h5m`, `7m3s`, `12s`."""
    parts = [
        (int(seconds) // size % most, unit) for size, most, unit in ((86400, 10**6, "d"), (3600, 24, "h"), (60, 60, "m"), (1, 60, "s"))
    ]
    first = next((place for place, (number, _) in enumerate(parts) if number), 3)
    return "".join(f"{number}{unit}" for number, unit in parts[first : first + 2])
