import pytest

from pipelines.planning import cost
from pipelines.planning.arms import parse_arms
from pipelines.planning.plan import Experiment, read_recipe, resolve
from trainer.config import DataConfig, ModelConfig
from trainer.errors import InputError


def stages(arm: str = "perceptual"):
    """The paper's stages."""
    data = DataConfig(uri="u", identity="i")
    return resolve(Experiment(root="/r", experiment="e", recipe=read_recipe("paper"), pairs=data, triplets=data), parse_arms(arm)[0], 0)


def test_a_pair_of_the_paper_takes_44_gflop():
    """Forward and backward of ViT-B/32 with 77 tokens (PERFORMANCE: 14.78 forward)."""
    stage = stages().contrastive

    assert cost.estimate(stage, 1).flops / 32 == pytest.approx(44.3e9, rel=0.01)


def test_half_of_the_peak_is_nine_thousand_samples_a_second():
    """So that 32 epochs of YFCC15M take some 15 hours of one GPU."""
    estimate = cost.estimate(stages().contrastive, 14_829_396)

    assert estimate.rate == pytest.approx(9000, rel=0.01)
    assert estimate.gpu_hours == pytest.approx(14.6, rel=0.01)
    assert not estimate.measured


def test_a_measured_rate_takes_the_place_of_the_assumption():
    """Five thousand samples a second make 27 GPU-hours."""
    estimate = cost.estimate(stages().contrastive, 14_829_396, measured_rate=5000)

    assert estimate.gpu_hours == pytest.approx(26.4, rel=0.01)
    assert estimate.measured


def test_stage_one_is_a_fraction_of_the_whole():
    """About 0.2 % of all operations, as the design says."""
    cell = stages()
    assert cell.perceptual is not None

    share = cost.estimate(cell.perceptual, 15_941).flops / cost.estimate(cell.contrastive, 14_829_396).flops

    assert share == pytest.approx(0.002, rel=0.1)


def test_sizes_that_only_open_clip_knows_are_not_guessed():
    """The command line of the pipelines has no open_clip."""
    stage = stages().contrastive
    named = type(stage)(**{**stage.__dict__, "model": ModelConfig(open_clip_name="ViT-B-16")})

    with pytest.raises(InputError, match="ViT-B-16"):
        cost.estimate(named, 1)
