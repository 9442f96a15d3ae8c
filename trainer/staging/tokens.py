"""Tokenise captions once, at staging: the ids of open_clip's SimpleTokenizer, with a cache of words."""

import functools
import importlib.util
import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

CONTEXT_LENGTH = 77
_MAX_CACHED_WORDS = 500_000  # bounds memory: a web-scale vocabulary is unlimited
_MAX_WORD_CHARS = 2048
"""Words are truncated to this length: BPE takes time quadratic in it, and 75 tokens cover far less."""
_UNTOUCHED = re.compile(r"[\t\n\x20-\x25\x27-\x7e]*")
"""ASCII without `&` and control characters: ftfy and html.unescape, the slow part of cleaning, would not change it."""


class Tokenizer:
    """Exactly SimpleTokenizer's ids (tests/staging/test_tokens.py), several times as fast. Loaded on first use."""

    def __init__(self) -> None:
        self._words: dict[str, tuple[int, ...]] = {}

    def __call__(self, captions: Sequence[str]) -> list[list[int]]:
        """Ids of each caption with start and end tokens, truncated to CONTEXT_LENGTH keeping the end token, unpadded."""
        encoder = _simple_tokenizer()
        start, end = encoder.sot_token_id, encoder.eot_token_id
        most = CONTEXT_LENGTH - 2
        return [[start, *self._encode(caption, most)[:most], end] for caption in captions]

    def text(self, tokens: Sequence[int]) -> str:
        """Decode ids, without the start token, everything from the first end token on, and invalid ids."""
        encoder = _simple_tokenizer()
        ids = [token for token in tokens if 0 <= token < len(encoder.decoder)]
        ids = ids[ids.index(encoder.sot_token_id) + 1 :] if encoder.sot_token_id in ids else ids
        ids = ids[: ids.index(encoder.eot_token_id)] if encoder.eot_token_id in ids else ids
        return str(encoder.decode(ids))

    def text_of_words(self, text: str) -> str:
        """Decode ids given as text, separated by spaces; empty if one of them is not a number."""
        words = text.split()
        return self.text([int(word) for word in words]) if all(word.isdecimal() and len(word) <= 9 for word in words) else ""

    def clean(self, caption: str) -> str:
        """The caption as the tokenizer reads it: entities, broken encodings, white space and case normalised."""
        return " ".join(caption.split()).lower() if _UNTOUCHED.fullmatch(caption) else str(_simple_tokenizer().clean_fn(caption))

    def _encode(self, caption: str, most: int = sys.maxsize) -> list[int]:
        """Ids of the caption's words, up to the word that brings them to `most`."""
        encoder = _simple_tokenizer()
        ids: list[int] = []
        for word in encoder.pat.findall(self.clean(caption)):
            word = word[:_MAX_WORD_CHARS]
            known = self._words.get(word)
            if known is None:
                known = self._encode_word(word)
            ids.extend(known)
            if len(ids) >= most:
                break
        return ids

    def _encode_word(self, word: str) -> tuple[int, ...]:
        """What SimpleTokenizer.encode does with one match of its pattern."""
        encoder = _simple_tokenizer()
        as_bytes = "".join(encoder.byte_encoder[byte] for byte in word.encode("utf-8"))
        ids = tuple(encoder.encoder[part] for part in encoder.bpe(as_bytes).split(" "))
        if len(self._words) >= _MAX_CACHED_WORDS:
            self._words.clear()
        self._words[word] = ids
        return ids


@functools.cache
def _simple_tokenizer() -> Any:
    """SimpleTokenizer, loaded from its file alone: `import open_clip` would spend seconds importing every model."""
    package = importlib.util.find_spec("open_clip")
    if package is None or package.origin is None:
        raise ModuleNotFoundError("open_clip_torch is not installed: captions cannot become tokens")
    spec = importlib.util.spec_from_file_location("firstsight_simple_tokenizer", Path(package.origin).with_name("tokenizer.py"))
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.SimpleTokenizer()
