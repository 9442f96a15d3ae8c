"""What is measured of a model's representation beside its figures: layer by layer, against given RDMs, and by probes."""

from dataclasses import dataclass

from trainer.fields import at_least, recipe, require

ALL = "all"
LINEAR_PROBE, NEIGHBOURS, FEW_SHOT = "linear_probe", "knn", "few_shot_"
SHOTS = (1, 5, 16)
PROBES = (LINEAR_PROBE, NEIGHBOURS, *(f"{FEW_SHOT}{shots}" for shots in SHOTS))
"""Tasks of results, beside zero-shot, retrieval and 2AFC."""
LAYER = "layer-"
OUTPUT = f"{LAYER}output"
"""A layer is a task of its own, so that a report reads only what it sets beside each other."""
CKA_START, CKA_TOWER, RSA = "cka_start", "cka_tower", "rsa:"
"""Figures of a layer; after the last comes an RDM's name."""
FEATURES = "features"
"""In the items of a final model's layer: (N, W) float16, centred and scaled."""
MAX_PICTURES = 16_000


@dataclass(frozen=True, kw_only=True)
class RepresentationConfig:
    """A request's `representation`. Sets are named as the page names them, such as demo-categories."""

    sets: tuple[str, ...] = recipe((), "ours", "Evaluation sets whose pictures go through every layer, for CKA and RSA.")
    pictures: int = recipe(5000, "ours", "Largest number of pictures of a set that go through every layer, drawn by their names.")
    rdms: tuple[str, ...] = recipe((), "ours", "URIs of dissimilarity matrices of pictures of a set: .csv, or .npy beside a .txt of names.")
    probes: tuple[str, ...] = recipe((), "ours", "Zero-shot sets for linear probe, nearest neighbours and few-shot; [all]: every one.")

    def __post_init__(self) -> None:
        """Check what needs no store."""
        at_least(4, "representation", self, "pictures")
        require("representation.pictures", self.pictures, f"at most {MAX_PICTURES}", self.pictures <= MAX_PICTURES)
        for name in ("sets", "rdms", "probes"):
            given = getattr(self, name)
            require(f"representation.{name}", given, "a list without an empty or repeated entry", len({*given, ""}) == len(given) + 1)
        require("representation.sets", self.sets, "given if representation.rdms is given", bool(self.sets or not self.rdms))
        require("representation.probes", self.probes, f"names of sets, or {ALL} alone", ALL not in self.probes or len(self.probes) == 1)


INTRODUCED = {"sets": [], "pictures": 5000, "rdms": [], "probes": []}
"""What configurations before 0.2.0 had in effect: nothing of it was measured."""
