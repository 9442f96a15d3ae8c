"""Jobs on a cluster, whatever their kind: found done, adopted, replaced or created; then followed (pipelines/jobs/following.py)."""

import contextlib
import threading
from collections.abc import Callable, Iterator
from typing import Any

from pipelines.cluster.api import Conflict, Unreachable
from pipelines.cluster.connection import NODE, Cluster
from pipelines.cluster.ending import end, wait_until_gone
from pipelines.cluster.kueue import QUEUE_LABEL, Kueue
from pipelines.cluster.merge import strategic_merge
from pipelines.cluster.names import DOMAIN
from pipelines.jobs.base import JobSpec
from pipelines.jobs.owners import Holder, find_holder, is_in_pod, take
from pipelines.jobs.shapes.base import Shape
from pipelines.profile.settings import JobSettings
from trainer.config import canonical_hash
from trainer.errors import Corrupt, InputError
from trainer.storage import join, open_store
from trainer.storage.committed import NAME as COMMITTED
from trainer.storage.committed import read_committed
from trainer.storage.fence import newest_attempt, raise_attempt

RECIPE_HASH, SPEC_HASH, ATTEMPT = f"{DOMAIN}/recipe-hash", f"{DOMAIN}/spec-hash", f"{DOMAIN}/attempt"
ROOT, OUTPUT = f"{DOMAIN}/root", f"{DOMAIN}/output"
INCIDENTS = f"{DOMAIN}/incidents"
"""Annotation of a job: how often it was interrupted, counting the jobs that it replaced."""
Say = Callable[[str], None]
Object = dict[str, Any]


class Launcher:
    """Finds, adopts, replaces or creates jobs of one kind, and reports what it does."""

    def __init__(self, cluster: Cluster, shape: Shape, settings: JobSettings) -> None:
        self.cluster, self.shape, self.settings = cluster, shape, settings
        self.kueue = Kueue(cluster)
        self._holder: Holder | None = None

    @property
    def holder(self) -> Holder:
        """This run's identity as a holder of jobs."""
        if self._holder is None:
            self._holder = find_holder(self.cluster)
        return self._holder

    @property
    def in_pod(self) -> bool:
        """Whether this is a step of Kubeflow; asks no server."""
        return is_in_pod()

    def adopt_or_create(self, spec: JobSpec, say: Say, stop: threading.Event, incidents: int) -> Object | None:
        """The job on the cluster, held by this run unless it has done its work; None if `stop` was set before there was one.

        Args:
            spec: the job's spec.
            say: receives remarks about it.
            stop: set when the caller no longer waits for it.
            incidents: incidents of the job that it replaces.

        Raises:
            InputError: the name is taken by another recipe, no node is big enough, or the API server refuses the job.
            RunError: an old job was not deleted in time.
        """
        kind = self.shape.kind
        self._require_devices(spec)
        while not stop.is_set():
            job = self.find(spec)
            if job is None:
                created = self._create(spec, say, incidents)
                if created is not None:
                    return created
                continue  # another launcher was faster
            name = job["metadata"]["name"]
            if "deletionTimestamp" in job["metadata"]:
                say(f"--- {kind.kind} {name} is being deleted: waiting until it is gone")
                wait_until_gone(self.cluster, kind, name, stop=stop)
            elif self.shape.phase(job).ended:
                if self.shape.is_done(spec):  # by now: another launcher's job ended since this one was asked
                    return job
                say(f"--- an earlier {kind.kind} {name} has ended; replacing it")
                self._replace(job, stop)
            else:
                self._refuse_another(job, spec)
                adopted = take(self.cluster, kind, job, self.holder)
                if adopted is not None:
                    self._say_adopted(adopted, spec, say)
                    return adopted
        return None

    def find(self, spec: JobSpec) -> Object | None:
        """The job that makes the folder: under its name, or under the one that an older version gave it; None: there is none."""
        assert spec.identity is not None
        job = self.cluster.get(self.shape.kind, spec.identity.name)
        if job is not None:
            return job
        former = self.cluster.get(self.shape.kind, spec.identity.former_name)
        return former if former is not None and _makes(former, spec) else None

    def _replace(self, job: Object, stop: threading.Event) -> None:
        kind, metadata = self.shape.kind, job["metadata"]
        with contextlib.suppress(Conflict):  # it changed, such as when another launcher released it: look again
            end(self.cluster, kind, metadata["name"], resource_version=metadata["resourceVersion"])
            wait_until_gone(self.cluster, kind, metadata["name"], stop=stop)

    def _create(self, spec: JobSpec, say: Say, incidents: int) -> Object | None:
        """A new attempt; None if a job of this name exists by now."""
        self._require_queue()
        attempt = newest_attempt(spec.folder) + 1 if spec.final else 0
        manifest = self._rendered(spec, attempt, incidents)
        created = self.cluster.create(self.shape.kind, manifest)
        if created is None:
            return None
        if spec.final:  # after the creation: a number that another launcher's job does not carry would shut that job out
            raise_attempt(spec.folder, attempt)
        number = f", attempt {attempt}" if attempt else ""
        say(f"--- {self.shape.kind.kind} {created['metadata']['namespace']}/{created['metadata']['name']} was created{number}")
        return created

    def has_checkpoint(self, spec: JobSpec, job: Object) -> bool:
        """Whether an attempt from this job's on has committed a checkpoint: then `resume: never`, or a URI, has had its effect."""
        since = int((job["metadata"].get("annotations") or {}).get(ATTEMPT, 0))
        for entry in open_store(spec.folder).list(join(spec.folder, "checkpoints")):
            folder, _, name = entry.uri.rpartition("/")
            with contextlib.suppress(Corrupt):  # a damaged seal counts as absent
                seal = read_committed(folder) if name == COMMITTED else None
                if seal is not None and seal.attempt >= since:
                    return True
        return False

    def _rendered(self, spec: JobSpec, attempt: int, incidents: int) -> Object:
        manifest = annotated(self.shape, spec, attempt)
        if incidents:
            manifest["metadata"]["annotations"][INCIDENTS] = str(incidents)
        metadata = strategic_merge({"namespace": self.cluster.namespace}, self.holder.claim(manifest["metadata"]))
        return strategic_merge(manifest, {"metadata": metadata})

    def note_incidents(self, name: str, count: int) -> None:
        """Write on a job how often it was interrupted, for launchers that will follow it later; one that is gone has none."""
        with contextlib.suppress(Unreachable):
            self.cluster.patch(self.shape.kind, name, {"metadata": {"annotations": {INCIDENTS: str(count)}}}, once=True)

    def _refuse_another(self, job: Object, spec: JobSpec) -> None:
        annotations = job["metadata"].get("annotations") or {}
        theirs = annotations.get(RECIPE_HASH, "")
        if theirs == spec.recipe_hash:
            return
        if spec.purpose == "train":
            from trainer.storage.recipes import what_differs  # here: it reads YAML, which is slow to import

            what = what_differs(annotations.get(OUTPUT, ""), theirs, spec.recipe_hash, spec.folder)
        else:
            what = differing_arguments(job, spec)
        raise InputError(
            f"{self.shape.kind.kind} {self.cluster.namespace}/{job['metadata']['name']} runs a different recipe under this name{what}: "
            "give the experiment another name, or cancel that run first"
        )

    def _say_adopted(self, job: Object, spec: JobSpec, say: Say) -> None:
        annotations = job["metadata"].get("annotations") or {}
        where = f"--- {self.shape.kind.kind} {job['metadata']['namespace']}/{job['metadata']['name']} is already running: adopted"
        if annotations.get(SPEC_HASH) != spec_hash(self.shape, spec):
            where += ", unchanged: it was submitted with different settings (image, nodes, queue …); yours take effect once it has ended"
        say(where)

    def _require_queue(self) -> None:
        """Refuse a missing LocalQueue, if queues may be read; one that is stopped for now is waited for."""
        queue = self.settings.labels.get(QUEUE_LABEL, "")
        if queue:
            self.kueue.require(queue, active=False)

    def _require_devices(self, spec: JobSpec) -> None:
        """Report at once that no node is large enough, if nodes may be listed."""
        resource = self.settings.gpu_resource
        wanted = self.settings.gpus_per_node if spec.purpose == "train" else 0
        if not wanted:
            return
        try:
            nodes = self.cluster.list(NODE, namespace="")
        except InputError:  # not allowed: then the scheduler will say it, later
            return
        most = max((int(node.get("status", {}).get("allocatable", {}).get(resource, 0)) for node in nodes), default=0)
        if nodes and wanted > most:
            raise InputError(f"jobs.gpus_per_node must be at most {most}, the {resource} count of the largest node, got {wanted}")


