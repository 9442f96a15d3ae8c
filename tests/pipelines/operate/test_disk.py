"""`python -m pipelines disk`: what each experiment takes, by what it is for, and who uses which data set."""

import json
from pathlib import Path

import pytest

from pipelines.__main__ import main
from pipelines.operate.disk import PARTS, measure
from tests import old_store
from tests.pipelines.whole import Whole


def test_every_byte_is_counted_once(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    """Against the files themselves, in a root that an older version wrote, with a checkpoint and real data."""
    root = old_store.unpack(tmp_path)
    (root / "experiments/tiny/.note.write-x.partial").write_bytes(b"under way")
    sizes = {path: path.stat().st_size for path in root.rglob("*") if path.is_file() and not path.name.endswith(".partial")}

    assert main(["disk", "--root", str(root), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)

    assert found["size"] == sum(sizes.values())
    tiny = found["experiments"]["tiny"]
    assert (
        tiny["size"]
        == sum(tiny["parts"].values())
        == sum(size for path, size in sizes.items() if root / "experiments/tiny" in path.parents)
    )
    assert list(tiny["parts"]) == list(PARTS)
    assert tiny["parts"]["checkpoints"] == sum(size for path, size in sizes.items() if "checkpoints" in path.parts)
    assert tiny["parts"]["models"] == sum(size for path, size in sizes.items() if "final" in path.parts)
    assert tiny["parts"]["figures"] == sum(size for path, size in sizes.items() if "evaluation" in path.parts)
    for uri, one in found["data_sets"].items():
        assert one["sealed"]
        assert one["size"] == sum(size for path, size in sizes.items() if Path(uri) in path.parents)
        assert one["used_by"] == ["tiny"]
    assert {Path(uri) for uri in found["data_sets"]} == {path.parent for path in root.glob("datasets/*/*/manifest.json")}


def test_an_experiment_is_shown_with_its_data_alone(whole: Whole, capsys: pytest.CaptureFixture[str]):
    whole.run()
    unsealed = whole.root / "datasets/begun/0123/plan.json"
    unsealed.parent.mkdir(parents=True)
    unsealed.write_bytes(b"x" * 1500)

    assert main(["disk", "--root", str(whole.root)]) == 0
    said = " ".join(capsys.readouterr().out.split())
    assert f"{unsealed.parent} 1 1.5 kB no experiment here; not sealed" in said
    assert main(["disk", "smoke", "--root", str(whole.root)]) == 0
    said = capsys.readouterr().out
    assert "begun" not in said
    assert str(whole.root / "datasets/demo-pairs") in said
    assert main(["disk", "smoke", "--root", str(whole.root), "--uris"]) == 0
    data = [str(whole.root / "datasets" / name / "p") for name in ("demo-pairs", "demo-triplets")]
    assert capsys.readouterr().out.splitlines() == [str(whole.folder), *data]


def test_what_is_not_there_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    assert main(["disk", "--root", str(tmp_path)]) == 0
    assert capsys.readouterr().out == f"no experiments and no data sets in {tmp_path}\n"
    assert main(["disk", "smoke", "--root", str(tmp_path)]) == 2
    assert "experiments/smoke: no experiment here: `python -m pipelines disk --root" in capsys.readouterr().err


def test_a_damaged_plan_does_not_hide_what_the_experiment_takes(whole: Whole):
    """Its data are then those that its staging named."""
    whole.run()
    before = measure(str(whole.root))
    (whole.folder / "plan.json").write_bytes(b"{")

    after = measure(str(whole.root))

    assert after.experiments["smoke"].data == before.experiments["smoke"].data != []
