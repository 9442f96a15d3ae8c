"""What the job tests share: one staged data set, planned experiments on it, and the launcher as a process of its own.

The launcher is the very function that the pipeline's component calls, so a test ends it as Kubeflow or a person would.
"""

import contextlib
import dataclasses
import hashlib
import itertools
import json
import math
import os
import secrets
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from pipelines.cluster.merge import strategic_merge
from pipelines.cluster.names import Identity
from pipelines.planning.request import merge, write_request
from pipelines.planning.resolving import resolve
from pipelines.steps.planning import make_plan
from tests.cluster import harness, settings, volumes
from tests.cluster.store import Store
from trainer.config import StageConfig, recipe_hash
from trainer.configs import dump_yaml, load_yaml, parse_config
from trainer.storage import exists, join, layout, open_store, read_bytes, read_json, write_bytes, write_json
from trainer.storage.committed import Committed, read_committed

TRAINER_VARIABLE = "FIRSTSIGHT_E2E_TRAINER"
"""Image of the trainer on a cluster given by KUBECONFIG, which has no volumes with Python in them."""
RECIPE = """
model: {image_size: 16, patch_size: 8, vision_layers: 1, vision_width: 32, vision_head_width: 16, embed_dim: 32, text_layers: 1,
  text_width: 32, text_heads: 2, logit_scale_init: 1/0.07}
staging: {triplet_side: 16, demo_side: 32, demo_triplets: 60}
perceptual: {global_batch_size: 16, epochs: 1, min_votes: 0, precision: fp32}
contrastive: {optimizer: {learning_rate: 1e-3, warmup_steps: 2, clip_norm: 3.0}, global_batch_size: 64, contrast_batch_size: 64,
  epochs: 12, augmentation: crop, precision: fp32}
"""
EPOCHS = {"short.yaml": 12, "medium.yaml": 45, "long.yaml": 1200}
"""Recipes: of the shorter two the final weights are known; the long one does not end before its test does."""
CHECKPOINT_EVERY = 10


@dataclass(frozen=True, kw_only=True)
class Staged:
    """A store root with sealed demo pairs and triplets, and by recipe the weights that a local run of two ranks ends with."""

    store: Store
    root: str
    pairs: str
    triplets: str
    weights: Mapping[str, str]


@dataclass(frozen=True, kw_only=True)
class Experiment:
    """A planned experiment of one cell.

    Attributes:
        root: store URI.
        name: of the experiment; the job's identity depends on it.
        recipe: one of EPOCHS.
        config: of its contrastive stage.
        request: URI of its stored request.
    """

    root: str
    name: str
    recipe: str
    config: StageConfig
    request: str

    @property
    def identity(self) -> Identity:
        """By which launchers find each other's job."""
        output, seed = self.config.output, self.config.seed
        cell = layout.cell_name("random", seed)
        return Identity(root=self.root, output=output, experiment=self.name, cell=cell, arm="random", seed=seed, stage="contrastive")

    def seal(self) -> Committed | None:
        """What final/COMMITTED.json says, if this recipe has finished."""
        found = read_committed(layout.final(self.config.output))
        return found if found and found.recipe_hash == recipe_hash(self.config) else None

    def records(self) -> list[dict[str, Any]]:
        """The lines of progress.jsonl that are of steps (the preflight has one, too), each with its time."""
        lines = read_bytes(join(self.config.output, "progress.jsonl")).decode().splitlines()
        return [record for record in map(json.loads, lines) if "loss" in record]

    def committed_step(self) -> int:
        """The newest step that has a sealed checkpoint, or 0."""
        folder = join(self.config.output, "checkpoints")
        names = [entry.uri.split("/")[-2:] for entry in open_store(folder).list(folder)]
        return max((int(step.removeprefix("step-")) for step, name in names if name == "COMMITTED.json"), default=0)

    def restarts(self) -> int:
        """How often the run had gone on from a checkpoint when it saved the newest one."""
        uri = join(self.config.output, "checkpoints", f"step-{self.committed_step():09d}", "state.json")
        return int(read_json(uri)["restarts"])

    def wait_for_commit(self, step: int) -> int:
        """The newest committed step, once that is `step` or later."""
        found: int = harness.wait_until(f"a checkpoint of step {step}", lambda: (at := self.committed_step()) >= step and at, 600)
        return found

    def recovery(self, since: float, until: float = math.inf) -> tuple[float, int]:
        """For a run that was interrupted between two times: seconds from the first to its next new step, and the number of that step."""
        records = self.records()
        assert [record["step"] for record in records] == list(range(1, records[-1]["steps"] + 1)), "a step is missing, or there twice"
        later = [pair for pair in itertools.pairwise(records) if since < pair[1]["time"] <= until]
        first = max(later, key=lambda pair: pair[1]["time"] - pair[0]["time"])[1]
        return first["time"] - since, first["step"]


