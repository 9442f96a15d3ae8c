"""`python -m trainer train`: check whether the stage is done and the input is valid, then start one or many processes.

    python -m trainer train perceptual --config <stage folder>/config.yaml

Torch is imported only after these checks: a finished stage exits within a fraction of a second, and invalid input ends the run
before any rank starts.
"""

import ctypes
import os
import signal
from collections.abc import Sequence

from trainer import lineage, logs
from trainer.config import StageConfig, differing_keys, recipe_fields, recipe_hash, require, unless_auto
from trainer.dose import short_of_a_batch
from trainer.errors import Corrupt, InputError, RunError
from trainer.labels import named_labels
from trainer.run import placing
from trainer.run.failure import best_effort, leave_failure, write_failure
from trainer.storage import committed, join, layout, open_store
from trainer.storage.base import MissingObject, exists
from trainer.storage.committed import read_final, restore_beside
from trainer.storage.manifest import Manifest, require_manifest
from trainer.storage.plans import read_plan
from trainer.storage.recipes import is_of_folder, read_stage, restore_config, shown, what_differs

_PR_SET_PDEATHSIG = 1


def launch(stage: str, config_uri: str, overrides: Sequence[str]) -> None:
    """Run one stage of one cell, or report that it is already done.

    Args:
        stage: perceptual, contrastive or posthoc; must be what the configuration says.
        config_uri: the resolved config.yaml.
        overrides: `dotted.key=value`; only placement keys make sense here, others change the recipe and are refused.

    Raises:
        InputError: wrong input or configuration; nothing was started.
        RunError: a failure during the run, of this process or of a rank.
    """
    config = _read_config(stage, config_uri, overrides)
    logs.bind(experiment=config.experiment, arm=config.arm, point=config.point, seed=config.seed, stage=config.stage)
    require("stage", stage, f"the one that {config_uri} is for ({config.stage})", stage == config.stage)
    try:
        if is_done(config):
            with best_effort(f"sweeping {config.output}"):
                open_store(config.output).sweep(config.output)
            logs.say(f"{layout.stage_title(config)}: already done, {layout.final(config.output)}")
            return
        inside = "TORCHELASTIC_RUN_ID" in os.environ
        if inside:
            _die_with_parent()
            signal.signal(signal.SIGINT, signal.SIG_DFL)  # until there is a step to save: Python's handler would wait for the rendezvous
        else:
            validate(config)
        if inside or not _wants_agent(config):
            from trainer.run.loop import train

            train(config)
        else:
            from trainer.run.elastic import run_agent

            run_agent(config, ["-m", "trainer", "train", stage, "--config", config_uri, *(f"--set={item}" for item in overrides)])
    except Exception as error:
        if isinstance(error, RunError) and _finished_meanwhile(config):
            logs.say(f"{layout.stage_title(config)}: done, {layout.final(config.output)}; then: {error}")
            return
        write_failure(config, error)
        raise


def is_done(config: StageConfig) -> bool:
    """Whether final/ is committed with this recipe, and every file in its seal is intact; a record with an intact copy is restored.

    Raises:
        InputError: it is committed with a different recipe; the message names the differences.
    """
    seal, damaged = read_final(config.output)
    if seal is not None and damaged and seal.recipe_hash != recipe_hash(config):
        uri = join(layout.final(config.output), committed.NAME)
        damaged = {uri: "it belongs to a different recipe and does not match the files here", **damaged}
        seal = None
    if seal is not None and seal.recipe_hash != recipe_hash(config):
        differing = what_differs(config.output, seal.recipe_hash, config)
        raise InputError(f"{layout.final(config.output)}: finished with a different recipe, rejected{differing}")
    if seal is not None and damaged:
        for uri, source in restore_beside(config.output, seal, damaged).items():
            logs.say(f"{uri}: {damaged.pop(uri)}; restored from {source}")
    for uri, why in damaged.items():
        logs.say(f"{uri}: {why}; the final model is being recreated")
    return seal is not None and not damaged


def _read_config(stage: str, uri: str, overrides: Sequence[str]) -> StageConfig:
    """The stage's configuration; if its file is damaged, missing or another stage's, it is first restored from a copy.

    Raises:
        InputError, Corrupt: there is no such copy; failure.json says so too.
    """
    folder, _, name = uri.rpartition("/")
    try:
        config = read_stage(uri, overrides)
        if name == layout.CONFIG:
            _refuse_other_folder(config, folder)
        return config
    except (MissingObject, Corrupt) as error:
        source = restore_config(folder) if name == layout.CONFIG else ""
        if source:
            logs.say(f"{error}; restored from {source}")
            config = read_stage(uri, overrides)
            _refuse_other_folder(config, folder)
            return config
        if name == layout.CONFIG and isinstance(error, Corrupt):
            leave_failure(folder, stage, error)
        raise


def _refuse_other_folder(config: StageConfig, folder: str) -> None:
    """Check that the configuration in a stage's folder belongs to that stage; an intact file may have been copied from another stage."""
    if not is_of_folder(config, folder) and exists(layout.lineage(folder)):
        raise Corrupt(f"{layout.config(folder)}: this is the configuration of the stage in {config.output}, not of this stage")


