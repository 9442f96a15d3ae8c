"""Runs kept to their profile: every address that a request can name, and the most that it may ask for."""

import dataclasses
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from pipelines.planning import request as requests
from pipelines.planning.request import FIELDS, Request
from pipelines.profile.confined import Limits, check_places
from pipelines.profile.profile import Profile, job_settings, read_profile
from pipelines.profile.settings import JobSettings
from trainer.configs import RECIPES
from trainer.errors import InputError
from trainer.storage import confined

ROOT = "s3://b/team-a"
BOUNDED = Profile(root=ROOT, backend="pytorchjob", reads=("s3://data/public",))
THEIRS = "s3://b/team-b/x"
SAYS_WHAT_HOLDS = "profile"


def _somewhere_in(item: "dataclasses.Field[Any]") -> Iterator[Any]:
    """Values of a field in which an address stands, as text, in a list, in mappings and lists of mappings."""
    kind = item.metadata["kind"]
    if kind in ("text", "recipe"):
        yield from (THEIRS, "S3://b/team-b", "file:///data/x", "/data/x", "s3://b/team-a/../team-b", "s3://b/team-a%2f..%2fteam-b")
    if kind in ("list", "text"):
        yield f"from:{THEIRS}"
    if kind == "list":
        yield from ((THEIRS,), ("random", f"from:{THEIRS}"), (f"{ROOT}/x,{THEIRS}",))
    if kind in ("mapping", "settings", "axes", "recipe"):
        yield from ({"a": THEIRS}, {"a": {"b": [1, THEIRS]}}, {"a": [{"b": f"uri={THEIRS}"}]})


@pytest.mark.parametrize("name", [name for name in FIELDS if name != SAYS_WHAT_HOLDS])
def test_no_field_of_a_request_leads_out(name: str) -> None:
    """Each declared field, whatever its kind; numbers cannot hold an address. A field that is added is in this test by itself."""
    found = list(_somewhere_in(FIELDS[name]))
    assert found or FIELDS[name].metadata["kind"] == "number"
    for value in found:
        request = object.__new__(Request)  # past the rules of some fields, which refuse such values for reasons of their own
        request.__dict__.update({**Request().__dict__, name: value})
        with pytest.raises(InputError, match=rf"^{name}.* is outside the locations that runs of this profile may use \({ROOT}"):
            BOUNDED.check_addresses(request)


