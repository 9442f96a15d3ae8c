"""What stages cost: the arithmetic, each factor against a figure from PERFORMANCE, docs/BENCHMARKS.md or by hand."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest

from pipelines.planning import cost
from pipelines.planning.checks import stage_of
from pipelines.planning.cost import Machines, Rate, Samples, estimate
from trainer.config import ModelConfig, Recipe, StageConfig
from trainer.configs import load_recipe
from trainer.errors import InputError

YFCC15M, NIGHTS = Samples(count=14_829_396, said="YFCC15M"), Samples(count=15_941, said="NIGHTS")
GIB = 2**30
DOCS = Path(__file__).parents[3] / "docs"


def contrastive(**changes: Any) -> StageConfig:
    """The paper's second stage."""
    recipe = load_recipe("paper")
    return stage_of(dataclasses.replace(recipe, contrastive=dataclasses.replace(recipe.contrastive, **changes)), "contrastive")


def with_model(model: ModelConfig) -> StageConfig:
    """The paper's second stage with another model."""
    return stage_of(Recipe(model=model), "contrastive")


def test_a_pair_of_the_paper_takes_44_gflop():
    """Forward and backward of ViT-B/32 with 77 tokens (PERFORMANCE: 14.78 forward)."""
    assert cost.sample_flops(contrastive()) == pytest.approx(44.3e9, rel=0.01)


def test_steps_are_whole_batches_of_all_epochs():
    """115,840 at a batch of 4,096, as DeCLIP's baselines have it."""
    found = estimate(contrastive(), YFCC15M, Machines())

    assert (found.dose.steps_per_epoch, found.steps, found.samples) == (3620, 115_840, 115_840 * 4096)


def test_the_rate_that_is_assumed_is_what_row_m_reached():
    """At this rate, 32 epochs of YFCC15M take about 16 hours on one GPU."""
    found = estimate(contrastive(), YFCC15M, Machines())

    assert found.rate.rate == pytest.approx(cost.FED_RATE, rel=0.001)
    assert found.gpu_hours == pytest.approx(15.7, rel=0.01)
    assert not found.rate.measured
    assert found.rate.said == "46.6% of an H100's 798 TFLOP/s / 44.3 GFLOP"


def test_a_measured_rate_takes_the_place_of_the_assumption():
    """Five thousand samples per second make 27 GPU-hours."""
    found = estimate(contrastive(), YFCC15M, Machines(), measured=Rate(rate=5000, measured=True, said="seen"))

    assert found.gpu_hours == pytest.approx(26.4, rel=0.01)
    assert "[measured: seen]" in "\n".join(found.lines())


def test_row_m_is_the_measured_rate_of_an_h100():
    """The constant matches docs/benchmarks.json; it applies only to the same model, GPU and micro-batch."""
    rows = json.loads((DOCS / "benchmarks.json").read_text(encoding="utf-8"))["rows"]
    (row,) = [row for row in rows if row["row"] == "M"]
    assert (row["ours"], f"local batch {cost.FED_PAIRS}" in row["note"], "H100" in row["machine"]) == (cost.FED_RATE, True, True)
    h100 = Machines(nodes=1, gpus_per_node=4, gpu="NVIDIA-H100-80GB-HBM3", gpu_bytes=80 * GIB)

    rates = {
        "as measured": estimate(contrastive(), YFCC15M, h100).rate,
        "gradient cache": estimate(contrastive(), YFCC15M, dataclasses.replace(h100, gpus_per_node=1)).rate,
        "smaller share": estimate(contrastive(), YFCC15M, dataclasses.replace(h100, gpus_per_node=8)).rate,
        "another GPU": estimate(contrastive(), YFCC15M, dataclasses.replace(h100, gpu="NVIDIA-A100-SXM4-80GB")).rate,
        "not compiled": estimate(contrastive(), YFCC15M, h100, {"compile": False}).rate,
        "another model": estimate(with_model(ModelConfig(open_clip_name="ViT-B-16")), YFCC15M, h100).rate,
    }

    assert rates["as measured"].rate == cost.FED_RATE
    assert rates["gradient cache"].rate == cost.FED_RATE * 3 / 4
    assert [name for name, rate in rates.items() if rate.measured] == ["as measured"]
    assert "A100's 252 TFLOP/s" in rates["another GPU"].said
    assert rates["another GPU"].rate == pytest.approx(8390 * 312 / 989, rel=0.01)


def test_the_host_bounds_small_shares():
    """64 pairs per GPU take 25 ms per step, however fast the GPU; 512 pairs are not affected."""
    small, large = (estimate(contrastive(), YFCC15M, Machines(nodes=nodes, gpus_per_node=8)) for nodes in (8, 1))

    assert small.rate.rate == 64 / 0.025
    assert "64 / 25 ms" in small.rate.said
    assert large.rate.rate == pytest.approx(8390, rel=0.01)


