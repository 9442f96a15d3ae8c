"""CPU-seconds of `stage plan`, `fetch` and `seal`, start-up left out: `python -m tests.benchmarks.fetch_rate`.

Each line of input is JSON {root, list}, answered by a line of seconds.
"""

import contextlib
import io
import json
import sys
import time

from trainer.__main__ import main as trainer


def run(*arguments: str) -> str:
    """One command of the trainer, in this process; what it prints."""
    output = io.StringIO()
    with contextlib.redirect_stdout(output):
        code = trainer(["stage", *arguments])
    assert code == 0, f"stage {' '.join(arguments)}: exit code {code}"
    return output.getvalue()


def main() -> None:
    """Serve until the input ends."""
    for line in sys.stdin:
        given = json.loads(line)
        start = time.process_time()
        options = ("--root", given["root"], "--list", given["list"], "--set", "staging.image_policy=short256")
        folder = json.loads(run("plan", "urls", *options))["uri"]
        run("fetch", "--plan", folder, "--concurrency", "16")
        run("seal", "--plan", folder)
        print(time.process_time() - start, flush=True)


if __name__ == "__main__":
    main()
