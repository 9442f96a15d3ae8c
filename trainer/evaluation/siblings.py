"""What another arm of the same seed measured already: the untrained model and a shared tower are the same for all of them.

Their figures are taken over, under the own arm's name, so that every cell's folder is complete. No torch here.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from trainer.config import EvaluateConfig
from trainer.errors import Corrupt, InputError, RunError
from trainer.evaluation.jobs import Job
from trainer.evaluation.results import Wanted, why_not_done
from trainer.progress import counted
from trainer.storage import join, layout, read_bytes
from trainer.storage.base import MissingObject
from trainer.storage.figures import BLOCK, ITEMS, read_figures, write_figures
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
    shared = [job for job in missing if job.model.stage in SHARED_STAGES]
    name = layout.cell_name(config.arm, config.seed, config.point)
    taken: set[int] = set()
    for place in _siblings(config) if shared else []:
        wanted = [_at(job.wanted, join(place, job.model.name)) for job in shared]
        try:
            reasons = why_not_done(wanted)
        except InputError:  # a newer firstsight measured there
            continue
        taken |= {id(job) for job, at, reason in zip(shared, wanted, reasons, strict=True) if not reason and _copy(at, job.wanted, name)}
        shared = [job for job in shared if id(job) not in taken]
    left = [job for job in missing if id(job) not in taken]
    if len(left) < len(missing):
        print(f"evaluate: {counted(len(missing) - len(left), 'result')} of shared models reused from other cells", flush=True)
    return left


def _siblings(config: EvaluateConfig) -> list[str]:
    """Evaluation folders of the experiment's other cells of this seed; none if there is no plan beside the cells."""
    own = config.output.rstrip("/")
    try:
        plan: Any = read_plan(own.rsplit("/", 2)[0])
        cells = [(str(cell["evaluation"]).rstrip("/"), cell["seed"]) for cell in plan["cells"]]
    except (InputError, RunError, KeyError, TypeError):
        return []
    return [place for place, seed in cells if seed == config.seed and place != own]


def _at(wanted: Wanted, folder: str) -> Wanted:
    """The same result as another arm has it in its folder."""
    return replace(wanted, folder=folder, block={key: value for key, value in wanted.block.items() if key != "arm"})


def _copy(theirs: Wanted, own: Wanted, model: str) -> bool:
    """Items, then figures, as a measurement writes them; False if the items do not prove whole as they are read."""
    try:
        value, items = read_figures(theirs.json_uri), read_bytes(theirs.items_uri)
    except (MissingObject, Corrupt):
        return False
    block = {**value[BLOCK], **{key: own.block[key] for key in ("experiment", "arm", "seed")}}
    sealed = block.get(ITEMS)
    if sealed is not None and sealed["sha256"] != hashlib.sha256(items).hexdigest():
        return False
    write_figures(own.json_uri, {**value, "model": model, BLOCK: block}, items)
    return True