def staged(store: Store) -> Staged:
    """What `stage` made of this very code, in this process or another: the store remembers it."""
    bucket, name = "staged", f"{source_hash()}.json"
    if not store.client.bucket_exists(bucket):
        store.client.make_bucket(bucket)
    uri = f"s3://{bucket}/{name}"
    if not exists(uri):
        made = dataclasses.asdict(stage(store))
        write_json(uri, {key: made[key] for key in ("root", "pairs", "triplets", "weights")})
    return Staged(store=store, **read_json(uri))


def source_hash() -> str:
    """Of all that decides the weights."""
    digest = hashlib.sha256(f"{RECIPE}{EPOCHS}".encode())
    rooms = ("trainer", "pipelines")  # which trains, and which writes what is to be trained
    for path in sorted(path for room in rooms for path in (volumes.REPOSITORY / room).rglob("*.py")):
        digest.update(path.read_bytes())
    return digest.hexdigest()[:16]


def stage(store: Store) -> Staged:
    """Stage the demo into a new bucket and train its references: the same stage, two ranks on this machine."""
    root = store.make_bucket()
    for name, epochs in EPOCHS.items():
        write_bytes(join(root, name), RECIPE.replace("epochs: 12", f"epochs: {epochs}").encode())
    uris = {}
    for what in ("pairs", "triplets"):
        result = join(root, f"{what}.json")
        trainer("stage", what, "--root", root, "--source", "demo", "--recipe", join(root, "short.yaml"), "--result", result)
        uris[what] = str(read_json(result)["uri"])
    staged = Staged(store=store, root=root, weights={}, **uris)
    return dataclasses.replace(staged, weights={name: reference_weights(staged, name) for name in EPOCHS if name != "long.yaml"})


def reference_weights(staged: Staged, recipe: str) -> str:
    """The SHA-256 of what two ranks on this machine end with."""
    reference = plan(staged, recipe=recipe)
    trainer("train", "contrastive", "--config", join(reference.config.output, "config.yaml"), "--set", "placement.processes_per_node=2")
    return final_weights(reference)


def final_weights(experiment: Experiment) -> str:
    """The SHA-256 of the weights that an experiment has ended with."""
    seal = experiment.seal()
    assert seal is not None
    return str(seal.facts["weights_sha256"])


def trainer(*arguments: str) -> None:
    """`python -m trainer` on this machine; a failure shows what it said."""
    done = subprocess.run([sys.executable, "-m", "trainer", *arguments], capture_output=True, text=True, cwd=volumes.REPOSITORY)
    assert done.returncode == 0, done.stdout + done.stderr


def plan(staged: Staged, name: str = "", recipe: str = "short.yaml", **placement: Any) -> Experiment:
    """Plan an experiment of one cell; one thread a rank, a line of the log each step, many checkpoints.

    Args:
        staged: the data.
        name: of the experiment; empty: a new one.
        recipe: one of EPOCHS.
        placement: settings that change no weights.
    """
    return plan_cells(staged, (0,), name or f"e-{secrets.token_hex(3)}", recipe, **placement)[0]


