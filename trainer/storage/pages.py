"""The report's page: its generations, and the current one.

Each page is a folder of its own, report/generation-<n>/, and report/made.json names the generation that counts, with the checksum of
each of its files. A writer claims its number before it reads the experiment, so that a page of a higher number knows all that was
finished before a lower one was begun; it writes its folder, then points made.json at it unless a higher number is there already.
So no page is replaced by an older one, and no reader sees half of one.

Copies of the files that count lie in report/ itself, for people and their bookmarks. They are written last, and may for a moment be of
an older page: programs ask `read_page`. Format 1 of made.json knew no generations: its files are those in report/.
"""

import contextlib
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from trainer.errors import Corrupt, RunError
from trainer.storage import checked, layout
from trainer.storage.base import join, open_store, write_bytes
from trainer.storage.documents import encode_document, read_document

NAME = "made.json"
FORMAT_VERSION = 2
_TRIES = 100
_GENERATION = re.compile(r"generation-(\d+)/")


@dataclass(frozen=True, kw_only=True)
class Page:
    """What made.json says.

    Attributes:
        generation: of the page that counts; 0: there is none, or an older version made it.
        claimed: the highest number that a writer has claimed.
        inputs: hash of all that the page was made from; empty: not known.
        files: name -> {"size": bytes, "sha256": hex}.
    """

    generation: int = 0
    claimed: int = 0
    inputs: str = ""
    files: dict[str, dict[str, Any]] = field(default_factory=dict)

    def folder(self, experiment_uri: str) -> str:
        """Where its files lie."""
        return layout.report_generation(experiment_uri, self.generation) if self.generation else layout.report(experiment_uri)


@dataclass(frozen=True, kw_only=True)
class Claim:
    """A writer's number, and when it was claimed: POSIX seconds by the store's clock."""

    generation: int
    time: float


def read_page(experiment_uri: str) -> Page:
    """The page that counts; an empty one if there is none.

    Raises:
        InputError: a newer firstsight made it.
        Corrupt: made.json is damaged.
    """
    uri = join(layout.report(experiment_uri), NAME)
    value = read_document(uri, "a record of the report", FORMAT_VERSION)
    if value is None:
        return Page()
    none = 0 if value["format_version"] == 1 else -1
    numbers: list[Any] = [value.get(name, none) for name in ("generation", "claimed")]
    files, inputs = value.get("files"), value.get("inputs")
    if not checked.is_files(files) or not isinstance(inputs, str) or not all(type(number) is int and number >= 0 for number in numbers):
        raise Corrupt(f"{uri}: not a firstsight report record")
    return Page(generation=numbers[0], claimed=numbers[1], inputs=inputs, files=dict(files or {}))


def folder_of(experiment_uri: str) -> str:
    """The folder of the current page's files; report/, with its copies, if that is unknown."""
    with contextlib.suppress(Corrupt):
        return read_page(experiment_uri).folder(experiment_uri)
    return layout.report(experiment_uri)


def claim(experiment_uri: str) -> Claim:
    """A number for a page, higher than all before it. To be called before anything of the experiment is read."""
    uri = join(layout.report(experiment_uri), NAME)
    for _ in range(_TRIES):
        known, stamp = _read(experiment_uri)
        number = known.claimed + 1
        if _write(uri, Page(**{**asdict(known), "claimed": number}), stamp):
            info = open_store(uri).head(uri)
            return Claim(generation=number, time=info.modified if info is not None else 0.0)
    raise _busy(uri)


def publish(experiment_uri: str, claimed: Claim, files: Mapping[str, bytes], inputs: str = "") -> bool:
    """Write a page and make it current, unless a newer one is; returns whether it is current.

    Args:
        experiment_uri: the experiment's folder.
        claimed: its number.
        files: name -> content.
        inputs: hash of all that it was made from.
    """
    uri, number = join(layout.report(experiment_uri), NAME), claimed.generation
    for name, content in files.items():
        write_bytes(join(layout.report_generation(experiment_uri, number), name), content)
    described = {name: checked.describe(content) for name, content in files.items()}
    for _ in range(_TRIES):
        known, stamp = _read(experiment_uri)
        if known.generation > number:
            return False
        made = Page(generation=number, claimed=max(known.claimed, number), inputs=inputs, files=described)
        if _write(uri, made, stamp):
            copy_out(experiment_uri)
            _sweep(experiment_uri, known.generation)
            return True
    raise _busy(uri)


def copy_out(experiment_uri: str) -> None:
    """Copy the current page into report/, and again if another has become current by then, so that the newest ends up there."""
    for _ in range(_TRIES):
        page = read_page(experiment_uri)
        for name in page.files if page.generation else ():
            source = join(page.folder(experiment_uri), name)
            open_store(source).copy(source, join(layout.report(experiment_uri), name))
        if read_page(experiment_uri).generation == page.generation:
            return
    raise _busy(layout.report(experiment_uri))


def find_damaged(experiment_uri: str, page: Page) -> bool:
    """Whether a file of the page, or its copy in report/, is not as it was made."""
    folders = dict.fromkeys((page.folder(experiment_uri), layout.report(experiment_uri)))
    return any(checked.find_damaged(folder, page.files) for folder in folders)


def _sweep(experiment_uri: str, previous: int) -> None:
    """Remove the pages before the previous one, which someone may still be reading."""
    folder = layout.report(experiment_uri)
    for info in list(open_store(folder).list(folder)):
        found = _GENERATION.match(info.uri.removeprefix(f"{folder}/"))
        if found and int(found[1]) < previous:
            open_store(folder).delete(info.uri)


def _read(experiment_uri: str) -> tuple[Page, str]:
    """made.json and its stamp. A lost or damaged one counts as pointing nowhere; numbers continue from those of the folders."""
    folder = layout.report(experiment_uri)
    uri = join(folder, NAME)
    info = open_store(uri).head(uri)  # before its content: what is written meanwhile then has another stamp
    try:
        page = read_page(experiment_uri) if info is not None else None
    except Corrupt:
        page = None
    if page is None:
        found = (_GENERATION.match(one.uri.removeprefix(f"{folder}/")) for one in open_store(folder).list(folder))
        page = Page(claimed=max((int(match[1]) for match in found if match), default=0))
    return page, info.stamp if info is not None else ""


def _write(uri: str, page: Page, stamp: str) -> bool:
    """Put made.json in the place of the version with this stamp; False if it has changed since."""
    data = encode_document({"format_version": FORMAT_VERSION, **asdict(page)})
    return open_store(uri).replace(uri, data, stamp) if stamp else open_store(uri).create(uri, data)


def _busy(uri: str) -> RunError:
    return RunError(f"{uri}: changed {_TRIES} times in the meantime: the page could not be written")
