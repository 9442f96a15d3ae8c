"""Every object of a stage's folder damaged: the same command ends in the same bits, and nothing damaged is used without a word."""

import dataclasses
import itertools
import json
import random
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.run.toy import ToyStage, toy_config
from trainer.config import StageConfig
from trainer.configs import dump_yaml
from trainer.errors import InputError, RunError
from trainer.progress import PROGRESS_VARIABLE
from trainer.run import loop, records
from trainer.run.train import launch
from trainer.storage import join, layout, open_store, read_bytes, write_bytes
from trainer.storage.base import local_path
from trainer.storage.committed import read_final
from trainer.storage.file import FileStore

Objects = dict[str, bytes]
WEIGHTS = "final/model.safetensors"
DAMAGES = ("missing", "cut", "flipped", "older")
PLACEMENT: dict[str, Any] = {"checkpoint_every_steps": 6, "attempt": 1}


@dataclass(frozen=True, kw_only=True)
class Stage:
    """A stage in one state, and what its folder held before.

    Attributes:
        config: of the stage.
        objects: name in its folder -> content.
        older: name -> an intact content from another time, or another seed's where it was written once only.
        weights: of the final model, as an undisturbed run leaves them.
        losses: by step.
    """

    config: StageConfig
    objects: Objects
    older: Objects
    weights: bytes
    losses: list[float]


def content(output: str) -> Objects:
    return {info.uri.removeprefix(f"{output}/"): read_bytes(info.uri) for info in open_store(output).list(output)}


def put_back(output: str, objects: Objects) -> None:
    for info in open_store(output).list(output):
        open_store(output).delete(info.uri)
    for name, data in objects.items():
        write_bytes(join(output, name), data)


def losses_of(output: str) -> list[float]:
    return [json.loads(line)["loss"] for line in read_bytes(layout.progress(output)).splitlines()]


def train(config: StageConfig) -> None:
    launch("contrastive", layout.config(config.output), [])


def make(root: str, folder: Path, patch: pytest.MonkeyPatch) -> dict[str, Stage]:
    """A stage that is finished, and as it was after its last step, before its final model."""
    versions: dict[str, list[bytes]] = {}
    store = type(open_store(root))
    put_stream = store.put_stream

    def recorded(self: Any, uri: str, *arguments: Any) -> Any:
        info = put_stream(self, uri, *arguments)
        versions.setdefault(uri, []).append(read_bytes(uri))
        return info

    def killed(run: records.Run) -> None:
        run.writer.wait()  # type: ignore[union-attr]
        raise RunError("killed")

    def run(config: StageConfig) -> None:
        write_bytes(layout.config(config.output), dump_yaml(config).encode())
        train(config)

    patch.setattr(loop, "build_stage", ToyStage)
    made = toy_config(folder, **PLACEMENT)
    config = dataclasses.replace(made, output=join(root, "stage"))
    other = dataclasses.replace(made, output=join(root, "other"), seed=1)
    with patch.context() as inner:
        inner.setattr(store, "put_stream", recorded)
        run(other)
        with patch.context() as innermost:
            innermost.setattr(records, "finish", killed)
            with pytest.raises(RunError, match="killed"):
                run(config)
        half = content(config.output)
        train(config)
    finished = content(config.output)
    older = {}
    for name, data in {**half, **finished}.items():
        known = [*versions.get(join(config.output, name), []), *versions.get(join(other.output, name), [])]
        older[name] = next((version for version in known if version != data), b"")
    shared: Any = {"config": config, "older": older, "weights": finished[WEIGHTS], "losses": losses_of(config.output)}
    return {"finished": Stage(objects=finished, **shared), "half": Stage(objects=half, **shared)}


@pytest.fixture
def anywhere(root: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Stage]:
    return make(root, tmp_path, monkeypatch)


@pytest.fixture
def made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Stage]:
    return make(str(tmp_path), tmp_path, monkeypatch)


def damage(stage: Stage, name: str, kind: str, draw: random.Random) -> None:
    uri, data = join(stage.config.output, name), stage.objects[name]
    if kind == "missing":
        open_store(uri).delete(uri)
    elif kind == "cut":
        write_bytes(uri, data[: draw.randrange(len(data))])
    elif kind == "older":
        write_bytes(uri, stage.older[name])
    else:
        flipped = bytearray(data)
        flipped[draw.randrange(len(data))] ^= 1 << draw.randrange(8)
        write_bytes(uri, bytes(flipped))


def refusal(config: StageConfig) -> str:
    try:
        train(config)
    except InputError as error:
        return str(error)
    return ""


def recovers(stage: Stage, damages: dict[str, str], seed: int) -> None:
    """The same command leaves the state, with the bits and the losses of the undisturbed run, and finds itself done after that."""
    output, draw = stage.config.output, random.Random(seed)
    put_back(output, stage.objects)
    for name, kind in damages.items():
        damage(stage, name, kind, draw)
    if refused := refusal(stage.config):
        # an intact configuration of another recipe, or none: nothing here can tell which is meant, a run of the experiment can
        assert layout.CONFIG in damages, (damages, refused)
        assert output in refused
        write_bytes(layout.config(output), stage.objects[layout.CONFIG])
        train(stage.config)
    seal, wrong = read_final(output)
    assert seal is not None
    assert wrong == {}
    assert read_bytes(join(output, WEIGHTS)) == stage.weights
    assert losses_of(output) == stage.losses
    assert json.loads(read_bytes(layout.lineage(output)))["weights_sha256"] == seal.facts["weights_sha256"]
    before = content(output)
    train(stage.config)
    assert content(output) == before


