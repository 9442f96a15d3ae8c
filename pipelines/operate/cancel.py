"""`python -m pipelines cancel EXPERIMENT`: stop its jobs, whoever holds them, and wait until their pods are gone."""

import argparse

from pipelines.cluster.ending import end, wait_until_gone
from pipelines.jobs.finding import find_jobs
from pipelines.jobs.holds import holds
from pipelines.operate.status import connect
from trainer.errors import InputError
from trainer.storage import layout


def add_command(commands: "argparse._SubParsersAction[argparse.ArgumentParser]", common: argparse.ArgumentParser) -> None:
    """Add `cancel`."""
    cancel = commands.add_parser("cancel", parents=[common], help="stop the jobs of an experiment on the cluster; what they saved is kept")
    cancel.add_argument("experiment", help="name of the experiment")
    cancel.add_argument("--namespace", default="", help="where the jobs are (default: the profile's, else the context's)")
    cancel.add_argument("--arm", default="", help="only jobs of this arm")
    cancel.add_argument("--point", default="", help="only jobs at this point, if the experiment varies its recipe")
    cancel.add_argument("--seed", type=int, default=None, help="only jobs with this seed")
    cancel.add_argument("--stage", default="", help="only jobs of this stage: perceptual, contrastive, posthoc, evaluate …")
    cancel.set_defaults(run=_run)


def _run(options: argparse.Namespace) -> int:
    seed = "" if options.seed is None else str(options.seed)
    experiment = layout.check_name("experiment", options.experiment)
    wanted = {"experiment": experiment, "arm": options.arm, "point": options.point, "seed": seed, "stage": options.stage}
    cluster = connect(options.namespace)
    jobs = find_jobs(cluster, **wanted)
    if not jobs:
        what = ", ".join(f"{name} {value}" for name, value in wanted.items() if value)
        raise InputError(f"no job of {what} in namespace {cluster.namespace}: `python -m pipelines status` lists the jobs that exist")
    for kind, job in jobs:
        end(cluster, kind, job["metadata"]["name"])
    for kind, job in jobs:
        wait_until_gone(cluster, kind, job["metadata"]["name"])
        held = ", ".join(hold.holder for hold in holds(job, {}))
        print(f"ended {kind.kind} {cluster.namespace}/{job['metadata']['name']}{f', held by {held}' if held else ''}", flush=True)
    return 0
