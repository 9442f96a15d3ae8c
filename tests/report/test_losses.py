"""What became of the rows of the sources stands at the top of the page."""

import re

from tests.report.conftest import Written


def test_the_top_says_what_was_read_written_and_lost(large: Written) -> None:
    """By cause, with the place of the list; before the first section."""
    top = large[0].partition("<nav")[0]
    for what in ("Pairs", "Triplets"):
        found = re.search(rf"{what}: ([\d,]+) read, ([\d,]+) written; lost: 2 × truncated \(listed in <code>(\S+)/rejects</code>\)\.", top)
        assert found
        assert int(found[1].replace(",", "")) == int(found[2].replace(",", "")) + 2
