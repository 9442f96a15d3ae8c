"""What trainer/storage/states.py says of each damage of each object is what happens to a real experiment.

A few kinds are damaged in plain tests, each kind once in slow ones, each sort of object in each state in `make campaigns`; all of it, with
pairs, flips that no stamp shows, and on S3, is `make states-campaign`.
"""

import argparse
import random
import re
import signal
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from tests.damage import flip
from tests.faults import states_campaign
from tests.faults.experiment import STATES, Experiment, Killed
from tests.faults.making import in_this_process, make
from tests.faults.trials import DAMAGES, ROTTEN, Trial, attempt, attempt_rotten, differences, kind, trials_of
from trainer.storage.states import KINDS

pytestmark = pytest.mark.timeout(1800)  # many trials in one test; a machine under load takes ten times as long
PLAIN = ("shard", "experiment's plan", "file of a final model", "figures")
"""Kinds that each heal in a way of their own."""
ELSEWHERE = {
    "declaration": "tests/pipelines/planning/test_varied.py",
    "rows of a slice": "tests/staging/remote",
    "write in progress": "tests/storage: it is never listed",
    "record of a failed cell": "tests/pipelines/planning/test_runs.py: another run never reads it",
    "seal of kept weights": "tests/evaluation/test_damage.py",
    "kept weights": "tests/evaluation/test_damage.py",
}
"""Kinds that a run of pictures in a folder does not have, and where they are damaged."""
KIND_NAMES = sorted({row.name for row in KINDS} - ELSEWHERE.keys())


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Experiment]:
    """The experiment on files, made once; each trial puts back the state that it needs."""
    folder = tmp_path_factory.mktemp("states")
    with in_this_process():
        yield make(str(folder / "root"), folder / "source")


def one_of_each(made: Experiment, state: str) -> list[str]:
    """One object of each kind and file name, numbers and names of data sets left out."""
    found = {}
    for name in made.states[state]:
        row, file = kind(made, name), name.rpartition("/")[2]
        found[row.name if row else name, re.sub(r"\d+|^(pairs|triplets)-\w+_", "", file)] = name
    return list(found.values())


def carry_out(made: Experiment, trials: list[Trial]) -> None:
    """All of them; those that do not end as the table says fail the test, each with its own line."""
    found = {str(trial): problems for trial in trials if (problems := attempt(made, trial))}
    assert found == {}


def test_each_object_has_a_row_and_each_row_an_object(made: Experiment) -> None:
    """An object that nobody described fails here, and so does a row for what nobody writes any more."""
    rows = {name: kind(made, name) for objects in made.states.values() for name in objects}
    assert [name for name, row in rows.items() if row is None] == []
    assert {row.name for row in KINDS} - {row.name for row in rows.values() if row is not None} == ELSEWHERE.keys() - {
        "lock of an experiment"
    }


@pytest.mark.parametrize("names", [PLAIN, pytest.param(sorted(set(KIND_NAMES) - set(PLAIN)), marks=pytest.mark.slow)], ids=["some", "rest"])
def test_one_object_of_each_kind_damaged_in_one_way(made: Experiment, names: Sequence[str]) -> None:
    """Kinds take turns in the damage, and in whether it is found by a record of an earlier check."""
    trials = []
    for number, name in enumerate(names):
        states = sorted(STATES, key=lambda state: (number + STATES.index(state)) % len(STATES))
        places = [(state, place) for state in states for place in made.states[state] if is_of_kind(made, place, name)]
        of_object = trials_of(made, *places[0], seed=number, checked=number % 3 > 0)
        trials.append(of_object[number % len(of_object)])
    carry_out(made, trials)


def is_of_kind(made: Experiment, place: str, name: str) -> bool:
    row = kind(made, place)
    return row is not None and row.name == name


@pytest.mark.campaign
@pytest.mark.parametrize("damage", DAMAGES)
@pytest.mark.parametrize("state", STATES)
def test_each_sort_of_object_in_each_state(made: Experiment, state: str, damage: str) -> None:
    """One at a time."""
    trials = [trial for name in one_of_each(made, state) for trial in trials_of(made, state, name, seed=1)]
    carry_out(made, [trial for trial in trials if set(trial.damages.values()) == {damage}])


@pytest.mark.campaign
def test_two_objects_at_once(made: Experiment) -> None:
    """Pairs drawn by a seed."""
    draw = random.Random(15)
    trials = []
    for number in range(24):
        state = draw.choice(STATES)
        pair = draw.sample(one_of_each(made, state), 2)
        damages = {name: draw.choice(trials_of(made, state, name)).damages[name] for name in pair}
        trials.append(Trial(state=state, damages=damages, seed=number, checked=bool(draw.randrange(2))))
    carry_out(made, trials)


