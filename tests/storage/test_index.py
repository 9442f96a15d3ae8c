"""The index codec: what goes in comes out, and nothing damaged is ever taken for an index."""

import dataclasses
import json
import struct

import google_crc32c
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from trainer.errors import InputError, RunError
from trainer.storage.index import FORMAT_VERSION, ShardIndex, decode_index, encode_index

_KEYS = st.text(st.characters(exclude_characters="\n", exclude_categories=("Cs",)), max_size=12)
_CAPTIONS = st.lists(st.lists(st.integers(0, 65535), max_size=5), max_size=3)


def make_index(keys: list[str], members: list[str], captions: list[list[list[int]]], seed: int = 0) -> ShardIndex:
    """An index of samples with these keys, members and caption tokens; sizes and checksums are drawn from the seed."""
    rng = np.random.default_rng(seed)
    shape = (len(keys), len(members))
    sizes = rng.integers(0, 100_000, shape, dtype=np.uint32)
    ends = np.cumsum(sizes, dtype=np.uint64).reshape(shape)
    return ShardIndex(
        shard="shard-0-0.tar",
        shard_size=int(ends.max(initial=0)) + 1024,
        shard_crc32c=int(rng.integers(2**32)),
        members=tuple(members),
        keys=tuple(keys),
        offsets=ends - sizes,
        sizes=sizes,
        crc32c=rng.integers(0, 2**32, shape, dtype=np.uint32),
        caption_ends=np.cumsum([len(one) for one in captions]).astype(np.uint32),
        token_ends=np.cumsum([len(tokens) for one in captions for tokens in one]).astype(np.uint32),
        tokens=np.array([token for one in captions for tokens in one for token in tokens], np.uint16),
    )


@st.composite
def indexes(draw: st.DrawFn) -> ShardIndex:
    """Any index: no samples, no captions, empty captions and keys of any Unicode included."""
    keys = draw(st.lists(_KEYS, max_size=6))
    members = draw(st.lists(st.sampled_from(["image", "txt", "json", "ref.png"]), min_size=1, unique=True))
    captions = draw(st.lists(_CAPTIONS, min_size=len(keys), max_size=len(keys)))
    return make_index(keys, members, captions, draw(st.integers(0, 2**16)))


SMALL = make_index(["a", "ключ"], ["image", "txt"], [[[49406, 5, 49407], [49406, 49407]], [[49406, 7, 49407]]])


@given(indexes())
@settings(deadline=None, max_examples=60)
def test_round_trip(index: ShardIndex) -> None:
    """Every field comes back with its values, shapes and types."""
    data = encode_index(index)
    again = decode_index(data, "x.index")
    for field in dataclasses.fields(ShardIndex):
        before, after = getattr(index, field.name), getattr(again, field.name)
        if isinstance(before, np.ndarray):
            assert after.dtype == before.dtype
            assert after.shape == before.shape
            assert np.array_equal(after, before)
        else:
            assert after == before
    assert encode_index(again) == data


@given(indexes())
@settings(deadline=None, max_examples=60)
def test_captions(index: ShardIndex) -> None:
    """The captions of all samples, in order, are all the tokens."""
    captions = [caption for sample in range(index.num_samples) for caption in index.captions(sample)]
    assert [len(caption) for caption in captions] == np.diff(index.token_ends, prepend=0).tolist()
    assert [token for caption in captions for token in caption.tolist()] == index.tokens.tolist()


def test_captions_of_one_sample() -> None:
    """A sample's captions are its own."""
    assert [caption.tolist() for caption in SMALL.captions(0)] == [[49406, 5, 49407], [49406, 49407]]
    assert [caption.tolist() for caption in SMALL.captions(1)] == [[49406, 7, 49407]]


def test_every_flipped_bit_is_refused() -> None:
    """No single flipped bit anywhere in the file passes."""
    data = encode_index(SMALL)
    for position in range(len(data)):
        for bit in range(8):
            damaged = bytearray(data)
            damaged[position] ^= 1 << bit
            with pytest.raises((RunError, InputError), match=r"x\.index: "):
                decode_index(bytes(damaged), "x.index")


