"""What the images are, as far as their files say it; tests/cluster/test_images.py builds and runs one."""

import fnmatch
import json
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from pipelines.jobs.shapes.pod import INIT, WRITABLE

REPOSITORY = Path(__file__).parents[2]
IMAGES = ("trainer", "pipelines", "minio")
LOCKS = {"trainer": "trainer.txt", "pipelines": "pipelines.txt"}
FOREIGN = {"trainer": {"kfp", "kubernetes", "kubeflow-training"}, "pipelines": {"torch", "torchvision", "open-clip-torch", "webdataset"}}

# What a Python sees in which only the packages of one lock are installed, and the torch-free rooms of the trainer.
ONLY_THE_LOCK = """
import importlib, importlib.machinery, importlib.metadata, pkgutil, re, sys
locked = {re.sub("[-_.]+", "-", line.partition("==")[0]).lower() for line in open(sys.argv[1]) if "==" in line and line[0].isalnum()}
owners = importlib.metadata.packages_distributions()
foreign = {name for name, owned in owners.items() if not any(re.sub("[-_.]+", "-", one).lower() in locked for one in owned)}
foreign -= {"trainer", "pipelines", "tests"}

class OnlyTheLock(importlib.machinery.PathFinder):
    @classmethod
    def find_spec(cls, name, path=None, target=None):
        return None if name.partition(".")[0] in foreign else super().find_spec(name, path, target)

sys.meta_path = [OnlyTheLock if finder is importlib.machinery.PathFinder else finder for finder in sys.meta_path]
import pipelines
for found in pkgutil.walk_packages(pipelines.__path__, "pipelines."):
    if not found.name.endswith("__main__"):
        importlib.import_module(found.name)
import kfp.dsl.executor, kubernetes, kfp_server_api, prometheus_client
import trainer.report.write
sys.argv = ["trainer", "report", "--experiment", "/nonexistent"]
from trainer.__main__ import main
print("torch" in foreign, main(sys.argv[1:]))
"""


def dockerfile(image: str) -> list[str]:
    """Its instructions, one per line, without comments."""
    text = (REPOSITORY / "images" / image / "Dockerfile").read_text()
    return re.sub(r"\\\n\s*", " ", re.sub(r"(?m)^\s*#.*\n", "", text)).splitlines()


def locked(name: str) -> set[str]:
    """The packages of a lock."""
    return {
        line.partition("==")[0] for line in (REPOSITORY / "requirements" / name).read_text().splitlines() if re.match(r"[a-z0-9]", line)
    }


@pytest.mark.parametrize("image", IMAGES)
def test_an_image_runs_without_root_and_says_what_it_is(image: str):
    """Restricted Pod Security wants a number; OCI labels name version and commit."""
    lines = dockerfile(image)

    assert [line for line in lines if line.startswith("USER")] == ["USER 10001:10001"]
    assert lines[-1].startswith("ENTRYPOINT [")
    label = next(line for line in lines if line.startswith("LABEL"))
    for key in ("title", "description", "version", "revision", "licenses"):
        assert f"org.opencontainers.image.{key}=" in label


@pytest.mark.parametrize("image", IMAGES)
def test_the_base_is_exact_and_can_be_another(image: str):
    """A mirror, or a digest."""
    for line in [line for line in dockerfile(image) if re.match(r"ARG (BASE|BUILD)=", line)]:
        assert re.search(r"=(scratch|\S+:\d+\.\d+\.\d+\S*)$", line), line
    assert all(re.match(r"FROM (\$\{B(ASE|UILD)\}|runtime)( AS |$)", line) for line in dockerfile(image) if line.startswith("FROM"))


@pytest.mark.parametrize("image", LOCKS)
def test_hashed_requirements_are_installed_before_the_source_comes(image: str):
    """So that a change of the source does not fetch gigabytes again, and nothing is fetched that was not locked."""
    lines = dockerfile(image)
    installed = next(index for index, line in enumerate(lines) if "pip install" in line)
    source = next(index for index, line in enumerate(lines) if line.startswith("COPY trainer"))

    assert installed < source
    assert lines[installed].count("pip install") == lines[installed].count("--require-hashes --no-deps") >= 2
    assert f"/requirements/{LOCKS[image]}" in lines[installed]


