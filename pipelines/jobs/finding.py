"""Find firstsight's jobs, by label alone, so that no other jobs are ever touched."""

from typing import Any

from pipelines.cluster.connection import Cluster, Kind, MissingKind
from pipelines.cluster.names import DOMAIN, label_value
from pipelines.jobs.shapes import job_kinds

PART_OF = "app.kubernetes.io/part-of=firstsight"
IDENTITY = ("experiment", "arm", "point", "seed", "stage", "cell")
"""The identity labels, in the order in which jobs are listed; commit ad127be and earlier had no `cell` and no `point`."""
Found = list[tuple[Kind, dict[str, Any]]]


def find_jobs(cluster: Cluster, namespace: str | None = None, **labels: str) -> Found:
    """The jobs with these labels, of every kind that the cluster serves.

    Args:
        cluster: where they are.
        namespace: None: the cluster's own; "": all.
        **labels: values of the labels `firstsight.dev/<name>`; an empty one does not count.
    """
    selector = ",".join([PART_OF, *(f"{DOMAIN}/{name}={label_value(value)}" for name, value in labels.items() if value)])
    found: Found = []
    for kind in job_kinds():
        try:
            found += [(kind, job) for job in cluster.list(kind, labels=selector, namespace=namespace)]
        except MissingKind:
            continue  # then there are none of it
    return sorted(found, key=lambda entry: tuple(identity_of(entry[1]).values()))


def identity_of(job: dict[str, Any]) -> dict[str, str]:
    """The value of each IDENTITY label; empty if it is missing."""
    labels = job["metadata"].get("labels") or {}
    return {name: str(labels.get(f"{DOMAIN}/{name}", "")) for name in IDENTITY}
