"""Rules that no linter has: files of at most 400 lines, functions of at most 60, and phrases that stop an English reader."""

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

MAX_FILE_LINES = 400
MAX_FUNCTION_LINES = 60
PHRASES = {
    r"(?:None|False|True|\w*Error|Corrupt) where": "if",
    r"a line each": "one per line",
    r"stands? (?:there|beside)": "is there, is next to",
    r"(the|of|to|is|and|for|with|by|chosen) \1": "the word once",
    r"behind (?:the (?:first|last) (?:commit|step)|backward|its own|training)": "after",
    r"goes on from|went on from": "resumes from",
    r"br(?:eaks|oke|oken) off": "is interrupted, stopped",
    r"(?:failed|failure|happened|lost) on the way": "failed during the run",
    r"in mid-run": "mid-run",
    r"cluster (?:to|can(?:not)? be) ask(?:ed)?": "without access to the cluster",
    r"TLS trusts": "to trust for TLS",
    r"made from (?:the )?code": "generated from the code",
    r"the report is there": "the report was written",
    r"lets? go of": "release",
    r"one's own": "your own",
    r"mend(?:s|ed|ing)?": "fix, correct",
    r"that is not there|which there is not|that there is not": "missing, unknown",
    r"leads on and on": "too many redirects",
    r"has not beaten": "heartbeat expired",
    r"numbers that are not finite": "NaN or Inf",
    r"what follows here": "name it",
    r"refused by name": "refused, naming it",
    r"anew|made again|makes (?:it|them) again": "again, rebuilt, recreated",
    r"to be had": "available",
    r"all else": "everything else",
    r"but for": "except, apart from",
    r"for want of": "for lack of, because … is missing",
    r"Manners|hang_up|Judge\.look": "the field's own word",
}
"""Word-for-word translations that the project once had, with what an English engineer writes."""
PHRASED = (".py", ".md", ".gotmpl", ".yaml", ".yml", ".tpl", ".txt", ".sh", ".html", ".mk", "Makefile", "Dockerfile")
UNPHRASED = ("scripts/house_rules.py", "tests/data/", "tests/scripts/test_house_rules.py", "requirements/", "docs/DECISIONS.md")


def broken_rules(path: Path) -> Iterator[str]:
    """One line for each rule that a Python file breaks."""
    text = path.read_text(encoding="utf-8")
    lines = text.count("\n")
    if lines > MAX_FILE_LINES:
        yield f"{path}: {lines} lines, at most {MAX_FILE_LINES}"
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            length = (node.end_lineno or node.lineno) - node.lineno + 1
            if length > MAX_FUNCTION_LINES:
                yield f"{path}:{node.lineno}: {node.name} has {length} lines, at most {MAX_FUNCTION_LINES}"


def phrases(name: str, text: str) -> Iterator[str]:
    """One line for each phrase that should be another."""
    for number, line in enumerate(text.splitlines(), start=1):
        for pattern, instead in PHRASES.items():
            if found := re.search(rf"\b(?:{pattern})\b", line):
                yield f"{name}:{number}: {found[0]!r}: write {instead}"


def main() -> int:
    """Look at every file of text that git knows or does not ignore."""
    command = ["git", "ls-files", "--cached", "--others", "--exclude-standard"]
    listed = subprocess.run(command, check=True, capture_output=True, text=True).stdout.splitlines()
    present = [name for name in sorted(listed) if Path(name).is_file()]
    files = [name for name in present if name.endswith(".py")]
    broken = [rule for name in files for rule in broken_rules(Path(name))]
    for name in present:
        if name.endswith(PHRASED) and not name.startswith(UNPHRASED):
            broken += phrases(name, Path(name).read_text(encoding="utf-8"))
    print("\n".join(broken) if broken else f"house rules: {len(files)} files", file=sys.stderr if broken else sys.stdout)
    return 1 if broken else 0


if __name__ == "__main__":
    sys.exit(main())
