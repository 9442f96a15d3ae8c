"""The wheel that `pip install .` makes: what is in it, what it asks for, and its command in an environment of its own."""

import os
import re
import shutil
import subprocess
import sys
import sysconfig
import tomllib
import venv
import zipfile
from email import message_from_bytes
from pathlib import Path

import pytest
from packaging.requirements import Requirement

import firstsight
from tests.docs import known

REPOSITORY = Path(__file__).parents[1]
PACKAGES = ("firstsight", "trainer", "pipelines")
pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Built from a copy of the files of the repository, with the build backend of this environment."""
    tree, out = tmp_path_factory.mktemp("tree"), tmp_path_factory.mktemp("wheel")
    for name in sorted(known.files()):
        if (REPOSITORY / name).is_file() and (name.split("/")[0] in (*PACKAGES, "tests") or "/" not in name):
            (tree / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(REPOSITORY / name, tree / name)
    pip(f"wheel --no-deps --no-build-isolation --no-index --wheel-dir {out} {tree}")
    (made,) = out.iterdir()
    return made


def pip(arguments: str) -> None:
    """Run this environment's pip."""
    done = subprocess.run([sys.executable, "-m", "pip", *arguments.split()], check=False, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An environment that the wheel was installed into; what it depends on is that of this environment."""
    folder = tmp_path_factory.mktemp("environment")
    venv.create(folder, with_pip=False)
    pip(f"--python {folder / 'bin' / 'python'} install --no-deps --no-index {wheel}")
    (site,) = folder.glob("lib/python3*/site-packages")
    (site / "shared.pth").write_text(f"{sysconfig.get_path('purelib')}\n")
    return folder


def run(installed: Path, program: str, *arguments: str, cwd: Path) -> "subprocess.CompletedProcess[str]":
    """A program of that environment, in another folder, that finds nothing of the checkout."""
    variables = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "VIRTUAL_ENV")}
    variables["PATH"] = f"{installed / 'bin'}:{os.environ['PATH']}"
    return subprocess.run([installed / "bin" / program, *arguments], cwd=cwd, env=variables, check=False, capture_output=True, text=True)


def test_every_file_of_the_packages_is_in_it(wheel: Path) -> None:
    """Recipes, the compiled pipeline, the page's templates and py.typed too; and nothing else, such as tests."""
    ours = {name for name in known.files() if name.split("/")[0] in PACKAGES and (REPOSITORY / name).is_file()}
    with zipfile.ZipFile(wheel) as archive:
        held = {name for name in archive.namelist() if not name.split("/")[0].endswith(".dist-info")}
    assert held == ours
    assert {"trainer/configs/demo.yaml", "pipelines/kubeflow/compiled/firstsight.yaml", "firstsight/py.typed"} <= held


def test_it_asks_for_what_a_run_needs(wheel: Path) -> None:
    """The group `run` of pyproject.toml; requirements/run.txt holds the pins."""
    project = tomllib.loads((REPOSITORY / "pyproject.toml").read_text(encoding="utf-8"))
    with zipfile.ZipFile(wheel) as archive:
        (metadata,) = (name for name in archive.namelist() if name.endswith(".dist-info/METADATA"))
        asked = message_from_bytes(archive.read(metadata))
    requirements = {re.sub("[_.]", "-", Requirement(line).name.lower()): Requirement(line) for line in asked.get_all("Requires-Dist", [])}
    groups = project["dependency-groups"]
    written = [line for name in ("storage", "report", "trainer", "pipelines") for line in groups[name] if isinstance(line, str)]
    assert {str(requirement) for requirement in requirements.values()} == {str(Requirement(line)) for line in written}
    locked = dict(re.findall(r"^([a-z0-9-]+)==(\S+)", (REPOSITORY / "requirements/run.txt").read_text(), re.MULTILINE))
    assert all(requirement.specifier.contains(locked[name]) for name, requirement in requirements.items())
    assert (asked["Version"], asked["Requires-Python"]) == (project["project"]["version"], ",".join(sorted(["<3.13", ">=3.11"])))


def test_its_command_plans_from_another_folder(installed: Path, tmp_path: Path) -> None:
    """`firstsight plan` in an empty folder, by the shipped recipe; the folder stays empty."""
    done = run(installed, "firstsight", "plan", "--recipe", "smoke", "--root", "runs", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "perceptual" in done.stdout
    assert list(tmp_path.iterdir()) == []
    same = subprocess.run(
        [sys.executable, "-m", "pipelines", "plan", "--recipe", "smoke", "--root", str(tmp_path / "runs")],
        cwd=REPOSITORY, check=True, capture_output=True, text=True,
    )  # fmt: skip
    assert done.stdout == same.stdout


def test_its_command_is_of_the_installed_package(installed: Path, tmp_path: Path) -> None:
    """All of it: the compiled pipeline equals the shipped one, the public names are there, and the version is the project's."""
    done = run(installed, "firstsight", "compile", "pipeline.yaml", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "pipeline.yaml").read_bytes() == (REPOSITORY / "pipelines/kubeflow/compiled/firstsight.yaml").read_bytes()
    code = (
        "import firstsight, trainer, pipelines, trainer.lineage as lineage\n"
        "for name in firstsight.__all__: getattr(firstsight, name)\n"
        "print(firstsight.__version__, lineage.code_facts()['version'], lineage.code_facts()['git_commit'])\n"
        "print(*(module.__file__ for module in (firstsight, trainer, pipelines)), sep='\\n')"
    )
    done = run(installed, "python", "-c", code, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    version, *places = done.stdout.splitlines()
    assert version.split() == [firstsight.__version__] * 2
    assert all(Path(place).is_relative_to(installed) for place in places)


def test_a_type_checker_knows_its_names(installed: Path, tmp_path: Path) -> None:
    """The walk of docs/LIBRARY.md is right to mypy, and a wrong use of a sample is not."""
    blocks = re.findall(r"^```python\n(.*?)^```$", (REPOSITORY / "docs/LIBRARY.md").read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)
    (tmp_path / "walk.py").write_text("\n".join(blocks))
    (tmp_path / "wrong.py").write_text(
        'import firstsight\n\nfor pair in firstsight.open_dataset("x", firstsight.Pair):\n    print(pair.reference)\n'
    )
    others = "torch.*,torchvision.*,PIL.*,scipy.*,matplotlib.*,open_clip.*,kfp.*,kubernetes.*"  # they take a minute
    (tmp_path / "mypy.ini").write_text(f"[mypy]\n[mypy-{others}]\nfollow_imports = skip\n")
    command = [sys.executable, "-m", "mypy", "--python-executable", str(installed / "bin" / "python"), "walk.py", "wrong.py"]
    done = subprocess.run(command, cwd=tmp_path, check=False, capture_output=True, text=True)
    assert re.findall(r"^.*error: .*$", done.stdout, re.MULTILINE) == [
        'wrong.py:4: error: "Pair" has no attribute "reference"  [attr-defined]'
    ], done.stdout + done.stderr
