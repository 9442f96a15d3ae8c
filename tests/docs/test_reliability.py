"""docs/RELIABILITY.md says what the enumeration of stored objects says."""

from scripts import states_table


def test_table_is_written_from_the_enumeration() -> None:
    """`python scripts/states_table.py` would change nothing."""
    current = states_table.PAGE.read_text(encoding="utf-8")
    assert states_table.page(current) == current
