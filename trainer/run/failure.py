"""failure.json and the pod's termination message: how a stage ended, for callers that cannot see its exit code. No torch.

And what must not end one: `best_effort`, `warn`.
"""

import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager

from trainer import logs
from trainer.config import StageConfig
from trainer.errors import InputError, PeerLost, RunError, words_of
from trainer.progress import tell
from trainer.storage import failures, layout

TERMINATION_LOG = "/dev/termination-log"
"""Where Kubernetes looks for a container's last word (terminationMessagePath)."""
log = logging.getLogger("trainer")


@contextmanager
def best_effort(what: str) -> Iterator[None]:
    """For extras that a run can do without: whatever fails inside is logged in one line, and the run continues."""
    try:
        yield
    except Exception as error:
        log.warning("%s failed; the run continues without it: %s", what, words_of(error))


def warn(config: StageConfig, line: str) -> None:
    """Say a line on a stage that continues: in its log, and to the person who waits."""
    log.warning("%s", line)
    tell(layout.stage_title(config), line)


def write_failure(config: StageConfig, error: Exception) -> None:
    """`leave_failure` in the folder of the stage that this configuration is for."""
    leave_failure(config.output, config.stage, error)


def leave_failure(folder: str, stage: str, error: Exception) -> None:
    """failure.json beside the stage's other files: how it ended, for callers that cannot see the exit code.

    What a rank says of a lost peer never replaces the reason that the peer itself gave. Wrong input, which no restart
    fixes, is also the container's termination message.
    """
    known = isinstance(error, InputError | RunError) and not isinstance(error, PeerLost)
    line = words_of(error)
    code = error.exit_code if isinstance(error, InputError | RunError) else 1
    if isinstance(error, InputError):
        _tell_kubelet(line)
    try:
        if known or failures.read_failure(folder) is None:
            failures.write_failure(folder, stage=stage, exit_code=code, line=line)
    except (InputError, RunError) as second:
        logs.say(f"{layout.failure(folder)}: could not be written: {second}", "warning")


def _tell_kubelet(line: str) -> None:
    """Only where the file is there already: the kubelet puts it into each container."""
    if os.access(TERMINATION_LOG, os.W_OK):
        try:
            with open(TERMINATION_LOG, "w") as log:
                log.write(line + "\n")
        except OSError as error:
            logs.say(f"{TERMINATION_LOG}: could not be written: {error.strerror}", "warning")
