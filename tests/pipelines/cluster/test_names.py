"""A job's name, by which launchers of the same folder meet and others do not, and its labels."""

import dataclasses
import re
from typing import Any

import pytest

from pipelines.cluster.names import MAX_LABEL, MAX_NAME, Identity, label_value

EXPERIMENT = "s3://bucket/root/experiments/demo"
CELL = Identity(
    root="s3://bucket/root", output=f"{EXPERIMENT}/perceptual-seed0/contrastive", experiment="demo", cell="perceptual-seed0",
    arm="perceptual", seed=0, stage="contrastive",
)  # fmt: skip
TOWER = dataclasses.replace(CELL, output=f"{EXPERIMENT}/towers/ac6c2cb17fb0{'0' * 52}", cell="", stage="perceptual")
STAGING = Identity(
    root="s3://bucket/root", output=f"{EXPERIMENT}/staging/pairs", experiment="demo", arm="pairs", seed=0, stage="stage-fetch"
)
LABEL = re.compile(r"[A-Za-z0-9]([A-Za-z0-9._-]*[A-Za-z0-9])?")


@pytest.mark.parametrize("arm", ["perceptual", "from-1a2b3c4d", "A_Name.With:Everything" * 5, "123", ""])
@pytest.mark.parametrize("point", ["", "dose-1e3", "epochs=16, margin=0.1"])
def test_names_are_valid_and_short_enough(arm: str, point: str):
    """DNS-1035 and short enough for every kind of job, whatever the parts are; alerts know our pods by the end."""
    name = dataclasses.replace(CELL, arm=arm, point=point, seed=2**31 - 1).name

    assert re.fullmatch(r"[a-z]([-a-z0-9]*[a-z0-9])?", name)
    assert re.search(r"-s2147483647-[0-9a-f]{10}$", name)
    assert len(name) <= MAX_NAME


@pytest.mark.parametrize(
    ("identity", "words"),
    [
        (CELL, "contrastive-perceptual-s0-"),
        (dataclasses.replace(CELL, point="dose-1000", seed=3), "contrastive-perceptual-dose-1000-s3-"),
        (TOWER, "perceptual-ac6c2cb17fb0-s0-"),
        (STAGING, "stage-fetch-pairs-s0-"),
    ],
)
def test_a_name_begins_with_words_for_people(identity: Identity, words: str):
    """Stage, arm, point and seed; what cells share by the folder's own name."""
    assert re.fullmatch(f"{words}[0-9a-f]{{10}}", identity.name)


def test_six_doses_of_one_arm_do_not_meet_in_one_job():
    """Arm, seed and stage are the same; the folders are not, and long names are not cut to the same."""
    points = [f"triplets-of-a-dose-with-a-long-name-{dose}" for dose in (10, 30, 100, 300, 1000, 3000)]
    doses = [dataclasses.replace(CELL, point=point, output=f"{EXPERIMENT}/perceptual-{point}-seed0/contrastive") for point in points]

    assert len({dose.name for dose in doses}) == 6
    assert len({dose.former_name for dose in doses}) == 1


def test_whoever_asks_for_a_shared_tower_first_it_is_one_job():
    """Its name follows from its folder alone."""
    theirs = dataclasses.replace(TOWER, experiment="other", arm="permuted", point="dose-10")

    assert theirs.name == TOWER.name


@pytest.mark.parametrize("change", [{"root": "s3://b/r"}, {"output": f"{EXPERIMENT}/x"}, {"stage": "posthoc"}])
def test_another_root_folder_or_stage_is_another_job(change: dict[str, Any]):
    """Plan, fetch and seal of a data set share a folder."""
    assert dataclasses.replace(CELL, **change).name != CELL.name


def test_a_slash_at_the_end_means_nothing():
    """Which is how a second launcher finds the first one's job."""
    assert dataclasses.replace(CELL, root="s3://bucket/root/", output=f"{CELL.output}/").name == CELL.name


@pytest.mark.parametrize(
    ("identity", "name"),
    [
        (CELL, "contrastive-perceptual-s0-7937b65f74"),
        (TOWER, "perceptual-perceptual-s0-e0f5007c5f"),
        (STAGING, "stage-fetch-pairs-s0-9d64866e5b"),
        (dataclasses.replace(CELL, stage="evaluate"), "evaluate-perceptual-s0-3c1b5958e6"),
    ],
)
def test_the_former_name_is_what_commit_ad127be_gave(identity: Identity, name: str):
    """Recorded there: jobs that it made may run still."""
    assert identity.former_name == name


def test_a_long_former_name_was_cut_to_46_characters():
    """Today's are too, or the pods of a TrainJob would have names that are too long."""
    former = dataclasses.replace(CELL, arm="x" * 60).former_name

    assert re.fullmatch(f"contrastive-{'x' * 23}-[0-9a-f]{{10}}", former)
    assert MAX_NAME == len(former) == 46


def test_labels_say_whose_a_job_is_and_leave_out_what_is_empty():
    """A tower is of no single cell."""
    ours = {name.removeprefix("firstsight.dev/"): value for name, value in CELL.labels().items() if name.startswith("firstsight.dev/")}

    assert ours == {"experiment": "demo", "cell": "perceptual-seed0", "arm": "perceptual", "seed": "0", "stage": "contrastive"}
    assert not {"firstsight.dev/cell", "firstsight.dev/point"} & TOWER.labels().keys()
    assert dataclasses.replace(CELL, point="dose-10").labels()["firstsight.dev/point"] == "dose-10"


@pytest.mark.parametrize("text", ["x" * 64, "epochs=16", "-x", "x\n", "Überall", "===", "a/b c", "x" * 300])
def test_a_value_that_no_label_takes_is_made_safe_and_stays_its_own(text: str):
    """By a hash: two long ones that begin alike are two."""
    value = label_value(text)

    assert LABEL.fullmatch(value), value
    assert len(value) <= MAX_LABEL
    assert value != label_value(f"{text}x")


@pytest.mark.parametrize("text", ["", "0", "perceptual-dose_1.5-seed0", "x" * 63])
def test_a_value_that_a_label_takes_is_left_as_it_is(text: str):
    assert label_value(text) == text
