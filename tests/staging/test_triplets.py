import csv
import dataclasses
import io
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.staging.conftest import facts, photo_folder, picture, samples
from trainer.config import Recipe
from trainer.errors import InputError
from trainer.staging.shards import agreement, mse_accuracy
from trainer.staging.sources.nights import COLUMNS
from trainer.staging.stage import stage_pairs, stage_triplets
from trainer.storage.manifest import Manifest

StageThree = Callable[..., tuple[str, Manifest]]


def nights_folder(folder: Path, votes: Sequence[tuple[object, object, object]], **changes: str) -> Path:
    """A folder in NIGHTS layout, one row for each (left_vote, right_vote, votes); `changes` renames columns."""
    for part in ("ref/000", "distort/000"):
        (folder / part).mkdir(parents=True)
    rows = []
    for number, (left, right, count) in enumerate(votes):
        paths = [f"ref/000/{number:03d}.png", f"distort/000/{number:03d}_0.png", f"distort/000/{number:03d}_1.png"]
        for offset, path in enumerate(paths):
            (folder / path).write_bytes(picture(3 * number + offset, (60, 40)))
        split = ("train", "train", "train", "val", "test")[number % 5]
        rows.append([str(number), left, right, count, *paths, split, number % 2 == 0, "a prompt"])
    with open(folder / "data.csv", "w", encoding="utf-8", newline="") as stream:
        csv.writer(stream).writerows([[changes.get(column, column) for column in COLUMNS], *rows])
    return folder


def with_min_votes(recipe: Recipe, votes: int) -> Recipe:
    """The recipe with another perceptual.min_votes."""
    return dataclasses.replace(recipe, perceptual=dataclasses.replace(recipe.perceptual, min_votes=votes))


def test_nights_comes_in_with_votes_splits_and_groups(tmp_path: Path, stage_three: StageThree) -> None:
    """Squashed, lossless, judged by people; a fraction of the votes is the target."""
    uri, manifest = stage_three(nights_folder(tmp_path / "nights", [(0, 1, 8), (1, 0, 8), (2, 6, 8), (0, 1, 8), (1, 0, 8)]))
    staged = samples(uri, manifest)
    assert manifest.judge == "people"
    assert manifest.facts["splits"] == {"train": 3, "val": 1, "test": 1}
    assert [facts(staged[key])["target"] for key in sorted(staged)] == [1.0, 0.0, 0.75, 1.0, 0.0]
    assert [facts(staged[key])["is_imagenet"] for key in sorted(staged)] == [True, False, True, False, True]
    assert facts(staged["000002"]) | {"left_vote": 2.0, "right_vote": 6.0, "votes": 8, "prompt": "a prompt"} == facts(staged["000002"])
    assert "flip_0" not in facts(staged["000000"])
    for data in staged["000000"][:3]:
        assert Image.open(io.BytesIO(data)).size == (32, 32)


def test_triplets_with_few_votes_are_left_out_and_counted(tmp_path: Path, smoke: Recipe, stage_three: StageThree) -> None:
    """They are no fault of the data."""
    folder = nights_folder(tmp_path / "nights", [(0, 1, 8), (1, 0, 2), (0, 1, 8), (1, 0, 3), (0, 1, 6)])
    _, manifest = stage_three(folder, recipe=with_min_votes(smoke, 6))
    assert manifest.rows == {"read": 5, "written": 3, "lost": {"too few votes": 2}}


def test_a_row_whose_vote_is_empty_has_no_votes(tmp_path: Path, stage_three: StageThree) -> None:
    """It is left out and counted, and no fault of the data, however many there are; an empty sum of votes is what the two add up to."""
    votes = [(0, 1, 8), ("", 1, 8), (0, " ", 8), ("", "", ""), (float("nan"), 1, 8), (0, 0, 8), ("2", "6", ""), (1, 0, 8), (1, 0, "nan")]
    uri, manifest = stage_three(nights_folder(tmp_path / "nights", votes))
    assert manifest.rows == {"read": 9, "written": 4, "lost": {"no votes": 5}}
    assert [facts(members)["votes"] for _, members in sorted(samples(uri, manifest).items())] == [8, 8, 8, 1]
    (listed,) = Path(uri, "rejects").glob("*.jsonl")
    assert '"detail": "left_vote is empty"' in listed.read_text(encoding="utf-8")


