"""`python -m tests.fuzz`: each target for so many minutes, as many at once as there are cores; exit code 1 if there is a finding."""

import argparse
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from importlib.util import find_spec
from pathlib import Path

FOLDER = Path("build/fuzz")


def main() -> int:
    """Hunt in processes of their own, so that one that dies or eats memory stops no other."""
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description=__doc__)
    parser.add_argument("--minutes", type=float, default=10.0, help="minutes for each target (default 10)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--target", action="append", default=[], help="name of a target; may be repeated (default: all)")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1, help="number of targets at once (default: number of cores)")
    parser.add_argument("--alone", action="store_true", help="fuzz in this process")
    options = parser.parse_args()
    if options.alone:
        return _alone(options.target[0], options.minutes * 60, options.seed)
    from tests.fuzz.targets import TARGETS

    names = options.target or list(TARGETS)
    command = [sys.executable, "-m", "tests.fuzz", "--alone", "--minutes", str(options.minutes), "--seed", str(options.seed), "--target"]
    FOLDER.mkdir(parents=True, exist_ok=True)

    def hunt(name: str) -> str:
        done = subprocess.run([*command, name], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors="replace", check=False)
        (FOLDER / f"{name.replace(' ', '-')}.log").write_text(done.stdout)
        lines = [line for line in done.stdout.splitlines() if line.startswith(("tried", "stat::number_of_executed_units"))]
        tried = [line.rpartition(" ")[2] for line in lines]
        print(f"{name}: {tried[-1] if tried else '?'} inputs, {'nothing' if done.returncode == 0 else 'A FINDING'}", flush=True)
        return "" if done.returncode == 0 else f"{name}: exit {done.returncode}: {done.stdout[-3000:]}"

    with ThreadPoolExecutor(options.jobs) as pool:
        found = [line for line in pool.map(hunt, names) if line]
    print("\n\n".join(found), file=sys.stderr)
    kept = sorted(FOLDER.glob("finding-*"))
    if kept:
        print("inputs that did it:", *kept, "(when fixed: keep them in tests/data/fuzz/<target>/)", sep="\n", file=sys.stderr)
    return 1 if found else 0


def _alone(name: str, seconds: float, seed: int) -> int:
    if find_spec("atheris"):
        import atheris

        with atheris.instrument_imports(include=["trainer.staging", "trainer.storage", "trainer.configs", "pipelines"]):
            from tests.fuzz import engine
        engine.hunt_with_coverage(name, int(seconds), seed, FOLDER / "corpus" / name.replace(" ", "-"))
        return 0
    from tests.fuzz.engine import hunt
    from tests.fuzz.targets import TARGETS

    tried, findings = hunt(TARGETS[name], seconds, seed)
    print(f"tried {tried}")
    for what, data in findings.items():
        path = FOLDER / f"finding-{name.replace(' ', '-')}-{abs(hash(what)) % 10**8}"
        path.write_bytes(data)
        print(f"{what}: {path}")
    return 1 if findings else 0


if __name__ == "__main__":
    sys.exit(main())
