"""`python -m pipelines disk`: how much each experiment of a root takes, by what it is for, and which experiments use which data set."""

import argparse
import contextlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from rich.filesize import decimal

from pipelines.profile.profile import read_profile, use_store_of_profile
from pipelines.steps.running import root_of_run
from pipelines.steps.sealed import staged_data
from trainer.errors import Corrupt, InputError, RunError
from trainer.progress import counted
from trainer.storage import join, layout, open_store
from trainer.storage.base import ObjectInfo
from trainer.storage.manifest import NAME as MANIFEST
from trainer.storage.manifest import read_manifest, staged_sets
from trainer.storage.plans import read_plan

PARTS = ("checkpoints", "models", "weights by epoch", "figures", "report", "records")
"""What an experiment's bytes are for. Records are all that is small: configurations, logs, requests, the plan."""


@dataclass(kw_only=True)
class Taken:
    """What an experiment takes.

    Attributes:
        experiment: its name.
        objects: how many.
        size: bytes of all of them.
        parts: bytes of each of PARTS.
        data: URIs of the data sets that it uses, wherever they lie.
    """

    experiment: str
    objects: int = 0
    size: int = 0
    parts: dict[str, int] = field(default_factory=lambda: dict.fromkeys(PARTS, 0))
    data: list[str] = field(default_factory=list)


@dataclass(kw_only=True)
class DataSet:
    """What a data set takes.

    Attributes:
        uri: of its folder.
        sealed: whether it has a manifest.
        objects: how many.
        size: bytes of all of them.
        used_by: experiments of this root.
    """

    uri: str
    sealed: bool = False
    objects: int = 0
    size: int = 0
    used_by: list[str] = field(default_factory=list)


@dataclass(kw_only=True)
class Disk:
    """What lies under a root; uploads that were cut off and files under way are not listed by a store, and not counted.

    Attributes:
        root: store URI.
        experiments: by name.
        data_sets: by URI.
        other: bytes of everything else, such as the records of runs.
    """

    root: str
    experiments: dict[str, Taken]
    data_sets: dict[str, DataSet]
    other: int = 0

    @property
    def size(self) -> int:
        """All bytes."""
        return self.other + sum(one.size for one in self.experiments.values()) + sum(one.size for one in self.data_sets.values())


def add_command(commands: "argparse._SubParsersAction[argparse.ArgumentParser]", common: argparse.ArgumentParser) -> None:
    """Add `disk`."""
    disk = commands.add_parser(
        "disk", parents=[common], help="show the space that experiments and data sets use, and which experiments use which data"
    )
    disk.add_argument("experiment", nargs="?", default="", help="only this experiment, with the data sets that it uses")
    disk.add_argument("--root", default="", help="store URI (default: the profile's, else runs)")
    shown = disk.add_mutually_exclusive_group()
    shown.add_argument("--json", action="store_true", help="print JSON, with sizes in bytes, instead of a table")
    shown.add_argument("--uris", action="store_true", help="print only the folders, one per line, as a backup needs them")
    disk.set_defaults(run=_run)


def _run(options: argparse.Namespace) -> int:
    use_store_of_profile()
    root = root_of_run(options.root, read_profile(), default="runs")
    disk = measure(root)
    if options.experiment:
        name = layout.check_name("experiment", options.experiment)
        if name not in disk.experiments:
            raise InputError(f"{layout.experiment(root, name)}: no experiment here: `python -m pipelines disk --root {root}` lists them")
        disk = Disk(
            root=root,
            experiments={name: disk.experiments[name]},
            data_sets={uri: one for uri, one in disk.data_sets.items() if name in one.used_by},
        )
    if options.uris:
        print(*(layout.experiment(root, name) for name in disk.experiments), *disk.data_sets, sep="\n")
    elif options.json:
        print(json.dumps(asdict(disk) | {"size": disk.size}, indent=1))
    else:
        _print(disk)
    return 0