def test_a_field_that_is_added_is_covered(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without a word about it anywhere else."""

    @dataclasses.dataclass(frozen=True, kw_only=True)
    class Later(Request):
        teacher: str = requests.text("", "the URI of a teacher")

    monkeypatch.setitem(FIELDS, "teacher", {item.name: item for item in dataclasses.fields(Later)}["teacher"])
    with pytest.raises(InputError, match="teacher: s3://b/team-b/x is outside"):
        BOUNDED.check_addresses(Later(teacher=THEIRS))


def test_what_a_tenant_may_name() -> None:
    """All below its root and what the profile lists, http(s), and its pods' own scratch folder."""
    request = Request(
        root=f"{ROOT}/sub",
        pairs="https://example.org/list.tsv",
        triplets="s3://data/public/nights.yaml",
        eval_sets=(f"{ROOT}/sets/a", "s3://data/public/sets/b"),
        arms=("random", f"from:{ROOT}/tower"),
        resume=f"{ROOT}/experiments/x/checkpoints/step-000001000",
        image="registry.example.org:5000/ml/trainer:1@sha256:ab",
        recipe={"base": f"{ROOT}/recipe.yaml"},
        placement={"cache_dir": "/tmp/cache"},
        representation={"rdms": [f"{ROOT}/rdm.csv"]},
    )
    BOUNDED.check_addresses(request)
    for recipe in RECIPES:
        BOUNDED.check_addresses(Request(recipe=recipe))


def test_what_is_listed_for_reading_is_no_root() -> None:
    """A run writes everything below its root."""
    with pytest.raises(InputError, match=r"^root: s3://data/public/x is outside .* \(s3://b/team-a\): runs write there"):
        BOUNDED.check_addresses(Request(root="s3://data/public/x"))


def test_a_profile_of_one_s_own_bounds_nothing() -> None:
    """Nor does one that the chart wrote before there were bounds."""
    Profile(root=ROOT).check_addresses(Request(root=THEIRS, pairs="/data"))
    assert confined.VARIABLE not in job_settings(Profile(root=ROOT), Request()).store_environment


def test_files_of_one_s_own_machine_are_no_tenants(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where jobs run beside the shell that asks for them; in a pod, and for pods, a path may be a volume that tenants share."""
    here = dataclasses.replace(BOUNDED, backend="local")
    for name in ("KUBERNETES_SERVICE_HOST", "KFP_POD_NAME"):
        monkeypatch.delenv(name, raising=False)
    request = Request(root="/home/me/runs", pairs="/home/me/pictures", triplets="file:///home/me/nights")
    here.check_addresses(request)
    with pytest.raises(InputError, match="pairs: s3://b/team-b/x is outside"):
        here.check_addresses(Request(pairs=THEIRS))
    with pytest.raises(InputError, match="pairs: /home/me/pictures is outside"):
        BOUNDED.check_addresses(request)
    monkeypatch.setenv("KUBERNETES_SERVICE_HOST", "10.0.0.1")
    with pytest.raises(InputError, match="root: /home/me/runs is outside"):
        here.check_addresses(request)


def test_jobs_are_told_the_bounds() -> None:
    """Whatever their configuration names."""
    assert job_settings(BOUNDED, Request()).store_environment[confined.VARIABLE] == f"{ROOT} s3://data/public"


@pytest.mark.parametrize("value", ["http://x/y", "https://x/a/../b", "1/0.07", "a/b", "registry.example.org:5000/x", "auto", "0.5"])
def test_what_is_no_address_of_a_store(value: str) -> None:
    check_places("x", {"a": [value]}, (ROOT,))


IMAGES = ("reg.example.org/ml", "firstsight/trainer:", "own.example.org", "tagged/trainer:1")
LIMITS = Limits(nodes=4, gpus_per_node=8, gpus=64, images=IMAGES, queues=("gpus", "nights"))


@pytest.mark.parametrize(
    ("asked", "said"),
    [
        ({"nodes": 5}, "nodes is 5, but the profile allows only 4 (limits.nodes): request less"),
        ({"placement": {"nodes": 5}}, "placement.nodes is 5, but the profile allows only 4 (limits.nodes)"),
        ({"gpus_per_node": 9}, "gpus_per_node is 9, but the profile allows only 8 (limits.gpus_per_node)"),
        ({"nodes": 4, "gpus_per_node": 8, "parallel_cells": 3, "seeds": ("0", "1", "2")}, "parallel_cells: GPUs at once is 96, but the"),
        (
            {"nodes": 4, "gpus_per_node": 8, "parallel_cells": 0, "seeds": ("0", "1", "2")},
            "GPUs at once is 192, but the profile allows only 64",
        ),
        (
            {"image": "reg.example.org/ml-evil/trainer"},
            "image is 'reg.example.org/ml-evil/trainer', but the profile only allows images under",
        ),
        ({"image": "reg.example.org/ml/../x"}, "(limits.images)"),
        ({"image": "other/trainer:1"}, "(limits.images)"),
        ({"image": "own.example.org:5000/trainer:1"}, "(limits.images)"),
        ({"image": "own.example.org.evil.example/trainer:1"}, "(limits.images)"),
        ({"image": "evil/reg.example.org/ml/trainer"}, "(limits.images)"),
        ({"image": "REG.example.org/ml/trainer"}, "(limits.images)"),
        ({"image": "firstsight/trainer-evil:1"}, "(limits.images)"),
        ({"image": "tagged/trainer:1.2"}, "(limits.images)"),
        ({"image": "tagged/trainer:1@sha256:ab"}, "(limits.images)"),  # which may be any image of the repository
        ({"queue": "theirs"}, "queue is 'theirs', but the profile only allows gpus or nights (limits.queues): use one of them"),
        ({"queue": ""}, "queue is not given, but the profile only allows gpus or nights (limits.queues)"),
    ],
)
def test_more_than_the_profile_allows(asked: dict[str, Any], said: str) -> None:
    """Path of the value, the limit, and what helps; refused for every job as for the run."""
    profile = dataclasses.replace(BOUNDED, limits=LIMITS)
    with pytest.raises(InputError) as raised:
        job_settings(profile, Request(**{"queue": "gpus", **asked}))
    assert said in str(raised.value)


@pytest.mark.parametrize(
    "asked",
    [
        {"nodes": 4, "gpus_per_node": 8, "parallel_cells": 2},
        {"nodes": 4, "gpus_per_node": 8, "parallel_cells": 0},  # it has two cells
        {"image": "reg.example.org/ml/trainer:1", "queue": "nights"},
        {"image": "firstsight/trainer:2"},
        {"image": "tagged/trainer:1"},
        {"image": "own.example.org/trainer:2@sha256:ab"},
        {"image": "reg.example.org/ml:2"},
        {},
    ],
)
def test_as_much_as_the_profile_allows(asked: dict[str, Any]) -> None:
    job_settings(dataclasses.replace(BOUNDED, limits=LIMITS), Request(**{"queue": "gpus", **asked}))


@pytest.mark.parametrize("profile", [{"jobs": JobSettings(metrics_port=9600)}, {"placement": {"metrics_port": 9600}}])
def test_a_run_has_the_profile_s_metrics_port(profile: dict[str, Any]) -> None:
    """Network policies open no other; where jobs run on this machine there are none."""
    ours = dataclasses.replace(BOUNDED, **profile)
    for placement in ({}, {"metrics_port": 9600}):
        assert job_settings(ours, Request(placement=placement)).metrics_port == 9600
    for port in (9400, 0, 22):
        with pytest.raises(InputError, match=rf"^placement.metrics_port is {port}, but .* port, 9600: leave it out, or change"):
            job_settings(ours, Request(placement={"metrics_port": port}))
    job_settings(dataclasses.replace(ours, backend="local"), Request(placement={"metrics_port": 9400}))


def test_the_profile_s_own_queue_and_image_will_do() -> None:
    """Who writes the profile need not list its own image."""
    jobs = JobSettings(image="other/trainer:1", labels={"kueue.x-k8s.io/queue-name": "gpus"})
    assert job_settings(dataclasses.replace(BOUNDED, limits=LIMITS, jobs=jobs), Request()).image == "other/trainer:1"


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("reads: [s3://b/x/../y]\nroot: s3://b/x", "reads must be s3://bucket/prefix or an absolute path"),
        ("reads: [data]\nroot: s3://b/x", "reads must be s3://bucket/prefix or an absolute path"),
        ("reads: []", "root must be s3://bucket/prefix or an absolute path"),
        ("limits: {nodes: -1}", "limits.nodes must be between 0 (no limit) and 1024"),
        ("limits: {gpus_per_node: 65}", "limits.gpus_per_node must be between 0 (no limit) and 64"),
        ("limits: {queues: ['']}", "limits.queues must be a list of names"),
        ("limits: {node: 1}", "did you mean limits.nodes?"),
    ],
)
def test_bounds_that_cannot_be_meant(tmp_path: Path, text: str, line: str) -> None:
    (tmp_path / "profile.yaml").write_text(text)
    with pytest.raises(InputError) as raised:
        read_profile(str(tmp_path / "profile.yaml"))
    assert line in str(raised.value)
