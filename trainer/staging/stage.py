"""`python -m trainer stage pairs|triplets`: turn a source into a sealed data set of shards, once.

Plan (list rows, split, permute, cut into slices), make each slice, seal. The folder's name is a hash over the source's
contents and the options, so a sealed data set is found again and reused.
"""

import re
import sys
from array import array
from collections import Counter, deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any

from trainer.config import Recipe, StagingConfig, canonical_hash
from trainer.errors import InputError
from trainer.fields import added_fields
from trainer.progress import check_stop, progress
from trainer.staging import demo, generate, heldout, kinds
from trainer.staging.plans import (
    PAIRS_RULES,
    PLAN_REJECTS,
    Plan,
    pairs_target,
    plan_id,
    refuse,
    rules_of,
    slices_to_make,
    write_plan,
)
from trainer.staging.resuming import ROWS, changed_slices, make_again, rows_digest
from trainer.staging.rows import SPLITS, PairRow, Reject, RowT, TripletRow, check_unique, in_order
from trainer.staging.samples import PairMaker, Sample, TripletMaker
from trainer.staging.sealed import find_intact
from trainer.staging.shards import mse_accuracy
from trainer.staging.sizes import require_enough
from trainer.staging.slices import encode_rejects, tally
from trainer.staging.sources import bapps, folder, nights, table, tars
from trainer.staging.sources.listing import Rows, SourceFile, fingerprint, list_source
from trainer.staging.sources.table import is_list_file
from trainer.staging.tokens import CONTEXT_LENGTH, Tokenizer
from trainer.staging.twins import count_look_alikes, split_pairs
from trainer.staging.writer import Account, SliceWriter, check_rejects, gather, seal
from trainer.storage import exists, join, layout, write_bytes
from trainer.storage.base import absolute
from trainer.storage.manifest import NAME as MANIFEST
from trainer.storage.manifest import Kind, describe_rows
from trainer.storage.scratch import temporary_folder

DEMO = "demo"
Looks = dict[str, "array[int]"]
"""Split -> perceptual hashes of its pictures (images.look_of)."""
_SLICE_SHARDS = 16
_THREADS = 4  # PIL releases the GIL while it decodes, resizes and encodes
_AHEAD = 64  # samples prepared beyond the one being written: bounds memory


@dataclass(frozen=True, kw_only=True)
class _Source:
    """A source whose rows are not read yet. `files` is empty for the demo, which is made when it is needed.

    Attributes:
        name: base name of its data sets, without `-pairs` or `-triplets`.
        uri: URI of the folder.
        fingerprint: hash of its contents.
        files: its files.
        lost: entries that cannot be read as files.
        list_name: the list in it that was given as the source; empty if the folder was given.
    """

    name: str
    uri: str
    fingerprint: Any
    files: list[SourceFile]
    lost: list[Reject] = field(default_factory=list)
    list_name: str = ""


def stage_pairs(*, root: str, source: str, recipe: Recipe, max_reject_fraction: float, for_stages: Sequence[str] = ()) -> tuple[str, str]:
    """Stage image-text pairs, and the evaluation sets made from their held-out part.

    Args:
        root: store URI under which datasets/ lies.
        source: `demo`, or the URI of a folder of pictures, of one with captions.csv, or of WebDataset tars.
        recipe: its staging section determines the bytes.
        max_reject_fraction: a larger fraction of bad samples stops staging.
        for_stages: stages that will train on them: a source that does not fill one batch is refused before a picture is read.

    Returns:
        The data set's folder and its identity.
    """
    root = absolute(root)
    found = _find(source, root)
    settings = recipe.staging
    name = f"{found.name}-pairs"
    target, options = _pairs_folder(found, root, settings)
    sealed = find_intact(target)
    if sealed is not None:
        return target, sealed.identity
    with ExitStack() as stack:
        source_rows = _read_pairs(found, settings.demo_side, stack)
        rows, twins = _require_pairs(found, source_rows, recipe, options, for_stages, _Refusal(source, target, max_reject_fraction))
        plan, slices = _plan("pairs", name, found, options, source_rows, rows, settings.shard_samples)
        changed = changed_slices(target, plan, slices, PairMaker("", rules=rules_of(options)).said)
        if changed and rules_of(options) < PAIRS_RULES:  # leave a data set that an older version has begun
            options, changed = {**options, "rules": PAIRS_RULES}, []
            target = layout.dataset(root, name, plan_id(found.fingerprint, options))
            rows, twins = split_pairs(source_rows.rows, settings.heldout_fraction, _keeps_twins(found, options))
            plan, slices = _plan("pairs", name, found, options, source_rows, rows, settings.shard_samples)
        make_again(target, changed)
        make = PairMaker(settings.image_policy, rules=rules_of(options), looks=bool(twins))
        looks: Looks | None = {split: array("Q") for split in SPLITS} if twins else None
        plan = _write(target, plan, slices, source_rows.rejects, make, "images", looks)
        account = gather(target, plan)
        _check(target, plan, account, max_reject_fraction)
    classes = sorted({row.label for row in rows if row.label})
    templates = demo.CLASS_TEMPLATES if source == DEMO else heldout.TEMPLATES
    evaluation = heldout.stage(
        root=root, base_name=found.name, pairs_folder=target, pairs=plan, account=account, classes=classes, templates=templates,
        first_caption_only=source == DEMO,
    )  # fmt: skip
    facts: dict[str, Any] = {"splits": _split_sizes(account), "classes": len(classes)}
    if looks is not None:
        facts["twins"] = {**twins, "test_alike": count_look_alikes(looks["train"], looks["test"])}
    return target, seal(target, plan, account, evaluation=evaluation, facts=facts).identity


