"""`python -m pipelines withdraw EXPERIMENT`: what its requests asked for, and how much of it is done; with --request, ask no longer.

A request's cells stay in the experiment's plan, finished or not, since its run may still go on: one that was given up shows as missing
cells on every page. To withdraw it deletes its file below requests/, and takes from the plan what it alone asked for and never finished.
What is finished stays, and what was declared before any result stays declared.
"""

import argparse
from collections.abc import Collection
from typing import Any

from pipelines.profile.profile import read_profile, use_store_of_profile
from pipelines.steps.running import root_of_run
from trainer.errors import InputError
from trainer.progress import counted
from trainer.storage import layout, open_store
from trainer.storage.documents import checksum
from trainer.storage.plans import read_plan, write_plan


def add_command(commands: "argparse._SubParsersAction[argparse.ArgumentParser]", common: argparse.ArgumentParser) -> None:
    """Add `withdraw`."""
    withdraw = commands.add_parser("withdraw", parents=[common], help="list an experiment's requests, or withdraw some of them")
    withdraw.add_argument("experiment", help="name of the experiment")
    withdraw.add_argument("--root", default="", help="store URI (default: the profile's, else runs)")
    withdraw.add_argument("--request", action="append", default=[], metavar="ID", help="withdraw this request; may be repeated")
    withdraw.set_defaults(run=_run)


def _run(options: argparse.Namespace) -> int:
    use_store_of_profile()
    root, name = root_of_run(options.root, read_profile(), default="runs"), layout.check_name("experiment", options.experiment)
    uri = layout.experiment(root, name)
    for line in withdraw(uri, options.request) if options.request else requests_of(uri):
        print(line)
    return 0


def requests_of(experiment_uri: str) -> list[str]:
    """A line for each request that the experiment's plan knows: its id, how many of its cells are finished, and which are not."""
    finished = _finished(experiment_uri)
    lines = []
    for request, dealt in _lanes(experiment_uri).items():
        cells = [cell for lane in dealt for cell in lane["cells"]]
        left = [cell for cell in cells if cell not in finished]
        not_yet = f"; not {', '.join(left)}" if left else ""
        lines.append(f"{request}: {len(cells) - len(left)} of {counted(len(cells), 'cell')} finished{not_yet}")
    return lines or [f"{experiment_uri} has no request"]


def withdraw(experiment_uri: str, requests: Collection[str]) -> list[str]:
    """Give requests up; lines that say what became of their cells. A run of one of them that still goes on fails at its next step.

    Raises:
        InputError: the experiment is not planned, or its plan does not know one of them.
    """
    known = _lanes(experiment_uri)
    unknown = [request for request in requests if request not in known]
    if unknown:
        raise InputError(f"{experiment_uri}: has no request {unknown[0]}; it has {', '.join(known) or 'none'}")
    for request in requests:
        uri = layout.request(experiment_uri, request)
        open_store(uri).delete(uri)
    finished = _finished(experiment_uri)
    while True:
        plan = read_plan(experiment_uri) or {"cells": []}
        earlier = checksum(plan)
        left = {request: dealt for request, dealt in plan.get("lanes", {}).items() if request not in requests}
        wanted = finished | {cell for dealt in left.values() for lane in dealt for cell in lane["cells"]}
        kept = [entry for entry in plan["cells"] if entry["cell"] in wanted]
        gone = [entry["cell"] for entry in plan["cells"] if entry["cell"] not in wanted]
        changed = {
            **plan, "lanes": left, "cells": kept, "recipes": {entry["recipe"]: plan["recipes"][entry["recipe"]] for entry in kept},
            "arms": list(dict.fromkeys(entry["arm"] for entry in kept)), "seeds": sorted({entry["seed"] for entry in kept}),
        }  # fmt: skip
        if checksum(read_plan(experiment_uri) or {"cells": []}) == earlier:  # else a run planned meanwhile
            write_plan(experiment_uri, changed)
            what = ", ".join(gone) or "nothing, since all its cells are finished or requested by others"
            return [f"{', '.join(requests)} withdrawn; taken from the plan: {what}"]


def _lanes(experiment_uri: str) -> dict[str, list[dict[str, Any]]]:
    plan = read_plan(experiment_uri)
    if plan is None:
        raise InputError(f"{experiment_uri}: no plan.json: nothing has been planned here")
    found: dict[str, list[dict[str, Any]]] = plan.get("lanes", {})
    return found


def _finished(experiment_uri: str) -> set[str]:
    from pipelines.planning.writing import cells_there  # here: slow to import

    return cells_there(experiment_uri)[0]
