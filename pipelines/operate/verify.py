"""`python -m pipelines verify`: whether every sealed byte of an experiment, and of the data sets that it uses, is as it was sealed.

Everything is read and hashed; records of earlier checks are not believed. Nothing is written. One line for each object that is not
as it was sealed, with what to do; objects that firstsight does not write are named, and change nothing.
"""

import argparse
import dataclasses
import os
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from pipelines.planning.flags import add_request, request_of
from pipelines.planning.request import read_request
from pipelines.planning.resolving import resolve
from pipelines.profile.profile import PROFILE_VARIABLE, read_profile, use_store_of_profile
from pipelines.steps.running import root_of_run
from trainer.config import DataConfig
from trainer.errors import Corrupt, InputError, RunError
from trainer.storage import join, layout, open_store, read_bytes, read_json
from trainer.storage.base import MissingObject
from trainer.storage.checked import file_sha256
from trainer.storage.committed import NAME as SEAL
from trainer.storage.committed import read_committed
from trainer.storage.documents import CHECKSUM, checksum
from trainer.storage.figures import BLOCK, ITEMS, items_uri, read_figures
from trainer.storage.manifest import NAME as MANIFEST
from trainer.storage.manifest import Manifest, Shard, require_manifest, staged_sets
from trainer.storage.pages import read_page
from trainer.storage.plans import NAME as PLAN
from trainer.storage.plans import read_plan
from trainer.storage.recipes import read_config_values
from trainer.storage.samples import check_index
from trainer.storage.states import StoredKind, kind_of

Files = Mapping[str, Mapping[str, Any]]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Found:
    """An object that is not as it was sealed.

    Attributes:
        uri: of the object.
        why: what is wrong, in words that follow the URI.
        kind: of the object; None: firstsight writes nothing of that name.
    """

    uri: str
    why: str
    kind: StoredKind | None

    def __str__(self) -> str:
        """One line, with what to do."""
        if self.kind is None:
            return f"{self.uri}: {self.why}"
        outcome, _, how = (self.kind.missing if self.why == "missing" else self.kind.flipped).partition(": ")
        advice = {"healed": f"run the experiment again: {how}", "harmless": f"harmless: {how}"}.get(outcome, how)
        return f"{self.uri}: {self.why} ({self.kind.name}); {advice}"


class Walk:
    """What was looked at so far, and what was found.

    Attributes:
        root: store URI.
        found: in the order of the walk.
        unknown: URIs of objects that firstsight does not write.
        unfinished: folders of the stages that are planned and have no final model.
        objects: that were read or hashed.
        size: their bytes, as far as they were hashed.
    """

    def __init__(self, root: str) -> None:
        self.root = root
        self.found: list[Found] = []
        self.unknown: list[str] = []
        self.unfinished: list[str] = []
        self.objects = 0
        self.size = 0

    def look(self, uri: str, read: Callable[[], object]) -> Any:
        """What `read` gives, or None if the object at `uri` is damaged."""
        self.objects += 1
        try:
            return read()
        except MissingObject:
            self.say(uri, "missing")
        except (Corrupt, InputError) as error:
            self.say(uri, str(error).removeprefix(f"{uri}: "))
        return None

    def say(self, uri: str, why: str) -> None:
        """Note what is wrong with an object, once."""
        if all(found.uri != uri for found in self.found):
            self.found.append(Found(uri=uri, why=why, kind=kind_of(self.root, uri)))

    def hash(self, folder: str, files: Files) -> None:
        """Compare files of a folder with what was sealed."""
        for name, sealed in files.items():
            uri = join(folder, name)
            digest = self.look(uri, lambda uri=uri, sealed=sealed: file_sha256(uri, sealed["sha256"]))  # type: ignore[misc]
            if digest is not None and digest != sealed["sha256"]:
                self.say(uri, "its checksum does not match the sealed one")
            self.size += int(sealed["size"])


def verify(root: str, experiment: str) -> Walk:
    """Hash all that an experiment and its data sets hold.

    Args:
        root: store URI.
        experiment: its name.

    Raises:
        InputError: there is no such experiment.
        RunError: the store failed.
    """
    uri, walk = layout.experiment(root, experiment), Walk(root)
    objects = [info.uri for info in open_store(uri).list(uri)]
    if not objects:
        raise InputError(f"{uri}: no experiment here")
    for place in objects:
        kind = kind_of(root, place)
        if kind is None:
            walk.unknown.append(place)
        else:
            _CHECKS.get(kind.name, _look_at_json)(walk, place)
    plan = walk.look(join(uri, PLAN), lambda: _present(join(uri, PLAN), read_plan(uri)))
    parts = [plan["pairs"], plan["triplets"], *plan.get("sets", [])] if plan else []
    for data in dict.fromkeys(map(_data, parts)):
        _verify_data(walk, data)
    folders = {entry[name] for entry in (plan or {"cells": []})["cells"] for name in ("perceptual", "contrastive", "posthoc")} - {""}
    walk.unfinished = sorted(folder for folder in folders if join(layout.final(folder), SEAL) not in objects)
    return walk


