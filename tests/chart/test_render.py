"""What the chart renders to, held against schemas, Pod Security, the code that reads it, and goldens."""

import contextlib
import dataclasses
import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Literal, get_args, get_origin, get_type_hints

import pytest
import yaml

from pipelines.operate.chart_preflight import read_objects
from pipelines.operate.probes import QUEUE_RIGHTS, REAPER_RIGHTS, RUN_RIGHTS, UNINSTALL_RIGHTS, Rights
from pipelines.profile.profile import Profile, read_profile
from scripts import placement_schema
from tests.chart import schemas
from tests.chart.conftest import CHART, COMMON, EVERYTHING, EXTERNAL, GITOPS, HELMS, HERE, IDENTITY, TENANTS, Objects, Tool
from tests.cluster import settings
from tests.pipelines.jobs import trainer_crds
from trainer.config import Placement
from trainer.configs import load_yaml, parse_config
from trainer.errors import InputError

pytestmark = pytest.mark.slow
Render = Callable[..., Objects]
VARIANTS = {
    "defaults": {},
    "everything": EVERYTHING,
    "gitops": GITOPS,
    "external": {**EVERYTHING, **EXTERNAL},
    "identity": IDENTITY,
    "tenants": TENANTS,
}


def test_helm_4_is_the_version_that_the_docs_name(tool: Tool) -> None:
    """It comes in a wheel, whose own version says nothing of it."""
    assert tool("helm", "version", "--template", "{{.Version}}").stdout == settings.HELM


@pytest.mark.parametrize("helm", HELMS)
def test_lint(tool: Tool, helm: str) -> None:
    """`helm lint --strict` has nothing to say against it."""
    done = tool(helm, "lint", "--strict", "--values", str(COMMON), str(CHART))
    assert done.returncode == 0, done.stdout + done.stderr


def test_unit_tests(tool: Tool) -> None:
    """helm-unittest passes: each switch on and off."""
    done = tool("helm-unittest", "--strict", "--values", str(COMMON), str(CHART))
    assert done.returncode == 0, done.stdout + done.stderr


def test_readme_is_generated(tool: Tool) -> None:
    """README.md is what `make generate` writes, so every value is in it."""
    done = tool("helm-docs", "--chart-search-root", str(CHART), "--dry-run")
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == (CHART / "README.md").read_text().strip()


@pytest.fixture(scope="module")
def schema_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("schemas")
    schemas.write_schemas(folder)
    return folder


@pytest.mark.parametrize("name", VARIANTS)
def test_schemas(render: Render, tool: Tool, schema_folder: Path, name: str) -> None:
    """Every object is good under the schema of its kind, Kubernetes' own or the operator's CRD."""
    objects = render(VARIANTS[name])
    done = _kubeconform(tool, schema_folder, objects)
    assert done.returncode == 0, done.stdout
    assert f"Valid: {len(objects)}," in done.stdout


@pytest.mark.parametrize("version", trainer_crds.VERSIONS)
def test_one_training_runtime_for_all_versions_of_trainer(render: Render, version: str) -> None:
    """What their schemas share: 2.2 no longer knows the number of processes there, and 2.0 has a default for it."""
    runtimes = [one for one in render(EVERYTHING) if one["kind"] == "TrainingRuntime"]
    assert runtimes
    for runtime in runtimes:
        assert list(trainer_crds.faults(trainer_crds.schemas(version)["TrainingRuntime"], runtime)) == []
        runtime["spec"]["mlPolicy"]["torch"]["misspelled"] = 1
        assert list(trainer_crds.faults(trainer_crds.schemas(version)["TrainingRuntime"], runtime))


def test_schemas_refuse(render: Render, tool: Tool, schema_folder: Path) -> None:
    """The schemas are closed: a field misspelled in any of the objects is found."""
    objects = [one for one in render(EVERYTHING) if "spec" in one]
    for one in objects:
        one["spec"]["misspelled"] = 1
    done = _kubeconform(tool, schema_folder, objects)
    assert f"Invalid: {len(objects)}," in done.stdout, done.stdout


def _kubeconform(tool: Tool, folder: Path, objects: Objects) -> Any:
    location = f"{folder}/{schemas.LOCATION}"
    return tool("kubeconform", "-strict", "-summary", "-schema-location", location, "-", text=yaml.safe_dump_all(objects))


@pytest.mark.parametrize("name", VARIANTS)
def test_restricted(render: Render, name: str) -> None:
    """Every pod is good under restricted Pod Security, with a read-only root and known resources."""
    pods = list(_pods(render(VARIANTS[name])))
    assert pods
    for where, spec in pods:
        context = spec["securityContext"]
        assert context["runAsNonRoot"] is True, where
        assert context["seccompProfile"] == {"type": "RuntimeDefault"}, where
        assert not {"hostNetwork", "hostPID", "hostIPC", "initContainers"} & set(spec), where
        assert all(set(volume) & {"emptyDir", "secret", "configMap", "projected", "persistentVolumeClaim"} for volume in spec["volumes"]), (
            where
        )
        for container in spec["containers"]:
            security = container["securityContext"]
            assert security == {"allowPrivilegeEscalation": False, "readOnlyRootFilesystem": True, "capabilities": {"drop": ["ALL"]}}, where
            assert {"requests", "limits"} <= set(container["resources"]), where
            assert ":latest" not in container["image"], where