def stage_triplets(
    *, root: str, source: str, recipe: Recipe, max_reject_fraction: float, from_pairs: str, for_stages: Sequence[str] = ()
) -> tuple[str, str]:
    """Stage triplets: a folder in NIGHTS layout, or variants of the pictures of a pairs source, judged by FLIP.

    Args:
        root: store URI under which datasets/ lies.
        source: `demo`, or the URI of a folder in NIGHTS layout.
        recipe: its staging section and perceptual.min_votes determine the bytes.
        max_reject_fraction: a larger fraction of bad triplets stops staging.
        from_pairs: a pairs source to make triplets from; `source` is then not read.
        for_stages: stages that will train on them, or on the pairs: a source that does not fill one batch is refused before
            FLIP judges.

    Returns:
        The data set's folder and its identity.
    """
    root = absolute(root)
    settings = recipe.staging
    generated = bool(from_pairs) or source == DEMO
    found = _find(from_pairs or source, root)
    options: dict[str, Any] = {
        "shard_samples": settings.shard_samples, "triplet_side": settings.triplet_side, **added_fields(settings),
    }  # fmt: skip
    if generated:
        options |= {
            **({"demo_side": settings.demo_side} if found.uri == DEMO else {}),
            "flip_min_difference": settings.flip_min_difference, "generator": generate.VERSION,
            "heldout_fraction": settings.heldout_fraction, "triplets": settings.demo_triplets,
        }  # fmt: skip
    else:
        options |= {"flip_judges_too": settings.flip_judges_too, "min_votes": recipe.perceptual.min_votes}
    name = f"{found.name}-triplets"
    target = layout.dataset(root, name, plan_id(found.fingerprint, options))
    if generated and found.uri != DEMO:
        target, options = pairs_target(root, name, found.fingerprint, options)
    sealed = find_intact(target)
    if sealed is not None:
        return target, sealed.identity
    with ExitStack() as stack:
        if generated:
            pairs_folder, _ = _pairs_folder(found, root, settings)
            listed_in = target if exists(join(pairs_folder, MANIFEST)) else pairs_folder
            refusal = _Refusal(from_pairs or source, listed_in, max_reject_fraction)
            source_rows = _generate(found, recipe, options, stack, for_stages, refusal)
        else:
            source_rows = _read_triplets(found, recipe.perceptual.min_votes)
        if not source_rows.rows:
            refuse(target, found.uri, "no triplet is left", source_rows.rejects)
        require_enough(found.uri, "triplets", _train_size(source_rows.rows), len(source_rows.rows), recipe, for_stages)
        plan, slices = _plan("triplets", name, found, options, source_rows, source_rows.rows, settings.shard_samples)
        _Refusal(found.uri, target, max_reject_fraction).check(len(source_rows.rows), source_rows.rejects)
        make = TripletMaker(settings.triplet_side, settings.flip_judges_too)
        make_again(target, changed_slices(target, plan, slices, make.said))
        plan = _write(target, plan, slices, source_rows.rejects, make, "triplets")
        account = gather(target, plan)
        _check(target, plan, account, max_reject_fraction)
    facts = {"splits": _split_sizes(account), "pixel_mse_accuracy": mse_accuracy(target, account.shards)}
    return target, seal(target, plan, account, facts=facts).identity