def cases(stage: Stage) -> list[tuple[str, str]]:
    return list(itertools.product(sorted(stage.objects), DAMAGES))


def test_each_object_damaged_in_one_way(anywhere: dict[str, Stage]) -> None:
    """Another way for each, so that all four are met; on files every third object, on a server, where each costs seconds, every ninth."""
    for stage in anywhere.values():
        stride = 3 if local_path(stage.config.output) is not None else 9
        for number, name in list(enumerate(sorted(stage.objects)))[::stride]:
            recovers(stage, {name: DAMAGES[number % len(DAMAGES)]}, number)


def test_the_person_who_waits_is_told_of_checkpoints_that_are_passed_over(made: dict[str, Stage], monkeypatch: pytest.MonkeyPatch) -> None:
    """Each by name; and that none is left."""
    stage = made["half"]
    told = Path(stage.config.output).parent / "told.jsonl"
    monkeypatch.setenv(PROGRESS_VARIABLE, str(told))
    newest, *rest = sorted((name for name in stage.objects if re.search(r"checkpoints/.*/model\.safetensors", name)), reverse=True)
    for names in ([newest], [newest, *rest]):
        told.unlink(missing_ok=True)
        recovers(stage, dict.fromkeys(names, "cut"), 3)
        notes = [record["note"] for record in map(json.loads, told.read_text().splitlines()) if "note" in record]
        assert [note.startswith(f"skipped {join(stage.config.output, name)}: ") for note, name in zip(notes, names, strict=False)] == [
            True
        ] * len(names)
        assert [note for note in notes if "the stage begins again at step 0" in note] == notes[len(names) :]
        assert bool(notes[len(names) :]) == (len(names) > 1)


@pytest.mark.campaign
@pytest.mark.timeout(900)
@pytest.mark.parametrize("state", ["finished", "half"])
def test_each_object_damaged_in_every_way(made: dict[str, Stage], state: str) -> None:
    """Missing, cut short, one bit flipped, replaced by an older version."""
    for number, (name, kind) in enumerate(cases(made[state])):
        recovers(made[state], {name: kind}, number)


@pytest.mark.campaign
@pytest.mark.timeout(900)
@pytest.mark.parametrize("state", ["finished", "half"])
def test_two_objects_damaged_at_once(made: dict[str, Stage], state: str) -> None:
    """A sample of all pairs."""
    draw = random.Random(15)
    for number in range(150):
        recovers(made[state], dict(draw.sample(cases(made[state]), 2)), number)


class Killed(BaseException):
    """As by SIGKILL: nothing that would clean up is to have an effect, so no later write has one either."""


@pytest.mark.parametrize("stride", [3, pytest.param(1, marks=pytest.mark.campaign)])
def test_a_kill_between_any_two_writes_of_finishing(made: dict[str, Stage], monkeypatch: pytest.MonkeyPatch, stride: int) -> None:
    """From the last step on each write and deletion is once the first that does not happen: the rerun ends in the same bits."""
    stage, finish = made["half"], records.finish
    real = {name: getattr(FileStore, name) for name in ("put_stream", "delete")}
    left = [0]

    def unless_killed(name: str) -> Callable[..., Any]:
        def call(self: FileStore, *arguments: Any) -> Any:
            if left[0] == 0:
                raise Killed
            left[0] -= 1
            return real[name](self, *arguments)

        return call

    def finish_a_little(run: records.Run) -> None:
        with monkeypatch.context() as patch:
            for name in real:
                patch.setattr(FileStore, name, unless_killed(name))
            finish(run)

    for writes in itertools.count(0, stride):
        put_back(stage.config.output, stage.objects)
        left[0] = writes
        with monkeypatch.context() as patch:
            patch.setattr(records, "finish", finish_a_little)
            patch.setattr(records, "close", lambda run: None)
            try:
                train(stage.config)
            except Killed:
                pass
            else:
                break
        train(stage.config)
        seal, wrong = read_final(stage.config.output)
        assert seal is not None
        assert wrong == {}
        assert read_bytes(join(stage.config.output, WEIGHTS)) == stage.weights
        assert losses_of(stage.config.output) == stage.losses
    assert writes > 8


@pytest.mark.parametrize("state", ["finished", "half"])
def test_what_a_killed_writer_left_is_swept(made: dict[str, Stage], state: str) -> None:
    """Anywhere in the stage's folder, also where nothing else is left to do."""
    stage = made[state]
    put_back(stage.config.output, stage.objects)
    left = [Path(stage.config.output, place, ".x.1-abc.partial") for place in ("", "final", "checkpoints/step-000000006")]
    for path in left:
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(b"torn")
    train(stage.config)
    assert not any(path.exists() for path in left)
