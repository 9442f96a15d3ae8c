"""Record what a run looks like on a terminal: docs/first-run.txt, a screen every few seconds; the last one in docs/FIRST_RUN.md.

    python scripts/record_run.py 'make pipeline-run RECIPE=smoke'

The command runs in tmux, whose screens are kept as text.
"""

import argparse
import os
import shlex
import subprocess
import sys
import time
from pathlib import Path

REPOSITORY = Path(__file__).parents[1]
OUTPUT = REPOSITORY / "docs" / "first-run.txt"
PAGE = REPOSITORY / "docs" / "FIRST_RUN.md"
BEGIN, END = "<!-- written by scripts/record_run.py -->\n", "<!-- end -->\n"
COLUMNS, LINES = 110, 60
SECONDS = 4.0
"""Between two screens."""
RULE = "─" * 8


def tmux(*arguments: str) -> str:
    """What a command to our own tmux server prints."""
    return subprocess.run(["tmux", "-L", "firstsight-record", *arguments], check=True, capture_output=True, text=True).stdout


def record(command: str) -> list[tuple[int, str]]:
    """Seconds and text of each screen that differs from the one before; RuntimeError if the command fails."""
    done = REPOSITORY / ".recorded"
    done.unlink(missing_ok=True)
    shell = f"cd {shlex.quote(os.getcwd())}; PS1='$ '; {command}; echo $? > {shlex.quote(str(done))}; sleep 5"
    tmux("-f", "/dev/null", "new-session", "-d", "-x", str(COLUMNS), "-y", str(LINES), "bash", "--norc", "-c", shell)
    screens: list[tuple[int, str]] = []
    started = time.monotonic()
    try:
        while True:
            ended = done.exists()
            time.sleep(0.5 if ended else SECONDS)
            screen = "\n".join(line.rstrip() for line in tmux("capture-pane", "-p").splitlines()).strip("\n")
            if screen and (not screens or screens[-1][1] != screen):
                screens.append((round(time.monotonic() - started), screen))
            if ended:
                break
        code = done.read_text().strip()
    finally:
        done.unlink(missing_ok=True)
        tmux("kill-server")
    if code != "0":
        raise RuntimeError(f"{command}: exit code {code}:\n{screens[-1][1]}")
    return screens


def main() -> None:
    """Record and write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("command", help="the command as a user would type it")
    parser.add_argument("--run", default="", help="the command that is actually run, for example with another VENV")
    parser.add_argument("--replace", nargs=2, action="append", default=[], metavar=("OLD", "NEW"), help="in the recording")
    options = parser.parse_args()
    try:
        screens = record(options.run or options.command)
    except (RuntimeError, subprocess.CalledProcessError) as error:
        sys.exit(str(error))
    write(OUTPUT, PAGE, options.command, screens, dict(options.replace))


def write(output: Path, page: Path, command: str, screens: list[tuple[int, str]], replace: dict[str, str]) -> None:
    """Write all screens to `output`, and the last one between the marks of `page`."""
    written = [(seconds, f"$ {command}\n{screen}\n") for seconds, screen in screens]
    for old, new in replace.items():
        written = [(seconds, screen.replace(old, new)) for seconds, screen in written]
    output.write_text(
        "".join(f"{RULE} {seconds // 60}:{seconds % 60:02d} {RULE}\n{screen}" for seconds, screen in written), encoding="utf-8"
    )
    before, _, rest = page.read_text(encoding="utf-8").partition(BEGIN)
    after = rest.partition(END)[2]
    page.write_text(f"{before}{BEGIN}```\n{written[-1][1]}```\n{END}{after}", encoding="utf-8")


if __name__ == "__main__":
    main()
