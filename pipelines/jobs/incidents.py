"""Count how often a job was interrupted and resumed, in incidents: one group restart affects all its pods within a minute."""

from collections.abc import Iterable, Mapping
from typing import Any

INCIDENT_SECONDS = 60.0


class Incidents:
    """Counts restarts and replacements of pods."""

    def __init__(self) -> None:
        self.count = 0
        self._began = float("-inf")
        self._restarts: dict[str, int] = {}  # by uid of the pod
        self._uids: dict[str, set[str]] = {}  # by name of the pod
        self._set_aside: set[str] = set()  # uids of pods that a queue took away

    def add(self, now: float) -> bool:
        """Record an interruption; returns whether it begins a new incident."""
        if now - self._began < INCIDENT_SECONDS:
            return False
        self._began = now
        self.count += 1
        return True

    def observe(self, pods: Iterable[Mapping[str, Any]], now: float) -> bool:
        """Inspect the pods; returns whether a new incident began. Events before the first inspection do not count."""
        broke = False
        for pod in pods:
            name, uid = pod["metadata"]["name"], pod["metadata"]["uid"]
            if uid in self._set_aside:
                continue
            restarts = sum(int(status.get("restartCount", 0)) for status in pod.get("status", {}).get("containerStatuses") or [])
            uids = self._uids.setdefault(name, set())
            broke = broke or (bool(uids) and uid not in uids) or restarts > self._restarts.get(uid, 0 if uids else restarts)
            uids.add(uid)
            self._restarts[uid] = restarts
        return broke and self.add(now)

    def set_aside(self, pods: Iterable[Mapping[str, Any]]) -> None:
        """The job is suspended: its pods will be replaced by others of the same names, which is not an incident."""
        self._set_aside.update(self._restarts, (pod["metadata"]["uid"] for pod in pods))
        self.forget_pods()

    def learn(self, count: int) -> None:
        """Take over the count recorded on the job before this launcher followed it."""
        self.count = max(self.count, count)

    def forget_pods(self) -> None:
        """The job was submitted again: its pods are new, which is not an incident."""
        self._restarts.clear()
        self._uids.clear()
