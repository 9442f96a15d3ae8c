"""Sets are read as they were staged, and what is wrong with one is named."""

import io
import json
import tarfile
from pathlib import Path

import numpy as np
import pytest

from tests.evaluation import build
from trainer.errors import InputError, RunError
from trainer.evaluation.read_sets import describe_set, read_set, read_triplets
from trainer.storage import read_bytes, write_bytes


@pytest.fixture
def root(tmp_path):
    return str(tmp_path)


def foreign(root, members, nshards=1, classnames="cat\ndog\n", templates="a {c}\n", kind=None):
    """A set as another tool writes it: no manifest."""
    folder = Path(root, "foreign")
    (folder / "test").mkdir(parents=True)
    (folder / "test" / "nshards.txt").write_text(f"{nshards}\n")
    (folder / "classnames.txt").write_text(classnames)
    (folder / "zeroshot_classification_templates.txt").write_text(templates)
    if kind:
        (folder / "dataset_type.txt").write_text(kind)
    with tarfile.open(folder / "test" / "0.tar", "w") as tar:
        for name, data in members:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return str(folder)


def test_a_staged_set_is_read_by_its_index(root):
    """Keys, labels and bytes come back in order, over several shards."""
    uri, manifest = build.classification_set(root)
    described = describe_set(uri, manifest.identity)
    items = list(read_set(described))

    assert (described.num_items, described.num_shards) == (12, 3)
    assert described.classnames == build.CLASSES
    assert [item.label for item in items] == [k % 3 for k in range(12)]
    assert items[7].image == build.picture(7)
    assert items[7].key == "colours-0007"


def test_captions_are_the_lines_of_the_text(root):
    """A retrieval set gives every caption of each image, and needs no class names."""
    uri, manifest = build.retrieval_set(root)
    items = list(read_set(describe_set(uri, manifest.identity)))

    assert items[3].captions == ("picture 3", "number 3 again")
    assert len(items) == 11


def test_a_set_of_another_tool_is_read_through_webdataset(root):
    """Without a manifest the layout alone is enough; the identity is the hash of its bytes."""
    image = build.picture(0)
    uri = foreign(root, [("a.png", image), ("a.cls", b"1"), ("b.jpg", build.picture(1, suffix="jpg")), ("b.cls", b"0")])
    described = describe_set(uri)
    items = list(read_set(described))

    assert [(item.key, item.label) for item in items] == [("a", 1), ("b", 0)]
    assert items[0].image == image
    assert described.name == "foreign"
    with pytest.raises(InputError, match="not the one this run was planned with"):
        describe_set(uri, "0" * 64)


def test_a_multi_label_set_has_a_row_of_targets(root):
    """dataset_type multilabel: .npy of 0 and 1 over the classes."""
    buffer = io.BytesIO()
    np.save(buffer, np.array([1, 1]))
    uri = foreign(root, [("a.png", build.picture(0)), ("a.npy", buffer.getvalue())], kind="multilabel")

    assert next(read_set(describe_set(uri))).targets.tolist() == [True, True]


@pytest.mark.parametrize("label", [b"2", b"-1"])
def test_a_label_that_is_no_class_is_named(root, label):
    """The error names shard, sample, label and the allowed range."""
    uri = foreign(root, [("a.png", build.picture(0)), ("a.cls", label)])

    with pytest.raises(InputError, match=rf"test/0.tar: sample a has label {label.decode()}, but classnames.txt names classes 0 to 1"):
        list(read_set(describe_set(uri)))


def test_a_label_that_is_no_number_is_named(root):
    """A class name where a number belongs."""
    uri = foreign(root, [("a.png", build.picture(0)), ("a.cls", b"cat")])

    with pytest.raises(InputError, match=r"sample a: \.cls is no label"):
        list(read_set(describe_set(uri)))


