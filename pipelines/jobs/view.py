"""The current state of one job: the job itself, its pods and the warnings about them, each followed through one watch."""

import threading
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from pipelines.cluster.connection import EVENT, POD, Cluster, Kind
from pipelines.cluster.kueue import UNQUEUED
from pipelines.cluster.watch import DELETED, SYNCED, Object
from trainer.errors import InputError, RunError


class View:
    """Follows a job in background threads. Use as a context manager; `wait` and then read."""

    def __init__(self, cluster: Cluster, kind: Kind, name: str) -> None:
        self._cluster, self._kind, self.name = cluster, kind, name
        self._changed = threading.Condition()
        self._version = self._read = 0
        self._stop = threading.Event()
        self._synced: set[str] = set()
        self._pods: dict[str, Object] = {}
        self._warnings: dict[str, Object] = {}
        self._error: Exception | None = None
        self.job: Object | None = None
        self.last: Object | None = None
        """The job as it was when it was deleted."""
        self.admission = UNQUEUED
        """For a suspended job: what its queue last reported."""

    def __enter__(self) -> "View":
        """Begin to watch."""
        events = self._cluster.watch(EVENT, fields="type=Warning", stop=self._stop)
        pods = self._cluster.watch(POD, labels=f"{self._kind.pod_label}={self.name}", stop=self._stop)
        job = self._cluster.watch(self._kind, name=self.name, stop=self._stop)
        for what, watch, take in (("job", job, self._take_job), ("pods", pods, self._take_pod), ("events", events, self._take_event)):
            threading.Thread(target=self._follow, args=(what, watch, take), name=f"watch {what}", daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        """Stop watching."""
        self._stop.set()
        self._cluster.close_streams()

    @property
    def synced(self) -> bool:
        """Whether job and pods have been listed; raises the error a watch failed with."""
        with self._changed:
            if self._error is not None:
                raise self._error
            return {"job", "pods"} <= self._synced

    def pods(self) -> list[Object]:
        """All pods of the job, by name, including those being deleted."""
        with self._changed:
            return sorted(self._pods.values(), key=lambda pod: str(pod["metadata"]["name"]))

    def warnings(self, name: str) -> list[Object]:
        """Warnings about an object, newest last."""
        with self._changed:
            found = [event for event in self._warnings.values() if event["involvedObject"].get("name") == name]
        return sorted(found, key=lambda event: str(event.get("lastTimestamp") or event.get("eventTime") or ""))

    def wait(self, seconds: float) -> None:
        """Wait until something has changed since the last call, or for this many seconds."""
        with self._changed:
            self._changed.wait_for(lambda: self._version != self._read, seconds)
            self._read = self._version

    def wake(self) -> None:
        """Let `wait` return."""
        with self._changed:
            self._version += 1
            self._changed.notify_all()

    def _follow(self, what: str, watch: Iterator[tuple[str, Object]], take: Callable[[str, Object], None]) -> None:
        try:
            for change, thing in watch:
                with self._changed:
                    if change == SYNCED:
                        self._synced.add(what)
                    else:
                        take(change, thing)
                    self.wake()
        except (InputError, RunError) as error:
            with self._changed:
                if what != "events":
                    self._error = error
                self.wake()

    def _take_job(self, change: str, job: Object) -> None:
        if change != DELETED:
            self.job = job
        elif self.job is not None and self.job["metadata"]["uid"] == job["metadata"]["uid"]:
            self.job, self.last = None, job

    def _take_pod(self, change: str, pod: Object) -> None:
        uid = pod["metadata"]["uid"]
        if change == DELETED:
            self._pods.pop(uid, None)
        else:
            self._pods[uid] = pod

    def _take_event(self, change: str, event: Object) -> None:
        about = str(event["involvedObject"].get("name", ""))
        if change == DELETED:
            self._warnings.pop(event["metadata"]["uid"], None)
        elif about == self.name or about.startswith(f"{self.name}-"):
            self._warnings[event["metadata"]["uid"]] = event


def container_status(pod: Mapping[str, Any], container: str) -> Mapping[str, Any]:
    """What the kubelet reports about a container of the pod; empty if it has reported nothing yet."""
    for status in pod.get("status", {}).get("containerStatuses") or []:
        if status["name"] == container:
            found: Mapping[str, Any] = status
            return found
    return {}


def terminations(pod: Mapping[str, Any], container: str) -> list[Mapping[str, Any]]:
    """How the container ended, before its last restart and now."""
    status = container_status(pod, container)
    return [state["terminated"] for state in (status.get("lastState") or {}, status.get("state") or {}) if "terminated" in state]
