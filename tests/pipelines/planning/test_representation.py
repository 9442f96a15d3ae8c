"""Representation is refused by plan and links before anything is staged or trained: RDMs, names, sets that no probe learns from."""

import io
import tarfile
from pathlib import Path

import pytest

from pipelines.__main__ import main
from pipelines.planning import plan
from pipelines.planning.request import merge
from pipelines.planning.resolving import resolve
from tests.storage.test_rdms import SQUARE, changed, csv_of, write
from trainer.config import DataConfig
from trainer.errors import InputError
from trainer.storage.rdms import read_rdm

KEYS = [f"{name}-1" for name in ("cat", "dog", "house", "tree", "car")]


def set_at(folder: Path, name: str, *, kind: str = "", train: bool = True) -> str:
    """A set in CLIP_benchmark's layout, as far as a plan looks at it."""
    for split in ("test", "train") if train else ("test",):
        place = folder / name / split
        place.mkdir(parents=True)
        (place / "nshards.txt").write_text("1")
        with tarfile.open(place / "0.tar", "w") as tar:
            for key in KEYS:
                for suffix in ("png", "cls"):
                    tar.addfile(tarfile.TarInfo(f"{key}.{suffix}"), io.BytesIO())
    if kind:
        (folder / name / "dataset_type.txt").write_text(kind)
    return str(folder / name)


def represented(asked, sets, complete=True):
    """What a plan makes of it, on these sets alone."""
    return plan.represented(asked, tuple(DataConfig(uri=uri) for uri in sets), DataConfig(), complete=complete)


def test_an_rdm_is_pinned_by_its_checksum(tmp_path):
    """Cells are measured with the bytes that were planned."""
    own = set_at(tmp_path, "own")
    uri = write(tmp_path, "V1.csv", csv_of(names=KEYS[:4]))
    found = represented({"sets": ["own"], "rdms": [uri], "probes": ["all"]}, [own])
    assert found["rdms"] == (DataConfig(uri=uri, identity=read_rdm(uri).sha256),)
    assert found["representation"].probes == ("all",)
    assert represented({}, [own]) == {}


def test_of_several_sets_the_one_that_holds_all_names_is_taken(tmp_path):
    """An RDM need not say whose pictures it compares."""
    sets = [set_at(tmp_path, "first"), set_at(tmp_path, "second")]
    with tarfile.open(tmp_path / "second" / "test" / "0.tar", "a") as tar:
        tar.addfile(tarfile.TarInfo("boat-1.png"), io.BytesIO())
    uri = write(tmp_path, "V1.csv", csv_of(names=[*KEYS[:3], "boat-1"]))
    assert represented({"sets": ["first", "second"], "rdms": [uri]}, sets)


REFUSED = {
    "other names": (
        csv_of(),
        {},
        "4 of its 4 names are not pictures in own, such as 'cat'; its pictures have names such as 'cat-1'",
    ),
    "one other name": (csv_of(names=[*KEYS[:3], "boat"]), {}, "RDM V1: 1 of its 4 names are not pictures in own, such as 'boat'"),
    "not symmetric": (csv_of(changed(0, 2, 2.5), KEYS[:4]), {}, "not symmetric"),
    "NaN": (csv_of(changed(0, 2, float("nan")), KEYS[:4]), {}, "every entry must be a finite number"),
    "no training split": (csv_of(SQUARE, KEYS[:4]), {"probes": ["test-only"]}, "test-only cannot be probed: it has no training split"),
    "all, and one without training": (
        csv_of(SQUARE, KEYS[:4]),
        {"probes": ["all"]},
        "test-only cannot be probed: it has no training split",
    ),
    "captions": (csv_of(SQUARE, KEYS[:4]), {"probes": ["captions"]}, "captions cannot be probed: it is a retrieval set"),
    "several classes": (csv_of(SQUARE, KEYS[:4]), {"probes": ["several"]}, "several cannot be probed: its pictures show several classes"),
    "no such set": (csv_of(SQUARE, KEYS[:4]), {"sets": ["owm"]}, "no evaluation set is called 'owm'; known: own, test-only"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_be_measured_is_refused(tmp_path, case):
    """In one line that names what, where, and what there is instead."""
    content, more, line = REFUSED[case]
    sets = [set_at(tmp_path, "own"), set_at(tmp_path, "test-only", train=False)]
    sets += [set_at(tmp_path, "captions", kind="retrieval"), set_at(tmp_path, "several", kind="multilabel")]
    with pytest.raises(InputError) as caught:
        represented({"sets": ["own"], "rdms": [write(tmp_path, "V1.csv", content)], **more}, sets)
    assert line in str(caught.value)
    assert "\n" not in str(caught.value)


def test_what_the_pairs_will_bring_is_left_for_the_step_plan(tmp_path):
    """Before they are staged nobody knows the sets that are staged with them; the RDM itself is checked at once."""
    good = write(tmp_path, "V1.csv", csv_of())
    assert represented({"sets": ["demo-categories"], "rdms": [good], "probes": ["demo-categories"]}, [], complete=False)
    with pytest.raises(InputError, match="no evaluation set is called 'demo-categories'; known: none"):
        represented({"sets": ["demo-categories"]}, [])
    with pytest.raises(InputError, match="every entry must be a finite number"):
        represented(
            {"sets": ["demo-categories"], "rdms": [write(tmp_path, "bad.csv", csv_of(changed(1, 1, float("nan"))))]}, [], complete=False
        )


def test_two_rdms_of_one_name_are_refused(tmp_path):
    """The page could not tell them apart."""
    (tmp_path / "other").mkdir()
    uris = [write(folder, "V1.csv", csv_of(names=KEYS[:4])) for folder in (tmp_path, tmp_path / "other")]
    with pytest.raises(InputError, match="there is already an RDM called V1: rename the file"):
        represented({"sets": ["own"], "rdms": uris}, [set_at(tmp_path, "own")])


def test_the_command_plan_refuses_it_with_exit_code_2_and_writes_nothing(tmp_path, capsys):
    """From the command line, with the RDM named as a flag names it."""
    uri = write(tmp_path, "V1.csv", csv_of(changed(0, 2, 2.5)))
    argv = ["plan", "--recipe", "smoke", "--root", f"{tmp_path}/runs", "--representation", f"sets=[demo-categories] rdms=[{uri}]"]
    with pytest.raises(SystemExit) as caught:
        raise SystemExit(main(argv))
    assert caught.value.code == 2
    assert f"RDM {uri}: not symmetric" in capsys.readouterr().err.splitlines()[-1]
    assert not (tmp_path / "runs").exists()


def test_the_example_request_is_one(tmp_path):
    """docs/examples: every key is known, and its RDM is one."""
    asked = resolve(merge("docs/examples/representation.yaml", {"root": str(tmp_path)}))
    found = represented(asked.representation, [], complete=False)
    assert found["representation"].probes == ("demo-categories",)
    assert len(read_rdm(found["rdms"][0].uri).names) == 24
