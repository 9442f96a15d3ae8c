"""A request on the command line: one flag for each parameter, and `--request` for a file of them."""

import argparse

from pipelines.planning.parameters import default_in_words
from pipelines.planning.request import FIELDS, Request, merge


def add_request(parser: argparse.ArgumentParser) -> None:
    """Add `--request` and a flag for each parameter of a request; an empty value is not given."""
    group = parser.add_argument_group("what to run")
    group.add_argument("--request", default="", metavar="FILE", help="YAML file of these parameters, or its URI; flags override it")
    for name, item in FIELDS.items():
        shown = f"{item.metadata['help']} (default: {default_in_words(item)})"
        group.add_argument(f"--{name.replace('_', '-')}", default="", metavar=name.upper(), help=shown.replace("%", "%%"))


def request_of(options: argparse.Namespace) -> Request:
    """The request of a command line.

    Raises:
        InputError: one line that names the parameter and its rule.
    """
    return merge(options.request, {name: getattr(options, name) for name in FIELDS})
