"""A small real experiment by its steps, in this process: real data, real training, evaluation and report, in seconds.

It can be stopped where a kill would stop it, its objects can be damaged, and what it ends with can be compared.
"""

import contextlib
import hashlib
import io
import json
import re
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from pipelines.jobs.lock import exclusive
from pipelines.local import finished
from pipelines.planning.request import merge
from pipelines.planning.resolving import resolve
from pipelines.profile.profile import Profile
from pipelines.steps import finish, lanes, links, planning, staging
from pipelines.steps import sealed as staged
from pipelines.steps.running import failures
from trainer.config import DataConfig
from trainer.errors import InputError, RunError
from trainer.progress import PROGRESS_VARIABLE
from trainer.storage import join, layout, open_store, read_bytes, write_bytes
from trainer.storage.base import local_path
from trainer.storage.committed import read_final

Objects = dict[str, bytes]
NAME = "tiny"
ARMS = ("random", "perceptual", "posthoc")
CELLS = tuple(f"{arm}-seed0" for arm in ARMS)
RECIPE = {
    "model": {"image_size": 16, "patch_size": 8, "vision_layers": 1, "vision_width": 16, "vision_head_width": 8, "embed_dim": 8,
              "text_layers": 1, "text_width": 2, "text_heads": 1, "context_length": 16, "logit_scale_init": "1/0.07"},
    "staging": {"triplet_side": 16, "shard_samples": 16, "heldout_fraction": 0.25},
    "perceptual": {"optimizer": {"learning_rate": 1e-2, "warmup_steps": 2}, "global_batch_size": 6, "epochs": 2, "min_votes": 0,
                   "precision": "fp32"},
    "contrastive": {"optimizer": {"learning_rate": 1e-2, "warmup_steps": 2}, "global_batch_size": 12, "contrast_batch_size": 12,
                    "epochs": 3, "precision": "fp32"},
    "posthoc": {"global_batch_size": 6, "epochs": 2, "precision": "fp32"},
}  # fmt: skip
PLACEMENT = {"device": "cpu", "threads": 1, "checkpoint_every_steps": 2, "log_every_steps": 1}
STATES = ("staging", "training", "unevaluated", "finished")
"""Killed while the pairs were staged; while the second contrastive stage was trained; before the first evaluation; not killed."""
_MEASURED = re.compile(
    r"^(created|seconds|.*_seconds|samples_per_second|data_wait_fraction|.*device_hours.*|time|code|restarts|generated|compiled_at|.*_share_of_time)$"
)
"""Objects that a run may rewrite whenever it looks."""


class Killed(BaseException):
    """Stands for SIGKILL: nothing of the program handles it."""


@dataclass(frozen=True, kw_only=True)
class Ended:
    """How a run ended: its exit code, its last line, all that it said, and what of it a person sees without -v."""

    code: int
    line: str = ""
    said: str = ""
    told: str = ""