def test_only_the_trainer_has_a_compiler_and_it_comes_before_all_that_changes():
    """In a stage of its own, on which the image is built; an image in which torch.compile does not work is not built at all."""
    lines = dockerfile("trainer")
    begins = [index for index, line in enumerate(lines) if line.startswith("FROM ")]
    (installed,) = [index for index, line in enumerate(lines) if "apt-get" in line]
    compiled = next(index for index, line in enumerate(lines) if "torch.compile" in line)
    fetched = next(line for line in lines if "pip install" in line)

    assert lines[begins[0]].endswith(" AS runtime")
    assert begins[0] < installed < begins[1]
    assert lines[begins[-1]] == "FROM runtime"
    assert lines[begins[1]] == "FROM runtime AS packages"  # which builds what has no wheel for arm64, and leaves none of its tools
    assert locked("sources.txt") - locked("trainer.txt") <= set(fetched.rpartition("uninstall --yes ")[2].split())
    assert all(
        word in lines[installed] for word in ("--no-install-recommends", " gcc ", " g++ ", " libc6-dev ", "rm -rf /var/lib/apt/lists")
    )
    assert compiled < next(index for index, line in enumerate(lines) if line.startswith("COPY trainer"))
    assert not [line for line in dockerfile("pipelines") if re.search(r"gcc|build-essential", line)]


@pytest.mark.parametrize("image", LOCKS)
def test_process_1_is_an_init_in_the_image_and_in_pods(image: str):
    """One that reaps, and passes SIGTERM on to a Python that has no handler yet; of Debian, where BASE has none."""
    lines = dockerfile(image)
    (installed,) = [line for line in lines if "apt-get" in line]

    assert f"test -x {INIT[0]}" in installed
    assert " catatonit " in installed
    assert lines[-1] == f"ENTRYPOINT {json.dumps([*INIT, 'python', '-m', image])}"
    assert [line for line in lines if line.startswith("FROM")][-1] == "FROM runtime"


def test_what_a_pod_compiles_goes_where_the_image_says_too():
    """The image's own environment and the pod's name the same writable places."""
    (environment,) = [line for line in dockerfile("trainer") if line.startswith("ENV PATH=")]

    for name, place in WRITABLE.items():
        assert f" {name}={place}" in environment, name


@pytest.mark.parametrize("image", LOCKS)
def test_an_image_has_nothing_of_the_other(image: str):
    """What kfp pins, torch's world does not care about."""
    assert not locked(LOCKS[image]) & FOREIGN[image]
    assert ("COPY pipelines" in " ".join(dockerfile(image))) == (image == "pipelines")


@pytest.mark.parametrize("image", IMAGES)
def test_what_an_image_copies_is_let_into_its_context(image: str):
    """.dockerignore keeps everything out but what is named: an environment of 6 GB lies beside the source."""
    kept = [line[1:] for line in (REPOSITORY / ".dockerignore").read_text().splitlines() if line.startswith("!")]
    for line in dockerfile(image):
        if line.startswith("COPY ") and "--from" not in line:
            for source in line.split()[1:-1]:
                assert (REPOSITORY / source).exists(), source
                assert any(fnmatch.fnmatch(source, pattern) for pattern in kept), source


@pytest.mark.parametrize("image", IMAGES)
def test_an_image_says_under_which_licences_its_content_is(image: str):
    """Ours and the notices of others; of MinIO, whose source is not here, its own."""
    text = " ".join(dockerfile(image))
    assert re.search(r"COPY (LICENSE )?NOTICE /licenses/", text)
    assert image != "minio" or ("/licenses/MINIO-LICENSE" in text and 'cp -t "/licenses/$module"' in text)


@pytest.mark.parametrize("image", LOCKS)
def test_python_s_caches_do_not_hold_the_time_of_the_build(image: str):
    """Neither those that pip writes nor our own; and no argument that changes with each commit comes before pip."""
    text = "\n".join(dockerfile(image))
    assert text.index("SOURCE_DATE_EPOCH=3") < text.index("pip install")
    assert "ARG SOURCE_DATE_EPOCH" not in text
    assert text.count("compileall") == text.count("compileall -q --invalidation-mode unchecked-hash") == 1


