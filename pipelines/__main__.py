"""`python -m pipelines`: run | plan | submit | status | cancel | reap | compile | upload … kfp is imported by what needs it, late."""

import argparse
import sys
from typing import TYPE_CHECKING

from pipelines.jobs.shapes import backends
from pipelines.kubeflow import submit, upload
from pipelines.operate import bucket, cancel, check, reap, status
from trainer.errors import exit_code

if TYPE_CHECKING:
    from pipelines.local.run import Arguments


def main(arguments: list[str] | None = None) -> int:
    """Run one command; the exit code is 0, 1 (failed on the way), 2 (wrong input) or 130 (stopped by Ctrl-C)."""
    options = _parser().parse_args(arguments)
    return exit_code(f"pipelines {options.command}", lambda: int(options.run(options)), verbose=options.verbose)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m pipelines", description=__doc__)
    common = argparse.ArgumentParser(add_help=False)
    common.add_argument("-v", "--verbose", action="store_true", help="also show what the steps print, and the traceback of an error")
    commands = parser.add_subparsers(dest="command", required=True)

    compiled = commands.add_parser("compile", parents=[common], help="write the pipeline as the YAML that Kubeflow takes")
    compiled.add_argument("output", help="file to write")
    compiled.set_defaults(run=_compile)

    run = commands.add_parser("run", parents=[common], help="run the whole experiment from this machine")
    _add_experiment(run)
    run.add_argument("--dry-run", action="store_true", help="print every manifest and the GPU-hours; touch no cluster, write nothing")
    run.set_defaults(run=_run)

    plan = commands.add_parser("plan", parents=[common], help="say what a run would do, and what of it is done; write nothing")
    _add_experiment(plan)
    plan.set_defaults(run=_plan)
    bucket.add_command(commands, common)
    check.add_command(commands, common)
    status.add_command(commands, common)
    cancel.add_command(commands, common)
    reap.add_command(commands, common)
    submit.add_command(commands, common)
    upload.add_command(commands, common)
    return parser


def _add_experiment(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--root", default="", help="store URI under which everything lies (default: the profile's, else runs)")
    parser.add_argument("--experiment", default="", help="its name (default: the recipe's; with --pairs one made from the data)")
    parser.add_argument("--pairs", default="", help="captioned pictures: a folder, or WebDataset tars (default: the demo's)")
    parser.add_argument(
        "--triplets", default="", help="judged triplets in the NIGHTS layout (default: made from the pairs, judged by FLIP)"
    )
    parser.add_argument("--arms", default="random,perceptual", help="comma-separated arms (default: %(default)s)")
    parser.add_argument("--seeds", default="0", help="comma-separated seeds (default: %(default)s)")
    parser.add_argument("--recipe", default="demo", help="smoke, demo, paper, paper-3m, or a YAML file (default: %(default)s)")
    parser.add_argument("--eval-sets", default="", help="comma-separated URIs of further evaluation sets (default: none)")
    parser.add_argument(
        "--max-reject-fraction", type=float, default=0.01, help="more bad samples than this stop staging (default: %(default)s)"
    )
    jobs = parser.add_argument_group("where jobs run")
    jobs.add_argument("--backend", default="", help=f"one of {', '.join(backends())} (default: the profile's, else local)")
    jobs.add_argument("--profile", default="", metavar="FILE", help="YAML: root, backend, links and how jobs look on a cluster")
    jobs.add_argument("--nodes", type=int, default=0, help="machines of the contrastive job (default: the profile's)")
    jobs.add_argument("--gpus-per-node", type=int, default=-1, help="on each machine (default: the profile's)")
    jobs.add_argument("--image", default="", help="the trainer's (default: the profile's)")
    jobs.add_argument("--queue", default="", help="that admits the jobs (default: the profile's)")
    jobs.add_argument("--resume", default="auto", help="auto, never, or the URI of a checkpoint (default: %(default)s)")


def _compile(options: argparse.Namespace) -> int:
    from pipelines.kubeflow.compiled import compile_pipeline

    compile_pipeline(options.output)
    return 0


def _run(options: argparse.Namespace) -> int:
    from pipelines.local.run import run

    arguments = _arguments(options)
    if not options.dry_run:
        return run(arguments, verbose=options.verbose)
    from pipelines.planning.summary import preview
    from pipelines.profile.profile import read_profile
    from pipelines.steps.dry_run import render

    print(render(*preview(arguments), read_profile(), arguments.overrides), end="")
    return 0


def _plan(options: argparse.Namespace) -> int:
    from pipelines.planning.summary import print_plan

    print_plan(_arguments(options))
    return 0


def _arguments(options: argparse.Namespace) -> "Arguments":
    from pipelines.local.run import choose, resolve_arguments

    choose(options.profile, options.backend)
    data = ("root", "experiment", "pairs", "triplets", "arms", "seeds", "recipe", "eval_sets", "max_reject_fraction")
    jobs = ("nodes", "gpus_per_node", "image", "queue", "resume")
    return resolve_arguments(**{name: getattr(options, name) for name in (*data, *jobs)})


if __name__ == "__main__":
    sys.exit(main())
