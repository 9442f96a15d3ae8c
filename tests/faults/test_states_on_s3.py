"""One object of each kind damaged on an S3 server, as tests/faults/test_states.py does it on files."""

import random
from pathlib import Path

import pytest

from tests.faults.making import in_this_process, make
from tests.faults.test_states import KIND_NAMES, carry_out, is_of_kind
from tests.faults.trials import trials_of
from tests.servers import S3Server

pytestmark = pytest.mark.timeout(1800)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("server", "kinds"),
    [("s3_server", KIND_NAMES[::4]), ("minio_server", [name for name in KIND_NAMES if name not in KIND_NAMES[::4]])],
    ids=["seaweedfs", "minio"],
)
def test_objects_of_each_kind_on_s3(
    server: str, kinds: list[str], request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As on files, with an ETag for a stamp; other kinds on each server."""
    found: S3Server = request.getfixturevalue(server)
    for name, value in found.environment.items():
        monkeypatch.setenv(name, value)
    with in_this_process():
        made = make(f"{found.make_bucket()}/root", tmp_path / "source")
        draw, trials = random.Random(server), []
        for name in kinds:
            places = [(state, place) for state, objects in made.states.items() for place in objects if is_of_kind(made, place, name)]
            trials.append(draw.choice(trials_of(made, *draw.choice(places), seed=len(trials)))) if places else None
        carry_out(made, trials)
