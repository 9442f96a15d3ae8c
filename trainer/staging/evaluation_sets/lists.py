"""Sets that come as a list of test pictures beside a folder of all."""

import csv
import io
from collections.abc import Sequence

from trainer.errors import InputError
from trainer.staging.evaluation_sets.copies import Converted, Copy, Row
from trainer.staging.evaluation_sets.matlab import read_mat
from trainer.staging.foreign import shown, text_of, whole


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
    pairs = _columns(copy, name, [line.split(maxsplit=1) for line in copy.lines("images_variant_test.txt")], 2)
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
    name = copy.require("annotations/test.txt")
    base = copy.base(name, "annotations/test.txt")
    lines = [line.split() for line in copy.lines("annotations/test.txt") if not line.startswith("#")]
    listed = [(parts[0], whole(parts[1], f"{copy.uri}/{name}: class")) for parts in _columns(copy, name, lines, 2)]
    named = {number: picture.rsplit("_", 1)[0].replace("_", " ").title() for picture, number in listed}
    classes = [named[number] for number in sorted(named)]
    pairs = [(f"{base}images/{picture}.jpg", named[number]) for picture, number in listed]
    return Converted(rows=_labelled(copy, pairs, classes), classnames=tuple(classes))


def flowers_102(copy: Copy) -> Converted:
    """imagelabels.mat, setid.mat (tstid), jpg/image_00001.jpg …; names come from the prompts."""
    labels, test = read_mat(copy, "imagelabels.mat", "labels")[0].flatten(), read_mat(copy, "setid.mat", "tstid")[0].flatten()
    rows = []
    for number in sorted(whole(value, f"{copy.uri}: setid.mat: tstid", 1, len(labels)) for value in test):
        name = copy.require(f"image_{number:05d}.jpg")
        label = whole(labels[number - 1], f"{copy.uri}: imagelabels.mat: label of picture {number}") - 1
        rows.append(Row(name=name, image=copy.reader(name), label=label))
    return Converted(rows=rows)


def cars(copy: Copy) -> Converted:
    """cars_test_annos_withlabels.mat, cars_meta.mat (class_names), cars_test/."""
    (annotations,) = read_mat(copy, "cars_test_annos_withlabels.mat", "annotations")
    names = tuple(str(name) for name in read_mat(copy, "cars_meta.mat", "class_names")[0].flatten())
    rows = []
    for number, entry in enumerate(annotations.flatten()):
        where = f"{copy.uri}: cars_test_annos_withlabels.mat: annotation {number}"
        file = getattr(entry, "fname", None)
        if not isinstance(file, str):
            raise InputError(f"{where}: has no file name, got {shown(file)}")
        name = copy.require(f"cars_test/{file}")
        rows.append(Row(name=name, image=copy.reader(name), label=whole(getattr(entry, "class", None), f"{where}: class") - 1))
    return Converted(rows=rows, classnames=names)


def gtsrb(copy: Copy) -> Converted:
    """GT-final_test.csv (`Filename`, `ClassId`) beside the .ppm pictures; names come from the prompts."""
    listing = copy.require("GT-final_test.csv")
    where = f"{copy.uri}/{listing}"
    rows = []
    try:
        for entry in csv.DictReader(io.StringIO(text_of(copy.read(listing), where), newline=""), delimiter=";"):
            if entry.get("ClassId") is None or entry.get("Filename") is None:
                raise InputError(f"{where}: no column Filename or ClassId; take the file with labels (GTSRB_Final_Test_GT.zip)")
            name = copy.require(f"Images/{entry['Filename']}")
            rows.append(Row(name=name, image=copy.reader(name), label=whole(entry["ClassId"], f"{where}: ClassId")))
    except csv.Error as error:
        raise InputError(f"{where}: not CSV: {error}") from error
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


def _columns(copy: Copy, name: str, lines: Sequence[Sequence[str]], count: int) -> list[tuple[str, ...]]:
    """The first columns of each line; InputError where a line has fewer."""
    short = next((number for number, parts in enumerate(lines, start=1) if len(parts) < count), None)
    if short is not None:
        raise InputError(f"{copy.uri}/{name}: line {short} must have {count} columns, got {shown(' '.join(lines[short - 1]))}")
    return [tuple(parts[:count]) for parts in lines]
