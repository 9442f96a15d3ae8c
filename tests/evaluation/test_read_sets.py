"""Sets are read as they were staged, and what is wrong with one is named."""

import contextlib
import gzip
import io
import json
import random
import tarfile
from pathlib import Path

import numpy as np
import pytest

from tests.evaluation import build
from trainer.config import DataConfig
from trainer.errors import Corrupt, InputError, RunError
from trainer.evaluation.read_sets import _triplet, describe_set, read_set, read_triplets
from trainer.storage import read_bytes, write_bytes
from trainer.storage.outlines import keys_of, outline


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

    with pytest.raises(InputError, match=r"sample a: \.cls is not a label"):
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

    with pytest.raises(Corrupt, match=r"test/1\.tar: .*: stage it again"):
        list(read_set(describe_set(uri)))


def test_a_changed_byte_is_found(root):
    """The tar's checksum is that of the manifest, or nothing is read from it."""
    uri, _ = build.classification_set(root)
    data = bytearray(read_bytes(f"{uri}/test/0.tar"))
    data[700] ^= 1
    write_bytes(f"{uri}/test/0.tar", bytes(data))

    with pytest.raises(RunError, match=r"test/0\.tar: its bytes differ from those recorded"):
        list(read_set(describe_set(uri)))


@pytest.mark.parametrize("nshards", ["0", "two", "9007199254740991", "9" * 5000])
def test_a_set_without_images_is_refused(root, nshards):
    """No shards, no number of them, or one that no set has: a list of so many would take all memory."""
    uri = foreign(root, [], nshards=nshards)
    for look in (describe_set, lambda uri: keys_of(outline(DataConfig(uri=uri))))[: 1 + (nshards != "0")]:
        with pytest.raises(InputError, match=r"nshards\.txt"):
            look(uri)


@pytest.mark.parametrize("tar", [b"", b"no tar" * 200, gzip.compress(bytes(10240))], ids=["empty", "text", "gzip"])
def test_a_set_whose_tar_is_none_is_refused_before_anything_is_trained(root, tar):
    """An experiment that compares it with dissimilarities asks for its keys when it is planned."""
    uri = foreign(root, [("a.png", b"x"), ("b/c.d.png", b"x")])
    assert keys_of(outline(DataConfig(uri=uri))) == ["a", "b/c"]
    Path(uri, "test", "0.tar").write_bytes(tar)

    with pytest.raises(InputError, match=r"test/0\.tar: "):
        keys_of(outline(DataConfig(uri=uri)))


def test_a_template_without_its_place_is_named(root):
    """Every template must say where the class name goes."""
    uri = foreign(root, [], templates="a {c}\na photo\n")

    with pytest.raises(InputError, match=r"templates\.txt, line 2: no \{c\} in 'a photo'"):
        describe_set(uri)


@pytest.mark.parametrize("damage", ["changed", "missing", "empty"])
def test_text_files_of_a_staged_set_decide_nothing(root, damage):
    """They are for other tools: class names and templates are the manifest's."""
    uri, _ = build.classification_set(root)
    whole = describe_set(uri)
    for file in ("classnames.txt", "zeroshot_classification_templates.txt", "test/nshards.txt"):
        path = Path(uri, file)
        path.unlink() if damage == "missing" else path.write_bytes(b"red\ngreem\n" if damage == "changed" else b"")

    assert describe_set(uri) == whole
    assert whole.classnames == build.CLASSES


def test_another_identity_is_refused(root):
    """The set under this URI is not the planned one."""
    uri, _ = build.classification_set(root)

    with pytest.raises(InputError, match="is not the one this run was planned with"):
        describe_set(uri, "0" * 64)


def test_no_set_at_all_is_named(root):
    """A folder with neither manifest nor layout."""
    with pytest.raises(InputError, match=r"neither manifest\.json nor test/nshards\.txt"):
        describe_set(f"{root}/nothing")


@pytest.mark.parametrize(
    "facts", [b"{}", b"[]", b"{", b'{"target": "1"}', b'{"target": 2}', b'{"target": NaN}', b'{"target": 1, "mse_0": "x"}']
)
def test_triplets_whose_facts_are_no_numbers_are_named(facts):
    """A sample that was sealed with them is refused by shard and key, before anything is measured."""
    members = {"ref.png": b"", "0.png": b"", "1.png": b"", "json": facts}
    with pytest.raises(InputError, match=r"^shard\.tar: sample a: "):
        _triplet("shard.tar", "a", members)
    with pytest.raises(InputError, match="not a triplet"):
        _triplet("shard.tar", "a", {"json": b'{"target": 1}'})


