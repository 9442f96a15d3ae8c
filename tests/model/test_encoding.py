"""Encoding: captions cut to their length give the features of the full length, and so do their gradients."""

import pytest
import torch

from trainer.configs import load_recipe
from trainer.model import encoding, towers

TINY = load_recipe("smoke").model
START, END = 49406, 49407


def captions(lengths: list[int], context: int = 77) -> tuple[torch.Tensor, torch.Tensor]:
    """Random captions of these lengths in tokens, start and end included."""
    generator = torch.Generator().manual_seed(0)
    tokens = torch.zeros(len(lengths), context, dtype=torch.int64)
    for row, length in zip(tokens, lengths, strict=True):
        row[0], row[1 : length - 1], row[length - 1] = START, torch.randint(1, START, (length - 2,), generator=generator), END
    return tokens, torch.tensor(lengths)


@pytest.mark.parametrize("buckets", [encoding.TEXT_BUCKETS, (8, 77), (40,), ()])
def test_buckets_change_neither_features_nor_gradients(buckets: tuple[int, ...]) -> None:
    """In float64 the features are open_clip's own to 1e-12, and so is every weight's gradient."""
    model = towers.build_model(TINY, 0).double()
    tokens, lengths = captions([3, 12, 13, 16, 40, 77, 48, 5])
    ours = encoding.encode_text(model, tokens, lengths, buckets)
    theirs = model.encode_text(tokens, normalize=True)
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-12)
    weights = [p for name, p in model.named_parameters() if not name.startswith("visual.") and name != "logit_scale"]
    direction = torch.randn(ours.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    for mine, other in zip(
        torch.autograd.grad((ours * direction).sum(), weights), torch.autograd.grad((theirs * direction).sum(), weights), strict=True
    ):
        torch.testing.assert_close(mine, other, rtol=0, atol=1e-12)


def test_the_first_end_token_pools() -> None:
    """A literal end token inside a caption ends it for open_clip, and for us, whatever `lengths` says."""
    model = towers.build_model(TINY, 0).double()
    tokens, lengths = captions([20, 30])
    tokens[0, 7] = END
    torch.testing.assert_close(encoding.encode_text(model, tokens, lengths), model.encode_text(tokens, normalize=True), rtol=0, atol=1e-12)


def test_a_short_context_is_padded_to_no_more_than_itself() -> None:
    """Buckets longer than the batch's own width are left out."""
    model = towers.build_model(TINY, 0).double()
    tokens, lengths = captions([5, 20], context=20)
    full = torch.zeros(2, 77, dtype=torch.int64)
    full[:, :20] = tokens
    torch.testing.assert_close(encoding.encode_text(model, tokens, lengths), model.encode_text(full, normalize=True), rtol=0, atol=1e-12)


def test_image_features_are_open_clips() -> None:
    """encode_image is open_clip's, normalised in float32 or better."""
    model = towers.build_model(TINY, 0)
    images = torch.randn(3, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(encoding.encode_image(model, images), model.encode_image(images, normalize=True))
    with torch.autocast("cpu", torch.bfloat16):
        features = encoding.encode_image(model, images)
    assert features.dtype == torch.float32
    torch.testing.assert_close(features.norm(dim=-1), torch.ones(3))


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_compiled_blocks_give_what_plain_ones_give() -> None:
    """placement.compile on a CPU: features and gradients to float32's rounding, at a batch and at a smaller last one."""
    model = towers.build_model(TINY, 0)
    weights = list(model.visual.parameters())
    for count in (6, 4):
        images = torch.randn(count, 3, 32, 32, generator=torch.Generator().manual_seed(count))
        found = []
        for compiled in (False, True):
            features = encoding.encode_image(model, images, compiled=compiled)
            found.append([features.detach(), *torch.autograd.grad(features[:, :3].sum(), weights)])
        for plain, fused in zip(*found, strict=True):
            torch.testing.assert_close(fused, plain, rtol=1e-4, atol=1e-5)


def test_other_blocks_than_open_clips_plain_ones_run_as_open_clip_runs_them() -> None:
    """At full length, whatever the captions' own; the context may be wider than the batch."""
    model = towers.build_model(TINY, 0).double()
    tokens, lengths = captions([5, 20], context=20)
    full = torch.nn.functional.pad(tokens, (0, 57))
    expected = model.encode_text(full, normalize=True), encoding.encode_text(model, tokens, lengths)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(encoding, "_plain", lambda transformer: False)
        found = encoding.encode_text(model, tokens, lengths)
    for other in expected:
        torch.testing.assert_close(found, other, rtol=0, atol=1e-12)
