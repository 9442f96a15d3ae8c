"""Pairs from a folder: each picture has a `.txt` or `.caption` (captions, one per line) or `.json` file of the same name.

Pictures and captions may also be in two folders with the same structure (images/ and captions/).
"""

import shlex
from collections import Counter, defaultdict
from collections.abc import Collection, Mapping, Sequence

from trainer.errors import InputError
from trainer.staging import kinds
from trainer.staging.captions import CAPTION_SUFFIXES, NO_CAPTION, BadCaptionError, Facts, check_caption_size, labelled, read_facts
from trainer.staging.rows import Blob, PairRow, Reject, check_split, check_unique, safe_key
from trainer.staging.sources.listing import Rows, SourceFile
from trainer.staging.sources.places import class_folders, folder_splits, named_split
from trainer.staging.sources.table import NAME, READ, looked_into
from trainer.storage.base import local_path

_BESIDE = ("json", *CAPTION_SUFFIXES)
_SHOWN = 3


def read(uri: str, files: Sequence[SourceFile]) -> Rows[PairRow]:
    """Every picture of the folder and of those below it.

    If the folders train, val and test contain all pictures, they are splits. If all pictures are one folder deep (below those) and no
    JSON names a label, the folders are labels; if there are no captions at all, the labels are used as captions.

    Raises:
        InputError: there is no picture or no caption, two pictures have the same name, or a split is empty.
    """
    images = [file for file in files if kinds.suffix_of(file.name) in kinds.READ]
    beside, rejects = _captions_beside(files)
    rejects += _unread(files, {_stem(file.name) for file in images})
    if not images:
        what = f"no pictures among {len(files)} files{_found(files)}{_advice(files)}"
        raise InputError(f"{uri}: {what}; looked for {', '.join(kinds.READ)}, lists ({NAME} and others) and .tar")
    if uri.endswith(f"/{images[0].name}"):
        raise InputError(f"{uri} is a single picture: a source must be a folder of pictures, a list of them, or a tar")
    check_unique((_stem(file.name) for file in images), uri)
    names = [file.name for file in images]
    beside = _bring_together(names, beside)
    splits, labels = folder_splits(names), class_folders(names)
    said = {image.name: _read_facts(image, {**beside.pop(image.name, {}), **beside.pop(_stem(image.name), {})}) for image in images}
    if not any(isinstance(found, Facts) for found in said.values()):
        said = {name: labelled(found) for name, found in said.items()}
    facts = {name: Reject(name, found.cause, found.detail) if isinstance(found, BadCaptionError) else found for name, found in said.items()}
    if all(isinstance(found, Reject) and found.cause == NO_CAPTION for found in facts.values()):
        if not labels:
            raise InputError(_explain_no_captions(uri, names, files))
        facts = {name: Facts(captions=(labels[name],), label=labels[name]) for name in names}
    if any(found.label for found in facts.values() if isinstance(found, Facts)):
        labels = {}
    if any(found.split for found in facts.values() if isinstance(found, Facts)):
        splits = {}
    rows = []
    for image in images:
        found = facts[image.name]
        if isinstance(found, Reject):
            rejects.append(found)
            continue
        rows.append(
            PairRow(
                key=safe_key(_stem(image.name)),
                where=image.name,
                image=Blob(image.uri, length=image.size),
                captions=found.captions,
                label=found.label or labels.get(image.name, ""),
                split=splits.get(image.name) or check_split(named_split(found.split), image.name),
                family=found.family,
            )
        )
    for _, orphans in sorted(beside.items()):
        rejects += (Reject(file.name, "caption without picture", "no picture with this name", counts=False) for file in orphans.values())
    return Rows(rows=rows, rejects=rejects)


def _captions_beside(files: Sequence[SourceFile]) -> tuple[dict[str, dict[str, SourceFile]], list[Reject]]:
    """Files of captions by the name of their picture, without its suffix or with it, and by their own suffix."""
    found: dict[str, dict[str, SourceFile]] = defaultdict(dict)
    rejects = []
    for file in files:
        stem, suffix = _stem(file.name), kinds.suffix_of(file.name)[1:]
        if suffix in _BESIDE:
            first = found[stem].setdefault(suffix, file)
            if first is not file:
                rejects.append(Reject(file.name, "second caption file", f"{first.name} is read", counts=False))
    return found, rejects