def test_a_damaged_set_of_another_tool_is_refused_in_one_line(root):
    """Bits flipped, cut short, or a piece put elsewhere: samples, or one error that names the set; never another exception."""
    uri = foreign(root, [(f"{n}.{suffix}", data) for n in range(4) for suffix, data in (("png", b"picture"), ("cls", b"1"))])
    path, refused = Path(uri, "test", "0.tar"), 0
    whole = path.read_bytes()
    for seed in range(300):
        choose, data = random.Random(seed), bytearray(whole)
        place = choose.randrange(8192)
        if seed % 3 == 0:
            for _ in range(3):
                data[choose.randrange(8192)] ^= 1 << choose.randrange(8)
        elif seed % 3 == 1:
            del data[place:]
        else:
            data[place : place + 300] = whole[choose.randrange(8192) :][:300]
        path.write_bytes(data)
        with contextlib.suppress(InputError):
            refused += 1
            list(read_set(describe_set(uri)))
            refused -= 1
    assert refused > 100


def test_a_set_that_changes_while_it_is_measured_is_refused(root):
    """The bytes that are measured are those that gave the set its identity."""
    uri = foreign(root, [("a.png", b"x"), ("a.cls", b"1")])
    described = describe_set(uri)
    foreign(f"{root}/other", [("a.png", b"x"), ("a.cls", b"0")])
    Path(root, "other", "foreign", "test", "0.tar").rename(Path(uri, "test", "0.tar"))

    with pytest.raises(Corrupt, match=r"test/0\.tar: its bytes differ from those recorded"):
        list(read_set(described))


def test_members_that_unpack_to_more_than_the_tar_has_are_refused(root):
    """A sparse file of 1 TB in a tar of 10 KB, and a tar packed by gzip: nothing is allocated for them."""
    uri = foreign(root, [("a.cls", b"1")])
    path = Path(uri, "test", "0.tar")
    with tarfile.open(path, "w", format=tarfile.PAX_FORMAT) as tar:
        info = tarfile.TarInfo("a.png")
        info.pax_headers = {
            "GNU.sparse.major": "1",
            "GNU.sparse.minor": "0",
            "GNU.sparse.name": "a.png",
            "GNU.sparse.realsize": str(1 << 40),
        }
        blocks = b"1\n0\n1\n".ljust(512, b"\0") + b"x"
        info.size = len(blocks)
        tar.addfile(info, io.BytesIO(blocks))
    with pytest.raises(InputError, match=r"0\.tar: a\.png is a sparse file"):
        list(read_set(describe_set(uri)))
    path.write_bytes(gzip.compress(path.read_bytes()))
    with pytest.raises(InputError, match=r"0\.tar: compressed with gzip"):
        list(read_set(describe_set(uri)))


WHOLE = [(f"{n}.{suffix}", data) for n in range(3) for suffix, data in (("png", b"picture"), ("cls", b"1"))]


def cut(uri, length):
    path = Path(uri, "test", "0.tar")
    path.write_bytes(path.read_bytes()[:length])


def joined(uri):
    path = Path(uri, "test", "0.tar")
    path.write_bytes(path.read_bytes() * 2)


@pytest.mark.parametrize(
    ("members", "spoil", "line"),
    [
        ([*WHOLE, ("0.png", b"x"), ("0.cls", b"1")], None, r"0\.tar: two samples are named '0'"),
        ([*WHOLE, ("2.cls", b"0")], None, r"0\.tar: '2\.cls' appears twice in it"),
        (WHOLE, lambda uri: cut(uri, 4 * 1024 + 100), r"0\.tar: cut short in the header after 1\.cls, at byte 4096"),
        (WHOLE, lambda uri: cut(uri, 4 * 1024), r"0\.tar: cut short after 1\.cls: a tar ends with blocks of zeros"),
        (WHOLE, lambda uri: cut(uri, 4 * 1024 + 515), r"0\.tar: truncated: 2\.png should end at byte 4615"),
        (WHOLE, lambda uri: cut(uri, 0), r"0\.tar: not a whole tar file: empty file"),
        (WHOLE, joined, r"0\.tar: has data after its end mark, from byte 10240 on"),
        ([], None, r"0\.tar: has no samples"),
        ([*WHOLE, ("3.png", b"x")], None, r"0\.tar: sample 3 has no \.cls"),
        (
            [*WHOLE, ("3.png", b"x"), ("3.cls", b"caf\xe9")],
            None,
            r"sample 3: \.cls is not a label: .* byte 0xe9 at 3, perhaps Latin-1",
        ),
        (
            WHOLE,
            lambda uri: Path(uri, "classnames.txt").write_bytes(b"caf\xe9\ndog\n"),
            r"classnames\.txt: must be UTF-8, but has byte 0xe9",
        ),
        (
            WHOLE,
            lambda uri: Path(uri, "classnames.txt").write_text("cat\ndog", "utf-16"),
            r"classnames\.txt: must be UTF-8, but its first bytes look like UTF-16",
        ),
        (WHOLE, lambda uri: Path(uri, "test", "nshards.txt").write_text("2"), r"test/1\.tar: missing: nshards\.txt says 2 shards"),
        (WHOLE, lambda uri: Path(uri, "test", "1.tar").write_bytes(b""), r"test/1\.tar: exists, but nshards\.txt says 1 shards"),
        (WHOLE, lambda uri: Path(uri, "test", "nshards.txt").write_text("one"), r"nshards\.txt: must be a whole number"),
    ],
)
def test_a_set_of_another_tool_is_measured_whole_or_not_at_all(root, members, spoil, line):
    """One line that names the file, and the sample where it is one's fault."""
    uri = foreign(root, members)
    if spoil:
        spoil(uri)
    with pytest.raises(InputError, match=line) as caught:
        list(read_set(describe_set(uri)))
    assert "\n" not in str(caught.value)


