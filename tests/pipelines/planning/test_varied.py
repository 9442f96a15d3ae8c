"""Axes, points and declarations in plan.json: what was declared before the first result stays, what came later is told from it."""

from pathlib import Path
from typing import Any

import pytest

from pipelines.planning import plan, points
from pipelines.planning.declared import declaration
from pipelines.planning.request import merge
from pipelines.planning.resolving import resolve
from pipelines.planning.writing import is_planned, write_plan
from tests.pipelines.data import seal
from trainer.errors import InputError
from trainer.storage.declarations import declared_endpoints, declared_tests, mapped
from trainer.storage.manifest import as_data
from trainer.storage.plans import read_plan

TRIPLETS = {"triplets": {"perceptual.triplet_fraction": [0.5, 1]}}
DOSE = {"dose": {"axis": "triplets"}}


class Planning:
    """An experiment that is planned again and again."""

    def __init__(self, root: Path) -> None:
        self.root = str(root)
        self.pairs, self.triplets = (as_data(seal(self.root, kind)) for kind in ("pairs", "triplets"))
        self.folder = root / "experiments" / "demo"

    def made(self, **given: Any) -> tuple[plan.Experiment, list[plan.Cell]]:
        asked = resolve(merge("", {"recipe": "smoke", "seeds": "0", "experiment": "demo", **given}))
        found = points.Points(asked)
        experiment = plan.Experiment(
            root=self.root,
            name="demo",
            recipe=asked.load_recipe(),
            pairs=self.pairs,
            triplets=self.triplets,
            axes=asked.vary,
            points=tuple(found.listed()),
            declared=declaration(asked),
            asked_arms=asked.arms,
            asked_seeds=asked.all_seeds,
        )
        return experiment, points.cells_of(experiment, found)

    def plan(self, **given: Any) -> dict[str, Any]:
        experiment, cells = self.made(**given)
        write_plan(experiment, cells)
        assert is_planned(experiment, cells)
        found = read_plan(experiment.uri)
        assert found is not None
        return found

    def result(self, cell: str = "random-seed0") -> None:
        """Figures of a finished cell."""
        place = self.folder / cell / "evaluation" / "contrastive-final" / "x_2afc.json"
        place.parent.mkdir(parents=True)
        place.write_text("{}")


@pytest.fixture
def planning(tmp_path: Path) -> Planning:
    return Planning(tmp_path)


def test_an_experiment_that_declares_nothing_has_the_plan_that_it_had(planning: Planning):
    found = planning.plan()
    assert not {"axes", "points", "declared"} & found.keys()
    assert not (planning.folder / "declared").exists()


def test_what_is_declared_before_the_first_result_is_sealed_in_the_plan(planning: Planning):
    found = planning.plan(vary=TRIPLETS, tests=DOSE, endpoints="2afc")
    (entry,) = found["declared"]
    assert (entry["after_results"], entry["endpoints"], mapped(entry["axes"]), list(entry["tests"])) == (
        False,
        ["2afc"],
        TRIPLETS,
        ["dose"],
    )
    assert (entry["arms"], entry["seeds"]) == (["random", "perceptual"], [0])
    assert [one["cells"] for one in found["points"]] == [{"random": "", "perceptual": "triplets-0.5"}, {"random": "", "perceptual": ""}]
    planning.result()
    assert planning.plan(vary=TRIPLETS, tests=DOSE, endpoints="2afc")["declared"] == [entry]


def test_cells_and_seeds_may_be_added_and_change_nothing_that_was_declared(planning: Planning):
    before = planning.plan(vary=TRIPLETS, tests=DOSE)["declared"]
    planning.result("perceptual-seed0")
    assert planning.plan(vary=TRIPLETS, tests=DOSE, seeds="0,1,2", arms="random,perceptual,permuted")["declared"] == before
    assert planning.plan(seeds="0,1,2,3")["declared"] == before


