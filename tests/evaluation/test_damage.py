"""Every object that an evaluation reads or writes, damaged alone and in pairs: the same figures again, or an error that names it."""

import random
import shutil
from pathlib import Path
from typing import Any

import pytest

from tests.damage import KINDS, damage, files, restore
from tests.evaluation import build
from tests.evaluation.test_evaluate import make_cell
from trainer.config import DataConfig, EvaluationConfig
from trainer.errors import Corrupt, InputError, RunError
from trainer.evaluation.evaluate import evaluate
from trainer.storage import read_json, write_json
from trainer.storage.arrays import read_arrays
from trainer.storage.checked import NAME as CHECKED
from trainer.storage.documents import checksum
from trainer.storage.figures import items_uri, read_figures, write_figures

FIGURES = "contrastive-final/colours_zeroshot_classification.json"
READ = (".safetensors", ".tar", ".index", "manifest.json", "COMMITTED.json")
DONE = {"wanted": 10, "done": 10, "written": 0}


@pytest.fixture(scope="module")
def untouched(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str, dict[Path, bytes]]:
    """A measured cell where its configuration says that it lies, its configuration, and every byte of it."""
    root = tmp_path_factory.mktemp("cell")
    config = make_cell(str(root))
    evaluate(config)
    return root, config, {file: file.read_bytes() for file in files(root)}


@pytest.fixture
def cell(untouched: tuple[Path, str, dict[Path, bytes]]) -> tuple[Path, str]:
    """The same, whole again before every test."""
    root, config, kept = untouched
    restore(root, kept)
    return root, config


def figures(root: Path) -> dict[str, Any]:
    """All figures and items by name; each must be readable and whole."""
    found: dict[str, Any] = {}
    for file in sorted((root / "evaluation").glob("*/*.json")):
        value = read_figures(str(file))
        arrays = read_arrays(items_uri(str(file)), sealed=value["firstsight"]["items"])
        found[str(file.relative_to(root))] = value, {name: array.tolist() for name, array in arrays.items()}
    return found


def test_every_figure_and_its_items_are_measured_again(cell: tuple[Path, str], capsys: pytest.CaptureFixture[str]) -> None:
    """Missing, cut short, with a flipped bit, one after another and in pairs: one line, the same figures, and nothing left to do."""
    root, config = cell
    expected = figures(root)
    written = [file for file in files(root / "evaluation") if file.parent != root / "evaluation"]
    choose = random.Random(0)
    for number in range(6):
        spoilt = choose.sample(written, 1 + number % 2)
        for file in spoilt:
            damage(file, KINDS[number % 3], number)
        capsys.readouterr()
        again = evaluate(config)
        assert again["written"] == len({file.name.partition(".")[0] + file.parent.name for file in spoilt})
        assert number % 3 == 0 or all(file.name in capsys.readouterr().out for file in spoilt[:1])
        assert figures(root) == expected
        assert evaluate(config) == DONE


def test_the_record_of_the_check_decides_nothing(cell: tuple[Path, str]) -> None:
    """However it is damaged, and whatever it says of items that are damaged."""
    root, config = cell
    expected, record = figures(root), root / "evaluation" / CHECKED
    for number, how in enumerate(KINDS):
        damage(record, how, number)
        assert evaluate(config) == DONE
    damage(next((root / "evaluation").rglob("*.npz")), "flipped", 0)
    assert evaluate(config)["written"] == 1
    assert figures(root) == expected


def older(root: Path, how: str) -> None:
    """Put a whole figure in place of another."""
    place = root / "evaluation" / FIGURES
    value, items = read_figures(str(place)), Path(items_uri(str(place))).read_bytes()
    if how == "another split":
        for suffix in (".json", ".items.npz"):
            folder = root / "evaluation" / "contrastive-final"
            shutil.copy(folder / f"triplets-val_2afc{suffix}", folder / f"triplets-test_2afc{suffix}")
    elif how == "items of another model":
        shutil.copy(items_uri(str(place).replace("contrastive-final", "untrained-final")), items_uri(str(place)))
    elif how == "another arm":
        write_figures(str(place), {**value, "firstsight": {**value["firstsight"], "arm": "perceptual"}}, items)
    elif how == "a checksum taken away":
        raw = read_json(str(place))
        del raw["firstsight"]["sha256"]
        write_json(str(place), raw)
    else:
        key, other = how.split("=")
        write_figures(str(place), {**value, "firstsight": {**value["firstsight"], key: other}}, items)


@pytest.mark.parametrize(
    "how",
    [
        "weights_sha256=0", "dataset_identity=0", "evaluation_version=0-exact-fp32", "recipe_hash=0", "prompts=0", "judge=FLIP",
        "another split", "another arm", "items of another model", "a checksum taken away",
    ],
)  # fmt: skip
def test_what_is_whole_but_belongs_elsewhere_is_measured_again(cell: tuple[Path, str], how: str) -> None:
    """Another version of the figure, other figures or items in its place."""
    root, config = cell
    expected = figures(root)
    older(root, how)
    assert evaluate(config)["written"] == 1
    assert figures(root) == expected


