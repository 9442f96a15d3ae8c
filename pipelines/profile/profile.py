"""A run profile: where runs keep things and how their jobs look. One YAML file: the chart's ConfigMap, or a person's own.

In a pod of the pipeline it is mounted from the ConfigMap that the parameter `profile` names; on a laptop `--profile` gives it.
What one run asks for beside it (nodes, image, queue, placement …) is in its request and wins over the profile.
"""

import dataclasses
import os
from dataclasses import dataclass, field
from typing import Any

from pipelines.planning.parameters import check_root, one_line
from pipelines.planning.request import MAX_PARALLEL_CELLS, Request
from pipelines.profile.settings import JobSettings
from trainer.config import Placement, require
from trainer.errors import InputError
from trainer.redaction import holds_credentials
from trainer.storage import read_text
from trainer.storage.base import MissingObject

PROFILE_VARIABLE = "FIRSTSIGHT_PROFILE"
"""Path or URI of the profile; unset: the mounted one, and where there is none everything runs on this machine."""
MOUNTED = "/etc/firstsight/profile.yaml"
"""Where the pipeline mounts the profile's ConfigMap."""


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

    def __post_init__(self) -> None:
        """Nothing else can be put in."""
        for item in dataclasses.fields(self):
            address = getattr(self, item.name)
            left = address.replace("{experiment}", "").replace("{namespace}", "")
            ok = address.isprintable() and not {*"{}"} & {*left}
            require(f"links.{item.name}", "***", "an address without credentials: runs show it", not holds_credentials(address))
            require(f"links.{item.name}", address, "an address in which {experiment} and {namespace} alone stand in braces", ok)


@dataclass(frozen=True, kw_only=True)
class Profile:
    """What holds for all runs of one namespace.

    Attributes:
        root: store URI where a run names none.
        backend: where jobs run: this machine (local), or the cluster, training as this kind of job (pipelines/jobs/shapes/,
            which refuses one that there is not); staging and evaluation are Indexed Jobs there.
        jobs: how jobs look on a cluster; its namespace is that of the launcher unless it says another.
        placement: how a stage runs (fields of the trainer's Placement) where a run does not say otherwise.
        staging_slices: pods that fetch one data set at the same time.
        parallel_cells: cells of a run that run at once, where it does not say; 0: all are submitted to the queue.
        links: for the first step of a run.
    """

    root: str = ""
    backend: str = "local"
    jobs: JobSettings = JobSettings()
    placement: dict[str, Any] = field(default_factory=dict)
    staging_slices: int = 1
    parallel_cells: int = 1
    links: Links = Links()

    def __post_init__(self) -> None:
        """Check ranges."""
        check_root(one_line("root", self.root))
        require("staging_slices", self.staging_slices, ">= 1", self.staging_slices >= 1)
        rule = f"between 0 and {MAX_PARALLEL_CELLS}"
        require("parallel_cells", self.parallel_cells, rule, 0 <= self.parallel_cells <= MAX_PARALLEL_CELLS)


def profile_uri() -> str:
    """Where the profile lies: at FIRSTSIGHT_PROFILE, else where it is mounted; empty: there is none."""
    return os.environ.get(PROFILE_VARIABLE, "") or (MOUNTED if os.path.exists(MOUNTED) else "")


def read_profile(uri: str = "", backend: str = "") -> Profile:
    """The profile at `uri`, else at FIRSTSIGHT_PROFILE, else the mounted one, else the defaults: this machine.

    Args:
        uri: of the profile; empty: where this process finds it.
        backend: what a run asks for; empty: the profile's.

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
        if profile.placement:
            require(f"{uri}: placement", "attempt", "without attempt, which the launcher alone sets", "attempt" not in profile.placement)
            parse_config(Placement, profile.placement, source=f"{uri}: placement")
    if backend:
        profile = dataclasses.replace(profile, backend=backend)
    return profile


def use_store_of_profile() -> None:
    """What the profile says of the store holds for this process too, unless its own environment says otherwise."""
    if profile_uri():
        for name, value in read_profile().jobs.store_environment.items():
            os.environ.setdefault(name, value)


def placement_of(profile: Profile, request: Request) -> dict[str, Any]:
    """How the stages of this run are placed: the profile's placement with the request's laid over it."""
    placement = {**profile.placement, **request.placement}
    if profile.backend == "local" and request.gpus_per_node is not None:
        placement = {"device": "cuda" if request.gpus_per_node else "cpu", "processes_per_node": max(request.gpus_per_node, 1), **placement}
    return placement


def parallel_cells_of(profile: Profile, request: Request) -> int:
    """How many cells of this run run at once; 0: all are submitted, suspended, to the queue. On this machine one at a time."""
    if profile.backend == "local":
        return 1
    return profile.parallel_cells if request.parallel_cells is None else request.parallel_cells


def job_settings(profile: Profile, request: Request) -> JobSettings:
    """The profile's job settings with what this run asks for laid over them.

    Raises:
        InputError: more than one node where jobs run on this machine.
    """
    jobs, placement = profile.jobs, placement_of(profile, request)
    nodes = request.nodes or placement.get("nodes")
    if profile.backend == "local":
        require("nodes", nodes, "1 where the backend is local", nodes in (None, 1))
    changes: dict[str, object] = {}
    if nodes:
        changes["nodes"] = nodes
    if request.gpus_per_node is not None:
        changes["gpus_per_node"] = request.gpus_per_node
    if "processes_per_node" in placement:
        ranks, gpus = placement["processes_per_node"], changes.get("gpus_per_node", jobs.gpus_per_node)
        rule = f"gpus_per_node {gpus}: there is one process for each GPU"
        require("placement.processes_per_node", ranks, rule, not gpus or ranks == gpus)
        changes["ranks_per_node"] = ranks
    if "metrics_port" in placement and profile.backend != "local":
        port, rule = placement["metrics_port"], "between 1024 and 65535 where jobs run on a cluster"
        require("placement.metrics_port", port, rule, 1024 <= port <= 65535)
        changes["metrics_port"] = port
    if request.image:
        changes["image"] = request.image
    if request.queue:
        changes["labels"] = {**jobs.labels, jobs.queue_label: request.queue}
    return dataclasses.replace(jobs, **changes)  # type: ignore[arg-type]
