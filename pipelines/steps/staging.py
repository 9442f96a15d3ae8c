"""The jobs of the step `stage`: one job if the pictures are in one place; plan -> fetch -> seal if a list says where they are.

A list is given as a URL, or as a YAML file that describes it:

    kind: yfcc15m-openai          # urls, yfcc15m-openai, -slip, -declip, -rwkv; for triplets nights
    list: s3://bucket/lists/yfcc100m_subset_data.tsv
    metadata: s3://bucket/lists/yfcc100m_dataset.tsv
    images: https://multimedia-commons.s3-us-west-2.amazonaws.com/data/images
    captions: slip
    contact: me@example.org

On a cluster `fetch` is an Indexed Job: each of N pods fetches every N-th slice, and a failed pod is recreated on its own. The number of
pods does not change the data set.
"""

import dataclasses
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from typing import Literal

from pipelines.cluster.names import Identity
from pipelines.jobs.backends import is_mounted
from pipelines.jobs.base import JobSpec
from pipelines.planning.parameters import require_inert
from pipelines.planning.request import Request
from pipelines.profile.profile import Profile
from pipelines.profile.settings import JobSettings
from pipelines.steps import sealed
from pipelines.steps.notes import note
from pipelines.steps.running import Scene, open_scene, recorded, run_job, step
from pipelines.steps.sizes import check_size, described, require_rows, training_stages
from trainer.config import DataConfig, canonical_hash, require
from trainer.errors import Corrupt, InputError, RunError
from trainer.storage import join, layout, open_store, read_json, read_text, write_bytes
from trainer.storage.base import MissingObject, local_path
from trainer.storage.manifest import NAME as MANIFEST

What = Literal["pairs", "triplets"]
Kind = Literal["urls", "yfcc15m-openai", "yfcc15m-slip", "yfcc15m-declip", "yfcc15m-rwkv", "nights"]
PLAN_OPTIONS = ("list", "table", "metadata", "ids", "images", "captions", "heldout_fraction", "contact")
FETCH_OPTIONS = ("contact", "concurrency", "per_host", "processes", "buffer_mb")


@dataclass(frozen=True, kw_only=True)
class RemoteList:
    """A list of pictures to fetch. Empty fields and zeros stand for the trainer's defaults.

    Attributes:
        kind: kind of list.
        list: URI of the list; for NIGHTS, the zip or the folder of its chunks.
        table: URI of NIGHTS' data.csv, which the chunks do not contain.
        metadata: URI of YFCC100M's metadata.
        ids: URI of SLIP's flickr_unique_ids.npy.
        images: base URI of YFCC's pictures.
        captions: title, description, both, slip or as-is.
        heldout_fraction: fraction of the rows that becomes the split `test`.
        contact: e-mail address or URL sent to servers.
        concurrency: concurrent requests per pod.
        per_host: concurrent requests per pod and host.
        processes: processes per pod that decode and encode.
        buffer_mb: MB of fetched data per pod waiting to be processed.
    """

    kind: Kind
    list: str
    table: str = ""
    metadata: str = ""
    ids: str = ""
    images: str = ""
    captions: str = ""
    heldout_fraction: float = 0.0
    contact: str = ""
    concurrency: int = 0
    per_host: int = 0
    processes: int = 0
    buffer_mb: int = 0

    def arguments(self, names: Sequence[str]) -> Sequence[str]:
        """The fields that are set, as options of the command line."""
        given = [(name, getattr(self, name)) for name in names if getattr(self, name)]
        return [part for name, value in given for part in (f"--{name.replace('_', '-')}", str(value))]


@dataclass(frozen=True, kw_only=True)
class StagingRequest:
    """What is to be staged.

    Attributes:
        what: pairs or triplets.
        root: store URI.
        experiment: its name.
        source: `demo`, a folder, tars, a list's URL or the YAML that describes it.
        from_pairs: source of the pairs from which triplets are generated; empty if they are not.
        recipe: shipped recipe, or URI of a YAML file.
        max_reject_fraction: staging stops if more than this fraction of the samples is bad.
    """

    what: What
    root: str
    experiment: str
    source: str
    from_pairs: str
    recipe: str
    max_reject_fraction: float

    @property
    def folder(self) -> str:
        """The folder for its jobs' logs and results."""
        return join(layout.experiment(self.root, self.experiment), "staging", self.what)

    @property
    def sources(self) -> tuple[str, ...]:
        """What it is made from."""
        return (self.from_pairs,) if self.from_pairs else (self.source,)


