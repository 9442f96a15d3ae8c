"""Evaluation sets from the held-out pairs, in the layout of CLIP_benchmark, so that its own command reads them too.

Retrieval always; zero-shot classification where the pictures have labels. The pictures are those of the staged test
shards, byte for byte.
"""

import json
from collections.abc import Iterator, Sequence
from typing import Any

from trainer.staging.plans import Plan, slices_to_make, write_plan
from trainer.staging.samples import captions_of, picture_suffix
from trainer.staging.sealed import layout_files, write_files
from trainer.staging.shards import read_shard
from trainer.staging.writer import Account, SliceWriter, gather, seal
from trainer.storage import join, layout

TEMPLATES = ("{c}", "a photo of {c}", "a picture of {c}")


def stage(
    *,
    root: str,
    base_name: str,
    pairs_folder: str,
    pairs: Plan,
    account: Account,
    classes: Sequence[str],
    templates: Sequence[str],
    first_caption_only: bool,
) -> list[dict[str, Any]]:
    """Stage the evaluation sets of a staged, not yet sealed pairs data set; those already complete are left as they are.

    Args:
        root: store URI under which datasets/ lies.
        base_name: sets are called `<base_name>-retrieval` and `<base_name>-categories`.
        pairs_folder: where the test shards are.
        pairs: the pairs' plan.
        account: the pairs' account, which names the test shards.
        classes: class names, sorted; with fewer than two there is no zero-shot set.
        templates: prompts for the classes, containing `{c}`.
        first_caption_only: retrieve by a picture's first caption, if the others only rephrase it.

    Returns:
        Entries for the pairs' manifest: name, task, uri relative to the root, identity.
    """
    tasks = {"zeroshot_retrieval": f"{base_name}-retrieval"}
    if len(classes) > 1:
        tasks["zeroshot_classification"] = f"{base_name}-categories"
    entries = []
    for task, name in tasks.items():
        facts: dict[str, Any] = {"task": task, "classnames": [], "templates": []}
        if task == "zeroshot_classification":
            facts |= {"classnames": list(classes), "templates": list(templates), "main_metric": "mean_per_class_recall"}
        elif first_caption_only:
            facts |= {"captions": "first"}
        plan = Plan(
            kind="evaluation", name=name, source={**pairs.source, "pairs_plan_id": pairs.plan_id}, options={**pairs.options, **facts},
            shard_samples=pairs.shard_samples, splits=["test"], rows_read=0, columns=task, attribution=pairs.attribution,
            format_version=pairs.format_version,
        )  # fmt: skip
        target = layout.dataset(root, name, plan.plan_id)
        plan = write_plan(target, plan)
        for _ in slices_to_make(target, plan):
            _write(target, plan, pairs_folder, account, list(classes))
        done = gather(target, plan)
        files = write_files(target, layout_files(len(done.shards), facts))
        sealed = seal(target, plan, done, facts=facts, files=files)
        uri = join("datasets", name, plan.plan_id)
        entries.append({"name": name, "task": task, "uri": uri, "identity": sealed.identity})
    return entries


def _write(target: str, plan: Plan, pairs_folder: str, account: Account, classes: list[str]) -> None:
    numbers = {name: number for number, name in enumerate(classes)}
    with SliceWriter(target, plan, 0) as writer:
        for key, image, captions, facts in _heldout(pairs_folder, account):
            text = captions[0] if plan.options.get("captions") == "first" else "\n".join(captions)
            members = {"image": (picture_suffix(image), image), "txt": ("txt", text.encode())}
            label = facts.get("label")
            if plan.columns == "zeroshot_classification":
                if label is None:
                    continue
                members["cls"] = ("cls", str(numbers[label]).encode())
            writer.add(key, members)


def _heldout(folder: str, account: Account) -> Iterator[tuple[str, bytes, list[str], dict[str, Any]]]:
    """Key, picture, captions and facts of each staged test sample."""
    for shard in account.shards:
        if shard.split == "test":
            for key, (image, text, facts_json) in read_shard(folder, shard):
                facts = json.loads(facts_json)
                yield key, image, captions_of(text, facts), facts
