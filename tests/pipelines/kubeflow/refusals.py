"""What the stand-in for Kubeflow Pipelines answers where it refuses, or where something goes wrong."""

import json
import re
from dataclasses import dataclass, field

from tests.pipelines.kubeflow import recordings


@dataclass(kw_only=True)
class Faults:
    """What goes wrong next, per `METHOD path-pattern`.

    Attributes:
        lost: so many answers are lost: the server does what it was asked and then closes the connection.
        dropped: so many connections are closed before anything is done.
        answers: status and body given instead.
        hung: requests that are never answered, until the server ends.
    """

    lost: dict[str, int] = field(default_factory=dict)
    dropped: dict[str, int] = field(default_factory=dict)
    answers: dict[str, list[tuple[int, str]]] = field(default_factory=dict)
    hung: str = ""


class Refused(Exception):
    """An answer that was recorded."""

    def __init__(self, recording: str) -> None:
        super().__init__(recording)
        answer = recordings.answer(f"{recording}.http")
        self.status, self.body = answer.status, answer.body.decode()


class Denied(Refused):
    """Of a server behind a login; not recorded: the recorded one had none."""

    def __init__(self, status: int, message: str, code: int) -> None:
        Exception.__init__(self, message)
        self.status, self.body = status, json.dumps({"error": message, "code": code, "message": message, "details": []})


def take(faults: dict[str, int], request: str) -> bool:
    """Whether a fault is due for this request; it is counted."""
    for pattern, left in faults.items():
        if left and re.search(pattern, request):
            faults[pattern] = left - 1
            return True
    return False
