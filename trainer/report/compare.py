"""Pair the arms: endpoints declared before the data were seen, contrasts seed by seed, intervals over seeds and over items."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from trainer.arms import BASELINE
from trainer.errors import InputError, RunError
from trainer.report import items as per_item
from trainer.report.experiment import Experiment, Result
from trainer.report.statistics import MIN_CLUSTERS, Interval, Items, bootstrap, holm, paired_t, percentile_interval, sign_test
from trainer.representation import PROBES

Key = tuple[str, str]
"""(dataset, task)."""
IMAGENET = ("imagenet1k", "imagenet-1k", "imagenet")


@dataclass(frozen=True, kw_only=True)
class TestSet:
    """One test set, with the metric that represents it."""

    dataset: str
    task: str
    metric: str
    num_items: int
    sizes: dict[str, int]

    @property
    def key(self) -> Key:
        """The key by which results are looked up."""
        return self.dataset, self.task


@dataclass(frozen=True, kw_only=True)
class Endpoint:
    """A figure of one final model: the mean of one metric over some sets."""

    name: str
    label: str
    short: str
    sets: tuple[TestSet, ...]

    @property
    def counted(self) -> str:
        """How much data the score is based on: `380 pictures, 10 classes`."""
        total: dict[str, int] = {}
        for test_set in self.sets:
            for name, number in test_set.sizes.items():
                total[name] = total.get(name, 0) + number
        several = f"{len(self.sets)} sets, " if len(self.sets) > 1 else ""
        return several + per_item.counted({name: number for name, number in total.items() if not several or name != "classes"})

    @property
    def resolution(self) -> float:
        """How far the score moves if one item of each set changes, independently across sets."""
        return float(np.sqrt(sum(1.0 / test_set.num_items**2 for test_set in self.sets)) / len(self.sets))


class Scores:
    """The final models' results of one experiment, and their items, read only once."""

    def __init__(self, experiment: Experiment) -> None:
        self.experiment = experiment
        self.results: dict[tuple[str, int], dict[Key, Result]] = {}
        for cell in experiment.cells:
            finals = {(r.dataset, r.task): r for r in cell.results if r.stage == cell.final_stage and r.step is None}
            self.results[cell.arm, cell.seed] = finals
        self._items: dict[tuple[str, str], Items | None] = {}

    def without_results(self) -> "Scores":
        """Scores of the same experiment, for results at another moment."""
        other = Scores(self.experiment)
        other.results = {}
        return other

    def seeds(self, arm: str) -> list[int]:
        """Seeds with a finished cell of this arm."""
        return sorted(seed for name, seed in self.results if name == arm)

    def value(self, arm: str, seed: int, endpoint: Endpoint) -> float | None:
        """The endpoint of one cell; None if it lacks a set, since a mean over different sets is a different quantity."""
        figures = []
        for test_set in endpoint.sets:
            result = self.results.get((arm, seed), {}).get(test_set.key)
            figure = per_item.score(result, test_set.metric) if result else None
            if figure is None:
                return None
            figures.append(figure)
        return sum(figures) / len(figures)

    def chance(self, endpoint: Endpoint) -> float | None:
        """What guessing would score on the endpoint."""
        return self._of_sets(endpoint, per_item.chance)

    def ceiling(self, endpoint: Endpoint) -> float | None:
        """The most that any model can score on the endpoint; None if that is not known for every set."""
        return self._of_sets(endpoint, per_item.ceiling)

    def baselines(self, endpoint: Endpoint) -> dict[str, float]:
        """What to compare the endpoint with, by name: the model before any training (mean over seeds), and what needs no model."""
        tower = all(test_set.task == "2afc" for test_set in endpoint.sets)
        untrained: dict[int, list[float | None]] = {}
        for cell in self.experiment.cells:
            found = {(r.dataset, r.task): r for r in cell.results if r.stage == "untrained"}
            untrained[cell.seed] = [per_item.score(found[s.key], s.metric) if s.key in found else None for s in endpoint.sets]
        known = [[figure for figure in figures if figure is not None] for figures in untrained.values()]
        whole = [sum(figures) / len(figures) for figures in known if len(figures) == len(endpoint.sets)]
        beside = {"untrained tower" if tower else "untrained model": sum(whole) / len(whole)} if whole else {}
        of_sets = [per_item.baselines(self._any_result(s), s.metric) for s in endpoint.sets]
        shared = [name for name in of_sets[0] if all(name in figures for figures in of_sets)]
        return beside | {name: sum(figures[name] for figures in of_sets) / len(of_sets) for name in shared}

    def _of_sets(self, endpoint: Endpoint, figure_of: Callable[[Result, str], float | None]) -> float | None:
        figures = [figure_of(self._any_result(test_set), test_set.metric) for test_set in endpoint.sets]
        known = [figure for figure in figures if figure is not None]
        return sum(known) / len(known) if known and len(known) == len(figures) else None

    def _any_result(self, test_set: TestSet) -> Result:
        """Any final model's result: what depends on the set alone is the same in all of them."""
        return next(cell[test_set.key] for cell in self.results.values() if test_set.key in cell)

    def items(self, arm: str, seed: int, test_set: TestSet) -> Items | None:
        """Per-item outputs of one cell on one set; None, with a note on the page, if they cannot be used."""
        result = self.results[arm, seed][test_set.key]
        if test_set.metric not in per_item.PAIRABLE:
            return None
        if (result.items_uri, test_set.metric) not in self._items:
            read: Items | None = None
            try:
                read = per_item.read_items(result, test_set.metric)
            except (InputError, RunError) as error:
                why = f"{str(error).removeprefix(f'{result.items_uri}: ')}; so differences on this set have no interval over items"
                self.experiment.exclude(result.items_uri, why, damaged=isinstance(error, RunError))
            self._items[result.items_uri, test_set.metric] = read
        return self._items[result.items_uri, test_set.metric]


