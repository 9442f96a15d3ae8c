"""Check a log of JSON records, for tests of anything that writes one."""

import json
import re
from datetime import datetime
from typing import Any

from trainer import logs

LEVELS = {"debug", "info", "warning", "error", "critical"}


def records(text: str) -> list[dict[str, Any]]:
    """Every line of a log, each of which must be a record."""
    found = []
    for line in text.splitlines():
        record = json.loads(line)
        assert list(record)[: len(logs.REQUIRED)] == list(logs.REQUIRED), line
        assert {name: type(value) for name, value in record.items() if name not in logs.REQUIRED}.items() <= logs.FIELDS.items(), line
        assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z", record["time"])
        assert datetime.fromisoformat(record["time"]).tzinfo
        assert record["level"] in LEVELS
        assert record["component"] in {"trainer", "launcher", "reaper"}
        found.append(record)
    return found
