"""`python -m trainer evaluate --config <uri>`: measure the models of one cell on every set.

Here it is decided what is missing, without torch: a job whose figures are all there returns in a second.
Figures go to `<output>/<stage>-<final or step>/<dataset>_<task>.json`.
"""

import dataclasses
import json
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from trainer import logs
from trainer.config import EvaluateConfig
from trainer.configs import read_stored
from trainer.errors import Corrupt, InputError, RunError
from trainer.evaluation.jobs import Job, find_jobs, find_models
from trainer.evaluation.results import why_not_done
from trainer.evaluation.siblings import take_over
from trainer.progress import check_stop, tell
from trainer.storage import layout
from trainer.storage.base import exists
from trainer.storage.committed import read_committed
from trainer.storage.failures import read_failure
from trainer.storage.recipes import read_config_values

WATCH_SECONDS = 30.0
"""Between two looks for new checkpoints."""
LOOKS_AT_ONCE = 8
"""Cells that `count_missing` looks at at the same time: what a look takes, it waits for the store."""


def evaluate(config_uri: str, overrides: Sequence[str] = (), watch: bool = False) -> dict[str, Any]:
    """Measure what is missing.

    Args:
        config_uri: of the cell's resolved evaluation/config.yaml.
        overrides: `dotted.key=value`.
        watch: take checkpoints and models as they appear, until every stage has its final one.

    Returns:
        {"wanted", "done" (before), "written"}.

    Raises:
        InputError: a model that is not finished or is another than planned, an unusable set (the others were measured).
        RunError: a model that is damaged or whose features are no numbers, a store that stayed down (what could be measured was),
            or, while watching, a stage that failed.
    """
    config = _read(config_uri, overrides)
    logs.bind(experiment=config.experiment, arm=config.arm, point=config.point, seed=config.seed, stage="evaluate")
    written = 0
    while watch and (waiting := unfinished(config)):
        written += _measure_missing(config, unfinished_ok=True)["written"]
        print(f"evaluate: waiting for {', '.join(waiting)}", flush=True)
        _wait(WATCH_SECONDS)
    result = _measure_missing(config, unfinished_ok=False)
    return {**result, "done": result["done"] - written, "written": result["written"] + written}


def count_missing(config_uris: Sequence[str]) -> dict[str, Any]:
    """Look at what several cells' evaluations want, and measure nothing.

    Returns:
        {"wanted", "missing"}: results in all, and those that are missing, damaged or of something else; and the same
        of each cell by its URI, in "cells".

    Raises:
        InputError: a model that is not finished or is another than planned, an unusable set.
        RunError: a model or a set that is damaged, or the store failed.
    """
    with ThreadPoolExecutor(LOOKS_AT_ONCE) as pool:
        found = dict(zip(config_uris, pool.map(_count, config_uris), strict=True))
    return {**{name: sum(one[name] for one in found.values()) for name in ("wanted", "missing")}, "cells": found}


def _count(config_uri: str) -> dict[str, int]:
    config = _read(config_uri)
    jobs, errors = find_jobs(config, [model for asked in config.models for model in find_models(config, asked)])
    if errors:
        raise errors[0]
    return {"wanted": len(jobs), "missing": sum(reason is not None for reason in why_not_done([job.wanted for job in jobs]))}


def _read(config_uri: str, overrides: Sequence[str] = ()) -> EvaluateConfig:
    return read_stored(EvaluateConfig, read_config_values(config_uri), config_uri, overrides)


def unfinished(config: EvaluateConfig) -> list[str]:
    """The stages that have no final model yet; one with a damaged seal has none. RunError if one of them left a failure.json."""
    waiting = [asked for asked in config.models if asked.stage != "untrained" and not _is_sealed(layout.final(asked.uri))]
    for asked in waiting:
        if exists(place := layout.failure(asked.uri)):
            failure = read_failure(asked.uri)
            raise RunError(f"{place}: the {asked.stage} stage failed: {failure.line if failure else 'it left no error message'}")
    return [asked.stage for asked in waiting]


def _is_sealed(folder: str) -> bool:
    try:
        return read_committed(folder) is not None
    except Corrupt:
        return False


def _wait(seconds: float) -> None:
    """Sleep, but notice a request to stop within a second."""
    until = time.monotonic() + seconds
    while (left := until - time.monotonic()) > 0:
        check_stop()
        time.sleep(min(1.0, left))


def _measure_missing(config: EvaluateConfig, unfinished_ok: bool) -> dict[str, int]:
    models = [model for asked in config.models for model in find_models(config, asked, unfinished_ok)]
    jobs, errors = find_jobs(config, models)
    reasons = why_not_done([job.wanted for job in jobs])
    missing = [job for job, reason in zip(jobs, reasons, strict=True) if reason]
    for reason in reasons:
        if reason not in (None, "missing"):
            print(f"evaluate: measured again: {reason}", flush=True)
            tell(f"evaluate {config.cell}", f"measured again: {reason}")
    missing = take_over(config, missing)
    written: list[Job] = []
    if missing:
        print(f"evaluate: placement {json.dumps(dataclasses.asdict(config.placement), sort_keys=True)}", flush=True)
        from trainer.evaluation.measure import measure  # imports torch

        measured = measure(config, missing)
        written, errors = measured.written, errors + measured.errors
        if wrong := [reason for reason in why_not_done([job.wanted for job in written]) if reason]:
            raise Corrupt(f"the store did not return what was just written: {wrong[0]}")
    if errors:
        kind = InputError if any(isinstance(error, InputError) for error in errors) else RunError
        more = f" (and {len(errors) - 1} more, named above)" if len(errors) > 1 else ""
        raise kind(f"{len(written)} of {len(missing)} missing results written; {errors[0]}{more}")
    return {"wanted": len(jobs), "done": len(jobs) - len(missing), "written": len(written)}
