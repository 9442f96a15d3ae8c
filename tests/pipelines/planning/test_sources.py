"""Where data come from: what is not there is refused at once, and how many samples there will be."""

from pathlib import Path

import pytest

from pipelines.planning.sources import DEMO_PAIRS, NIGHTS, require_source, training_samples
from tests.data import datasets
from trainer.config import DataConfig
from trainer.configs import load_recipe
from trainer.errors import InputError
from trainer.storage import write_bytes


@pytest.mark.parametrize("uri", ["", "demo", "https://example.org/list.csv", "http://example.org/nights.zip"])
def test_what_staging_alone_can_find_is_left_to_it(uri: str):
    require_source("--pairs", uri)


@pytest.mark.parametrize("form", ["{}", "file://{}"])
def test_a_local_source_must_exist(tmp_path: Path, form: str):
    """A folder with something in it, or a file; the line names the setting and the place."""
    (tmp_path / "there").mkdir()
    (tmp_path / "there" / "a.tar").write_bytes(b"x")
    (tmp_path / "empty").mkdir()

    require_source("--pairs", form.format(tmp_path / "there"))
    require_source("--pairs", form.format(tmp_path / "there" / "a.tar"))
    for name, why in (("nosuch", "no such file or folder"), ("empty", "an empty folder")):
        uri = form.format(tmp_path / name)
        with pytest.raises(InputError) as caught:
            require_source("--pairs", uri)
        assert str(caught.value) == f"--pairs {uri}: {why}"


def test_a_source_in_s3_must_hold_an_object(s3_root: str):
    """A prefix, an object, a bucket; what lies beside it under a longer name does not count."""
    write_bytes(f"{s3_root}/pairs/a.tar", b"x")

    for uri in (f"{s3_root}/pairs", f"{s3_root}/pairs/", f"{s3_root}/pairs/a.tar", "/".join(s3_root.split("/")[:3])):
        require_source("--pairs", uri)
    with pytest.raises(InputError, match=r"--triplets s3://.*/pair: no such file or folder"):
        require_source("--triplets", f"{s3_root}/pair")
    with pytest.raises(InputError, match="nosuch-bucket"):
        require_source("--triplets", "s3://nosuch-bucket/pairs")


def test_a_list_s_description_must_exist_with_its_files(tmp_path: Path):
    """Each file that it names, too; what lies on the web is not asked for."""
    described = tmp_path / "list.yaml"
    with pytest.raises(InputError, match=r"list\.yaml: no such file"):
        require_source("--pairs", str(described))

    described.write_text(f"kind: urls\nlist: {tmp_path}/urls.csv\nmetadata: https://example.org/metadata.tsv\n")
    with pytest.raises(InputError, match=r"--pairs .*list\.yaml: list .*urls\.csv: no such file or folder"):
        require_source("--pairs", str(described))

    (tmp_path / "urls.csv").write_text("url,caption\n")
    require_source("--pairs", str(described))


def test_staged_data_are_counted(tmp_path: Path):
    """The training split alone."""
    shards = [*datasets.pairs([3, 2]), *datasets.pairs([4], split="test")]
    data = datasets.write_dataset(str(tmp_path), "pairs", shards)

    found = training_samples("pairs", data, "", load_recipe("paper"))

    assert (found.count, found.said, found.known) == (5, "staged: tests", True)


def test_what_is_not_staged_is_known_of_its_list(tmp_path: Path):
    described = tmp_path / "list.yaml"
    described.write_text("kind: yfcc15m-slip\nlist: https://example.org/list\n")
    recipe = load_recipe("paper")

    pairs = training_samples("pairs", DataConfig(), str(described), recipe)
    triplets = training_samples("triplets", DataConfig(), "https://example.org/nights.zip", recipe)

    assert (pairs.count, pairs.known) == (14_689_580, True)
    assert (triplets.count, triplets.known) == (NIGHTS, True)


def test_the_demo_is_known_and_the_paper_s_data_are_taken_for_yfcc15m():
    """So that a plan of `paper` without data shows what it is meant for; nothing is refused for a guess."""
    demo, paper, mine = (
        training_samples("pairs", DataConfig(), source, load_recipe(recipe))
        for source, recipe in (("", "demo"), ("", "paper"), ("/my/pictures", "demo"))
    )

    assert (demo.count, demo.known) == (DEMO_PAIRS, True)
    assert (paper.count, paper.known) == (14_829_396, False)
    assert "assumed for YFCC15M" in paper.said
    assert not mine.known
    assert (mine.guessed, paper.guessed) == (True, False)


def test_pictures_in_a_folder_are_counted(tmp_path: Path):
    """Roughly: what training takes is estimated before anything is staged; nothing is refused for it."""
    (tmp_path / "below").mkdir()
    for number in range(10):
        (tmp_path / "below" / f"{number}.JPG").touch()
        (tmp_path / "below" / f"{number}.txt").touch()

    found = training_samples("pairs", DataConfig(), str(tmp_path), load_recipe("demo"))

    assert (found.count, found.known, found.guessed) == (8, False, False)
