"""Staging and evaluation as an Indexed Job (batch/v1): as many pods as slices, and a failed pod is recreated on its own."""

import dataclasses
from collections.abc import Mapping
from typing import Any

from pipelines.cluster.connection import Kind
from pipelines.jobs.base import JobSpec, placement_arguments
from pipelines.jobs.shapes.base import Phase, Shape, phase_of
from pipelines.jobs.shapes.pod import pod_template
from pipelines.profile.settings import JobSettings
from trainer.errors import InputError

JOB = Kind("batch/v1", "jobs", "Job", pod_label="batch.kubernetes.io/job-name")
CONTAINER = "trainer"
RETRIES = 3
"""Retries per slice; pods lost with their node do not count."""
INDEX_LABEL = "batch.kubernetes.io/job-completion-index"


class IndexedJobs(Shape):
    """How the launcher creates and reads Indexed Jobs."""

    kind = JOB
    container = CONTAINER

    def manifest(self, spec: JobSpec, attempt: int) -> dict[str, Any]:
        """The Job; its pods read which slice is theirs from JOB_COMPLETION_INDEX, which the controller sets."""
        assert spec.identity is not None
        settings, labels = sized(self._settings, spec.purpose), spec.identity.labels()
        arguments = [*spec.arguments, *placement_arguments(spec.placement)]
        template = pod_template(
            settings, CONTAINER, arguments, labels, {}, spec.environment, purpose=spec.purpose, placement=spec.placement, metrics=False
        )
        template["spec"]["restartPolicy"] = "Never"
        return {
            "apiVersion": JOB.api_version,
            "kind": JOB.kind,
            "metadata": {
                "name": spec.identity.name,
                "namespace": settings.namespace,
                "labels": {**settings.labels, **labels},
                "annotations": dict(settings.annotations),
            },
            "spec": {
                "completionMode": "Indexed",
                "completions": spec.slices,
                "parallelism": spec.slices,
                "backoffLimitPerIndex": RETRIES,
                "maxFailedIndexes": max(
                    1, spec.slices // 10
                ),  # a few slices may be unlucky; if more fail, something is wrong with all of them
                "podFailurePolicy": {
                    "rules": [
                        {
                            "action": "FailJob",
                            "onExitCodes": {"containerName": CONTAINER, "operator": "In", "values": [InputError.exit_code]},
                        },
                        {"action": "Ignore", "onPodConditions": [{"type": "DisruptionTarget", "status": "True"}]},
                    ]
                },
                "ttlSecondsAfterFinished": settings.ttl_seconds,
                "template": template,
            },
        }

    def phase(self, job: Mapping[str, Any]) -> Phase:
        """The phase according to its conditions; a failure names the slices that failed."""
        phase = phase_of(job, bool(job["spec"].get("suspend")), succeeded="Complete")
        failed = str(job.get("status", {}).get("failedIndexes") or "")
        if phase.name != "failed" or not failed or job["spec"].get("completions") == 1:
            return phase
        return dataclasses.replace(phase, message=f"slices {failed.replace(',', ', ')} failed: {phase.message}")

    def pods_wanted(self, job: Mapping[str, Any]) -> int:
        """One per slice, minus those that are done."""
        return max(0, int(job["spec"].get("parallelism", 1)) - int(job.get("status", {}).get("succeeded") or 0))

    def is_leader(self, pod: Mapping[str, Any]) -> bool:
        """The pod of slice 0 speaks for all: every slice does the same work."""
        return is_of_index_0(pod)

    def is_done(self, spec: JobSpec) -> bool | None:
        """None: its command finds out what is already done, and the Job's own conditions say whether it succeeded."""
        return None


def sized(settings: JobSettings, purpose: str) -> JobSettings:
    """The settings of one pod of such a job: one process, for staging on CPUs, for evaluation with one GPU at most."""
    if purpose == "stage":
        return dataclasses.replace(settings, ranks_per_node=0, gpus_per_node=0, cpu=settings.staging_cpu, memory=settings.staging_memory)
    return dataclasses.replace(settings, ranks_per_node=0, gpus_per_node=min(settings.gpus_per_node, 1))


def is_of_index_0(pod: Mapping[str, Any]) -> bool:
    """Whether a pod belongs to the first index of an Indexed Job."""
    return bool((pod["metadata"].get("labels") or {}).get(INDEX_LABEL) == "0")


SHAPE = IndexedJobs
