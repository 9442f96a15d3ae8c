"""The specification of a job, and the protocol of the backends that run it."""

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

from pipelines.cluster.names import Identity

LineSink = Callable[[str], None]
Purpose = Literal["train", "stage", "evaluate", "report"]


@dataclass(frozen=True, kw_only=True)
class JobSpec:
    """One command of `python -m trainer`.

    Attributes:
        name: for people, unique in a run: `contrastive perceptual-seed0`.
        arguments: after `python -m trainer`.
        folder: URI of the folder that gets the job's log.txt, and failure.json if it fails.
        environment: variables in addition to those of the caller.
        purpose: what it does; it chooses the backend: a report always runs in place.
        identity: what makes it the same job again; None: it can run on this machine only.
        recipe_hash: for a training stage, the hash that the seal of `final` must carry.
        final: of a training stage, URI of its final/.
        slices: of a staging or evaluation job, how many pods share the work.
        placement: of training and evaluation: fields of the trainer's Placement that the profile or the request sets.
        resume: of a training stage: auto, never (start over), or the URI of a checkpoint to start from.
        suspended: on a cluster: created suspended, for a queue to admit it.
    """

    name: str
    arguments: tuple[str, ...]
    folder: str
    environment: Mapping[str, str] = field(default_factory=dict)
    purpose: Purpose = "report"
    identity: Identity | None = None
    recipe_hash: str = ""
    final: str = ""
    slices: int = 1
    placement: Mapping[str, Any] = field(default_factory=dict)
    resume: str = "auto"
    suspended: bool = False


def placement_arguments(placement: Mapping[str, Any]) -> list[str]:
    """Arguments of `python -m trainer` that set fields of its placement, in the YAML form in which it reads them."""
    values = {name: json.dumps(value) if not isinstance(value, str) else value for name, value in placement.items()}
    return [part for name, value in values.items() for part in ("--set", f"placement.{name}={value}")]


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """How a job ended.

    Attributes:
        exit_code: 0, 1 (failed during the run), 2 (wrong input), or minus the number of the signal that killed it.
        line: the one line that says why; empty if it succeeded.
    """

    exit_code: int
    line: str


class Job(Protocol):
    """A job that was submitted."""

    def logs(self, sink: LineSink) -> None:
        """Pass every line of its output to `sink`, until the output ends."""
        ...

    def watch(self) -> Outcome | None:
        """How it ended, or None while it runs. Does not wait."""
        ...

    def cancel(self) -> None:
        """End it and all that it started, and wait until nothing of it is left."""
        ...

    def leave(self) -> None:
        """The caller is shutting down.

        On this machine and from a shell the caller releases its hold, and the last one to leave ends the job. In a pod of Kubeflow
        nothing happens: there the reaper finds out whether the run was stopped or only its node was drained.
        """
        ...


class Backend(Protocol):
    """Where jobs run."""

    def submit(self, spec: JobSpec) -> Job:
        """Start the job, or join the one that is already running."""
        ...
