"""`stage eval <name>`: a local copy to a sealed evaluation set that both we and CLIP_benchmark read."""

import io
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from trainer.configs.evaluation_sets import FAMILIES, EvaluationSetFacts, find_set
from trainer.errors import InputError
from trainer.progress import check_stop, counted, progress
from trainer.staging.captions import as_line
from trainer.staging.evaluation_sets import binary, captions, folders, lists, scenes, tars
from trainer.staging.evaluation_sets.copies import Converted, Copy, Row, Split, as_kept
from trainer.staging.evaluation_sets.prompts import Prompts, choose
from trainer.staging.foreign import lines_of, text_of
from trainer.staging.plans import Plan, slices_to_make, write_plan
from trainer.staging.rows import safe_key
from trainer.staging.sealed import find_intact, layout_files, write_files
from trainer.staging.sources.listing import fingerprint, list_source
from trainer.staging.writer import SliceWriter, gather, seal
from trainer.storage import layout, read_bytes
from trainer.storage.manifest import Manifest

SHARD_SAMPLES = 1024
CONVERTERS: dict[str, Callable[..., Converted]] = {
    "imagenet-1k": folders.imagenet, "imagenet-v2": folders.imagenet, "imagenet-sketch": folders.imagenet,
    "imagenet-a": folders.imagenet_subset, "imagenet-r": folders.imagenet_subset,
    "cifar-10": binary.cifar_10, "cifar-100": binary.cifar_100, "mnist": binary.mnist, "stl-10": binary.stl_10, "svhn": binary.svhn,
    "dtd": lists.dtd, "flowers-102": lists.flowers_102, "pets": lists.pets, "cars": lists.cars, "aircraft": lists.aircraft,
    "food-101": lists.food_101, "sun397": lists.sun397, "birdsnap": lists.birdsnap, "gtsrb": lists.gtsrb,
    "clevr-count": scenes.clevr_count, "clevr-dist": scenes.clevr_dist, "kitti-distance": scenes.kitti_distance,
    "voc2007": scenes.voc2007, "voc2007-multilabel": scenes.voc2007_multilabel,
    "coco-retrieval": captions.captions, "flickr30k-retrieval": captions.captions,
}  # fmt: skip
"""How each set's authors ship it. The others (Caltech-101, EuroSAT, RESISC45, PCam, Country211, Rendered SST2) are class
folders; and any set is read from CLIP_benchmark's layout."""
_UNSPLIT = ("caltech-101", "eurosat", "resisc45", "kitti-distance")
"""Sets that their authors publish without a split: VTAB's library draws the test pictures."""


def stage_evaluation(*, name: str, root: str, source: str, prompts: str = "", only: str = "", train: bool = False) -> tuple[str, str]:
    """Convert a local copy.

    Args:
        name: of the set, from the table.
        root: store URI under which datasets/ goes.
        source: URI of the copy's folder.
        prompts: URI of the folder with CLIP_benchmark's class names and templates; empty: the copy's own.
        only: URI of a text file that names the test pictures, one per line (path, file name or stem); empty: all.
        train: also stage the training split, on which probes are trained.

    Returns:
        URI and identity of the sealed set. A set that was staged before is reused.

    Raises:
        InputError: unknown set, a copy that does not match it, or one without the requested training pictures.
    """
    facts = find_set(name)
    if train:
        _require_training(facts)
    files = list_source(source)
    copy = Copy(source, files)
    converted = _convert(facts, copy)
    chosen = Prompts(classnames=(), templates=(), origin="") if facts.task == "zeroshot_retrieval" else choose(facts, converted, prompts)
    wanted = _only(only)
    multilabel = facts.metric == "mean_average_precision"
    options: dict[str, Any] = {
        "task": facts.task,
        "classnames": _lines(chosen.classnames, f"{source}: class"),
        "templates": _lines(chosen.templates, f"{source}: template"),
        "multilabel": multilabel,
        "only": sorted(wanted),
    }
    if train:
        learned = _training(facts, copy, wanted)  # before anything is written
        options["train"] = True
    plan = Plan(
        kind="evaluation", name=name, source={"uri": source, "fingerprint": fingerprint(files, root)}, options=options,
        shard_samples=SHARD_SAMPLES, splits=["test", "train"] if train else ["test"], rows_read=0,
        columns="zeroshot_multilabel" if multilabel else facts.task, attribution=f"{facts.title}: {facts.source}; {facts.licence}",
    )  # fmt: skip
    folder = layout.dataset(root, name, plan.plan_id)
    sealed = find_intact(folder)
    if sealed is None:
        rows: dict[str, Iterable[Row]] = {"test": _select(converted.rows, wanted, only)}
        if train:
            rows["train"] = learned
        sealed = _write(folder, plan, facts, rows, {**options, "main_metric": facts.metric, "prompts": chosen.origin})
    return folder, sealed.identity


def _lines(names: Sequence[str], where: str) -> list[str]:
    """Names cleaned so that they can be written one per line; InputError if one becomes empty.

    A name that is empty as published (a band of clevr-dist) stays: its prompt is the template alone.
    """
    kept = [as_line(name) for name in names]
    for number, (name, line) in enumerate(zip(names, kept, strict=True)):
        if name and not line:
            raise InputError(f"{where} {number} has no name: {name!r}")
    return kept