def measure(root: str) -> Disk:
    """Add up what lies under a root.

    Raises:
        InputError: the store refuses.
        RunError: the store failed.
    """
    disk = Disk(root=root, experiments={}, data_sets={})
    for info in open_store(root).list(root):
        first, *rest = info.uri.removeprefix(f"{root.rstrip('/')}/").split("/")
        if first == "experiments" and len(rest) > 1:
            _add(disk.experiments.setdefault(rest[0], Taken(experiment=rest[0])), rest[1:], info)
        elif first == "datasets" and len(rest) > 2:
            uri = join(root, "datasets", *rest[:2])
            found = disk.data_sets.setdefault(uri, DataSet(uri=uri))
            found.objects, found.size = found.objects + 1, found.size + info.size
            found.sealed = found.sealed or rest[2:] == [MANIFEST]
        else:
            disk.other += info.size
    for name, taken in disk.experiments.items():
        taken.data = _data_of(layout.experiment(root, name))
        for uri in taken.data:
            if uri in disk.data_sets:
                disk.data_sets[uri].used_by.append(name)
    return disk


def _add(taken: Taken, place: Sequence[str], info: ObjectInfo) -> None:
    taken.objects, taken.size = taken.objects + 1, taken.size + info.size
    taken.parts[_part(place)] += info.size


def _part(place: Sequence[str]) -> str:
    """Which of PARTS an object below an experiment's folder belongs to."""
    folders = {"checkpoints": "checkpoints", layout.FINAL: "models", layout.TRAJECTORY: "weights by epoch", "evaluation": "figures"}
    if place[0] == "report":
        return "report"
    return next((folders[name] for name in place[:-1] if name in folders), "records")


def _data_of(experiment_uri: str) -> list[str]:
    """The URIs of the data sets that an experiment uses: by its plan, else by its staging, and the evaluation sets staged with them."""
    sets: list[Mapping[str, Any]] = []
    with contextlib.suppress(InputError, Corrupt):
        sets = (read_plan(experiment_uri) or {}).get("sets", [])
    found = dict.fromkeys(filter(None, [staged_data(experiment_uri, "pairs"), staged_data(experiment_uri, "triplets")]))
    for uri in list(found):
        with contextlib.suppress(InputError, RunError):  # damaged: verify says so
            manifest = read_manifest(uri)
            found |= dict.fromkeys(part.uri for part in staged_sets(uri, manifest)) if manifest else {}
    return list(found | dict.fromkeys(str(one["uri"]) for one in sets))


def _print(disk: Disk) -> None:
    from rich.console import Console
    from rich.table import Table

    if not disk.experiments and not disk.data_sets:
        print(f"no experiments and no data sets in {disk.root}")
        return
    console = Console(highlight=False, width=240)
    parts = [part for part in PARTS if any(taken.parts[part] for taken in disk.experiments.values())]
    table = Table(box=None, header_style="bold", pad_edge=False)
    for name in ("experiment", "objects", *parts, "in all"):
        table.add_column(name, overflow="fold", justify="left" if name == "experiment" else "right")
    for taken in sorted(disk.experiments.values(), key=lambda one: -one.size):
        table.add_row(taken.experiment, f"{taken.objects:,}", *(decimal(taken.parts[part]) for part in parts), decimal(taken.size))
    console.print(table)
    table = Table(box=None, header_style="bold", pad_edge=False)
    for name in ("data set", "objects", "in all", "used by"):
        table.add_column(name, overflow="fold", justify="right" if name in ("objects", "in all") else "left")
    for one in sorted(disk.data_sets.values(), key=lambda one: -one.size):
        users = ", ".join(one.used_by) or "no experiment here"
        table.add_row(one.uri, f"{one.objects:,}", decimal(one.size), users if one.sealed else f"{users}; not sealed")
    console.print(table)
    count = f"{counted(len(disk.experiments), 'experiment')} and {counted(len(disk.data_sets), 'data set')}"
    print(f"{decimal(disk.size)} in {disk.root}: {count}{f', and {decimal(disk.other)} beside them' if disk.other else ''}")
