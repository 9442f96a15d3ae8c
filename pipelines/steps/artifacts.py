"""The artifacts of `report` and `finish` in Kubeflow's UI: the report's page, its tables as Markdown, and figures as metrics."""

import json
from pathlib import Path
from typing import Any

from trainer.storage import read_bytes
from trainer.storage.base import MissingObject


def read_report(folder: str) -> tuple[bytes, bytes, dict[str, float]]:
    """The page in a folder as HTML and as Markdown, and its figures by name."""
    return read_bytes(f"{folder}/index.html"), read_bytes(f"{folder}/report.md"), _figures(f"{folder}/results.json")


def write(path: str, content: bytes | str) -> None:
    """Write an artifact to the path from which KFP reads it."""
    Path(path).write_bytes(content.encode() if isinstance(content, str) else content)


def _figures(uri: str) -> dict[str, float]:
    """The mean score over seeds for each endpoint and arm, and every difference, in percent: KFP's table shows few digits of a fraction."""
    try:
        results: dict[str, Any] = json.loads(read_bytes(uri))
    except MissingObject:
        return {}
    scores: dict[str, list[float]] = {}
    for row in results.get("scores", []):
        scores.setdefault(f"{row['endpoint']} {row['arm']}", []).append(row["value"])
    figures = {f"{name} (%)": 100 * sum(values) / len(values) for name, values in scores.items()}
    for row in results.get("contrasts", []):
        figures[f"{row['endpoint']} {row['arm']} - {row['against']} (points)"] = 100 * row["mean"]
    return {name: round(value, 2) for name, value in figures.items()}
