"""`python -m pipelines remove EXPERIMENT`: delete an experiment from the store. Data sets stay unless `--data` is given.

Nothing is deleted while a run, a job or another experiment's request may need it. plan.json goes first and the seals next, so that
what an interrupted removal leaves counts as absent; the same command deletes the rest.
"""

import argparse
import time
from collections.abc import Iterable, Iterator

from rich.filesize import decimal

from pipelines.cluster.names import DOMAIN
from pipelines.jobs.finding import find_jobs
from pipelines.jobs.lease import NAME as LOCK
from pipelines.jobs.lock import exclusive
from pipelines.jobs.shapes import shape_of
from pipelines.operate.disk import Disk, measure
from pipelines.operate.experiments import survey_root
from pipelines.operate.status import connect
from pipelines.planning.runs import LIFE_SECONDS
from pipelines.profile.profile import read_profile, use_store_of_profile
from pipelines.steps.running import root_of_run
from trainer.errors import InputError, RunError
from trainer.progress import counted
from trainer.storage import join, layout, open_store, read_text
from trainer.storage.base import MissingObject, ObjectInfo, local_path
from trainer.storage.committed import NAME as SEAL
from trainer.storage.manifest import NAME as MANIFEST
from trainer.storage.plans import NAME as PLAN

_LOCKS = (LOCK, "jobs.lock")


def add_command(commands: "argparse._SubParsersAction[argparse.ArgumentParser]", common: argparse.ArgumentParser) -> None:
    """Add `remove`."""
    remove = commands.add_parser("remove", parents=[common], help="delete an experiment from the store; data sets stay")
    remove.add_argument("experiment", help="name of the experiment")
    remove.add_argument("--root", default="", help="store URI (default: the profile's, else runs)")
    remove.add_argument("--namespace", default="", help="where its jobs would be (default: the profile's, else the context's)")
    remove.add_argument("--data", action="store_true", help="also delete the data sets that no other experiment of the root uses")
    remove.add_argument("--dry-run", action="store_true", help="print what would be deleted; delete nothing")
    remove.set_defaults(run=_run)


def _run(options: argparse.Namespace) -> int:
    use_store_of_profile()
    profile = read_profile()
    root, name = root_of_run(options.root, profile, default="runs"), layout.check_name("experiment", options.experiment)
    _refuse_jobs(layout.experiment(root, name), name, options.namespace, profile.backend)
    for line in remove(root, name, data=options.data, dry_run=options.dry_run):
        print(line, flush=True)
    return 0


def _refuse_jobs(uri: str, name: str, namespace: str, backend: str) -> None:
    """Refuse while a cluster has a living job that writes there; for a folder of this machine, only a cluster that is named is asked."""
    if local_path(uri) is not None and not namespace and backend == "local":
        return
    try:
        cluster = connect(namespace)
    except InputError:
        if namespace or backend != "local":
            raise
        return
    for kind, job in find_jobs(cluster, experiment=name):
        output = str((job["metadata"].get("annotations") or {}).get(f"{DOMAIN}/output", ""))
        if output.startswith(f"{uri}/") and not shape_of(job).phase(job).ended:
            raise InputError(
                f"{uri}: {kind.kind} {cluster.namespace}/{job['metadata']['name']} belongs to it: end its run first, "
                f"or `python -m pipelines cancel {name} --namespace {cluster.namespace}`"
            )


