"""Local copies, in the forms in which the sets are published, become sets that evaluation reads."""

import gzip
import io
import json
import struct
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from scipy.io import savemat

from tests.evaluation import build
from trainer.__main__ import main
from trainer.configs.evaluation_sets import SETS, SIZE_SOURCES, find_set
from trainer.errors import InputError
from trainer.evaluation.read_sets import describe_set, read_set
from trainer.staging.evaluation_sets import prompts as prompts_module
from trainer.staging.evaluation_sets.stage import CONVERTERS, stage_evaluation
from trainer.storage.manifest import require_manifest


@pytest.fixture
def copy(tmp_path):
    """A folder for a copy, with a way to write files into it."""
    folder = tmp_path / "copy"
    folder.mkdir()

    def write(name, data):
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data.encode() if isinstance(data, str) else data)

    write.folder = folder
    return write


@pytest.fixture
def staged(tmp_path, copy):
    """Stages the copy and reads it back: (set, items)."""

    def run(name, **arguments):
        uri, identity = stage_evaluation(name=name, root=str(tmp_path / "root"), source=str(copy.folder), **arguments)
        described = describe_set(uri, identity)
        return described, list(read_set(described))

    return run


@pytest.fixture
def few_classes(monkeypatch):
    """Tests need not bring a thousand classes: the table's count is lowered."""
    import dataclasses

    from trainer.configs import evaluation_sets
    from trainer.staging.evaluation_sets import stage

    def lower(name, classes):
        changed = dataclasses.replace(find_set(name), classes=classes)
        monkeypatch.setattr(stage, "find_set", lambda asked: changed if asked == name else evaluation_sets.find_set(asked))

    return lower


def pixels(item):
    return np.asarray(Image.open(io.BytesIO(item.image)))


def test_the_table_lists_the_29_and_both_variants_of_voc():
    """29 count; VOC2007's second variant and the two retrieval sets are listed beside them."""
    counted = [known for known in SETS if known.counted]

    assert len(counted) == 29
    assert len({known.name for known in SETS}) == len(SETS) == 32
    assert {known.name for known in SETS if not known.counted} == {"voc2007-multilabel", "coco-retrieval", "flickr30k-retrieval"}
    assert CONVERTERS.keys() <= {known.name for known in SETS}


def test_a_misspelt_set_is_refused_with_the_nearest_names():
    """One line that helps."""
    with pytest.raises(InputError, match=r"no evaluation set is called 'imagenet1k': imagenet-1k"):
        find_set("imagenet1k")


def test_the_command_line_prints_the_table(capsys):
    """`stage eval list` needs no source."""
    assert main(["stage", "eval", "list"]) == 0
    printed = capsys.readouterr().out
    assert "birdsnap" in printed
    assert all(f"{name}: {where}" in printed for name, where in SIZE_SOURCES.items())


def test_every_size_says_where_it_was_read():
    """No figure of the table is from memory."""
    assert {known.size_from for known in SETS} == set(SIZE_SOURCES)


def test_the_command_line_names_what_is_missing(capsys):
    """Exit 2 and one line where --source was left out."""
    assert main(["stage", "eval", "mnist", "--root", "r"]) == 2
    assert "--source must be given" in capsys.readouterr().err


def test_cifar_10s_binary_records_become_pictures(copy, staged):
    """A label byte, then red, green and blue planes row by row."""
    planes = np.arange(3 * 32 * 32, dtype=np.uint16).astype(np.uint8)
    copy("cifar-10-batches-bin/test_batch.bin", b"\x07" + planes.tobytes() + b"\x00" + bytes(3072))
    copy("cifar-10-batches-bin/batches.meta.txt", "\n".join(f"class{k}" for k in range(10)) + "\n\n")
    described, items = staged("cifar-10")

    assert [item.label for item in items] == [7, 0]
    assert pixels(items[0]).tolist() == planes.reshape(3, 32, 32).transpose(1, 2, 0).tolist()
    assert described.classnames[7] == "class7"
    assert described.templates == prompts_module.PLAIN
    assert describe_set(described.uri).main_metric == "acc1"


