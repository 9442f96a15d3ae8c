"""What a step says of a staged data set: what was lost, and what an epoch leaves out."""

import pytest

from pipelines.planning.request import Request, merge
from pipelines.planning.resolving import resolve
from pipelines.steps.sizes import check_size, described, training_stages
from tests.pipelines.data import seal
from trainer.errors import InputError
from trainer.storage.manifest import read_manifest, write_manifest


def ask(**given: object) -> Request:
    return resolve(merge("", {"recipe": "smoke", **given}))


@pytest.fixture
def sealed(tmp_path):
    """Seals a data set with so many training samples, and rows."""
    import dataclasses

    def make(kind, train, **rows):
        uri = seal(str(tmp_path), kind)
        manifest = dataclasses.replace(read_manifest(uri), facts={"splits": {"train": train, "test": 3}}, rows=rows)
        write_manifest(uri, manifest)
        return uri

    return make


def test_what_was_lost_is_said_by_cause_with_the_place_of_the_list(sealed):
    uri = sealed(
        "pairs", 150, read=300, written=150, lost={"kind of file not read": 148, "truncated image": 2}, notes={"unreadable EXIF": 3}
    )
    assert described(uri) == (
        f"300 read, 150 written, 150 left out: 148 x kind of file not read, 2 x truncated image; listed in {uri}/rejects; "
        "read despite: 3 x unreadable EXIF"
    )
    assert described(sealed("triplets", 9, read=9000, written=9000, lost={})) == "9,000 read, 9,000 written"


def test_the_remainder_of_an_epoch_is_said(sealed, capsys):
    uri = sealed("pairs", 150, read=150, written=150, lost={})
    check_size(uri, ask(recipe="smoke"), "stage pairs")
    assert capsys.readouterr().out == (
        "stage pairs: contrastive: an epoch takes 128 of 150 pairs, in batches of 64; the subset varies by epoch\n"
    )
    check_size(sealed("pairs", 128, read=150, written=150, lost={}), ask(recipe="smoke"), "stage pairs")
    assert capsys.readouterr().out == ""


def test_a_data_set_smaller_than_a_batch_is_refused(sealed):
    """Only by stages that the arms have."""
    uri = sealed("triplets", 100, read=100, written=100, lost={})
    with pytest.raises(InputError, match=r"100 triplets to train on, needs at least 128 for recipe demo .*; try RECIPE=smoke or a smaller"):
        check_size(uri, ask(recipe="demo", arms="random,perceptual"), "stage triplets")
    check_size(uri, ask(recipe="demo", arms="random"), "stage triplets")


@pytest.mark.parametrize(
    ("arms", "stages"),
    [
        ("random", ("contrastive",)),
        ("random,perceptual", ("perceptual", "contrastive")),
        ("random,posthoc", ("contrastive", "posthoc")),
        ("permuted,posthoc", ("perceptual", "contrastive", "posthoc")),
    ],
)
def test_the_stages_are_those_of_the_arms(arms, stages):
    assert training_stages(ask(arms=arms)) == stages


@pytest.mark.parametrize(
    ("vary", "line"),
    [
        (
            {"dose": {"perceptual.triplet_fraction": [1, 0.1]}},
            "perceptual.triplet_fraction must leave at least one batch, got 0.1: that is 10 of 100 training triplets",
        ),
        (
            {"dose": {"perceptual.triplet_fraction": [1, 0.2]}},
            "perceptual.optimizer.warmup_steps must be less than the stage's 1 steps (20 // 16 x 1 epochs), got 2",
        ),
        (
            {"batch": {"perceptual.global_batch_size": [16, 128]}},
            "100 triplets to train on, needs at least 128 for recipe smoke (perceptual.global_batch_size)",
        ),
        (
            {"dose": {"perceptual.samples_seen": [16, 64]}},
            "perceptual.optimizer.warmup_steps must be less than the stage's 1 steps (16 samples seen // 16), got 2",
        ),
    ],
)
def test_every_point_of_an_axis_is_compared_with_what_was_staged(sealed, vary, line):
    """Before anything is trained, and only of stages that the arms have."""
    uri = sealed("triplets", 100, read=100, written=100, lost={})
    with pytest.raises(InputError) as caught:
        check_size(uri, ask(vary=vary), "stage triplets")
    assert str(caught.value).startswith(f"{uri}: {line}")
    check_size(uri, ask(vary=vary, arms="random"), "stage triplets")


def test_a_post_hoc_dose_is_compared_too(sealed):
    uri = sealed("triplets", 100, read=100, written=100, lost={})
    vary = {"dose": {"posthoc.triplet_fraction": [1, 0.1]}}
    with pytest.raises(InputError, match=r"posthoc.triplet_fraction must leave at least one batch, got 0.1: that is 10 of 100"):
        check_size(uri, ask(vary=vary, arms="random,posthoc"), "stage triplets")


def test_a_dose_of_pairs_is_compared_too(sealed):
    uri = sealed("pairs", 150, read=150, written=150, lost={})
    with pytest.raises(InputError, match=r"contrastive.pair_fraction must leave at least one batch, got 0.25: that is 38 of 150"):
        check_size(uri, ask(vary={"p": {"contrastive.pair_fraction": [1, 0.25]}}), "stage pairs")