def find_sets(scores: Scores) -> list[TestSet]:
    """Every set that a final model was measured on: classification, then retrieval, then 2AFC; probes are not endpoints."""
    return _find(scores, lambda task: task not in PROBES)


def find_probes(scores: Scores) -> list[TestSet]:
    """Every probe of a final model, set by set."""
    return sorted(_find(scores, lambda task: task in PROBES), key=lambda probe: (probe.dataset, PROBES.index(probe.task)))


def _find(scores: Scores, wanted: Callable[[str], bool]) -> list[TestSet]:
    found: dict[Key, TestSet] = {}
    for finals in scores.results.values():
        for key, result in ((key, result) for key, result in finals.items() if wanted(key[1])):
            own = scores.experiment.has_own_pairs and key[0] in scores.experiment.evaluation_sets
            count, sizes = int(result.facts.get("num_items") or 1), per_item.sizes(result)
            metric = per_item.main_metric(result, own)
            found.setdefault(key, TestSet(dataset=key[0], task=key[1], metric=metric, num_items=count, sizes=sizes))
    order = ("zeroshot_classification", "zeroshot_retrieval", "2afc")
    return sorted(found.values(), key=lambda s: (order.index(s.task) if s.task in order else len(order), s.dataset))


def declared_endpoints(sets: Sequence[TestSet], names: Sequence[str] = ()) -> list[Endpoint]:
    """The endpoints that have data: those that a request declared, in its order; otherwise the four standard ones.

    Args:
        sets: the sets that final models were measured on.
        names: declared names, each one of the four standard ones or `<data set>_<task>` for a single set.
    """
    four, alone = _four_endpoints(sets), [set_endpoint(one) for one in sets]
    if not names:
        return four
    by_name = {endpoint.name: endpoint for endpoint in (*alone, *four)}
    zero_shot = [endpoint for endpoint in four if endpoint.name == "main_zero_shot"]
    if zero_shot and "mean_zero_shot" not in by_name:
        by_name["mean_zero_shot"] = zero_shot[0]  # with one set, both are the same number
    return list({by_name[name].name: by_name[name] for name in names if name in by_name}.values())


