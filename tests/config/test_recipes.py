"""Recipes that people write: `base:` plus what differs, by name, as text or as a mapping; and overrides in one string."""

import dataclasses
from pathlib import Path
from typing import Any

import pytest

from trainer.config import ContrastiveConfig, Placement, recipe_fields
from trainer.configs import load_recipe, parse_overrides, recipe_differences
from trainer.errors import InputError
from trainer.storage.recipes import read_base, read_inline, read_recipe

PAPER = load_recipe("paper")


def write(path: Path, text: str) -> str:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return str(path)


def test_a_recipe_says_its_base_and_what_differs(tmp_path: Path) -> None:
    """Several levels; each keeps what the next does not name, inside groups too. Its name is its file's."""
    group = write(tmp_path / "group.yaml", "base: paper\ncontrastive: {epochs: 8, optimizer: {warmup_steps: 100}}")
    mine = write(tmp_path / "mine.yaml", f"base: {group}\ncontrastive: {{optimizer: {{eps: 1e-6}}}}\nperceptual.epochs: 4")
    loaded = read_recipe(mine)
    assert recipe_differences(loaded, PAPER) == [
        "contrastive.epochs: 32 -> 8",
        "contrastive.optimizer.eps: 1e-08 -> 1e-06",
        "contrastive.optimizer.warmup_steps: 2500 -> 100",
        "perceptual.epochs: 32 -> 4",
    ]
    assert recipe_differences(loaded, read_base(mine)) == ["contrastive.optimizer.eps: 1e-08 -> 1e-06", "perceptual.epochs: 32 -> 4"]
    assert loaded.name == "mine"


@pytest.mark.parametrize("recipe", ["base: paper\ncontrastive: {epochs: 8}", "base: paper", {"base": "paper"}])
def test_a_recipe_may_be_text_or_a_mapping(recipe: str | dict[str, Any]) -> None:
    """As a request file holds it; overrides win, as text or as values."""
    loaded = read_recipe(recipe, {"contrastive.epochs": 16})
    assert loaded == read_recipe(recipe, ["contrastive.epochs=16"])
    assert recipe_differences(loaded, PAPER) == ["contrastive.epochs: 32 -> 16"]
    assert loaded.name == "paper"


def test_what_a_recipe_is_compared_with() -> None:
    """A shipped one with itself, so that its overrides show; one without a base with the paper's."""
    assert recipe_differences(read_recipe("demo", ["contrastive.epochs=1"]), read_base("demo")) == ["contrastive.epochs: 34 -> 1"]
    assert read_base({"contrastive": {"epochs": 1}}) == PAPER


def test_a_recipe_can_be_kept_without_its_files(tmp_path: Path) -> None:
    """A shipped name and a shipped base stay names; files are laid into each other."""
    group = write(tmp_path / "group.yaml", "base: paper-3m\ncontrastive: {epochs: 8}")
    mine = write(tmp_path / "mine.yaml", f"base: {group}\ncontrastive: {{precision: fp32}}")
    assert read_inline("paper-3m") == "paper-3m"
    kept = read_inline(mine)
    assert kept == {"base": "paper-3m", "contrastive": {"epochs": 8, "precision": "fp32"}, "name": "mine"}
    before = read_recipe(mine)
    Path(group).unlink()
    Path(mine).unlink()
    assert read_recipe(kept) == before


def test_the_shipped_subset_differs_from_the_paper_in_its_epochs_alone() -> None:
    assert recipe_differences(load_recipe("paper-3m"), PAPER) == ["contrastive.epochs: 32 -> 16"]


