"""What a recipe cannot do, refused in one line before anything is staged; and what should be known of it."""

import dataclasses
from typing import Any

import pytest

from pipelines.planning.checks import check_recipe
from pipelines.planning.cost import Machines, Samples
from pipelines.planning.sources import training_samples
from trainer.config import DataConfig, ModelConfig, Recipe
from trainer.configs import load_recipe
from trainer.errors import InputError

YFCC15M, NIGHTS, GIB = 14_829_396, 15_941, 2**30
ONE_GPU, CLUSTER, LAPTOP = (
    Machines(gpu_bytes=80 * GIB),
    Machines(nodes=8, gpus_per_node=8, gpu_bytes=80 * GIB),
    Machines(gpus_per_node=0, cores=2),
)


def paper(**contrastive: Any) -> Recipe:
    """The paper's recipe with changes of its second stage."""
    recipe = load_recipe("paper")
    return dataclasses.replace(recipe, contrastive=dataclasses.replace(recipe.contrastive, **contrastive))


def check(recipe: Recipe, machines: Machines, pairs: int = YFCC15M, triplets: int = NIGHTS, known: bool = True, **more: Any) -> list[str]:
    """Notes on both stages of the arm `perceptual`."""
    more = {"backend": "pytorchjob", "stages": ("perceptual", "contrastive"), **more}
    data = [Samples(count=count, said="said", known=known) for count in (pairs, triplets)]
    return check_recipe(recipe, *data, machines, **more)


def test_a_recipe_that_fits_needs_no_note():
    assert check(paper(), CLUSTER) == []


def of_fraction(name: str, fraction: float, source: str = "") -> list[str]:
    """Notes on stage 1 of a recipe with a part of its triplets, none of which is staged."""
    recipe = load_recipe(name, [f"perceptual.triplet_fraction={fraction}"])
    pairs, triplets = (training_samples(what, DataConfig(), source, recipe) for what in ("pairs", "triplets"))
    return check_recipe(recipe, pairs, triplets, Machines(), "pytorchjob", stages=("perceptual",))


@pytest.mark.parametrize(("name", "fraction"), [("smoke", 0.01), ("paper", 0.04)])
def test_a_fraction_below_one_batch_is_refused_before_anything_is_staged(name: str, fraction: float):
    """By the most triplets that there can be: 120 of the smoke recipe, NIGHTS'."""
    with pytest.raises(InputError, match=f"perceptual.triplet_fraction must leave at least one batch, got {fraction:g}: that is"):
        of_fraction(name, fraction)


def test_what_may_fill_a_batch_is_left_to_the_data():
    """15 % of at most 120 triplets may be 16 or more; a source that is not staged may have many more than NIGHTS."""
    assert of_fraction("smoke", 0.15)
    assert of_fraction("paper", 0.04, "s3://b/mine")


def test_a_share_larger_than_the_gpu_is_said():
    """With both numbers, and what is done about it."""
    (note,) = check(paper(), ONE_GPU)

    assert note == (
        "contrastive: 4,096 samples per rank need an estimated 91.4 GB, but a GPU has 85.9: processed 2,048 at a time "
        "through the gradient cache, which runs the forward pass twice"
    )


def test_memory_that_nobody_knows_is_said_once():
    (note,) = check(paper(), Machines())

    assert note == (
        "a rank needs an estimated 91.4 GB of GPU memory, which could not be checked: set jobs.gpu_memory (such as 80Gi) in the profile"
    )


@pytest.mark.parametrize(
    ("recipe", "machines", "pairs", "line"),
    [
        (paper(accumulation="independent"), ONE_GPU, YFCC15M, "contrastive.accumulation independent never splits a contrast batch"),
        (paper(epochs=1), ONE_GPU, 4096 * 2500, "contrastive.optimizer.warmup_steps must be less than the stage's 2,500 steps (10,240,000"),
        (paper(), ONE_GPU, 4095, "contrastive.global_batch_size must be at most the 4,095 training pairs, got 4096"),
        (paper(), Machines(nodes=3), YFCC15M, "contrastive.global_batch_size must be a multiple of the number of ranks 3, got 4096"),
        (
            dataclasses.replace(paper(), model=ModelConfig(open_clip_name="ViT-B-61")),
            ONE_GPU,
            YFCC15M,
            "model.open_clip_name must be one of open_clip's",
        ),
        (
            dataclasses.replace(paper(), model=ModelConfig(open_clip_name="ViT-bigG-14")),
            ONE_GPU,
            YFCC15M,
            "perceptual: even one sample at a time needs",
        ),
    ],
    ids=["independent", "warm-up", "batch", "ranks", "name", "model"],
)
def test_what_cannot_work_is_one_line(recipe: Recipe, machines: Machines, pairs: int, line: str):
    """Key, rule and value; no traceback."""
    machines = dataclasses.replace(machines, gpu_bytes=20 * GIB) if line.startswith("perceptual") else machines

    with pytest.raises(InputError) as caught:
        check(recipe, machines, pairs)

    assert line in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_warm_up_of_one_step_less_is_taken():
    assert check(paper(epochs=1), CLUSTER, pairs=4096 * 2501) == []


