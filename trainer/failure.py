"""failure.json: how a stage ended, for callers that cannot see its exit code. No torch."""

import sys
import time
from typing import Any

from trainer.config import StageConfig
from trainer.errors import InputError, RunError
from trainer.storage import join, read_json, write_json
from trainer.storage.base import MissingObject, exists

FAILURE_FILE = "failure.json"


def write_failure(config: StageConfig, error: Exception) -> None:
    """failure.json beside the stage's other files: how it ended, for callers that cannot see the exit code.

    What a rank says of a lost peer never replaces the reason that the peer itself gave.
    """
    uri = join(config.output, FAILURE_FILE)
    known = isinstance(error, InputError | RunError)
    line = " ".join(str(error).split()) or type(error).__name__
    code = error.exit_code if isinstance(error, InputError | RunError) else 1
    try:
        if known or not exists(uri):
            write_json(uri, {"time": time.time(), "stage": config.stage, "exit_code": code, "line": line})
    except (InputError, RunError) as second:
        print(f"{uri}: could not be written: {second}", file=sys.stderr)


def read_failure(config: StageConfig) -> dict[str, Any] | None:
    """What failure.json says: time, stage, exit_code, line; None where there is none, or one that cannot be read."""
    try:
        value = read_json(join(config.output, FAILURE_FILE))
    except (MissingObject, RunError):
        return None
    return value if isinstance(value, dict) and {"time", "exit_code", "line"} <= value.keys() else None
