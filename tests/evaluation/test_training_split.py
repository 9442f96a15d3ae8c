"""Training pictures of evaluation sets: staged where a copy has them, and read as they are."""

import json
import re
import struct
from pathlib import Path

import numpy as np
import pytest
from scipy.io import savemat

from tests.evaluation import build
from tests.evaluation.test_evaluation_sets import VOC, copy, few_classes  # noqa: F401
from trainer.config import DataConfig
from trainer.configs.evaluation_sets import find_set
from trainer.errors import InputError
from trainer.evaluation.read_sets import describe_set, read_set, training_part
from trainer.staging.evaluation_sets.stage import stage_evaluation
from trainer.storage.outlines import outline


def test_the_training_split_of_a_copy_in_the_layout_is_staged_for_probes(tmp_path, few_classes):  # noqa: F811
    """Where it is asked for: staged or read as it is, the set has the same training pictures; without the flag it is the set as before."""
    few_classes("eurosat", 3)
    source, _ = build.classification_set(str(tmp_path / "theirs"), train=[2, 0, 1, 1])
    Path(source, "manifest.json").unlink()
    Path(source, "train", "nshards.txt").write_text("1")
    uri, identity = stage_evaluation(name="eurosat", root=str(tmp_path / "root"), source=source, train=True)
    plain, _ = stage_evaluation(name="eurosat", root=str(tmp_path / "root"), source=source)

    for place in (uri, source):
        described = describe_set(place)
        training = training_part(described, DataConfig())
        assert [item.label for item in read_set(described)] == list(build.LABELS)
        assert [item.label for item in read_set(training)] == [2, 0, 1, 1]
        assert training.num_items == (4 if place == uri else 0)
    assert describe_set(uri).identity == identity
    assert Path(uri, "train", "nshards.txt").read_text() == "1"
    assert training_part(describe_set(plain), DataConfig()) is None
    assert outline(DataConfig(uri=uri)).trains
    assert outline(DataConfig(uri=source)).trains
    assert not outline(DataConfig(uri=plain)).trains
    Path(source, "train", "nshards.txt").unlink()
    with pytest.raises(InputError, match=r"--train takes train/nshards\.txt beside test/nshards\.txt, but there is none here"):
        stage_evaluation(name="eurosat", root=str(tmp_path / "root"), source=source, train=True)


TEST, TRAIN = build.picture(1, suffix="jpg"), build.picture(2, suffix="jpg")
IDX3, IDX1 = b"\0\0\x08\x03" + struct.pack(">3I", 1, 28, 28) + bytes(28 * 28), b"\0\0\x08\x01" + struct.pack(">I", 1)
NAMES = "\n".join(f"class {number}" for number in range(10))
CAR = {"test_annos_withlabels": 1, "train_annos": 2}


def scenes(count: int) -> str:
    """CLEVR's JSON of one picture with so many objects."""
    return json.dumps({"scenes": [{"image_filename": "s.png", "objects": [{"pixel_coords": [0, 0, 9.7]}] * count}]})


def digits(label: int) -> dict[str, np.ndarray]:
    """SVHN's two variables."""
    return {"X": np.zeros((32, 32, 3, 2), np.uint8), "y": np.array([[label], [10]], np.uint8)}


