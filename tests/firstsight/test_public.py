"""The names of the package: what they cost, what they are, and what is refused."""

import importlib
import subprocess
import sys
from pathlib import Path

import pytest

import firstsight
from firstsight.__main__ import _parser, main
from pipelines.__main__ import _parser as pipelines_parser
from tests.docs.known import options, subcommands
from trainer.__main__ import _parser as trainer_parser

REPOSITORY = Path(__file__).parents[2]


def test_import_costs_no_torch() -> None:
    """Nor any other library that takes seconds: names are imported when they are used."""
    code = "import sys, firstsight; print(sorted({'torch', 'numpy', 'trainer', 'pipelines'} & set(sys.modules)), firstsight.__version__)"
    done = subprocess.run([sys.executable, "-c", code], cwd=REPOSITORY, check=True, capture_output=True, text=True)
    assert done.stdout == f"[] {firstsight.__version__}\n"


def test_every_name_is_there() -> None:
    """And lives in one of the package's rooms, or is one of the errors."""
    for name in firstsight.__all__:
        assert getattr(firstsight, name) is not None
        assert name in dir(firstsight)
    with pytest.raises(AttributeError, match="has no attribute 'nothing'"):
        _ = firstsight.nothing


def test_types_and_lazy_names_agree() -> None:
    """What a type checker is told and what is imported at run time are the same objects, of the module that says so."""
    for home, names in firstsight._HOMES.items():
        for name in names:
            assert getattr(importlib.import_module(home), name) is getattr(firstsight, name)
    assert {name for names in firstsight._HOMES.values() for name in names} == {*firstsight.__all__} - {"__version__"}


def test_the_version_is_the_projects() -> None:
    """In a checkout it is read where it is written."""
    assert f'version = "{firstsight.__version__}"' in (REPOSITORY / "pyproject.toml").read_text(encoding="utf-8")


def test_the_command_has_the_commands_of_both_packages() -> None:
    """With their very options."""
    own = subcommands(_parser())
    theirs = {**subcommands(pipelines_parser()), **subcommands(trainer_parser())}
    assert own.keys() == theirs.keys()
    assert {name: options(parser) for name, parser in own.items()} == {name: options(parser) for name, parser in theirs.items()}


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (["plan", "--recipe", "nope"], "firstsight plan: "),
        (["report"], "firstsight report: report needs an experiment"),
        (["inspect", "nowhere"], "firstsight inspect: "),
    ],
)
def test_a_failure_is_one_line_in_its_name(
    arguments: list[str], line: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Exit code 2, from either package."""
    monkeypatch.chdir(tmp_path)
    assert main(arguments) == 2
    said = capsys.readouterr().err
    assert said.startswith(line)
    assert said.count("\n") == 1


def test_a_version_is_shown(capsys: pytest.CaptureFixture[str]) -> None:
    """As programs do."""
    with pytest.raises(SystemExit, match="0"):
        main(["--version"])
    assert capsys.readouterr().out == f"firstsight {firstsight.__version__}\n"