def _bring_together(names: Sequence[str], beside: dict[str, dict[str, SourceFile]]) -> dict[str, dict[str, SourceFile]]:
    """Caption files under the names of their pictures, also if they are in a separate folder: images/x.jpg, captions/x.txt.

    This applies if no captions are next to a picture, and the names of pictures and captions are the same except for one folder in each
    (or in one of them). If captions match in two ways, or match less than half of the pictures, the names stay unchanged.
    """
    pictures = {*map(_stem, names), *names}
    if not beside or not pictures.isdisjoint(beside):
        return beside
    found: list[dict[str, str]] = []
    for at, folder in _shared_folders(pictures):
        for place, other in _shared_folders(beside):
            if at == place or not folder or not other:
                picture_of = {_without(name, at, folder): name for name in sorted(pictures)}
                met = {name: picture_of.get(_without(name, place, other), name) for name in beside}
                if len(set(met.values())) == len(beside) and met not in found:
                    found.append(met)
    fitting = [sum(name in pictures for name in met.values()) for met in found]
    best = max(fitting, default=0)
    if 2 * best < len(names) or fitting.count(best) > 1:
        return beside
    met = found[fitting.index(best)]
    return {met[name]: files for name, files in beside.items()}


def _shared_folders(stems: Collection[str]) -> list[tuple[int, str]]:
    """The folders that contain most of the files, with the depth of each, and the empty folder."""
    counts = Counter(part for stem in stems for part in enumerate(stem.split("/")[:-1]))
    return [(0, ""), *(part for part, count in counts.items() if 2 * count > len(stems))]


def _without(stem: str, at: int, folder: str) -> str:
    parts = stem.split("/")
    return "/".join(parts[:at] + parts[at + 1 :]) if folder and parts[at : at + 1] == [folder] and at < len(parts) - 1 else stem


def _unread(files: Sequence[SourceFile], stems: set[str]) -> list[Reject]:
    """Pictures in formats that are not read, except those that also exist in a format that is read."""
    unread = [file for file in files if kinds.suffix_of(file.name) in kinds.NOT_READ]
    return [
        Reject(file.name, kinds.UNREAD_CAUSE, kinds.explain_unread(kinds.suffix_of(file.name)), counts=_stem(file.name) not in stems)
        for file in unread
    ]


def _read_facts(image: SourceFile, beside: Mapping[str, SourceFile]) -> Facts | BadCaptionError:
    try:
        return read_facts({suffix: _read_small(file) for suffix, file in beside.items()}, _stem(image.name))
    except BadCaptionError as error:
        return error


def _read_small(file: SourceFile) -> bytes:
    check_caption_size(file.size, file.name)
    return Blob(file.uri).read()


def _stem(name: str) -> str:
    return name.rpartition(".")[0]


def _explain_no_captions(uri: str, names: Sequence[str], files: Sequence[SourceFile]) -> str:
    others = [file for file in files if not kinds.is_picture(file.name)]
    lists = "".join(f"; {listed}" for listed in looked_into(uri, files))
    count = f"{len(names)} picture{'s' * (len(names) > 1)}"
    return (
        f"{uri}: {count} (such as {names[0]}) and no captions{_found(others)}{lists}{_advice(others)}; read are {READ}; "
        f"{_to_begin(uri, names)}"
    )


def _to_begin(uri: str, names: Sequence[str]) -> str:
    """A command that starts a list of pictures; for pictures in folders, the folder is caption and label."""
    (kind, _), *_ = Counter(f".{name.rpartition('.')[2]}" for name in names).most_common(1)
    place = shlex.quote(str(local_path(uri) or "FOLDER"))
    if all("/" in name for name in names) and len({name.rpartition("/")[0] for name in names}) > 1:
        begun, row = (
            "a list whose captions and labels are the folders of the pictures",
            r"awk -F/ -v OFS='\t' '{print $0, $(NF-1), $(NF-1)}'",
        )
        header = r"file\tcaption\tlabel\n"
    else:
        begun, header, row = "a list", r"file\tcaption\n", r"sed 's/$/\ta caption/'"
    return f"to start {begun}: cd {place} && (printf '{header}'; find * -name '*{kind}' | {row}) > captions.tsv"


def _advice(files: Sequence[SourceFile]) -> str:
    """What to do with the first file that can be converted."""
    return next((f"; {advice}" for file in files if (advice := kinds.explain_kind(file.name))), "")


def _found(files: Sequence[SourceFile]) -> str:
    """The kinds of files that were found, with examples; empty if there are none."""
    counts = Counter(kinds.suffix_of(file.name) or "no suffix" for file in files)
    parts = []
    for suffix, count in counts.most_common(5):
        names = [file.name for file in files if (kinds.suffix_of(file.name) or "no suffix") == suffix][:_SHOWN]
        parts.append(f"{count} {suffix} ({', '.join(names)}{', …' if count > _SHOWN else ''})")
    return f": found {', '.join(parts)}" if parts else ""
