"""`python -m trainer`: stage | train | evaluate | report | inspect."""

import argparse
import json
import os
import signal
import sys
from types import FrameType
from typing import Any

from trainer import logs
from trainer.errors import InputError, RunError, Stopped, exit_code, hide_credentials_in_tracebacks
from trainer.limits import raise_descriptor_limit
from trainer.staging.evaluation_sets.cli import add_commands as add_evaluation_commands
from trainer.staging.remote.cli import add_commands as add_remote_commands


def main(arguments: list[str] | None = None) -> int:
    """Run one command; the exit code is 0, 1 (failed during the run) or 2 (wrong input), with one line that says why."""
    return start(_parser().parse_args(arguments), "trainer")


def start(options: argparse.Namespace, program: str) -> int:
    """Run the command that was parsed; `program` starts the error line that says why it failed."""
    raise_descriptor_limit()
    if os.getpid() == 1:  # in a container, process 1 ignores unhandled signals, so stopping would take the whole grace period
        signal.signal(signal.SIGTERM, _stop)
    return exit_code(f"{program} {options.command}", lambda: _run(options), verbose=options.verbose, component="trainer")


def _stop(number: int, frame: FrameType | None) -> None:
    raise Stopped(f"stopped by {signal.Signals(number).name} before there was anything to save")


def _run(options: argparse.Namespace) -> int:
    if options.command == "stage":
        logs.bind(stage=f"stage {options.what}")
    result = options.run(options)
    if result is not None:
        print(json.dumps(result, sort_keys=True))
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m trainer", description=__doc__)
    add_commands(parser.add_subparsers(dest="command", required=True))
    return parser


def add_commands(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Add the commands to a command line whose options are then given to `start`."""
    common = argparse.ArgumentParser(add_help=False)
    common.add_argument("-v", "--verbose", action="store_true", help="show the traceback of an error")
    common.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="override a dotted key of the configuration")

    stage = commands.add_parser("stage", help="turn a source into a sealed data set of shards")
    staged = stage.add_subparsers(dest="what", required=True)
    for name, text in (("triplets", "a folder in the NIGHTS layout, or pictures judged by FLIP"), ("pairs", "captioned pictures")):
        whole = staged.add_parser(name, parents=[common], help=f"plan, build and seal in one step: {text}")
        whole.add_argument("--root", required=True, help="store URI; data sets go into datasets/ below it")
        whole.add_argument("--source", default="demo", help="`demo`, or the URI of a folder or of WebDataset tars")
        whole.add_argument("--from-pairs", default="", help="make triplets from this pairs source, judged by FLIP")
        whole.add_argument("--recipe", default="demo", help="shipped recipe, or the URI of a YAML file")
        whole.add_argument(
            "--max-reject-fraction",
            type=float,
            default=0.01,
            help="staging stops if more than this fraction of the samples is bad (default .01)",
        )
        whole.add_argument(
            "--for-stages", default="", help="training stages, comma-separated: refuse data too small to fill one batch of any of them"
        )
        whole.add_argument("--result", default="", help="also write {uri, identity} as JSON to this URI")
        whole.set_defaults(run=_stage)
    add_remote_commands(staged, common)
    add_evaluation_commands(staged, common)

    train = commands.add_parser("train", parents=[common], help="run one stage of one cell")
    train.add_argument("stage", choices=["perceptual", "contrastive", "posthoc"])
    train.add_argument("--config", required=True, help="URI of the stage's resolved config.yaml")
    train.set_defaults(run=_train)

    evaluate = commands.add_parser("evaluate", parents=[common], help="measure the models of one cell")
    evaluate.add_argument("--config", required=True, nargs="+", help="URI of the cell's resolved evaluation/config.yaml")
    evaluate.add_argument(
        "--dry-run", action="store_true", help="print how many results of these cells are missing, without measuring anything"
    )
    evaluate.add_argument("--watch", action="store_true", help="evaluate checkpoints as they appear, until every stage has its final model")
    evaluate.set_defaults(run=_evaluate)

    report = commands.add_parser("report", parents=[common], help="compare arms, write report/index.html and results.json")
    report.add_argument("--experiment", default="", help="URI of the experiment's folder (optional with --compare)")
    report.add_argument("--compare", nargs="+", default=[], metavar="URI", help="other experiments to compare it with")
    report.add_argument(
        "--made-from",
        default="",
        metavar="HASH",
        help="hash of all inputs of the page, with which a later run can tell that the page is current",
    )
    report.set_defaults(run=_report)

    inspect = commands.add_parser("inspect", parents=[common], help="show what a data set contains, or how a run went")
    inspect.add_argument("uri", help="a data set's or a stage's folder")
    inspect.add_argument("--output", default="", help="folder for the contact sheet (default: no sheet is written)")
    inspect.set_defaults(run=_inspect)


def _stage(options: argparse.Namespace) -> dict[str, str]:
    from trainer.staging.stage import stage_pairs, stage_triplets
    from trainer.storage.recipes import read_recipe

    arguments = {
        "root": options.root,
        "source": options.source,
        "recipe": read_recipe(options.recipe, options.set),
        "max_reject_fraction": options.max_reject_fraction,
        "for_stages": tuple(stage for stage in options.for_stages.split(",") if stage),
    }
    if options.what == "pairs":
        uri, identity = stage_pairs(**arguments)
    else:
        uri, identity = stage_triplets(**arguments, from_pairs=options.from_pairs)
    result = {"uri": uri, "identity": identity}
    if options.result:
        from trainer.storage import write_json

        write_json(options.result, result)
    return result


def _train(options: argparse.Namespace) -> None:
    from trainer.run.train import launch

    launch(options.stage, options.config, options.set)


def _evaluate(options: argparse.Namespace) -> dict[str, Any] | None:
    from trainer.evaluation.evaluate import count_missing, evaluate

    if options.dry_run:
        return count_missing(options.config)
    if len(options.config) > 1:
        raise InputError(f"--config must be one URI unless --dry-run is given, got {len(options.config)}")
    evaluate(options.config[0], options.set, options.watch)
    return None


def _report(options: argparse.Namespace) -> None:
    from trainer.report.write import write_report

    written = write_report(options.experiment, options.compare, options.made_from)
    print(json.dumps(written, sort_keys=True), flush=True)
    first, *others = written["damaged"] or [""]
    for line in others:
        logs.say(f"report: left out: {line}", "warning")
    if first:
        more = f" (and {len(others)} more, named above)" if others else ""
        remedy = "run the experiment again to rebuild what can be rebuilt, or delete the damaged files"
        raise RunError(f"{written['report']}: written without the damaged parts: {first}{more}; {remedy}")


def _inspect(options: argparse.Namespace) -> None:
    from trainer.staging.inspect import inspect

    inspect(options.uri, options.output)


if __name__ == "__main__":
    hide_credentials_in_tracebacks()
    sys.exit(main())
