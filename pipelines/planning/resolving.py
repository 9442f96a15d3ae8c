"""Resolve a merged request so that any process can use it: absolute paths, the recipe's text instead of its file, all rules checked."""

import dataclasses
import os
import re
from collections.abc import Mapping
from typing import Any

from pipelines.planning.arms import FROM
from pipelines.planning.axes import check_axes
from pipelines.planning.declared import check_declared
from pipelines.planning.request import Request
from trainer.config import Placement, Recipe, canonical_hash, require
from trainer.errors import InputError
from trainer.representation import RepresentationConfig
from trainer.storage import layout
from trainer.storage.base import absolute, local_path


def resolve(request: Request, *, kubeflow: bool = False) -> Request:
    """The request in a form that any process can use: absolute paths, the recipe's text instead of its file, the experiment named.

    Args:
        request: the merged request.
        kubeflow: whether it runs on a Kubeflow server, which cannot read this machine's files; `profile` then names a ConfigMap.

    Raises:
        InputError: an unknown arm, seed, recipe or key; `judged` although FLIP judges anyway; a local path for a server.
    """
    from pipelines.planning.plan import require_judge  # here, like the next: slow to import
    from trainer.configs import parse_config
    from trainer.storage.recipes import read_inline

    changes: dict[str, Any] = {name: _place(getattr(request, name)) for name in ("root", "pairs", "triplets")}
    changes |= {name: "" for name in ("pairs", "triplets") if getattr(request, name) == "demo"}
    changes["eval_sets"] = tuple(_place(uri) for uri in request.eval_sets)
    # Not normalised: the arm's name, and so the folder of its cells, is a hash of this.
    changes["arms"] = tuple(f"{FROM}{absolute(arm.removeprefix(FROM))}" if arm.startswith(FROM) else arm for arm in request.arms)
    changes["resume"] = request.resume if request.resume in ("auto", "never") else _place(request.resume)
    changes["recipe"] = read_inline(request.recipe)
    if kubeflow:
        _refuse_local_places(request)
        rule = "the name of a ConfigMap in the runs' namespace"
        require(
            "profile", request.profile, rule, not request.profile or bool(re.fullmatch(r"[a-z0-9]([a-z0-9.-]*[a-z0-9])?", request.profile))
        )
    elif request.profile:
        changes["profile"] = _place(request.profile)
    parse_config(Placement, request.placement, source="placement")
    parse_config(RepresentationConfig, request.representation, source="representation")
    if request.representation.get("rdms"):
        changes["representation"] = {**request.representation, "rdms": [_place(uri) for uri in request.representation["rdms"]]}
    resolved = dataclasses.replace(request, **changes)
    recipe = resolved.load_recipe()
    require_judge(resolved.all_arms, "" if resolved.triplets else "FLIP", recipe)
    refuse_other_epochs(resolved.placement, recipe)
    check_axes(resolved.vary)
    check_declared(resolved)
    resolved.cells  # noqa: B018 (refuses a wrong arm or seed, and a point's value that breaks a rule)
    name = resolved.experiment or default_experiment(recipe.name, resolved.pairs, resolved.triplets)
    require("experiment", name, "given if the recipe has no name", bool(name))
    return dataclasses.replace(resolved, experiment=layout.check_name("experiment", name))


def refuse_other_epochs(placement: Mapping[str, Any], recipe: Recipe) -> None:
    """Refuse a placement that keeps other weights than the recipe's evaluation reads."""
    for key, wanted in (("checkpoint_every_epochs", recipe.evaluation.every_epochs), ("trajectory", recipe.evaluation.trajectory)):
        kept, by = placement.get(key, wanted), "every_epochs" if key != "trajectory" else key
        if wanted and kept != wanted:
            raise InputError(f"placement.{key} is {kept}, and the recipe's evaluation.{by} is {wanted}: remove the former")


def _refuse_local_places(request: Request) -> None:
    places = {"root": (request.root,), "pairs": (request.pairs,), "triplets": (request.triplets,), "eval_sets": request.eval_sets}
    places["representation.rdms"] = tuple(request.representation.get("rdms", ()))
    places |= {"arms": tuple(arm.removeprefix(FROM) for arm in request.arms if arm.startswith(FROM)), "resume": (request.resume,)}
    for name, uris in places.items():
        for uri in uris:
            if uri not in ("", "demo", "auto", "never") and "://" not in uri:
                raise InputError(
                    f"{name} must be a URI such as s3://bucket/prefix, since the cluster cannot access this machine's files: {uri!r}"
                )


def default_experiment(recipe: str, pairs: str, triplets: str) -> str:
    """The recipe's name for the demo's data; for other data, a name derived from the data and the recipe."""
    source = pairs or triplets
    last = (source or recipe).rstrip("/").rpartition("/")[2].lower()
    words = "".join(letter if letter in "abcdefghijklmnopqrstuvwxyz0123456789-" else "-" for letter in last)
    word = "-".join(part for part in words.split("-") if part)[:40]
    return f"{word or 'data'}-{canonical_hash([recipe, pairs, triplets])[:6]}" if source else word


def _place(uri: str) -> str:
    """A path made absolute and normalised, so that a folder has one name however it is spelled; other URIs are unchanged."""
    path = local_path(uri) if uri else None
    if path is not None:
        return os.path.normpath(absolute(str(path)))
    return uri.rstrip("/") if uri.startswith("s3://") else uri
