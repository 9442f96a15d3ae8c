"""A run profile: where runs keep things and how their jobs look. One YAML file: the chart's ConfigMap, or a person's own.

In a pod of the pipeline it is mounted from the ConfigMap that the parameter `profile` names; on a laptop `--profile` gives it.
What one run asks for beside it (nodes, image, queue, placement …) is in its request and overrides the profile.
"""

import dataclasses
import os
from dataclasses import dataclass, field
from typing import Any

from pipelines.planning.parameters import check_root, one_line
from pipelines.planning.request import MAX_PARALLEL_CELLS, Request
from pipelines.profile.confined import Limits, check_places, check_request
from pipelines.profile.settings import JobSettings, check_metrics_port
from trainer.config import Placement, require
from trainer.errors import InputError
from trainer.redaction import holds_credentials
from trainer.storage import confined, read_text
from trainer.storage.base import MissingObject

PROFILE_VARIABLE = "FIRSTSIGHT_PROFILE"
"""Path or URI of the profile; unset: the mounted one, and where there is none everything runs on this machine."""
MOUNTED = "/etc/firstsight/profile.yaml"
"""Where the pipeline mounts the profile's ConfigMap."""


@dataclass(frozen=True, kw_only=True)
class Links:
    """Where a person looks during a run; each may be empty. `{experiment}` and `{namespace}` are put in, other braces stay.

    Attributes:
        dashboard: Grafana's page of the run.
        bucket: the object store's console.
        kubeflow: the Kubeflow UI.
    """

    dashboard: str = ""
    bucket: str = ""
    kubeflow: str = ""

    def __post_init__(self) -> None:
        """They end up in one line of Markdown."""
        for item in dataclasses.fields(self):
            address = getattr(self, item.name)
            require(f"links.{item.name}", address, "an address on one line", address.isprintable())
            require(f"links.{item.name}", "***", "an address without credentials: runs show it", not holds_credentials(address))


@dataclass(frozen=True, kw_only=True)
class Profile:
    """What holds for all runs of one namespace.

    Attributes:
        root: store URI where a run names none.
        backend: where jobs run: this machine (local), or the cluster, training as this kind of job (pipelines/jobs/shapes/,
            which refuses an unknown one); staging and evaluation are Indexed Jobs there.
        jobs: how jobs look on a cluster; its namespace is that of the launcher unless it says another.
        placement: how a stage runs (fields of the trainer's Placement) where a run does not say otherwise.
        staging_slices: pods that fetch one data set at the same time.
        parallel_cells: cells of a run that run at once, where it does not say; 0: all are submitted to the queue.
        links: for the first step of a run.
        reads: what else than the root its runs may use: store URIs and folders. None, as in your own profile: anything.
        limits: the most that a run may ask for.
    """

    root: str = ""
    backend: str = "local"
    jobs: JobSettings = JobSettings()
    placement: dict[str, Any] = field(default_factory=dict)
    staging_slices: int = 1
    parallel_cells: int = 1
    links: Links = Links()
    reads: tuple[str, ...] | None = None
    limits: Limits = Limits()

    def __post_init__(self) -> None:
        """Check ranges."""
        check_root(one_line("root", self.root))
        require("staging_slices", self.staging_slices, ">= 1", self.staging_slices >= 1)
        rule = f"between 0 and {MAX_PARALLEL_CELLS}"
        require("parallel_cells", self.parallel_cells, rule, 0 <= self.parallel_cells <= MAX_PARALLEL_CELLS)
        rule = "s3://bucket/prefix or an absolute path, without '.', '..', '//', any of % * ? $, backslashes and blanks"
        for address in self.reads or ():
            require("reads", address, rule, confined.is_plain(address))
        if self.reads is not None:
            require("root", self.root, f"{rule}, if `reads` restricts runs to it", confined.is_plain(self.root))

    @property
    def places(self) -> tuple[str, ...] | None:
        """Below which its runs may use a store; None: anywhere."""
        return None if self.reads is None else (self.root, *self.reads)

    def check_address(self, named: str, value: Any) -> None:
        """Refuse what names an address, anywhere in `value`, that runs of this profile may not use; `named` begins the error."""
        if self.places is not None:
            check_places(named, value, self.places, paths=self._judges_paths)

    def check_root(self, named: str, root: str) -> None:
        """Refuse a root that does not lie below the profile's own: what it may read elsewhere it may not write."""
        if self.reads is not None:
            remedy = "runs write there, so listing it in `reads` does not help: leave it out, or name a place below the profile's root"
            check_places(named, root, (self.root,), paths=_in_pod(), remedy=remedy)

    def check_addresses(self, request: Request) -> None:
        """`check_address` for each field that a request declares."""
        self.check_root("root", request.root)
        if self.places is not None:
            check_request(request, self.places, paths=self._judges_paths)

    @property
    def _judges_paths(self) -> bool:
        """Whether paths may be a volume that tenants share: in a pod, or where jobs are pods."""
        return self.backend != "local" or _in_pod()