COPIES = {
    "cifar-10": {"test_batch.bin": b"\1" + bytes(3072), "batches.meta.txt": NAMES}
    | {f"data_batch_{number}.bin": bytes([number]) + bytes(3072) for number in range(1, 6)},
    "cifar-100": {"test.bin": b"\0\1" + bytes(3072), "train.bin": b"\0\2" + bytes(3072), "fine_label_names.txt": NAMES},
    "mnist": {"t10k-images-idx3-ubyte": IDX3, "t10k-labels-idx1-ubyte": IDX1 + b"\1"}
    | {"train-images-idx3-ubyte": IDX3, "train-labels-idx1-ubyte": IDX1 + b"\2"},
    "stl-10": {"test_X.bin": bytes(27648), "test_y.bin": b"\2", "class_names.txt": NAMES}
    | {"train_X.bin": bytes(27648), "train_y.bin": b"\3"},
    "svhn": {"test_32x32.mat": digits(1), "train_32x32.mat": digits(2)},
    "food-101": {"meta/test.txt": "a/1\nb/1", "meta/train.txt": "b/2", "images/a/1.jpg": TEST, "images/b/1.jpg": TEST}
    | {"images/b/2.jpg": TRAIN},
    "dtd": {"labels/test1.txt": "a/1.jpg\nb/1.jpg", "labels/train1.txt": "b/2.jpg", "labels/val1.txt": "a/3.jpg"}
    | {"images/a/1.jpg": TEST, "images/b/1.jpg": TEST, "images/b/2.jpg": TRAIN, "images/a/3.jpg": TRAIN},
    "sun397": {"ClassName.txt": "/a/abbey\n/b/bay", "Testing_01.txt": "/a/abbey/1.jpg", "Training_01.txt": "/b/bay/2.jpg"}
    | {"a/abbey/1.jpg": TEST, "b/bay/2.jpg": TRAIN},
    "pets": {"annotations/test.txt": "cat_1 1 1 1\ndog_1 2 2 1", "annotations/trainval.txt": "# comment\ndog_2 2 2 1"}
    | {"images/cat_1.jpg": TEST, "images/dog_1.jpg": TEST, "images/dog_2.jpg": TRAIN},
    "aircraft": {"images_variant_test.txt": "001 A", "images_variant_trainval.txt": "002 B", "variants.txt": "A\nB"}
    | {"images/001.jpg": TEST, "images/002.jpg": TRAIN},
    "birdsnap": {"test_images.txt": "path\nKite/1.jpg\nOwl/1.jpg", "images/Kite/1.jpg": TEST, "images/Owl/1.jpg": TEST}
    | {"images/Owl/2.jpg": TRAIN},
    "flowers-102": {"imagelabels.mat": {"labels": np.array([[1, 2, 2, 1]])}}
    | {"setid.mat": {"tstid": np.array([[1]]), "trnid": np.array([[3]]), "valid": np.array([[4]])}}
    | {f"jpg/image_0000{number}.jpg": TEST if number == 1 else TRAIN for number in (1, 3, 4)},
    "cars": {"cars_meta.mat": {"class_names": np.array(["A", "B"], object)}, "cars_test/1.jpg": TEST, "cars_train/1.jpg": TRAIN}
    | {f"cars_{part}.mat": {"annotations": np.array([{"fname": "1.jpg", "class": label}])} for part, label in CAR.items()},
    "gtsrb": {"GT-final_test.csv": "Filename;ClassId\n0.jpg;0\n", "Final_Test/Images/0.jpg": TEST}
    | {"Final_Training/Images/00001/0.jpg": TRAIN},
    "voc2007": {"ImageSets/Main/test.txt": "1", "ImageSets/Main/trainval.txt": "2", "JPEGImages/1.jpg": TEST, "JPEGImages/2.jpg": TRAIN}
    | {"Annotations/1.xml": VOC, "Annotations/2.xml": VOC.replace("dog", "cat")},
    "clevr-count": {"scenes/CLEVR_val_scenes.json": scenes(4), "scenes/CLEVR_train_scenes.json": scenes(6)}
    | {"images/val/s.png": TEST, "images/train/s.png": TRAIN},
    "imagenet-1k": {f"val/n{number:08d}/1.jpg": TEST for number in range(1000)} | {"train/n00000003/2.jpg": TRAIN},
    "pcam": {"test/no/1.jpg": TEST, "test/yes/1.jpg": TEST, "train/yes/2.jpg": TRAIN},
    "eurosat": {"Forest/1.jpg": TEST, "River/10.jpg": TEST, "River/2.jpg": TRAIN},
    "kitti-distance": {f"training/label_2/{n}.txt": f"Car 0 0 0 0 0 0 0 1 1 1 0 0 {far} 0\n" for n, far in ((1, 5), (2, 15))}
    | {"training/image_2/1.png": TEST, "training/image_2/2.png": TRAIN},
}
"""Of each form in which authors ship a set, the smallest copy with both splits: text, bytes, or the variables of a .mat file."""
LEARNED = {"cifar-10": [1, 2, 3, 4, 5], "svhn": [2, 0], "dtd": [1, 0], "flowers-102": [1, 0], "voc2007": [7, 14]}
LEARNED |= {"stl-10": [2], "clevr-count": [3], "imagenet-1k": [3], "cifar-100": [2], "mnist": [2]}
"""Labels of the training pictures, where they are not [1]."""
CLASSES = {"clevr-count": 8, "voc2007": 20, "imagenet-1k": 1000, "kitti-distance": 4}
CLASSES |= dict.fromkeys(("cifar-10", "cifar-100", "mnist", "stl-10", "svhn"), 10)
"""Classes of the copy, where they are not 2."""
ONE_PIECE = {"eurosat": "Forest/1.jpg\nRiver/10.jpg", "kitti-distance": "1"}
"""Sets without a split, with the list of their test pictures."""