def test_without_compiling_three_quarters_of_the_rate_remain():
    on, off = (estimate(contrastive(), YFCC15M, Machines(), {"compile": value}) for value in (True, False))

    assert off.rate.rate / on.rate.rate == pytest.approx(110 / 147)
    assert "compile off" in off.lines()[2]


def test_cpu_cores_are_slow():
    """Fifty GFLOP/s per core: one ViT-B/32 pair per second keeps one core nearly busy."""
    found = estimate(contrastive(), YFCC15M, Machines(gpus_per_node=0, cores=2))

    assert found.rate.rate == pytest.approx(100 / 44.33, rel=0.01)
    assert found.memory is None
    assert "no GPU" in found.lines()[3]


def test_stage_one_is_a_fraction_of_the_whole():
    """About 0.2 % of all operations, as the design says."""
    first = estimate(stage_of(load_recipe("paper"), "perceptual"), NIGHTS, Machines())

    assert first.flops / estimate(contrastive(), YFCC15M, Machines()).flops == pytest.approx(0.002, rel=0.1)


def test_a_batch_larger_than_the_gpu_goes_through_the_gradient_cache():
    """2,048 of 4,096 pairs on 80 GiB; the forward pass runs twice, which is a third more work."""
    found = estimate(contrastive(), YFCC15M, Machines(gpu_bytes=80 * GIB))

    assert (found.local_batch_size, found.whole) == (2048, 4096)
    assert found.rate.rate == pytest.approx(8390 * 3 / 4, rel=0.01)
    assert found.memory is not None
    assert found.memory.total <= 0.8 * 80 * GIB
    assert "local_batch_size 2,048 (of 4,096, through the gradient cache)" in found.lines()[2]


def test_requested_micro_batches_are_used():
    """A smaller micro-batch is used as is; one that cannot fit is rejected, stating what it needs."""
    machines = Machines(gpu_bytes=80 * GIB)

    assert estimate(contrastive(), YFCC15M, machines, {"local_batch_size": 256}).local_batch_size == 256
    with pytest.raises(InputError, match=r"placement.local_batch_size must fit a GPU of 85.9 GB, got 4096: .* need an estimated 91.4 GB"):
        estimate(contrastive(), YFCC15M, machines, {"local_batch_size": 4096})
    with pytest.raises(InputError, match="got 0"):
        estimate(contrastive(), YFCC15M, machines, {"local_batch_size": 0})


def test_unknown_memory_is_not_compared():
    found = estimate(contrastive(), YFCC15M, Machines())

    assert found.local_batch_size == 4096
    assert "jobs.gpu_memory is not set" in found.lines()[3]


def test_disk_counts_kept_checkpoints():
    """Two kept, one being written, 0.6 GB for the final model; plus weights per epoch, without the optimiser's state."""
    stage = contrastive()
    kept = dataclasses.replace(stage, placement=dataclasses.replace(stage.placement, checkpoint_every_epochs=4, trajectory=True))

    assert estimate(stage, YFCC15M, Machines()).disk == pytest.approx(3 * 1.815e9 + 0.605e9, rel=1e-3)
    by_epoch = estimate(kept, YFCC15M, Machines())
    assert by_epoch.kept_epochs == [0, 1, 2, 4, 8, 12, 16, 20, 24, 28]
    assert by_epoch.disk == pytest.approx(3 * 1.815e9 + 11 * 0.605e9, rel=1e-3)
    assert "weights at epochs 0, 1, 2, 4, 8, 12, 16, 20, 24, 28: 10 x 0.61 GB" in by_epoch.lines()[-1]
    assert estimate(stage, YFCC15M, Machines(), {"keep_last": 5}).checkpoints == 6


def test_each_line_can_be_checked_by_hand():
    """The printed factors multiply to the printed result, up to rounding."""
    found = estimate(contrastive(), YFCC15M, Machines(gpus_per_node=8, gpu_bytes=80 * GIB, cores=8))
    data, ranks, placement, memory, rate, time, disk = found.lines()

    assert "14,829,396 pairs (YFCC15M) // 4,096 = 3,620 steps x 32 epochs = 115,840 steps, 474,480,640 pairs; warm-up 2,500" in data
    assert ranks == "ranks: 1 x 8 GPUs = 8; 4,096 / 8 = 512 pairs per rank"
    assert placement == "placement: compile on, loader_workers 7 (of 8 cores per rank), local_batch_size 512 (the whole share)"
    assert "2.72 + 512 pairs x 21.1 MB + share and loss 0.17 + CUDA 1.61 = 15.3 GB per rank, 18% of 85.9 GB" in memory
    assert 2.72 + 512 * 0.0211 + 0.17 + 1.61 == pytest.approx(15.3, abs=0.1)
    assert "rate: 8,388 pairs/s per GPU x 8 = 67,107 pairs/s [assumed: 46.6% of an H100's 798 TFLOP/s / 44.3 GFLOP]" in rate
    assert "time: 474,480,640 / 67,107 / 3600 = 1.96 hours; x 8 = 15.7 GPU-hours [assumed]" in time
    assert disk == "disk: 3 checkpoints x 1.82 GB + final 0.61 GB = 6.1 GB"


