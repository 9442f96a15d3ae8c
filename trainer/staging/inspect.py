"""`python -m trainer inspect <uri>`: what a data set holds, or how a run went, for a person to read."""

import html
import json
import re
from base64 import b64encode
from collections import Counter
from collections.abc import Iterator, Sequence
from io import BytesIO
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw
from rich.console import Console
from rich.filesize import decimal
from rich.table import Table

from trainer.errors import InputError
from trainer.progress import counted, read_record
from trainer.staging.samples import captions_of, picture_suffix
from trainer.storage import join, layout, open_store, read_bytes, write_bytes
from trainer.storage.base import MissingObject, absolute
from trainer.storage.committed import read_committed
from trainer.storage.manifest import NAME as MANIFEST
from trainer.storage.manifest import Manifest, Shard, read_manifest
from trainer.storage.samples import read_index, read_members

_LENGTH_EDGES = (4, 8, 12, 16, 24, 32, 48, 77)
_BAR_WIDTH = 40
_SHEET_SAMPLES = 24
_WIDTH = 1000
"""Columns printed: a wrapped path or hash could not be copied, and no table grows beyond its content."""
_CELL = 128  # side of a picture on the contact sheet, in pixels
_SHEET_COLUMNS = 6


def inspect(uri: str, output: str) -> None:
    """Print a data set's or a stage's figures; with `output`, write a contact sheet (index.html, contact.png) there.

    Given `datasets/<name>`, whose subfolders are named by hashes, it takes the sealed one.

    Raises:
        InputError: neither a sealed data set nor a stage's folder is at `uri`, or several sealed data sets are below it.
    """
    uri = _only_data_set(absolute(uri).rstrip("/"))
    console = Console(soft_wrap=True, width=_WIDTH)
    manifest = read_manifest(uri)
    if manifest is not None:
        _print_data_set(console, uri, manifest)
        if output:
            console.print(f"contact sheet: {_write_sheet(uri, manifest, absolute(output))}")
        return
    if not _print_stage(console, uri):
        raise InputError(f"{uri}: neither a sealed data set (manifest.json) nor a stage's folder (progress.jsonl) is here")


def _only_data_set(uri: str) -> str:
    """`uri`, or the one sealed data set right below it."""
    if open_store(uri).head(join(uri, MANIFEST)) is not None:
        return uri
    try:
        found = [
            match[1] for info in open_store(uri).list(uri) if (match := re.fullmatch(rf"({re.escape(uri)}/[^/]+)/{MANIFEST}", info.uri))
        ]
    except MissingObject:
        return uri
    if len(found) > 1:
        rows = [f"{place} ({counted(manifest.rows.get('written', 0), 'sample')})" for place in found if (manifest := read_manifest(place))]
        raise InputError(f"{uri}: {len(found)} data sets are sealed here; choose one: {', '.join(rows)}")
    return found[0] if found else uri


def _print_data_set(console: Console, uri: str, manifest: Manifest) -> None:
    about = Table(title=f"{manifest.name} ({manifest.kind})", show_header=False, title_justify="left", box=None, pad_edge=False)
    rows = manifest.rows
    for name, value in (
        ("folder", uri),
        ("identity", manifest.identity),
        ("source", manifest.source.get("uri", "")),
        ("options", ", ".join(f"{key} {value}" for key, value in sorted(manifest.options.items()) if not isinstance(value, list | dict))),
        ("judged by", manifest.judge),
        ("attribution", manifest.attribution),
        ("rows", f"{rows.get('read', 0):,} read, {rows.get('written', 0):,} written"),
        *((f"lost: {cause}", str(count)) for cause, count in sorted(rows.get("lost", {}).items())),
        *((f"pixel MSE agrees, {split}", f"{part:.3f}") for split, part in manifest.facts.get("pixel_mse_accuracy", {}).items()),
        *((entry["task"], entry["uri"]) for entry in manifest.evaluation),
    ):
        if value:
            about.add_row(name, value)
    console.print(about)
    sizes = Table("split", "samples", "shards", "bytes", title="Splits", title_justify="left")
    for split in dict.fromkeys(shard.split for shard in manifest.shards):
        shards = manifest.split(split)
        samples = sum(shard.num_samples for shard in shards)
        sizes.add_row(split, f"{samples:,}", f"{len(shards):,}", decimal(sum(shard.size for shard in shards)))
    console.print(sizes)
    lengths = caption_lengths(uri, manifest.shards)
    if len(lengths):
        console.print(_histogram(lengths))


def caption_lengths(uri: str, shards: Sequence[Shard]) -> NDArray[np.int64]:
    """Tokens of every caption, start and end included, from the indexes alone. Returns (captions,)."""
    parts = [np.diff(read_index(uri, shard).token_ends.astype(np.int64), prepend=0) for shard in shards]
    return np.concatenate(parts) if parts else np.empty(0, np.int64)


def _histogram(lengths: NDArray[np.int64]) -> Table:
    cut = np.mean(lengths >= _LENGTH_EDGES[-1])
    title = f"Tokens per caption: mean {lengths.mean():.1f}, median {np.median(lengths):.0f}, {cut:.1%} at the maximum length"
    table = Table("tokens", "captions", "", title=title, title_justify="left")
    counts = Counter(np.searchsorted(_LENGTH_EDGES, lengths).tolist())
    for number, edge in enumerate(_LENGTH_EDGES):
        first = _LENGTH_EDGES[number - 1] + 1 if number else 2
        count = counts[number]
        table.add_row(f"{first}-{edge}", f"{count:,}", "█" * round(_BAR_WIDTH * count / max(counts.values())))
    return table


