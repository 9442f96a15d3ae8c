"""What the step `stage` runs for each kind of source, and what it refuses before a pod is made."""

import dataclasses
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest

from pipelines.jobs.base import JobSpec
from pipelines.profile.profile import Profile
from pipelines.profile.settings import JobSettings
from pipelines.steps import staging
from pipelines.steps.running import Scene, open_scene
from pipelines.steps.staging import StagingRequest, remote_list, staging_of
from tests.pipelines.data import ask
from trainer.__main__ import _parser
from trainer.errors import InputError, RunError
from trainer.storage import write_json
from trainer.storage.recipes import read_recipe

LOCAL, CLUSTER = Profile(), Profile(backend="pytorchjob", staging_slices=8)
MOUNTED = JobSettings(pod_template={"spec": {"containers": [{"name": "pytorch", "volumeMounts": [{"name": "v", "mountPath": "/data"}]}]}})


@pytest.fixture
def asked(tmp_path: Path) -> Callable[..., StagingRequest]:
    """A request below a root on this machine."""

    def ask(**changes: object) -> StagingRequest:
        given = {"what": "pairs", "root": str(tmp_path), "experiment": "e", "source": "demo", "from_pairs": "", "recipe": "paper"}
        return StagingRequest(**{**given, "max_reject_fraction": 0.02, **changes})  # type: ignore[arg-type]

    return ask


def run_staging(request: StagingRequest, run: Callable[[JobSpec], None], profile: Profile, settings: JobSettings) -> str:
    """Look at the request, then run it."""
    return staging.run_staging(staging.prepare(request, profile, settings), run)


class Runner:
    """Stands for jobs that end well: they leave the results that the trainer's commands leave."""

    def __init__(self, slices: int = 20) -> None:
        self.specs: list[JobSpec] = []
        self._slices = slices

    def __call__(self, spec: JobSpec) -> None:
        options = _parser().parse_args(list(spec.arguments))  # what the trainer does not know, it refuses here
        self.specs.append(spec)
        if getattr(options, "result", ""):
            write_json(options.result, {"uri": "s3://b/p/datasets/x/1", "slices": self._slices, "rows": 1000, "identity": "i"})

    @property
    def commands(self) -> list[str]:
        return [" ".join(spec.arguments[:2]) for spec in self.specs]


def described(tmp_path: Path, text: str) -> str:
    """The URI of a YAML file."""
    path = tmp_path / "list.yaml"
    path.write_text(text)
    return str(path)


YFCC = """
kind: yfcc15m-openai
list: s3://b/list.tsv
metadata: s3://b/meta.tsv
images: https://images.example
captions: slip
contact: me@example.org
"""


def test_a_list_that_is_too_short_is_refused_before_it_is_fetched(asked: Callable[..., StagingRequest]):
    """1,000 rows, and batches of 4,096."""
    prepared = staging.prepare(asked(source="https://x.example/list.csv"), CLUSTER, JobSettings())
    run = Runner()
    with pytest.raises(
        InputError, match=r"list\.csv: 1,000 pairs to train on, needs at least 4,096 for recipe paper .*; try RECIPE=smoke or"
    ):
        staging.run_staging(dataclasses.replace(prepared, stages=("contrastive",)), run)
    assert run.commands == ["stage plan"]


def test_the_stages_that_train_are_told_to_the_job(asked: Callable[..., StagingRequest]):
    """It refuses a source that is too small for their batches."""
    run = Runner()
    prepared = staging.prepare(asked(source="s3://b/pictures"), CLUSTER, JobSettings())
    staging.run_staging(dataclasses.replace(prepared, stages=("perceptual", "contrastive")), run)
    assert run.specs[0].arguments[-2:] == ("--for-stages", "perceptual,contrastive")


def test_pictures_in_one_place_are_one_job(asked: Callable[..., StagingRequest]):
    """As on a laptop, so on a cluster."""
    run = Runner()

    assert run_staging(asked(source="s3://b/pictures"), run, CLUSTER, JobSettings()) == "s3://b/p/datasets/x/1"

    (spec,) = run.specs
    assert spec.arguments[:2] == ("stage", "pairs")
    assert spec.slices == 1
    assert spec.identity is not None
    assert (spec.identity.arm, spec.identity.stage) == ("pairs", "stage")


def test_a_list_is_planned_fetched_by_many_pods_and_sealed(asked: Callable[..., StagingRequest], tmp_path: Path):
    """The plan's options go to the plan, the fetch's to the fetch; each pod finds its slices by its index."""
    run = Runner()

    run_staging(asked(source=described(tmp_path, YFCC)), run, CLUSTER, JobSettings())

    assert run.commands == ["stage plan", "stage fetch", "stage seal"]
    plan, fetch, seal = run.specs
    assert plan.arguments[2] == "yfcc15m-openai"
    assert {"--list", "--metadata", "--images", "--captions", "--contact"} <= set(plan.arguments)
    assert ("--slice", "index/8") == fetch.arguments[4:6]
    assert "--contact" in fetch.arguments
    assert [spec.slices for spec in run.specs] == [1, 8, 1]
    assert seal.arguments[-4:-2] == ("--max-reject-fraction", "0.02")
    assert len({spec.identity.name for spec in run.specs if spec.identity}) == 3


def test_there_are_no_more_pods_than_slices(asked: Callable[..., StagingRequest]):
    run = Runner(slices=3)

    run_staging(asked(source="https://lists.example/list.csv"), run, CLUSTER, JobSettings())

    assert run.specs[1].slices == 3
    assert "index/3" in run.specs[1].arguments