def _finished_meanwhile(config: StageConfig) -> bool:
    """Whether the error that ended this process came after the commit of the final model."""
    try:
        return is_done(config)
    except (InputError, RunError):
        return False


def validate(config: StageConfig) -> None:
    """Check everything that can be checked before torch is imported and ranks start.

    Raises:
        InputError: one line that names key, rule and value.
    """
    require("data.uri", config.data.uri, "the URI of a sealed data set", bool(config.data.uri))
    _refuse_other_recipe(config)
    _refuse_unplanned(config)
    settings = getattr(config, config.stage)
    ranks = config.placement.nodes * config.placement.processes_per_node
    rule = f"a multiple of the number of ranks {ranks}"
    require(f"{config.stage}.global_batch_size", settings.global_batch_size, rule, settings.global_batch_size % ranks == 0)
    if config.contrastive is not None:
        size = config.contrastive.contrast_batch_size
        require("contrastive.contrast_batch_size", size, rule, size % ranks == 0)
        most = unless_auto(config.placement.local_batch_size)
        rule = f"auto, 0 or >= contrast_batch_size / ranks = {size // ranks} if contrastive.accumulation is independent"
        whole = most == 0 or most >= size // ranks or config.contrastive.accumulation != "independent"
        require("placement.local_batch_size", most, rule, whole)
    resume = config.placement.resume
    require("placement.resume", resume, "auto, never or a checkpoint's URI", resume in ("auto", "never") or "/" in resume)
    rule = f"auto or false if there is {placing.NO_COMPILER}, which torch.compile needs"
    require("placement.compile", config.placement.compile, rule, config.placement.compile is not True or placing.has_compiler())
    _check_data(config, require_manifest(config.data.uri, config.data.identity, config.data.manifest_sha256), settings.global_batch_size)
    kinds = {"perceptual": ("random", "tower"), "contrastive": ("random", "tower", "permuted", "model"), "posthoc": ("model",)}[
        config.stage
    ]
    require("start.kind", config.start.kind, f"one of {', '.join(kinds)} for stage {config.stage}", config.start.kind in kinds)
    lineage.check_start(config.start)


def _die_with_parent() -> None:
    """A rank must not outlive its agent, which starts it in a separate session that signals to the process group do not reach."""
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


def _wants_agent(config: StageConfig) -> bool:
    """Whether there are several ranks, restarts in place, or a job with a rendezvous for its pods (PET_*, torchrun's variables)."""
    placement = config.placement
    return placement.nodes * placement.processes_per_node > 1 or placement.max_restarts > 0 or "PET_RDZV_ENDPOINT" in os.environ


def _refuse_other_recipe(config: StageConfig) -> None:
    """Check that the folder belongs to this recipe, even if nothing in it is finished yet."""
    uri = layout.config(config.output)
    if not exists(uri):
        return
    try:
        old = read_stage(uri)
    except Corrupt as error:  # not the file that this run was given; its checkpoints have their own recipe hash
        logs.say(f"{error}; written again")
        open_store(uri).delete(uri)
        return
    if recipe_hash(old) != recipe_hash(config):
        differing = shown(differing_keys(recipe_fields(old, complete=True), recipe_fields(config, complete=True)))
        raise InputError(f"{config.output}: this folder belongs to a different recipe, rejected: {differing}")


def _refuse_unplanned(config: StageConfig) -> None:
    """Check config.yaml against the experiment's plan, since an intact file may be an older version, or that of another folder."""
    root, found, _ = config.output.partition(f"/experiments/{config.experiment}/")
    if not config.experiment or not found:
        return
    try:
        plan = read_plan(layout.experiment(root, config.experiment)) or {"cells": []}
    except (InputError, RunError):
        return  # a run of the experiment reports this and rewrites it
    for entry in plan["cells"]:
        planned = entry.get("recipe_hashes", {}).get(config.stage, "")
        if entry.get(config.stage) == config.output and planned not in ("", recipe_hash(config)):
            differing = what_differs(config.output, planned, config)
            raise InputError(
                f"{layout.config(config.output)}: does not match the experiment's plan for this stage{differing}: "
                "run the experiment again, which rewrites it as planned"
            )


def _check_data(config: StageConfig, manifest: Manifest, global_batch_size: int) -> None:
    kind = "pairs" if config.stage == "contrastive" else "triplets"
    require("data.uri", config.data.uri, f"a data set of {kind} (this one contains {manifest.kind})", manifest.kind == kind)
    samples = sum(shard.num_samples for shard in manifest.split("train"))
    rule = f"at most the {samples} training samples of {config.data.uri}"
    require(f"{config.stage}.global_batch_size", global_batch_size, rule, global_batch_size <= samples)
    if wrong := short_of_a_batch(config.stage, getattr(config, config.stage), samples):
        raise InputError(f"{wrong} ({config.data.uri})")
    refusal = named_labels(config.labels).refusal(manifest.judge)
    if refusal:
        raise InputError(f"labels {config.labels!r} {refusal}: {config.data.uri}")
    if config.perceptual is not None and config.perceptual.handoff == "best_val":
        rule = f"`last` if {config.data.uri} has no val split"
        require("perceptual.handoff", "best_val", rule, bool(manifest.split("val")))
