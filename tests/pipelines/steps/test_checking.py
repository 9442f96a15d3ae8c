"""What a request cannot do is answered before anything is staged, by what this machine's driver says or the profile knows."""

import dataclasses
from pathlib import Path
from typing import Any

import pytest

from pipelines.__main__ import main
from pipelines.cluster.names import Identity
from pipelines.jobs.base import JobSpec
from pipelines.jobs.launcher import annotated
from pipelines.jobs.shapes.base import Shape
from pipelines.jobs.shapes.indexed import IndexedJobs
from pipelines.jobs.shapes.pytorchjob import PyTorchJobs
from pipelines.jobs.shapes.trainjob import TrainJobs
from pipelines.planning.request import INTRODUCED, Request, merge, read_request, write_request
from pipelines.planning.summary import preview
from pipelines.profile.profile import Profile, parallel_cells_of, read_profile
from pipelines.profile.settings import JobSettings
from pipelines.steps.checking import check_experiment, gpus_here, machines_of
from pipelines.steps.dry_run import job_specs
from trainer.config import canonical_hash
from trainer.errors import InputError
from trainer.storage.documents import read_document, write_document

EIGHT = "".join("NVIDIA H100 80GB HBM3, 81559\n" for _ in range(8))


def driver(folder: Path, monkeypatch: pytest.MonkeyPatch, said: str, code: int = 0) -> None:
    """A machine whose nvidia-smi says this, and nothing else on PATH."""
    program = folder / "bin/nvidia-smi"
    program.parent.mkdir()
    program.write_text(f"#!/bin/sh\nprintf '%s' '{said}'\nexit {code}\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(program.parent))


@pytest.fixture(autouse=True)
def _asked_anew() -> None:
    """A process asks its driver once; each test has a driver of its own."""
    gpus_here.cache_clear()


def test_the_gpus_of_this_machine_are_those_of_its_driver(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    driver(tmp_path, monkeypatch, EIGHT)

    assert gpus_here() == [("NVIDIA H100 80GB HBM3", 81559 << 20)] * 8


@pytest.mark.parametrize(("said", "code"), [("", 0), ("No devices were found", 6), ("NVIDIA GH200, [N/A]\n", 0)])
def test_a_driver_that_says_nothing_useful_ends_no_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, said: str, code: int):
    driver(tmp_path, monkeypatch, said, code)

    assert gpus_here() == []


def test_a_machine_without_a_driver_has_no_gpus(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("PATH", str(tmp_path))

    assert gpus_here() == []


def test_a_batch_that_one_gpu_does_not_hold_goes_through_the_gradient_cache_and_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    """4,096 pairs of ViT-B/32 on one H100."""
    driver(tmp_path, monkeypatch, EIGHT)

    assert main(["plan", "--recipe", "paper", "--arms", "random", "--root", str(tmp_path / "runs")]) == 0

    out = capsys.readouterr().out
    assert "note: contrastive: 4,096 samples per rank need an estimated" in out
    assert "through the gradient cache" in out
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize("command", ["plan", "run"])
def test_without_the_gradient_cache_such_a_batch_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], command: str
):
    """Before anything is staged."""
    driver(tmp_path, monkeypatch, EIGHT)
    asked = ["--recipe", "paper", "--set", "contrastive.accumulation=independent", "--arms", "random", "--root", str(tmp_path / "runs")]

    assert main([command, *asked]) == 2

    (line,) = capsys.readouterr().err.splitlines()
    assert "independent" in line
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize("flag", ["--pairs", "--triplets"])
def test_a_source_that_is_missing_is_refused_by_plan_and_run(tmp_path: Path, capsys: pytest.CaptureFixture[str], flag: str):
    for command in ("plan", "run"):
        assert main([command, "--recipe", "smoke", flag, str(tmp_path / "nosuch"), "--root", str(tmp_path / "runs")]) == 2
        assert f"{flag.strip('-')} {tmp_path}/nosuch: no such file or folder" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def _profile(folder: Path, labels: str = "") -> str:
    path = folder / "profile.yaml"
    path.write_text(f"backend: pytorchjob\nroot: s3://b/r\njobs: {{labels: {{{labels}}}}}\n")
    return str(path)


ZERO = Request(recipe="smoke", experiment="e", parallel_cells=0)


def test_cells_that_all_wait_for_a_queue_need_one(tmp_path: Path):
    """The request's, or the one that the profile gives every job."""
    profile = read_profile(_profile(tmp_path))

    with pytest.raises(InputError, match=r"parallel_cells is 0: every cell waits, suspended, for a queue to admit it, but neither"):
        check_experiment(*preview(ZERO, "s3://b/r", unread=["s3://b/r"]), profile, ZERO)
    check_experiment(*preview(ZERO, "s3://b/r", unread=["s3://b/r"]), profile, dataclasses.replace(ZERO, queue="q"))
    named = read_profile(_profile(tmp_path, "kueue.x-k8s.io/queue-name: q"))
    check_experiment(*preview(ZERO, "s3://b/r", unread=["s3://b/r"]), named, ZERO)


def test_a_profile_keeps_no_other_epochs_than_the_recipe_measures(tmp_path: Path):
    """Its placement reaches the job as the request's does."""
    path = tmp_path / "profile.yaml"
    path.write_text("placement: {trajectory: false}\n")
    asked = dataclasses.replace(ZERO, set={"evaluation": {"trajectory": True}})

    with pytest.raises(InputError, match=r"placement\.trajectory is False, and the recipe's evaluation\.trajectory is True"):
        check_experiment(*preview(asked, str(tmp_path)), read_profile(str(path)), asked)
    check_experiment(*preview(ZERO, str(tmp_path)), read_profile(str(path)), ZERO)


