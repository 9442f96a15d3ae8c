"""Which backend runs a job: this machine, or the cluster that the profile (pipelines/profile/profile.py) names."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path

from pipelines.jobs.base import Backend, JobSpec
from pipelines.jobs.local import LocalBackend
from pipelines.jobs.shapes import LOCAL, by_backend, require_backend
from pipelines.jobs.shapes.base import Shape
from pipelines.jobs.shapes.indexed import IndexedJobs
from pipelines.planning.request import Request
from pipelines.profile.profile import Profile, job_settings
from pipelines.profile.settings import OWN_TEMPLATES, JobSettings
from trainer.errors import InputError
from trainer.storage.base import local_path

ONE_NODE = ("perceptual", "posthoc")
"""Stages that train on about ten thousand triplets, too few for more than one machine."""


def backend_for(spec: JobSpec, profile: Profile, request: Request, keep_open: Sequence[int] = ()) -> Backend:
    """The backend of one job.

    Args:
        spec: the job's spec.
        profile: the settings for all runs of its namespace.
        request: what this run asks for.
        keep_open: file descriptors that a local job inherits.

    Raises:
        InputError: an unknown backend, no cluster in this kubeconfig, or a store that pods cannot reach.
    """
    require_backend(profile.backend)
    if profile.backend == LOCAL or spec.purpose == "report":
        return LocalBackend(keep_open=keep_open)
    settings = stage_settings(profile, request, spec)
    assert spec.identity is not None, spec.name
    require_reachable(spec.identity.root, settings)
    from pipelines.cluster.connection import Cluster  # imported here: on this machine no Kubernetes client is needed
    from pipelines.jobs.following import ClusterBackend
    from pipelines.jobs.launcher import Launcher

    cluster = Cluster.connect(settings.namespace)
    shape = shape_for(profile.backend, spec, settings).served_by(cluster.api)
    return ClusterBackend(Launcher(cluster, shape, settings))


def stage_settings(profile: Profile, request: Request, spec: JobSpec) -> JobSettings:
    """The settings of this job: the profile's, then the run's; some stages never take more than one machine."""
    settings = job_settings(profile, request)
    one = spec.purpose != "train" or (spec.identity is not None and spec.identity.stage in ONE_NODE)
    return dataclasses.replace(settings, nodes=1) if one else settings


def shape_for(backend: str, spec: JobSpec, settings: JobSettings) -> Shape:
    """What this kind of job looks like on that backend."""
    return by_backend()[backend](settings) if spec.purpose == "train" else IndexedJobs(settings)


def require_reachable(root: str, settings: JobSettings) -> None:
    """Reject a root on this machine's disk unless the pods for every purpose mount a volume at exactly that path."""
    path = local_path(root)
    if path is not None and not all(is_mounted(path, settings, purpose) for purpose in OWN_TEMPLATES):
        raise InputError(
            f"root must be a store that pods reach, such as s3://bucket/prefix, or in a volume that jobs.pod_template mounts, got {path}"
        )


def is_mounted(path: Path, settings: JobSettings, purpose: str) -> bool:
    """Whether pods for this purpose mount a volume at exactly that path."""
    specs = [template.get("spec") or {} for template in settings.templates(purpose).values()]
    containers = [container for spec in specs for container in spec.get("containers") or []]
    mounted = [str(mount.get("mountPath", "")) for container in containers for mount in container.get("volumeMounts") or []]
    return any(mount and path.is_relative_to(mount) for mount in mounted)
