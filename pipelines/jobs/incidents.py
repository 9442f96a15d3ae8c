"""How often a job was interrupted and resumed, counted in incidents: one restart of a group touches all its pods within a minute."""

from collections.abc import Iterable, Mapping
from typing import Any

INCIDENT_SECONDS = 60.0


class Incidents:
    """Counts what is seen of restarts and replaced pods."""

    def __init__(self) -> None:
        self.count = 0
        self._began = float("-inf")
        self._restarts: dict[str, int] = {}  # by uid of the pod
        self._uids: dict[str, set[str]] = {}  # by name of the pod
        self._set_aside: set[str] = set()  # uids of pods that a queue took away

    def add(self, now: float) -> bool:
        """Something broke; whether it begins a new incident."""
        if now - self._began < INCIDENT_SECONDS:
            return False
        self._began = now
        self.count += 1
        return True

    def observe(self, pods: Iterable[Mapping[str, Any]], now: float) -> bool:
        """Look at the pods; whether a new incident began. What had happened before the first look does not count."""
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
        """The job is suspended: those pods go, others will take their names, and that is no incident of theirs."""
        self._set_aside.update(self._restarts, (pod["metadata"]["uid"] for pod in pods))
        self.forget_pods()

    def learn(self, count: int) -> None:
        """Take over what the job itself says was counted before this launcher followed it."""
        self.count = max(self.count, count)

    def forget_pods(self) -> None:
        """The job was submitted again: its pods are new, and that is no incident of theirs."""
        self._restarts.clear()
        self._uids.clear()