def test_the_tag_changes_with_the_content(tmp_path: Path):
    """The version of a release alone; else its commit, and a hash of what is not committed."""

    def git(*arguments: str) -> None:
        subprocess.run(["git", "-c", "user.name=a", "-c", "user.email=a@b", *arguments], cwd=tmp_path, check=True, capture_output=True)

    def tag() -> str:
        return subprocess.run([tmp_path / "images/tag.sh"], check=True, capture_output=True, text=True).stdout.strip()

    (tmp_path / "images").mkdir()
    shutil.copy2(REPOSITORY / "images/tag.sh", tmp_path / "images/tag.sh")
    (tmp_path / "pyproject.toml").write_text('version = "1.2.3"\n')
    assert tag() == "1.2.3"
    git("init", "--quiet")
    git("add", ".")
    git("commit", "--quiet", "--message", "one")
    committed = tag()
    assert re.fullmatch(r"1\.2\.3-[0-9a-f]{12}", committed)
    git("tag", "v1.2.3")
    assert tag() == "1.2.3"
    seen = set()
    for text in ("a", "b"):
        (tmp_path / "new").write_text(text)
        seen.add(tag())
    (tmp_path / "new").unlink()
    (tmp_path / "pyproject.toml").write_text('version = "1.2.3"\n\n')
    seen.add(tag())
    (tmp_path / "folder").mkdir()
    for target in ("folder", "nowhere"):  # such as a link to an environment elsewhere
        (tmp_path / "link").unlink(missing_ok=True)
        (tmp_path / "link").symlink_to(target)
        seen.add(tag())
    assert len(seen) == 5
    assert all(re.fullmatch(r"1\.2\.3-[0-9a-f]{8}", one) for one in seen)
    (tmp_path / ".git/config").write_text("[core\n")  # as where the checkout is another user's, git refuses
    done = subprocess.run([tmp_path / "images/tag.sh"], capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.endswith("tag: git does not say which commit this is; set TAG=\n")


def test_the_pipelines_and_the_report_live_on_their_lock_alone():
    """Every module of pipelines, and the report that the exit task runs in place, without torch."""
    command = [sys.executable, "-W", "ignore", "-c", ONLY_THE_LOCK, str(REPOSITORY / "requirements/pipelines.txt")]
    done = subprocess.run(command, capture_output=True, text=True, cwd=REPOSITORY, check=False)

    assert done.stdout == "True 2\n", done.stderr
    assert "/nonexistent" in done.stderr


@pytest.mark.parametrize(
    ("variables", "named"),
    [({"BUILDER": ""}, "none of docker, podman or buildah works here"), ({"BUILDER": "true"}, "there is no image trainers")],
)
def test_make_images_says_in_one_line_what_is_missing(tmp_path: Path, variables: dict[str, str], named: str):
    """Exit code 2."""
    environment = {"PATH": "/usr/bin:/bin", "REGISTRY": "r", "TAG": "t", "ARCHIVES": str(tmp_path), "HOME": str(tmp_path), **variables}
    if not variables["BUILDER"]:
        tools = tmp_path / "bin"
        tools.mkdir()
        for name in ("bash", "dirname", "sed", "git", "mkdir", "env"):
            (tools / name).symlink_to(f"/usr/bin/{name}")
        environment["PATH"] = str(tools)

    done = subprocess.run(["/bin/bash", str(REPOSITORY / "images/build.sh"), "trainers"], env=environment, capture_output=True, text=True)

    assert done.returncode == 2
    assert named in done.stderr
    assert len(done.stderr.splitlines()) == 1


DIGEST = f"sha256:{'ab' * 32}"
STUBS = {  # what each builder says of a push
    "docker": f'case "$1" in inspect) echo "other/trainer@sha256:0"; echo "registry.example.org/ml/trainer@{DIGEST}";; esac',
    "podman": f'for part; do [ "$before" != --digestfile ] || echo -n "{DIGEST}" >"$part"; before=$part; done',
}


@pytest.mark.parametrize("builder", STUBS)
@pytest.mark.parametrize("pushes", [True, False])
def test_the_values_of_a_build_name_what_was_built(tmp_path: Path, builder: str, pushes: bool):
    """Registry and tag for the chart; after a push the digests too, since no one knows them before."""
    stub = tmp_path / builder
    stub.write_text(f'#!/bin/bash\necho "$@" >>{tmp_path}/calls\n[ "$1" != save ] || touch "$3"\n{STUBS[builder]}\n')
    stub.chmod(0o755)
    environment = {
        "PATH": "/usr/bin:/bin", "HOME": str(tmp_path), "BUILDER": str(stub), "REGISTRY": "registry.example.org/ml/", "TAG": "0.1.0-abc",
        "ARCHIVES": str(tmp_path / "images"), "SBOM": "0", "PUSH": "1" if pushes else "",
    }  # fmt: skip

    done = subprocess.run([REPOSITORY / "images/build.sh", "trainer"], env=environment, capture_output=True, text=True)

    assert done.returncode == 0, done.stderr
    values = yaml.safe_load((tmp_path / "images/values.yaml").read_text())
    built = {"tag": "0.1.0-abc", **({"digest": DIGEST} if pushes else {})}
    assert values == {"images": {"registry": "registry.example.org/ml", "trainer": built}}
    assert "--tag registry.example.org/ml/trainer:0.1.0-abc" in (tmp_path / "calls").read_text()
    assert ("push" in (tmp_path / "calls").read_text()) == pushes
    assert ("their digests are known after a push" in done.stdout) != pushes


def test_a_build_of_one_image_leaves_the_values_of_the_others(tmp_path: Path):
    """Under the new tag they were never built; another registry has none of them."""
    stub = tmp_path / "podman"
    stub.write_text('#!/bin/bash\n[ "$1" != save ] || touch "$3"\n')
    stub.chmod(0o755)

    def build(registry: str, tag: str, *images: str) -> Any:
        names = {"BUILDER": str(stub), "ARCHIVES": str(tmp_path), "SBOM": "0", "REGISTRY": registry, "TAG": tag}
        command = [REPOSITORY / "images/build.sh", *images]
        subprocess.run(command, env={"PATH": "/usr/bin:/bin", **names}, capture_output=True, check=True)
        return yaml.safe_load((tmp_path / "values.yaml").read_text())["images"]

    build("r", "1", "trainer", "pipelines", "minio")
    assert build("r", "2", "pipelines") == {"registry": "r", "trainer": {"tag": "1"}, "minio": {"tag": "1"}, "pipelines": {"tag": "2"}}
    assert build("other", "3", "trainer") == {"registry": "other", "trainer": {"tag": "3"}}


def test_an_archive_appears_when_it_is_whole(tmp_path: Path):
    """A cluster that starts meanwhile imports every *.tar of the folder."""
    stub = tmp_path / "podman"
    stub.write_text(f'#!/bin/bash\n[ "$1" != save ] || {{ ls {tmp_path}/images >{tmp_path}/seen; echo whole >"$3"; }}\n')
    stub.chmod(0o755)
    names = {"BUILDER": str(stub), "ARCHIVES": str(tmp_path / "images"), "SBOM": "0", "REGISTRY": "r", "TAG": "1"}
    for _ in range(2):
        subprocess.run([REPOSITORY / "images/build.sh", "trainer"], env={"PATH": "/usr/bin:/bin", **names}, capture_output=True, check=True)
        assert (tmp_path / "images/trainer.tar").read_text() == "whole\n"
    assert [name for name in (tmp_path / "seen").read_text().split() if name.endswith(".tar")] == ["trainer.tar"]  # the first one, still
    assert not list(tmp_path.glob("images/*.partial"))


def test_a_registry_with_a_scheme_is_refused(tmp_path: Path):
    """As the chart refuses it, before anything is built."""
    names = {"REGISTRY": "https://registry.example.org/ml", "TAG": "t", "BUILDER": "true", "ARCHIVES": str(tmp_path)}
    environment = {"PATH": "/usr/bin:/bin", **names}
    done = subprocess.run([REPOSITORY / "images/build.sh", "trainer"], env=environment, capture_output=True, text=True)
    assert (done.returncode, len(done.stderr.splitlines())) == (2, 1)
    assert "REGISTRY is a prefix of image names" in done.stderr


def test_a_push_without_a_digest_is_an_error(tmp_path: Path):
    """Instead of values that name nothing."""
    stub = tmp_path / "docker"
    stub.write_text('#!/bin/bash\n[ "$1" != save ] || touch "$3"\n')
    stub.chmod(0o755)
    environment = {"PATH": "/usr/bin:/bin", "BUILDER": str(stub), "REGISTRY": "r", "TAG": "t", "ARCHIVES": str(tmp_path), "SBOM": "0"}

    done = subprocess.run([REPOSITORY / "images/build.sh", "minio"], env={**environment, "PUSH": "1"}, capture_output=True, text=True)

    assert done.returncode == 2
    assert done.stderr.strip().endswith("r/minio:t was pushed, and " + str(stub) + " does not say under which digest")
    assert not (tmp_path / "values.yaml").exists()
