"""Captions as CLIP's token ids, once, at staging."""

from collections.abc import Sequence
from typing import Protocol

CONTEXT_LENGTH = 77


class _Encoder(Protocol):
    sot_token_id: int
    eot_token_id: int

    def encode(self, text: str) -> list[int]: ...


class Tokenizer:
    """open_clip's SimpleTokenizer; importing it costs seconds (torch), so it is imported when the first caption comes."""

    def __init__(self) -> None:
        self._encoder: _Encoder | None = None

    def __call__(self, captions: Sequence[str]) -> list[list[int]]:
        """Ids of each caption with start and end, cut to CONTEXT_LENGTH with the end last, unpadded."""
        if self._encoder is None:
            from open_clip.tokenizer import SimpleTokenizer

            self._encoder = SimpleTokenizer()
        start, end = self._encoder.sot_token_id, self._encoder.eot_token_id
        return [[start, *self._encoder.encode(caption)[: CONTEXT_LENGTH - 2], end] for caption in captions]