def test_cifar_100_takes_the_fine_label(copy, staged):
    """Two label bytes a record: coarse, fine."""
    copy("cifar-100-binary/test.bin", b"\x05\x63" + bytes(3072))
    copy("cifar-100-binary/fine_label_names.txt", "\n".join(f"fine_{k}" for k in range(100)))
    described, items = staged("cifar-100")

    assert items[0].label == 99
    assert described.classnames[99] == "fine 99"


def test_a_pickled_cifar_is_not_opened(copy, staged):
    """Pickles run code: the line says which archive to take instead."""
    copy("cifar-10-batches-py/test_batch", b"\x80\x02")

    with pytest.raises(InputError, match="a pickle, which is not opened; take the binary version"):
        staged("cifar-10")


def test_a_binary_file_that_was_cut_short_is_refused(copy, staged):
    """Whole records only."""
    copy("test_batch.bin", bytes(3072))
    copy("batches.meta.txt", "a")

    with pytest.raises(InputError, match="not whole records of 3073"):
        staged("cifar-10")


def test_mnist_is_read_from_idx_gzipped_or_not(copy, staged):
    """Big-endian header, then bytes."""
    digit = np.arange(28 * 28, dtype=np.uint16).astype(np.uint8).reshape(28, 28)
    copy("t10k-images-idx3-ubyte.gz", gzip.compress(b"\0\0\x08\x03" + struct.pack(">3I", 1, 28, 28) + digit.tobytes()))
    copy("t10k-labels-idx1-ubyte", b"\0\0\x08\x01" + struct.pack(">I", 1) + b"\x04")
    _, items = staged("mnist")

    assert items[0].label == 4
    assert pixels(items[0]).tolist() == digit.tolist()


def test_stl_10_stores_its_pictures_column_by_column(copy, staged):
    """Labels count from 1, planes are transposed."""
    picture = np.random.default_rng(0).integers(0, 256, (96, 96, 3), np.uint8)
    copy("test_X.bin", picture.transpose(2, 1, 0).tobytes())
    copy("test_y.bin", b"\x0a")
    copy("class_names.txt", "\n".join(f"thing{k}" for k in range(10)))
    _, items = staged("stl-10")

    assert items[0].label == 9
    assert pixels(items[0]).tolist() == picture.tolist()


def test_svhns_label_ten_is_the_digit_zero(copy, staged):
    """X is (32, 32, 3, N)."""
    picture = np.random.default_rng(0).integers(0, 256, (32, 32, 3, 2), np.uint8)
    savemat(copy.folder / "test_32x32.mat", {"X": picture, "y": np.array([[10], [3]], np.uint8)})
    described, items = staged("svhn")

    assert [item.label for item in items] == [0, 3]
    assert pixels(items[1]).tolist() == picture[..., 1].tolist()
    assert described.classnames[0] == "zero"


def test_class_folders_of_the_test_split_keep_their_bytes(copy, staged, few_classes):
    """JPEG and PNG as they are; another format is the same pixels as PNG; pictures of other splits are left out."""
    few_classes("rendered-sst2", 2)
    jpeg = build.picture(1, suffix="jpg")
    bmp = io.BytesIO()
    Image.open(io.BytesIO(build.picture(2))).save(bmp, "BMP")
    copy("top/test/positive/a.jpg", jpeg)
    copy("top/test/negative/b.bmp", bmp.getvalue())
    copy("top/train/negative/c.jpg", jpeg)
    described, items = staged("rendered-sst2")

    assert described.classnames == ("negative", "positive")
    assert [item.label for item in items] == [0, 1]
    assert items[1].image == jpeg
    assert pixels(items[0]).tolist() == np.asarray(Image.open(io.BytesIO(build.picture(2)))).tolist()


