"""Forward passes of the towers: pictures and captions to unit features, with open_clip's modules and weights.

The result is the same as with open_clip's own forward, for less work. Captions are padded only to about their own length, the last
block runs only for the token that is read afterwards, patches are extracted with a view and multiplied instead of convolved,
and attention gets no mask tensor. Tokens of all sequences are packed end to end, so that matrix products are few and large.

Shapes: B batch, L tokens of a sequence, T tokens of all sequences, D joint width, W tower width.
"""

import functools
from collections.abc import Callable, Sequence
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor

from trainer.device import sent
from trainer.errors import InputError
from trainer.model.clip import CLIP

TEXT_BUCKETS = (12, 16, 24, 32, 48, 77)
"""Bucket lengths: each caption goes into the shortest bucket that fits it. Six buckets save nearly as much as packing would."""

SHORT = 96
"""Sequences up to this length attend fastest with torch's memory-efficient kernel (H100, bf16: a quarter less than cuDNN's at 50)."""

_MOST_SHAPES = 16
"""Recompilation limit: a post-hoc stage needs seven (first block and others, with and without gradients, sizes); torch's default is 8."""

Shapes = tuple[tuple[int, int], ...]
"""The layout of sequences in T, bucket by bucket: (number of sequences, their length)."""


def encode_image(model: CLIP, images: Tensor, *, compiled: bool = False) -> Tensor:
    """Image features.

    Args:
        model: the towers.
        images: (B, 3, S, S), normalised with CLIP's mean and deviation.
        compiled: run the blocks through torch.compile.

    Returns:
        (B, D), L2-normalised, float32 (float64 where the weights are).
    """
    visual = model.visual
    if not _read_at_class_token(visual):
        return normalize(visual(images))
    return normalize(visual.ln_post(_class_tokens(visual, images, compiled=compiled)) @ visual.proj)


def encode_layers(model: CLIP, images: Tensor) -> tuple[list[Tensor], Tensor]:
    """Features of images after each layer of the vision tower.

    Args:
        model: the towers.
        images: (B, 3, S, S), normalised with CLIP's mean and deviation.

    Returns:
        The class token after each block, (B, W) each, then the image features as returned by `encode_image`, (B, D); and the input of a
        linear probe, the last class token after its LayerNorm and before the projection, (B, W).
    """
    visual = model.visual
    if not _read_at_class_token(visual):
        raise InputError("representation needs a vision tower whose output is its class token; this model's is not")
    layers: list[Tensor] = []
    tower = visual.ln_post(_class_tokens(visual, images, layers))
    return [*layers, normalize(tower @ visual.proj)], tower


def _read_at_class_token(visual: Any) -> bool:
    return visual.attn_pool is None and visual.pool_type == "tok" and _plain(visual.transformer)


def _class_tokens(visual: Any, images: Tensor, layers: list[Tensor] | None = None, *, compiled: bool = False) -> Tensor:
    """The class token of each image after the last block, (B, W); `layers` gets the one after each block, including the last."""
    x = _embed_patches(visual, images)
    count, length = x.shape[:2]
    places = torch.arange(0, count * length, length, device=x.device)
    shapes = ((count, length),)
    run = _compiled(_image_block) if compiled else _image_block
    x, blocks = x.flatten(0, 1), visual.transformer.resblocks
    for block in blocks[:-1]:
        x = run(block, x, shapes)
        if layers is not None:
            layers.append(x[places])
    x = _image_block(blocks[-1], x, shapes, places)
    if layers is not None:
        layers.append(x)
    return x