def _find(source: str, root: str) -> _Source:
    """Identify a source and its fingerprint, without reading its rows."""
    if source == DEMO:
        return _Source(name=DEMO, uri=DEMO, fingerprint=demo.fingerprint(), files=[])
    uri, lost, list_name = absolute(source), list[Reject](), ""
    files = list_source(uri, lost)
    if len(files) == 1 and is_list_file(uri, files[0]):
        uri, _, list_name = uri.rpartition("/")
        files = list_source(uri, lost)
    slug = re.sub(r"[^a-z0-9]+", "-", uri.rstrip("/").rsplit("/", 1)[-1].lower().removesuffix(".tar")).strip("-")[:40].strip("-")
    found = fingerprint(files, root)
    return _Source(
        name=slug or "data", uri=uri, fingerprint=canonical_hash([found, list_name]) if list_name else found, files=files, lost=lost,
        list_name=list_name,
    )  # fmt: skip


def _read_pairs(found: _Source, demo_side: int, stack: ExitStack) -> Rows[PairRow]:
    """The rows of a pairs source of any layout."""
    if found.uri == DEMO:
        made = str(stack.enter_context(temporary_folder("demo")))
        demo.write_folder(made, demo_side)
        rows = table.read(made, list_source(made))
        return Rows(rows=rows.rows, rejects=rows.rejects, attribution=demo.attribution())
    if lists := table.find(found.uri, found.files, found.list_name):
        rows = table.read(found.uri, found.files, lists)
    elif any(file.name.endswith(".tar") for file in found.files):
        rows = tars.read(found.uri, found.files)
    else:
        rows = folder.read(found.uri, found.files)
    packed = (file.name for file in found.files if kinds.suffix_of(file.name) in kinds.PACKED)
    unopened = [Reject(name, "packed file not opened", kinds.explain_kind(name), counts=False) for name in packed]
    rows = Rows(rows=rows.rows, rejects=[*rows.rejects, *unopened, *found.lost])
    check_unique((row.key for row in rows.rows), found.uri)
    return rows


def _read_triplets(found: _Source, min_votes: int) -> Rows[TripletRow]:
    """The rows of a triplets source."""
    read = bapps.read if bapps.is_bapps(found.files) else nights.read
    rows = read(found.uri, found.files, min_votes)
    check_unique((row.key for row in rows.rows), found.uri)
    return rows


def _keeps_twins(found: _Source, options: Mapping[str, Any]) -> bool:
    """Whether twins share a split: with rules 2 and later, except for the demo, whose own families include its twins."""
    return rules_of(options) > 1 and found.uri != DEMO


def _pairs_folder(found: _Source, root: str, settings: StagingConfig) -> tuple[str, dict[str, Any]]:
    """The folder in which a source's pairs are staged, and their options."""
    options = {
        "context_length": CONTEXT_LENGTH, "heldout_fraction": settings.heldout_fraction, "image_policy": settings.image_policy,
        "shard_samples": settings.shard_samples, **({"demo_side": settings.demo_side} if found.uri == DEMO else {}),
        **added_fields(settings),
    }  # fmt: skip
    return pairs_target(root, f"{found.name}-pairs", found.fingerprint, options)


@dataclass(frozen=True)
class _Refusal:
    """How to refuse a source: its name as given, the folder for the list of rejects, the allowed fraction of bad samples."""

    source: str
    folder: str
    max_reject_fraction: float

    def check(self, usable: int, rejects: list[Reject]) -> None:
        """Raise if too much of the source is already bad, however good the rest is."""
        best = Account(shards=[], written=usable, files={}, **tally(rejects))
        try:
            check_rejects(self.folder, self.source, best, self.max_reject_fraction)
        except InputError:
            write_bytes(join(self.folder, PLAN_REJECTS), encode_rejects(rejects))
            raise


def _require_pairs(
    found: _Source, pairs: Rows[PairRow], recipe: Recipe, options: Mapping[str, Any], for_stages: Sequence[str], refusal: _Refusal
) -> tuple[list[PairRow], dict[str, int]]:
    """The pairs with their splits, and the counts of twins; InputError, before a picture is read, if they cannot be staged."""
    rows, twins = split_pairs(pairs.rows, recipe.staging.heldout_fraction, _keeps_twins(found, options))
    if not any(row.split == "train" for row in rows):
        refuse(refusal.folder, refusal.source, f"no picture is left for training ({len(rows)} usable)", pairs.rejects)
    refusal.check(len(rows), pairs.rejects)
    require_enough(refusal.source, "pairs", _train_size(rows), len(rows), recipe, for_stages)
    return rows, twins