def _four_endpoints(sets: Sequence[TestSet]) -> list[Endpoint]:
    """Mean over sets, the main set, mean retrieval, 2AFC.

    With a single zero-shot set, the mean would repeat the main set's score, so it is declared only once.
    """
    zero_shot = tuple(s for s in sets if s.task == "zeroshot_classification")
    retrieval = tuple(s for s in sets if s.task == "zeroshot_retrieval")
    two_afc = [s for s in sets if s.task == "2afc"]
    tests = tuple(s for s in two_afc if s.dataset.endswith("-test")) or tuple(two_afc)
    endpoints = []
    if len(zero_shot) > 1:
        label = f"zero-shot, mean over {len(zero_shot)} sets"
        endpoints.append(Endpoint(name="mean_zero_shot", label=label, short=f"zero-shot over {len(zero_shot)} sets", sets=zero_shot))
    if zero_shot:
        main = next((s for s in zero_shot if s.dataset in IMAGENET), zero_shot[0])
        label = f"zero-shot {per_item.METRIC_NAMES.get(main.metric, main.metric)} on {main.dataset}"
        endpoints.append(Endpoint(name="main_zero_shot", label=label, short=f"zero-shot {main.dataset}", sets=(main,)))
    if retrieval:
        where = retrieval[0].dataset if len(retrieval) == 1 else f"{len(retrieval)} sets"
        recall = per_item.METRIC_NAMES[min(s.metric for s in retrieval)]  # where only some sets have twins, it is the plainer name
        endpoints.append(Endpoint(name="mean_retrieval", label=f"retrieval, {recall} on {where}", short="retrieval", sets=retrieval))
    if tests:
        endpoints.append(Endpoint(name="2afc", label=f"2AFC on {', '.join(s.dataset for s in tests)}", short="2AFC", sets=tests))
    return endpoints


def set_endpoint(test_set: TestSet) -> Endpoint:
    """One set by itself, as a descriptive row."""
    label = f"{test_set.dataset}: {per_item.METRIC_NAMES.get(test_set.metric, test_set.metric)}"
    return Endpoint(name=f"{test_set.dataset}_{test_set.task}", label=label, short=test_set.dataset, sets=(test_set,))


def contrast(scores: Scores, arm: str, against: str, endpoint: Endpoint, *, items_too: bool = True) -> dict[str, Any] | None:
    """Arm minus `against`, paired by seed, on one endpoint; None if no seed has both.

    Without `items_too` the interval over items, which takes longest, is computed only if there is one seed, where it is the only interval.

    Returns:
        JSON: seeds, differences, mean, low, high, over (`seeds`: t-interval; `items`: bootstrap, one seed), no_interval (why
        there is none), p, and under "items" the bootstrap interval, whatever the number of seeds (None if the items cannot be paired).
    """
    pairs = []
    for seed in sorted(set(scores.seeds(arm)) & set(scores.seeds(against))):
        ours, theirs = scores.value(arm, seed, endpoint), scores.value(against, seed, endpoint)
        if ours is not None and theirs is not None:
            pairs.append((seed, ours, theirs))
    if not pairs:
        return None
    seeds = [seed for seed, _, _ in pairs]
    differences = [ours - theirs for _, ours, theirs in pairs]
    over_items, why = None, ""
    if items_too or len(seeds) == 1:
        over_items, why = _item_interval(scores, arm, against, endpoint, seeds, float(np.mean(differences)))
    interval, over = (paired_t(differences, endpoint.resolution), "seeds") if len(seeds) > 1 else (over_items, "items")
    return {
        "arm": arm,
        "against": against,
        "endpoint": endpoint.name,
        "label": endpoint.label,
        "short": endpoint.short,
        "n": endpoint.counted,
        "seeds": seeds,
        "score": float(np.mean([ours for _, ours, _ in pairs])),
        "against_score": float(np.mean([theirs for _, _, theirs in pairs])),
        "chance": scores.chance(endpoint),
        "ceiling": scores.ceiling(endpoint),
        "differences": differences,
        "mean": float(np.mean(differences)),
        "low": interval.low if interval else None,
        "high": interval.high if interval else None,
        "over": over,
        "no_interval": "" if interval else why,
        "p": interval.p if interval else None,
        "items": {"low": over_items.low, "high": over_items.high} if over_items else None,
    }


