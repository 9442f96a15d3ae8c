"""Decoders and draws: equal to PIL and torchvision where they must be, close where they may differ."""

import io
import struct
import zlib

import numpy as np
import pytest
import torch
from open_clip.transform import image_transform
from PIL import Image

from tests.data.datasets import pattern, picture
from trainer.data.decode import Decoder, decode_image, decode_pixels, picture_size, random_crops, sample_seeds, uniforms
from trainer.errors import RunError


@pytest.mark.parametrize("size", [(75, 100), (100, 75), (40, 41), (64, 64), (33, 200)])
@pytest.mark.parametrize("encoding", ["JPEG", "PNG"])
def test_exact_is_open_clips_own_transform(size: tuple[int, int], encoding: str) -> None:
    """Bit for bit what open_clip's evaluation transform gives, before it normalises."""
    data = picture(1, *size, encoding)
    transform = image_transform(32, is_train=False, mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0))
    with Image.open(io.BytesIO(data)) as image:
        expected = (transform(image.convert("RGB")) * 255).round().to(torch.uint8)
    assert torch.equal(decode_image(data, 32, "exact"), expected)


@pytest.mark.parametrize("squash", [False, True])
def test_fast_is_close_to_exact(squash: bool) -> None:
    """The mean difference is at most .05 of 255 (row A's condition)."""
    for number in range(5):
        data = picture(number, 375, 500, "JPEG")
        fast, exact = (decode_image(data, 224, mode, squash=squash).float() for mode in ("fast", "exact"))
        assert (fast - exact).abs().mean() <= 0.05


def test_squash_takes_the_whole_picture() -> None:
    """Triplets: both sides to the square, as PIL's resize has it."""
    pixels = pattern(3, 30, 60)
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, "PNG")
    expected = np.asarray(Image.fromarray(pixels).resize((20, 20), Image.Resampling.BICUBIC)).transpose(2, 0, 1)
    assert torch.equal(decode_image(stream.getvalue(), 20, "exact", squash=True), torch.from_numpy(expected.copy()))


@pytest.mark.parametrize("mode", ["fast", "exact"])
def test_cmyk_and_gray_jpegs_come_out_as_rgb(mode: str) -> None:
    """What simplejpeg cannot is PIL's."""
    for kind in ("CMYK", "L"):
        stream = io.BytesIO()
        Image.fromarray(pattern(0, 20, 30)).convert(kind).save(stream, "JPEG")
        assert decode_pixels(stream.getvalue(), mode).shape == (20, 30, 3)


@pytest.mark.parametrize("data", [b"", b"<html>not here</html>", picture(0, 20, 20, "JPEG")[:200], picture(0, 20, 20)[:200]])
@pytest.mark.parametrize("mode", ["fast", "exact"])
def test_what_is_no_picture_is_an_error(data: bytes, mode: str) -> None:
    """HTML, nothing, or a picture cut short."""
    with pytest.raises(RunError, match="not a picture"):
        decode_pixels(data, mode)


def test_crops_are_drawn_as_torchvision_draws_them() -> None:
    """Areas and ratios are uniform and log-uniform in their ranges, places uniform; all inside the picture."""
    seeds = sample_seeds(0, 0, [str(number) for number in range(20_000)])
    boxes = random_crops(seeds, np.full(20_000, 400), np.full(20_000, 400), 0.2)
    top, left, height, width = boxes.T
    assert (top >= 0).all()
    assert (left >= 0).all()
    assert (top + height <= 400).all()
    assert (left + width <= 400).all()
    areas = height * width / 400**2
    assert 0.19 < areas.min() < 0.21
    # On a square picture big areas are refused where their ratio does not fit: compare with the same rule done slowly.
    assert areas.mean() == pytest.approx(slow_crop_area(0.2), abs=0.01)
    assert np.log(width / height).mean() == pytest.approx(0, abs=0.01)
    assert (left / np.maximum(400 - width, 1)).mean() == pytest.approx(0.5, abs=0.02)


def slow_crop_area(scale_min: float) -> float:
    """Mean area of torchvision's crops of a square, by its rule and NumPy's generator."""
    random, areas = np.random.default_rng(0), []
    while len(areas) < 20_000:
        area, ratio = random.uniform(scale_min, 1), np.exp(random.uniform(np.log(3 / 4), np.log(4 / 3)))
        if np.sqrt(area * ratio) <= 1 and np.sqrt(area / ratio) <= 1:
            areas.append(area)
    return float(np.mean(areas))


def test_a_very_long_picture_is_cropped_at_its_centre() -> None:
    """Where no ratio fits, the largest centre crop of an allowed ratio."""
    seeds = sample_seeds(0, 0, ["a", "b"])
    boxes = random_crops(seeds, np.array([10, 2000]), np.array([2000, 10]), 0.9)
    assert boxes.tolist() == [[0, 993, 10, 13], [993, 0, 13, 10]]


def test_draws_are_of_seed_epoch_and_key() -> None:
    """Each of them changes the draw, and a draw does not depend on what else is asked for."""
    base = sample_seeds(0, 0, ["a"])
    others = [sample_seeds(1, 0, ["a"]), sample_seeds(0, 1, ["a"]), sample_seeds(0, 0, ["b"])]
    assert all(base != other for other in others)
    np.testing.assert_array_equal(uniforms(base, 0, 10)[:, 4:7], uniforms(base, 4, 3))


def test_draws_are_uniform() -> None:
    """Ten bins of 100,000 draws hold a tenth each."""
    counts = np.histogram(uniforms(np.arange(1000), 0, 100), bins=10, range=(0, 1))[0]
    np.testing.assert_allclose(counts, 10_000, rtol=0.05)


def declaring(encoding: str, height: int, width: int) -> bytes:
    """A small picture whose header says that it is larger."""
    data = bytearray(picture(0, 16, 16, encoding))
    if encoding == "PNG":
        data[16:24] = struct.pack(">II", width, height)
        data[29:33] = struct.pack(">I", zlib.crc32(data[12:29]))
    else:
        start = data.index(b"\xff\xc0") + 5
        data[start : start + 4] = struct.pack(">HH", height, width)
    return bytes(data)


@pytest.mark.parametrize("mode", ["fast", "exact"])
@pytest.mark.parametrize("encoding", ["PNG", "JPEG"])
def test_too_many_pixels_are_refused_by_the_header(encoding: str, mode: Decoder) -> None:
    """Before a pixel of it takes memory, whether its size or the picture is asked for, by each decoder."""
    bomb = declaring(encoding, 60_000, 60_000)
    with pytest.raises(RunError, match="a picture of 60000x60000, but at most 100 megapixels"):
        decode_pixels(bomb, mode)
    with pytest.raises(RunError, match="a picture of 60000x60000"):
        picture_size(bomb)


def test_draws_are_those_of_splitmix64() -> None:
    """Its published first outputs for seed 0, so that no release changes what a sample looks like."""
    known = np.array([0xE220A8397B1DCDAF, 0x6E789E6AA1B965F4, 0x06C45D188009454F], dtype=np.uint64)
    assert np.array_equal(uniforms(np.array([0]), 0, 3)[0], (known >> np.uint64(11)) * 2.0**-53)