def test_tokens(render: Render) -> None:
    """Only pods that talk to the API server have a token for it."""
    with_token = {where for where, spec in _pods(render(EVERYTHING)) if spec.get("automountServiceAccountToken") is not False}
    assert with_token == {
        "Deployment fs-firstsight-reaper", "Job fs-firstsight-uninstall", "Pod fs-firstsight-check-reaper",
        "Pod fs-firstsight-check-firstsight-ml", "Pod fs-firstsight-check-v2-ml",
    }  # fmt: skip


def _pods(objects: Objects) -> Iterator[tuple[str, dict[str, Any]]]:
    for one in objects:
        where = f"{one['kind']} {one['metadata']['name']}"
        if one["kind"] == "Pod":
            yield where, one["spec"]
        elif one["kind"] in ("Deployment", "Job"):
            yield where, one["spec"]["template"]["spec"]


@pytest.mark.parametrize("name", VARIANTS)
def test_profiles_are_read(render: Render, name: str) -> None:
    """Each profile.yaml is one that the pipelines take, in every field."""
    maps = [one for one in render(VARIANTS[name]) if one["kind"] == "ConfigMap" and "profile.yaml" in one["data"]]
    for one in maps:
        profile = parse_config(Profile, load_yaml(one["data"]["profile.yaml"], "profile"), source="profile")
        assert profile.jobs.store_secret == ("" if name == "identity" else one["metadata"]["name"])
        assert profile.jobs.service_account == ("firstsight-jobs" if name == "identity" else "")
        assert profile.places == (profile.root, *(profile.reads or ()))
        assert profile.root == f"s3://firstsight/{one['metadata']['namespace']}"
        assert "AWS_ENDPOINT_URL_S3" in profile.jobs.store_environment
    assert maps


@pytest.mark.parametrize("helm", HELMS)
def test_every_placement_reaches_the_profile(render: Render, helm: str, tmp_path: Path) -> None:
    """Each of the trainer's settings, as another value than its default, is read from profile.yaml as it went into the values."""
    given = {item.name: _another(item) for item in placement_schema.fields()}
    (one,) = [one for one in render({"profileDefaults": {"placement": given}}, helm) if "profile.yaml" in one.get("data", {})]
    (tmp_path / "profile.yaml").write_text(one["data"]["profile.yaml"])
    arrived = read_profile(str(tmp_path / "profile.yaml")).placement

    assert arrived == given
    assert {name: type(value) for name, value in arrived.items()} == {name: type(value) for name, value in given.items()}


def _another(item: "dataclasses.Field[Any]") -> Any:
    """A value of the field that is good and is not its default."""
    for value in _values(get_type_hints(Placement)[item.name]):
        with contextlib.suppress(InputError):
            if value != item.default and Placement(**{item.name: value}):
                return value
    raise AssertionError(f"placement.{item.name}: this test knows no value for it")


def _values(hint: Any) -> list[Any]:
    plain: dict[Any, list[Any]] = {bool: [True, False], int: [12345, 1 << 37], float: [2.5], str: ["1:2", "s3://bucket/a: b # c"]}
    if hint in plain:
        return plain[hint]
    parts = get_args(hint)
    return list(parts) if get_origin(hint) is Literal else [value for part in parts for value in _values(part)]


def test_rights_are_those_that_are_checked(render: Render) -> None:
    """`helm test` asks for exactly the verbs that the Roles give."""
    objects = render({"profiles": {"firstsight": {}, "queued": {"jobs": {"queue": "gpus"}}}})
    roles: dict[str, Rights] = {
        "fs-firstsight-firstsight-run": RUN_RIGHTS,
        "fs-firstsight-queued-run": {**RUN_RIGHTS, **QUEUE_RIGHTS},
        "fs-firstsight-reaper": REAPER_RIGHTS,
        "fs-firstsight-uninstall": UNINSTALL_RIGHTS,
    }
    for name, rights in roles.items():
        rules = next(one for one in objects if one["kind"] == "Role" and one["metadata"]["name"] == name)["rules"]
        given = {f"{rule['resources'][0]}.{rule['apiGroups'][0]}".rstrip("."): tuple(rule["verbs"]) for rule in rules}
        assert given == {resource: tuple(verbs) for resource, verbs in rights.items()}


def test_no_wildcards(render: Render) -> None:
    """No Role has a `*`, and none reads Secrets."""
    for one in render(EVERYTHING):
        for rule in one.get("rules", []):
            assert "*" not in rule["verbs"] + rule["resources"] + rule["apiGroups"]
            assert "secrets" not in rule["resources"]


def test_both_helms_agree(render: Render) -> None:
    """Helm 3 and Helm 4 make the same objects."""
    values = {**EVERYTHING, **GITOPS}
    three, four = (sorted(render(values, helm), key=json.dumps) for helm in HELMS)
    assert three == four


def test_golden(render: Render) -> None:
    """Where all Secrets are brought, the rendering is the same every time, and as it was reviewed (UPDATE_GOLDEN=1 rewrites it)."""
    text = yaml.safe_dump_all(render(GITOPS), sort_keys=False, width=140)
    golden = HERE / "golden/gitops.yaml"
    if os.environ.get("UPDATE_GOLDEN"):
        golden.write_text(text)
    assert text == golden.read_text()


def test_no_secret_in_gitops(render: Render) -> None:
    """No Secret is rendered where they are brought."""
    assert not [one for one in render(GITOPS) + render(EXTERNAL) if one["kind"] == "Secret"]


def test_every_object_has_its_namespace(render: Render) -> None:
    """Preflight asks for rights by the namespaces of the objects: each names its own."""
    for one in read_objects(yaml.safe_dump_all(render(EVERYTHING))):
        assert one["kind"] in ("ClusterRole", "ClusterRoleBinding") or one["metadata"]["namespace"]
