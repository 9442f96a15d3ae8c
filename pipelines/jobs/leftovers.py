"""Release what a run still holds at its end: jobs whose steps were killed before they could release them."""

import time
from collections.abc import Iterator

from pipelines.cluster.connection import Cluster
from pipelines.cluster.ending import wait_until_gone
from pipelines.jobs.finding import find_jobs
from pipelines.jobs.holds import has_ended
from pipelines.jobs.owners import find_holder, release


def release_all(namespace: str, experiment: str) -> Iterator[str]:
    """Release every job of the experiment that this run holds; reports what happened to those that had not ended.

    A job that has ended stays for its TTL; a running one is deleted by the last run to release it.

    Args:
        namespace: of the jobs; empty: the launcher's own.
        experiment: its name.
    """
    cluster = Cluster.connect(namespace)
    holder = find_holder(cluster)
    for kind, job in find_jobs(cluster, experiment=experiment):
        if not holder.holds(job):
            continue
        name, ended = job["metadata"]["name"], has_ended(job)
        deleting, others = release(cluster, kind, name, holder, time.time(), keep=ended, all_steps=True)
        if deleting:
            wait_until_gone(cluster, kind, name)
        if not ended:
            yield f"{kind.kind} {name}: " + (f"left to {', '.join(others)}" if others else "deleted")
