"""Twins in a retrieval set: captions that read alike and pictures of the same bytes, which no model can tell apart.

A caption and a picture *belong together* where the picture, or one of the same bytes, has this caption, or one that reads the same.
`recall@k` asks for a caption's own picture and is CLIP_benchmark's; `recall_any_twin@k` takes every picture that belongs to it.

I pictures, T captions; caption t stands on picture `owner_T[t]`.
"""

from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Numbers = NDArray[np.int64]


def number_equals(keys: Sequence[bytes]) -> Numbers:
    """Equal keys get equal numbers: (len(keys),), counted from 0 in the order of first sight."""
    seen: dict[bytes, int] = {}
    return np.array([seen.setdefault(key, len(seen)) for key in keys], np.int64)


@dataclass(frozen=True, kw_only=True)
class Twins:
    """Which captions and pictures of a set are alike.

    Attributes:
        owner_T: the picture of each caption.
        text_T: a number for each caption, the same for those that read alike.
        image_I: a number for each picture, the same for those of the same bytes.
    """

    owner_T: Numbers
    text_T: Numbers
    image_I: Numbers

    def right_images(self) -> list[Numbers]:
        """For each caption every picture that belongs to it, in order."""
        images = _places(self.image_I)
        kinds: dict[int, set[int]] = defaultdict(set)
        for text, owner in zip(self.text_T.tolist(), self.owner_T, strict=True):
            kinds[text].add(int(self.image_I[owner]))
        right = {text: np.sort(np.concatenate([images[kind] for kind in found])) for text, found in kinds.items()}
        return [right[text] for text in self.text_T.tolist()]

    def right_texts(self) -> list[Numbers]:
        """For each picture every caption that belongs to it, in order."""
        texts = _places(self.text_T)
        kinds: dict[int, set[int]] = defaultdict(set)
        for text, owner in zip(self.text_T.tolist(), self.owner_T, strict=True):
            kinds[int(self.image_I[owner])].add(text)
        right = {image: np.sort(np.concatenate([texts[kind] for kind in found])) for image, found in kinds.items()}
        return [right[image] for image in self.image_I.tolist()]

    def families(self) -> Numbers:
        """(I,): pictures that hang together by captions or bytes get the number of the first of them."""
        family: list[int] = list(range(len(self.image_I)))

        def root(image: int) -> int:
            while family[image] != image:
                family[image] = family[family[image]]
                image = family[image]
            return image

        owners = (self.owner_T[places] for places in _places(self.text_T).values())
        for alike in (*owners, *_places(self.image_I).values()):
            for image in alike.tolist():
                first, second = sorted((root(int(alike[0])), root(image)))
                family[second] = first
        return np.array([root(image) for image in family], np.int64)

    def image_ceiling(self, k: int) -> float:
        """The most that `image_retrieval_recall@k` can be: captions that read alike get one list of k pictures between them."""
        place_I = _place_among_equals(self.image_I)
        found = 0
        for captions in _places(self.text_T).values():
            owners = Counter(int(owner) for owner in self.owner_T[captions] if place_I[owner] < k)
            found += sum(count for _, count in owners.most_common(k))
        return found / len(self.text_T)

    def text_ceiling(self, k: int) -> float:
        """The most that `text_retrieval_recall@k` can be: pictures of the same bytes get one list of k captions between them."""
        first_I = np.full(len(self.image_I), len(self.text_T))
        np.minimum.at(first_I, self.owner_T, _place_among_equals(self.text_T))
        reached = sum(min(k, int((first_I[images] < k).sum())) for images in _places(self.image_I).values())
        return reached / len(self.image_I)

    def counts(self) -> dict[str, int]:
        """Captions that stand on several pictures, pictures that share a caption, pictures whose bytes another one has too."""
        shared = [places for places in _places(self.text_T).values() if len(np.unique(self.owner_T[places])) > 1]
        owners = {int(owner) for places in shared for owner in self.owner_T[places]}
        identical = sum(len(images) for images in _places(self.image_I).values() if len(images) > 1)
        return {"captions": sum(map(len, shared)), "pictures": len(owners), "identical_pictures": identical}


def _places(numbers: Numbers) -> dict[int, Numbers]:
    """Number -> where it stands, in order."""
    order = np.argsort(numbers, kind="stable")
    values, starts = np.unique(numbers[order], return_index=True)
    return dict(zip(values.tolist(), np.split(order, starts[1:]), strict=True))


def _place_among_equals(numbers: Numbers) -> Numbers:
    """How many equals stand before each: among equal scores the lower index is ahead."""
    place = np.empty(len(numbers), np.int64)
    for places in _places(numbers).values():
        place[places] = np.arange(len(places))
    return place
