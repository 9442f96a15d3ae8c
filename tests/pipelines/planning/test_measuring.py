"""What an evaluation takes, by the same arithmetic that a person would do."""

import dataclasses
from pathlib import Path
from typing import Any

import pytest

from pipelines.planning import measuring, plan
from pipelines.planning.arms import parse_arms
from pipelines.planning.cost import Machines, Samples, estimate, number
from pipelines.planning.measuring import LIMIT, Measuring
from pipelines.planning.represented import Represented
from pipelines.planning.request import Request
from pipelines.planning.sources import LISTS, NIGHTS
from trainer.config import DataConfig
from trainer.configs import load_recipe
from trainer.configs.evaluation_sets import SETS
from trainer.storage.manifest import Manifest, Shard, write_manifest

GPUS = Machines(nodes=2, gpus_per_node=8, gpu="NVIDIA-H100-80GB-HBM3", cores=8)


def found(
    arm: str,
    recipe: str = "paper",
    machines: Machines = GPUS,
    eval_sets: tuple[str, ...] = (),
    representation: dict[str, Any] | None = None,
    **changes: object,
) -> Measuring:
    """Of one cell, none of its data staged."""
    asked = load_recipe(recipe)
    asked = dataclasses.replace(asked, evaluation=dataclasses.replace(asked.evaluation, **changes))
    experiment = plan.Experiment(root="/r", name="e", recipe=asked, pairs=DataConfig(), triplets=DataConfig())
    cell = plan.resolve(experiment, parse_arms(arm)[0], 0)
    data = {"contrastive": LISTS["yfcc15m-openai"], "perceptual": NIGHTS, "posthoc": NIGHTS}
    small = {"contrastive": 1518, "perceptual": 86, "posthoc": 86}
    counts = data if recipe != "smoke" else small
    estimates = [estimate(stage, Samples(count=counts[stage.stage], said=""), machines) for stage in cell.stages()]
    return measuring.measuring(experiment, Request(eval_sets=eval_sets, representation=representation or {}), cell, estimates, machines)


@pytest.mark.parametrize("arm", ["random", "perceptual"])
@pytest.mark.parametrize("recipe", ["paper", "paper-3m", "paper-as-coded"])
def test_a_trajectory_costs_at_most_a_tenth_of_training(arm: str, recipe: str):
    """On every set that the field has, at the rate of a GPU in fp32."""
    one = found(arm, recipe, Machines(gpus_per_node=4, gpu="H100", cores=8))

    assert len(one.epochs) == (6 if recipe == "paper-3m" else 10)
    assert one.each == 12_234 + sum(known.test_size for known in SETS if known.counted or known.task == "zeroshot_retrieval")
    assert 0 < one.share <= LIMIT


def test_each_factor_is_said_and_gives_the_hours():
    """Ten models, 432,767 pictures, one GPU."""
    one = found("perceptual")
    pictures, rate = one.basis()

    assert pictures.startswith("420,533 pictures + 12,234 of triplets a model (no sets given: the 29 zero-shot and 2 retrieval sets of")
    assert f"{one.forward:,.0f} pictures/s a model, 1,200 decoded, once for 4 models" in rate
    assert one.trajectory_hours == pytest.approx(10 * 432_767 / one.forward / 3600)
    assert "10 models at epochs 0, 1, 2, 4, 8, 12, 16, 20, 24, 28 x 432,767 pictures" in one.takes()
    assert f"{one.share:.1%} of the" in one.takes()
    assert "2 other models and 1 tower on triplets" in one.takes()


def test_where_nothing_is_kept_nothing_is_said_of_a_trajectory():
    """The post-hoc arm shares its contrastive stage, which its base arm's cell measures; the demo's recipes keep nothing."""
    assert found("posthoc").epochs == []
    assert found("random", trajectory=False, every_epochs=0).epochs == []
    assert "trajectory" not in found("random", "smoke").takes()


def test_more_than_a_tenth_is_said_with_what_takes_less():
    """A run that is as short as the smoke recipe's, on all of the field's sets."""
    one = dataclasses.replace(found("random"), training=1.0)

    assert "(more than 10%: use fewer epochs, evaluation.every_epochs or fewer sets)" in one.takes()


def test_decoding_bounds_the_rate_where_cores_are_few():
    """One core decodes 150 pictures per second, once for four models."""
    one = found("random", machines=Machines(gpus_per_node=1, gpu="H100", cores=1))

    assert one.per_model == pytest.approx(1 / 600)


def test_sets_are_counted_where_they_lie_and_known_by_name(tmp_path: Path):
    """A staged set says how many it has; one in another layout goes by its name, and is assumed."""
    shard = Shard(name="0.tar", split="test", num_samples=380, size=1, sha256="0" * 64, crc32c=0, index_crc32c=0)
    rows = {"read": 380, "written": 380, "lost": {}}
    write_manifest(
        str(tmp_path / "mine"),
        Manifest(kind="evaluation", name="mine", plan_id="p", source={}, options={}, rows=rows, shards=[shard]),
    )

    counted, named = (found("random", eval_sets=(f"{tmp_path}/mine", *more)) for more in ((), (f"{tmp_path}/mnist", f"{tmp_path}/own")))

    assert counted.pictures.sets == 380
    assert named.pictures.sets == 380 + 10_000 + 10_000
    assert not named.pictures.known


def test_representation_is_part_of_what_it_takes():
    """Layers of every model, those at kept epochs too; probes of final models; each by the seconds that docs/EVALUATION.md measured."""
    plain = found("perceptual")
    layers = found("perceptual", representation={"sets": ["imagenet-1k"], "pictures": 5000})
    probes = found("perceptual", representation={"probes": ["cifar-10", "own"]})

    assert layers.beside == Represented(layer_pictures=5000, layer_seconds=61.0)
    a_model = (5000 * plain.per_model + 61) / 3600
    assert layers.trajectory_hours - plain.trajectory_hours == pytest.approx(10 * a_model)
    assert layers.other_hours - plain.other_hours == pytest.approx(3 * a_model)
    assert layers.share <= LIMIT
    seconds = 2 * 14 * 35_000 / 50_000 * 768 / 512
    assert probes.beside == Represented(probe_pictures=90_000, probe_seconds=pytest.approx(seconds))
    assert probes.trajectory_hours == plain.trajectory_hours
    assert probes.beside_hours == pytest.approx(3 * (90_000 * plain.per_model + seconds / 8) / 3600)
    assert f"with {number(probes.beside_hours)} of representation (a model: 90,000 pictures for probes" in probes.takes()


def test_probes_of_every_set_are_those_of_the_field_or_of_the_demo():
    """Without sets all of the field's that have a training split, ImageNet's 1.3 M pictures and 1,000 classes among them."""
    field, demo = (found("random", recipe, representation={"probes": ["all"]}) for recipe in ("paper", "smoke"))

    assert field.beside.probe_pictures > 1_281_167 + 24 * 35_000
    assert demo.beside.probe_pictures == 380 + 1518


def test_models_share_a_pass_as_the_evaluation_has_it():
    """The estimate's number is the evaluation's own."""
    from trainer.evaluation.measure import MODELS_AT_ONCE

    assert measuring.MODELS_AT_ONCE == MODELS_AT_ONCE
