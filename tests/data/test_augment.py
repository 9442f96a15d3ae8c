"""MoCo-v2 on the device: each step against torchvision on single pictures, and no draw but the sample's own."""

import numpy as np
import pytest
import torch
from torchvision.transforms import functional

from tests.data import reference_augment
from tests.data.datasets import pattern
from trainer.data import augment
from trainer.data.augment import augment_on_device, normalise
from trainer.data.decode import uniforms


@pytest.fixture
def images() -> torch.Tensor:
    """(6, 3, 24, 24) uint8."""
    return torch.stack([torch.from_numpy(pattern(number, 24, 24)).permute(2, 0, 1) for number in range(6)])


@pytest.mark.parametrize(
    ("ours", "theirs"),
    [
        (augment._brightness, functional.adjust_brightness),
        (augment._contrast, functional.adjust_contrast),
        (augment._saturation, functional.adjust_saturation),
        (augment._hue, functional.adjust_hue),
    ],
)
def test_each_colour_change_is_torchvisions(images: torch.Tensor, ours: object, theirs: object) -> None:
    """Every picture by its own amount, in one go."""
    amounts = torch.linspace(-0.1, 0.1, 6) if ours is augment._hue else torch.linspace(0.6, 1.4, 6)
    floats = images.float() / 255
    expected = torch.stack([theirs(image, float(amount)) for image, amount in zip(floats, amounts, strict=True)])
    torch.testing.assert_close(ours(floats, amounts[:, None, None, None]), expected, atol=2e-3, rtol=0)


def test_blur_is_torchvisions(images: torch.Tensor) -> None:
    """Each picture with its own sigma."""
    floats, sigmas = images.float() / 255, np.linspace(0.1, 2, 6)
    expected = torch.stack([functional.gaussian_blur(i, 13, float(s)) for i, s in zip(floats, sigmas, strict=True)])
    weights = torch.from_numpy(augment._blur_weights(sigmas, *floats.shape[-2:]))
    torch.testing.assert_close(augment._blur(floats, weights[:, None, None, None]), expected, atol=1e-5, rtol=0)


def test_a_blur_fits_small_pictures() -> None:
    """A picture smaller than the kernel is blurred as far as it reaches."""
    weights = torch.from_numpy(augment._blur_weights(np.array([1.0, 2.0]), 4, 4))
    assert weights.shape == (2, 7)
    assert augment._blur(torch.rand(2, 3, 4, 4), weights[:, None, None, None]).shape == (2, 3, 4, 4)


@pytest.mark.parametrize(("count", "height", "width"), [(10_000, 9, 9), (100, 33, 33), (60, 1, 1), (60, 3, 17), (7, 64, 64), (1, 5, 5)])
def test_pictures_are_those_of_the_reference(count: int, height: int, width: int) -> None:
    """Every draw of every sample the same, to 1e-6, at odd sizes and in batches of any number, the last ones short."""
    generator = torch.Generator().manual_seed(count)
    images = torch.randint(0, 256, (count, 3, height, width), dtype=torch.uint8, generator=generator)
    seeds = torch.randint(0, 2**62, (count,), generator=generator)
    expected = reference_augment.augment(images, seeds)
    for size in (count, 997):
        parts = [augment_on_device(*part, "moco_v2") for part in zip(images.split(size), seeds.split(size), strict=True)]
        torch.testing.assert_close(torch.cat(parts), expected, rtol=0, atol=1e-6)


def test_seeds_that_choose_nothing_change_nothing() -> None:
    """A batch in which no picture is jittered, gray, blurred or mirrored is only normalised."""
    seeds = torch.arange(5000)
    draws = uniforms(seeds.numpy(), augment._FIRST_DRAW, augment._DRAWS)
    untouched = (draws[:, 0] >= 0.8) & (draws[:, 9] >= 0.2) & (draws[:, 10] >= 0.5) & (draws[:, 12] >= 0.5)
    chosen = seeds[torch.from_numpy(untouched)]
    images = torch.randint(0, 256, (len(chosen), 3, 7, 7), dtype=torch.uint8)
    assert len(chosen) > 0
    assert torch.equal(augment_on_device(images, chosen, "moco_v2"), normalise(images))


def test_a_samples_augmentation_is_its_own(images: torch.Tensor) -> None:
    """Neither the batch that a picture is in nor its place there changes what is done to it."""
    seeds = torch.arange(6)
    whole = augment_on_device(images, seeds, "moco_v2")
    alone = torch.cat([augment_on_device(images[i : i + 1], seeds[i : i + 1], "moco_v2") for i in reversed(range(6))]).flip(0)
    torch.testing.assert_close(whole, alone, atol=1e-5, rtol=0)


def test_parts_of_pictures_that_are_changed() -> None:
    """Gray for a fifth, and mirrored for a half, over many samples."""
    ramp = torch.arange(16, dtype=torch.uint8).mul(8).repeat(2000, 3, 16, 1)
    ramp[:, 1] += 90
    result = augment_on_device(ramp, torch.arange(2000), "moco_v2") * torch.tensor(augment.CLIP_STD)[:, None, None]
    result = result + torch.tensor(augment.CLIP_MEAN)[:, None, None]
    gray = (result[:, 0] - result[:, 1]).abs().amax(dim=(1, 2)) < 1e-3
    mirrored = result[:, :, :, 0].mean(dim=(1, 2)) > result[:, :, :, -1].mean(dim=(1, 2))
    assert gray.float().mean().item() == pytest.approx(0.2, abs=0.03)
    assert mirrored.float().mean().item() == pytest.approx(0.5, abs=0.04)


@pytest.mark.parametrize("augmentation", ["crop", "none"])
def test_the_rest_only_normalise(images: torch.Tensor, augmentation: str) -> None:
    """(x / 255 - mean) / std, float32."""
    expected = functional.normalize(images.float() / 255, augment.CLIP_MEAN, augment.CLIP_STD)
    torch.testing.assert_close(augment_on_device(images, torch.arange(6), augmentation), expected)
    torch.testing.assert_close(normalise(images), expected)
    assert normalise(images).dtype == torch.float32
    assert np.isfinite(expected.numpy()).all()
