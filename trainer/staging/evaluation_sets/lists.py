"""Sets that come as a list of test pictures beside a folder of all."""

import csv
import io
from collections.abc import Sequence
from typing import Any

import numpy as np

from trainer.errors import InputError
from trainer.staging.evaluation_sets.copies import Converted, Copy, Row


def food_101(copy: Copy) -> Converted:
    """meta/test.txt of `class/picture`, images/."""
    listed = copy.lines("meta/test.txt")
    base = copy.base(copy.require("meta/test.txt"), "meta/test.txt")
    return _by_folder(copy, [(f"{base}images/{line}.jpg", line.split("/")[0]) for line in listed])


def dtd(copy: Copy) -> Converted:
    """labels/test1.txt of `class/picture.jpg`, images/."""
    base = copy.base(copy.require("labels/test1.txt"), "labels/test1.txt")
    return _by_folder(copy, [(f"{base}images/{line}", line.split("/")[0]) for line in copy.lines("labels/test1.txt")])


def birdsnap(copy: Copy) -> Converted:
    """test_images.txt of `class/picture.jpg`, images/; pictures whose links died are left out and counted at the end."""
    name = copy.require("test_images.txt")
    base = copy.base(name, "test_images.txt")
    listed = [line for line in copy.lines("test_images.txt") if "/" in line]
    there = set(copy.names)
    pairs = [(f"{base}images/{line}", line.split("/")[0]) for line in listed]
    found = _by_folder(copy, [pair for pair in pairs if pair[0] in there], classes=sorted({folder for _, folder in pairs}))
    print(f"birdsnap: {sum(path in there for path, _ in pairs)} of {len(pairs)} test pictures are in this copy")
    return found


def aircraft(copy: Copy) -> Converted:
    """images_variant_test.txt of `id variant`, variants.txt, images/."""
    name = copy.require("images_variant_test.txt")
    base = copy.base(name, "images_variant_test.txt")
    classes = copy.lines("variants.txt")
    pairs = [line.split(maxsplit=1) for line in copy.lines("images_variant_test.txt")]
    return Converted(
        rows=_labelled(copy, [(f"{base}images/{key}.jpg", variant) for key, variant in pairs], classes), classnames=tuple(classes)
    )


def sun397(copy: Copy) -> Converted:
    """ClassName.txt of `/a/abbey`, Testing_01.txt of `/a/abbey/picture.jpg`."""
    classes = copy.lines("ClassName.txt")
    base = copy.base(copy.require("ClassName.txt"), "ClassName.txt")
    pairs = [(f"{base}{line.lstrip('/')}", line.rsplit("/", 1)[0]) for line in copy.lines("Testing_01.txt")]
    names = tuple(" ".join(part for part in line.split("/")[2:]).replace("_", " ") for line in classes)
    return Converted(rows=_labelled(copy, pairs, classes), classnames=names)


def pets(copy: Copy) -> Converted:
    """annotations/test.txt of `picture class species breed`, images/."""
    base = copy.base(copy.require("annotations/test.txt"), "annotations/test.txt")
    lines = [line.split() for line in copy.lines("annotations/test.txt") if not line.startswith("#")]
    named = {int(parts[1]): parts[0].rsplit("_", 1)[0].replace("_", " ").title() for parts in lines}
    classes = [named[number] for number in sorted(named)]
    pairs = [(f"{base}images/{parts[0]}.jpg", named[int(parts[1])]) for parts in lines]
    return Converted(rows=_labelled(copy, pairs, classes), classnames=tuple(classes))


def flowers_102(copy: Copy) -> Converted:
    """imagelabels.mat, setid.mat (tstid), jpg/image_00001.jpg …; names come from the prompts."""
    labels, test = _mat(copy, "imagelabels.mat")["labels"].flatten(), _mat(copy, "setid.mat")["tstid"].flatten()
    rows = []
    for number in sorted(int(value) for value in test):
        name = copy.require(f"image_{number:05d}.jpg")
        rows.append(Row(name=name, image=copy.reader(name), label=int(labels[number - 1]) - 1))
    return Converted(rows=rows)


def cars(copy: Copy) -> Converted:
    """cars_test_annos_withlabels.mat, cars_meta.mat (class_names), cars_test/."""
    annotations = _mat(copy, "cars_test_annos_withlabels.mat")["annotations"]
    names = tuple(str(name) for name in np.atleast_1d(_mat(copy, "cars_meta.mat")["class_names"]))
    rows = []
    for entry in np.atleast_1d(annotations):
        name = copy.require(f"cars_test/{entry.fname}")
        rows.append(Row(name=name, image=copy.reader(name), label=int(getattr(entry, "class")) - 1))
    return Converted(rows=rows, classnames=names)


def gtsrb(copy: Copy) -> Converted:
    """GT-final_test.csv (`Filename`, `ClassId`) beside the .ppm pictures; names come from the prompts."""
    listing = copy.require("GT-final_test.csv")
    rows = []
    for entry in csv.DictReader(io.StringIO(copy.read(listing).decode()), delimiter=";"):
        if entry.get("ClassId") is None or entry.get("Filename") is None:
            raise InputError(f"{copy.uri}/{listing}: no column Filename or ClassId; take the file with labels (GTSRB_Final_Test_GT.zip)")
        name = copy.require(f"Images/{entry['Filename']}")
        rows.append(Row(name=name, image=copy.reader(name), label=int(entry["ClassId"])))
    return Converted(rows=rows)


def _by_folder(copy: Copy, pairs: Sequence[tuple[str, str]], classes: Sequence[str] | None = None) -> Converted:
    """Pictures with their class folder; labels follow the sorted folders."""
    ordered = classes or sorted({folder for _, folder in pairs})
    return Converted(rows=_labelled(copy, pairs, ordered), classnames=tuple(folder.replace("_", " ") for folder in ordered))


def _labelled(copy: Copy, pairs: Sequence[tuple[str, str]], classes: Sequence[str]) -> list[Row]:
    label_of = {folder: label for label, folder in enumerate(classes)}
    unknown = [folder for _, folder in pairs if folder not in label_of]
    if unknown:
        raise InputError(f"{copy.uri}: a test picture is of class {unknown[0]!r}, which the copy's list of classes has not")
    return [Row(name=name, image=copy.reader(name), label=label_of[folder]) for name, folder in pairs]


def _mat(copy: Copy, ending: str) -> dict[str, Any]:
    from scipy.io import loadmat

    name = copy.require(ending)
    try:
        return dict(loadmat(io.BytesIO(copy.read(name)), squeeze_me=True, struct_as_record=False))
    except (ValueError, TypeError, NotImplementedError) as error:
        raise InputError(f"{copy.uri}/{name}: not a MATLAB file of version 5: {error}") from error
