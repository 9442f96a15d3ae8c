from pathlib import Path

import pytest

from tests.faults import experiment
from tests.faults.experiment import Experiment
from tests.faults.making import in_this_process, write_sources


@pytest.fixture(scope="session")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder `runs` with the finished small experiment `first`: real data, three cells trained, evaluated and reported."""
    folder = tmp_path_factory.mktemp("library")
    with in_this_process() as patch:
        patch.setattr(experiment, "NAME", "first")
        made = Experiment(root=str(folder / "runs"), source=folder / "source")
        write_sources(made.source, seed=0)
        ended = made.run()
        assert ended.code == 0, ended
    return folder / "runs"


@pytest.fixture(scope="session")
def first(root: Path) -> Path:
    """That experiment's folder."""
    return root / "experiments" / "first"
