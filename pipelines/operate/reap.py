"""`python -m pipelines reap [--watch]`: delete jobs that no run needs any more.

After Kubeflow's Terminate no part of a run is left that could end its jobs, so the reaper watches its Workflow from outside. It
only handles labelled jobs, and pipelines/jobs/holds.py decides what to do. The reaper keeps no state: every decision follows from
objects on the API server, so a restarted reaper, or two of them, do the same. A launcher's death alone is never a reason.
"""

import argparse
import math
import signal
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from pipelines.cluster import ending
from pipelines.cluster.api import Conflict
from pipelines.cluster.connection import WORKFLOW, Cluster, Kind, MissingKind
from pipelines.cluster.names import DOMAIN
from pipelines.cluster.watch import DELETED, SYNCED
from pipelines.jobs import holds
from pipelines.jobs.finding import PART_OF
from pipelines.jobs.holds import Action
from pipelines.jobs.shapes import job_kinds
from pipelines.operate.reaper_server import Metrics, serve
from trainer import logs
from trainer.errors import InputError, RunError
from trainer.progress import counted

LOOK_AGAIN_SECONDS = 30.0
"""For a kind that the cluster has not yet, a permission that is missing, an action that failed."""
TURN_SECONDS = 1.0
"""After which the loop sees at the latest that it is to stop."""
DEPARTED_SECONDS = 60.0
"""Seconds for which the pods of a deleted job are still handled."""
STUCK_SECONDS = 900.0
"""A round takes longer only if something hangs, since requests time out earlier."""
Say = Callable[[str], None]
Object = dict[str, Any]


def add_command(commands: "argparse._SubParsersAction[argparse.ArgumentParser]", common: argparse.ArgumentParser) -> None:
    """Add `reap`."""
    reap = commands.add_parser("reap", parents=[common], help="delete the jobs of runs that were terminated, have ended or no longer exist")
    reap.add_argument("--watch", action="store_true", help="run until told to stop, acting within seconds; without it, run once")
    reap.add_argument("--namespace", action="append", default=[], help="only in this namespace; may be repeated (default: all)")
    reap.add_argument(
        "--grace-seconds", type=float, default=holds.GRACE_SECONDS,
        help="how long the jobs of a failed run are kept for a Retry (default: %(default).0f)",
    )  # fmt: skip
    reap.add_argument("--port", type=int, default=8080, help="port of /metrics and /healthz, with --watch (default: %(default)s)")
    reap.set_defaults(run=_run)


def _run(options: argparse.Namespace) -> int:
    if not (math.isfinite(options.grace_seconds) and options.grace_seconds >= 0):
        raise InputError(f"--grace-seconds must be 0 or more, got {options.grace_seconds}")
    reaper = Reaper(Cluster.connect(), options.namespace or [""], options.grace_seconds, lambda line: print(line, flush=True))
    if not options.watch:
        return reaper.once()
    stop = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stop.set())
    with serve(options.port, reaper.metrics, reaper.healthy):
        reaper.watch(stop)
    return 0


