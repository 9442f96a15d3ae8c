import shutil
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest

from tests.report.fabricate import Fabrication, fabricate
from trainer.report.write import write_report
from trainer.storage import join, read_bytes, read_json, write_json
from trainer.storage.committed import NAME, read_committed
from trainer.storage.layout import CONFIG

Written = tuple[str, dict[str, Any]]


@pytest.fixture(scope="session")
def one_seed(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The demo's shape: random and perceptual, one seed. Read it, do not change it."""
    return fabricate(tmp_path_factory.mktemp("one"), Fabrication(items=80))


@pytest.fixture(scope="session")
def three_seeds(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Three seeds, five arms, several sets, checkpoints evaluated; perceptual is better by far. Read it, do not change it."""
    what = Fabrication(
        arms=("random", "perceptual", "permuted", "instance", "posthoc"),
        seeds=(0, 1, 2),
        effects={"perceptual": 0.4, "permuted": 0.02},
        zero_shot_sets=3,
        items=80,
        checkpoints=(80,),
    )
    return fabricate(tmp_path_factory.mktemp("three"), what)


@pytest.fixture(scope="session")
def small(one_seed: str) -> Written:
    """The report of one seed: its page and its results."""
    return page_after(one_seed)


@pytest.fixture(scope="session")
def large(three_seeds: str) -> Written:
    """The report of three seeds and five arms."""
    return page_after(three_seeds)


@pytest.fixture(autouse=True)
def _undrawn(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Figures are made, but not drawn, which takes half of the time of a page: `small`, `large` and tests of figures draw them."""
    if request.path.name not in ("test_figures.py", "test_write.py"):
        monkeypatch.setattr("trainer.report.figures._svg", lambda figure, name: "<svg></svg>")


def page_after(uri: str) -> Written:
    """Write the report; its page and its results."""
    results: dict[str, Any] = read_json(write_report(uri, [])["results"])
    return page_of(uri), results


def page_of(uri: str) -> str:
    """The page that lies in an experiment's folder."""
    return read_bytes(join(uri, "report", "index.html")).decode()


@pytest.fixture(scope="session")
def untouched(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path, str]:
    """A small experiment where it lies (its plan names places), and a copy to restore it from."""
    place = tmp_path_factory.mktemp("fresh") / "root"
    uri = fabricate(place, Fabrication(items=40))
    return place, Path(shutil.copytree(place, place.with_name("copy"))), uri


@pytest.fixture
def fresh(untouched: tuple[Path, Path, str]) -> str:
    """An experiment to break: whole again before every test."""
    place, copy, uri = untouched
    shutil.rmtree(place)
    shutil.copytree(copy, place)
    return uri


@pytest.fixture
def older(fresh: str) -> str:
    """The same as older versions left it: its seals are of format 1, which has no checksums of lineage and course."""
    for place in Path(fresh).rglob(NAME):
        seal = read_committed(str(place.parent))
        assert seal is not None
        value = {key: part for key, part in asdict(seal).items() if key != "beside"}
        write_json(str(place), {**value, "format_version": 1})
    for place in Path(fresh).rglob(CONFIG):
        place.write_text(place.read_text().partition("\n")[2])
    return fresh
