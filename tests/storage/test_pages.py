"""Pages of the report that several writers make at once: no older one ever counts in a newer one's place."""

import itertools
import threading
from pathlib import Path

import pytest

from tests.damage import KINDS, damage
from trainer.errors import InputError
from trainer.storage import layout, pages, read_text, write_json
from trainer.storage.documents import write_document

WRITERS = ("lane 1", "lane 2", "lane 3", "report", "finish", "another run")


def _files(text: str) -> dict[str, bytes]:
    return {"index.html": text.encode(), "results.json": f'"{text}"'.encode()}


def _shown(uri: str) -> set[str]:
    """What programs and people are shown."""
    places = (pages.folder_of(uri), layout.report(uri))
    return {read_text(f"{place}/index.html") for place in places} | {read_text(f"{place}/results.json").strip('"') for place in places}


@pytest.mark.parametrize("order", list(itertools.permutations(range(3))))
def test_whoever_writes_last_the_newest_page_counts(tmp_path: Path, order: tuple[int, ...]):
    uri = str(tmp_path / "e")
    claims = [pages.claim(uri) for _ in order]
    counted = [pages.publish(uri, claims[number], _files(f"page {number}")) for number in order]

    assert _shown(uri) == {"page 2"}
    newest = [max(order[: position + 1]) for position in range(len(order))]
    assert counted == [number == best for number, best in zip(order, newest, strict=True)]


def test_writers_at_the_same_time_leave_the_page_that_knows_all(tmp_path: Path):
    """Each finishes something, then claims a number, reads what is finished, and writes it."""
    uri, finished, start = str(tmp_path / "e"), tmp_path / "finished", threading.Barrier(len(WRITERS))
    finished.mkdir()
    pages.claim(uri)

    def write(name: str) -> None:
        start.wait(30)
        (finished / name).touch()
        claimed = pages.claim(uri)
        pages.publish(uri, claimed, _files(", ".join(sorted(path.name for path in finished.iterdir()))))

    threads = [threading.Thread(target=write, args=(name,)) for name in WRITERS]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)

    assert _shown(uri) == {", ".join(sorted(WRITERS))}
    assert pages.read_page(uri).claimed == len(WRITERS) + 1


def test_a_writer_that_died_before_the_end_changes_nothing(tmp_path: Path):
    uri = str(tmp_path / "e")
    pages.publish(uri, pages.claim(uri), _files("whole"))
    pages.claim(uri)
    (Path(layout.report_generation(uri, 2))).mkdir()
    (Path(layout.report_generation(uri, 2)) / "index.html").write_text("half")

    assert _shown(uri) == {"whole"}
    pages.publish(uri, pages.claim(uri), _files("next"))
    assert _shown(uri) == {"next"}


def test_the_page_before_stays_for_who_reads_it_and_older_ones_go(tmp_path: Path):
    uri = str(tmp_path / "e")
    for number in range(1, 5):
        pages.publish(uri, pages.claim(uri), _files(f"page {number}"))

    left = sorted(path.name for path in Path(layout.report(uri)).glob("generation-*") if any(path.iterdir()))
    assert left == ["generation-000003", "generation-000004"]


@pytest.mark.parametrize("kind", KINDS)
def test_numbers_go_on_where_the_record_is_lost(tmp_path: Path, kind: str):
    """A writer that claimed before must not count as newer than one that comes after."""
    uri = str(tmp_path / "e")
    for number in range(3):
        pages.publish(uri, pages.claim(uri), _files(f"page {number}"))
    damage(Path(layout.report(uri)) / "made.json", kind)

    assert pages.claim(uri).generation == 4


def test_a_page_of_an_older_version_is_read_and_replaced(tmp_path: Path):
    """Format 1 of made.json knew no generations."""
    uri = str(tmp_path / "e")
    write_json(f"{layout.report(uri)}/results.json", "old")
    write_document(f"{layout.report(uri)}/made.json", {"format_version": 1, "inputs": "x", "files": {}})

    assert pages.folder_of(uri) == layout.report(uri)
    assert pages.publish(uri, pages.claim(uri), _files("new"))
    assert _shown(uri) == {"new"}


def test_a_page_of_a_newer_version_is_refused(tmp_path: Path):
    uri = str(tmp_path / "e")
    write_document(f"{layout.report(uri)}/made.json", {"format_version": 3})
    with pytest.raises(InputError, match="newer"):
        pages.claim(uri)
