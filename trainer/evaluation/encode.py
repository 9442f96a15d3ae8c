"""A model as the evaluation sees it, and one pass of pictures through several of them.

Decoding costs more than a small tower, so each picture is decoded once for all models that want it.
"""

import itertools
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from functools import lru_cache
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from trainer.config import ModelConfig
from trainer.data.augment import normalise
from trainer.errors import InputError, RunError
from trainer.lineage import weights_sha256
from trainer.model.clip import CLIP, simple_tokenizer
from trainer.model.encoding import encode_image, encode_layers, encode_text
from trainer.model.towers import model_state, resolve, vision_state

Decode = Callable[[bytes], Tensor]


class Encoder:
    """Both towers of one model, in evaluation mode on their device.

    Attributes:
        name: of the model, for errors.
        image_size: side of its input.
        widths: of its vision tower's layers, the image features last.
    """

    def __init__(self, name: str, model: CLIP, config: ModelConfig, device: torch.device, precision: Literal["fp32", "bf16"]):
        size = resolve(config)
        self.name = name
        self.image_size = size["image_size"]
        self.widths = [size["vision_width"]] * size["vision_layers"] + [size["embed_dim"]]
        self._model = model.to(device).eval()
        self._tokenizer = _tokenizer(size["context_length"])
        self._device = device
        self._autocast = precision == "bf16"
        self._classifiers: dict[str, Tensor] = {}

    @torch.inference_mode()
    def images(self, images: Tensor) -> Tensor:
        """Features of images.

        Args:
            images: (B, 3, S, S) uint8.

        Returns:
            (B, D) float32 on the CPU, L2-normalised.
        """
        with torch.autocast(self._device.type, torch.bfloat16, enabled=self._autocast):
            return encode_image(self._model, normalise(images.to(self._device))).float().cpu()

    @torch.inference_mode()
    def layers(self, images: Tensor) -> Tensor:
        """What each layer makes of images (B, 3, S, S) uint8: (B, sum of `widths`) float32 on the CPU, layer after layer."""
        with torch.autocast(self._device.type, torch.bfloat16, enabled=self._autocast):
            found, _ = encode_layers(self._model, normalise(images.to(self._device)))
        return torch.cat([layer.float() for layer in found], dim=1).cpu()

    @torch.inference_mode()
    def tower(self, images: Tensor) -> Tensor:
        """What a probe reads of images (B, 3, S, S) uint8: (B, W) float32 on the CPU, before the projection, not normalised."""
        with torch.autocast(self._device.type, torch.bfloat16, enabled=self._autocast):
            return encode_layers(self._model, normalise(images.to(self._device)))[1].float().cpu()

    def texts(self, texts: Sequence[str]) -> Tensor:
        """Features of texts: (len(texts), D) float32 on the CPU, L2-normalised."""
        return self.read(self.tokens(texts))

    def tokens(self, texts: Sequence[str]) -> Tensor:
        """What the model reads of texts: (len(texts), context length) int64. Equal rows are one text to it."""
        tokens: Tensor = self._tokenizer(list(texts))
        return tokens

    @torch.inference_mode()
    def read(self, tokens: Tensor) -> Tensor:
        """Features of texts by their tokens: (B, D) float32 on the CPU, L2-normalised."""
        lengths = tokens.argmax(dim=-1) + 1  # the first EOT has the highest id
        with torch.autocast(self._device.type, torch.bfloat16, enabled=self._autocast):
            return encode_text(self._model, tokens.to(self._device), lengths).float().cpu()

    def weights_sha256(self) -> str:
        """Hash of all weights, as a seal would give it."""
        return weights_sha256({name: value.numpy() for name, value in model_state(self._model).items()})

    def vision_weights(self) -> dict[str, Tensor]:
        """The vision tower's weights by name: float32, on the CPU."""
        return vision_state(self._model)

    def classifier(self, key: str, build: Callable[[], Tensor]) -> Tensor:
        """The text classifier (D, C) of the prompts `key`, built once: the ImageNet family shares 80,000 prompts."""
        if key not in self._classifiers:
            self._classifiers[key] = build()
        return self._classifiers[key]


@lru_cache
def _tokenizer(context_length: int) -> Any:
    return simple_tokenizer(context_length)


def embed(
    encoders: Sequence[Encoder],
    pictures: Iterator[bytes],
    decode: Decode,
    batch_size: int,
    threads: int,
    advance: Callable[[int], None],
    where: Callable[[int], str],
    run: Callable[[Encoder, Tensor], Tensor] | None = None,
) -> list[Tensor]:
    """Features of all pictures by every encoder, from one pass over them.

    Args:
        encoders: of one image size.
        pictures: encoded images.
        decode: bytes -> (3, S, S) uint8.
        batch_size: pictures a batch; it bounds memory.
        threads: that decode; the next batch is decoded while the towers run.
        advance: told how many pictures were just done.
        where: the sample of a picture, by the picture's number, for errors.
        run: an encoder on a batch; None: its image features.

    Returns:
        For each encoder (N, D) float32 on the CPU; image features are L2-normalised.

    Raises:
        RunError: a picture that cannot be decoded, and where it lies.
    """
    run = run or Encoder.images
    features: list[list[Tensor]] = [[] for _ in encoders]
    done = 0
    with ThreadPoolExecutor(threads) as pool:

        def submit() -> list[Future[Tensor]]:
            return [pool.submit(decode, data) for data in itertools.islice(pictures, batch_size)]

        pending = submit()
        while pending:
            images = torch.stack([_decoded(future, where, done + number) for number, future in enumerate(pending)])
            done += len(images)
            pending = submit()
            for encoder, parts in zip(encoders, features, strict=True):
                parts.append(run(encoder, images))
            advance(len(images))
    return [torch.cat(features.pop(0)) for _ in encoders]  # what is done is freed: layers take gigabytes


def _decoded(future: Future[Tensor], where: Callable[[int], str], number: int) -> Tensor:
    try:
        return future.result()
    except (InputError, RunError) as error:
        raise type(error)(f"{where(number)}: {error}") from error


def check_finite(encoder: Encoder, features: Tensor, names: Sequence[str], what: str) -> None:
    """Refuse features that are not numbers, naming the model, the set and the first item.

    Args:
        encoder: that made them.
        features: (N, D).
        names: N items.
        what: the set and the kind of item, in words.
    """
    bad = torch.nonzero(~torch.isfinite(features).all(dim=1)).flatten()
    if len(bad):
        raise RunError(f"{encoder.name}: features of {len(bad)} of {len(features)} {what} contain NaN or Inf, first {names[int(bad[0])]!r}")


def effective_rank(features: Tensor) -> float:
    """exp(entropy of the shares of variance): 1 if all features are one, at most D.

    Args:
        features: (N, D).

    Source: Roy and Vetterli 2007, over the eigenvalues of the covariance.
    """
    centred = features.double() - features.double().mean(dim=0)
    spectrum = torch.linalg.eigvalsh(centred.T @ centred).clamp(min=0).numpy()
    if spectrum.sum() <= 0:
        return 1.0
    shares = spectrum[spectrum > 0] / spectrum.sum()
    return float(np.exp(-(shares * np.log(shares)).sum()))
