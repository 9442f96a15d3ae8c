"""plan.json of an experiment: format 3, format 2, format 1 as commit ad127be wrote it, and what is neither."""

import json
from pathlib import Path
from typing import Any

import pytest

from trainer.errors import Corrupt, InputError
from trainer.storage import write_json
from trainer.storage.plans import read_plan

FORMAT_1 = Path(__file__).parent / "data" / "plan-format-1.json"
"""Of `make pipeline-run` at ad127be; its root was renamed."""

ENTRY: dict[str, Any] = {
    **{"cell": "random-seed0", "arm": "random", "point": "", "seed": 0, "recipe": "k", "recipe_hashes": {}, "stage_labels": {}},
    **{"stage_arms": {}, "perceptual": "", "contrastive": "c", "posthoc": "", "evaluation": "e"},
}

DATA = {"uri": "u", "identity": "i"}


def put(folder: Path, value: Any) -> str:
    """An experiment with this plan.json; its folder."""
    write_json(str(folder / "plan.json"), value)
    return str(folder)


def test_an_experiment_without_a_plan_has_none(tmp_path: Path) -> None:
    """Which is no error: it may not be planned yet."""
    assert read_plan(str(tmp_path)) is None


def test_a_plan_of_format_1_reads_as_format_3(tmp_path: Path) -> None:
    """Its one recipe is every cell's; of a tower, which cells share, the labels name no cell."""
    before = json.loads(FORMAT_1.read_text())
    plan = read_plan(put(tmp_path, before))

    assert plan is not None
    assert plan["format_version"] == 3
    random, perceptual = plan["cells"]
    assert [plan["recipes"][entry["recipe"]] for entry in plan["cells"]] == [before["recipe"]] * 2
    assert (random["cell"], random["point"]) == ("random-seed0", "")
    assert perceptual["stage_labels"] == {
        "perceptual": {"cell": "", "arm": "perceptual", "point": ""},
        "contrastive": {"cell": "perceptual-seed0", "arm": "perceptual", "point": ""},
    }
    assert [entry["recipe_hashes"] for entry in plan["cells"]] == [entry["recipe_hashes"] for entry in before["cells"]]
    assert {"recipe", "stage_arms"}.isdisjoint(plan.keys() | random.keys() - {"recipe"})


def test_a_plan_of_format_2_reads_as_format_3(tmp_path: Path) -> None:
    """It had no checksum."""
    value = {"format_version": 2, "recipes": {"k": {"name": "demo"}}, "cells": [ENTRY]}

    assert read_plan(put(tmp_path, value)) == {**value, "format_version": 3}


@pytest.mark.parametrize("version", [1, 2])
def test_a_plan_that_was_moved_reads_with_the_places_of_its_new_root(tmp_path: Path, version: int) -> None:
    """What lay below the old root lies below the new one; other places, names that begin alike and recipes stay as they are."""
    entry = {
        **ENTRY,
        "contrastive": "s3://b/old/experiments/e/c",
        "perceptual": "s3://b/older/t",
        "evaluation": "s3://b/old/experiments/e/v",
    }
    recipe = {"name": "demo", "base": "s3://b/old/recipe.yaml"}
    value = {
        "format_version": version, "root": "s3://b/old/", "cells": [entry], "pairs": {"uri": "s3://b/old/datasets/p/1", "identity": "i"},
        "sets": [{"uri": "s3://shared/old/x", "identity": "i"}], **({"recipes": {"k": recipe}} if version == 2 else {"recipe": recipe}),
    }  # fmt: skip

    plan = read_plan(put(tmp_path / "experiments" / "e", value))

    assert plan is not None
    (moved,) = plan["cells"]
    assert (moved["contrastive"], moved["perceptual"]) == (f"{tmp_path}/experiments/e/c", "s3://b/older/t")
    assert moved["evaluation"] == f"{tmp_path}/experiments/e/v"
    assert plan["pairs"]["uri"] == f"{tmp_path}/datasets/p/1"
    assert plan["sets"][0]["uri"] == "s3://shared/old/x"
    assert list(plan["recipes"].values()) == [recipe]
    assert plan["root"] == "s3://b/old/"


@pytest.mark.parametrize(
    ("value", "said"),
    [
        ({"format_version": 4, "cells": []}, r"plan\.json: format 4 is newer than this firstsight can read \(3\)"),
        ({"format_version": 3, "recipes": {}, "cells": []}, "its checksum does not match its content"),
        ({"format_version": 0, "cells": []}, "no format_version"),
        ({"format_version": True, "cells": []}, "no format_version"),
        ({"cells": []}, "no format_version"),
        ({"format_version": 2}, "no list of cells"),
        ([], "no format_version"),
        ({"format_version": 2, "recipes": {}, "cells": [], "pairs": {"uri": "u", "identity": 3}}, "pairs has no uri and identity"),
        ({"format_version": 2, "recipes": {}, "cells": [], "pairs": {**DATA, "evaluation_sha256": None}}, "pairs has no uri"),
        ({"format_version": 2, "recipes": {}, "cells": [], "triplets": {**DATA, "manifest_sha256": {}}}, "triplets has no uri"),
        ({"format_version": 2, "recipes": {}, "cells": [], "sets": [DATA, {"uri": "u"}]}, "sets has no uri and identity"),
        ({"format_version": 2, "recipes": {}, "cells": [], "sets": 3}, "sets has no uri and identity"),
        ({"format_version": 2, "recipes": {}, "cells": [ENTRY]}, "it lacks the recipe of random-seed0"),
        ({"format_version": 2, "cells": [ENTRY]}, "no recipes"),
        ({"format_version": 2, "recipes": {}, "cells": [3]}, r"cells\[0\] has no valid cell"),
        ({"format_version": 2, "recipes": {}, "cells": [{}]}, r"cells\[0\] has no valid cell"),
        ({"format_version": 2, "recipes": {}, "cells": [ENTRY, {**ENTRY, "recipe": ["k"]}]}, r"cells\[1\] has no valid recipe"),
        ({"format_version": 1, "cells": [{**ENTRY, "seed": None}]}, r"cells\[0\] has no valid seed"),
        ({"format_version": 1, "cells": [{**ENTRY, "stage_arms": [1]}]}, r"cells\[0\] has no valid stage_arms"),
    ],
)
def test_what_is_no_plan_that_can_be_read_is_refused(tmp_path: Path, value: Any, said: str) -> None:
    """In one line that names the file; nothing is guessed."""
    with pytest.raises((Corrupt, InputError), match=said):
        read_plan(put(tmp_path, value))
