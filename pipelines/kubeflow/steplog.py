"""A step's log assembled from responses that each contain everything written so far: every line once, in order.

Kubeflow offers no way to follow a running step's log, so it is polled. Responses may overlap, arrive late, or lack
the beginning, which the kubelet drops when the log grows too long.
"""

import re

_NOISE = re.compile(
    r"[IWEF]\d{4} \d\d:\d\d:\d\d\.\d+ +\d+ [\w-]+\.go:\d+\] "  # KFP's launcher, in Go
    r"|\[KFP Executor [^]]*\]: |time=\S+ level=\w+ .* argo=true"
)
_STATUS = re.compile(r"failed to execute component: exit status (\d+)$")
"""Kubeflow's API has no exit codes, but its launcher writes the exit code of the step's process at the end of the log."""
_CONTEXT = 20
"""Number of lines used to align a response without the beginning with what is known."""
GAP = "... some lines are missing here: Kubernetes has discarded them"


class StepLog:
    """What is known of one step's log."""

    def __init__(self, *, noise: bool = False) -> None:
        """Nothing is known yet.

        Args:
            noise: also show the lines of KFP's own executor and launcher.
        """
        self._lines: list[str] = []
        self._noise, self._in_json = noise, False
        self.exit_code: int | None = None
        """Exit code of the step, if its log contained it."""

    def take(self, text: str, *, ended: bool = False) -> list[str]:
        """The new lines in a response.

        Args:
            text: the log as contained in this response.
            ended: nothing will follow, so a last line without a newline is complete.
        """
        lines = text.split("\n")
        last = lines.pop()
        if ended and last:
            lines.append(last)
        new = self._new(lines)
        self._lines += new
        for line in new:
            status = _STATUS.search(line)
            self.exit_code = int(status[1]) if status else self.exit_code
        return [line for line in new if self._noise or self._is_ours(line)]

    def _new(self, lines: list[str]) -> list[str]:
        known = self._lines
        if lines[: len(known)] == known:
            return lines[len(known) :]
        if known[: len(lines)] == lines:
            return []  # an older answer
        for context in (_CONTEXT, 1):
            tail = known[-context:]
            for start in range(len(lines) - len(tail), -1, -1):
                if lines[start : start + len(tail)] == tail:
                    return lines[start + len(tail) :]
        if any(known[start : start + len(lines)] == lines for start in range(len(known) - len(lines) + 1)):
            return []  # an older one without the beginning
        return [GAP, *lines]

    def _is_ours(self, line: str) -> bool:
        """Whether a line is the step's own: KFP prints log lines, some of them followed by multi-line JSON."""
        if self._in_json:
            self._in_json = line != "}"
            return False
        if line == "{" or (_NOISE.match(line) and line.endswith("{")):
            self._in_json = True
            return False
        return not _NOISE.match(line)
