"""Example pictures, read from the shards through their indexes: they are drawn at random with a fixed seed, not selected by result."""

import base64
import io
import json
from collections.abc import Sequence
from typing import Any

import numpy as np
from PIL import Image

from trainer.arms import BASELINE
from trainer.errors import Corrupt, InputError, RunError
from trainer.report import items as per_item
from trainer.report.compare import Scores
from trainer.report.experiment import Experiment, Result
from trainer.storage.checked import forget
from trainer.storage.manifest import Manifest
from trainer.storage.samples import read_index, read_members

EXAMPLES = 6
_UNUSABLE = (
    InputError, RunError, LookupError, ValueError, TypeError, ArithmeticError, OSError, SyntaxError, Image.DecompressionBombError,
)  # fmt: skip
"""Errors, including PIL's own, from reading samples and pictures or from picking them by per-item outputs."""
_SIDE = 96


def retrieval_examples(scores: Scores, subject: str) -> dict[str, Any] | None:
    """Captions of the first retrieval set and the five pictures that each of two arms puts first.

    Returns:
        {"dataset", "seed", "attribution", "images", "queries": [{"caption", "right": picture, "arms": [{"arm", "rank",
        "top": [{"picture", "right"}]}]}]},
        or None if there is nothing to show.
    """
    experiment = scores.experiment
    found = _two_arms(scores, subject, "zeroshot_retrieval")
    if found is None or found[1][0][1].dataset not in experiment.evaluation_sets:
        return None
    seed, models = found
    dataset = models[0][1].dataset
    folder, manifest = experiment.evaluation_sets[dataset]
    try:
        arrays = [per_item.read_arrays(result) for _, result in models]
        keys, owner = arrays[0]["key"].astype(str), arrays[0]["text_image"].astype(int)
        captions = _draw(dataset, len(owner))
        wanted = {keys[owner[t]] for t in captions} | {keys[n] for a in arrays for t in captions for n in a["top"][t]}
        samples = read_samples(folder, manifest, "test", sorted(wanted))
        thumbnails = {key: thumbnail(sample["image"]) for key, sample in samples.items()}
        queries = []
        for t in captions:
            right = keys[owner[t]]
            number = t - int(np.flatnonzero(owner == owner[t])[0])
            shown = [
                {
                    "arm": arm,
                    "rank": int(a["image_rank"][t]) + 1,
                    "top": [{"picture": thumbnails[keys[n]], "right": keys[n] == right} for n in a["top"][t]],
                }
                for (arm, _), a in zip(models, arrays, strict=True)
            ]
            queries.append({"caption": samples[right]["txt"].decode().splitlines()[number], "right": thumbnails[right], "arms": shown})
    except _UNUSABLE as error:
        experiment.exclude(f"example pictures of {dataset}", f"{type(error).__name__}: {error}", damaged=True)
        return None
    return {"dataset": dataset, "seed": seed, "attribution": manifest.attribution, "images": len(keys), "queries": queries}


def triplet_examples(scores: Scores, subject: str) -> dict[str, Any] | None:
    """Triplets of the test split: the three pictures, the judge's choice, and the choice of each of two arms.

    Returns:
        {"dataset", "seed", "judge", "attribution", "triplets": [{"ref", "pictures", "judged", "arms": [{"arm", "choice"}]}]}, choices
        0, 1 or None (no difference seen); or None if there is nothing to show.
    """
    experiment = scores.experiment
    found, manifest = _two_arms(scores, subject, "2afc"), experiment.triplets
    if found is None or manifest is None:
        return None
    seed, models = found
    dataset = models[0][1].dataset
    try:
        arrays = [per_item.read_arrays(result) for _, result in models]
        keys = arrays[0]["key"].astype(str)
        drawn = _draw(dataset, len(keys))
        samples = read_samples(experiment.plan["triplets"]["uri"], manifest, dataset.rsplit("-", 1)[-1], [keys[n] for n in drawn])
        triplets = []
        for n in drawn:
            sample = samples[keys[n]]
            shown = [{"arm": arm, "choice": _choice(float(a["choice"][n]))} for (arm, _), a in zip(models, arrays, strict=True)]
            pictures = [thumbnail(sample[name]) for name in ("ref.png", "0.png", "1.png")]
            target = float(json.loads(sample["json"])["target"])
            triplets.append({"ref": pictures[0], "pictures": pictures[1:], "judged": _choice(target), "arms": shown})
    except _UNUSABLE as error:
        experiment.exclude(f"example pictures of {dataset}", f"{type(error).__name__}: {error}", damaged=True)
        return None
    return {"dataset": dataset, "seed": seed, "judge": manifest.judge, "attribution": manifest.attribution, "triplets": triplets}


def read_samples(folder: str, manifest: Manifest, split: str, keys: Sequence[str]) -> dict[str, dict[str, bytes]]:
    """Members of some samples by key, each checked against its checksum.

    Raises:
        InputError: a key is in no shard of the split.
        RunError: the bytes differ from those that were staged.
    """
    wanted = set(keys)
    samples: dict[str, dict[str, bytes]] = {}
    for shard in manifest.split(split):
        if not wanted:
            break
        try:
            index = read_index(folder, shard)
            rows = [row for row, key in enumerate(index.keys) if key in wanted]
            samples |= {index.keys[row]: read_members(folder, index, row) for row in rows}
        except Corrupt:
            forget(folder, shard.name, shard.index_name)
            raise
        wanted -= samples.keys()
    if wanted:
        raise InputError(f"{folder}: sample {min(wanted)!r} is in no shard of split {split}")
    return samples


def thumbnail(data: bytes) -> str:
    """A picture of at most 96 px as a data URI."""
    with Image.open(io.BytesIO(data)) as picture:
        small = picture.convert("RGB")
    small.thumbnail((_SIDE, _SIDE))
    encoded = []
    for kind, options in (("png", {"optimize": True}), ("jpeg", {"quality": 85})):
        buffer = io.BytesIO()
        small.save(buffer, kind, **options)
        encoded.append((len(buffer.getvalue()), kind, base64.b64encode(buffer.getvalue()).decode()))
    _, kind, text = min(encoded)
    return f"data:image/{kind};base64,{text}"


def attributions(experiment: Experiment) -> list[str]:
    """Licence lines of every data set the page draws on."""
    manifests = [experiment.pairs, experiment.triplets, *(manifest for _, manifest in experiment.evaluation_sets.values())]
    return list(dict.fromkeys(manifest.attribution for manifest in manifests if manifest and manifest.attribution))


def _two_arms(scores: Scores, subject: str, task: str) -> tuple[int, list[tuple[str, Result]]] | None:
    """The first seed that baseline and subject share, and their results on the first set of a task (2AFC: a test split)."""
    arms = [arm for arm in dict.fromkeys((BASELINE, subject)) if scores.seeds(arm)]
    shared = sorted(set.intersection(*(set(scores.seeds(arm)) for arm in arms))) if arms else []
    for seed in shared:
        finals = [scores.results[arm, seed] for arm in arms]
        keys = sorted(
            (key for key in finals[0] if key[1] == task and all(key in final for final in finals)),
            key=lambda k: (not k[0].endswith("-test"), k),
        )
        if keys:
            return seed, [(arm, final[keys[0]]) for arm, final in zip(arms, finals, strict=True)]
    return None


def _draw(name: str, count: int) -> list[int]:
    generator = np.random.default_rng(list(name.encode()))
    return sorted(int(n) for n in generator.choice(count, size=min(EXAMPLES, count), replace=False))


def _choice(value: float) -> int | None:
    return None if value == 0.5 else int(value > 0.5)
