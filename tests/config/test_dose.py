"""What helps where data do not fill a batch: settings that can be given as they stand."""

import pytest

from trainer.config import Recipe
from trainer.configs import load_recipe
from trainer.dose import dose, what_helps, within_warm_up


@pytest.mark.parametrize("recipe", ["demo", "smoke", "paper"])
@pytest.mark.parametrize("stage", ["contrastive", "perceptual", "posthoc"])
@pytest.mark.parametrize("train", [2, 8, 15, 1000])
def test_the_settings_that_are_named_do_help(recipe: str, stage: str, train: int) -> None:
    """The recipe takes them, a batch is filled, and the warm-up is outlasted."""
    said = what_helps(load_recipe(recipe), stage, train)
    assert ("RECIPE=smoke or " in said) is (recipe != "smoke")
    changed: Recipe = load_recipe(recipe, said.split("'")[1].split())
    settings = getattr(changed, stage)
    assert dose(settings, train).steps_per_epoch >= 1
    assert not within_warm_up(stage, settings, train)


def test_of_nothing_no_batch_comes() -> None:
    """One pair has nothing to be told from."""
    assert what_helps(load_recipe("smoke"), "contrastive", 1) == "use more data"
    assert what_helps(load_recipe("demo"), "contrastive", 0) == "try RECIPE=smoke"
