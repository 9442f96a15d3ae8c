"""What the page says of twins: captions and pictures that nobody can tell apart, as staging and evaluation counted them."""

from collections.abc import Sequence
from typing import Any

from trainer.report import items as per_item
from trainer.report.compare import TestSet
from trainer.report.experiment import Experiment


def twins(experiment: Experiment, sets: Sequence[TestSet]) -> dict[str, dict[str, Any]]:
    """By data set, what was found of captions and pictures that nobody can tell apart: by staging in the pairs, else by evaluation."""
    rows: dict[str, dict[str, Any]] = {}
    found = experiment.pairs.facts.get("twins") if experiment.pairs else None
    if experiment.pairs and isinstance(found, dict):
        rows[experiment.pairs.name] = {"found": found, "says": _twins_of_pairs(experiment.pairs.name, found)}
    for test_set in sets:
        results = (r for cell in experiment.cells for r in cell.results if (r.dataset, r.task) == test_set.key)
        found = next((r.facts["twins"] for r in results if r.facts.get("twins")), None)
        if found and any(found.values()):
            parts = [
                f"{per_item.counted({'captions': found['captions']})} of {test_set.sizes.get('captions', 0)} stand on several pictures"
                if found["captions"]
                else "",
                f"{per_item.counted({'pictures': found['identical_pictures']})} of {test_set.num_items} have the bytes of another"
                if found["identical_pictures"]
                else "",
            ]
            says = f"{test_set.dataset}: {' and '.join(filter(None, parts))}, so no model can score 100 % where one of them alone is right."
            rows[test_set.dataset] = {"found": found, "says": says}
    return rows


def _twins_of_pairs(name: str, found: dict[str, Any]) -> str:
    """Staging's counts in a sentence; empty where it found nothing."""
    number = {key: int(found.get(key) or 0) for key in ("captions", "identical", "test_captions", "test_identical", "test_alike", "test")}
    parts = [
        f"{per_item.counted({'pictures': number['captions']})} share a caption with another" if number["captions"] else "",
        f"{number['identical']} have the bytes of another" if number["identical"] else "",
    ]
    together = "; such pictures stand on one side of the split" if not number["test_captions"] + number["test_identical"] else ""
    said = " and ".join(filter(None, parts))
    across = [
        f"{number['test_captions']} share a caption with a training picture" if number["test_captions"] else "",
        f"{number['test_identical']} have the bytes of one" if number["test_identical"] else "",
        f"{number['test_alike']} look like one (by a perceptual hash, so some may be chance)" if number["test_alike"] else "",
    ]
    if unseen := int(found.get("unseen_labels") or 0):
        across.append(f"belong to {per_item.counted({'classes': unseen})} that no training picture has")
    of_test = f"of {number['test']} test pictures, {', '.join(filter(None, across))}" if any(across) else ""
    return f"{name}: {'. '.join(filter(None, (said + together if said else '', of_test)))}." if said or of_test else ""
