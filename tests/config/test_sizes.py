"""Sizes, FLOPs and memory of models without torch, against models that are built and bytes that autograd keeps."""

import dataclasses
import json

import open_clip
import pytest
import torch

from scripts.open_clip_table import TABLE, table
from trainer.config import ContrastiveConfig, ModelConfig, PerceptualConfig, PosthocConfig, StageConfig
from trainer.configs import load_recipe, sizes
from trainer.errors import InputError
from trainer.model import encoding, towers

GIB = 2**30
MODELS = {
    "own": ModelConfig(),
    "small": load_recipe("smoke").model,
    "ViT-B-16": ModelConfig(open_clip_name="ViT-B-16"),
    "layer scale": ModelConfig(open_clip_name="ViT-M-16-alt"),
    "another MLP": ModelConfig(open_clip_name="ViT-bigG-14"),
}


def contrastive(batch: int = 4096, model: ModelConfig | None = None, **recipe: object) -> StageConfig:
    """A stage of the paper's model in batches of this size."""
    settings = ContrastiveConfig(**{"global_batch_size": batch, "contrast_batch_size": batch, **recipe})
    return StageConfig(stage="contrastive", output="none", model=model or ModelConfig(), contrastive=settings)


def perceptual(**recipe: object) -> StageConfig:
    """Stage 1 of the paper's model."""
    return StageConfig(stage="perceptual", output="none", perceptual=PerceptualConfig(**recipe))


@pytest.mark.parametrize("name", MODELS)
def test_parameters_are_those_of_the_built_model(name: str):
    """To the last one, tower by tower."""
    model = MODELS[name]
    with torch.device("meta"):
        built = open_clip.CLIP(**towers.open_clip_config(model))

    found = sizes.sizes(model)

    assert found.parameters == sum(p.numel() for p in built.parameters())
    assert found.vision.parameters == sum(p.numel() for p in built.visual.parameters())


def test_the_paper_s_model_has_151_3_million_parameters():
    found = sizes.sizes(ModelConfig())

    assert found.parameters == pytest.approx(151.3e6, rel=1e-3)
    assert found.vision.parameters == pytest.approx(87.8e6, rel=1e-3)
    assert found.vision.flops(50) == pytest.approx(8.82e9, rel=1e-3)
    assert found.text.flops(77) == pytest.approx(5.96e9, rel=1e-3)


def test_the_table_is_what_the_installed_open_clip_says():
    """`make generate` writes it; what the trainer cannot build is not in it."""
    made = table()

    assert made == TABLE.read_text(encoding="utf-8")
    assert {"ViT-B-32", "ViT-H-14"} <= json.loads(made).keys()
    assert not {"RN50", "ViT-B-16-SigLIP", "coca_ViT-B-32"} & json.loads(made).keys()


@pytest.mark.parametrize(("name", "nearest"), [("vit-b/16", "ViT-B-16"), ("ViT-L-14-335", "ViT-L-14-336"), ("RN50", "ViT-")])
def test_an_unknown_model_is_refused_with_the_nearest_name(name: str, nearest: str):
    """In one line; RN50 exists and cannot be trained exactly."""
    with pytest.raises(InputError, match=f"model.open_clip_name must be one of .*, got {name!r}: did you mean '{nearest}") as caught:
        sizes.sizes(ModelConfig(open_clip_name=name))

    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(("precision", "element"), [("bf16", 2), ("fp32", 4)])
@pytest.mark.parametrize("tokens", [16, 77])
def test_activations_are_what_autograd_keeps(precision: str, element: int, tokens: int):
    """Bytes of saved tensors, counted by autograd's own hooks, within 6 %."""
    config = ModelConfig(
        image_size=64, patch_size=16, vision_layers=4, vision_width=128, embed_dim=64, text_layers=3, text_width=128, text_heads=2
    )
    found = sizes.sizes(config)
    expected = found.vision.activation_bytes(17, element) + found.text.activation_bytes(tokens, element) + found.image_bytes * element

    kept = (_kept(config, precision, 12, tokens) - _kept(config, precision, 6, tokens)) / 6

    assert expected == pytest.approx(kept, rel=0.06)


def _kept(config: ModelConfig, precision: str, count: int, length: int) -> int:
    """Bytes that backward needs of `count` pairs, weights left out."""
    model = towers.build_model(config, 0)
    tokens = torch.full((count, 77), 5)
    tokens[:, length - 1 :] = 0
    tokens[:, length - 1] = 49407
    weights = {p.untyped_storage().data_ptr() for p in model.parameters()}
    kept: dict[int, torch.UntypedStorage] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            kept[storage.data_ptr()] = storage
        return tensor

    hooks = torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor)
    with hooks, torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16"):
        encoding.encode_image(model, torch.randn(count, 3, 64, 64))
        encoding.encode_text(model, tokens, torch.full((count,), length))
    return sum(storage.nbytes() for storage in kept.values())