class Reaper:
    """The known jobs and Workflows, and the loop that acts on them."""

    def __init__(self, cluster: Cluster, namespaces: Sequence[str], grace_seconds: float, say: Say) -> None:
        """Contacts the cluster only later; the namespace "" stands for all."""
        self.metrics = Metrics(self._known)
        self._cluster, self._namespaces, self._grace_seconds = cluster, namespaces, grace_seconds
        self._say = say
        self._said: set[str] = set()
        self._jobs: dict[str, tuple[Kind, Object]] = {}  # by uid
        # Kubernetes itself immediately deletes a job whose Workflow was deleted, then its pods with their full grace period.
        self._departed: dict[str, tuple[Kind, Object, float]] = {}  # by uid; until when
        self._workflows: dict[tuple[str, str], Object] = {}
        self._changed = threading.Condition()
        self._news = False
        self._unheard: set[tuple[Kind, str]] = set()  # whose first list has not arrived yet
        self._threads: list[threading.Thread] = []
        self._turned = time.monotonic()

    def once(self) -> int:
        """One round over the current objects; the exit code is 1 if something could not be read or done."""
        failed = False
        for namespace in self._namespaces:
            for kind in job_kinds():
                try:
                    for job in self._cluster.list(kind, labels=PART_OF, namespace=namespace):
                        self._jobs[job["metadata"]["uid"]] = (kind, job)
                except MissingKind:
                    continue  # then there are no jobs of it
                except (InputError, RunError) as error:
                    self._complain(error)
                    failed = True
        self._round()
        waiting = sum(self.metrics.count.values()) == 0
        self._say(f"reap: {counted(len(self._jobs), 'job')}{', nothing to do' if waiting else ''}")
        return 1 if failed or self.metrics.count["errors"] else 0

    def watch(self, stop: threading.Event) -> None:
        """Act on every change, and at the end of each grace period, until `stop` is set."""
        for namespace in self._namespaces:
            for kind in (WORKFLOW, *job_kinds()):
                self._unheard.add((kind, namespace))
                name = f"{kind.plural} in {namespace or 'all namespaces'}"
                thread = threading.Thread(target=self._follow, args=(kind, namespace, stop), name=name, daemon=True)
                self._threads.append(thread)
        for thread in self._threads:
            thread.start()
        where = ", ".join(namespace or "all namespaces" for namespace in self._namespaces)
        self._say(f"reap: watching {where}; jobs of a failed run wait {self._grace_seconds:.0f} s for its Retry")
        again = math.inf
        while not stop.is_set():
            with self._changed:
                self._changed.wait_for(lambda: self._news, timeout=min(TURN_SECONDS, max(0.0, again - time.time())))
                turn, self._news = (self._news or time.time() >= again) and not self._unheard, False
            if turn:
                again = self._round()
            self._turned = time.monotonic()
        self._cluster.close_streams()

    def healthy(self) -> bool:
        """Whether all threads are alive and the loop is running."""
        return all(thread.is_alive() for thread in self._threads) and time.monotonic() - self._turned < STUCK_SECONDS

    def _known(self) -> tuple[list[Object], list[Object]]:
        """The jobs and the Workflows that there are, as far as this reaper knows."""
        with self._changed:
            return [job for _, job in self._jobs.values()], list(self._workflows.values())

    def _follow(self, kind: Kind, namespace: str, stop: threading.Event) -> None:
        """Keep what is known of one kind up to date."""
        labels, keep = ("", _essence) if kind is WORKFLOW else (PART_OF, None)
        while not stop.is_set():
            try:
                for change, thing in self._cluster.watch(kind, labels=labels, namespace=namespace, stop=stop, keep=keep):
                    with self._changed:
                        self._take(kind, namespace, change, thing)
            except MissingKind:
                self._say_once(f"reap: the cluster has no {kind.resource}: the reaper waits for them")
            except (InputError, RunError) as error:
                self._complain(error)
            with self._changed:
                self._forget(kind, namespace)
            stop.wait(LOOK_AGAIN_SECONDS)

    def _take(self, kind: Kind, namespace: str, change: str, thing: Object) -> None:
        if change == SYNCED:
            self._unheard.discard((kind, namespace))
        elif kind is WORKFLOW:
            key = (thing["metadata"]["namespace"], thing["metadata"]["name"])
            if change == DELETED:
                self._workflows.pop(key, None)
            else:
                self._workflows[key] = thing
        elif change == DELETED:
            self._jobs.pop(thing["metadata"]["uid"], None)
            thing["metadata"].setdefault("deletionTimestamp", "")
            self._departed[thing["metadata"]["uid"]] = (kind, thing, time.time() + DEPARTED_SECONDS)
        else:
            self._jobs[thing["metadata"]["uid"]] = (kind, thing)
        self._news = True
        self._changed.notify_all()

    def _forget(self, kind: Kind, namespace: str) -> None:
        """Forget objects that are no longer watched."""
        self._unheard.discard((kind, namespace))
        if kind is WORKFLOW:
            self._workflows = {key: value for key, value in self._workflows.items() if namespace and key[0] != namespace}
        else:
            self._jobs = {
                uid: (of, job)
                for uid, (of, job) in self._jobs.items()
                if of is not kind or (namespace and job["metadata"]["namespace"] != namespace)
            }
        self._news = True
        self._changed.notify_all()

    def _round(self) -> float:
        """Decide on all known objects, and act. Returns the time of the next check even if nothing changes."""
        with self._changed:
            departed = list(self._departed.values())
            jobs = [*self._jobs.values(), *((kind, job) for kind, job, _ in departed)]
        kinds = {job["metadata"]["uid"]: kind for kind, job in jobs}
        now = time.time()
        decision = holds.decide([job for _, job in jobs], self._named_workflows(jobs), now, self._grace_seconds)
        self.metrics.jobs(len(jobs) - len(departed))
        again = decision.again
        for action in decision.actions:
            if not self._act(kinds[action.job["metadata"]["uid"]], action):
                again = min(again, now + LOOK_AGAIN_SECONDS)
        with self._changed:
            for _, job, until in departed:  # not earlier: the event of its Workflow may arrive after its own
                if now > until:
                    self._departed.pop(job["metadata"]["uid"], None)
        return again

    def _named_workflows(self, jobs: Sequence[tuple[Kind, Object]]) -> dict[tuple[str, str], Mapping[str, Any] | None]:
        """The Workflows that jobs name. Those that the watch does not show are queried, since it may lag behind the jobs' watch."""
        known: dict[tuple[str, str], Mapping[str, Any] | None] = {}
        for _, job in jobs:
            for reference in holds.workflow_references(job):
                key = (job["metadata"]["namespace"], reference["name"])
                with self._changed:
                    seen = self._workflows.get(key)
                if seen is not None and seen["metadata"]["uid"] == reference["uid"]:
                    known[key] = seen
                elif key not in known:
                    try:
                        known[key] = self._cluster.get(WORKFLOW, key[1], key[0])
                    except MissingKind:
                        continue  # the watch has already reported it
                    except (InputError, RunError) as error:
                        self._complain(error)
        return known

    def _act(self, kind: Kind, action: Action) -> bool:
        """Do it; False if it failed and is to be tried again."""
        metadata = action.job["metadata"]
        name, namespace, version = metadata["name"], metadata["namespace"], metadata["resourceVersion"]
        try:
            if action.what == "release":
                self._cluster.patch(kind, name, holds.without(action.job, action.ended), namespace, resource_version=version)
            elif action.what == "delete":
                ending.end(self._cluster, kind, name, namespace, resource_version=version)
            else:
                ending.shorten_grace(self._cluster, kind, name, namespace, only_going=metadata["uid"] in self._departed)
        except Conflict:
            return True  # the newer version will arrive, and be decided on
        except (InputError, RunError) as error:
            self._complain(error)
            return False
        if action.what != "shorten_grace":
            released = "released; it has ended and stays for its TTL" if holds.has_ended(action.job) else "released; others hold it"
            done = "deleted with its pods" if action.what == "delete" else released
            with logs.about(**_fields(action.job)):
                self._say(f"reap: {kind.kind} {namespace}/{name}: {action.why}: {done}")
            self.metrics.acted(action.what, len(action.ended))
        return True

    def _complain(self, error: Exception) -> None:
        self.metrics.failed()
        with logs.about(level="error"):
            self._say_once(f"reap: {error}")

    def _say_once(self, line: str) -> None:
        if line not in self._said:
            self._said.add(line)
            self._say(line)


def _fields(job: Mapping[str, Any]) -> dict[str, Any]:
    """The owner of a job from its labels, as fields of a log record."""
    labels = job["metadata"].get("labels") or {}
    found = {name: str(labels.get(f"{DOMAIN}/{name}", "")) for name in ("experiment", "arm", "point", "stage")}
    seed = str(labels.get(f"{DOMAIN}/seed", ""))
    return {**found, "seed": int(seed) if seed.isdigit() else ""}


_METADATA = ("name", "namespace", "uid", "resourceVersion", "deletionTimestamp")


def _essence(workflow: Mapping[str, Any]) -> Object:
    """The fields of a Workflow that holds need; whole Workflows can be a megabyte."""
    spec, status, metadata = workflow.get("spec") or {}, workflow.get("status") or {}, workflow["metadata"]
    return {
        "metadata": {key: metadata[key] for key in _METADATA if key in metadata},
        "spec": {key: spec[key] for key in ("activeDeadlineSeconds", "shutdown") if key in spec},
        "status": {key: status[key] for key in ("phase", "finishedAt") if key in status},
    }
