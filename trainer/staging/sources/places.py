"""Resolve the file names in a list: lists are written on other machines, by other tools, and moved."""

import posixpath
import re
import unicodedata
from collections import defaultdict
from collections.abc import Iterable, Sequence

from trainer.staging import kinds
from trainer.staging.captions import as_words, clean_name
from trainer.staging.sources.listing import SourceFile
from trainer.storage.base import local_path


class AmbiguousNameError(ValueError):
    """A name that matches several files."""


class Places:
    """Finds the files of a folder by their names in lists.

    A name is relative to the list's folder or to the source. These readings are tried until one matches; it must match one file only:
    as written; with backslashes; with ./ or ..; absolute, below the source or (from another machine) by the longest trailing part
    that matches a file; below a folder that the list omits; in another case or Unicode form, or without its suffix.
    """

    def __init__(self, uri: str, files: Sequence[SourceFile]) -> None:
        self._root = str(local_path(uri) or uri).rstrip("/") + "/"
        self._by_name = {file.name: file for file in files}
        self._loose: dict[str, dict[str, list[SourceFile]]] = {}

    def find(self, name: str, folder: str = "", split: str = "") -> SourceFile | None:
        """The file that a name in a list refers to.

        Args:
            name: as written in the list.
            folder: the list's folder below the source; empty at its top.
            split: the row's split; if several files match, the one in a folder of this name is used.

        Raises:
            AmbiguousNameError: several files match; the message names two.
        """
        found = self._by_name.get(f"{folder}/{name}" if folder else name) or self._by_name.get(name)
        if found is not None or not name:
            return found
        plain = name.removeprefix("file://").replace("\\", "/")
        if plain.startswith(self._root):
            plain, folder = plain.removeprefix(self._root), ""
        is_absolute = plain.startswith("/") or plain[1:3] == ":/"
        inside = "" if is_absolute else posixpath.normpath(posixpath.join(folder, plain))
        top = posixpath.normpath(plain).lstrip("/")
        for one in (inside, top):
            if one in self._by_name:
                return self._by_name[one]
        if is_absolute:
            parts = top.split("/")
            ends = ("/".join(parts[start:]) for start in range(1, len(parts)))
            found = next((self._by_name[end] for end in ends if end in self._by_name), None)
        elif not top.startswith("../"):
            found = self._below(top, split)
        return found or self._like(top if is_absolute else inside, split)

    def _below(self, name: str, split: str) -> SourceFile | None:
        """The file whose path ends in this one."""
        found = self._index("base", ((file.name.rpartition("/")[2], file) for file in self._by_name.values()))
        ends = [file for file in found.get(name.rpartition("/")[2], ()) if file.name.endswith(f"/{name}")]
        return _one(name, ends, split)

    def _like(self, name: str, split: str) -> SourceFile | None:
        """The picture with this name in another case or Unicode form, or without its suffix."""
        pictures = (file for file in self._by_name.values() if kinds.is_picture(file.name))
        folded = self._index("folded", ((_fold(file.name), file) for file in pictures))
        if found := folded.get(_fold(name)):
            return _one(name, found, split)
        stems = self._index(
            "stem", ((_stem(file.name).rpartition("/")[2], file) for file in self._by_name.values() if kinds.is_picture(file.name))
        )
        ends = [file for file in stems.get(name.rpartition("/")[2], ()) if f"/{_stem(file.name)}".endswith(f"/{name}")]
        return _one(name, ends, split)

    def _index(self, kind: str, entries: Iterable[tuple[str, SourceFile]]) -> dict[str, list[SourceFile]]:
        if kind not in self._loose:
            index: dict[str, list[SourceFile]] = defaultdict(list)
            for key, file in entries:
                index[key].append(file)
            self._loose[kind] = dict(index)
        return self._loose[kind]


def _one(name: str, files: Sequence[SourceFile], split: str) -> SourceFile | None:
    if len(files) > 1 and split:
        files = [file for file in files if split in {split_of(part) for part in file.name.split("/")[:-1]}] or files
    if len(files) > 1:
        raise AmbiguousNameError(f"{name!r} may be {files[0].name} or {files[1].name}")
    return files[0] if files else None


def _stem(name: str) -> str:
    return name.rpartition(".")[0]


def _fold(name: str) -> str:
    return unicodedata.normalize("NFC", name).casefold()


_SPLITS = {"train": "train", "training": "train", "val": "val", "valid": "val", "validation": "val", "test": "test", "testing": "test"}


_ABOUT_SPLITS = {"images", "imgs", "data", "set", "split"}


def split_of(name: str) -> str:
    """The split that a folder is named after (train, val2017, test_images), or empty."""
    words = {word.rstrip("0123456789") for word in re.split(r"[^a-z0-9]+", name.casefold())} - {"", *_ABOUT_SPLITS}
    return _SPLITS.get(words.pop(), "") if len(words) == 1 else ""


def split_in(name: str) -> str:
    """The split in the name of a list (captions_val2017.json), or empty."""
    words = {word.rstrip("0123456789") for word in re.split(r"[^a-z0-9]+", name.rpartition("/")[2].casefold())}
    found = {_SPLITS[word] for word in words if word in _SPLITS}
    return found.pop() if len(found) == 1 else ""


def named_split(text: str, known: Sequence[tuple[str, str]] = ()) -> str:
    """The split that a row names: train, val or test by any of their usual names; other text is returned unchanged."""
    word = text.strip()
    return dict(known).get(word) or _SPLITS.get(word.casefold(), word)


def tell_splits(splits: Iterable[str]) -> bool:
    """Whether every picture has a split by its name, and there are train and val or test."""
    found = set(splits)
    return "" not in found and "train" in found and len(found) > 1


def folder_splits(names: Iterable[str]) -> dict[str, str]:
    """The split of each file if folders train and val or test, below the common folder, contain all files; else empty."""
    relative = below_common(names)
    folders = {name: rest.partition("/")[0] if "/" in rest else "" for name, rest in relative.items()}
    splits = {folder: split_of(folder) for folder in set(folders.values())}
    return {name: splits[folder] for name, folder in folders.items()} if tell_splits(splits.values()) else {}


def below_common(names: Iterable[str]) -> dict[str, str]:
    """Name -> the part of it below the files' common folder."""
    listed = list(names)
    common = posixpath.commonpath([name.rpartition("/")[0] for name in listed]) if listed else ""
    return {name: name[len(common) + 1 :] if common else name for name in listed}


def class_folders(names: Sequence[str]) -> dict[str, str]:
    """The class of each picture, if all are in class folders directly below the splits or the common folder, and there are several."""
    relative = below_common(names)
    if folder_splits(names):
        relative = {name: rest.partition("/")[2] for name, rest in relative.items()}
    if any(rest.count("/") != 1 for rest in relative.values()):
        return {}
    labels = {name: clean_name(as_words(rest.partition("/")[0])) for name, rest in relative.items()}
    return labels if len(set(labels.values())) > 1 and all(labels.values()) else {}
