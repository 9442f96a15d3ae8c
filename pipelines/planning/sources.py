"""A run's data sources before staging: check that a source exists, and estimate how many samples it will give."""

import os
from pathlib import Path
from typing import Any, Literal

from pipelines.planning.cost import Samples
from trainer.config import DataConfig, Recipe
from trainer.configs import load_yaml
from trainer.errors import InputError
from trainer.storage import open_store, read_text
from trainer.storage.base import local_path
from trainer.storage.manifest import read_manifest

What = Literal["pairs", "triplets"]
LISTS = {"yfcc15m-openai": 14_829_396, "yfcc15m-slip": 14_689_580, "yfcc15m-declip": 15_388_848, "yfcc15m-rwkv": 15_061_515}
"""Number of rows in the lists that are called YFCC15M."""
NIGHTS = 15_941
"""Training triplets of NIGHTS."""
NIGHTS_HELD_OUT = 1_958 + 2_120
"""Triplets of its validation and test splits."""
DEMO_PAIRS, DEMO_TRIPLETS = 1518, 0.72
"""Training pairs of the demo, and the part of staging.demo_triplets that the training split gets; a test of staging compares them."""
_PICTURES = (".jpg", ".jpeg", ".png", ".webp", ".gif", ".bmp", ".tif", ".tiff", ".avif")
DEMO_HELD_OUT = 380
"""Pictures of each of the demo's two evaluation sets."""
_DESCRIBED = ("list", "table", "metadata", "ids")
"""Keys in a list's description that name files (pipelines/steps/staging.py)."""


def require_source(what: str, uri: str) -> None:
    """Refuse a missing source, before anything is staged. http(s) is left to staging.

    Args:
        what: the setting that names it, such as --pairs.
        uri: a folder, a file, or a YAML file that describes a list; empty or `demo`: the demo's.

    Raises:
        InputError: it, or a file that its description names, does not exist; or the store cannot be read.
    """
    if uri in ("", "demo") or uri[:8].lower().startswith(("http://", "https://")):
        return
    path, store = local_path(uri), open_store(uri)
    is_file = os.path.isfile(path) if path is not None else "/" in uri.removeprefix("s3://").rstrip("/") and store.head(uri) is not None
    if not is_file and not store.holds(uri):
        empty = "an empty folder" if path is not None and os.path.isdir(path) else "no such file or folder"
        raise InputError(f"{what} {uri}: {empty}")
    if uri.endswith((".yaml", ".yml")):
        described = _description(uri)
        for key in _DESCRIBED:
            require_source(f"{what} {uri}: {key}", str(described.get(key, "")))


def described_sources(uri: str) -> list[str]:
    """The URIs that determine what is staged: the source, and the files that a list's description names; none for the demo."""
    if uri in ("", "demo"):
        return []
    if not uri.endswith((".yaml", ".yml")):
        return [uri]
    described = _description(uri)
    return [uri, *(str(described[key]) for key in _DESCRIBED if described.get(key))]


def is_demo(source: str, recipe: Recipe) -> bool:
    """Whether a run's source is the demo; if the recipe's batches are larger than the demo, the data are still to be chosen."""
    return source in ("", "demo") and recipe.contrastive.global_batch_size <= DEMO_PAIRS


def training_samples(what: What, data: DataConfig, source: str, recipe: Recipe, *, readable: bool = True) -> Samples:
    """Samples of the training split: counted if the data are staged, otherwise known from the source, otherwise assumed.

    Args:
        what: pairs or triplets.
        data: the staged data; without a URI, nothing is staged.
        source: the source that the run names; empty: the demo's, unless the recipe's batches are larger than that.
        recipe: recipe of the experiment.
        readable: whether a list's description can be read from here.
    """
    manifest = read_manifest(data.uri) if data.uri else None
    if manifest is not None:
        return Samples(count=sum(shard.num_samples for shard in manifest.split("train")), said=f"staged: {manifest.name}", known=True)
    kind = str(_description(source).get("kind", "")) if readable and source.endswith((".yaml", ".yml")) else ""
    if kind in LISTS:
        return Samples(count=LISTS[kind], said=f"rows of {kind}", known=True)
    if what == "triplets" and (kind == "nights" or source.endswith("nights.zip")):
        return Samples(count=NIGHTS, said="NIGHTS", known=True)
    if is_demo(source, recipe):
        if what == "pairs":
            return Samples(count=DEMO_PAIRS, said="the demo's", known=True)
        total = recipe.staging.demo_triplets
        return Samples(count=int(DEMO_TRIPLETS * total), said="about those of the demo", known=False, at_most=total)
    path = local_path(source)
    if what == "pairs" and source and path is not None and (pictures := _count_pictures(path)):
        return Samples(
            count=round(pictures * (1 - recipe.staging.heldout_fraction)), said="estimated from the pictures in the folder", known=False
        )
    count, name = (LISTS["yfcc15m-openai"], "YFCC15M") if what == "pairs" else (NIGHTS, "NIGHTS")
    guessed = source not in ("", "demo")
    said = f"not staged; assumed for {name}"
    return Samples(count=count, said=said, known=False, guessed=guessed, at_most=0 if source else count)


def _count_pictures(folder: Path) -> int:
    return sum(name.lower().endswith(_PICTURES) for _, _, names in os.walk(folder) for name in names)


def _description(uri: str) -> dict[str, Any]:
    return load_yaml(read_text(uri), uri)
