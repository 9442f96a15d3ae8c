"""Captions as CLIP's token ids, once, at staging: the ids of open_clip's SimpleTokenizer, with a cache of words before it."""

import functools
import importlib.util
import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

CONTEXT_LENGTH = 77
_MAX_CACHED_WORDS = 500_000  # bounds memory: the vocabulary of a web-scale corpus has no end
_MAX_WORD_CHARS = 2048
"""A word is cut there: pairing its letters takes a time that grows with their square, and 75 tokens hold far fewer."""
_UNTOUCHED = re.compile(r"[\t\n\x20-\x25\x27-\x7e]*")
"""ASCII without `&` and control characters: ftfy and html.unescape, the slow part of cleaning, leave it as it is."""


class Tokenizer:
    """SimpleTokenizer's ids, exactly (tests/staging/test_tokens.py), several times as fast. Loaded when the first caption comes."""

    def __init__(self) -> None:
        self._words: dict[str, tuple[int, ...]] = {}

    def __call__(self, captions: Sequence[str]) -> list[list[int]]:
        """Ids of each caption with start and end, cut to CONTEXT_LENGTH with the end last, unpadded."""
        encoder = _simple_tokenizer()
        start, end = encoder.sot_token_id, encoder.eot_token_id
        most = CONTEXT_LENGTH - 2
        return [[start, *self._encode(caption, most)[:most], end] for caption in captions]

    def text(self, tokens: Sequence[int]) -> str:
        """The words that ids stand for; start, all from the first end on, and what is no id of CLIP's are left out."""
        encoder = _simple_tokenizer()
        ids = [token for token in tokens if 0 <= token < len(encoder.decoder)]
        ids = ids[ids.index(encoder.sot_token_id) + 1 :] if encoder.sot_token_id in ids else ids
        ids = ids[: ids.index(encoder.eot_token_id)] if encoder.eot_token_id in ids else ids
        return str(encoder.decode(ids))

    def text_of_words(self, text: str) -> str:
        """The same of ids in words, separated by blanks; empty if one of them is no number."""
        words = text.split()
        return self.text([int(word) for word in words]) if all(word.isdecimal() and len(word) <= 9 for word in words) else ""

    def clean(self, caption: str) -> str:
        """The caption as it is read: entities, broken encodings, blanks and case are made one."""
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
    """SimpleTokenizer, from its file alone: `import open_clip` would import every model it has, for seconds."""
    package = importlib.util.find_spec("open_clip")
    if package is None or package.origin is None:
        raise ModuleNotFoundError("open_clip_torch is not installed: captions cannot become tokens")
    spec = importlib.util.spec_from_file_location("firstsight_simple_tokenizer", Path(package.origin).with_name("tokenizer.py"))
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.SimpleTokenizer()