@pytest.mark.parametrize("name", COPIES)
def test_authors_files_give_their_training_pictures(name, tmp_path, copy, few_classes):  # noqa: F811
    """By the classes of the test pictures, and apart from those."""
    for path, content in COPIES[name].items():
        if isinstance(content, dict):
            savemat(copy.folder / path, content)
        else:
            copy(path, content)
    key, classes = find_set(name).prompts, CLASSES.get(name, 2)
    few_classes(name, classes)
    (tmp_path / "en_classnames.json").write_text(json.dumps({key: [f"class {number}" for number in range(classes)]}))
    (tmp_path / "en_zeroshot_classification_templates.json").write_text(json.dumps({key: ["{c}"]}))
    (tmp_path / "only.txt").write_text(ONE_PIECE.get(name, ""))
    asked = {"source": str(copy.folder), "prompts": str(tmp_path), "train": True}
    asked |= {"only": str(tmp_path / "only.txt")} if name in ONE_PIECE else {}
    uri, identity = stage_evaluation(name=name, root=str(tmp_path / "root"), **asked)

    tested = describe_set(uri, identity)
    learned = list(read_set(training_part(tested, DataConfig())))
    assert [item.label for item in learned] == LEARNED.get(name, [1])
    if TRAIN in COPIES[name].values() and name != "voc2007":  # cut out of its pictures
        assert {item.image for item in learned} == {TRAIN}
        assert {item.image for item in read_set(tested)} == {TEST}


REFUSED = {
    "imagenet-a": ({"n01440764/1.jpg": TEST}, "imagenet-a has no training split: it tests what was learned on ImageNet"),
    "flickr30k-retrieval": (
        {"d.json": '{"images": [{"sentences": []}]}'},
        "flickr30k-retrieval does not have exactly one class per picture",
    ),
    "voc2007-multilabel": ({"ImageSets/Main/test.txt": "1"}, "voc2007-multilabel does not have exactly one class per picture"),
    "resisc45": ({"a/1.jpg": TEST, "b/1.jpg": TEST}, "resisc45 comes without a split: list its test pictures with --only"),
    "rendered-sst2": ({"test/a/1.jpg": TEST, "test/b/1.jpg": TEST}, "no pictures in class folders below train/"),
    "pcam": ({"test/a/1.jpg": TEST, "test/b/1.jpg": TEST, "train/c/2.jpg": TRAIN}, "belongs to a class that has no test pictures"),
    "mnist": ({"t10k-images-idx3-ubyte": IDX3, "t10k-labels-idx1-ubyte": IDX1 + b"\1"}, "no train-images-idx3-ubyte in this copy"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_a_copy_without_training_pictures_is_refused_by_name(name, tmp_path, copy, few_classes):  # noqa: F811
    """In one line, and no set is sealed."""
    files, line = REFUSED[name]
    for path, content in files.items():
        copy(path, content)
    few_classes(name, {"mnist": 10, "voc2007-multilabel": 20}.get(name, 2))
    with pytest.raises(InputError, match=re.escape(line)):
        stage_evaluation(name=name, root=str(tmp_path / "root"), source=str(copy.folder), train=True)
    assert not list(tmp_path.glob("root/**/manifest.json"))