def test_every_cut_is_refused() -> None:
    """No beginning of an index is an index, nor is one with something after it."""
    data = encode_index(SMALL)
    for length in range(len(data)):
        with pytest.raises(RunError, match=r"x\.index: "):
            decode_index(data[:length], "x.index")
    with pytest.raises(RunError, match="checksum"):
        decode_index(data + b"\0", "x.index")


def test_newer_format_is_named() -> None:
    """An index of a later firstsight is refused as such, whatever its checksum is like."""
    data = bytearray(encode_index(SMALL))
    data[8:12] = struct.pack("<I", FORMAT_VERSION + 1)
    with pytest.raises(InputError, match=rf"format {FORMAT_VERSION + 1} is newer than this firstsight can read \({FORMAT_VERSION}\)"):
        decode_index(bytes(data), "x.index")


@pytest.mark.parametrize(
    ("change", "rule"),
    [
        (lambda index: {"shard_size": 10}, "past the end"),
        (lambda index: {"caption_ends": np.array([3, 2], np.uint32)}, "are inconsistent"),
        (lambda index: {"caption_ends": np.array([2, 4], np.uint32)}, "are inconsistent"),
        (lambda index: {"token_ends": np.array([3, 2, 8], np.uint32)}, "are inconsistent"),
        (lambda index: {"token_ends": np.array([3, 5, 7], np.uint32)}, "are inconsistent"),
        (lambda index: {"offsets": index.offsets[:1]}, r"as described in docs/FORMAT\.md"),
        (lambda index: {"offsets": np.full_like(index.offsets, 2**64 - 1), "sizes": np.full_like(index.sizes, 2)}, "past the end"),
        (lambda index: {"shard_size": -1}, "its shard_size must be a whole number"),
        (lambda index: {"shard_size": 2**70}, "its shard_size must be a whole number"),
        (lambda index: {"shard_size": "1"}, "its shard_size must be a whole number"),
        (lambda index: {"shard_crc32c": 2**32}, "its shard_crc32c must be a whole number from 0 to 4294967295"),
        (lambda index: {"shard": 5}, "its shard must be a name"),
        (lambda index: {"members": ("image", "image")}, "two of its members have the same name"),
    ],
)
def test_nonsense_with_a_right_checksum(change: object, rule: str) -> None:
    """What a faulty writer sealed is refused by what is wrong with it, not met as a wrong slice later."""
    index = dataclasses.replace(SMALL, **change(SMALL))  # type: ignore[operator]
    with pytest.raises(RunError, match=rule):
        decode_index(encode_index(index), "x.index")


def header_of(**changed: object) -> bytes:
    """The header of an empty index, with other values."""
    counts = dict.fromkeys(("num_samples", "num_captions", "num_tokens", "key_bytes", "shard_size", "shard_crc32c"), 0)
    return json.dumps({"shard": "x.tar", "members": ["image"], **counts, **changed}).encode()


@pytest.mark.parametrize(
    "header",
    [
        b"{}", b"[]", b"{", b"\xff", b"[" * 100_000, b"9" * 5000, header_of(num_samples=-1), header_of(num_samples=True),
        header_of(num_samples=1.0), header_of(num_samples="1"), header_of(num_samples=None), header_of(num_samples=2**62),
        header_of(num_samples=2**70), header_of(num_tokens=2**63 - 1), header_of(num_captions=[1]), header_of(key_bytes=-5),
        header_of(members=5), header_of(members=[[1]]), header_of(members={"a": 1}), header_of(shard=["x"]),
    ],
)  # fmt: skip
def test_wrong_header_with_a_right_checksum(header: bytes) -> None:
    """A header that is none is refused in one line."""
    body = struct.pack("<8sII", b"FSINDEX\0", FORMAT_VERSION, len(header)) + header
    with pytest.raises(RunError, match=r"x\.index: not an index"):
        decode_index(body + struct.pack("<I", google_crc32c.value(body)), "x.index")