def _in_pod() -> bool:
    """Whether this process runs in a pod."""
    return "KUBERNETES_SERVICE_HOST" in os.environ or _in_step()


def _in_step() -> bool:
    """Whether this process is a step of a run on Kubeflow."""
    return "KFP_POD_NAME" in os.environ


def profile_uri() -> str:
    """Where the profile lies: at FIRSTSIGHT_PROFILE, else where it is mounted; empty: there is none."""
    return os.environ.get(PROFILE_VARIABLE, "") or (MOUNTED if os.path.exists(MOUNTED) else "")


def read_profile(uri: str = "", backend: str = "") -> Profile:
    """The profile at `uri`, else at FIRSTSIGHT_PROFILE, else the mounted one, else the defaults: this machine.

    Args:
        uri: of the profile; empty: where this process finds it.
        backend: what a run asks for; empty: the profile's.

    Raises:
        InputError: no such file, an unknown key, a value out of range; a backend that would lead past the profile's limits.
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
            require(f"{uri}: placement", "attempt", "without attempt, which only the launcher sets", "attempt" not in profile.placement)
            parse_config(Placement, profile.placement, source=f"{uri}: placement")
    if backend:
        if backend == "local" != profile.backend and profile.places is not None and _in_step():
            raise InputError(
                "backend is 'local', which is this step's own pod and bypasses all queues and limits of the profile: "
                f"leave it out to use {profile.backend}"
            )
        profile = dataclasses.replace(profile, backend=backend)
    return profile


def use_store_of_profile() -> None:
    """What the profile says of the store holds for this process too, unless its own environment says otherwise; its bounds hold always."""
    if uri := profile_uri():
        profile = read_profile()
        for name, value in profile.jobs.store_environment.items():
            os.environ.setdefault(name, value)
        os.environ.update(_bounds(profile, *([uri] if uri.startswith("s3://") else [])))


def _bounds(profile: Profile, *more: str) -> dict[str, str]:
    """The variable by which every process of a run is kept to the profile's places, and to `more` of them."""
    return {} if profile.places is None else {confined.VARIABLE: " ".join((*profile.places, *more))}


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
        InputError: more than one node where jobs run on this machine, or more than the profile allows.
    """
    jobs, placement = profile.jobs, placement_of(profile, request)
    nodes = request.nodes or placement.get("nodes")
    if profile.backend == "local":
        require("nodes", nodes, "1 if the backend is local", nodes in (None, 1))
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
    if profile.backend != "local":
        changes["metrics_port"] = _metrics_port(profile, request)
    if request.image:
        changes["image"] = request.image
    if request.queue:
        changes["labels"] = {**jobs.labels, jobs.queue_label: request.queue}
    changes["store_environment"] = {**jobs.store_environment, **_bounds(profile)}
    settings = dataclasses.replace(jobs, **changes)  # type: ignore[arg-type]
    if profile.backend != "local":
        _check_limits(profile, request, settings)
    return settings


def _metrics_port(profile: Profile, request: Request) -> int:
    """The profile's port, which is the one that network policies open to Prometheus: a run cannot choose another."""
    port = profile.placement.get("metrics_port", profile.jobs.metrics_port)
    check_metrics_port("placement.metrics_port", port)
    asked = request.placement.get("metrics_port", port)
    if asked != port:
        raise InputError(
            f"placement.metrics_port is {asked}, but on a cluster Prometheus may only connect to the profile's port, {port}: leave it out, "
            "or change jobs.metricsPort in the chart's values (jobs.metrics_port in a profile of your own)"
        )
    return int(port)


def _check_limits(profile: Profile, request: Request, settings: JobSettings) -> None:
    """Refuse a run that asks for more than its profile allows."""
    cells = parallel_cells_of(profile, request)
    if profile.limits.gpus and cells != 1:
        cells = min(cells or len(request.cells), len(request.cells))
    named = "nodes" if request.nodes else "placement.nodes" if "nodes" in request.placement else ""
    named = named or f"{'placement' if 'nodes' in profile.placement else 'jobs'}.nodes of the profile"
    profile.limits.check(
        nodes=(named, settings.nodes),
        gpus_per_node=("jobs.gpus_per_node of the profile" if request.gpus_per_node is None else "gpus_per_node", settings.gpus_per_node),
        cells=("parallel_cells", cells),
        image=request.image,
        queue=settings.labels.get(settings.queue_label, ""),
    )
