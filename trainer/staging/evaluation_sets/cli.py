"""The command `stage eval`. Heavy modules are imported only when it runs."""

import argparse

from trainer.configs.evaluation_sets import SETS, SIZE_SOURCES


def add_commands(commands: "argparse._SubParsersAction[argparse.ArgumentParser]", common: argparse.ArgumentParser) -> None:
    """Add `eval` to `stage`'s commands."""
    names = ", ".join(known.name for known in SETS)
    parser = commands.add_parser(
        "eval", parents=[common], help="turn a local copy of a published set into an evaluation set", epilog=f"sets: {names}"
    )
    parser.add_argument("name", help="name of the set; `list` prints a table of all sets")
    parser.add_argument(
        "--source", default="", metavar="URI", help="folder of the local copy: the original files of the set, or CLIP_benchmark's layout"
    )
    parser.add_argument("--root", default="", help="store URI; the data set goes into datasets/ below it")
    parser.add_argument("--prompts", default="", metavar="URI", help="folder of CLIP_benchmark's en_classnames.json and templates")
    parser.add_argument("--only", default="", metavar="URI", help="text file that names the test pictures, one per line (default: all)")
    parser.add_argument("--train", action="store_true", help="also stage the training split, on which probes are trained")
    parser.add_argument("--result", default="", help="also write {uri, identity} as JSON to this URI")
    parser.set_defaults(run=_eval)


def _eval(options: argparse.Namespace) -> dict[str, str] | None:
    from trainer.errors import InputError

    if options.name == "list":
        print(table())
        return None
    for name in ("source", "root"):
        if not getattr(options, name):
            raise InputError(f"--{name} must be given")
    from trainer.staging.evaluation_sets.stage import stage_evaluation
    from trainer.storage import write_json

    uri, identity = stage_evaluation(
        name=options.name, root=options.root, source=options.source, prompts=options.prompts, only=options.only, train=options.train
    )
    result = {"uri": uri, "identity": identity}
    if options.result:
        write_json(options.result, result)
    return result


def table() -> str:
    """All sets, one per line, and where the sizes were read."""
    lines = [f"{'name':20} {'metric':22} {'classes':>7} {'test':>7}  {'read in':8}  source; licence"]
    for known in SETS:
        counted = "" if known.counted else "  (not one of the 29)"
        lines.append(
            f"{known.name:20} {known.metric:22} {known.classes or '':>7} {known.test_size:7}  {known.size_from:8}  "
            f"{known.source}; {known.licence}{counted}"
        )
    return "\n".join([*lines, "", *(f"{name}: {where}" for name, where in SIZE_SOURCES.items())])
