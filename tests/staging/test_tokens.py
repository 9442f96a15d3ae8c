"""Staged tokens are SimpleTokenizer's, whatever the caption."""

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from trainer.staging.tokens import CONTEXT_LENGTH, Tokenizer


@pytest.fixture(scope="module")
def tokenizers() -> tuple[Tokenizer, Any]:
    """Ours, and the one that it must equal."""
    from open_clip.tokenizer import SimpleTokenizer

    return Tokenizer(), SimpleTokenizer()


def reference(tokenizer: Any, text: str) -> list[int]:
    """SimpleTokenizer's row without its padding; a pad is 0, and so is the token `!`: count from the unpadded ids."""
    return list(tokenizer(text)[0][: min(CONTEXT_LENGTH, len(tokenizer.encode(text)) + 2)].tolist())


@settings(max_examples=100, deadline=None)
@given(text=st.text(max_size=60))
def test_all_of_unicode(tokenizers: tuple[Tokenizer, Any], text: str) -> None:
    """Any string of code points, surrogates apart."""
    ours, theirs = tokenizers
    assert ours([text]) == [reference(theirs, text)]


@pytest.mark.slow
def test_every_code_point(tokenizers: tuple[Tokenizer, Any]) -> None:
    """Each character of Unicode once, surrogates apart, alone as a word and glued to its neighbours."""
    ours, theirs = tokenizers
    ours([""])  # loads
    points = [chr(point) for point in range(0x110000) if not 0xD800 <= point <= 0xDFFF]
    for start in range(0, len(points), 128):
        part = points[start : start + 128]
        for text in (" ".join(part), "".join(part)) if start < 0x30000 else (" ".join(part),):
            assert ours._encode(text) == theirs.encode(text)


@settings(max_examples=100, deadline=None)
@given(text=st.text(alphabet=st.characters(max_codepoint=127), max_size=60))
def test_all_of_ascii(tokenizers: tuple[Tokenizer, Any], text: str) -> None:
    """Control characters and entities too: what ftfy leaves alone takes the short way, the rest must not."""
    ours, theirs = tokenizers
    assert ours([text]) == [reference(theirs, text)]


@pytest.mark.parametrize(
    "text",
    [
        "<|endoftext|>", "a <|startoftext|> b", "<start_of_text> x <end_of_text> y", "&amp;lt; caf&eacute;", "don't we'll I'M",
        "a\r\nb\tc", "\x1b[31mred\x1b[0m", "ﬁnd the ﬂag", "“curly” ‘quotes’", "Ã©tÃ©", "日本語 🇯🇵 👩🏽‍🚀",
        "!", "", " ", "word " * 100, "x" * 500,
    ],
)  # fmt: skip
def test_what_is_known_to_be_tricky(tokenizers: tuple[Tokenizer, Any], text: str) -> None:
    """Literal special tokens, entities, contractions, mojibake, emoji, captions that are too long."""
    ours, theirs = tokenizers
    assert ours([text]) == [reference(theirs, text)]


def test_a_full_cache_starts_anew(tokenizers: tuple[Tokenizer, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """Memory is bounded, and ids stay right."""
    monkeypatch.setattr("trainer.staging.tokens._MAX_CACHED_WORDS", 3)
    ours, theirs = tokenizers
    text = "one two three four five six seven one two"
    assert ours([text]) == [reference(theirs, text)]
    assert len(ours._words) <= 3