def test_imagenet_a_takes_the_names_of_its_200_from_the_mapping(copy, staged, few_classes):
    """WordNet ids are folders; without the mapping beside them the copy is refused."""
    few_classes("imagenet-a", 2)
    copy("n01440764/x.jpg", build.picture(1, suffix="jpg"))
    copy("n01443537/y.jpg", build.picture(2, suffix="jpg"))
    with pytest.raises(InputError, match=r"put ImageNet's LOC_synset_mapping\.txt next to"):
        staged("imagenet-a")
    copy("LOC_synset_mapping.txt", "n01440764 tench, Tinca tinca\nn01443537 goldfish, Carassius auratus\nn9 other\n")

    assert staged("imagenet-a")[0].classnames == ("tench", "goldfish")


def test_class_names_are_written_one_a_line(copy, staged, few_classes):
    """White space of any kind in a folder's name becomes a blank; what can be read back as it is stays as it is."""
    few_classes("eurosat", 3)
    for number, name in enumerate(["a\u2028b\n", "c  d", "e\x85\tf"]):
        copy(f"{name}/{number}.jpg", build.picture(number, suffix="jpg"))
    described, items = staged("eurosat")
    assert described.classnames == ("a b", "c  d", "e f")
    assert tuple((Path(described.uri) / "classnames.txt").read_text().splitlines()) == described.classnames
    assert len(items) == 3


def test_a_copy_of_too_few_classes_is_refused(copy, staged):
    """ImageNet has a thousand."""
    copy("n01440764/x.jpg", build.picture(1, suffix="jpg"))

    with pytest.raises(InputError, match="1 class folders, but ImageNet has 1000"):
        staged("imagenet-1k")


@pytest.mark.parametrize(
    ("name", "classes", "files", "expected"),
    [
        ("food-101", 2, {"food/meta/test.txt": "pie/1\nsoup/2", "food/images/pie/1.jpg": 1, "food/images/soup/2.jpg": 2}, ["pie", "soup"]),
        ("dtd", 2, {"labels/test1.txt": "a/a1.jpg\nb/b1.jpg", "images/a/a1.jpg": 1, "images/b/b1.jpg": 2, "images/b/2.jpg": 3}, ["a", "b"]),
        ("sun397", 2, {"ClassName.txt": "/a/abbey\n/b/bay/wide_open", "Testing_01.txt": "/a/abbey/s1.jpg\n/b/bay/wide_open/s2.jpg",
                       "a/abbey/s1.jpg": 1, "b/bay/wide_open/s2.jpg": 2}, ["abbey", "bay wide open"]),
        ("pets", 2, {"annotations/test.txt": "Abyssinian_1 1 1 1\nyorkshire_terrier_2 2 2 9", "images/Abyssinian_1.jpg": 1,
                     "images/yorkshire_terrier_2.jpg": 2}, ["Abyssinian", "Yorkshire Terrier"]),
        ("aircraft", 2, {"data/images_variant_test.txt": "001 707-320\n002 A 300", "data/variants.txt": "707-320\nA 300",
                         "data/images/001.jpg": 1, "data/images/002.jpg": 2}, ["707-320", "A 300"]),
        ("birdsnap", 2, {"test_images.txt": "path\nOwl/1.jpg\nRed_Kite/2.jpg\nOwl/gone.jpg", "images/Owl/1.jpg": 1,
                         "images/Red_Kite/2.jpg": 2}, ["Owl", "Red Kite"]),
    ],
)  # fmt: skip
def test_lists_name_the_test_pictures(copy, staged, few_classes, name, classes, files, expected):
    """Each form of list gives its pictures, in order, with the labels of the copy's own classes."""
    few_classes(name, classes)
    for path, content in files.items():
        copy(path, build.picture(content, suffix="jpg") if isinstance(content, int) else content)
    described, items = staged(name)

    assert list(described.classnames) == expected
    assert [item.label for item in items] == [0, 1]
    assert items[1].image == build.picture(2, suffix="jpg")