def remove(root: str, experiment: str, *, data: bool = False, dry_run: bool = False) -> Iterator[str]:
    """Delete an experiment, and the records of its runs; a line for each thing that is deleted or kept.

    Args:
        root: store URI.
        experiment: its name.
        data: also delete the data sets below the root that no other experiment there uses.
        dry_run: only say it.

    Raises:
        InputError: there is no such experiment, a run holds it, a stage of it is running, or another experiment needs it.
        RunError: the store failed, or the lock was lost meanwhile.
    """
    uri = layout.experiment(root, experiment)
    if not _objects(uri):
        raise InputError(f"{uri}: no experiment here: `python -m pipelines disk --root {root}` lists them")
    runs = _runs_of(root, experiment)
    _refuse_in_use(root, experiment, runs)
    disk = measure(root)
    taken, own = disk.experiments[experiment], []
    for place in taken.data:
        reason = _why_kept(disk, place, experiment, data=data)
        own += [] if reason else [place]
        if reason:
            yield f"kept {place}: {reason}"
    would = "would delete" if dry_run else "deleted"
    if not dry_run:
        with exclusive(uri) as held:
            for info in _in_order(_objects(uri)):
                if held.lost():
                    raise RunError(f"{uri}: the lock was lost while it was being deleted: {held.lost()}; run the same command again")
                open_store(uri).delete(info.uri)
        for folder in runs:
            for place in [info.uri for info in _objects(folder)] + [f"{folder}.json"]:
                open_store(root).delete(place)
        for folder in (uri, *runs):
            open_store(root).sweep(folder)
    yield f"{would} {uri}: {counted(taken.objects, 'object')}, {decimal(taken.size)}"
    if runs:
        yield f"{would} the records of {counted(len(runs), 'run')} below {join(root, 'runs')}"
    for place in own:
        if not dry_run:
            _delete_data(place)
        yield f"{would} {place}: {counted(disk.data_sets[place].objects, 'object')}, {decimal(disk.data_sets[place].size)}"


def _objects(folder: str) -> list[ObjectInfo]:
    """What lies in a folder, without the locks of a run."""
    try:
        found = list(open_store(folder).list(folder))
    except MissingObject:
        return []
    return [info for info in found if info.uri not in [join(folder, name) for name in _LOCKS]]


def _in_order(objects: Iterable[ObjectInfo]) -> list[ObjectInfo]:
    """What makes other objects count goes first."""
    first = {PLAN: 0, MANIFEST: 0, SEAL: 1}
    return sorted(objects, key=lambda info: (first.get(info.uri.rpartition("/")[2], 2), info.uri))


def _delete_data(uri: str) -> None:
    for info in _in_order(_objects(uri)):
        open_store(uri).delete(info.uri)
    open_store(uri).sweep(uri)


def _why_kept(disk: Disk, uri: str, experiment: str, *, data: bool) -> str:
    """Why a data set stays; empty: it goes."""
    if uri not in disk.data_sets:
        return "it is not in this root"
    others = [name for name in disk.data_sets[uri].used_by if name != experiment]
    if others:
        return f"{', '.join(others)} {'uses' if len(others) == 1 else 'use'} it too"
    return "" if data else "no other experiment here uses it; --data deletes it too"


def _refuse_in_use(root: str, experiment: str, runs: Iterable[str]) -> None:
    """Refuse where a stage is running, a step of a run is alive, or a request of another experiment names something of this one."""
    uri = layout.experiment(root, experiment)
    if open_store(root).head(join(uri, PLAN)):
        for row in survey_root(root, experiment):
            if row.state == "Running":
                raise InputError(f"{uri}: its stage {row.stage} ({row.cell}) was running just now: end its run first, or wait 5 minutes")
    for folder in runs:
        if any(time.time() - info.modified < 3 * LIFE_SECONDS for info in open_store(root).list(join(folder, "alive"))):
            raise InputError(f"{uri}: run {folder.rpartition('/')[2]} was alive within the last 3 minutes: end it first, or wait")
    for info in open_store(root).list(join(root, "experiments")):
        other, _, rest = info.uri.removeprefix(f"{join(root, 'experiments')}/").partition("/")
        if other != experiment and rest.startswith("requests/") and rest.count("/") == 1 and f"{uri}/" in _text(info.uri):
            raise InputError(
                f"{uri}: experiment {other} starts from it or reads it, by {info.uri}: remove that one first, "
                f"or `python -m pipelines withdraw {other} --root {root} --request {layout.id_of_request(info.uri)}`"
            )


def _text(uri: str) -> str:
    try:
        return read_text(uri)
    except (InputError, RunError):  # gone meanwhile, or damaged: nothing can be read from it
        return ""


def _runs_of(root: str, experiment: str) -> list[str]:
    """The folders of the runs, `<root>/runs/<id>`, whose request is one of this experiment's, wherever the root lay then."""
    folder, found = join(root, "runs"), []
    for info in open_store(root).list(folder):
        run, dot, rest = info.uri.removeprefix(f"{folder}/").partition(".json")
        if dot and not rest and "/" not in run and f"/experiments/{experiment}/requests/" in _text(info.uri):
            found.append(join(folder, run))
    return found
