"""Sets with one folder per class, including the ImageNet family."""

import re

from trainer.errors import InputError
from trainer.staging.evaluation_sets.copies import Converted, Copy, Row, Split

_SPLITS = ("test", "val", "validation")
_TRAINING = ("train", "training")
_WNID = re.compile(r"n\d{8}")
_SYNSETS = ("LOC_synset_mapping.txt", "synset_words.txt", "words.txt")


def class_folders(copy: Copy, split: Split = "test") -> Converted:
    """One folder of pictures per class, below `test/` or `val/` if there is one; labels follow the sorted folders.

    Folders that are all numbers are sorted as numbers (ImageNet-V2's). Training pictures lie below `train/` and have the test's classes.
    """
    tested = _test_images(copy)
    folders = {name.split("/")[-2] for name in tested}
    ordered = sorted(folders, key=int) if all(folder.isdecimal() for folder in folders) else sorted(folders)
    label_of = {folder: label for label, folder in enumerate(ordered)}
    names = tested if split == "test" else _training_images(copy)
    unknown = next((name for name in names if name.split("/")[-2] not in label_of), None)
    if unknown is not None:
        raise InputError(f"{copy.uri}: {unknown} belongs to a class that has no test pictures")
    rows = [Row(name=name, image=copy.reader(name), label=label_of[name.split("/")[-2]]) for name in names]
    return Converted(rows=rows, classnames=tuple(folder.replace("_", " ") for folder in ordered))


def imagenet(copy: Copy, split: Split = "test") -> Converted:
    """ImageNet-1K's validation pictures or Sketch by WordNet id, V2 by class number: 1000 folders; names come from the prompts."""
    converted = class_folders(copy, split)
    if len(converted.classnames) != 1000:
        raise InputError(
            f"{copy.uri}: {len(converted.classnames)} class folders, but ImageNet has 1000; the validation pictures must be sorted into "
            "one folder per class (n01440764/…)"
        )
    return Converted(rows=converted.rows)


def imagenet_subset(copy: Copy, split: Split = "test") -> Converted:
    """ImageNet-A and -R: 200 folders by WordNet id; ImageNet's LOC_synset_mapping.txt maps them to the 1000 classes."""
    converted = class_folders(copy, split)
    wnids = converted.classnames
    if not all(_WNID.fullmatch(wnid) for wnid in wnids):
        raise InputError(f"{copy.uri}: class folders must be WordNet ids such as n01440764, got {wnids[0]!r}")
    found = next((name for name in map(copy.find, _SYNSETS) if name), None)
    if found is None:
        raise InputError(f"{copy.uri}: put ImageNet's LOC_synset_mapping.txt next to the class folders: it names their classes")
    named = dict(line.split(maxsplit=1) for line in copy.lines(found.rsplit("/", 1)[-1]) if " " in line or "\t" in line)
    missing = [wnid for wnid in wnids if wnid not in named]
    if missing:
        raise InputError(f"{copy.uri}/{found}: does not name {missing[0]}")
    return Converted(rows=converted.rows, classnames=tuple(named[wnid].split(",")[0].strip() for wnid in wnids))


def _test_images(copy: Copy) -> list[str]:
    """Pictures in class folders; only the test split if the copy has splits."""
    names = [name for name in copy.images() if "/" in name]
    for split in _SPLITS:
        within = [name for name in names if split in name.split("/")[:-2]]
        if within:
            return within
    if not names:
        raise InputError(f"{copy.uri}: no pictures in class folders here")
    return names


def has_training(copy: Copy) -> bool:
    """Whether class folders lie below `train/` or `training/`."""
    return any(_is_training(name) for name in copy.images())


def _is_training(name: str) -> bool:
    return bool({*_TRAINING} & {*name.split("/")[:-2]})


def _training_images(copy: Copy) -> list[str]:
    names = [name for name in copy.images() if _is_training(name)]
    if not names:
        raise InputError(f"{copy.uri}: no pictures in class folders below train/")
    return names
