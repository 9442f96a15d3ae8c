"""When a source has to be looked at again, because the store's listing does not show all that is staged of it."""

from pathlib import Path

from pipelines.steps.sealed import _looks


def test_what_lies_behind_links_is_looked_at_each_time(tmp_path: Path) -> None:
    """A folder without links is known by its listing; with a linked folder, or a list as the source, the pictures are not in it."""
    folder, other = tmp_path / "source", tmp_path / "other"
    for place in (folder, other):
        place.mkdir()
        (place / "a.jpg").write_bytes(b"x")
    (folder / "captions.csv").write_text("file,caption\na.jpg,x\n")
    before = _looks((str(folder),))
    assert before
    assert _looks((str(folder / "captions.csv"),)) == ""
    (folder / "b.jpg").symlink_to(other / "a.jpg")
    assert _looks((str(folder),)) not in ("", before)
    (folder / "linked").symlink_to(other)
    assert _looks((str(folder),)) == ""