@pytest.mark.parametrize("nodes", [(1, 1), (1, 8), (8, 8)])
def test_the_documented_figures_are_these(nodes: tuple[int, int]):
    """The table in docs/PERFORMANCE_NOTES.md."""
    text = (DOCS / "PERFORMANCE_NOTES.md").read_text(encoding="utf-8")
    machines = Machines(nodes=nodes[0], gpus_per_node=nodes[1], gpu_bytes=80 * GIB, gpu="NVIDIA-H100-80GB-HBM3")

    found = estimate(contrastive(), YFCC15M, machines)

    assert found.memory is not None
    figures = (
        f"{nodes[0]} x {nodes[1]}", f"{4096 // machines.ranks:,}", f"{found.local_batch_size:,}", f"{found.memory.total / 1e9:.1f}",
        cost.number(found.rate.rate * machines.ranks), cost.number(found.hours), cost.number(found.gpu_hours),
    )  # fmt: skip
    assert f"| {' | '.join(figures)} |" in text


@pytest.mark.parametrize(
    ("nodes", "count", "said"),
    [
        (8, 8, "advice: 8 at a time on 1 node each: 1.96 hours for these 8, one after another on 8 nodes 6.44: a share of 64 pairs"),
        (8, 3, "advice: 2 at a time on 4 nodes each"),
        (8, 1, ""),
        (1, 8, ""),
        (2, 2, ""),
    ],
)
def test_runs_that_finish_sooner_side_by_side_are_told_so(nodes: int, count: int, said: str):
    """If a step is bound by the host, more GPUs do not shorten it."""
    machines = Machines(nodes=nodes, gpus_per_node=8, gpu_bytes=80 * GIB, gpu="NVIDIA-H100-80GB-HBM3")

    found = cost.side_by_side([estimate(contrastive(), YFCC15M, machines)] * count)

    assert found.startswith(said)
    assert bool(found) == bool(said)


def test_splits_that_cannot_fit_a_run_are_not_advised():
    """Half of the GPUs would need twice the memory of each."""
    machines = Machines(nodes=8, gpus_per_node=8, gpu_bytes=7 * GIB)
    whole = estimate(contrastive(accumulation="independent"), YFCC15M, machines)

    assert cost.side_by_side([whole] * 8) == ""


def test_cpus_are_not_advised():
    """A CPU's step time is bound by its own arithmetic."""
    assert cost.side_by_side([estimate(contrastive(), YFCC15M, Machines(nodes=8, gpus_per_node=0))] * 8) == ""


def test_sizes_of_open_clip_are_known_without_it():
    """The command line of the pipelines has no open_clip: ViT-B-16 takes 123 GFLOP a pair."""
    assert cost.sample_flops(with_model(ModelConfig(open_clip_name="ViT-B-16"))) == pytest.approx(123.3e9, rel=0.01)
    with pytest.raises(InputError, match="did you mean 'ViT-B-16'"):
        estimate(with_model(ModelConfig(open_clip_name="ViT-B/16")), YFCC15M, Machines())


def test_steps_shrink_with_the_dose_unless_they_are_fixed():
    """Every factor appears in the printed line."""
    whole = stage_of(load_recipe("paper"), "perceptual")
    assert whole.perceptual is not None

    def told(**changes: Any) -> cost.Estimate:
        settings = dataclasses.replace(whole.perceptual, **changes)
        return estimate(dataclasses.replace(whole, perceptual=settings), Samples(count=15_941, said="NIGHTS"), Machines())

    assert told().steps == 20 * 32
    assert told(triplet_fraction=0.5).steps == 10 * 32
    assert told(triplet_fraction=0.5).gpu_hours == pytest.approx(told().gpu_hours / 2)
    assert told(triplet_fraction=0.5, samples_seen=15_941 * 32).steps == 15_941 * 32 // 768
    assert "15,941 triplets (NIGHTS) x 0.5 = 7,970 // 768 = 10 steps x 32 epochs = 320 steps" in told(triplet_fraction=0.5).lines()[0]
    assert "x 0.5 = 7,970; 510,112 samples seen // 768 = 664 steps" in told(triplet_fraction=0.5, samples_seen=15_941 * 32).lines()[0]
