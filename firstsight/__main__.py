"""The command `firstsight`: all commands of `python -m pipelines` and of `python -m trainer`."""

import argparse
import sys

import firstsight
import pipelines.__main__ as pipelines_commands
import trainer.__main__ as trainer_commands
from trainer.errors import hide_credentials_in_tracebacks


def main(arguments: list[str] | None = None) -> int:
    """Run one command; the exit code is that of `python -m pipelines` or `python -m trainer`."""
    if arguments is None:  # as a program
        hide_credentials_in_tracebacks()
    options = _parser().parse_args(arguments)
    return int(options.start(options, "firstsight"))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="firstsight", description="Perceptual Initialization for CLIP: the commands to run experiments and their single steps."
    )
    parser.add_argument("--version", action="version", version=f"firstsight {firstsight.__version__}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for engine in (pipelines_commands, trainer_commands):
        known = set(commands.choices)
        engine.add_commands(commands)
        for name in commands.choices.keys() - known:
            commands.choices[name].set_defaults(start=engine.start)
    return parser


if __name__ == "__main__":
    sys.exit(main())
