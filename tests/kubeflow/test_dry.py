"""The campaign of `make e2e-kfp` against the stand-in, so that it works when there is a real server."""

from pathlib import Path

import pytest

from tests.kubeflow.campaign import Campaign, Row
from tests.kubeflow.dry import Steps, dry_world


@pytest.mark.slow
def test_every_scenario_sees_what_it_should(tmp_path: Path):
    """And the table says so."""
    with dry_world(tmp_path) as world:
        campaign = Campaign(world, prefix="dry")
        good = campaign.go()

    table = campaign.table()
    assert good, table
    assert {row.scenario for row in campaign.rows} == {name for name, _ in campaign.scenarios()}
    for said in ("Retry ends SUCCEEDED | SUCCEEDED", "the page lacks random-seed1 (as of now, 2 of 3 cells)", "no page | no page"):
        assert said in table


def test_a_run_that_is_not_whole_is_seen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """A page that forgets a cell, and lines that are lost."""
    monkeypatch.setattr(Steps, "_report", lambda self: None)
    with dry_world(tmp_path) as world:
        campaign = Campaign(world, prefix="dry")
        assert not campaign.go(["run"])

    assert Row("run", "the page lacks nothing", "no page", False) in campaign.rows
