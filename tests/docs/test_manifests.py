"""manifests/ does what its README says, as far as it can be had here: docker, kind and github.com cannot."""

import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.cluster import programs
from tests.docs import known

REPOSITORY = Path(__file__).parents[2]
MANIFESTS = REPOSITORY / "manifests"
TOOLS = ("kind", "kubectl", "helm")
BASES = {
    "https://github.com/kubeflow/training-operator//manifests": ("training-operator", "github.com/kubeflow/training-operator", "manifests"),
    "https://github.com/prometheus-operator/prometheus-operator": (
        "prometheus-operator", "github.com/prometheus-operator/prometheus-operator", "",
    ),
}  # fmt: skip
"""Remote bases whose Go module holds the same files: the tool of tests/cluster that pins it, the module, the folder."""


def kustomizations() -> dict[str, dict[str, Any]]:
    """Each kustomization by its folder."""
    return {str(path.parent): yaml.safe_load(path.read_text()) for path in MANIFESTS.rglob("kustomization.yaml")}


def test_overlays_name_what_exists():
    """Local resources and patches; every manifest is in a kustomization; every folder of the README's table is there."""
    named = set()
    for folder, one in kustomizations().items():
        local = [name for name in one.get("resources", []) if "://" not in name] + [patch["path"] for patch in one.get("patches", [])]
        assert all((Path(folder) / name).exists() for name in local), f"{folder}: {local}"
        named |= {(Path(folder) / name).resolve() for name in local}
    apart = {MANIFESTS / "kind-cluster.yaml", *MANIFESTS.rglob("kustomization.yaml")}
    assert set(MANIFESTS.rglob("*.yaml")) - apart == {path for path in named if path.is_file()}
    table = re.findall(r"^\| `([\w/-]+)/`", (MANIFESTS / "README.md").read_text(), re.MULTILINE)
    assert len(table) == 6
    assert all((MANIFESTS / name / "kustomization.yaml").exists() for name in table)


def test_a_comment_names_values_that_the_chart_has():
    """A word with a capital inside, in a comment on the chart, is one of its keys or a Kubernetes kind."""
    for path in (*MANIFESTS.rglob("*.yaml"), *MANIFESTS.glob("*.sh")):
        for line in path.read_text().splitlines():
            comment = line.partition("# ")[2] if "chart" in line else ""
            for word in re.findall(r"\b[a-z]+[A-Z]\w*(?:\.\w+)*", comment):
                assert known.is_key(word), f"{path}: {word}"


def test_kind_up_makes_the_cluster_loads_the_images_and_installs_the_chart(tmp_path: Path):
    """With tools that only note how they were called, in the order that things need each other; each folder that is applied is there."""
    (tmp_path / "bin").mkdir()
    (tmp_path / "images").mkdir()
    (tmp_path / "images/trainer.tar").touch()
    for tool in TOOLS:
        (tmp_path / "bin" / tool).write_text(f'#!/bin/sh\necho "{tool} $*" >> {tmp_path}/calls\n')
        (tmp_path / "bin" / tool).chmod(0o755)
    command = ["bash", str(MANIFESTS / "kind-up.sh"), "docker.io/firstsight", "1.2.3-abc", str(tmp_path / "images")]
    environment = {"PATH": f"{tmp_path}/bin:/usr/bin:/bin", "HOME": str(tmp_path)}

    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)

    assert done.returncode == 0, done.stderr
    calls = (tmp_path / "calls").read_text().splitlines()
    turns = [r"kind create cluster .*--config manifests/kind-cluster\.yaml", r"kind load image-archive .*trainer\.tar"]
    turns += [r"kubectl apply .*-k manifests/prometheus-operator", r"kubectl apply .*-k manifests/overlays/kind"]
    turns += [r"kubectl apply .*-k manifests/kubeflow-pipelines$", r"helm upgrade --install firstsight charts/firstsight .*--wait"]
    places = [next(number for number, call in enumerate(calls) if re.search(turn, call)) for turn in turns]
    assert places == sorted(places), calls
    applied = [call.rpartition(" -k ")[2] for call in calls if " -k " in call]
    assert all((REPOSITORY / folder / "kustomization.yaml").exists() for folder in applied)
    values = dict(word.split("=", 1) for word in calls[places[-1]].split() if "=" in word)
    assert values["images.registry"] == "docker.io/firstsight"
    assert values["images.tag"] == "1.2.3-abc"
    assert all(known.is_key(name) for name in values)


def test_kind_up_names_the_tool_that_is_missing(tmp_path: Path):
    environment = {"PATH": "/usr/bin:/bin", "HOME": str(tmp_path)}
    if shutil.which("kind", path=environment["PATH"]):
        pytest.skip("kind is installed")
    command = ["bash", str(MANIFESTS / "kind-up.sh"), "registry", "tag", "images"]

    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)

    assert done.returncode == 2
    assert done.stderr == "kind-up: needs kind\n"


@pytest.mark.slow
@pytest.mark.parametrize("overlay", ["production", "kind"])
def test_an_overlay_renders_on_its_pinned_bases(tmp_path: Path, overlay: str):
    """The bases from their Go modules, at the version that the overlay names; what the patch says is in the operator's Deployment."""
    shutil.copytree(MANIFESTS, tmp_path / "manifests")
    for path in (tmp_path / "manifests").rglob("kustomization.yaml"):
        text = path.read_text()
        for number, (base, (tool, module, folder)) in enumerate(BASES.items()):
            found = re.search(rf"{base}(?P<rest>[\w/-]*)\?ref=(?P<version>\S+)", text)
            if found and path.parent.parent.name == "manifests":
                source, copy = programs.module_folder(tool, module), tmp_path / f"base-{number}"
                assert str(source).endswith(f"@{found['version']}")
                if not copy.exists():
                    _copy(source / folder, copy)
                text = text.replace(found[0], f"../../base-{number}{found['rest']}")
        path.write_text(text)

    kubectl = str(programs.program("kubectl"))
    done = subprocess.run([kubectl, "kustomize", f"{tmp_path}/manifests/overlays/{overlay}"], capture_output=True, text=True, check=False)

    assert done.returncode == 0, done.stderr
    objects = {(one["kind"], one["metadata"]["name"]): one for one in yaml.load_all(done.stdout, Loader=yaml.CBaseLoader)}
    assert ("CustomResourceDefinition", "pytorchjobs.kubeflow.org") in objects
    operator = objects["Deployment", "training-operator"]["spec"]["template"]["spec"]
    assert operator.get("priorityClassName") == ("system-cluster-critical" if overlay == "production" else None)
    assert (("Prometheus", "all") in objects) == (overlay == "kind")


def _copy(source: Path, target: Path) -> None:
    """The YAML of a folder of the module cache, which is read-only."""
    for path in source.rglob("*.yaml"):
        (target / path.relative_to(source)).parent.mkdir(parents=True, exist_ok=True)
        (target / path.relative_to(source)).write_bytes(path.read_bytes())