def test_flowers_and_gtsrb_need_names_from_the_prompts(copy, staged, tmp_path, few_classes):
    """The copies number their classes; CLIP_benchmark's files name them."""
    few_classes("gtsrb", 2)
    copy("GT-final_test.csv", "Filename;Width;ClassId\n0.ppm;20;1\n")
    ppm = io.BytesIO()
    Image.open(io.BytesIO(build.picture(2))).save(ppm, "PPM")
    copy("Final_Test/Images/0.ppm", ppm.getvalue())
    with pytest.raises(InputError, match="its copy names no classes; give --prompts"):
        staged("gtsrb")
    (tmp_path / "prompts").mkdir()
    (tmp_path / "prompts" / "en_classnames.json").write_text(json.dumps({"gtsrb": ["stop", "go"]}))
    (tmp_path / "prompts" / "en_zeroshot_classification_templates.json").write_text(json.dumps({"gtsrb": ["a sign: {c}"]}))
    described, items = staged("gtsrb", prompts=str(tmp_path / "prompts"))

    assert (described.classnames, described.templates, items[0].label) == (("stop", "go"), ("a sign: {c}",), 1)
    assert require_manifest(described.uri).facts["prompts"] == str(tmp_path / "prompts")


VOC = """<annotation><object><name>dog</name><bndbox><xmin>2</xmin><ymin>3</ymin><xmax>12</xmax><ymax>9</ymax></bndbox></object>
<object><name>person</name><bndbox><xmin>0</xmin><ymin>0</ymin><xmax>5</xmax><ymax>20</ymax></bndbox></object></annotation>"""


def test_voc_is_cut_into_objects_or_kept_whole_with_several_labels(copy, staged):
    """Both variants from one copy: two cut-outs, or one picture of two classes."""
    copy("VOCdevkit/VOC2007/ImageSets/Main/test.txt", "000001\n")
    copy("VOCdevkit/VOC2007/Annotations/000001.xml", VOC)
    copy("VOCdevkit/VOC2007/JPEGImages/000001.jpg", build.picture(1, suffix="jpg"))
    cut, objects = staged("voc2007")
    whole, pictures = staged("voc2007-multilabel")

    assert [cut.classnames[item.label] for item in objects] == ["dog", "person"]
    full = np.asarray(Image.open(io.BytesIO(build.picture(1, suffix="jpg"))))
    assert pixels(objects[0]).tolist() == full[3:9, 2:12].tolist()
    assert [whole.classnames[c] for c in np.flatnonzero(pictures[0].targets)] == ["dog", "person"]
    assert whole.main_metric == "mean_average_precision"


def test_clevr_counts_objects_and_bands_the_nearest(copy, staged, tmp_path):
    """Four objects are class 1; a nearest one at 8.2 is in the second band."""
    (tmp_path / "prompts").mkdir()
    names = {"clevr_closest_object_distance": ["very nearby", "nearby", "near", "", "distant", "very distant"]}
    (tmp_path / "prompts" / "en_classnames.json").write_text(json.dumps(names))
    templates = {"clevr_closest_object_distance": ["{c} shapes."]}
    (tmp_path / "prompts" / "en_zeroshot_classification_templates.json").write_text(json.dumps(templates))
    things = [{"pixel_coords": [0, 0, depth]} for depth in (9.7, 8.2, 12.0, 11.0)]
    copy("CLEVR_v1.0/scenes/CLEVR_val_scenes.json", json.dumps({"scenes": [{"image_filename": "v0.png", "objects": things}]}))
    copy("CLEVR_v1.0/images/val/v0.png", build.picture(1))
    counted, near = staged("clevr-count"), staged("clevr-dist", prompts=str(tmp_path / "prompts"))

    assert counted[0].classnames[counted[1][0].label] == "four"
    assert near[1][0].label == 1
    assert near[0].classnames[3] == ""


