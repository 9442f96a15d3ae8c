"""The images built by images/build.sh with nothing pulled: buildah, on a base of Debian and this machine's Python.

There is no registry here, so the base is what the cluster's pods run on anyway (tests/cluster/images.py), with CPython
in /usr/local as in the official Python images. The steps are those of the Dockerfiles themselves.
"""

import json
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from tests.cluster import images, programs, settings

REPOSITORY = Path(__file__).parents[2]
PIPELINES_IMAGE = "docker.io/firstsight/pipelines:e2e"
TRAINER_RUNTIME = "docker.io/firstsight/trainer-runtime:e2e"
BASE = "localhost/firsttest-python:1"
CERTIFICATES = "/etc/ssl/certs/ca-certificates.crt"
STORE = settings.CACHE / "buildah"
OPTIONS = [
    "--storage-driver", os.environ.get("STORAGE_DRIVER", "overlay"), "--root", str(STORE / "root"), "--runroot", str(STORE / "run"),
]  # fmt: skip
# chroot: no namespaces and no cgroups of its own, which a container that runs this may not have to give
BUILD_OPTIONS = ["--isolation", "chroot", "--layers", "--quiet", "--volume", f"{CERTIFICATES}:{CERTIFICATES}:ro"]


def pipelines_archive() -> Path:
    """The pipelines image as it is built from this checkout, as a docker archive that `node.import_images()` takes up.

    Steps whose input did not change are taken from buildah's store, so a second call takes seconds.
    """
    build("pipelines", settings.IMAGES)
    return settings.IMAGES / "pipelines.tar"


def trainer_runtime_archive() -> Path:
    """The trainer image without what pip installs, as its Dockerfile builds it; pods get torch by a volume, instead of 6 GB to import."""
    install_buildah()
    build_base()
    archive, before = settings.IMAGES / "trainer-runtime.tar", _image_id(TRAINER_RUNTIME)
    stage = ["--target", "runtime", "--build-arg", f"BASE={BASE}", "--tag", TRAINER_RUNTIME]
    _buildah("build", *BUILD_OPTIONS, *stage, "--file", str(REPOSITORY / "images/trainer/Dockerfile"), str(REPOSITORY))
    if not archive.exists() or before != _image_id(TRAINER_RUNTIME):
        partial = archive.with_suffix(".partial")  # a node that starts meanwhile imports every *.tar
        partial.parent.mkdir(parents=True, exist_ok=True)
        partial.unlink(missing_ok=True)
        _buildah("push", "--quiet", TRAINER_RUNTIME, f"docker-archive:{partial}:{TRAINER_RUNTIME}")
        partial.rename(archive)
    return archive


def build(image: str, archives: Path, *, sbom: bool = False) -> None:
    """Run images/build.sh for one image; CalledProcessError if it fails.

    Args:
        image: trainer or pipelines.
        archives: folder for the archive and the SBOM.
        sbom: write one.
    """
    install_buildah()
    build_base()
    registry, _, tag = PIPELINES_IMAGE.rpartition("/pipelines:")
    before = _image_id(f"{registry}/{image}:{tag}")
    with tempfile.TemporaryDirectory() as scratch:
        pip = Path(scratch) / "pip.conf"
        pip.write_text(_pip_configuration())
        environment = {
            **os.environ,
            "BUILDER": "buildah",
            "BUILDER_OPTIONS": " ".join(OPTIONS),
            "BUILD_OPTIONS": " ".join(BUILD_OPTIONS),
            "BASE": BASE,
            "REGISTRY": registry,
            "TAG": tag,
            "PIP_CONF": str(pip),
            "ARCHIVES": str(archives),
            "SBOM": "1" if sbom else "0",
        }
        subprocess.run([str(REPOSITORY / "images/build.sh"), image], check=True, env=environment)
    if before and before != _image_id(f"{registry}/{image}:{tag}"):
        subprocess.run(["buildah", *OPTIONS, "rmi", before], capture_output=True)  # each change of the source would leave one behind


def build_base() -> None:
    """A Debian with CPython in /usr/local, unless it is there."""
    if subprocess.run(["buildah", *OPTIONS, "inspect", "--type", "image", BASE], capture_output=True).returncode == 0:
        return
    images.debian_rootfs()
    container = _buildah("from", "scratch")
    try:
        _buildah("copy", "--quiet", container, str(settings.ROOTFS), "/")
        with tempfile.TemporaryDirectory() as scratch:
            waste = shutil.ignore_patterns("site-packages", "__pycache__", "test", "*.a")
            shutil.copytree(sys.base_prefix, f"{scratch}/python", symlinks=True, ignore=waste)
            _buildah("copy", "--quiet", container, f"{scratch}/python", "/usr/local")
        _buildah("run", "--isolation", "chroot", container, "--", "sh", "-c", "ldconfig && python3 -c 'import ssl, sqlite3, venv'")
        _buildah("config", "--env", "PATH=/usr/local/bin:/usr/bin:/bin", container)
        _buildah("commit", "--quiet", container, BASE)
    finally:
        _buildah("rm", container)


def install_buildah() -> None:
    """Buildah from Debian, which needs no daemon."""
    if not shutil.which("buildah"):
        programs.debian("buildah")


def configuration(archive: Path) -> dict[str, object]:
    """What a docker archive says of its image: Entrypoint, User, Env, Labels and so on."""
    import tarfile

    with tarfile.open(archive) as tar:
        (manifest,) = json.load(tar.extractfile("manifest.json"))  # type: ignore[arg-type]
        described: dict[str, object] = json.load(tar.extractfile(manifest["Config"]))["config"]  # type: ignore[arg-type]
        return described


def run(image: str, *command: str) -> subprocess.CompletedProcess[str]:
    """A command in a container of the image, as the image's own user."""
    container = _buildah("from", image)
    try:
        return subprocess.run(
            ["buildah", *OPTIONS, "run", "--isolation", "chroot", container, "--", *command], capture_output=True, text=True
        )
    finally:
        _buildah("rm", container)


def _buildah(*arguments: str) -> str:
    done = subprocess.run(["buildah", *OPTIONS, *arguments], capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"buildah {' '.join(arguments)}: {done.stderr.strip()}")
    return done.stdout.strip()


def _image_id(image: str) -> str:
    done = subprocess.run(["buildah", *OPTIONS, "images", "--quiet", "--no-trunc", image], capture_output=True, text=True)
    return done.stdout.strip() if done.returncode == 0 else ""


def _pip_configuration() -> str:
    """What this machine's pip was told: mirror and certificates."""
    listed = subprocess.run([sys.executable, "-m", "pip", "config", "list"], capture_output=True, text=True, check=True).stdout
    told = dict(line.partition("=")[::2] for line in listed.splitlines())
    keys = ("index-url", "extra-index-url", "trusted-host", "proxy")
    values = {key: value.strip("'") for key in keys for name, value in told.items() if name.rpartition(".")[2] == key}
    return "\n".join(["[global]", f"cert = {CERTIFICATES}", *(f"{key} = {value}" for key, value in values.items())]) + "\n"
