import json
from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image

from tests.staging.conftest import photo_folder
from tests.staging.remote.sources import write_nights
from trainer.config import Recipe
from trainer.errors import InputError
from trainer.staging.inspect import inspect
from trainer.staging.stage import stage_triplets
from trainer.storage.manifest import Manifest


def test_a_data_set_is_shown_with_rejects_and_caption_lengths(
    tmp_path: Path, stage: Callable[..., tuple[str, Manifest]], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Counts, causes, a histogram; and a page and a picture of samples."""
    monkeypatch.setenv("COLUMNS", "160")
    folder = photo_folder(tmp_path / "photos")
    (folder / "p001.png").write_bytes(b"")
    uri, _ = stage(folder, limit=0.1)
    inspect(uri, str(tmp_path / "sheet"))
    shown = capsys.readouterr().out
    assert "20 read, 19 written" in shown
    assert "lost: empty file" in shown
    assert "Tokens per caption: mean" in shown
    page = (tmp_path / "sheet" / "index.html").read_text(encoding="utf-8")
    assert page.count("<figure>") == page.count("data:image/png") > 10
    with Image.open(tmp_path / "sheet" / "contact.png") as sheet:
        assert sheet.width > 128


def test_the_name_of_a_data_set_is_enough_and_paths_stay_whole(
    tmp_path: Path, stage: Callable[..., tuple[str, Manifest]], smoke: Recipe, capsys: pytest.CaptureFixture[str]
) -> None:
    """Below datasets/<name> lies one hash, which nobody types; where there are two, they are named. Nothing is folded at 80 columns."""
    place = tmp_path / ("a-long-name-" * 5)
    folder = photo_folder(place / "photos")
    uri, manifest = stage(folder)
    above = uri.rpartition("/")[0]
    for name in (above, f"{above}/"):
        inspect(name, "")
        shown = capsys.readouterr().out
        assert f" {uri}" in shown
        assert manifest.identity in shown
    (folder / "p000.txt").write_text("another caption", encoding="utf-8")
    other, _ = stage(folder)
    with pytest.raises(InputError, match="2 data sets are sealed here; choose one: ") as caught:
        inspect(above, "")
    assert f"{uri} (20 samples)" in str(caught.value)
    assert f"{other} (20 samples)" in str(caught.value)


def test_triplets_are_shown_with_their_votes(tmp_path: Path, smoke: Recipe, capsys: pytest.CaptureFixture[str]) -> None:
    """Each figure has the three pictures, and how people voted."""
    nights = write_nights(tmp_path / "nights")
    uri, _ = stage_triplets(root=str(tmp_path), source=str(nights), recipe=smoke, max_reject_fraction=0.1, from_pairs="")
    inspect(uri, str(tmp_path / "sheet"))
    assert "people" in capsys.readouterr().out
    page = (tmp_path / "sheet" / "index.html").read_text(encoding="utf-8")
    assert page.count("data:image/png") == 3 * page.count("<figure>") > 10
    assert "votes 1 : 0, target 0.00" in page
    assert "votes 0 : 1, target 1.00" in page


def test_a_stage_is_shown_by_its_progress(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """First and last of each figure, and that it is not finished."""
    lines = [{"time": 1.0, "step": 10, "loss": 4.5}, {"time": 2.0, "step": 20, "loss": 3.25, "val_2afc": 0.7}]
    damaged = b'{"step": \xff}\n[1]\n"step"\n{"step":'  # passed over
    (tmp_path / "progress.jsonl").write_bytes(b"".join(json.dumps(line).encode() + b"\n" for line in lines) + damaged)
    inspect(str(tmp_path), "")
    shown = capsys.readouterr().out
    assert "4.5" in shown
    assert "3.25" in shown
    assert "not finished" in shown


def test_a_folder_of_neither_sort_is_refused(tmp_path: Path) -> None:
    """In one line that says what was looked for."""
    with pytest.raises(InputError, match="neither a sealed data set"):
        inspect(str(tmp_path), "")