def test_the_warm_up_of_stage_one_is_checked_too():
    """150 steps, of which 96 triplets in batches of 768 make none."""
    with pytest.raises(InputError, match=r"perceptual.optimizer.warmup_steps must be less than the stage's 128 steps"):
        check(paper(), CLUSTER, triplets=768 * 4)


def test_data_of_unknown_size_cannot_be_short():
    """Nothing is refused for a guess."""
    assert check(paper(epochs=1), CLUSTER, pairs=5000, triplets=100, known=False) == []


def test_stages_that_no_arm_needs_are_not_checked():
    """The post-hoc batch of 16 does not divide by 6 GPUs; only the arm `posthoc` minds."""
    six = Machines(gpus_per_node=6, gpu_bytes=80 * GIB)
    recipe = paper(global_batch_size=6144, contrast_batch_size=6144)

    assert check(recipe, six) == []
    with pytest.raises(InputError, match=r"posthoc.global_batch_size must be a multiple of the number of ranks 6, got 16"):
        check(recipe, six, stages=("contrastive", "posthoc"))


def test_stage_one_runs_on_one_node():
    """768 triplets over the eight GPUs of one node, not over 40; the contrastive stage's 40 divide its batch."""
    assert check(paper(global_batch_size=4000, contrast_batch_size=4000, order_runs=1), dataclasses.replace(CLUSTER, nodes=5)) == []


def test_224_px_on_two_cores_is_said():
    """On this machine without a GPU: tens of thousands of hours, of which nothing is said where there is one."""
    (note,) = check(paper(), LAPTOP, backend="local")

    assert note == (
        "training at 224 px on 2 cores takes about 59,000 hours (15,941 triplets, 14,829,396 pairs; 50 GFLOP/s per core assumed); "
        "RECIPE=demo takes minutes"
    )
    assert check(load_recipe("demo"), LAPTOP, 1518, 3242, backend="local") == []
    assert check(paper(), CLUSTER, backend="local") == []


@pytest.mark.parametrize(
    ("change", "line"),
    [
        (
            {"perceptual": {"triplet_fraction": 0.01}},
            "perceptual.triplet_fraction must leave at least one batch, got 0.01: that is 159 of 15,941 training triplets, "
            "and perceptual.global_batch_size is 768",
        ),
        (
            {"contrastive": {"pair_fraction": 0.0001}},
            "contrastive.pair_fraction must leave at least one batch, got 0.0001: that is 1,483 of 14,829,396 training pairs, "
            "and contrastive.global_batch_size is 4,096",
        ),
        (
            {"posthoc": {"triplet_fraction": 0.0005}},
            "posthoc.triplet_fraction must leave at least one batch, got 0.0005: that is 8 of 15,941 training triplets, "
            "and posthoc.global_batch_size is 16",
        ),
        (
            {"perceptual": {"triplet_fraction": 0.05}},
            "perceptual.optimizer.warmup_steps must be less than the stage's 32 steps (797 // 768 x 32 epochs), got 150",
        ),
        (
            {"perceptual": {"samples_seen": 100_000}},
            "perceptual.optimizer.warmup_steps must be less than the stage's 130 steps (100,000 samples seen // 768), got 150",
        ),
    ],
)
def test_a_dose_that_cannot_be_trained_on_is_refused(change: dict[str, Any], line: str):
    with pytest.raises(InputError) as caught:
        check(load_recipe({"base": "paper", **change}), CLUSTER, stages=("perceptual", "contrastive", "posthoc"))
    assert str(caught.value) == line


@pytest.mark.parametrize("change", ["triplet_fraction: 0", "triplet_fraction: 1.01", "samples_seen: 767", "samples_seen: -1"])
def test_a_dose_out_of_range_is_refused_by_its_field(change: str):
    with pytest.raises(InputError, match=rf"perceptual\.{change.partition(':')[0]} must be"):
        load_recipe(f"base: paper\nperceptual: {{{change}}}\n")