def _generate(
    found: _Source, recipe: Recipe, options: Mapping[str, Any], stack: ExitStack, for_stages: Sequence[str], refusal: _Refusal
) -> Rows[TripletRow]:
    """Triplets made from pairs, written as a folder in NIGHTS layout so that they are staged like any other.

    Pairs that would be refused are refused before FLIP judges, and also as soon as too many pictures turn out to be unreadable.
    """
    pairs = _read_pairs(found, recipe.staging.demo_side, stack)
    pictures, _ = _require_pairs(found, pairs, recipe, options, for_stages, refusal)
    made = str(stack.enter_context(temporary_folder("triplets")))
    most = generate.most_triplets(pictures, recipe.staging)
    require_enough(found.uri, "triplets", most["train"], sum(most.values()), recipe, for_stages)
    generate.write_folder(made, pictures, recipe.staging, lambda bad: refusal.check(len(pictures) - len(bad), [*pairs.rejects, *bad]))
    rows = nights.read(made, list_source(made), 0)
    return Rows(rows=rows.rows, rejects=rows.rejects, attribution=pairs.attribution, judge=rows.judge)


def _plan(
    kind: Kind, name: str, found: _Source, options: dict[str, Any], source_rows: Rows[RowT], rows: Sequence[RowT], shard_samples: int
) -> tuple[Plan, list[list[RowT]]]:
    """Permute the rows of each split and cut them into slices."""
    slices: list[list[RowT]] = []
    splits: list[str] = []
    for split in SPLITS:
        ordered = in_order(row for row in rows if row.split == split)
        for start in range(0, len(ordered), _SLICE_SHARDS * shard_samples):
            slices.append(ordered[start : start + _SLICE_SHARDS * shard_samples])
            splits.append(split)
    plan = Plan(
        kind=kind,
        name=name,
        source={"uri": found.uri, "fingerprint": found.fingerprint, ROWS: rows_digest(slices)},
        options=options,
        shard_samples=shard_samples,
        splits=splits,
        rows_read=len(rows) + len(source_rows.rejects),
        columns=kind,
        attribution=source_rows.attribution,
        judge=source_rows.judge,
        **tally(source_rows.rejects),
    )
    return plan, slices


def _write(
    target: str, plan: Plan, slices: list[list[RowT]], rejects: list[Reject], make: Callable[[RowT], Sample | Reject], unit: str,
    looks: Looks | None = None,
) -> Plan:  # fmt: skip
    """Make the incomplete slices; returns the plan as written.

    `looks` receives every picture's perceptual hash by split, also for complete slices: the sealed facts must be the same.
    """
    plan = write_plan(target, plan, rejects)
    tokenize = Tokenizer()
    step, total = f"stage {plan.name}", sum(map(len, slices))
    unmade = set(range(len(slices)))
    for number in slices_to_make(target, plan):
        unmade.discard(number)
        done = sum(map(len, slices[:number]))
        with SliceWriter(target, plan, number) as writer:
            for count, sample in enumerate(_in_threads(make, slices[number]), start=1):
                if isinstance(sample, Reject):
                    writer.reject(sample)
                else:
                    writer.add(sample.key, sample.members, tokenize(sample.captions), sample.note)
                    _keep_look(looks, plan.splits[number], sample)
                if count % 100 == 0:
                    check_stop()
                    progress(step, done + count, total, unit)
    for number in sorted(unmade) if looks is not None else ():
        for sample in _in_threads(make, slices[number]):
            check_stop()
            _keep_look(looks, plan.splits[number], sample)
    progress(step, total, total, unit)
    return plan


def _keep_look(looks: Looks | None, split: str, sample: Sample | Reject) -> None:
    if looks is not None and isinstance(sample, Sample) and sample.look is not None:
        looks[split].append(sample.look)


def _in_threads(make: Callable[[RowT], Sample | Reject], rows: Sequence[RowT]) -> Iterator[Sample | Reject]:
    """make(row) for each row, in order, a bounded number ahead."""
    with ThreadPoolExecutor(_THREADS) as pool:
        waiting: deque[Future[Sample | Reject]] = deque()
        for row in rows:
            waiting.append(pool.submit(make, row))
            if len(waiting) > _AHEAD:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()


def _check(target: str, plan: Plan, account: Account, max_reject_fraction: float) -> None:
    """Raise if too many samples were bad; otherwise report what was left out."""
    check_rejects(target, plan.source["uri"], account, max_reject_fraction)
    if account.lost or account.notes:
        rows = {"read": plan.rows_read, "written": account.written, "lost": account.lost, "notes": account.notes}
        print(f"{plan.name}: {describe_rows(rows, target)}", file=sys.stderr)


def _train_size(rows: Sequence[PairRow] | Sequence[TripletRow]) -> int:
    return sum(row.split == "train" for row in rows)


def _split_sizes(account: Account) -> dict[str, int]:
    sizes = Counter[str]()
    for shard in account.shards:
        sizes[shard.split] += shard.num_samples
    return dict(sizes)
