"""Each target reads its good inputs; what fuzzing once found stays fixed; a short hunt in slow tests."""

import pytest

from tests.fuzz.engine import FINDINGS, hunt, one, quietly
from tests.fuzz.targets import TARGETS

KEPT = sorted(path for path in FINDINGS.rglob("*") if path.is_file())


@pytest.mark.parametrize("name", TARGETS)
def test_good_inputs_are_read(name: str) -> None:
    """Else a hunt would begin from what is refused at the door."""
    target = TARGETS[name]
    seeds = target.seeds()
    assert seeds
    with quietly():
        assert "read" in {one(target, data) for data in seeds}


@pytest.mark.parametrize("path", KEPT, ids=lambda path: f"{path.parent.name}/{path.name}")
def test_findings_stay_fixed(path: object) -> None:
    """Read, or refused in one line."""
    assert hasattr(path, "read_bytes")
    name = next(name for name in TARGETS if name.replace(" ", "-") == path.parent.name)  # type: ignore[attr-defined]
    with quietly():
        one(TARGETS[name], path.read_bytes())


@pytest.mark.slow
@pytest.mark.parametrize("name", TARGETS)
def test_a_short_hunt_finds_nothing(name: str) -> None:
    """Three hundred inputs, or two seconds; `make fuzz` hunts in earnest."""
    tried, findings = hunt(TARGETS[name], seconds=2, seed=0, most=300)
    assert tried
    assert findings == {}
