"""The standard zero-shot sets, grouped into the paper's families, and published results of such runs, compared with this run's."""

from collections.abc import Sequence
from typing import Any

from trainer.arms import BASELINE
from trainer.configs.evaluation_sets import FAMILIES, SETS
from trainer.progress import counted
from trainer.report import items as per_item
from trainer.report.compare import IMAGENET, Endpoint, Scores, TestSet, contrast, pairs_of_arms, set_endpoint
from trainer.report.experiment import Experiment

ANCHOR = 0.328
"""ImageNet zero-shot of CLIP ViT-B/32 on YFCC15M, 32 epochs, batch 4,096: DeCLIP's table."""
ANCHOR_EPOCHS, ANCHOR_BATCH, ANCHOR_PAIRS = 32, 4096, 14_000_000
USUAL = (0.31, 0.35)
"""The range that ViT-B/32 models trained on plain YFCC15M captions are reported to reach."""
Rows = list[dict[str, Any]]


def families(scores: Scores, sets: Sequence[TestSet]) -> Rows:
    """For each family, each arm against the baseline: the mean over the measured sets, paired by seed, and the number of sets it wins.

    The last row of a pair counts all sets. Descriptive: sets are correlated. Empty where none of the 29 was measured.
    """
    measured = {_field_name(one.dataset): one for one in sets if one.task == "zeroshot_classification"}
    rows: Rows = []
    found = {name: names for name, names in FAMILIES.items() if any(one in measured for one in names)}
    if not found:
        return rows
    everything = tuple(one for names in FAMILIES.values() for one in names)
    for arm, against in pairs_of_arms(scores.experiment.arms):
        if against != BASELINE:
            continue
        for family, names in [*found.items(), ("all", everything)]:
            own = tuple(measured[name] for name in names if name in measured)
            endpoint = Endpoint(name=f"family_{family}", label=family, short=family, sets=own)
            row = contrast(scores, arm, against, endpoint, items_too=False)
            if row is None:
                continue
            single = [contrast(scores, arm, against, set_endpoint(one), items_too=False) for one in own]
            means = [one["mean"] for one in single if one is not None]
            kept = ("arm", "against", "seeds", "score", "against_score", "mean", "low", "high", "over", "no_interval")
            won, tied = sum(mean > 0 for mean in means), sum(mean == 0 for mean in means)
            rows.append({"family": family, "sets": len(own), "of": len(names), "won": won, "tied": tied, **{key: row[key] for key in kept}})
    return rows


def expectations(experiment: Experiment, scores: Scores, sets: Sequence[TestSet]) -> Rows:
    """What is known from elsewhere, beside what was found here: "about", "expected", "found", "follows" (what to do about a gap)."""
    return [*_anchor(experiment, scores, sets), *_posthoc(experiment, scores, sets)]


def _anchor(experiment: Experiment, scores: Scores, sets: Sequence[TestSet]) -> Rows:
    """Of the paper's recipes: the baseline on ImageNet beside the field's figure."""
    names = {str(recipe.get("name", "")) for recipe in experiment.plan.get("recipes", {}).values()}
    runs = [cell.stages["contrastive"].config.contrastive for cell in experiment.cells if cell.arm == BASELINE]
    if not runs or not all(name.startswith("paper") for name in names):
        return []
    row = {
        "about": f"{BASELINE} on ImageNet",
        "expected": f"{100 * ANCHOR:.1f} %: CLIP ViT-B/32 on YFCC15M, {ANCHOR_EPOCHS} epochs, batch {ANCHOR_BATCH:,} (DeCLIP's table)",
    }
    main = next((one for one in sets if one.dataset in IMAGENET and one.task == "zeroshot_classification"), None)
    values = [] if main is None else _scores_of(scores, main)
    if main is None or not values:
        return [
            row
            | {"found": "ImageNet was not measured", "follows": "There is no evidence yet on whether the pipeline and the data are sound."}
        ]
    value = sum(values) / len(values)
    found = f"{100 * value:.1f} %, mean over {counted(len(values), 'seed')}"
    return [row | {"found": found, "follows": _what_follows(value, _deviations(experiment))}]


def _what_follows(value: float, deviations: list[str]) -> str:
    low, high = (f"{100 * end:.0f}" for end in USUAL)
    if deviations:
        return f"This run has {', '.join(deviations)}, so a gap is expected and means nothing by itself."
    if USUAL[0] <= value <= USUAL[1]:
        return f"Within the {low} to {high} % that such models are reported to reach."
    where = "Below" if value < USUAL[0] else "Above"
    return (
        f"{where} the {low} to {high} % that such models are reported to reach: the pipeline or the data differ from theirs. Check the "
        "list of pairs and what was lost from it, the prompts and preprocessing (2 to 8 points) and the training before interpreting any "
        "difference."
    )


def _deviations(experiment: Experiment) -> list[str]:
    """How a run of one of the paper's recipes differs from the anchor."""
    cell = next(cell for cell in experiment.cells if cell.arm == BASELINE)
    config = cell.stages["contrastive"].config
    assert config.contrastive is not None, "a contrastive stage has its settings"
    said = []
    if config.contrastive.epochs != ANCHOR_EPOCHS:
        said.append(counted(config.contrastive.epochs, "epoch"))
    if config.contrastive.global_batch_size != ANCHOR_BATCH:
        said.append(f"batches of {config.contrastive.global_batch_size:,}")
    pairs = sum(shard.num_samples for shard in experiment.pairs.split("train")) if experiment.pairs else ANCHOR_PAIRS
    if pairs < ANCHOR_PAIRS:
        said.append(f"{pairs:,} pairs")
    size = config.model
    if size.open_clip_name not in ("", "ViT-B-32") or (not size.open_clip_name and (size.vision_width, size.patch_size) != (768, 32)):
        said.append("a different model")
    return said


def _posthoc(experiment: Experiment, scores: Scores, sets: Sequence[TestSet]) -> Rows:
    """Fine-tuning on triplets after the contrastive stage lowers zero-shot accuracy: by how much here."""
    if "posthoc" not in experiment.arms:
        return []
    zero_shot = tuple(one for one in sets if one.task == "zeroshot_classification")
    endpoint = Endpoint(name="zero_shot", label="zero-shot", short="zero-shot", sets=zero_shot)
    row = contrast(scores, "posthoc", BASELINE, endpoint, items_too=False) if zero_shot else None
    found = "not measured against the baseline"
    follows = ""
    if row is not None:
        found = f"{100 * row['mean']:+.1f} points against {BASELINE}, mean of {counted(len(zero_shot), 'zero-shot set')}"
        found = found.replace("-", "−", 1) if row["mean"] < 0 else found
        follows = (
            "A loss here is a known effect of the method, not a fault of this run."
            if row["mean"] < 0
            else "No loss here: fewer steps than in the literature, a small model, or chance; not yet evidence against it."
        )
    return [
        {
            "about": "posthoc on natural images",
            "expected": "lower zero-shot accuracy: fine-tuning on NIGHTS after training is known to reduce it (arXiv 2410.10817)",
            "found": found,
            "follows": follows,
        }
    ]


def _scores_of(scores: Scores, test_set: TestSet) -> list[float]:
    found = [scores.results[BASELINE, seed].get(test_set.key) for seed in scores.seeds(BASELINE)]
    figures = [per_item.score(result, test_set.metric) for result in found if result is not None]
    return [figure for figure in figures if figure is not None]


def _field_name(dataset: str) -> str:
    """The usual name of a set; ImageNet goes by several."""
    return SETS[0].name if dataset in IMAGENET else dataset
