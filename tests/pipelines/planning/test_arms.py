import pytest

from pipelines.planning.arms import parse_arms, parse_seeds
from trainer.arms import registered
from trainer.errors import InputError


def test_arms_come_in_the_order_in_which_they_were_typed():
    """Spaces around a comma mean nothing."""
    assert [arm.name for arm in parse_arms("perceptual, random")] == ["perceptual", "random"]


def test_arms_that_start_from_the_same_judgements_share_a_tower():
    """`permuted` starts from the tower of `perceptual`."""
    perceptual, permuted = parse_arms("perceptual,permuted")

    assert (perceptual.tower, perceptual.labels) == (permuted.tower, permuted.labels)
    assert (perceptual.start, permuted.start) == ("tower", "permuted")


def test_an_arm_from_a_uri_has_a_name_that_is_safe_in_a_folder():
    """Two URIs are two arms, and one URI is one."""
    first, second = parse_arms("from:s3://bucket/a,from:s3://bucket/b")

    assert first.source == "s3://bucket/a"
    assert first.name != second.name
    assert parse_arms("from:s3://bucket/a")[0].name == first.name


def test_a_path_that_an_arm_starts_from_is_made_absolute():
    """It must mean the same to a job that runs elsewhere."""
    assert parse_arms("from:towers/final")[0].source.startswith("/")


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("percetual", "'percetual'"),
        ("random,,perceptual", "empty"),
        ("", "empty"),
        ("random,random", "'random' 2 times"),
        ("from:", "'from:'"),
    ],
)
def test_a_wrong_arm_is_named(text: str, named: str):
    """With all that would be accepted, where the name is the fault."""
    with pytest.raises(InputError, match="arms") as raised:
        parse_arms(text)

    assert named in str(raised.value)


def test_a_wrong_arm_is_told_what_is_accepted():
    """The line holds every arm."""
    with pytest.raises(InputError, match=f"{', '.join(registered())}, from:<uri>"):
        parse_arms("nonsense")


def test_seeds_are_whole_numbers():
    """In the order in which they were typed."""
    assert parse_seeds("3, 0,12") == (3, 0, 12)


@pytest.mark.parametrize("text", ["-1", "1.5", "", "0,,1", "0,0", "2147483648", "٣", "zero"])
def test_a_wrong_seed_is_refused(text: str):
    """Negative, fractional, empty, repeated, too large, not ASCII, no number."""
    with pytest.raises(InputError, match="seeds must"):
        parse_seeds(text)