def _require_training(facts: EvaluationSetFacts) -> None:
    """Refuse sets that probes cannot learn from."""
    if facts.task == "zeroshot_retrieval" or facts.metric == "mean_average_precision":
        raise InputError(f"--train is for sets that can be probed, but {facts.name} does not have exactly one class per picture")
    if facts.name in FAMILIES["OOD"]:
        raise InputError(f"--train: {facts.name} has no training split: it tests what was learned on ImageNet")


def _training(facts: EvaluationSetFacts, copy: Copy, wanted: set[str]) -> Iterable[Row]:
    """The training pictures of a copy; without a split, those not in the list of test pictures."""
    if tars.is_layout(copy):
        if not tars.is_layout(copy, "train"):
            raise InputError(f"{copy.uri}: --train takes train/nshards.txt beside test/nshards.txt, but there is none here")
        return tars.read_layout(copy, "train").rows
    sorted_out = facts.name not in CONVERTERS and folders.has_training(copy)
    if facts.name not in _UNSPLIT or sorted_out:
        return _convert(facts, copy, "train").rows
    if not wanted:
        raise InputError(
            f"{copy.uri}: {facts.name} comes without a split: list its test pictures with --only, and --train will use the others"
        )
    return (row for row in _convert(facts, copy).rows if not _names(row) & wanted)


def _convert(facts: EvaluationSetFacts, copy: Copy, split: Split = "test") -> Converted:
    if tars.is_layout(copy):
        return tars.read_layout(copy)
    converted = CONVERTERS.get(facts.name, folders.class_folders)(copy, split)
    if facts.name == "country211":  # its folders are country codes, which are no prompts
        return replace(converted, classnames=())
    return converted


def _only(uri: str) -> set[str]:
    return {line.strip() for line in lines_of(text_of(read_bytes(uri), uri)) if line.strip()} if uri else set()


def _select(rows: Iterable[Row], wanted: set[str], where: str) -> Iterator[Row]:
    """The rows that a list names; InputError if it names an unknown one."""
    if not wanted:
        yield from rows
        return
    left = set(wanted)
    for row in rows:
        named = _names(row) & wanted
        if named:
            left -= named
            yield row
    if left:
        raise InputError(f"{where}: names {len(left)} pictures that are not in the copy, such as {sorted(left)[0]!r}")


def _names(row: Row) -> set[str]:
    """The names by which a list may refer to a row: path, file name and stem."""
    file = row.name.rsplit("/", 1)[-1]
    return {row.name, file, file.rsplit(".", 1)[0]}


def _write(folder: str, plan: Plan, facts: EvaluationSetFacts, rows: Mapping[str, Iterable[Row]], said: dict[str, Any]) -> Manifest:
    """Write the shards, the layout's text files, and finally the manifest."""
    plan = write_plan(folder, plan)
    for number in slices_to_make(folder, plan):
        _write_slice(folder, plan, number, facts, rows[plan.splits[number]], len(said["classnames"]))
    account = gather(folder, plan)
    counts = [sum(shard.split == split for shard in account.shards) for split in ("test", "train")]
    files = write_files(folder, layout_files(counts[0], said, end="\n", training_shards=counts[1]))
    return seal(folder, replace(plan, rows_read=account.written), account, facts=said, files=files)


def _write_slice(folder: str, plan: Plan, number: int, facts: EvaluationSetFacts, rows: Iterable[Row], num_classes: int) -> None:
    count, test = 0, plan.splits[number] == "test"
    with SliceWriter(folder, plan, number) as writer:
        for row in rows:
            check_stop()
            suffix, data = as_kept(row.image(), f"{plan.source['uri']}: {row.name}")
            column, value = _answer(facts, row, num_classes)
            key = safe_key(f"{count:06d}-{row.name.rsplit('/', 1)[-1].rsplit('.', 1)[0]}")
            writer.add(key, {"image": (suffix, data), column: (column, value)})
            count += 1
            if count % 100 == 0:
                progress(f"stage eval {facts.name}", count, facts.test_size if test else 0, "images")
        if not count:
            raise InputError(f"{plan.source['uri']}: no {plan.splits[number]} pictures of {facts.name} here")
    progress(f"stage eval {facts.name}", count, count, "images")
    if test and count != facts.test_size:
        print(f"{facts.name}: {counted(count, 'image')}; the standard test split has {facts.test_size}", flush=True)


def _answer(facts: EvaluationSetFacts, row: Row, num_classes: int) -> tuple[str, bytes]:
    """Column and bytes of a row's ground truth."""
    if facts.task == "zeroshot_retrieval":
        return "txt", "\n".join(row.captions).encode()
    if row.targets is not None:
        buffer = io.BytesIO()
        np.save(buffer, row.targets)
        return "npy", buffer.getvalue()
    if not 0 <= row.label < num_classes:
        raise InputError(f"{facts.name}: {row.name} has label {row.label}, but the set has classes 0 to {num_classes - 1}")
    return "cls", str(row.label).encode()