def _item_interval(
    scores: Scores, arm: str, against: str, endpoint: Endpoint, seeds: list[int], mean: float
) -> tuple[Interval | None, str]:
    """The clustered bootstrap of the mean difference over seeds, set by set, sets drawn independently; or why there is none."""
    replicates = []
    for test_set in endpoint.sets:
        differences = []
        first: Items | None = None
        for seed in seeds:
            ours, theirs = scores.items(arm, seed, test_set), scores.items(against, seed, test_set)
            if ours is None or theirs is None:
                return None, ""  # said where it was left out
            first = first or ours
            if not ours.identity == theirs.identity == first.identity:
                result = scores.results[arm, seed][test_set.key]
                scores.experiment.exclude(result.items_uri, f"its items differ from those of {against}, so they cannot be paired")
                return None, ""  # said where it was left out
            differences.append(ours.values - theirs.values)
        assert first is not None, "there is at least one seed"
        if len(np.unique(first.clusters)) < MIN_CLUSTERS:
            return None, "too few items"
        stream = f"{test_set.dataset}/{test_set.task}/{test_set.metric}"
        replicates.append(bootstrap(np.mean(differences, axis=0), first.clusters, first.weights, stream))
    if not np.ptp(np.mean(replicates, axis=0)):  # if no item differs, no resample does either, and zero width would not mean certainty
        return None, "all items alike"
    return percentile_interval(mean, np.mean(replicates, axis=0)), ""


def pairs_of_arms(arms: Sequence[str]) -> list[tuple[str, str]]:
    """Which arms are compared: all with the baseline, and perceptual with each control."""
    pairs = [(arm, BASELINE) for arm in arms if arm != BASELINE] if BASELINE in arms else []
    pairs.sort(key=lambda pair: pair[0] != "perceptual")
    if "perceptual" in arms:
        pairs += [("perceptual", arm) for arm in arms if arm not in (BASELINE, "perceptual")]
    return pairs


def contrasts(scores: Scores, endpoints: Sequence[Endpoint]) -> list[dict[str, Any]]:
    """Every pair of arms on every endpoint, with Holm's adjusted p over the endpoints of a pair."""
    rows: list[dict[str, Any]] = []
    for arm, against in pairs_of_arms(scores.experiment.arms):
        if against == BASELINE:
            _name_unpaired(scores, arm, against)
        found = [row for endpoint in endpoints if (row := contrast(scores, arm, against, endpoint))]
        tested = [row for row in found if row["p"] is not None]
        for row, adjusted in zip(tested, holm([row["p"] for row in tested]), strict=True):
            row["p_holm"] = adjusted
        for row in found:
            row.setdefault("p_holm", None)
            row["finding"] = finding(row)
        rows += found
    return rows


def _name_unpaired(scores: Scores, arm: str, against: str) -> None:
    """Name the seeds that only one of two arms has: they are not used in any difference."""
    ours, theirs = set(scores.seeds(arm)), set(scores.seeds(against))
    for seed in sorted(ours ^ theirs):
        has, lacks = (arm, against) if seed in ours else (against, arm)
        scores.experiment.exclude(
            f"{has}, seed {seed}, against {lacks}", f"{has} has seed {seed} and {lacks} does not, so it is not paired"
        )


def finding(row: dict[str, Any]) -> str:
    """`better`, `worse` or `not shown` after Holm; `one seed` if there are not two seeds to compare."""
    if row["over"] == "items":
        return "one seed"
    if row["p_holm"] is not None and row["p_holm"] <= 0.05:
        return "better" if row["mean"] > 0 else "worse"
    return "not shown"


def per_set(scores: Scores, sets: Sequence[TestSet]) -> list[dict[str, Any]]:
    """Every pair of arms on every set, or probe: descriptive, the sets are correlated and nothing is adjusted."""
    rows = []
    for arm, against in pairs_of_arms(scores.experiment.arms):
        for test_set in sets:
            row = contrast(scores, arm, against, set_endpoint(test_set))
            if row:
                rows.append(
                    {**row, "dataset": test_set.dataset, "task": test_set.task, "metric": test_set.metric, "num_items": test_set.num_items}
                )
    return rows


def signs(rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """The sign test over zero-shot sets for each pair of arms that has more than one."""
    tests = []
    for arm, against in dict.fromkeys((row["arm"], row["against"]) for row in rows):
        differences = [r["mean"] for r in rows if (r["arm"], r["against"]) == (arm, against) and r["task"] == "zeroshot_classification"]
        if len(differences) > 1:
            tests.append({"arm": arm, "against": against, **sign_test(differences)})
    return tests