@pytest.mark.parametrize("count", [4, pytest.param(10, marks=pytest.mark.campaign)])
def test_inputs_are_verified_as_they_are_read(cell: tuple[Path, str], count: int) -> None:
    """Models, seals and data sets damaged before figures are made: refused, naming them; once they are intact, all works again."""
    root, config = cell
    expected = figures(root)
    kept = {file: file.read_bytes() for file in files(root)}
    sets = [file for name in ("colours", "captions", "triplets") for file in files(root / "datasets" / name)]
    read = [file for file in (*sets, *files(root / "contrastive"), *files(root / "tower")) if file.name in READ or file.suffix in READ]
    choose = random.Random(1)
    for number, file in enumerate(choose.sample(read, count)):
        for model in ("contrastive", "perceptual"):
            shutil.rmtree(root / "evaluation" / f"{model}-final")
        damage(file, how := KINDS[number % 3], number)
        said = ""
        try:
            evaluate(config)
        except (InputError, RunError) as error:
            said = str(error)
        assert str(file.parent) in said, (file, how)
        found = figures(root)
        assert found == {name: expected[name] for name in found}
        file.write_bytes(kept[file])
        assert evaluate(config)["wanted"] == 10
        assert figures(root) == expected


def test_a_damaged_final_model_names_what_makes_it_again(cell: tuple[Path, str]) -> None:
    """It failed during the run: the same stage run again heals it, so it is no wrong input."""
    root, config = cell
    shutil.rmtree(root / "evaluation" / "contrastive-final")
    damage(root / "contrastive" / "final" / "open_clip_model.safetensors", "flipped", 0)
    with pytest.raises(RunError, match=r"open_clip_model\.safetensors: .*; run the stage in .*/contrastive again"):
        evaluate(config)
    damage(root / "contrastive" / "final" / "COMMITTED.json", "truncated", 0)
    with pytest.raises(Corrupt, match=r"COMMITTED\.json: .*: run the contrastive stage again"):
        evaluate(config)


@pytest.mark.parametrize("what", ["COMMITTED.json", "model.safetensors"])
@pytest.mark.parametrize("how", KINDS)
def test_a_damaged_checkpoint_is_passed_over(tmp_path: Path, capsys: pytest.CaptureFixture[str], what: str, how: str) -> None:
    """Nothing rebuilds it, so the evaluation continues without it, and says so."""
    root = str(tmp_path)
    uri, manifest = build.classification_set(root, labels=(0, 1, 2))
    recipe_hash = build.finished(f"{root}/contrastive", seed=2, step=30)
    for step in (10, 20):
        build.checkpoint(f"{root}/contrastive", step, step, True, recipe_hash)
    config = build.config_at(
        root,
        models=(build.asked("contrastive", f"{root}/contrastive", recipe_hash),),
        sets=(DataConfig(uri=uri, identity=manifest.identity),),
        evaluation=EvaluationConfig(every_epochs=1),
    )
    damage(tmp_path / "contrastive" / "trajectory" / "step-000000010" / what, how, 0)
    assert evaluate(config)["written"] == 2
    assert sorted(path.name for path in (tmp_path / "evaluation").glob("contrastive-*")) == ["contrastive-20", "contrastive-final"]
    assert (what, how) == ("COMMITTED.json", "missing") or "skipped" in capsys.readouterr().out


def test_figures_without_a_checksum_count_while_their_items_are_whole(cell: tuple[Path, str]) -> None:
    """As older versions wrote them: found done, and measured again where their items are damaged."""
    root, config = cell
    expected = figures(root)
    for place in (root / "evaluation").glob("*/*.json"):
        value = read_json(str(place))
        for key in ("format_version", "items", "sha256"):
            del value["firstsight"][key]
        write_json(str(place), value)
    assert evaluate(config) == DONE
    damage(Path(items_uri(str(root / "evaluation" / FIGURES))), "truncated", 0)
    assert evaluate(config)["written"] == 1
    assert figures_of_one(root) == expected[f"evaluation/{FIGURES}"]


def figures_of_one(root: Path) -> Any:
    place = str(root / "evaluation" / FIGURES)
    value = read_figures(place)
    return value, {name: array.tolist() for name, array in read_arrays(items_uri(place)).items()}


def test_a_newer_figure_is_refused_and_a_flipped_version_is_damage(cell: tuple[Path, str]) -> None:
    """A newer format has a right checksum."""
    root, config = cell
    place = str(root / "evaluation" / FIGURES)
    raw = read_json(place)
    raw["firstsight"]["format_version"] = 3
    write_json(place, raw)
    assert evaluate(config)["written"] == 1
    raw = read_json(place)
    raw["firstsight"]["format_version"] = 3
    del raw["firstsight"]["sha256"]
    raw["firstsight"]["sha256"] = checksum(raw)
    write_json(place, raw)
    with pytest.raises(InputError, match="format 3 is newer"):
        evaluate(config)