def test_kitti_bands_the_nearest_vehicle(copy, staged, tmp_path):
    """A car at 15 m is in the second band, a lone cyclist is none."""
    (tmp_path / "prompts").mkdir()
    (tmp_path / "prompts" / "en_classnames.json").write_text(json.dumps({"kitti_closest_vehicle_distance": list("abcd")}))
    (tmp_path / "prompts" / "en_zeroshot_classification_templates.json").write_text(json.dumps({"kitti_closest_vehicle_distance": ["{c}"]}))
    line = "{} 0 0 0 0 0 0 0 1 1 1 0 0 {} 0"
    copy("training/label_2/000000.txt", f"{line.format('Car', 15.0)}\n{line.format('Van', 40.0)}\n")
    copy("training/label_2/000001.txt", f"{line.format('Cyclist', 3.0)}\n")
    copy("training/image_2/000000.png", build.picture(1))
    copy("training/image_2/000001.png", build.picture(2))

    assert [item.label for item in staged("kitti-distance", prompts=str(tmp_path / "prompts"))[1]] == [1, 3]


def test_karpathys_file_gives_the_test_pictures_with_all_captions(copy, staged):
    """Only the split test; newlines inside a caption do not make two."""
    entries = [
        {"split": "test", "filename": "a.jpg", "sentences": [{"raw": "one\nline"}, {"raw": "two"}]},
        {"split": "train", "filename": "b.jpg", "sentences": [{"raw": "no"}]},
    ]
    copy("dataset_flickr30k.json", json.dumps({"images": entries}))
    copy("images/a.jpg", build.picture(1, suffix="jpg"))
    described, items = staged("flickr30k-retrieval")

    assert [item.captions for item in items] == [("one line", "two")]
    assert described.task == "zeroshot_retrieval"


def test_cocos_own_captions_are_narrowed_down_by_a_list(copy, staged, tmp_path):
    """All pictures of the file, or those that --only names; an unknown name is an error."""
    images = [{"id": 2, "file_name": "b.jpg"}, {"id": 1, "file_name": "a.jpg"}]
    annotations = [{"id": 9, "image_id": 1, "caption": "first"}, {"id": 8, "image_id": 2, "caption": "second"}]
    copy("captions_val2014.json", json.dumps({"images": images, "annotations": annotations}))
    copy("a.jpg", build.picture(1, suffix="jpg"))
    copy("b.jpg", build.picture(2, suffix="jpg"))
    only = tmp_path / "only.txt"
    only.write_text("b\n")

    assert [item.captions for item in staged("coco-retrieval")[1]] == [("first",), ("second",)]
    assert [item.captions for item in staged("coco-retrieval", only=str(only))[1]] == [("second",)]
    only.write_text("b\nz\n")
    with pytest.raises(InputError, match="names 1 pictures that are not in the copy, such as 'z'"):
        staged("coco-retrieval", only=str(only))


def test_clip_benchmarks_own_layout_is_staged_with_its_prompts(tmp_path, few_classes):
    """A copy of a set in the layout (any of the 29 is published so) keeps names, templates and labels."""
    few_classes("eurosat", 3)
    source, manifest = build.classification_set(str(tmp_path / "theirs"))
    Path(source, "manifest.json").unlink()
    uri, identity = stage_evaluation(name="eurosat", root=str(tmp_path / "root"), source=source)
    described = describe_set(uri, identity)

    assert (described.classnames, described.templates) == (build.CLASSES, build.TEMPLATES)
    assert [item.label for item in read_set(described)] == list(build.LABELS)
    assert manifest.rows["written"] == described.num_items


def test_a_truncated_picture_is_named(copy, staged, few_classes):
    """Half a PNG in a published copy means a broken download."""
    few_classes("eurosat", 1)
    copy("Forest/f.png", build.picture(1)[:200])

    with pytest.raises(InputError, match=r"Forest/f\.png: not a picture, or truncated"):
        staged("eurosat")


def test_a_staged_set_is_reused_and_a_changed_copy_is_not(copy, staged, few_classes):
    """Equal bytes, equal identity; another picture, another set."""
    few_classes("eurosat", 1)
    copy("Forest/f.png", build.picture(1))
    first = staged("eurosat")[0]
    again = staged("eurosat")[0]
    copy("Forest/f.png", build.picture(2))
    changed = staged("eurosat")[0]

    assert first.identity == again.identity
    assert first.uri != changed.uri