@dataclass
class Experiment:
    """An experiment under a root.

    Attributes:
        root: store URI.
        source: folder of the pictures and triplets.
        states: name of a state -> its objects by name below the root.
        older: name -> contents of another time, the newest first.
        result: what the undisturbed run ended with.
        runs: so far; each has an id of its own.
    """

    root: str
    source: Path
    states: dict[str, Objects] = field(default_factory=dict)
    older: dict[str, list[bytes]] = field(default_factory=dict)
    result: Any = None
    runs: int = 0

    @property
    def uri(self) -> str:
        """The experiment's folder."""
        return layout.experiment(self.root, NAME)

    @property
    def given(self) -> dict[str, Any]:
        """What a person asks for."""
        sources = {"pairs": str(self.source / "pairs"), "triplets": str(self.source / "triplets")}
        return {
            "recipe": RECIPE,
            "root": self.root,
            "experiment": NAME,
            "arms": list(ARMS),
            "placement": PLACEMENT,
            "max_reject_fraction": 0.1,
            **sources,
        }

    def run(self, at: Callable[[str], None] = lambda step: None) -> Ended:
        """What `pipelines run` does: look whether all is done, else take every step.

        Args:
            at: is called before each step with its name, and may raise Killed.
        """
        said, started = io.StringIO(), time.time()
        with contextlib.redirect_stderr(said), contextlib.redirect_stdout(said), _noting() as notes:
            asked = resolve(merge("", self.given))
            try:
                with exclusive(self.uri):
                    code = 0 if finished.find_finished(asked, Profile()) is not None else self._steps(at)
            except (InputError, RunError) as error:
                return Ended(code=error.exit_code, line=str(error), said=said.getvalue(), told=_told(notes))
            failed = failures(self.uri, list(CELLS), started) if code else []
            told = _told(notes)
        last = f"{failed[-1]['stage']}: {failed[-1]['line']}" if failed else said.getvalue().rstrip().rpartition("\n")[2]
        return Ended(code=code, line=last if code else "", said=said.getvalue(), told=told)

    def is_finished(self) -> bool:
        """Whether another run would find all done."""
        with contextlib.redirect_stderr(io.StringIO()):
            return finished.find_finished(resolve(merge("", self.given)), Profile()) is not None

    def _steps(self, at: Callable[[str], None]) -> int:
        self.runs += 1
        run = f"run-{self.runs}"
        code = take_steps(json.dumps(self.given), run, at)
        at("finish")
        last = finish_run(self.root, run, code)
        return code or last

    # -------------------------------------------------------------------------------------------- its objects

    def content(self) -> Objects:
        """Every object under the root."""
        return {info.uri.removeprefix(f"{self.root}/"): read_bytes(info.uri) for info in open_store(self.root).list(self.root)}

    def write(self, name: str, data: bytes) -> None:
        """Write an object; on files in place, as damage does."""
        path = local_path(join(self.root, name))
        if path is None:
            write_bytes(join(self.root, name), data)
        else:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(data)

    def delete(self, name: str) -> None:
        """Delete an object."""
        open_store(self.root).delete(join(self.root, name))

    def put_back(self, state: str, *, checked: bool) -> None:
        """Bring the experiment into a state.

        Args:
            state: one of STATES.
            checked: whether records of checks are right; else there are none.
        """
        wanted, found = self.states[state], self.content()
        for name in found.keys() - wanted.keys():
            self.delete(name)
        for name, data in wanted.items():
            is_record = name.endswith("/CHECKED.json")
            if is_record and not checked:
                self.delete(name)
            elif found.get(name) != data and not (is_record and name in found):
                self.write(name, data)
        if checked:
            self._look()

    def _look(self) -> None:
        """Let the records of checks be right, by the looks that runs take."""
        if self.is_finished():
            return
        for info in list(open_store(self.root).list(self.root)):
            folder, _, name = info.uri.rpartition("/")
            if name == "COMMITTED.json" and folder.endswith("/final"):
                read_final(folder.rpartition("/")[0])
            elif name == "manifest.json":
                staged.find_damage(DataConfig(uri=folder))

    def outcome(self) -> Any:
        """What the experiment ends with: weights, figures and the report's figures, all without times."""
        found: dict[str, Any] = {}
        for name, data in self.content().items():
            if re.search(r"/final/.*\.safetensors$|\.items\.npz$", name):
                found[name] = hashed(data)
            elif re.search(r"/evaluation/[^/]+/[^/]+\.json$|report/results\.json$", name):
                try:
                    found[name] = without_times(json.loads(data))
                except ValueError:  # damage that no run has looked for
                    found[name] = hashed(data)
            elif re.search(r"(contrastive|posthoc|towers/[^/]+)/progress\.jsonl$", name):
                found[name] = re.findall(rb'"loss": ?[^,}]+', data)
        return found


def take_steps(request: str, run: str, at: Callable[[str], None] = lambda step: None) -> int:
    """Every step of a run but its last, in this process; the exit code.

    Args:
        request: as JSON.
        run: its id.
        at: is called before each step with its name.
    """
    try:
        stored, _ = links.accept(request=request, profile="", run=run)
        at("stage")
        triplets, pairs = (staging.stage(what, request=stored) for what in ("triplets", "pairs"))  # type: ignore[arg-type]
        at("plan")
        ((lane,), _) = planning.make_plan(request=stored, pairs=pairs, triplets=triplets)
        for name in lanes.STEPS:
            at(name)
            lanes.work(name, request=stored, lane=lane)
        at("report")
        finish.report(request=stored)
    except SystemExit as ended:
        return int(ended.code or 0)
    return 0


def finish_run(root: str, run: str, code: int) -> int:
    """The last step of a run whose others ended with `code`; its own exit code."""
    try:
        finish.finish(run=run, request="", root=root, state="FAILED" if code else "SUCCEEDED")
    except SystemExit as ended:
        return int(ended.code or 0)
    return 0


@contextlib.contextmanager
def _noting() -> Iterator[Path]:
    """The file of what steps and jobs tell the person who waits."""
    with tempfile.TemporaryDirectory() as folder, pytest.MonkeyPatch.context() as patch:
        notes = Path(folder) / "progress.jsonl"
        notes.touch()
        patch.setenv(PROGRESS_VARIABLE, str(notes))
        yield notes


def _told(notes: Path) -> str:
    records = [json.loads(line) for line in notes.read_text().splitlines()]
    return "".join(f"{one['step']}: {one['note']}\n" for one in records if "note" in one and not one["detail"])


def hashed(data: bytes) -> str:
    """SHA-256 (hex)."""
    return hashlib.sha256(data).hexdigest()


def without_times(value: Any) -> Any:
    """JSON without what differs from run to run: times, rates, and checksums over those."""
    if isinstance(value, Mapping):
        kept = {key: part for key, part in value.items() if not _MEASURED.match(key) and key != "sha256"}
        return {key: without_times(part) for key, part in kept.items()}
    return [without_times(part) for part in value] if isinstance(value, list) else value