@dataclass(frozen=True, kw_only=True)
class Prepared:
    """What is to be staged, as far as it is known before anything runs.

    Attributes:
        request: the request, in a form that jobs can use where they run.
        remote: the list, if the pictures are not in one place.
        on_cluster: whether the jobs' pods find their part by their index.
        most_pods: largest number of pods that fetch at the same time.
        stages: stages that will train on it; too little data for their batches is refused early.
    """

    request: StagingRequest
    remote: RemoteList | None
    on_cluster: bool
    most_pods: int
    stages: tuple[str, ...] = ()


@step
def stage(what: What, *, request: str) -> str:
    """Stage `pairs` or `triplets`, or find them sealed. Returns the folder of the sealed data set.

    Args:
        what: pairs or triplets.
        request: URI of the stored request.
    """
    scene, started, name = open_scene(request), time.time(), f"stage {what}"
    with recorded(join(scene.experiment, "staging", what), name):
        staging = staging_of(what, scene)
        prepared = dataclasses.replace(prepare(staging, scene.profile, scene.settings), stages=training_stages(scene.request))
        uri, damaged = find_staged(staging, scene)
        for line in damaged:
            note(name, f"{line}; staged again")
        open_store(staging.folder).delete(layout.failure(staging.folder))
        if uri:
            note(name, f"sealed before: {described(uri)}")
            check_size(uri, scene.request, name)
            return uri
        opened = scene.settings.staging_environment
        uri = run_staging(prepared, lambda spec: run_job(scene, dataclasses.replace(spec, environment=opened), attempts=1))
        if left := sealed.find_damage(DataConfig(uri=uri)):
            raise RunError(f"{left[0]}; staging found nothing to do: delete {uri} and run the same command again")
        sealed.record_sealed(staging.folder, staging, staging.sources, uri)
        manifest = open_store(uri).head(join(uri, MANIFEST))
        note(name, f"sealed{' before' if manifest and manifest.modified < started else ''}: {described(uri)}")
        check_size(uri, scene.request, name)
        return uri


def find_staged(staging: "StagingRequest", scene: Scene) -> tuple[str, list[str]]:
    """The data set that an earlier run staged for this request, and what is damaged: see `sealed.find_sealed`."""
    return sealed.find_sealed(staging.folder, staging, staging.sources, sealed.pinned_data(scene.experiment, staging.what))


def staging_of(what: What, scene: Scene) -> StagingRequest:
    """What the request asks to be staged."""
    asked = scene.request
    if what == "pairs":
        source, from_pairs = asked.pairs or "demo", ""
    else:
        source, from_pairs = asked.triplets or "demo", "" if asked.triplets else asked.pairs
    return StagingRequest(
        what=what,
        root=scene.root,
        experiment=asked.experiment,
        source=source,
        from_pairs=from_pairs,
        recipe=_recipe(asked, join(scene.experiment, "staging", what)),
        max_reject_fraction=asked.max_reject_fraction,
    )


def _recipe(asked: Request, folder: str) -> str:
    """The recipe as the trainer's command line takes it: a shipped name, or a file in the store that pods reach."""
    if isinstance(asked.recipe, str) and not asked.set:
        return asked.recipe
    from trainer.configs import dump_yaml  # here: slow to import

    recipe = asked.load_recipe()
    uri = join(folder, f"recipe-{canonical_hash(dataclasses.asdict(recipe))[:8]}.yaml")
    write_bytes(uri, dump_yaml(recipe).encode())
    return uri


def prepare(request: StagingRequest, profile: Profile, settings: JobSettings) -> Prepared:
    """Look at what is asked for.

    Args:
        request: what is to be staged.
        profile: where jobs run, and in how many pods a list is fetched.
        settings: how they look on a cluster.

    Raises:
        InputError: a source that no pod can see, a description that is wrong or names what the profile does not allow, a list from
            which no triplets can be made.
    """
    remote, on_cluster = remote_list(request.what, request.source), profile.backend != "local"
    if remote is not None:
        profile.check_address(request.source, dataclasses.asdict(remote))
    if request.from_pairs and remote_list("pairs", request.from_pairs) is not None:
        raise InputError("triplets must be given if the pairs are fetched from a list, got none")
    if on_cluster:
        request = _for_pods(request, remote is None, settings)
    return Prepared(request=request, remote=remote, on_cluster=on_cluster, most_pods=profile.staging_slices if on_cluster else 1)


