"""What the site adds to mkdocs: pages generated from the code, and links that leave docs/.

`make docs` writes the pages first (scripts/site_pages.py). A link to a file of the repository that is no page of the site
becomes a link into the repository that the environment's SITE_REPOSITORY names, and plain text where it names none.
"""

import os
import posixpath
import re
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File, Files

REPOSITORY = Path(__file__).parents[1]
MADE = REPOSITORY / "build/reference"
ELSEWHERE = {"reference/chart.md": "charts/firstsight/README.md", "reference/changes.md": "CHANGELOG.md"}
"""Pages whose text lies outside of docs/, with where it lies: their links are relative to that."""
_LINK = re.compile(r"(?<!!)\[([^\]\n]*)\]\(([^)\s#]+)(#[^)\s]*)?\)")


def on_files(files: Files, config: Any) -> Files:
    """Add the pages that were generated from the code."""
    for page in sorted(MADE.glob("*.md")):
        files.append(File.generated(config, f"reference/{page.name}", abs_src_path=str(page)))
    return files


def on_page_markdown(text: str, page: Any, config: Any, files: Files) -> str:
    """Rewrite the links that leave the site."""
    here = page.file.src_uri
    source = ELSEWHERE.get(here, f"docs/{here}")
    return _LINK.sub(lambda link: _rewritten(link, here, source, files), text)


def _rewritten(link: re.Match[str], here: str, source: str, files: Files) -> str:
    words, target, anchor = link[1], link[2], link[3] or ""
    if re.match(r"[a-z]+:", target):
        return link[0]
    path = posixpath.normpath(posixpath.join(posixpath.dirname(source), target))
    pages = {**{f"docs/{file.src_uri}": file.src_uri for file in files}, **{origin: page for page, origin in ELSEWHERE.items()}}
    if path in pages:
        return f"[{words}]({posixpath.relpath(pages[path], posixpath.dirname(here) or '.')}{anchor})"
    if here.startswith("reference/") and f"docs/{posixpath.normpath(posixpath.join('reference', target))}" in pages:
        return link[0]  # a page that was made knows where it will lie
    if not (REPOSITORY / path).exists():
        return link[0]  # mkdocs names it
    base = os.environ.get("SITE_REPOSITORY", "")
    return f"[{words}]({base}/{path}{anchor})" if base else words
