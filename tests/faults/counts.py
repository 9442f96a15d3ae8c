"""The counts of campaigns, from their records: trials, runs and faults by kind, and what was broken, with seeds."""

import json
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from scripts.marked import rewrite
from tests.faults.invariants import INVARIANTS

PAGE = Path(__file__).parents[2] / "docs" / "RELIABILITY.md"
BEGIN, END = "<!-- written by python -m tests.faults --table RECORDS --write -->\n", "<!-- end of the counts -->\n"
NAMES = {"file": "files", "seaweedfs": "SeaweedFS", "minio": "MinIO"}


def table(records: Sequence[Path]) -> str:
    """Two tables in Markdown: a row a campaign, and a row a fault."""
    lines = [
        "| store | seed | trials | runs | faults | broken invariants |",
        "|---|---|---|---|---|---|",
    ]
    faults: Counter[tuple[str, str]] = Counter()
    for record in records:
        asked, *trials = map(json.loads, record.read_text().splitlines())
        for trial in trials:
            faults.update((name, asked["store"]) for name, _ in trial["faults"])
        runs, hits = sum(trial["runs"] for trial in trials), sum(len(trial["faults"]) for trial in trials)
        bad = [f"trial {trial['trial']}: {', '.join(_kinds(trial['problems']))}" for trial in trials if trial["problems"]]
        lines.append(f"| {NAMES[asked['store']]} | {asked['seed']} | {len(trials)} | {runs} | {hits} | {'; '.join(bad) or 0} |")
    lines += ["", f"| fault | {' | '.join(NAMES.values())} |", f"|---{'|---' * len(NAMES)}|"]
    for name in sorted({name for name, _ in faults}):
        lines.append(f"| {name} | {' | '.join(str(faults[name, store]) for store in NAMES)} |")
    sums = [sum(count for (_, where), count in faults.items() if where == store) for store in NAMES]
    lines.append(f"| all {faults.total()} | {' | '.join(map(str, sums))} |")
    return "\n".join([*lines, ""])


def _kinds(problems: Sequence[str]) -> list[str]:
    names = [next((name for name in INVARIANTS if problem.startswith(f"{name}: ")), problem.partition(":")[0]) for problem in problems]
    return list(dict.fromkeys(names))


def page(current: str, records: Sequence[Path]) -> str:
    """The page with its counts rewritten."""
    return rewrite(current, BEGIN, END, table(records))
