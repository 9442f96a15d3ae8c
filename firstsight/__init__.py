"""firstsight as a library: read what its runs leave, with the engine behind it (`trainer`, `pipelines`) out of sight.

    import firstsight

    pairs = firstsight.open_dataset("runs/datasets/demo-pairs/<plan id>", firstsight.Pair)
    model = firstsight.load_model("runs/experiments/first/perceptual-seed0/contrastive")
    result = firstsight.evaluate(model, pairs.evaluation_sets["demo-categories"])
    report = firstsight.read_report("runs/experiments/first")

What this package names is stable: it changes with a new minor version at most, and only in ways that the release notes name.
docs/LIBRARY.md is the walk through it. Errors are `InputError` (yours to fix) and `RunError` (it failed during the run), one line each.
Names are imported when they are first used, so `import firstsight` costs no torch.
"""

import importlib
import tomllib
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from firstsight.datasets import DataSet, EvaluationItem, Pair, Triplet, open_dataset
    from firstsight.evaluation import Result, evaluate
    from firstsight.losses import contrastive_loss, hinge_loss, logistic_loss, triplet_distances, two_afc
    from firstsight.models import Model, load_model
    from firstsight.reports import Report, read_report
    from trainer.errors import Corrupt, InputError, RunError

__all__ = [
    "Corrupt",
    "DataSet",
    "EvaluationItem",
    "InputError",
    "Model",
    "Pair",
    "Report",
    "Result",
    "RunError",
    "Triplet",
    "__version__",
    "contrastive_loss",
    "evaluate",
    "hinge_loss",
    "load_model",
    "logistic_loss",
    "open_dataset",
    "read_report",
    "triplet_distances",
    "two_afc",
]

_HOMES = {
    "firstsight.datasets": ("DataSet", "EvaluationItem", "Pair", "Triplet", "open_dataset"),
    "firstsight.evaluation": ("Result", "evaluate"),
    "firstsight.losses": ("contrastive_loss", "hinge_loss", "logistic_loss", "triplet_distances", "two_afc"),
    "firstsight.models": ("Model", "load_model"),
    "firstsight.reports": ("Report", "read_report"),
    "trainer.errors": ("Corrupt", "InputError", "RunError"),
}
_HOME_OF = {name: home for home, names in _HOMES.items() for name in names}


def _version() -> str:
    """Of the checkout that this file lies in, else of the package that is installed."""
    project = Path(__file__).parents[1] / "pyproject.toml"
    if project.is_file():
        return str(tomllib.loads(project.read_text(encoding="utf-8"))["project"]["version"])
    return metadata.version("firstsight")


__version__ = _version()


def __getattr__(name: str) -> Any:
    """Import a public name at its first use."""
    if name not in _HOME_OF:
        raise AttributeError(f"module 'firstsight' has no attribute {name!r}")
    return getattr(importlib.import_module(_HOME_OF[name]), name)


def __dir__() -> list[str]:
    """The public names."""
    return __all__
