"""`python -m pipelines`: run | plan | verify | submit | status | cancel | reap | compile | upload and others."""

import argparse
import sys

from pipelines.kubeflow import submit, upload
from pipelines.operate import bucket, cancel, check, disk, reap, remove, status, verify, withdraw
from pipelines.planning.flags import add_request, request_of
from trainer.errors import exit_code, hide_credentials_in_tracebacks
from trainer.limits import raise_descriptor_limit


def main(arguments: list[str] | None = None) -> int:
    """Run one command; the exit code is 0, 1 (failed during the run), 2 (wrong input) or 130 (stopped by Ctrl-C)."""
    return start(_parser().parse_args(arguments), "pipelines")


def start(options: argparse.Namespace, program: str) -> int:
    """Run the command that was parsed; `program` starts the error line that says why it failed."""
    raise_descriptor_limit()
    component = "reaper" if options.command == "reap" else ""
    return exit_code(f"{program} {options.command}", lambda: int(options.run(options)), verbose=options.verbose, component=component)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m pipelines", description=__doc__)
    add_commands(parser.add_subparsers(dest="command", required=True))
    return parser


def add_commands(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Add the commands to a command line whose options are then given to `start`."""
    common = argparse.ArgumentParser(add_help=False)
    common.add_argument("-v", "--verbose", action="store_true", help="also show what the steps print, and the traceback of an error")

    compiled = commands.add_parser("compile", parents=[common], help="write the pipeline as YAML for Kubeflow")
    compiled.add_argument("output", help="file to write")
    compiled.set_defaults(run=_compile)

    run = commands.add_parser("run", parents=[common], help="run the whole experiment from this machine")
    add_request(run)
    run.add_argument(
        "--dry-run", action="store_true", help="print every manifest and the resources it needs; touch no cluster, write nothing"
    )
    run.set_defaults(run=_run)

    plan = commands.add_parser(
        "plan", parents=[common], help="print what a run would do, and how much of it is already done; write nothing"
    )
    add_request(plan)
    plan.set_defaults(run=_plan)
    verify.add_command(commands, common)
    bucket.add_command(commands, common)
    check.add_command(commands, common)
    status.add_command(commands, common)
    cancel.add_command(commands, common)
    withdraw.add_command(commands, common)
    disk.add_command(commands, common)
    remove.add_command(commands, common)
    reap.add_command(commands, common)
    submit.add_command(commands, common)
    upload.add_command(commands, common)


def _compile(options: argparse.Namespace) -> int:
    from pipelines.kubeflow.compiled import compile_pipeline

    compile_pipeline(options.output)
    return 0


def _run(options: argparse.Namespace) -> int:
    from pipelines.local.run import prepare, run

    prepared = prepare(request_of(options), unread_ok=options.dry_run)
    if not options.dry_run:
        return run(prepared, verbose=options.verbose)
    from pipelines.steps.dry_run import render

    print(render(prepared.experiment, prepared.cells, prepared.profile, prepared.request, prepared.notes), end="")
    return 0


def _plan(options: argparse.Namespace) -> int:
    from pipelines.local.run import prepare
    from pipelines.planning.summary import print_plan
    from pipelines.steps.dry_run import takes

    prepared = prepare(request_of(options), unread_ok=True)
    lines = takes(prepared.experiment, prepared.cells, prepared.profile, prepared.request, prepared.notes)
    print_plan(prepared.experiment, prepared.cells, lines)
    return 0


if __name__ == "__main__":
    hide_credentials_in_tracebacks()
    sys.exit(main())
