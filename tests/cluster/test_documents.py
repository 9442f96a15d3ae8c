"""The blocks of the operators' pages that need a cluster, as they stand and in the order of the pages: install, label, quota, keys."""

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests import old_store
from tests.cluster import chart, harness, programs
from tests.docs.blocks import Block, all_blocks, checkout, count, read_blocks, run_script
from tests.reference import reference_python

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(900)]
NAMESPACE = "ml"
"""Of the pages' examples."""
BLOCKS = [block for block in all_blocks() if block.how == "cluster"]


@pytest.fixture(scope="module")
def place(kubectl: Any, monitoring: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A checkout with my-values.yaml in it, and a cluster that has no namespace of the examples'."""
    if harness.get("namespace", "default", NAMESPACE) is not None:
        pytest.skip(f"the namespace {NAMESPACE} of the pages' examples is somebody's here")
    folder = checkout(tmp_path_factory.mktemp("documents") / "checkout")
    if harness.own_cluster():
        chart.store_volume(NAMESPACE, tmp_path_factory.mktemp("store"), "firstsight-minio")
    (folder / "my-values.yaml").write_text(json.dumps(chart.values()))
    try:
        yield folder
    finally:
        if harness.get("namespace", "default", NAMESPACE) is not None:
            harness.remove_namespace(NAMESPACE)
        harness.kubectl("wait", "--for=delete", f"namespace/{NAMESPACE}", "--timeout=180s")  # the next session uses the name again


def run(blocks: list[Block], folder: Path) -> str:
    """What they said."""
    environment = {**harness.environment(), "NEW_KEY": "new-key", "NEW_SECRET": "new-secret"}
    done = run_script("set -v\n" + "".join(block.text for block in blocks), folder, environment, programs.program("kubectl").parent)
    assert done.returncode == 0, f"{done.stdout}\n{harness.describe(NAMESPACE)}"
    return done.stdout


def test_the_pages_install_the_chart_and_rotate_its_keys(place: Path):
    """In the order of the pages; what each is for has happened."""
    first = next(number for number, block in enumerate(BLOCKS) if "helm upgrade" in block.text)
    said = run(BLOCKS[:first], place)
    assert "all is well" in said
    assert "Phase:          Succeeded" in said
    assert said.count("created (server dry run)") >= 2
    labels = harness.kubectl("get", "namespace", NAMESPACE, "-o", "jsonpath={.metadata.labels}")
    assert json.loads(labels)["app.kubernetes.io/part-of"] == "kubeflow-profile"
    quota = harness.get("resourcequota", NAMESPACE, "firstsight")
    assert quota is not None
    before = chart.keys(NAMESPACE, "firstsight")

    run(BLOCKS[first:], place)

    after = chart.keys(NAMESPACE, "firstsight")
    assert after["AWS_ACCESS_KEY_ID"] == before["AWS_ACCESS_KEY_ID"]
    assert after["AWS_SECRET_ACCESS_KEY"] != before["AWS_SECRET_ACCESS_KEY"]
    assert chart.keys(NAMESPACE, "s3-team-a") == {"AWS_ACCESS_KEY_ID": "new-key", "AWS_SECRET_ACCESS_KEY": "new-secret"}
    with chart.forwarded(NAMESPACE, "svc/firstsight-minio", 9000) as address:
        _may_list(address, after)
        with pytest.raises(AssertionError, match="refused"):
            _may_list(address, before)
    print(f"blocks of the operators' pages: {count(all_blocks())}")


def test_day_two_on_the_bundled_store(place: Path, tmp_path: Path):
    """Its commands with the run's own keys, except the run and the rule that MinIO lacks: back up, lose, restore, verify, remove."""
    old = old_store.unpack(tmp_path)
    blocks = [block for block in read_blocks("docs/DAY_TWO.md") if block.how == "run"]
    blocks = [block for block in blocks if "pipelines run" not in block.text and "lifecycle" not in block.text]
    lost = next(number for number, block in enumerate(blocks) if 'sync "$BACKUP" "$NEW"' in block.text)
    root, new = (f"s3://firstsight/{NAMESPACE}/{name}" for name in ("one", "two"))
    aws = reference_python(Path(__file__).parents[2] / "requirements" / "operator.txt").parent
    with chart.forwarded(NAMESPACE, "svc/firstsight-minio", 9000) as address:
        environment = {
            **harness.environment(), **chart.keys(NAMESPACE, "firstsight"), "AWS_ENDPOINT_URL_S3": f"http://{address}",
            "ROOT": root, "NEW": new, "EXPERIMENT": "tiny", "BACKUP": str(tmp_path / "backup"),
        }  # fmt: skip
        start = f'aws s3 sync "{old}" "$ROOT" --no-progress --quiet\n'
        done = run_script(start + "".join(block.text for block in blocks[:lost]), place, environment, aws)
        assert done.returncode == 0, done.stdout
        shutil.rmtree(old)
        start = f'{blocks[0].text}aws s3 rm --recursive --quiet "$ROOT"\n'
        done = run_script(start + "".join(block.text for block in blocks[lost:]), place, environment, aws)
        assert done.returncode == 0, done.stdout
    assert "everything matches what was sealed" in done.stdout
    assert f"deleted {new}/experiments/tiny" in done.stdout


def _may_list(address: str, keys: dict[str, str]) -> None:
    """Whether these keys open the run's root."""
    from minio import Minio
    from minio.error import S3Error

    client = Minio(address, keys["AWS_ACCESS_KEY_ID"], keys["AWS_SECRET_ACCESS_KEY"], secure=False, region="us-east-1")
    try:
        list(client.list_objects("firstsight", prefix=f"{NAMESPACE}/"))
    except S3Error as error:
        raise AssertionError(f"refused: {error.code}") from error
