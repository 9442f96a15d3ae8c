"""Sets whose labels are computed from annotations: VOC2007 in both variants, CLEVR's two, KITTI's distance."""

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import numpy as np

from trainer.bounds import MAX_PIXELS, parse_json
from trainer.errors import InputError
from trainer.staging.evaluation_sets.copies import Converted, Copy, Row, Split, encode_png
from trainer.staging.foreign import entry, lines_of, number, parse_xml, shown, text_of
from trainer.staging.images import BadImageError, decoding, loaded

VOC_CLASSES = (
    "aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow",
    "diningtable", "dog", "horse", "motorbike", "person", "pottedplant", "sheep", "sofa", "train", "tvmonitor",
)  # fmt: skip
VOC_NAMES = tuple({"diningtable": "dining table", "pottedplant": "potted plant", "tvmonitor": "tv monitor"}.get(c, c) for c in VOC_CLASSES)
Box = tuple[int, int, int, int]
_CORNERS = ("xmin", "ymin", "xmax", "ymax")
_MAX_SIDE = 1_000_000  # pixels; no picture is as wide


def voc2007(copy: Copy, split: Split = "test") -> Converted:
    """Every annotated object of the test pictures (for training, of trainval's), cropped to its box and stored lossless."""

    def rows() -> Iterator[Row]:
        for picture, objects in _voc_objects(copy, split):
            for count, (label, box) in enumerate(objects):
                name = copy.require(f"JPEGImages/{picture}.jpg")
                yield Row(name=f"{picture}-{count}", image=partial(_cut, copy.reader(name), f"{copy.uri}/{name}", box), label=label)

    return Converted(rows=rows(), classnames=VOC_NAMES)


def voc2007_multilabel(copy: Copy, split: Split = "test") -> Converted:
    """Every test picture with the classes that it shows."""

    def rows() -> Iterator[Row]:
        for picture, objects in _voc_objects(copy, split):
            targets = np.zeros(len(VOC_CLASSES), np.int64)
            targets[[label for label, _ in objects]] = 1
            yield Row(name=picture, image=copy.reader(copy.require(f"JPEGImages/{picture}.jpg")), targets=targets)

    return Converted(rows=rows(), classnames=VOC_NAMES)


def _voc_objects(copy: Copy, split: Split) -> Iterator[tuple[str, list[tuple[int, Box]]]]:
    """Each picture with (class, box) of its objects, difficult ones too, as peers have it."""
    for line in copy.lines(f"ImageSets/Main/{'test' if split == 'test' else 'trainval'}.txt"):
        picture = line.split()[0]
        name = copy.require(f"Annotations/{picture}.xml")
        objects = []
        for found in parse_xml(copy.read(name), f"{copy.uri}/{name}").findall("object"):
            label, box = found.findtext("name", ""), found.find("bndbox")
            if label not in VOC_CLASSES or box is None:
                raise InputError(f"{copy.uri}/{name}: an object of class {label!r}, or without a box")
            left, top, right, bottom = (
                int(number(box.findtext(side, "0"), f"{copy.uri}/{name}: {side}", -_MAX_SIDE, _MAX_SIDE)) for side in _CORNERS
            )
            if left >= right or top >= bottom or (right - left) * (bottom - top) > MAX_PIXELS:
                raise InputError(f"{copy.uri}/{name}: the box {(left, top, right, bottom)} of an object is empty or too large")
            objects.append((VOC_CLASSES.index(label), (left, top, right, bottom)))
        yield picture, objects


def _cut(read: Callable[[], bytes], name: str, box: Box) -> bytes:
    try:
        with decoding(read()) as image:
            return encode_png(np.asarray(loaded(image, "RGB").crop(box)))
    except BadImageError as error:
        raise InputError(f"{name}: not a picture, or cut short: {error}") from error


def clevr_count(copy: Copy, split: Split = "test") -> Converted:
    """Number of objects, three to ten, as VTAB's count_all on the validation pictures; CLEVR's training pictures train probes."""
    names = ("three", "four", "five", "six", "seven", "eight", "nine", "ten")
    return Converted(rows=_clevr(copy, split, lambda objects, where: len(objects) - 3, len(names)), classnames=names)


def clevr_dist(copy: Copy, split: Split = "test") -> Converted:
    """How near the closest object is, in VTAB's six bands of camera distance; names come from the prompts."""
    bands = np.array([8.0, 8.5, 9.0, 9.5, 10.0])

    def label(objects: list[Any], where: str) -> int:
        found = [entry(thing, "pixel_coords", list, f"{where}: objects") for thing in objects]
        distances = [number(coordinates[2] if len(coordinates) > 2 else None, f"{where}: pixel_coords") for coordinates in found]
        if not distances:
            raise InputError(f"{where}: has no objects")
        return int(np.searchsorted(bands, min(distances), side="left"))

    return Converted(rows=_clevr(copy, split, label, len(bands) + 1))


def _clevr(copy: Copy, split: Split, label: Callable[[list[Any], str], int], num_classes: int) -> Iterator[Row]:
    part = "val" if split == "test" else "train"
    file = copy.require(f"scenes/CLEVR_{part}_scenes.json")
    source = f"{copy.uri}/{file}"
    for count, scene in enumerate(entry(parse_json(copy.read(file), source), "scenes", list, source)):
        where = f"{source}: scenes[{count}]"
        picture, objects = entry(scene, "image_filename", str, where), entry(scene, "objects", list, where)
        value = label(objects, where)
        if not 0 <= value < num_classes:
            raise InputError(f"{copy.uri}: scene {picture} has {len(objects)} objects, outside the set's classes")
        name = copy.require(f"images/{part}/{picture}")
        yield Row(name=name, image=copy.reader(name), label=value)


def kitti_distance(copy: Copy, split: Split = "test") -> Converted:
    """How far the nearest vehicle is, in VTAB's bands: below 8 m, below 20 m, farther, none.

    VTAB draws its 711 test pictures from KITTI's labelled ones; name them by --only, else all labelled ones are taken.
    """
    bands = np.array([8.0, 20.0, 999.0])

    def rows() -> Iterator[Row]:
        for name in copy.names:
            if "/label_2/" in f"/{name}" and name.endswith(".txt"):
                where = f"{copy.uri}/{name}"
                objects = [line.split() for line in lines_of(text_of(copy.read(name), where))]
                ahead = [_distance(parts, where) for parts in objects if parts and parts[0] in ("Car", "Van", "Truck")]
                picture = copy.require(f"image_2/{name.rsplit('/', 1)[-1].removesuffix('.txt')}.png")
                yield Row(name=picture, image=copy.reader(picture), label=int(np.searchsorted(bands, min([*ahead, 1000.0]), side="left")))

    return Converted(rows=rows())


def _distance(parts: list[str], where: str) -> float:
    if len(parts) < 14:
        raise InputError(f"{where}: a line must have 15 columns, got {shown(' '.join(parts))}")
    return number(parts[13], f"{where}: distance")
