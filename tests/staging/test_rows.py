from hypothesis import given, settings
from hypothesis import strategies as st

from trainer.staging.rows import Blob, PairRow, assign_splits, in_order, safe_key

ROWS = st.lists(st.tuples(st.integers(0, 12), st.sampled_from(["", "cat", "dog"])), min_size=2, max_size=60)


def pair_rows(shape: list[tuple[int, str]]) -> list[PairRow]:
    """Rows of the given families and labels."""
    return [
        PairRow(key=f"k{number}", where="", image=Blob("x"), captions=("c",), family=f"f{family}", label=label)
        for number, (family, label) in enumerate(shape)
    ]


@settings(max_examples=100, deadline=None)
@given(shape=ROWS, fraction=st.floats(0.05, 0.5))
def test_splits_keep_families_together_whatever_the_order(shape: list[tuple[int, str]], fraction: float) -> None:
    """No family on both sides, something on both where there are two families, and the order of rows is nothing."""
    rows = pair_rows(shape)
    split = {row.key: row for row in assign_splits(rows, fraction)}
    families: dict[str, set[str]] = {}
    for row in split.values():
        families.setdefault(row.family, set()).add(row.split)
    assert all(len(found) == 1 for found in families.values())
    if len(families) > 1:
        assert {row.split for row in split.values()} == {"train", "test"}
    assert split == {row.key: row for row in assign_splits(rows[::-1], fraction)}
    assert in_order(rows) == in_order(rows[::-1])


@settings(max_examples=100, deadline=None)
@given(first=st.text(max_size=80), second=st.text(max_size=80))
def test_keys_are_safe_in_a_tar_and_unlike_where_names_are(first: str, second: str) -> None:
    """At most 69 of letters, digits, - and _; two names never meet in one key."""
    assert len(safe_key(first)) <= 69
    assert all(character.isascii() and (character.isalnum() or character in "-_") for character in safe_key(first))
    assert (safe_key(first) == safe_key(second)) == (first == second)
