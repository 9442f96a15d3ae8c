"""The kinds of job, one file each: how its manifest looks and how its status is read.

To add a kind that trains, write a file here that ends with `SHAPE = <a subclass of Shape>` and run `make generate`: profiles
accept its `backend`, the chart grants the rights to it, and status, cancel, the reaper and the checks know its jobs.
"""

import functools
from collections.abc import Mapping
from typing import Any

from pipelines.cluster.connection import Kind
from pipelines.jobs.shapes.base import Shape
from pipelines.profile.settings import JobSettings
from trainer.errors import InputError
from trainer.registry import discover

LOCAL = "local"
"""The backend that makes no jobs: this machine."""


@functools.cache
def registered() -> tuple[type[Shape], ...]:
    """All shapes: those that train, then the others."""
    found: list[type[Shape]] = discover("pipelines.jobs.shapes", "SHAPE", type)
    return tuple(sorted(found, key=lambda shape: not shape.backend))


def by_backend() -> dict[str, type[Shape]]:
    """The shapes that train, by the value of a profile's `backend`."""
    return {shape.backend: shape for shape in registered() if shape.backend}


def backends() -> tuple[str, ...]:
    """All that `backend` may say."""
    return (*by_backend(), LOCAL)


def require_backend(name: str) -> None:
    """Refuse an unknown `backend`.

    Raises:
        InputError: there is no such backend; the message names those that there are.
    """
    if name not in backends():
        raise InputError(f"backend must be one of {', '.join(sorted(backends()))}, got {name!r}")


def job_kinds() -> tuple[Kind, ...]:
    """Every kind that a job of ours may be of."""
    return tuple(shape.kind for shape in registered())


def shape_of(job: Mapping[str, Any]) -> Shape:
    """How the status of this object is read."""
    kind = (job["apiVersion"], job["kind"])
    return next(shape for shape in registered() if (shape.kind.api_version, shape.kind.kind) == kind)(JobSettings())
