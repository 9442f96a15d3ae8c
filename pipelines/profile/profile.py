"""A run profile: where runs keep things and how their jobs look. One YAML file: the chart's ConfigMap, or a person's own.

In a pod of the pipeline it is mounted from the ConfigMap that the parameter `profile` names; on a laptop `--profile` gives it.
What one run asks for beside it (nodes, image, queue …) comes as parameters and is laid over by `Overrides`.
"""

import dataclasses
import os
from dataclasses import dataclass

from pipelines.profile.settings import JobSettings
from trainer.config import require
from trainer.errors import InputError
from trainer.storage import read_text
from trainer.storage.base import MissingObject

PROFILE_VARIABLE = "FIRSTSIGHT_PROFILE"
"""Path or URI of the profile; unset: the mounted one, and where there is none everything runs on this machine."""
MOUNTED = "/etc/firstsight/profile.yaml"
"""Where the pipeline mounts the profile's ConfigMap."""
BACKEND_VARIABLE = "FIRSTSIGHT_BACKEND"
"""Wins over the profile's `backend`: what BACKEND= on the command line says."""


@dataclass(frozen=True, kw_only=True)
class Links:
    """Where a person looks while a run goes on; each may be empty. `{experiment}` and `{namespace}` are put in.

    Attributes:
        dashboard: Grafana's page of the run.
        bucket: the object store's console.
        kubeflow: the Kubeflow UI.
    """

    dashboard: str = ""
    bucket: str = ""
    kubeflow: str = ""


@dataclass(frozen=True, kw_only=True)
class Profile:
    """What holds for all runs of one namespace.

    Attributes:
        root: store URI where a run names none.
        backend: where jobs run: this machine (local), or the cluster, training as this kind of job (pipelines/jobs/shapes/,
            which refuses one that there is not); staging and evaluation are Indexed Jobs there.
        jobs: how jobs look on a cluster; its namespace is that of the launcher unless it says another.
        staging_slices: pods that fetch one data set at the same time.
        links: for the first step of a run.
    """

    root: str = ""
    backend: str = "local"
    jobs: JobSettings = JobSettings()
    staging_slices: int = 1
    links: Links = Links()

    def __post_init__(self) -> None:
        """Check ranges."""
        require("staging_slices", self.staging_slices, ">= 1", self.staging_slices >= 1)


@dataclass(frozen=True, kw_only=True)
class Overrides:
    """What one run asks for beside its profile.

    Attributes:
        nodes: machines of the contrastive job; 0: the profile's.
        gpus_per_node: on each; -1: the profile's.
        image: the trainer's; empty: the profile's.
        queue: name of a Kueue LocalQueue (or what `jobs.queue_label` addresses); empty: the profile's.
        resume: auto, never, or the URI of a checkpoint.
    """

    nodes: int = 0
    gpus_per_node: int = -1
    image: str = ""
    queue: str = ""
    resume: str = "auto"

    def __post_init__(self) -> None:
        """Check what can be checked without a cluster."""
        require("nodes", self.nodes, ">= 1 (or 0 for the profile's)", self.nodes >= 0)
        require("gpus_per_node", self.gpus_per_node, ">= 0 (or -1 for the profile's)", self.gpus_per_node >= -1)
        require("resume", self.resume, "auto, never or a checkpoint's URI", self.resume in ("auto", "never") or "/" in self.resume)


def profile_uri() -> str:
    """Where the profile lies: at FIRSTSIGHT_PROFILE, else where it is mounted; empty: there is none."""
    return os.environ.get(PROFILE_VARIABLE, "") or (MOUNTED if os.path.exists(MOUNTED) else "")


def read_profile(uri: str = "") -> Profile:
    """The profile at `uri`, else at FIRSTSIGHT_PROFILE, else the mounted one, else the defaults: this machine.

    Raises:
        InputError: no such file, an unknown key, a value out of range.
    """
    uri = uri or profile_uri()
    profile = Profile()
    if uri:
        from trainer.configs import load_yaml, parse_config  # here: without a profile a step is not to wait for it

        try:
            text = read_text(uri)
        except MissingObject as error:
            raise InputError(f"profile {uri}: no such file") from error
        profile = parse_config(Profile, load_yaml(text, uri), source=uri)
    backend = os.environ.get(BACKEND_VARIABLE, "")
    if backend:
        profile = dataclasses.replace(profile, backend=backend)
    return profile


def use_store_of_profile() -> None:
    """What the profile says of the store holds for this process too, unless its own environment says otherwise."""
    if profile_uri():
        for name, value in read_profile().jobs.store_environment.items():
            os.environ.setdefault(name, value)


def job_settings(profile: Profile, overrides: Overrides) -> JobSettings:
    """The profile's job settings with what this run asks for laid over them."""
    jobs = profile.jobs
    changes: dict[str, object] = {}
    if overrides.nodes:
        changes["nodes"] = overrides.nodes
    if overrides.gpus_per_node >= 0:
        changes["gpus_per_node"] = overrides.gpus_per_node
    if overrides.image:
        changes["image"] = overrides.image
    if overrides.queue:
        changes["labels"] = {**jobs.labels, jobs.queue_label: overrides.queue}
    return dataclasses.replace(jobs, **changes)  # type: ignore[arg-type]