def _print_stage(console: Console, uri: str) -> bool:
    """Print a stage's figures; False if the folder is not a stage's."""
    lines = list(_progress_lines(uri))
    committed = read_committed(layout.final(uri)) or read_committed(uri)
    if not lines and committed is None:
        return False
    table = Table("figure", "first", "last", title=uri, title_justify="left")
    for name in dict.fromkeys(name for line in lines for name in line):
        values = [line[name] for line in lines if line.get(name) is not None]
        if name != "time":
            table.add_row(name, _figure(values[0]), _figure(values[-1]))
    if lines:
        console.print(table)
    if committed is None:
        console.print("not finished: no final/COMMITTED.json")
        return True
    seal = Table(
        title=f"committed at step {committed.step}, recipe {committed.recipe_hash[:12]}",
        show_header=False,
        title_justify="left",
        box=None,
        pad_edge=False,
    )
    for name, value in sorted(committed.facts.items()):
        seal.add_row(name, _figure(value))
    for name, file in sorted(committed.files.items()):
        seal.add_row(name, decimal(file["size"]))
    console.print(seal)
    return True


def _progress_lines(uri: str) -> Iterator[dict[str, Any]]:
    """The figures of progress.jsonl, except lines that cannot be read."""
    try:
        data = read_bytes(layout.progress(uri))
    except MissingObject:
        return
    for line in data.splitlines():
        if (record := read_record(line)) is not None:
            yield record


def _figure(value: Any) -> str:
    return f"{value:.6g}" if isinstance(value, float) else str(value)


def _write_sheet(uri: str, manifest: Manifest, output: str) -> str:
    """index.html and contact.png with the first samples of each split, which staging's permutation makes a fair choice."""
    samples = list(_some(uri, manifest))
    if not samples:
        raise InputError(f"{uri}: the data set is empty, so there is nothing to show")
    write_bytes(join(output, "contact.png"), _png([pictures for _, pictures, _ in samples]))
    title = html.escape(manifest.name)
    judged = f"<p>Judged by {html.escape(manifest.judge)}.</p>" if manifest.judge else ""
    figures = "".join(_html_sample(*sample) for sample in samples)
    page = (
        f"<!doctype html><html lang=en><meta charset=utf-8><title>{title}</title><style>body{{font:15px sans-serif;margin:2em}}"
        "figure{display:inline-block;vertical-align:top;margin:.5em;max-width:26em}img{height:8em;margin-right:.3em}</style>"
        f"<h1>{title}</h1><p>{manifest.rows.get('written', 0)} samples, identity {manifest.identity[:12]}.</p>{judged}{figures}"
        f"<footer><small>{html.escape(manifest.attribution)}</small></footer></html>\n"
    )
    write_bytes(join(output, "index.html"), page.encode())
    return join(output, "index.html")


def _some(uri: str, manifest: Manifest) -> Iterator[tuple[str, list[bytes], str]]:
    """Split and key, pictures, and words of some samples."""
    splits = list(dict.fromkeys(shard.split for shard in manifest.shards))
    for split in splits:
        shard = manifest.split(split)[0]
        index = read_index(uri, shard)
        for row in range(min(index.num_samples, _SHEET_SAMPLES // len(splits))):
            members = read_members(uri, index, row)
            pictures = [data for name, data in members.items() if name == "image" or name.endswith(".png")]
            yield f"{split}: {index.keys[row]}", pictures, _words(members, manifest)


def _words(members: dict[str, bytes], manifest: Manifest) -> str:
    """A sample's captions, class, or votes as text."""
    words = "\n".join(captions_of(members.get("txt", b""), json.loads(members["json"]) if manifest.kind == "pairs" else {}))
    if "cls" in members:
        words = str(manifest.facts["classnames"][int(members["cls"])])
    if manifest.kind == "triplets":
        facts = json.loads(members["json"])
        words = f"votes {facts['left_vote']:g} : {facts['right_vote']:g}, target {facts['target']:.2f}"
        if facts.get("flip_0") is not None:
            words += f"\nFLIP {facts['flip_0']:.3f} : {facts['flip_1']:.3f}"
        words += f"\nMSE {facts['mse_0']:.4f} : {facts['mse_1']:.4f}"
    return words


def _html_sample(name: str, pictures: list[bytes], words: str) -> str:
    images = ""
    for data in pictures:
        kind = "jpeg" if picture_suffix(data) == "jpg" else "png"
        images += f'<img alt="" src="data:image/{kind};base64,{b64encode(data).decode()}">'
    caption = html.escape(words).replace("\n", "<br>")
    return f"<figure>{images}<figcaption>{caption}<br><small>{html.escape(name)}</small></figcaption></figure>"


def _png(samples: list[list[bytes]]) -> bytes:
    """The pictures of each sample side by side, samples in a grid."""
    width = _CELL * len(samples[0]) + 8
    columns = max(1, _SHEET_COLUMNS // len(samples[0]))
    sheet = Image.new("RGB", (columns * width, -(-len(samples) // columns) * (_CELL + 8)), (255, 255, 255))
    draw = ImageDraw.Draw(sheet)
    for number, pictures in enumerate(samples):
        left, top = number % columns * width, number // columns * (_CELL + 8)
        for place, data in enumerate(pictures):
            image = Image.open(BytesIO(data)).convert("RGB")
            image.thumbnail((_CELL, _CELL))
            sheet.paste(image, (left + place * _CELL, top))
        draw.line((left + width - 4, top, left + width - 4, top + _CELL), fill=(200, 200, 200))
    stream = BytesIO()
    sheet.save(stream, "PNG")
    return stream.getvalue()
