"""Sets whose labels are computed from annotations: VOC2007 in both variants, CLEVR's two, KITTI's distance."""

import io
import json
import xml.etree.ElementTree as ElementTree
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import numpy as np
from PIL import Image

from trainer.errors import InputError
from trainer.staging.evaluation_sets.copies import Converted, Copy, Row, encode_png

VOC_CLASSES = (
    "aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow",
    "diningtable", "dog", "horse", "motorbike", "person", "pottedplant", "sheep", "sofa", "train", "tvmonitor",
)  # fmt: skip
VOC_NAMES = tuple({"diningtable": "dining table", "pottedplant": "potted plant", "tvmonitor": "tv monitor"}.get(c, c) for c in VOC_CLASSES)
Box = tuple[int, int, int, int]


def voc2007(copy: Copy) -> Converted:
    """Every annotated object of the test pictures, cut out along its box and kept lossless."""

    def rows() -> Iterator[Row]:
        for picture, objects in _voc_objects(copy):
            for number, (label, box) in enumerate(objects):
                read = copy.reader(copy.require(f"JPEGImages/{picture}.jpg"))
                yield Row(name=f"{picture}-{number}", image=partial(_cut, read, box), label=label)

    return Converted(rows=rows(), classnames=VOC_NAMES)


def voc2007_multilabel(copy: Copy) -> Converted:
    """Every test picture with the classes that it shows."""

    def rows() -> Iterator[Row]:
        for picture, objects in _voc_objects(copy):
            targets = np.zeros(len(VOC_CLASSES), np.int64)
            targets[[label for label, _ in objects]] = 1
            yield Row(name=picture, image=copy.reader(copy.require(f"JPEGImages/{picture}.jpg")), targets=targets)

    return Converted(rows=rows(), classnames=VOC_NAMES)


def _voc_objects(copy: Copy) -> Iterator[tuple[str, list[tuple[int, Box]]]]:
    """Each test picture with (class, box) of its objects, difficult ones too, as peers have it."""
    for line in copy.lines("ImageSets/Main/test.txt"):
        picture = line.split()[0]
        name = copy.require(f"Annotations/{picture}.xml")
        objects = []
        for found in ElementTree.fromstring(copy.read(name)).findall("object"):
            label, box = found.findtext("name", ""), found.find("bndbox")
            if label not in VOC_CLASSES or box is None:
                raise InputError(f"{copy.uri}/{name}: an object of class {label!r}, or without a box")
            corners = [int(float(box.findtext(side, "0"))) for side in ("xmin", "ymin", "xmax", "ymax")]
            objects.append((VOC_CLASSES.index(label), (corners[0], corners[1], corners[2], corners[3])))
        yield picture, objects


def _cut(read: Callable[[], bytes], box: Box) -> bytes:
    with Image.open(io.BytesIO(read())) as image:
        return encode_png(np.asarray(image.convert("RGB").crop(box)))


def clevr_count(copy: Copy) -> Converted:
    """How many objects: three to ten, as VTAB's count_all on the validation pictures."""
    names = ("three", "four", "five", "six", "seven", "eight", "nine", "ten")
    return Converted(rows=_clevr(copy, lambda objects: len(objects) - 3, len(names)), classnames=names)


def clevr_dist(copy: Copy) -> Converted:
    """How near the closest object is, in VTAB's six bands of camera distance; names come from the prompts."""
    bands = np.array([8.0, 8.5, 9.0, 9.5, 10.0])

    def label(objects: list[dict[str, Any]]) -> int:
        return int(np.searchsorted(bands, min(thing["pixel_coords"][2] for thing in objects), side="left"))

    return Converted(rows=_clevr(copy, label, len(bands) + 1))


def _clevr(copy: Copy, label: Callable[[list[dict[str, Any]]], int], num_classes: int) -> Iterator[Row]:
    for scene in json.loads(copy.read(copy.require("scenes/CLEVR_val_scenes.json")))["scenes"]:
        value = label(scene["objects"])
        if not 0 <= value < num_classes:
            raise InputError(f"{copy.uri}: scene {scene['image_filename']} has {len(scene['objects'])} objects, outside the set's classes")
        name = copy.require(f"images/val/{scene['image_filename']}")
        yield Row(name=name, image=copy.reader(name), label=value)


def kitti_distance(copy: Copy) -> Converted:
    """How far the nearest vehicle is, in VTAB's bands: below 8 m, below 20 m, farther, none.

    VTAB draws its 711 test pictures from KITTI's labelled ones; name them by --only, else all labelled ones are taken.
    """
    bands = np.array([8.0, 20.0, 999.0])

    def rows() -> Iterator[Row]:
        for name in copy.names:
            if "/label_2/" in f"/{name}" and name.endswith(".txt"):
                objects = [line.split() for line in copy.read(name).decode().splitlines()]
                ahead = [float(parts[13]) for parts in objects if parts and parts[0] in ("Car", "Van", "Truck")]
                picture = copy.require(f"image_2/{name.rsplit('/', 1)[-1].removesuffix('.txt')}.png")
                yield Row(name=picture, image=copy.reader(picture), label=int(np.searchsorted(bands, min([*ahead, 1000.0]), side="left")))

    return Converted(rows=rows())
