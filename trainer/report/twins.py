"""The page's sentences about twins (indistinguishable captions and pictures), as counted by staging and evaluation."""

from collections.abc import Sequence
from typing import Any

from trainer.report import items as per_item
from trainer.report.compare import TestSet
from trainer.report.experiment import Experiment


def twins(experiment: Experiment, sets: Sequence[TestSet]) -> dict[str, dict[str, Any]]:
    """For each data set, the indistinguishable captions and pictures that staging (for the pairs) or evaluation found."""
    rows: dict[str, dict[str, Any]] = {}
    found = experiment.pairs.facts.get("twins") if experiment.pairs else None
    if experiment.pairs and isinstance(found, dict):
        rows[experiment.pairs.name] = {"found": found, "says": _twins_of_pairs(experiment.pairs.name, found)}
    for test_set in sets:
        results = (r for cell in experiment.cells for r in cell.results if (r.dataset, r.task) == test_set.key)
        found = next((r.facts["twins"] for r in results if r.facts.get("twins")), None)
        if found and any(found.values()):
            parts = [
                f"{per_item.counted({'captions': found['captions']})} of {test_set.sizes.get('captions', 0)} belong to several pictures"
                if found["captions"]
                else "",
                f"{per_item.counted({'pictures': found['identical_pictures']})} of {test_set.num_items} are byte-identical to another"
                if found["identical_pictures"]
                else "",
            ]
            said = " and ".join(filter(None, parts))
            says = f"{test_set.dataset}: {said}, so no model can score 100 % if only one of them counts as correct."
            rows[test_set.dataset] = {"found": found, "says": says}
    return rows


def _twins_of_pairs(name: str, found: dict[str, Any]) -> str:
    """Staging's counts in a sentence or two; empty if it found nothing."""
    number = {key: int(value) for key, value in found.items()}
    parts = [
        f"{per_item.counted({'pictures': count})} {words} another"
        for count, words in ((number["captions"], "with the same caption as"), (number["identical"], "with the same bytes as"))
        if count
    ]
    if parts and not number["test_captions"] + number["test_identical"]:
        parts[-1] += ", all of which are on the same side of the split"
    across = [
        f"{number[key]} {words}"
        for key, words in (
            ("test_captions", "with a caption of a training picture"),
            ("test_identical", "byte-identical to one"),
            ("test_alike", "that may be copies of one (judged by perceptual hash)"),
        )
        if number[key]
    ]
    said = [" and ".join(parts)] if parts else []
    said += [f"among the {number['test']} test pictures {', '.join(across)}"] if across else []
    said += [f"{per_item.counted({'classes': number['unseen_labels']})} with no training picture"] if number["unseen_labels"] else []
    return f"{name}: {'; '.join(said)}." if said else ""