@pytest.mark.parametrize(
    ("state", "pattern"),
    [
        ("training", r"pairs-pairs/.*shard-00000-00001\.tar"),
        ("unevaluated", r"random-seed0/contrastive/final/open_clip_model"),
        ("finished", r"contrastive-final/.*items\.npz"),
        *(
            pytest.param(*case, marks=pytest.mark.slow)
            for case in [
                ("staging", r"pairs-pairs/.*shard-00001-00000\.tar"),
                ("training", r"triplets-triplets/.*shard-00000-00000\.index"),
                ("unevaluated", r"test/0\.tar"),
                ("finished", r"vision\.safetensors"),
                ("finished", r"contrastive/progress\.jsonl"),
            ]
        ),
    ],
)
def test_a_flipped_bit_that_no_stamp_shows(made: Experiment, state: str, pattern: str) -> None:
    """Whatever loads the object names it, and the next run of the same command heals it; what nobody loads, `verify` names."""
    name = next(name for name in made.states[state] if re.search(pattern, name))
    assert attempt_rotten(made, Trial(state=state, damages={name: ROTTEN})) == []


@pytest.mark.parametrize("damage", ["flipped", *(pytest.param(damage, marks=pytest.mark.slow) for damage in ("missing", "truncated"))])
def test_a_request_damaged_while_its_run_goes_on(made: Experiment, damage: str) -> None:
    """The next step refuses it, naming it, and a new run rewrites it."""
    made.put_back("finished", checked=True)
    (name,) = (name for name in made.states["finished"] if re.search("/requests/[^/]+$", name))
    made.delete(next(name for name in made.states["finished"] if name.endswith("report/made.json")))

    def at(step: str) -> None:
        if step == "plan":
            data = made.content()[name]
            made.delete(name)
            if damage != "missing":
                made.write(name, data[: len(data) // 2] if damage == "truncated" else data.replace(b"tiny", b"tinz"))

    ended = made.run(at)
    assert ended.code in (1, 2)
    assert name in ended.line
    assert made.run().code == 0
    assert differences(made.result, made.outcome()) == []


def test_a_shard_whose_source_has_changed_is_refused(made: Experiment) -> None:
    """Nothing can give it back but the source; with the source as it was the same command does."""
    made.put_back("unevaluated", checked=True)
    name = next(name for name in made.states["unevaluated"] if re.search(r"pairs-pairs/.*shard-00000-00000\.tar", name))
    picture = made.source / "pairs/002.png"
    data = picture.read_bytes()
    made.write(name, flip(made.states["unevaluated"][name], 8 * 700))
    picture.write_bytes((made.source / "pairs/001.png").read_bytes())
    try:
        ended = made.run()
    finally:
        picture.write_bytes(data)
    assert ended.code in (1, 2)
    assert "pairs" in ended.line
    assert made.run().code == 0
    assert differences(made.result, made.outcome()) == []


@pytest.mark.slow
def test_a_run_that_is_killed_ends_where_it_stood(made: Experiment) -> None:
    """The states that are damaged here are real: what a kill leaves, the next run finishes, with the weights of an undisturbed one."""
    made.put_back("training", checked=False)

    def at(step: str) -> None:
        if step == "posthoc":
            raise Killed

    with pytest.raises(Killed):
        made.run(at)
    assert made.run().code == 0
    assert differences(made.result, made.outcome()) == []


def test_a_campaign_that_is_stopped_counts_no_failure(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A stop in the middle of a trial waits for its end: else a step takes it for its own, and fails."""
    made = Experiment(root=str(tmp_path), source=tmp_path)
    trials = [Trial(state="finished", damages={"runs/a.json": "missing"}, seed=seed) for seed in range(3)]
    options = argparse.Namespace(seed=0, record=tmp_path / "record")

    def stopped(made: Experiment, trial: Trial) -> list[str]:
        signal.pthread_kill(threading.get_ident(), signal.SIGTERM)  # other threads of a test session do not block it
        return []

    monkeypatch.setattr(states_campaign, "attempt", stopped)
    before = signal.pthread_sigmask(signal.SIG_BLOCK, states_campaign.STOPS)
    try:
        record = states_campaign.Record(options)
        assert states_campaign.run(made, trials, 0.0, record) == 143
        assert len(states_campaign.Record(options).done) == 1
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)  # which forgets the one that waits
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