def encode_text(model: CLIP, tokens: Tensor, lengths: Tensor, buckets: Sequence[int] = TEXT_BUCKETS, *, compiled: bool = False) -> Tensor:
    """Text features; each caption is padded to the shortest bucket that fits it, or not at all if a kernel supports that.

    This is exact: the tower is causal and pools at the first EOT, so tokens after a caption's end have no effect.

    Args:
        model: the towers.
        tokens: (B, L) int64, zero after each caption.
        lengths: (B,) int64 on the CPU, tokens of each caption including start and end; the split into buckets is done on the CPU,
            without synchronisation.
        buckets: increasing lengths; captions longer than the last are padded to L. Empty: all are padded to L.
        compiled: run the blocks through torch.compile if captions run at their own lengths; buckets, whose sizes always change,
            would be recompiled again and again.

    Returns:
        (B, D), L2-normalised, float32 (float64 where the weights are).
    """
    if not _plain(model.transformer):
        return model.encode_text(F.pad(tokens, (0, model.context_length - tokens.shape[1])), normalize=True)  # type: ignore[no-any-return]
    width, device = tokens.shape[1], tokens.device
    lengths = lengths.clamp(max=width)
    own_length = bool(buckets) and _kernel_for_any_length(device)
    if not own_length:
        edges = torch.tensor([edge for edge in buckets if edge < width] + [width])
        lengths = edges[torch.bucketize(lengths, edges)]
    order = torch.argsort(lengths, stable=True)
    lengths = lengths[order]
    ends = lengths.cumsum(0)
    begins = ends - lengths
    # the index of each of the T tokens in `tokens`, and its position in its caption
    place = torch.arange(int(ends[-1])) - begins.repeat_interleave(lengths)
    where = (order * width).repeat_interleave(lengths) + place
    starts = F.pad(ends.to(torch.int32), (1, 0))
    # with one copy, and sorted back with indices that the CPU already has
    begins, place, where, order, back, starts = sent([begins, place, where, order, torch.argsort(order), starts], device)
    # one look-up for all captions, since its gradient has the size of the vocabulary, however few tokens there are
    x = model.token_embedding(tokens.flatten()[where]) + F.embedding(place, model.positional_embedding)
    end_of_text = begins + tokens[order].argmax(dim=-1)
    blocks = model.transformer.resblocks
    if own_length:
        run = _compiled(_packed_text_block) if compiled else _packed_text_block
        for block in blocks[:-1]:
            x = run(block, x, starts, width)
        x = _packed_text_block(blocks[-1], x, starts, width, end_of_text)
    else:
        values, counts = torch.unique_consecutive(lengths, return_counts=True)
        shapes = tuple(zip(counts.tolist(), values.tolist(), strict=True))
        for block in blocks[:-1]:
            x = _text_block(block, x, shapes)
        x = _text_block(blocks[-1], x, shapes, end_of_text)
    features = model.ln_final(x) @ model.text_projection
    return normalize(features[back])


def normalize(features: Tensor) -> Tensor:
    """(B, D) of any precision -> unit length, float32 or float64."""
    return F.normalize(features if features.dtype == torch.float64 else features.float(), dim=-1)


# ---------------------------------------------------------------------------------------------------- blocks


def _image_block(block: Any, x: Tensor, shapes: Shapes, read: Tensor | None = None) -> Tensor:
    return _block(block, x, lambda qkv: _attend_by_run(qkv, block.attn.num_heads, shapes, causal=False), read)


def _text_block(block: Any, x: Tensor, shapes: Shapes, read: Tensor | None = None) -> Tensor:
    return _block(block, x, lambda qkv: _attend_by_run(qkv, block.attn.num_heads, shapes, causal=True), read)


def _packed_text_block(block: Any, x: Tensor, starts: Tensor, longest: int, read: Tensor | None = None) -> Tensor:
    return _block(block, x, lambda qkv: _attend_packed(qkv, block.attn.num_heads, starts, longest), read)


def _block(block: Any, x: Tensor, attend: Callable[[Tensor], Tensor], read: Tensor | None) -> Tensor:
    """Tokens (T, W) through a block; if `read` (B,) is given, only those tokens are returned, (B, W).

    The outputs of other tokens in the last block are never read, so its output projection and MLP run for one token per
    sequence, which saves nearly a twelfth of the tower's work.
    """
    attended = attend(F.linear(block.ln_1(x), block.attn.in_proj_weight, block.attn.in_proj_bias))
    if read is not None:
        x, attended = x[read], attended[read]
    x = x + block.ls_1(block.attn.out_proj(attended))
    return x + block.ls_2(block.mlp(block.ln_2(x)))  # type: ignore[no-any-return]


