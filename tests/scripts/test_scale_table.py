"""The computed table of docs/PERFORMANCE_NOTES.md."""

from scripts import scale_table


def test_the_page_has_the_table_as_computed() -> None:
    """`make generate` writes it."""
    page = scale_table.PAGE.read_text(encoding="utf-8")
    assert scale_table.page(page) == page
    assert "| pairs per GPU and step | 512 | 64 | 16 |" in page