def test_too_few_triplets_are_refused_before_flip(tmp_path: Path, smoke: Recipe, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of pictures from which too few can come, of pictures that are too few for the stage on pairs, and of judged triplets."""
    monkeypatch.setattr("trainer.staging.generate._judge_all", lambda *args: pytest.fail("FLIP was begun"))
    given = {"root": str(tmp_path / "root"), "recipe": smoke, "max_reject_fraction": 0.01, "from_pairs": ""}
    photos = str(photo_folder(tmp_path / "photos", 10))
    line = r"10 pairs, of which 8 are left for training: needs at least 80 for recipe smoke \(contrastive.global_batch_size 64\); try a"
    with pytest.raises(InputError, match=line):
        stage_triplets(**{**given, "source": "", "from_pairs": photos}, for_stages=("perceptual", "contrastive"))
    large = dataclasses.replace(smoke, name="large", perceptual=dataclasses.replace(smoke.perceptual, global_batch_size=1000))
    line = r"triplets, of which \d+ are left for training: needs at least [\d,]+ for recipe large .*1,000\); try RECIPE=smoke or a"
    with pytest.raises(InputError, match=line):
        stage_triplets(**{**given, "source": "", "from_pairs": photos, "recipe": large}, for_stages=("perceptual",))
    nights = str(nights_folder(tmp_path / "nights", [(0, 1, 8)] * 5))
    with pytest.raises(InputError, match=r"nights: 5 triplets, of which 3 are left for training: needs at least 27"):
        stage_triplets(**given, source=nights, for_stages=("perceptual", "contrastive"))
    assert not list((tmp_path / "root").rglob("manifest.json"))


def test_flip_judges_beside_people_where_the_recipe_asks(tmp_path: Path, smoke: Recipe, stage_three: StageThree) -> None:
    """The arm `judged` learns from it; the votes stay."""
    recipe = dataclasses.replace(smoke, staging=dataclasses.replace(smoke.staging, flip_judges_too=True))
    uri, manifest = stage_three(nights_folder(tmp_path / "nights", [(0, 1, 8)] * 5), recipe=recipe)
    for members in samples(uri, manifest).values():
        assert facts(members)["flip_0"] > 0
        assert facts(members)["target"] == 1.0


@pytest.mark.parametrize(
    ("votes", "changes", "message"),
    [
        ([(0, 1, 8)] * 3, {"right_vote": "right"}, "no column 'right_vote'"),
        ([(0, 1, 8), (float("inf"), 1, 8)], {}, "row 3: left_vote: must be a number from 0 to 999999, got 'inf'"),
        ([(0, 1, 8), ("x", 1, 8)], {}, "row 3: left_vote: must be a number from 0 to 999999, got 'x'"),
    ],
)
def test_a_bad_table_is_refused(
    tmp_path: Path, stage_three: StageThree, votes: Sequence[tuple[object, object, object]], changes: dict[str, str], message: str
) -> None:
    """In one line that names row and column."""
    with pytest.raises(InputError, match=message):
        stage_three(nights_folder(tmp_path / "nights", votes, **changes))


def test_a_folder_without_data_csv_is_refused(tmp_path: Path, stage_three: StageThree) -> None:
    """And says what a triplets folder looks like."""
    with pytest.raises(InputError, match=r"no data\.csv"):
        stage_three(photo_folder(tmp_path / "photos", 3))


def test_bapps_comes_in_with_fractional_votes(tmp_path: Path, stage_three: StageThree) -> None:
    """Its val is our test, its judgement the target."""
    for split, count in (("train", 30), ("val", 4)):
        for number in range(count):
            folder = tmp_path / "bapps" / "2afc" / split / "cnn"
            for part in ("ref", "p0", "p1", "judge"):
                (folder / part).mkdir(parents=True, exist_ok=True)
            for seed, part in enumerate(("ref", "p0", "p1")):
                (folder / part / f"{number:06d}.png").write_bytes(picture(number * 3 + seed))
            np.save(folder / "judge" / f"{number:06d}.npy", np.array([0.8 if split == "val" else 0.5], np.float32))
    uri, manifest = stage_three(tmp_path / "bapps")
    assert manifest.facts["splits"]["test"] == 4
    assert manifest.facts["splits"]["train"] + manifest.facts["splits"].get("val", 0) == 30
    targets = {facts(members)["split"]: round(facts(members)["target"], 3) for members in samples(uri, manifest).values()}
    assert targets["test"] == 0.8


def test_own_pictures_make_triplets(tmp_path: Path, smoke: Recipe, stage_three: StageThree) -> None:
    """Where there are no judgements: judged by FLIP, pixel MSE right half of the time, every split there."""
    uri, manifest = stage_three(from_pairs=photo_folder(tmp_path / "photos", 30))
    assert manifest.name == "photos-triplets"
    assert manifest.judge == "FLIP"
    assert set(manifest.facts["splits"]) == {"train", "val", "test"}
    assert set(mse_accuracy(uri, manifest.shards).values()) == {0.5}


def test_agreement_counts_votes_and_ties() -> None:
    """The majority's choice scores 1, the other 0, a tie of votes or of distances one half."""
    assert agreement(0.1, 0.2, 0.0) == 1.0
    assert agreement(0.1, 0.2, 1.0) == 0.0
    assert agreement(0.1, 0.2, 0.5) == 0.5
    assert agreement(0.2, 0.2, 1.0) == 0.5


def test_pairs_that_are_refused_have_no_triplets_judged(tmp_path: Path, smoke: Recipe, monkeypatch: pytest.MonkeyPatch) -> None:
    """For kinds that are not read, before FLIP begins; for pictures that do not open, as soon as there are too many of them."""
    given = {"root": str(tmp_path / "root"), "recipe": smoke, "max_reject_fraction": 0.01, "source": ""}
    photos = photo_folder(tmp_path / "photos", 20)
    for number in range(5):
        (photos / f"p{number:03d}.png").write_bytes(picture(number)[:300])
    line = r"photos: 1 of \d+ samples are bad \(5.\d%, --max-reject-fraction allows 1.0%\): 1 x (truncated|broken) image \(such as p00\d"
    with pytest.raises(InputError, match=line):
        stage_triplets(**given, from_pairs=str(photos))
    monkeypatch.setattr("trainer.staging.generate._judge_all", lambda *args: pytest.fail("FLIP was begun"))
    for number in range(5):
        (photos / f"p{number:03d}.png").rename(photos / f"p{number:03d}.heic")
    with pytest.raises(InputError, match=r"photos: 5 of 20 samples are bad .*: 5 x kind of file not read .*; all are listed in") as caught:
        stage_triplets(**given, from_pairs=str(photos))
    listed = Path(str(caught.value).rpartition(" ")[2], "plan.jsonl").read_text(encoding="utf-8")
    assert listed.count("kind of file not read") == 5
    pairs = {key: value for key, value in given.items() if key != "source"}
    with pytest.raises(InputError) as of_pairs:
        stage_pairs(**pairs, source=str(photos), for_stages=("contrastive",))
    assert str(of_pairs.value) == str(caught.value)
    for photo in photos.glob("*.png"):
        photo.unlink()
    (photos / "p000.png").write_bytes(picture(1))
    (photos / "p000.txt").write_text("")
    lines = []
    for stage, source in ((stage_triplets, {"source": "", "from_pairs": str(photos)}), (stage_pairs, {"source": str(photos)})):
        with pytest.raises(InputError, match="no picture is left for training") as caught:
            stage(**pairs, **source)
        lines.append(str(caught.value))
    assert len(set(lines)) == 1