def _attend_by_run(qkv: Tensor, heads: int, shapes: Shapes, *, causal: bool) -> Tensor:
    """Queries, keys and values (T, 3 W) -> (T, W), one group of equally long sequences at a time; unmasked or causal, for fused kernels."""
    parts = []
    for (count, length), part in zip(shapes, qkv.split([count * length for count, length in shapes]), strict=True):  # type: ignore[no-untyped-call]
        query, key, value = part.view(count, length, 3, heads, -1).unbind(2)
        if length <= SHORT and qkv.is_cuda and qkv.dtype == torch.bfloat16:
            attended = _attend_efficiently(query, key, value, causal=causal)
        else:
            query, key, value = (x.transpose(1, 2) for x in (query, key, value))
            attended = F.scaled_dot_product_attention(query, key, value, is_causal=causal).transpose(1, 2)
        parts.append(attended.flatten(2).flatten(0, 1))
    return torch.cat(parts) if len(parts) > 1 else parts[0]


def _attend_packed(qkv: Tensor, heads: int, starts: Tensor, longest: int) -> Tensor:
    """The same over sequences of any lengths, causal; they begin at `starts`, (B + 1,) int32, whose last element is T.

    Flash attention over such sequences (torch.nn.attention.varlen) reads 128 keys at a time: for captions of 24 tokens it
    took 2.4 times as long.
    """
    query, key, value = qkv.view(1, len(qkv), 3, heads, -1).unbind(2)
    return _attend_efficiently(query, key, value, starts, longest, causal=True).flatten(2)[0]


def _attend_efficiently(
    query: Tensor, key: Tensor, value: Tensor, starts: Tensor | None = None, longest: int | None = None, *, causal: bool
) -> Tensor:
    """(b, l, heads, d) each -> (b, l, heads, d), by the kernel behind scaled_dot_product_attention's memory-efficient back end.

    The kernel is called directly because the public function has no argument for `starts`, and because choosing a back end
    there (sdpa_kernel) also affects later calls.
    """
    attend = torch.ops.aten._efficient_attention_forward
    found = attend(query, key, value, None, starts, starts, longest, longest, 0.0, int(causal), query.requires_grad)
    return cast(Tensor, found[0])


def _kernel_for_any_length(device: torch.device) -> bool:
    """Whether attention over packed sequences runs here: bf16, from NVIDIA's Ampere on."""
    return (
        device.type == "cuda"
        and torch.is_autocast_enabled("cuda")
        and torch.get_autocast_dtype("cuda") == torch.bfloat16
        and torch.cuda.get_device_capability(device) >= (8, 0)
    )


@functools.cache
def _compiled(block: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """A block's compiled function, shared by all blocks of a tower.

    T of text changes with each batch, so it is a dynamic dimension; images have few shapes (chunks, the last chunk, validation), each
    compiled separately. By default torch makes every dimension dynamic that has changed once, so a resumed process, which sees shapes
    in a different order, would run different kernels.
    """
    compiled: Callable[..., Tensor] = torch.compile(  # type: ignore[call-overload]  # its stubs lack recompile_limit
        block, dynamic=block is _packed_text_block, recompile_limit=_MOST_SHAPES
    )
    return compiled


def _plain(transformer: Any) -> bool:
    """Whether all blocks are open_clip's default blocks, whose forward we replace; the package is loaded under two names."""
    names = {(type(block).__module__.rpartition(".")[2], type(block).__name__) for block in transformer.resblocks}
    return names == {("transformer", "ResidualAttentionBlock")}


def _embed_patches(visual: Any, images: Tensor) -> Tensor:
    """(B, 3, S, S) -> class token and patches, (B, L, W). A convolution whose stride equals its kernel size is a matrix product."""
    weight, (height, width) = visual.conv1.weight, visual.conv1.kernel_size
    count, channels, *sides = images.shape
    cut = images.reshape(count, channels, sides[0] // height, height, sides[1] // width, width).permute(0, 2, 4, 1, 3, 5)
    x = F.linear(cut.reshape(count, -1, channels * height * width), weight.flatten(1), visual.conv1.bias)
    x = torch.cat([visual.class_embedding.to(x.dtype).expand(count, 1, -1), x], dim=1)
    return visual.ln_pre(visual.patch_dropout(x + visual.positional_embedding.to(x.dtype)))  # type: ignore[no-any-return]
