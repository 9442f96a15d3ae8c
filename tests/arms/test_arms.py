"""The registry of arms: what each file declares, and that it declares one arm."""

import pkgutil

import pytest

from trainer import arms
from trainer.arms import Arm
from trainer.labels import registered as kinds_of_labels


def test_every_file_is_an_arm_of_its_name():
    """`_` in a file's name stands for `-`."""
    files = [module.name.replace("_", "-") for module in pkgutil.iter_modules(arms.__path__)]

    assert sorted(arms.registered()) == sorted(files)


def test_arms_are_listed_in_their_order():
    """The baseline first, the controls last: help texts and messages keep it."""
    ours = ["random", "perceptual", "permuted", "posthoc", "judged", "instance", "shuffled"]
    assert [name for name in arms.registered() if name in ours] == ours


def test_every_arm_says_what_it_is():
    """The report has a sentence for each, and each one's labels are a kind that exists."""
    for arm in arms.registered().values():
        assert arm.meaning
        assert arm.labels is None or arm.labels in kinds_of_labels()


def test_controls_are_those_that_say_what_they_leave():
    """`random` and `posthoc` are none."""
    controls = [arm.name for arm in arms.controls()]
    assert {"permuted", "judged", "instance", "shuffled"} <= set(controls)
    assert not {"random", "perceptual", "posthoc"} & set(controls)


@pytest.mark.parametrize("arm", arms.registered().values(), ids=lambda arm: arm.name)
def test_an_arm_is_found_by_what_it_does(arm: Arm):
    """The report knows no more of a cell than that."""
    assert arms.find(finetuned=arm.finetuned, start=arm.start, labels=arm.labels) is arm


def test_what_no_arm_does_is_found_to_be_none():
    """Such as the permuted weights of a tower that FLIP taught."""
    assert arms.find(finetuned=False, start="permuted", labels="flip") is None


def test_two_arms_that_do_the_same_are_refused(monkeypatch: pytest.MonkeyPatch):
    """The report could not tell them apart."""
    arms.registered.cache_clear()
    twice = [Arm(name=name, start="tower", labels="votes") for name in ("a", "b")]
    monkeypatch.setattr(arms, "discover", lambda *_: twice)
    try:
        with pytest.raises(ValueError, match="a, b do not"):
            arms.registered()
    finally:
        arms.registered.cache_clear()