@pytest.mark.parametrize(
    ("recipe", "line"),
    [
        (
            {"base": "papr"},
            r"x\.yaml: base must be one of smoke, demo, paper, paper-3m, paper-as-coded, or an .* got 'papr'",
        ),
        ({"base": "other.yaml"}, r"x\.yaml: base must be one of .*, or an absolute path or URI that ends in \.yaml, got 'other\.yaml'"),
        ({"base": ["paper"]}, r"x\.yaml: base must be one of .* got \['paper'\]"),
        ({"base": "/nowhere/r.yaml"}, r"/nowhere/r\.yaml"),
        (
            {"base": "paper", "contrastive": {"epoch": 1}},
            r"x\.yaml: contrastive\.epoch is not a setting: did you mean contrastive\.epochs\?",
        ),
        ("papr", r"recipe 'papr' is not a built-in recipe: use one of .*, or a URI that ends in \.yaml \(did you mean paper\?\)"),
    ],
)
def test_a_recipe_that_cannot_be_read_is_refused(recipe: str | dict[str, Any], line: str) -> None:
    """In one line, with the file."""
    with pytest.raises(InputError, match=line) as raised:
        read_recipe(recipe, source="x.yaml")
    assert "\n" not in str(raised.value)


def test_a_wrong_key_of_a_base_is_refused_with_the_recipe(tmp_path: Path) -> None:
    """By its dotted key."""
    group = write(tmp_path / "group.yaml", "contrastive: {epoch: 8}")
    with pytest.raises(InputError, match=r"contrastive\.epoch is not a setting: did you mean contrastive\.epochs\?"):
        read_recipe({"base": group})


def test_a_base_that_refers_back_to_itself_is_refused_by_name(tmp_path: Path) -> None:
    one, two = tmp_path / "one.yaml", tmp_path / "two.yaml"
    write(one, f"base: {two}")
    write(two, f"base: {one}")
    with pytest.raises(InputError, match=f"base refers back to itself: {one} -> {two} -> {one}"):
        read_recipe(str(one))
    with pytest.raises(InputError, match=f"base refers back to itself: {one} -> {two} -> {one}"):
        read_recipe({"base": str(one)})


def test_overrides_stand_in_one_string() -> None:
    """As in make's SET; what has blanks is quoted, and values have the types of YAML."""
    text = "contrastive.epochs=16 contrastive.optimizer='{learning_rate: 1e-3, name: adam}'  model.logit_scale_init=100 name=1e3"
    found = parse_overrides(text)
    assert found == {
        "contrastive.epochs": 16,
        "contrastive.optimizer": {"learning_rate": 1e-3, "name": "adam"},
        "model.logit_scale_init": 100,
        "name": "1e3",
    }
    assert load_recipe("paper", found).contrastive.optimizer == dataclasses.replace(
        PAPER.contrastive.optimizer, learning_rate=1e-3, name="adam"
    )
    assert parse_overrides("") == {}
    assert parse_overrides("nodes=2", Placement) == {"nodes": 2}


@pytest.mark.parametrize(
    ("text", "line"),
    [
        (
            "contrastive.epoch=3",
            r"override 'contrastive\.epoch=3': contrastive\.epoch is not a setting: did you mean contrastive\.epochs\?",
        ),
        ("epochs=3", r"did you mean perceptual\.epochs or contrastive\.epochs or posthoc\.epochs\?"),
        ("contrastive.optimizer.eps.x=3", r"contrastive\.optimizer\.eps\.x is not a setting"),
        ("contrastive.epochs", r"override must be of the form dotted\.key=value, got 'contrastive\.epochs'"),
        ("contrastive.epochs=3 contrastive.epochs=4", r"override 'contrastive\.epochs=4': contrastive\.epochs is given twice"),
        ("name='x", r"overrides \"name='x\": No closing quotation"),
        ("contrastive.epochs=[", r"override 'contrastive\.epochs=\[': not YAML"),
    ],
)
def test_an_override_that_cannot_be_read_is_refused(text: str, line: str) -> None:
    with pytest.raises(InputError, match=f"^{line}|{line}") as raised:
        parse_overrides(text)
    assert "\n" not in str(raised.value)


def test_complete_fields_are_what_differs_is_told_of() -> None:
    """Fields that came later are among them, whether or not a hash leaves them out."""
    later = {"logit_scale_clamp": "parameter", "pair_fraction": 1.0, "samples_seen": 0}
    assert recipe_fields(ContrastiveConfig(), complete=True) == recipe_fields(ContrastiveConfig()) | later