@pytest.mark.parametrize(("member", "missing"), [("a.cls", "no image"), ("a.png", r"no \.cls")])
def test_a_sample_without_a_member_is_named(root, member, missing):
    """An image without a label, a label without an image."""
    uri = foreign(root, [(member, b"0")])

    with pytest.raises(InputError, match=f"sample a has {missing}"):
        list(read_set(describe_set(uri)))


def test_a_missing_shard_is_named(root):
    """nshards.txt promises more tars than there are."""
    uri = foreign(root, [("a.png", b"x"), ("a.cls", b"0")], nshards=2)

    with pytest.raises(InputError, match=r"test/1\.tar"):
        describe_set(uri)


def test_a_missing_shard_of_a_staged_set_is_named(root):
    """The manifest promises a tar that is gone."""
    uri, _ = build.classification_set(root)
    Path(uri, "test", "1.tar").unlink()

    with pytest.raises(InputError, match=r"test/1\.tar"):
        list(read_set(describe_set(uri)))


def test_a_changed_byte_is_found(root):
    """The tar's checksum is that of the manifest, or nothing is read from it."""
    uri, _ = build.classification_set(root)
    data = bytearray(read_bytes(f"{uri}/test/0.tar"))
    data[700] ^= 1
    write_bytes(f"{uri}/test/0.tar", bytes(data))

    with pytest.raises(RunError, match=r"test/0\.tar: its bytes are not those of the manifest"):
        list(read_set(describe_set(uri)))


@pytest.mark.parametrize("nshards", ["0", "two"])
def test_a_set_without_images_is_refused(root, nshards):
    """No shards, or no number of them."""
    uri = foreign(root, [], nshards=nshards)

    with pytest.raises(InputError, match=r"nshards\.txt"):
        describe_set(uri)


def test_an_empty_tar_is_refused(root):
    """A tar without a sample leaves nothing to measure."""
    uri = foreign(root, [])

    with pytest.raises(InputError, match="has no test images"):
        list(read_set(describe_set(uri)))


def test_a_template_without_its_place_is_named(root):
    """Every template must say where the class name goes."""
    uri = foreign(root, [], templates="a {c}\na photo\n")

    with pytest.raises(InputError, match=r"templates\.txt, line 2: no \{c\} in 'a photo'"):
        describe_set(uri)


def test_class_names_that_contradict_the_manifest_are_refused(root):
    """The text file was edited after staging: labels would mean something else."""
    uri, _ = build.classification_set(root)
    write_bytes(f"{uri}/classnames.txt", b"red\ngreen\n")

    with pytest.raises(InputError, match="has 2 classnames, its manifest 3"):
        describe_set(uri)


def test_another_identity_is_refused(root):
    """The set under this URI is not the planned one."""
    uri, _ = build.classification_set(root)

    with pytest.raises(InputError, match="is not the one this run was planned with"):
        describe_set(uri, "0" * 64)


def test_no_set_at_all_is_named(root):
    """A folder with neither manifest nor layout."""
    with pytest.raises(InputError, match=r"neither manifest\.json nor test/nshards\.txt"):
        describe_set(f"{root}/nothing")


def test_triplets_come_by_split_with_their_facts(root):
    """Each split has its own, in order, with votes and pixel MSE."""
    uri, manifest = build.triplets_set(root)
    triplets = list(read_triplets(uri, manifest, "val"))

    assert [triplet.key for triplet in triplets] == [f"val-{k}" for k in range(4)]
    assert triplets[1].facts["target"] == 1.0
    assert triplets[1].images[2] == build.picture(102, 16)
    assert json.loads(json.dumps(triplets[1].facts))["mse_1"] == 1.0


def test_a_split_without_triplets_is_named(root):
    """2AFC on nothing is no figure."""
    uri, manifest = build.triplets_set(root, splits=("val",))

    with pytest.raises(InputError, match="triplets triplets have none in split test"):
        list(read_triplets(uri, manifest, "test"))
