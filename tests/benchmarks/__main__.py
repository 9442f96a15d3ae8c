"""`python -m tests.benchmarks [rows]` runs all or the named rows and writes docs/benchmarks.json and docs/BENCHMARKS.md."""

import argparse
import datetime
import importlib.metadata
import json
import math
import os
import platform
import signal
import sys
import tempfile
import time
import traceback
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")  # per CPU-second figures of one thread; rows that want more say so themselves

from tests.benchmarks.harness import Row, load_rows, machine

PACKAGES = ("torch", "torchvision", "open_clip_torch", "webdataset", "minio", "simplejpeg", "Pillow", "numpy")
DOCS = Path(__file__).parents[2] / "docs"


def main() -> int:
    """Run the rows and merge their figures into the files in docs/; 1 if one of them failed or missed its target."""
    rows = load_rows()
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks", description=__doc__)
    parser.add_argument("rows", nargs="*", help=f"rows to run (default: all that need no GPU); known: {', '.join(rows)}")
    parser.add_argument("--gpu", action="store_true", help="run the rows that need a GPU instead")
    parser.add_argument("--minutes", type=float, help="begin no row after so long; those left out are named (default: none, with --gpu 5)")
    parser.add_argument("--docs", type=Path, default=DOCS, help="folder of benchmarks.json and BENCHMARKS.md")
    options = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # a row then ends the processes that it started
    unknown = [name for name in options.rows if name not in rows]
    if unknown:
        parser.error(f"no such row: {', '.join(unknown)}; known: {', '.join(rows)}")
    chosen = [rows[name] for name in options.rows] or [row for row in rows.values() if row.gpu == options.gpu]
    if options.gpu and not options.rows:
        chosen.sort(key=lambda row: not row.row.startswith("W"))  # the whole first: should time run out, its parts say less
    minutes = options.minutes or (5.0 if options.gpu and not options.rows else math.inf)
    until = time.monotonic() + 60 * minutes

    missed = []
    for row in chosen:
        if time.monotonic() > until:
            print(f"{row.row}: left out, {minutes:g} minutes are over: name it to run it alone", flush=True)
            continue
        try:
            result = run(row)
        except Exception:  # the rows after it are measured all the same
            traceback.print_exc()
            print(f"{row.row}: {row.what}: FAILED, its figures stay as they were", flush=True)
            missed.append(row.row)
            continue
        figures = f"{result['reference']:.4g} -> {result['ours']:.4g} {row.unit}, {result['ratio']:.2f}x"
        print(f"{row.row}: {row.what}: {figures}, {'met' if result['met'] else 'MISSED'}", flush=True)
        missed += [] if result["met"] else [row.row]
        merge(options.docs, [result])
    if missed:
        print(f"below target or failed: {', '.join(missed)}", file=sys.stderr)
    return 1 if missed else 0


def merge(docs: Path, new: list[dict[str, Any]]) -> None:
    """Put results in the place of those of the same name, from another machine's benchmarks.json too, and write the page."""
    path = docs / "benchmarks.json"
    results = {row["row"]: row for row in json.loads(path.read_text())["rows"]} if path.exists() else {}
    results |= {row["row"]: row for row in new}
    ordered = [results[name] for name in sorted(results)]
    docs.mkdir(exist_ok=True)
    path.write_text(json.dumps({"rows": ordered}, indent=1, ensure_ascii=False) + "\n")
    (docs / "BENCHMARKS.md").write_text(page(ordered))


def run(row: Row) -> dict[str, Any]:
    """Measure one row in a scratch folder of its own."""
    with tempfile.TemporaryDirectory(prefix="firstsight-bench-") as folder:
        measured = row.measure(Path(folder))
    ratio = measured.ours / measured.reference
    return {
        "row": row.row,
        "what": row.what,
        "reference": float(f"{measured.reference:.4g}"),
        "ours": float(f"{measured.ours:.4g}"),
        "unit": row.unit,
        "ratio": round(ratio, 3),
        "target": f"{'>=' if row.at_least else '<='} {row.target:g}",
        "met": ratio >= row.target if row.at_least else ratio <= row.target,
        "note": measured.note,
        "date": datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d"),
        "machine": machine(),
        "versions": versions(),
    }


def versions() -> str:
    """Python and the packages that the figures depend on."""
    return ", ".join([f"Python {platform.python_version()}", *(f"{name} {importlib.metadata.version(name)}" for name in PACKAGES)])


def page(results: list[dict[str, Any]]) -> str:
    """docs/BENCHMARKS.md."""
    lines = [
        "# Benchmarks",
        "",
        "Written by `make bench` (`python -m tests.benchmarks`); never by hand. The reference and our code take turns in one",
        "process on the same bytes, and the medians are compared: the ratio is what counts; less than 1.2x is noise.",
        "",
        "| row | what | reference | ours | unit | ratio | target | met |",
        "|---|---|---:|---:|---|---:|---|---|",
    ]
    for result in results:
        lines.append(
            f"| {result['row']} | {result['what']} | {result['reference']:g} | {result['ours']:g} | {result['unit']} "
            f"| {result['ratio']:.2f} | {result['target']} | {'yes' if result['met'] else '**no**'} |"
        )
    notes = [f"- **{result['row']}**: {result['note']}" for result in results if result["note"]]
    if notes:
        lines += ["", "## Notes", "", *notes]
    lines += ["", "## Measured on", ""]
    places: dict[tuple[str, str, str], list[str]] = {}
    for result in results:
        places.setdefault((result["date"], result["machine"], result["versions"]), []).append(result["row"])
    lines += [f"- {', '.join(names)}: {date}, {where}; {what}" for (date, where, what), names in places.items()]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    sys.exit(main())