def run_staging(prepared: Prepared, run: Callable[[JobSpec], None]) -> str:
    """Run the jobs one after another; the URI of the sealed data set.

    Args:
        prepared: what is to be staged.
        run: runs one job to its end; raises where it fails.
    """
    request, remote = prepared.request, prepared.remote
    if remote is None:
        run(_whole(request, prepared.stages))
        return _result(request, "result")["uri"]
    run(_job(request, "plan", [remote.kind, "--root", request.root, *remote.arguments(PLAN_OPTIONS), "--recipe", request.recipe]))
    planned = _result(request, "plan")
    if prepared.stages and "rows" in planned:
        from trainer.storage.recipes import read_recipe  # here: slow to import

        require_rows(request.source, request.what, int(planned["rows"]), read_recipe(request.recipe), prepared.stages)
    pods = max(1, min(prepared.most_pods, int(planned["slices"])))
    part = f"index/{pods}" if prepared.on_cluster else "0/1"
    run(_job(request, "fetch", ["--plan", planned["uri"], "--slice", part, *remote.arguments(FETCH_OPTIONS)], pods))
    run(_job(request, "seal", ["--plan", planned["uri"], "--max-reject-fraction", str(request.max_reject_fraction)]))
    return _result(request, "seal")["uri"]


def remote_list(what: What, source: str) -> RemoteList | None:
    """The list that a source names, or None if the pictures lie in one place.

    Raises:
        InputError: the YAML is missing or wrong.
    """
    if source[:8].lower().startswith(("http://", "https://")) and not source.endswith((".yaml", ".yml")):
        return RemoteList(kind="nights" if what == "triplets" else "urls", list=source)
    if not source.endswith((".yaml", ".yml")):
        return None
    from trainer.configs import load_yaml, parse_config  # here: slow to import, and few sources are lists

    try:
        text = read_text(source)
    except MissingObject as error:
        raise InputError(f"{what} {source}: no such file") from error
    value = load_yaml(text, source)
    missing = [item.name for item in fields(RemoteList)[:2] if not value.get(item.name)]
    if missing:
        raise InputError(f"{what} {source}: {' and '.join(missing)} must be set: they determine what is fetched")
    remote = parse_config(RemoteList, value, source=source)
    for name in (item.name for item in fields(RemoteList)):
        require_inert(f"{what} {source}: {name}", getattr(remote, name))
    triplets = what == "triplets"
    require(f"{source}: kind", remote.kind, f"{'' if triplets else 'not '}nights for {what}", (remote.kind == "nights") == triplets)
    return remote


def _whole(request: StagingRequest, stages: Sequence[str]) -> JobSpec:
    """The one job that reads the source and seals the data set."""
    arguments = ["stage", request.what, "--root", request.root, "--source", request.source, "--recipe", request.recipe]
    arguments += ["--max-reject-fraction", str(request.max_reject_fraction), "--result", join(request.folder, "result.json")]
    if request.from_pairs:
        arguments += ["--from-pairs", request.from_pairs]
    if stages:
        arguments += ["--for-stages", ",".join(stages)]
    return _spec(request, "stage", arguments)


def _job(request: StagingRequest, step: str, arguments: list[str], pods: int = 1) -> JobSpec:
    """One step of plan -> fetch -> seal; plan and seal leave their result in the folder."""
    result = [] if step == "fetch" else ["--result", join(request.folder, f"{step}.json")]
    return _spec(request, f"stage-{step}", ["stage", step, *arguments, *result], pods)


def _spec(request: StagingRequest, stage: str, arguments: list[str], pods: int = 1) -> JobSpec:
    return JobSpec(
        name=f"{stage.replace('-', ' ')} {request.what}",
        arguments=tuple(arguments),
        folder=request.folder,
        purpose="stage",
        identity=Identity(root=request.root, output=request.folder, experiment=request.experiment, arm=request.what, seed=0, stage=stage),
        recipe_hash=canonical_hash(arguments),
        slices=pods,
    )


def _result(request: StagingRequest, name: str) -> dict[str, str]:
    uri = join(request.folder, f"{name}.json")
    result = read_json(uri)
    if not isinstance(result, dict) or not isinstance(result.get("uri"), str):
        raise Corrupt(f"{uri}: not a staging result: run the same command again")
    return result


def _for_pods(request: StagingRequest, in_place: bool, settings: JobSettings) -> StagingRequest:
    """Refuse a source that pods do not see."""
    for source in (request.source, request.from_pairs) if in_place else ():
        path = local_path(source)
        if source not in ("", "demo") and path is not None and not is_mounted(path, settings, "stage"):
            raise InputError(
                f"{request.what} must be in a store that pods can reach, such as s3://bucket/folder, or in a volume that jobs.pod_template "
                f"or jobs.staging_pod_template mounts, got {source}; or stage it on this machine with the same root and BACKEND=local"
            )
    return request