def incidents_of(job: Object) -> int:
    """How often a job was interrupted, by its annotation."""
    said = str((job["metadata"].get("annotations") or {}).get(INCIDENTS, ""))
    return int(said) if said.isdecimal() else 0


def differing_arguments(job: Object, spec: JobSpec) -> str:
    """In which arguments a staging or evaluation job differs from what is asked for: its recipe hash is over them."""
    theirs = next(_arguments(job["spec"]), [])
    gone = [argument for argument in theirs if argument not in spec.arguments]
    new = [argument for argument in spec.arguments if argument not in theirs]
    if gone or new:
        return f": arguments {' '.join(gone) or '(none)'} -> {' '.join(new) or '(none)'}"
    return ": the recipe hashes of the models that it measures" if spec.purpose == "evaluate" else ": the order of its arguments"


def _arguments(part: Any) -> Iterator[list[str]]:
    """The containers' arguments, wherever this kind of job keeps them."""
    if isinstance(part, dict):
        if isinstance(part.get("args"), list):
            yield part["args"]
        part = list(part.values())
    for below in part if isinstance(part, list) else []:
        yield from _arguments(below)


def annotated(shape: Shape, spec: JobSpec, attempt: int) -> Object:
    """The manifest with the labels and annotations that later launchers, the reaper and `status` need."""
    assert spec.identity is not None
    annotations = {
        RECIPE_HASH: spec.recipe_hash,
        SPEC_HASH: spec_hash(shape, spec),
        ATTEMPT: str(attempt),
        ROOT: spec.identity.root,
        OUTPUT: spec.folder,
    }
    laid_over: Object = {"metadata": {"annotations": annotations}}
    if spec.suspended:
        *folders, last = shape.suspended_by
        below: Object = {last: True}
        for folder in reversed(folders):
            below = {folder: below}
        laid_over["spec"] = below
    return strategic_merge(shape.manifest(spec, attempt), laid_over)


def spec_hash(shape: Shape, spec: JobSpec) -> str:
    """A hash of the request without the attempt: equal for two launchers that want the same job."""
    return canonical_hash(shape.manifest(spec, 0)["spec"])


def _makes(job: Object, spec: JobSpec) -> bool:
    """Whether its annotations name this folder: a name from an older version may also belong to another job."""
    assert spec.identity is not None
    annotations = job["metadata"].get("annotations") or {}
    wanted = {ROOT: spec.identity.root, OUTPUT: spec.folder}
    return all(str(annotations.get(key, "")).rstrip("/") == uri.rstrip("/") for key, uri in wanted.items())
