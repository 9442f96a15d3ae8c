"""Sets with a list of test pictures beside a folder of all pictures."""

from collections.abc import Sequence

from trainer.bounds import csv_rows
from trainer.errors import InputError
from trainer.staging.evaluation_sets.copies import Converted, Copy, Row, Split
from trainer.staging.evaluation_sets.matlab import read_mat
from trainer.staging.foreign import shown, text_of, whole


def food_101(copy: Copy, split: Split = "test") -> Converted:
    """meta/test.txt or train.txt of `class/picture`, images/."""
    tested = copy.lines("meta/test.txt")
    base = copy.base(copy.require("meta/test.txt"), "meta/test.txt")
    listed = tested if split == "test" else copy.lines("meta/train.txt")
    classes = sorted({line.split("/")[0] for line in tested})
    return _by_folder(copy, [(f"{base}images/{line}.jpg", line.split("/")[0]) for line in listed], classes)


def dtd(copy: Copy, split: Split = "test") -> Converted:
    """labels/test1.txt of `class/picture.jpg`, images/; for training, train1.txt and val1.txt."""
    base = copy.base(copy.require("labels/test1.txt"), "labels/test1.txt")
    tested = copy.lines("labels/test1.txt")
    listed = tested if split == "test" else [*copy.lines("labels/train1.txt"), *copy.lines("labels/val1.txt")]
    classes = sorted({line.split("/")[0] for line in tested})
    return _by_folder(copy, [(f"{base}images/{line}", line.split("/")[0]) for line in listed], classes)


def birdsnap(copy: Copy, split: Split = "test") -> Converted:
    """test_images.txt of `class/picture.jpg`, images/; pictures whose links died are left out and counted at the end.

    Pictures in images/ that it does not list are for training.
    """
    name = copy.require("test_images.txt")
    base = copy.base(name, "test_images.txt")
    listed = [line for line in copy.lines("test_images.txt") if "/" in line]
    there = set(copy.names)
    pairs = [(f"{base}images/{line}", line.split("/")[0]) for line in listed]
    classes = sorted({folder for _, folder in pairs})
    if split == "train":
        others = sorted(path for path in copy.images() if path.startswith(f"{base}images/") and path not in {path for path, _ in pairs})
        return _by_folder(copy, [(path, path.split("/")[-2]) for path in others], classes)
    found = _by_folder(copy, [pair for pair in pairs if pair[0] in there], classes)
    print(f"birdsnap: {sum(path in there for path, _ in pairs)} of {len(pairs)} test pictures are in this copy")
    return found


def aircraft(copy: Copy, split: Split = "test") -> Converted:
    """images_variant_test.txt or …_trainval.txt of `id variant`, variants.txt, images/."""
    file = f"images_variant_{'test' if split == 'test' else 'trainval'}.txt"
    name = copy.require(file)
    base = copy.base(name, file)
    classes = copy.lines("variants.txt")
    pairs = _columns(copy, name, [line.split(maxsplit=1) for line in copy.lines(file)], 2)
    return Converted(
        rows=_labelled(copy, [(f"{base}images/{key}.jpg", variant) for key, variant in pairs], classes), classnames=tuple(classes)
    )


def sun397(copy: Copy, split: Split = "test") -> Converted:
    """ClassName.txt of `/a/abbey`, Testing_01.txt or Training_01.txt of `/a/abbey/picture.jpg`."""
    classes = copy.lines("ClassName.txt")
    base = copy.base(copy.require("ClassName.txt"), "ClassName.txt")
    pairs = [
        (f"{base}{line.lstrip('/')}", line.rsplit("/", 1)[0])
        for line in copy.lines("Testing_01.txt" if split == "test" else "Training_01.txt")
    ]
    names = tuple(" ".join(part for part in line.split("/")[2:]).replace("_", " ") for line in classes)
    return Converted(rows=_labelled(copy, pairs, classes), classnames=names)


def pets(copy: Copy, split: Split = "test") -> Converted:
    """annotations/test.txt or trainval.txt of `picture class species breed`, images/."""
    base = copy.base(copy.require("annotations/test.txt"), "annotations/test.txt")
    tested = _pets(copy, "annotations/test.txt")
    listed = tested if split == "test" else _pets(copy, "annotations/trainval.txt")
    named = {number: picture.rsplit("_", 1)[0].replace("_", " ").title() for picture, number in tested}
    pairs = [(f"{base}images/{picture}.jpg", named.get(number, f"number {number}")) for picture, number in listed]
    classes = [named[number] for number in sorted(named)]
    return Converted(rows=_labelled(copy, pairs, classes), classnames=tuple(classes))


def _pets(copy: Copy, ending: str) -> list[tuple[str, int]]:
    name = copy.require(ending)
    lines = [line.split() for line in copy.lines(ending) if not line.startswith("#")]
    return [(parts[0], whole(parts[1], f"{copy.uri}/{name}: class")) for parts in _columns(copy, name, lines, 2)]


