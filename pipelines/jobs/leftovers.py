"""What a run holds at its end: jobs whose steps were cut off before they could let go."""

import time
from collections.abc import Iterator

from pipelines.jobs.cluster import JOB, PYTORCHJOB, TRAINJOB, Cluster, MissingKind
from pipelines.jobs.ending import wait_until_gone
from pipelines.jobs.naming import DOMAIN
from pipelines.jobs.owners import find_holder, release
from pipelines.profile import Profile


def release_all(profile: Profile, experiment: str) -> Iterator[str]:
    """Let go of every job of the experiment that this run holds; says what became of each.

    A job that has ended stays for its TTL; of one that runs the last one out deletes it.
    """
    cluster = Cluster.connect(profile.jobs.namespace)
    holder = find_holder(cluster)
    kinds = (TRAINJOB if profile.backend == "trainjob" else PYTORCHJOB, JOB)
    for kind in kinds:
        try:
            jobs = cluster.list(kind, labels=f"app.kubernetes.io/part-of=firstsight,{DOMAIN}/experiment={experiment}")
        except MissingKind:
            continue
        for job in jobs:
            if not holder.holds(job):
                continue
            name, ended = job["metadata"]["name"], _has_ended(job)
            deleting, others = release(cluster, kind, name, holder, time.time(), keep=ended)
            if deleting:
                wait_until_gone(cluster, kind, name)
            if not ended:
                yield f"{kind.kind} {name}: " + (f"left to {', '.join(others)}" if others else "deleted")


def _has_ended(job: dict[str, object]) -> bool:
    status = job.get("status")
    conditions = status.get("conditions") if isinstance(status, dict) else None
    ends = ("Succeeded", "Failed", "Complete")
    return any(entry["type"] in ends and entry["status"] == "True" for entry in conditions or [])
