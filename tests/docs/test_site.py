"""The site: every page has a place, links that leave it are rewritten, and the reference has all that the code has."""

import re
from typing import Any

import yaml

import firstsight
from scripts import site_pages
from tests.docs import known

REPOSITORY = known.REPOSITORY
CONFIG = yaml.safe_load((REPOSITORY / "mkdocs.yml").read_text(encoding="utf-8"))


def places(nav: Any) -> list[str]:
    """The pages of a part of the navigation."""
    if isinstance(nav, str):
        return [nav]
    return [page for below in (nav.values() if isinstance(nav, dict) else nav) for page in places(below)]


def test_every_page_has_one_place() -> None:
    """Those of docs/, and those that are generated from the code."""
    written = {str(path.relative_to(REPOSITORY / "docs")) for path in (REPOSITORY / "docs").rglob("*.md")}
    made = {f"reference/{name}.md" for name in site_pages.PAGES}
    assert sorted(places(CONFIG["nav"])) == sorted(written | made)


def test_the_reference_has_every_command_and_option() -> None:
    text = site_pages.commands()
    parser = known.PARSERS["firstsight"]
    assert [name for name in known.subcommands(parser) if f"## firstsight {name}\n" not in text] == []
    assert sorted(option for option in known.options(parser) - {"--help", "--version"} if f"`{option}`" not in text) == []


def test_the_reference_has_every_metric_alert_and_exit_code() -> None:
    text = site_pages.metrics()
    listed = set(re.findall(r"\| `(\w+)` \|", text))
    assert listed <= known.metrics()
    assert {name.removeprefix("firstsight_train_").removesuffix("_total") for name in listed} >= {
        *site_pages.sinks._GAUGES, *site_pages.sinks._COUNTERS, "step_seconds",
    }  # fmt: skip
    assert set(re.findall(r"\[`(\w+)`\]\(\.\./RUNBOOK\.md#\w+\)", text)) == known.alerts()
    assert re.findall(r"^\| (\d+) \|", site_pages.exit_codes(), re.MULTILINE) == ["0", "1", "2", "130", "143"]


def test_the_reference_has_every_public_name() -> None:
    text = site_pages.PAGES["python"]()
    assert {line.rpartition(".")[2] for line in text.splitlines() if line.startswith(":::")} == {*firstsight.__all__} - {"__version__"}