def _verify_data(walk: Walk, data: DataConfig) -> None:
    uri = join(data.uri, MANIFEST)
    manifest: Manifest | None = walk.look(uri, lambda: require_manifest(data.uri, data.identity, data.manifest_sha256))
    if manifest is None:
        return
    walk.hash(data.uri, manifest.all_files)
    for shard in manifest.shards:
        walk.look(join(data.uri, shard.index_name), lambda shard=shard: _index(data.uri, shard))  # type: ignore[misc]
    for info in open_store(data.uri).list(data.uri):
        kind = kind_of(walk.root, info.uri)
        if kind is None:
            walk.unknown.append(info.uri)
        elif info.uri != uri:
            _look_at_json(walk, info.uri)
    for part in staged_sets(data.uri, manifest, data.evaluation_sha256):
        _verify_data(walk, part)


def _index(folder: str, shard: Shard) -> object:
    data = read_bytes(join(folder, shard.index_name))
    try:
        return check_index(data, join(folder, shard.index_name), shard)
    except RunError as error:
        raise Corrupt(str(error)) from error


def _data(values: Mapping[str, Any]) -> DataConfig:
    texts = {name: str(values.get(name, "")) for name in ("uri", "identity", "manifest_sha256")}
    return DataConfig(**texts, evaluation_sha256=tuple(values.get("evaluation_sha256", ())))


def _present(uri: str, value: Any) -> Any:
    if value is None:
        raise MissingObject(f"{uri}: missing")
    return value


# ------------------------------------------------------------------------------------------------------- kinds


def _seal(walk: Walk, uri: str) -> None:
    """A final model or a checkpoint: its files, and what lies beside a final model, in both copies."""
    folder = uri.removesuffix(f"/{SEAL}")
    seal = walk.look(uri, lambda: read_committed(folder))
    if seal is not None:
        walk.hash(folder, {**seal.files, **seal.beside})
        walk.hash(folder.rpartition("/")[0], seal.beside)


def _figures(walk: Walk, uri: str) -> None:
    value = walk.look(uri, lambda: read_figures(uri))
    if value is not None and ITEMS in value[BLOCK]:
        folder, _, name = items_uri(uri).rpartition("/")
        walk.hash(folder, {name: value[BLOCK][ITEMS]})


def _report(walk: Walk, uri: str) -> None:
    folder = uri.rpartition("/")[0]
    experiment = folder.rpartition("/")[0]
    made = walk.look(uri, lambda: read_page(experiment))
    for place in dict.fromkeys((made.folder(experiment), folder)) if made is not None else ():
        walk.hash(place, made.files)


def _look_at_json(walk: Walk, uri: str) -> None:
    """A kind without a check of its own: JSON that carries a checksum has the right one."""
    if uri.endswith(".json"):
        walk.look(uri, lambda: _json(uri))


def _json(uri: str) -> Any:
    value = read_json(uri)
    if (
        isinstance(value, dict)
        and isinstance(value.get(CHECKSUM), str)
        and "format_version" in value
        and value[CHECKSUM] != checksum(value)
    ):
        raise Corrupt(f"{uri}: its checksum does not match its content")
    return value


_CHECKS: dict[str, Callable[[Walk, str], object]] = {
    "experiment's plan": lambda walk, uri: None,  # read once, for the data sets that it names
    "stored request": lambda walk, uri: walk.look(uri, lambda: read_request(uri)),
    "stage's configuration": lambda walk, uri: walk.look(uri, lambda: read_config_values(uri)),
    "evaluation's configuration": lambda walk, uri: walk.look(uri, lambda: read_config_values(uri)),
    "final model's seal": _seal,
    "checkpoint's seal": _seal,
    "seal of kept weights": _seal,
    "figures": _figures,
    "record of the report": _report,
}
"""Kinds whose object describes other objects, or needs its own way of reading."""


def add_command(commands: Any, common: argparse.ArgumentParser) -> None:
    """Add `verify` to the command line."""
    parser = commands.add_parser(
        "verify", parents=[common], help="hash every file of an experiment and its data; report differences from the seals"
    )
    add_request(parser)
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """Verify the experiment of a request; return 0 if every file matches its seal, otherwise 1."""
    request = resolve(request_of(options))
    if request.profile:
        os.environ[PROFILE_VARIABLE] = request.profile
    use_store_of_profile()
    root = root_of_run(request.root, read_profile(backend=request.backend), default="runs")
    walk = verify(root, request.experiment)
    for line in _lines(walk):
        print(line, flush=True)
    return 1 if walk.found else 0


def _lines(walk: Walk) -> Iterator[str]:
    yield from map(str, walk.found)
    yield from (f"note: {uri}: firstsight writes no file with this name" for uri in walk.unknown)
    yield from (
        f"note: {folder}: no final model is sealed there: the stage is not finished, or its seal is missing" for folder in walk.unfinished
    )
    looked = f"{walk.objects} objects, {walk.size / 1e9:,.3f} GB hashed"
    yield f"{looked}: {len(walk.found)} differ from what was sealed" if walk.found else f"{looked}: everything matches what was sealed"
