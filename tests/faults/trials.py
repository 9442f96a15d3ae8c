"""One trial: damage objects of the experiment, run the same command, and compare with what trainer/storage/states.py says about them."""

import random
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

from pipelines.operate.verify import verify
from tests.damage import flip
from tests.faults.experiment import NAME, Ended, Experiment
from trainer.storage import join, open_store
from trainer.storage.documents import read_document, write_document
from trainer.storage.states import StoredKind, kind_of

DAMAGES = ("missing", "truncated", "flipped", "older")
RUN = "run's record"
"""A kind of object read only by the run that wrote it, so it is damaged before that run's last step."""
ROTTEN = "rotten"
"""A bit flipped without a trace in the stamp, as bit rot does: found when the object is loaded, or by `pipelines verify`."""
TOLD = (
    "data set's manifest", "shard", "index of a shard", "shard count of an evaluation set", "text file of an evaluation set",
    "stage's configuration", "stage's lineage", "stage's metrics by step", "final model's seal", "file of a final model", "figures",
    "items of figures",
)  # fmt: skip
"""Kinds whose repair is reported to the user; nothing is reported for data kept only to save work."""
ADVICE: dict[str, Callable[[Experiment, str], None]] = {
    "data set's manifest": lambda made, name: made.delete(name),
    RUN: lambda made, name: None,
}
"""For each kind, the remedy that the error line suggests besides running the same command again."""


@dataclass(frozen=True, kw_only=True)
class Trial:
    """What is damaged, in which state.

    Attributes:
        state: state of the experiment.
        damages: name of an object -> missing, truncated, flipped or older.
        seed: decides where an object is cut and which bit is flipped.
        checked: whether correct records of earlier checks exist; otherwise there are none.
    """

    state: str
    damages: dict[str, str]
    seed: int = 0
    checked: bool = True

    def __str__(self) -> str:
        """The form in which it can be passed to the campaign again."""
        what = ", ".join(f"{name} {kind}" for name, kind in self.damages.items())
        return f"{self.state}{'' if self.checked else ', unchecked'}, seed {self.seed}: {what}"


def kind(made: Experiment, name: str) -> StoredKind | None:
    """The row of an object."""
    return kind_of(made.root, join(made.root, name))


def outcome(row: StoredKind, damage: str) -> str:
    """healed, refused or harmless. An object that is written once has no older version: a replacement counts as a flipped bit."""
    text: str = getattr(row, damage)
    return (row.flipped if damage == "older" and "written once" in text else text).partition(":")[0]


def damaged(made: Experiment, name: str, damage: str, draw: random.Random, data: bytes) -> bytes | None:
    """What replaces `data`; None: nothing does."""
    if damage == "missing":
        return None
    if damage == "truncated":
        return data[: draw.randrange(len(data))] if data else b""
    if damage in ("flipped", ROTTEN):
        return flip(data, draw.randrange(8 * len(data))) if data else b"\1"
    return draw.choice([known for known in made.older[name] if known != data])


def trials_of(made: Experiment, state: str, name: str, *, seed: int = 0, checked: bool = True) -> list[Trial]:
    """Every damage of an object, as far as there can be that damage."""
    can_be_older = any(known != made.states[state][name] for known in made.older[name])
    return [
        Trial(state=state, damages={name: damage}, seed=seed, checked=checked) for damage in DAMAGES if damage != "older" or can_be_older
    ]


def attempt(made: Experiment, trial: Trial) -> list[str]:
    """Carry out the trial; returns deviations from the rows, or nothing if there are none."""
    draw = random.Random(trial.seed)
    made.put_back(trial.state, checked=trial.checked)
    rows = {name: kind(made, name) for name in trial.damages}
    if unknown := [name for name, row in rows.items() if row is None]:
        return [f"no row for {name}" for name in unknown]
    for name, damage in trial.damages.items():
        if rows[name].name != RUN:  # type: ignore[union-attr]
            _apply(made, name, damage, draw)
        else:  # a run that finds everything done runs no steps and writes no record
            made.delete(f"experiments/{NAME}/report/made.json")

    def at(step: str) -> None:
        for name, damage in trial.damages.items():
            if step == "finish" and rows[name].name == RUN:  # type: ignore[union-attr]
                _apply(made, f"runs/run-{made.runs}.json", damage, draw, like=name)

    ended = made.run(at)
    expected = {name: outcome(row, trial.damages[name]) for name, row in rows.items() if row is not None}
    refused = [name for name, what in expected.items() if what == "refused"]
    untold = [name for name, row in rows.items() if row is not None and _should_tell(trial, row) and _last(name) not in ended.told]
    found_late = _names(ended, trial.damages) if ended.code else not made.is_finished()
    if found_late and not trial.checked and not refused:
        ended = made.run()  # for data that was never hashed only sizes are compared, so the damage was found on loading
    problems = _judge_refusal(ended, refused) if refused or ended.code else []
    problems += [f"nothing is reported about {name}" for name in untold]
    for name in refused:
        ADVICE[rows[name].name](made, name)  # type: ignore[union-attr]
    if refused or any(row.name == RUN for row in rows.values() if row is not None):
        ended = made.run()
    if ended.code and not problems:
        problems.append(f"still exit code {ended.code} after following the line's advice: {ended.line}")
    if ended.code == 0:
        problems += differences(made.result, made.outcome())
        problems += [] if made.is_finished() else ["exit code 0, but a run would still find something to do"]
    return problems