def test_on_this_machine_one_process_fetches_all(asked: Callable[..., StagingRequest]):
    run = Runner()

    run_staging(asked(source="https://lists.example/list.csv"), run, LOCAL, JobSettings())

    assert run.commands == ["stage plan", "stage fetch", "stage seal"]
    assert "0/1" in run.specs[1].arguments


def test_a_url_is_nights_for_triplets_and_a_list_of_urls_for_pairs():
    assert remote_list("triplets", "https://data.example/nights.zip").kind == "nights"  # type: ignore[union-attr]
    assert remote_list("pairs", "https://lists.example/list.csv").kind == "urls"  # type: ignore[union-attr]
    assert remote_list("pairs", "s3://bucket/folder") is None


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("kind: yfcc15m-openai\n", "list must be set"),
        ("list: s3://b/l\n", "kind must be set"),
        ("- 1\n", "expected a mapping"),
        ("kind: laion\nlist: s3://b/l\n", "kind"),
        ("kind: urls\nlist: s3://b/l\ncaption: slip\n", "caption"),
        ("kind: nights\nlist: s3://b/l\n", "not nights for pairs"),
    ],
)
def test_a_wrong_description_is_refused_in_one_line(tmp_path: Path, text: str, named: str):
    with pytest.raises(InputError, match=named) as refused:
        remote_list("pairs", described(tmp_path, text))

    assert "\n" not in str(refused.value)
    assert "list.yaml" in str(refused.value)


def test_a_description_that_is_not_there_is_named():
    with pytest.raises(InputError, match=r"pairs /nowhere/list\.yaml: no such file"):
        remote_list("pairs", "/nowhere/list.yaml")


def test_a_folder_that_no_pod_sees_is_refused_with_the_rule(asked: Callable[..., StagingRequest]):
    """Before anything is made; where a volume is mounted at that place, pods do see it."""
    run = Runner()

    with pytest.raises(InputError, match=r"pairs must be in a store that pods can reach.*got /home/ana/pictures"):
        run_staging(asked(source="/home/ana/pictures"), run, CLUSTER, JobSettings())
    assert run.specs == []
    run_staging(asked(source="/data/pictures"), run, CLUSTER, MOUNTED)
    run_staging(asked(source="/home/ana/pictures"), run, LOCAL, JobSettings())
    assert run.commands == ["stage pairs", "stage pairs"]


def test_triplets_made_from_a_folder_that_no_pod_sees_are_refused_too(asked: Callable[..., StagingRequest]):
    with pytest.raises(InputError, match=r"got /home/ana/pictures"):
        run_staging(asked(what="triplets", from_pairs="/home/ana/pictures"), Runner(), CLUSTER, JobSettings())


def test_triplets_cannot_be_made_from_a_list(asked: Callable[..., StagingRequest]):
    with pytest.raises(InputError, match="triplets must be given if the pairs are fetched from a list"):
        run_staging(asked(what="triplets", from_pairs="https://lists.example/list.csv"), Runner(), CLUSTER, JobSettings())


def test_a_recipe_that_no_image_ships_goes_into_the_store_where_pods_find_it(tmp_path: Path):
    """With what `set` changes of it."""
    scene = open_scene(
        ask(str(tmp_path), recipe={"name": "mine", "staging": {"shard_samples": 7}}, set="staging.triplet_side=32", experiment="e")
    )

    named = staging_of("pairs", scene).recipe

    assert named.startswith(f"{tmp_path}/experiments/e/staging/pairs/recipe-")
    read = read_recipe(named)
    assert (read.name, read.staging.shard_samples, read.staging.triplet_side) == ("mine", 7, 32)


@pytest.mark.parametrize("key", ["list", "metadata", "images", "contact"])
def test_a_description_holds_no_credentials(tmp_path: Path, key: str):
    """They would be in the arguments of jobs."""
    value = "https://user:c4n4ry@lists.example/list.tsv" if key != "list" else "https://lists.example/list.csv?sig=c4n4ry"
    lines = {"kind": "urls", "list": "s3://b/list.csv", key: value}
    with pytest.raises(InputError, match=rf"list\.yaml: {key} must not contain credentials") as refused:
        remote_list("pairs", described(tmp_path, "".join(f"{name}: {text}\n" for name, text in lines.items())))
    assert "c4n4ry" not in str(refused.value)


@pytest.mark.parametrize("backend", ["local", "pytorchjob"])
def test_only_staging_is_told_of_private_sources_and_only_by_the_profile(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, backend: str):
    (tmp_path / "profile.yaml").write_text(f"backend: {backend}\njobs: {{private_sources: [10.0.0.0/8, 'fd00::/8']}}\n")
    monkeypatch.setenv("FIRSTSIGHT_PROFILE", str(tmp_path / "profile.yaml"))
    monkeypatch.setattr(staging, "check_size", lambda *_: None)
    run = Runner()
    seen: list[Mapping[str, str]] = []

    def run_job(scene: Scene, spec: JobSpec, *, attempts: int) -> None:
        seen.append(spec.environment)
        run(spec)
        raise RunError("stop here")

    monkeypatch.setattr(staging, "run_job", run_job)
    monkeypatch.setattr(staging, "_for_pods", lambda request, *_: request)
    with pytest.raises(SystemExit):
        staging.stage("pairs", request=ask(str(tmp_path / "root"), pairs="https://lists.example/list.csv", triplets="demo"))
    assert seen == [{"FIRSTSIGHT_PRIVATE_SOURCES": "10.0.0.0/8,fd00::/8"}]