def test_byte_order_marks_are_no_part_of_names(root):
    """In class names, templates, the number of shards, a label and a caption; and only ends of lines end a name."""
    uri = foreign(
        root,
        [("a.png", b"x"), ("a.cls", b"\xef\xbb\xbf1")],
        nshards="\ufeff1",
        classnames="\ufeffcat\u2028s\r\ndog\n",
        templates="\ufeffa {c}\n",
    )
    described = describe_set(uri)
    assert described.classnames == ("cat\u2028s", "dog")
    assert described.templates == ("a {c}",)
    assert next(iter(read_set(described))).label == 1


def test_links_of_a_tar_are_followed(root):
    """GNU tar stores a file that it has stored before as a hard link."""
    uri = foreign(root, WHOLE)
    with tarfile.open(Path(uri, "test", "0.tar"), "w") as tar:
        for name, kind, data, target in (
            ("0.png", tarfile.REGTYPE, b"picture", ""), ("0.cls", tarfile.REGTYPE, b"1", ""),
            ("1.png", tarfile.LNKTYPE, b"", "0.png"), ("1.cls", tarfile.SYMTYPE, b"", "0.cls"),
        ):  # fmt: skip
            info = tarfile.TarInfo(name)
            info.size, info.type, info.linkname = len(data), kind, target
            tar.addfile(info, io.BytesIO(data))
    assert [(item.key, item.image, item.label) for item in read_set(describe_set(uri))] == [("0", b"picture", 1), ("1", b"picture", 1)]


def test_captions_end_with_their_line_and_nowhere_else(root):
    """As CLIP_benchmark splits them: what else Unicode takes for the end of a line stays in its caption."""
    text = "\ufeffone\u2028a\x85b\rc\x0bd\r\n \n\ntwo\u2029\n"
    (item,) = read_set(describe_set(foreign(root, [("a.png", b"x"), ("a.txt", text.encode())], kind="retrieval")))
    assert item.captions == ("one\u2028a\x85b\rc\x0bd", "two\u2029")


def test_captions_that_are_no_text_are_named(root):
    """Bytes that are not UTF-8."""
    uri = foreign(root, [("a.png", b"x"), ("a.txt", b"\xff\xfe")], kind="retrieval")
    with pytest.raises(InputError, match=r"sample a: \.txt is not a caption: .*must be UTF-8"):
        list(read_set(describe_set(uri)))


@pytest.mark.parametrize(
    "data",
    [b"\x93NUMPY\1\0\x40\0{'descr': '<i8', 'fortran_order': False, 'shape': (99999999999,), }", b"x", b""],
    ids=["huge", "other", "empty"],
)
def test_labels_that_are_no_array_are_named(root, data):
    """A shape without bytes, and what is no .npy at all."""
    uri = foreign(root, [("a.png", b"x"), ("a.npy", data)], kind="multilabel")
    with pytest.raises(InputError, match=r"sample a: \.npy is not a label"):
        list(read_set(describe_set(uri)))


def test_a_set_whose_manifest_is_gone_is_not_taken_for_another(root):
    """What is left looks like a set of another tool: the error says what is missing."""
    uri, manifest = build.classification_set(root)
    Path(uri, "manifest.json").unlink()
    with pytest.raises(InputError, match=r"no manifest\.json here"):
        describe_set(uri, manifest.identity)


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

    with pytest.raises(InputError, match="data set triplets has no triplets in split test"):
        list(read_triplets(uri, manifest, "test"))
