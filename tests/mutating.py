"""Bytes that are almost right: a seeded mutator that knows numbers, lines, columns and lengths, for readers of what others wrote.

for data in mutations(good, seed=1, count=100):
read(data)          # returns, or raises what a reader may raise
"""

import random
import re
import struct
from collections.abc import Iterator

_NUMBER = re.compile(rb"-?[0-9]+(?:\.[0-9]+)?")
_WORD = re.compile(rb"[A-Za-z_]{2,}")
_NUMBERS = [
    b"-1", b"0", b"", b"nan", b"inf", b"-inf", b"1e999", b"1e-999", b"9" * 30, b"9" * 5000, b"0x10", b"1_0", b" 1", b"True", b"null",
    b"18446744073709551616", b"4294967296", b"2147483648", b"-9223372036854775808", b"1.5", "٣".encode(), b"'1'", b'"x"', b"[]", b"{}",
]  # fmt: skip
_WORDS = [
    b"", b"null", b"[" * 2000, b"{\"a\":" * 200, b"\\ud800", b"../../x", b"/", b"\0", b"\xff\xfe", b"\r", b"\n\n", b"\t", b'"', b"'",
    b"x" * 5000, b"$(x)", b"%s", b"&amp;", b"<!DOCTYPE x>", b"!!int ''", b"&a [*a]", b"*a", b"__class__", b"nan", b"NaN", b"Infinity",
]  # fmt: skip
_INTEGERS = [0, 1, 0x7F, 0x80, 0xFF, 0x7FFF, 0xFFFF, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF, 0x7FFFFFFFFFFFFFFF, 0xFFFFFFFFFFFFFFFF]


def mutations(data: bytes, seed: int, count: int) -> Iterator[bytes]:
    """`count` variants of `data`, the same for a seed."""
    source = random.Random(seed)
    for _ in range(count):
        changed = data
        for _ in range(source.choice((1, 1, 1, 2, 3))):
            changed = source.choice(_KINDS)(changed, source)
        yield changed


def _flip(data: bytes, source: random.Random) -> bytes:
    if not data:
        return b"\0"
    changed = bytearray(data)
    changed[source.randrange(len(data))] ^= 1 << source.randrange(8)
    return bytes(changed)


def _cut(data: bytes, source: random.Random) -> bytes:
    return data[: source.randrange(len(data) + 1)]


def _drop(data: bytes, source: random.Random) -> bytes:
    start = source.randrange(len(data) + 1)
    return data[:start] + data[start + source.choice((1, 2, 4, 16, 200)) :]


def _repeat(data: bytes, source: random.Random) -> bytes:
    start = source.randrange(len(data) + 1)
    part = data[start : start + source.choice((1, 4, 30, 512))]
    return data[:start] + part * source.choice((2, 5, 50)) + data[start:]


def _integer(data: bytes, source: random.Random) -> bytes:
    """A field of 1 to 8 bytes with an extreme value, in either order of bytes."""
    size, order = source.choice(((1, "B"), (2, "H"), (4, "I"), (8, "Q"))), source.choice("<>")
    value = source.choice(_INTEGERS) & ((1 << 8 * size[0]) - 1)
    start = source.randrange(max(1, len(data) - size[0] + 1))
    return data[:start] + struct.pack(order + size[1], value) + data[start + size[0] :]


def _early_integer(data: bytes, source: random.Random) -> bytes:
    """The same within a header."""
    return _integer(data[:256], source) + data[256:]


def _number(data: bytes, source: random.Random) -> bytes:
    return _exchange(data, _NUMBER, source.choice(_NUMBERS), source)


def _word(data: bytes, source: random.Random) -> bytes:
    return _exchange(data, _WORD, source.choice(_WORDS), source)


def _exchange(data: bytes, pattern: "re.Pattern[bytes]", new: bytes, source: random.Random) -> bytes:
    found = list(pattern.finditer(data[: 1 << 16]))
    if not found:
        return data + new
    match = source.choice(found)
    return data[: match.start()] + new + data[match.end() :]


def _lines(data: bytes, source: random.Random) -> bytes:
    """A line less, twice, or elsewhere."""
    lines = data.split(b"\n")
    line = lines.pop(source.randrange(len(lines)))
    for _ in range(source.randrange(3)):
        lines.insert(source.randrange(len(lines) + 1), line)
    return b"\n".join(lines)


def _column(data: bytes, source: random.Random) -> bytes:
    """A separator less, or one more."""
    separator = source.choice((b",", b"\t", b";", b":", b" ", b"{", b"[", b"<"))
    places = [match.start() for match in re.finditer(re.escape(separator), data[: 1 << 16])]
    if not places:
        return data
    start = source.choice(places)
    return data[:start] + (separator * 2 if source.random() < 0.5 else b"") + data[start + 1 :]


_KINDS = (_flip, _flip, _cut, _drop, _repeat, _integer, _early_integer, _number, _number, _word, _lines, _column)
