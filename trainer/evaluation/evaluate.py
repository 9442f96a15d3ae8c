"""`python -m trainer evaluate --config <uri>`: measure the models of one cell on every set.

Here it is decided what is missing, without torch: a job whose figures are all there returns in a second.
Figures go to `<output>/<stage>-<final or step>/<dataset>_<task>.json`.
"""

from collections.abc import Sequence
from typing import Any

from trainer.config import EvaluateConfig
from trainer.configs import load_yaml, parse_config
from trainer.errors import InputError, RunError
from trainer.evaluation.jobs import find_jobs, find_model
from trainer.evaluation.results import why_not_done
from trainer.storage import read_bytes


def evaluate(config_uri: str, overrides: Sequence[str] = ()) -> dict[str, Any]:
    """Measure what is missing.

    Args:
        config_uri: of the cell's resolved evaluation/config.yaml.
        overrides: `dotted.key=value`.

    Returns:
        {"wanted", "done" (before), "written"}.

    Raises:
        InputError: a model that is not finished or is another than planned, an unusable set (the others were measured).
        RunError: a model whose features are no numbers, a store that stayed down (what could be measured was).
    """
    config = parse_config(EvaluateConfig, load_yaml(read_bytes(config_uri).decode(), config_uri), overrides, config_uri)
    models = [find_model(config, asked) for asked in config.models]
    jobs, errors = find_jobs(config, models)
    reasons = {job.wanted.json_uri: why_not_done(job.wanted) for job in jobs}
    missing = [job for job in jobs if reasons[job.wanted.json_uri]]
    for job in missing:
        reason = reasons[job.wanted.json_uri]
        if reason != "missing":
            print(f"evaluate: measured again: {reason}", flush=True)
    written = 0
    if missing:
        from trainer.evaluation.measure import measure  # imports torch

        measured = measure(config, missing)
        written, errors = measured.written, errors + measured.errors
    if errors:
        kind = InputError if any(isinstance(error, InputError) for error in errors) else RunError
        more = f" (and {len(errors) - 1} more, named above)" if len(errors) > 1 else ""
        raise kind(f"{written} of {len(missing)} missing results written; {errors[0]}{more}")
    return {"wanted": len(jobs), "done": len(jobs) - len(missing), "written": written}
