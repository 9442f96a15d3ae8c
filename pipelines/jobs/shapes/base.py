"""What distinguishes one kind of job from another: its manifest, and how its status is read. The launcher does the rest for all kinds."""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, Self

from pipelines.cluster.api import Api
from pipelines.cluster.connection import Kind
from pipelines.jobs.base import JobSpec
from pipelines.profile.settings import JobSettings
from trainer.storage.committed import read_final


@dataclass(frozen=True, kw_only=True)
class Phase:
    """The state of a job, as reported by its controller.

    Attributes:
        name: suspended (a queue holds it), active (it is being created, starting or running), succeeded or failed (it has ended).
        message: the controller's words about the end.
    """

    name: Literal["suspended", "active", "succeeded", "failed"]
    message: str = ""

    @property
    def ended(self) -> bool:
        """Whether the job has reached a final state."""
        return self.name in ("succeeded", "failed")


class Shape(ABC):
    """One kind of job.

    Attributes:
        kind: as the API server knows it.
        container: the pod's container whose log and exit code count.
        backend: the value of a profile's `backend` that selects it for training; empty: not for training.
        about: for kinds that train, their description in the chart's values.
        suspended_by: path below `spec` of the field that says whether a queue holds the job.
        longest_name: maximum length of a job's name for which its controller can create everything it needs.
    """

    kind: ClassVar[Kind]
    container: ClassVar[str]
    backend: ClassVar[str] = ""
    about: ClassVar[str] = ""
    suspended_by: ClassVar[tuple[str, ...]] = ("suspend",)
    longest_name: ClassVar[int] = 63

    def __init__(self, settings: JobSettings) -> None:
        self._settings = settings

    @abstractmethod
    def manifest(self, spec: JobSpec, attempt: int) -> dict[str, Any]:
        """The object to create. For attempt 0, two launchers ask for the same job only if their manifests are equal."""

    @abstractmethod
    def phase(self, job: Mapping[str, Any]) -> Phase:
        """The job's state."""

    @abstractmethod
    def pods_wanted(self, job: Mapping[str, Any]) -> int:
        """How many pods run at the same time when all is well."""

    @abstractmethod
    def is_leader(self, pod: Mapping[str, Any]) -> bool:
        """Whether its log is the one to follow."""

    def served_by(self, api: Api) -> Self:
        """This shape in the form that the server accepts; itself if all known versions accept the same form.

        Raises:
            InputError: the cluster does not serve the kind, or in a form that is not known here.
        """
        return self

    def is_done(self, spec: JobSpec) -> bool | None:
        """Whether the store holds what the job was meant to produce; None: the job's phase decides.

        For a training stage the seal decides, whatever the job's conditions are.
        """
        return is_sealed(spec)


def phase_of(job: Mapping[str, Any], suspended: bool, *, succeeded: str) -> Phase:
    """The phase, according to the conditions that say how the job ended."""
    true = {entry["type"]: entry for entry in job.get("status", {}).get("conditions") or [] if entry["status"] == "True"}
    if succeeded in true:
        return Phase(name="succeeded", message=str(true[succeeded].get("message", "")))
    if "Failed" in true:
        return Phase(name="failed", message=str(true["Failed"].get("message", "")))
    return Phase(name="suspended" if suspended else "active")


def is_sealed(spec: JobSpec) -> bool:
    """Whether the stage was finished with exactly this recipe and everything its seal names is intact, by the trainer's own criteria."""
    seal, damaged = read_final(spec.folder)
    return seal is not None and seal.recipe_hash == spec.recipe_hash and not damaged