def attempt_rotten(made: Experiment, trial: Trial) -> list[str]:
    """Carry out a trial whose damage no stamp reveals; returns what is wrong.

    A run that loads the object ends with an error that names it, and the next one heals it; where none loads it, `verify` names it.
    """
    ((name, damage),) = trial.damages.items()
    made.put_back(trial.state, checked=True)
    _apply(made, name, damage, random.Random(trial.seed))
    if not _keep_stamp(made, name):
        return []
    ended = made.run()
    if ended.code:
        problems = [] if _names(ended, [name]) else [f"not named: {ended.line}"]
        ended = made.run()
        problems += [f"not healed by the next run: {ended.line}"] if ended.code else []
        return problems or differences(made.result, made.outcome())
    if made.content()[name] == made.states["finished"].get(name):
        return differences(made.result, made.outcome())
    found = [one.uri for one in verify(made.root, NAME).found]
    left = differences({**made.result, name: None}, {**made.outcome(), name: None})
    return left or ([] if join(made.root, name) in found else [f"verify does not name it, but {found}"])


def _keep_stamp(made: Experiment, name: str) -> bool:
    """Update the records of checks with an object's current stamp; False if none contains it."""
    found = False
    for place in [record for record in made.content() if record.endswith("/CHECKED.json")]:
        folder = place.removesuffix("CHECKED.json")
        value = read_document(join(made.root, place), "a record", 1) or {"files": {}}
        inside = name.removeprefix(folder)
        info = open_store(made.root).head(join(made.root, name))
        if name.startswith(folder) and inside in value["files"] and info is not None:
            value["files"][inside]["stamp"] = info.stamp
            write_document(join(made.root, place), value)
            found = True
    return found


def _should_tell(trial: Trial, row: StoredKind) -> bool:
    """Whether a message is expected: a single object was truncated in a complete state. A missing object may never have existed."""
    damages = list(trial.damages.values())
    return row.name in TOLD and trial.state == "finished" and trial.checked and damages == ["truncated"]


def _last(name: str) -> str:
    return name.rpartition("/")[2]


def _apply(made: Experiment, name: str, damage: str, draw: random.Random, like: str = "") -> None:
    found = made.content()
    if name not in found:
        return
    data = damaged(made, like or name, damage, draw, found[name])
    if data is None:
        made.delete(name)
    else:
        made.write(name, data)


def _judge_refusal(ended: Ended, refused: list[str]) -> list[str]:
    if not refused:
        return [f"exit {ended.code}, not healed: {ended.line}"]
    if ended.code not in (1, 2):
        return [f"exit {ended.code}, not refused: {ended.said[-300:]}"]
    right = _names(ended, refused) and "\n" not in ended.line and "Traceback" not in ended.said
    return [] if right else [f"refused, but not by name: {ended.line}"]


def _names(ended: Ended, names: Iterable[str]) -> bool:
    """Whether the last line names one of the objects, or the folder of its data set or model; the report names their experiment instead."""
    folders = (name.removeprefix(f"experiments/{NAME}/").rpartition("/")[0] for name in names)
    return any(folder.removesuffix("/final").removesuffix("/test") in ended.line for folder in folders)


def differences(wanted: Any, found: Any, place: str = "") -> list[str]:
    """Where two results differ."""
    if isinstance(wanted, dict) and isinstance(found, dict):
        keys = list(dict.fromkeys([*wanted, *found]))
        return [line for key in keys for line in differences(wanted.get(key), found.get(key), f"{place}/{key}")][:5]
    return [] if wanted == found else [f"{place.replace(f'/experiments/{NAME}', '')}: {str(found)[:80]}, undamaged {str(wanted)[:80]}"]