def plan_cells(
    staged: Staged, seeds: Sequence[int], name: str, recipe: str, asked: Mapping[str, str] | None = None, **placement: Any
) -> list[Experiment]:
    """Plan one experiment of several cells, `random` with these seeds; each cell as an experiment of one. `asked`: more of the request."""
    given = {"experiment": name, "arms": "random", "seeds": ",".join(map(str, seeds)), "recipe": join(staged.root, recipe)}
    request = write_request(resolve(merge("", {**given, **(asked or {})})), staged.root)
    make_plan(request=request, pairs=staged.pairs, triplets=staged.triplets)
    changes = {"threads": 1, "log_every_steps": 1, "checkpoint_every_steps": CHECKPOINT_EVERY, **placement}
    made = []
    for seed in seeds:
        uri = layout.config(layout.stage(layout.cell(layout.experiment(staged.root, name), "random", seed), "contrastive"))
        config = parse_config(StageConfig, load_yaml(read_bytes(uri).decode(), uri), source=uri)
        config = dataclasses.replace(config, placement=dataclasses.replace(config.placement, **changes))
        write_bytes(uri, dump_yaml(config).encode())
        made.append(Experiment(root=staged.root, name=name, recipe=recipe, config=config, request=request))
    return made


def trainer_image() -> str:
    """What trainers run in: a Debian into which Python is mounted, or the real image."""
    return settings.BASE_IMAGE if harness.own_cluster() else os.environ[TRAINER_VARIABLE]


def write_profile(folder: Path, namespace: str, staged: Staged, /, **changes: Any) -> str:
    """A run profile whose jobs are this cluster's: two CPU nodes, Python by volumes."""
    jobs: dict[str, Any] = {
        "namespace": namespace, "nodes": 2, "cpu": "100m", "memory": "1Gi", "shared_memory": "64Mi", "store_secret": "store",
        "store_environment": staged.store.pod_environment,
    }  # fmt: skip
    jobs["image"] = trainer_image()
    changes["pod_template"] = strategic_merge(trainer_template(), changes.get("pod_template", {}))
    staged.store.put_secret(namespace)
    path = folder / f"profile-{secrets.token_hex(3)}.yaml"
    path.write_text(yaml.safe_dump({"root": staged.root, "backend": "pytorchjob", "jobs": {**jobs, **changes}}))
    return str(path)


def trainer_template() -> dict[str, Any]:
    """What `jobs.pod_template` needs so that the trainer runs on this cluster."""
    return volumes.pod_template("pytorch") if harness.own_cluster() else {"spec": {"containers": [{"name": "pytorch"}]}}


@dataclass
class Launcher:
    """A launcher of the contrastive stage, in a process of its own, with all that it says in a file."""

    process: subprocess.Popen[bytes]
    log: Path
    started: float = field(default_factory=time.monotonic)

    def lines(self) -> list[str]:
        """What it said so far."""
        return self.log.read_text(errors="replace").splitlines()

    def said(self, words: str) -> bool:
        """Whether it said this."""
        return words in self.log.read_text(errors="replace")

    def wait(self, seconds: float = 900) -> int:
        """Its exit code; past `seconds` an AssertionError with what it said."""
        try:
            return self.process.wait(seconds)
        except subprocess.TimeoutExpired:
            raise AssertionError(f"the launcher did not end in {seconds:.0f} s:\n{self.tail()}") from None

    def tail(self) -> str:
        """The end of what it said, for a failed test."""
        return "\n".join(self.lines()[-80:])

    def send(self, number: signal.Signals) -> None:
        """Signal it, and only it."""
        self.process.send_signal(number)


@contextlib.contextmanager
def launcher(
    experiment: Experiment, profile: str, folder: Path, lane: str = "lane-1-of-1", step: str = "contrastive", **variables: str
) -> Iterator[Launcher]:
    """Launch and follow the experiment's job as the pipeline's component does; killed at the end if it still runs."""
    arguments = {"request": experiment.request, "lane": lane}
    # A shell lets what it runs in the background ignore Ctrl-C, and so would all below it: these launchers sit at a terminal.
    at_terminal = "import signal; signal.signal(signal.SIGINT, signal.default_int_handler)"
    program = f"{at_terminal}; from pipelines.steps import lanes; lanes.work({step!r}, **{arguments!r})"
    log = folder / f"launcher-{secrets.token_hex(3)}.log"
    environment = {**harness.environment(), "FIRSTSIGHT_PROFILE": profile, "PYTHONUNBUFFERED": "1", **variables}
    with log.open("wb") as stream:
        process = subprocess.Popen(
            [sys.executable, "-c", program], stdout=stream, stderr=stream, stdin=subprocess.DEVNULL, env=environment, cwd=volumes.REPOSITORY
        )
    try:
        yield Launcher(process, log)
    finally:
        process.kill()
        process.wait()