def flowers_102(copy: Copy, split: Split = "test") -> Converted:
    """imagelabels.mat, setid.mat (tstid; for training, trnid and valid), jpg/image_00001.jpg …; names come from the prompts."""
    labels, parts = read_mat(copy, "imagelabels.mat", "labels")[0].flatten(), ("tstid",) if split == "test" else ("trnid", "valid")
    listed = [(part, value) for part, values in zip(parts, read_mat(copy, "setid.mat", *parts), strict=True) for value in values.flatten()]
    rows = []
    for number in sorted(whole(value, f"{copy.uri}: setid.mat: {part}", 1, len(labels)) for part, value in listed):
        name = copy.require(f"image_{number:05d}.jpg")
        label = whole(labels[number - 1], f"{copy.uri}: imagelabels.mat: label of picture {number}") - 1
        rows.append(Row(name=name, image=copy.reader(name), label=label))
    return Converted(rows=rows)


def cars(copy: Copy, split: Split = "test") -> Converted:
    """cars_test_annos_withlabels.mat and cars_test/, or cars_train_annos.mat and cars_train/; cars_meta.mat (class_names)."""
    file = "cars_test_annos_withlabels.mat" if split == "test" else "cars_train_annos.mat"
    (annotations,) = read_mat(copy, file, "annotations")
    names = tuple(str(name) for name in read_mat(copy, "cars_meta.mat", "class_names")[0].flatten())
    rows = []
    for number, entry in enumerate(annotations.flatten()):
        where = f"{copy.uri}: {file}: annotation {number}"
        picture = getattr(entry, "fname", None)
        if not isinstance(picture, str):
            raise InputError(f"{where}: has no file name, got {shown(picture)}")
        name = copy.require(f"cars_{split}/{picture}")
        rows.append(Row(name=name, image=copy.reader(name), label=whole(getattr(entry, "class", None), f"{where}: class") - 1))
    return Converted(rows=rows, classnames=names)


def gtsrb(copy: Copy, split: Split = "test") -> Converted:
    """GT-final_test.csv (`Filename`, `ClassId`) beside the .ppm pictures; names come from the prompts.

    Training pictures lie in folders by class number, Final_Training/Images/00000 ….
    """
    if split == "train":
        return _gtsrb_training(copy)
    listing = copy.require("GT-final_test.csv")
    where = f"{copy.uri}/{listing}"
    table = csv_rows(text_of(copy.read(listing), where), where, delimiter=";")
    _, columns = next(table, (0, []))
    rows = []
    for _, fields in table:
        entry = dict(zip(columns, fields, strict=False))
        if "ClassId" not in entry or "Filename" not in entry:
            raise InputError(f"{where}: no column Filename or ClassId; take the file with labels (GTSRB_Final_Test_GT.zip)")
        name = copy.require(f"Images/{entry['Filename']}")
        rows.append(Row(name=name, image=copy.reader(name), label=whole(entry["ClassId"], f"{where}: ClassId")))
    return Converted(rows=rows)


def _gtsrb_training(copy: Copy) -> Converted:
    placed = [(name, name.split("/")) for name in copy.images() if "/Final_Training/Images/" in f"/{name}"]
    if not placed:
        raise InputError(f"{copy.uri}: no Final_Training/Images in this copy (GTSRB_Final_Training_Images.zip)")
    rows = [Row(name=name, image=copy.reader(name), label=whole(parts[-2], f"{copy.uri}/{name}: class")) for name, parts in placed]
    return Converted(rows=rows)


def _by_folder(copy: Copy, pairs: Sequence[tuple[str, str]], classes: Sequence[str]) -> Converted:
    """Pictures with their class folder; labels follow the classes' order."""
    return Converted(rows=_labelled(copy, pairs, classes), classnames=tuple(folder.replace("_", " ") for folder in classes))


def _labelled(copy: Copy, pairs: Sequence[tuple[str, str]], classes: Sequence[str]) -> list[Row]:
    label_of = {folder: label for label, folder in enumerate(classes)}
    unknown = [folder for _, folder in pairs if folder not in label_of]
    if unknown:
        raise InputError(f"{copy.uri}: a listed picture is of class {unknown[0]!r}, which is not in the copy's list of classes")
    return [Row(name=name, image=copy.reader(name), label=label_of[folder]) for name, folder in pairs]


def _columns(copy: Copy, name: str, lines: Sequence[Sequence[str]], count: int) -> list[tuple[str, ...]]:
    """The first columns of each line; InputError if a line has fewer."""
    short = next((number for number, parts in enumerate(lines, start=1) if len(parts) < count), None)
    if short is not None:
        raise InputError(f"{copy.uri}/{name}: line {short} must have {count} columns, got {shown(' '.join(lines[short - 1]))}")
    return [tuple(parts[:count]) for parts in lines]