@pytest.mark.parametrize(
    ("more", "changed"),
    [
        ({"tests": {**DOSE, "other": {"axis": "triplets", "endpoint": "2afc"}}}, False),
        ({"tests": {"dose": {"axis": "triplets", "sides": "greater"}}}, True),
        ({"tests": {"dose": {"axis": "triplets", "scale": "linear"}}}, True),
        ({"vary": {"triplets": {"perceptual.triplet_fraction": [0.25, 0.5, 1]}}}, True),  # the test stands on other points
    ],
)
def test_a_test_that_is_added_or_changed_came_after_results(planning: Planning, more: dict[str, Any], changed: bool):
    before = planning.plan(vary=TRIPLETS, tests=DOSE)["declared"]
    planning.result()
    found = planning.plan(**{"vary": TRIPLETS, "tests": DOSE, **more})["declared"]
    assert found[:1] == before
    first, second = declared_tests(found)
    assert (first["name"], first["after_results"], first["changed"]) == ("dose", False, False)
    assert (second["after_results"], second["changed"]) == (True, changed)


def test_what_is_added_before_the_first_result_is_declared_beforehand(planning: Planning):
    planning.plan(vary=TRIPLETS)
    found = planning.plan(vary=TRIPLETS, tests=DOSE, endpoints="2afc")["declared"]
    assert [test["after_results"] for test in declared_tests(found)] == [False]
    assert declared_endpoints(found) == ("2afc",)


@pytest.mark.parametrize("lost", ["plan.json", "declared"])
def test_a_lost_plan_keeps_what_was_declared(planning: Planning, lost: str):
    """Else a damaged byte would turn what was declared beforehand into what came after results."""
    asked = {"vary": TRIPLETS, "tests": DOSE}
    before = planning.plan(**asked)["declared"]
    planning.result()
    for path in [planning.folder / lost] if lost == "plan.json" else list((planning.folder / lost).iterdir()):
        path.write_text("{")
    assert planning.plan(**asked)["declared"] == before
    assert len(list((planning.folder / "declared").iterdir())) == 1


def test_axes_of_later_requests_stand_beside_the_earlier_ones(planning: Planning):
    planning.plan(vary=TRIPLETS)
    found = planning.plan(vary={"triplets": {"perceptual.triplet_fraction": [0.75]}, "m": {"perceptual.margin": [0.1]}})
    assert mapped(found["axes"]) == {"triplets": {"perceptual.triplet_fraction": [0.5, 1, 0.75]}, "m": {"perceptual.margin": [0.1]}}
    assert [one["point"] for one in found["points"]] == ["triplets-0.5", "triplets-1", "triplets-0.75-m-0.1"]


def test_an_axis_over_other_fields_than_it_had_is_refused(planning: Planning):
    planning.plan(vary=TRIPLETS)
    with pytest.raises(InputError, match=r"axis 'triplets' .* varied perceptual.triplet_fraction before, but now varies perceptual.margin"):
        planning.plan(vary={"triplets": {"perceptual.margin": [0.5]}})


def test_a_point_of_another_recipe_than_it_had_is_refused(planning: Planning):
    """Fields that move with the first one are not in the name."""
    planning.plan(vary={"a": {"perceptual.margin": [0.1], "perceptual.epochs": [2]}})
    with pytest.raises(InputError, match=r"cell perceptual-a-0.1-seed0 .*perceptual.epochs: 2 -> 3"):
        planning.plan(vary={"a": {"perceptual.margin": [0.1], "perceptual.epochs": [3]}})


def test_a_declaration_changed_by_hand_is_damage(planning: Planning):
    from trainer.errors import Corrupt
    from trainer.storage.documents import write_document

    found = planning.plan(vary=TRIPLETS, tests=DOSE)
    found["declared"][0]["tests"]["dose"]["sides"] = "greater"
    write_document(str(planning.folder / "plan.json"), {key: value for key, value in found.items() if key != "sha256"})
    with pytest.raises(Corrupt, match=r"declared\[0\]: its hash differs"):
        read_plan(str(planning.folder))
