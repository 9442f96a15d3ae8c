"""failure.json: how a job failed, for readers that cannot see its exit code. It is deleted when the job is started again.

Format 1, which older versions wrote, has neither format_version nor checksum.
"""

import sys
import time
from dataclasses import asdict, dataclass

from trainer.errors import Corrupt, InputError
from trainer.storage import layout
from trainer.storage.base import read_bytes
from trainer.storage.documents import parse_document, write_document
from trainer.storage.protocol import MissingObject

FORMAT_VERSION = 2


@dataclass(frozen=True, kw_only=True)
class Failure:
    """One failure.

    Attributes:
        time: when, POSIX seconds by the clock of the machine that wrote it.
        stage: what failed, for people.
        exit_code: 1 failed during the run, 2 wrong input, or minus the number of the signal that killed it.
        line: why, in one line.
    """

    time: float
    stage: str
    exit_code: int
    line: str


def write_failure(folder: str, *, stage: str, exit_code: int, line: str) -> None:
    """Record how the job of `folder` ended just now."""
    failure = Failure(time=time.time(), stage=stage, exit_code=exit_code, line=line)
    write_document(layout.failure(folder), {"format_version": FORMAT_VERSION, **asdict(failure)})


def read_failure(folder: str) -> Failure | None:
    """How the job of `folder` ended; None if it left no record.

    A record that cannot be read is reported on standard error and ignored.
    """
    uri = layout.failure(folder)
    try:
        return _parse(read_bytes(uri), uri)
    except MissingObject:
        return None
    except (Corrupt, InputError) as error:
        print(f"{error}; how the job failed is unknown; its log may show why", file=sys.stderr, flush=True)
        return None


def _parse(data: bytes, uri: str) -> Failure:
    value = parse_document(data, uri, "a record of a failure", FORMAT_VERSION, checked_from=2, bare=True)
    when, code, line = value.get("time", 0), value.get("exit_code", 1), value.get("line")
    if type(code) is not int or not isinstance(line, str):
        raise Corrupt(f"{uri}: not a firstsight failure record")
    return Failure(time=float(when) if type(when) in (int, float) else 0.0, stage=str(value.get("stage", "")), exit_code=code, line=line)
