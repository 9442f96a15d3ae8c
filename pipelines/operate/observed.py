"""The reaper's metrics about jobs and runs, computed from its objects at each scrape, so that no series outlives its object."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from prometheus_client.core import GaugeMetricFamily
from prometheus_client.registry import Collector

from pipelines.cluster.names import DOMAIN
from pipelines.jobs.holds import posix_time
from pipelines.jobs.shapes import shape_of

Object = Mapping[str, Any]
WORKFLOW_PREFIX = "firstsight-"
"""Kubeflow names a run's Workflow after the pipeline's own name, whatever name it was registered under."""
JOB_LABELS = ("run_namespace", "job_name", "experiment", "cell", "arm", "point", "seed", "stage", "phase")
"""`namespace` and `job` are not available as labels: Prometheus sets them to those of the scraped target, the reaper."""


class Observed(Collector):
    """`firstsight_job_phase` and `firstsight_run_failed_timestamp_seconds`."""

    def __init__(self, look: Callable[[], tuple[Sequence[Object], Sequence[Object]]]) -> None:
        """`look` returns the labelled jobs and the Workflows that are currently known."""
        self._look = look

    def collect(self) -> Iterable[GaugeMetricFamily]:
        """Both families."""
        jobs, workflows = self._look()
        phases = GaugeMetricFamily("firstsight_job_phase", "1 for the phase of each job that exists.", labels=JOB_LABELS)
        for job in jobs:
            phases.add_metric(_labels(job), 1)
        failed = GaugeMetricFamily(
            "firstsight_run_failed_timestamp_seconds", "When a run in Kubeflow failed.", labels=("run_namespace", "run")
        )
        for workflow in workflows:
            finished = _failed_at(workflow)
            if finished is not None:
                failed.add_metric((workflow["metadata"]["namespace"], workflow["metadata"]["name"]), finished)
        return phases, failed


def _labels(job: Object) -> tuple[str, ...]:
    metadata = job["metadata"]
    labels = metadata.get("labels") or {}
    ours = (str(labels.get(f"{DOMAIN}/{name}", "")) for name in JOB_LABELS[2:-1])
    return metadata.get("namespace", ""), metadata["name"], *ours, shape_of(job).phase(job).name


def _failed_at(workflow: Object) -> float | None:
    """POSIX time at which one of our runs failed; None if it did not, or was terminated by a user."""
    spec, status = workflow.get("spec") or {}, workflow.get("status") or {}
    terminated = spec.get("activeDeadlineSeconds") == 0 or spec.get("shutdown")
    if terminated or status.get("phase") not in ("Failed", "Error") or not workflow["metadata"]["name"].startswith(WORKFLOW_PREFIX):
        return None
    return posix_time(status.get("finishedAt") or "")
