"""docs/DAY_TWO.md's commands, in its order: an experiment is backed up, lost, restored elsewhere, brought to its end, and removed.

The experiment is the one that commit ad127be left with one cell finished and another stopped in the middle, so what a run that was never
disturbed ends with is known to the bit.
"""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from tests import old_store
from tests.docs.blocks import Block, checkout, read_blocks, run_script
from tests.reference import reference_python
from tests.servers import S3Server
from trainer.storage import join, open_store, read_json, write_bytes
from trainer.storage.committed import read_committed
from trainer.storage.plans import read_plan

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]
AWS = Path(__file__).parents[2] / "requirements" / "operator.txt"
BLOCKS = [block for block in read_blocks("docs/DAY_TWO.md") if block.how == "run"]


def named(command: str) -> int:
    """The number of the first block with this command: where the story turns."""
    return next(number for number, block in enumerate(BLOCKS) if command in block.text)


def script(blocks: list[Block]) -> str:
    """Their lines as one script, each shown before it is run."""
    return "set -v\n" + "".join(block.text for block in blocks)


@pytest.fixture(params=["s3_server", "minio_server"])
def server(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> S3Server:
    """SeaweedFS, and MinIO behind TLS, whose certificate the CLI takes by a variable that firstsight reads too."""
    found: S3Server = request.getfixturevalue(request.param)
    for name, value in {**found.environment, "AWS_CA_BUNDLE": found.ca_file}.items():
        monkeypatch.setenv(name, value) if value else monkeypatch.delenv(name, raising=False)
    return found


@pytest.fixture
def place(tmp_path: Path, server: S3Server) -> tuple[Path, dict[str, str]]:
    """A checkout with the request of the experiment, whose root lies in a bucket; and the page's variables."""
    old, root = old_store.unpack(tmp_path), f"{server.make_bucket()}/team-a"
    for path in (path for path in old.rglob("*") if path.is_file()):
        data = path.read_bytes()
        if path.suffix in old_store.TEXTS:
            data = data.replace(str(old).encode(), root.encode())
        write_bytes(join(root, str(path.relative_to(old))), data)
    recipe = json.loads((old / "experiments/tiny/plan.json").read_text())["recipe"]
    shutil.rmtree(old)
    folder = checkout(tmp_path / "checkout")
    request: dict[str, Any] = {
        "experiment": "tiny", "recipe": recipe, "pairs": str(tmp_path / "source/shapes"), "triplets": str(tmp_path / "source/votes"),
        "placement": {"threads": 1, "log_every_steps": 40, "device": "cpu"},
    }  # fmt: skip
    (folder / "experiment.yaml").write_text(json.dumps(request))
    new = f"{server.make_bucket()}/moved/team-b"
    variables = {"ROOT": root, "NEW": new, "BACKUP": str(tmp_path / "backup"), "EXPERIMENT": "tiny"}
    return folder, variables | old_store.unfinished()["environment"]


def test_an_experiment_is_backed_up_lost_restored_finished_and_removed(place: tuple[Path, dict[str, str]], server: S3Server):
    """Same hashes, same figures, the same bits as a run that was never stopped; what a rule may not delete is still there.

    On MinIO without the lifecycle rule, which it lacks, as the page says.
    """
    folder, variables = place
    aws = reference_python(AWS).parent
    before = read_plan(f"{variables['ROOT']}/experiments/tiny")
    scores = read_json(f"{variables['ROOT']}/experiments/tiny/report/results.json")["scores"]
    assert before is not None
    lost, removed = named('sync "$BACKUP" "$NEW"'), named("pipelines remove")

    done = run_script(script(BLOCKS[:lost]), folder, variables, aws)
    assert done.returncode == 0, done.stdout
    assert "everything matches what was sealed" in done.stdout
    for info in list(open_store(variables["ROOT"]).list(variables["ROOT"])):
        open_store(variables["ROOT"]).delete(info.uri)
    bucket = variables["ROOT"].split("/")[2]
    server.client.remove_bucket(bucket)
    done = run_script(script([BLOCKS[0], *BLOCKS[lost:removed]]), folder, variables, aws)
    assert done.returncode == 0, done.stdout
    _is_the_same_experiment(variables["NEW"], before, scores)

    write_bytes(join(variables["NEW"], "datasets/old-pairs/0/plan.json"), b"{}")
    server.client.make_bucket(bucket)
    last = [block for block in BLOCKS[removed:] if not (server.ca_file and "lifecycle" in block.text)]
    done = run_script(script([BLOCKS[0], *last]), folder, variables, aws)
    assert done.returncode == 0, done.stdout
    left = [info.uri.removeprefix(f"{variables['NEW']}/") for info in open_store(variables["NEW"]).list(variables["NEW"])]
    assert sum(name.startswith("datasets/") and name.endswith("/manifest.json") for name in left) >= 4, left
    assert not [name for name in left if name.startswith(("experiments/", "runs/", "datasets/old-pairs/"))]


def _is_the_same_experiment(root: str, before: dict[str, Any], scores: list[dict[str, Any]]) -> None:
    plan, known = read_plan(join(root, "experiments/tiny")), old_store.unfinished()
    assert plan is not None
    assert plan["root"] == root
    assert [entry["recipe_hashes"] for entry in plan["cells"]] == [entry["recipe_hashes"] for entry in before["cells"]]
    assert [plan[what]["identity"] for what in ("pairs", "triplets")] == [before[what]["identity"] for what in ("pairs", "triplets")]
    seal = read_committed(join(root, known["stage"], "final"))
    assert seal is not None
    assert (seal.step, seal.recipe_hash) == (known["seal"]["step"], known["seal"]["recipe_hash"])
    if torch.__version__ == known["torch"]:
        assert seal.facts["weights_sha256"] == known["weights_sha256"]
    page = read_json(join(root, "experiments/tiny/report/results.json"))
    assert page["missing"] == []
    assert [row for row in scores if row not in page["scores"]] == []
    log = read_log(root, known["stage"])
    assert "resum" in log, log


def read_log(root: str, stage: str) -> str:
    """What the trainer said while it finished the stage."""
    return open_store(root).get(join(root, stage, "log.txt")).decode()