def test_on_this_machine_cells_run_one_at_a_time_and_that_is_said(tmp_path: Path):
    three = dataclasses.replace(ZERO, parallel_cells=3)
    notes = check_experiment(*preview(three, str(tmp_path)), Profile(), three)

    assert "parallel_cells is 3, and on this machine cells run one at a time" in notes


@pytest.mark.parametrize("value", ["-1", "1025", "2.5", "x", "1e3"])
def test_a_number_of_cells_that_is_none_is_refused(value: str):
    with pytest.raises(InputError, match=r"parallel_cells must be (between 0 and 1024|a whole number), got"):
        merge("", {"parallel_cells": value})


def test_a_request_without_it_has_the_id_that_it_had():
    """It came later: while it is not given, it is no part of the id."""
    assert dataclasses.replace(ZERO, parallel_cells=None).id == canonical_hash({**_without(ZERO)})[:16]
    assert len({dataclasses.replace(ZERO, parallel_cells=number).id for number in (None, 0, 1)}) == 3


def test_a_request_that_was_stored_while_1_was_the_default_is_read_as_not_given(tmp_path: Path):
    uri = write_request(dataclasses.replace(ZERO, parallel_cells=None), str(tmp_path))
    values = read_document(uri, "a stored request", 2)
    assert values is not None
    write_document(uri, {**values, "parallel_cells": 1})

    assert read_request(uri).parallel_cells is None
    assert read_request(write_request(dataclasses.replace(ZERO, parallel_cells=1), str(tmp_path))).parallel_cells == 1


@pytest.mark.parametrize(
    ("asked", "profile", "expected"),
    [
        (None, Profile(), 1),
        (3, Profile(), 1),
        (None, Profile(backend="pytorchjob"), 1),
        (None, Profile(backend="pytorchjob", parallel_cells=0), 0),
        (1, Profile(backend="pytorchjob", parallel_cells=0), 1),
        (0, Profile(backend="trainjob", parallel_cells=7), 0),
    ],
)
def test_how_many_cells_run_at_once_is_the_run_s_to_say_else_the_profile_s(asked: int | None, profile: Profile, expected: int):
    assert parallel_cells_of(profile, dataclasses.replace(ZERO, parallel_cells=asked)) == expected


def test_a_profile_that_sends_all_cells_to_a_queue_needs_one(tmp_path: Path):
    profile = dataclasses.replace(read_profile(_profile(tmp_path)), parallel_cells=0)
    asked = dataclasses.replace(ZERO, parallel_cells=None)

    with pytest.raises(InputError, match="parallel_cells is 0"):
        check_experiment(*preview(asked, "s3://b/r", unread=["s3://b/r"]), profile, asked)
    suspended = [spec.suspended for spec in job_specs(*preview(asked, "s3://b/r", unread=["s3://b/r"]), asked, profile)]
    assert suspended
    assert all(suspended)
    for number in (-1, 1025):
        with pytest.raises(InputError, match=f"parallel_cells must be between 0 and 1024, got {number}"):
            Profile(parallel_cells=number)


def _without(request: Request) -> dict[str, Any]:
    return {name: value for name, value in request.stored().items() if name not in INTRODUCED}


@pytest.mark.parametrize(
    ("shape", "place"), [(PyTorchJobs, ("runPolicy", "suspend")), (TrainJobs, ("suspend",)), (IndexedJobs, ("suspend",))]
)
def test_jobs_of_cells_that_wait_for_a_queue_are_created_suspended(shape: type[Shape], place: tuple[str, ...]):
    identity = Identity(
        root="s3://b/r", output="s3://b/r/experiments/e/random-seed0/contrastive", experiment="e", arm="random", stage="contrastive", seed=0
    )
    for suspended in (True, False):
        spec = JobSpec(name="x", arguments=("train",), folder=identity.output, purpose="train", identity=identity, suspended=suspended)
        found: Any = annotated(shape(JobSettings()), spec, 1)["spec"]
        for key in place:
            found = found.get(key, {})
        assert found == (True if suspended else {})


@pytest.mark.parametrize(
    ("resource", "label", "name"),
    [
        ("nvidia.com/gpu", "nvidia.com/gpu.product", "NVIDIA-H100-80GB-HBM3"),
        ("amd.com/gpu", "amd.com/gpu.product-name", "AMD_Instinct_MI300X"),
        ("nvidia.com/mig-1g.10gb", "nvidia.com/mig-1g.10gb.product", "NVIDIA-H100-80GB-HBM3-MIG-1g.10gb"),
        ("nvidia.com/gpu", "nvidia.com/gpu.product", "NVIDIA-H100-80GB-HBM3-MIG-1g.10gb"),
    ],
)
def test_the_gpu_is_known_by_the_label_of_its_own_resource_and_a_slice_is_not_the_whole(resource: str, label: str, name: str):
    """A rate measured on a whole H100 says nothing of a seventh of one."""
    template = {"spec": {"nodeSelector": {label: name}}}
    common = JobSettings(gpus_per_node=1, gpu_resource=resource, pod_template=template)
    own = JobSettings(gpus_per_node=1, gpu_resource=resource, training_pod_template=template)
    profile, request = Profile(backend="pytorchjob"), Request()

    expected = "" if "MIG" in name else name
    assert machines_of(common, profile, request).gpu == machines_of(own, profile, request).gpu == expected
    assert machines_of(own, profile, request, "evaluate").gpu == ""
