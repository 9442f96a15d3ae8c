"""What another arm of the same seed measured already: the untrained model and a shared tower are the same for all of them.

Their figures are taken over, under the own arm's name, so that every cell's folder is complete. No torch here.
"""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from trainer.config import EvaluateConfig
from trainer.errors import InputError, RunError
from trainer.evaluation.jobs import Job
from trainer.evaluation.results import Wanted, why_not_done
from trainer.storage import join, layout, read_bytes, read_json, write_bytes, write_json
from trainer.storage.plans import read_plan

SHARED_STAGES = ("untrained", "perceptual")


def take_over(config: EvaluateConfig, missing: Sequence[Job]) -> list[Job]:
    """Copy what the experiment's other cells of this seed have measured of the same model on the same set.

    Args:
        config: of this cell's evaluation; its output lies in the cell's folder, the plan beside the cells.
        missing: what this cell lacks.

    Returns:
        What is still to be measured.
    """
    places = _siblings(config) if any(job.model.stage in SHARED_STAGES for job in missing) else []
    left = []
    for job in missing:
        candidates = [replace(job.wanted, folder=join(place, job.model.name)) for place in places if job.model.stage in SHARED_STAGES]
        theirs = next((wanted for wanted in candidates if why_not_done(wanted) is None), None)
        if theirs is None:
            left.append(job)
        else:
            _copy(theirs, job.wanted, layout.cell_name(config.arm, config.seed, config.point))
    if len(left) < len(missing):
        print(f"evaluate: {len(missing) - len(left)} results of models that arms share taken over from other cells", flush=True)
    return left


def _siblings(config: EvaluateConfig) -> list[str]:
    """Evaluation folders of the experiment's other cells of this seed; none where there is no plan beside the cells."""
    own = config.output.rstrip("/")
    try:
        plan: Any = read_plan(own.rsplit("/", 2)[0])
        cells = [(str(cell["evaluation"]).rstrip("/"), cell["seed"]) for cell in plan["cells"]]
    except (InputError, RunError, KeyError, TypeError):
        return []
    return [place for place, seed in cells if seed == config.seed and place != own]


def _copy(theirs: Wanted, own: Wanted, model: str) -> None:
    """Items, then figures, as a measurement writes them."""
    value = read_json(theirs.json_uri)
    block = {**value["firstsight"], **{key: own.block[key] for key in ("experiment", "arm", "seed")}}
    write_bytes(own.items_uri, read_bytes(theirs.items_uri))
    write_json(own.json_uri, {**value, "model": model, "firstsight": block})