@pytest.mark.parametrize(("tokens", "measured_mib"), [(77.0, 29597), (77.0, 30305), (23.4, 19758)])
def test_memory_is_that_of_rows_k_and_l(tokens: float, measured_mib: int):
    """On an H100, 1,024 pairs: peak above weights, moments and the pictures, which lay there; the last gradients lay there, too."""
    memory = sizes.training_memory(contrastive(1024), 1, 0, tokens)
    parameters = sizes.sizes(ModelConfig()).parameters
    there = memory.context + 12 * parameters + 1024 * 3 * 224**2

    above = memory.total - there - 4 * parameters

    assert above / 2**20 == pytest.approx(measured_mib, rel=0.08)


def test_the_paper_s_whole_batch_is_too_much_for_one_h100():
    """Four times row L's 19,758 MiB are 83 GB above weights and moments."""
    assert sizes.training_bytes(contrastive(), 1, 0) == pytest.approx(4 * 19758 * 2**20 + 16 * 151.3e6 + 1.6e9, rel=0.06)
    assert sizes.training_bytes(contrastive(), 1, 0) > 85e9


@pytest.mark.parametrize(
    ("ranks", "gpu_gib", "expected"), [(1, 80, 2048), (8, 80, 512), (64, 80, 64), (1, 141, 4096), (1, 40, 1024), (8, 16, 256), (1, 8, 32)]
)
def test_the_largest_micro_batch_divides_the_share(ranks: int, gpu_gib: int, expected: int):
    """4,096 pairs over so many GPUs of so much memory."""
    found = sizes.largest_local_batch_size(contrastive(), ranks, gpu_gib * GIB)

    assert found == expected
    assert sizes.training_bytes(contrastive(), ranks, found) <= sizes.USABLE_FRACTION * gpu_gib * GIB


def test_a_share_without_divisors_is_cut_into_nearly_equal_parts():
    """4,099 is prime: four parts, the last one smaller, and not single pairs."""
    assert sizes.largest_local_batch_size(contrastive(4099), 1, 40 * GIB) == 1025


def test_a_contrast_group_is_what_must_fit():
    """With accumulation as coded a rank holds one group at a time."""
    stage = contrastive(36864, contrast_batch_size=6144, accumulation="independent")

    assert sizes.largest_local_batch_size(stage, 6, 80 * GIB) == 1024


def test_independent_accumulation_that_does_not_fit_is_refused():
    """In one line, with a contrast batch that would fit."""
    with pytest.raises(InputError, match=r"accumulation independent .* = 4096 pairs need .* or contrast_batch_size 2048") as caught:
        sizes.largest_local_batch_size(contrastive(accumulation="independent"), 1, 80 * GIB)

    assert "\n" not in str(caught.value)
    fitting = contrastive(accumulation="independent", contrast_batch_size=2048)
    assert sizes.largest_local_batch_size(fitting, 1, 80 * GIB) == 2048


def test_a_model_larger_than_the_gpu_is_refused():
    with pytest.raises(InputError, match=r"contrastive: even one sample at a time needs an estimated 48.4 GB, but a rank has 20.6 GB"):
        sizes.largest_local_batch_size(contrastive(model=ModelConfig(open_clip_name="ViT-bigG-14")), 8, 24 * GIB)


def test_ranks_that_do_not_divide_the_batch_are_refused():
    with pytest.raises(InputError, match=r"contrastive.global_batch_size must be a multiple of the number of ranks 6, got 4096"):
        sizes.largest_local_batch_size(contrastive(), 6, 80 * GIB)


def test_a_triplet_stage_holds_three_pictures_and_the_vision_tower():
    """Stage 1 moves no text tower to the GPU; the post-hoc stage trains QKV alone."""
    found = sizes.sizes(ModelConfig())
    memory = sizes.training_memory(perceptual(), 6, 0)
    posthoc = StageConfig(stage="posthoc", output="none", posthoc=PosthocConfig())

    assert memory.samples == 128
    assert memory.sample == pytest.approx(3 * found.vision.activation_bytes(50, 2), rel=0.03)
    assert memory.state == 18 * found.vision.parameters  # float32 weights, gradients, two moments; bf16 copies
    assert sizes.training_memory(perceptual(handoff="best_val"), 6, 0).state == 22 * found.vision.parameters
    assert sizes.training_memory(posthoc, 1, 0).state < 10 * found.parameters
    assert sizes.largest_local_batch_size(perceptual(), 1, 24 * GIB) == 256


def test_checkpoints_are_weights_and_two_moments():
    """1.82 GB of ViT-B/32, as rows I and P have it."""
    assert sizes.checkpoint_bytes(contrastive()) == pytest.approx(1.82e9, rel=5e-3)
    assert sizes.checkpoint_bytes(perceptual()) == pytest.approx(12 * 87.8e6, rel=1e-2)
    assert sizes.final_bytes(contrastive()) == pytest.approx(605e6, rel=1e-2)


def test_float32_takes_more_than_bf16():
    small, large = contrastive(1024), contrastive(1024, precision="fp32")

    assert sizes.training_memory(large, 1, 0).sample > 1.6 * sizes.training_memory(small, 1, 0).sample


def test_flops_of_the_trainer_are_these():
    """One formula serves the plan and the trainer's MFU; another MLP counts with its own width."""
    model = dataclasses.replace(MODELS["another MLP"])

    assert towers.flops_per_sample(ModelConfig(), 77) == pytest.approx(44.33e9, rel=1e-3)
    assert towers.flops_per_sample(model, 77) == sizes.sizes(model).flops(77)
