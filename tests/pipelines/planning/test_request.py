"""What a run asks for: merged from a file and what is given beside it, checked, stored, read back."""

import json
from pathlib import Path

import pytest
import yaml

from pipelines.__main__ import main
from pipelines.planning.request import FIELDS, INTRODUCED, Request, merge, read_request, write_request
from pipelines.planning.resolving import resolve
from trainer.errors import Corrupt, InputError
from trainer.storage import layout, read_json, write_json

FILE = """
recipe: smoke
set: {contrastive.epochs: 2, model: {embed_dim: 64}}
arms: [random, perceptual]
seeds: [0, 1]
nodes: 2
placement: {compile: true}
"""
EXAMPLES = {
    "recipe": "smoke",
    "set": "contrastive.epochs=3",
    "arms": "random,posthoc",
    "seeds": "4,5",
    "vary": "triplets: {perceptual.triplet_fraction: [0.5, 1]}",
    "endpoints": "2afc,mean_retrieval",
    "tests": "dose: {axis: triplets}",
    "pairs": "s3://bucket/pairs",
    "triplets": "s3://bucket/nights",
    "eval_sets": "s3://bucket/a,s3://bucket/b",
    "max_reject_fraction": "0.5",
    "root": "s3://bucket/root",
    "experiment": "mine",
    "profile": "/p/profile.yaml",
    "backend": "pytorchjob",
    "nodes": "3",
    "gpus_per_node": "8",
    "image": "registry.example/trainer:1",
    "queue": "research",
    "parallel_cells": "3",
    "resume": "never",
    "placement": "log_every_steps=5",
    "representation": "sets=[demo-categories] probes=[all]",
}


def test_what_is_given_beside_a_file_wins_and_settings_are_merged_key_by_key():
    """A flag replaces a list; of `set` and `placement` it replaces the keys that it names."""
    request = merge(FILE, {"arms": "posthoc", "set": "contrastive.epochs=5", "seeds": "", "nodes": None})

    assert request.arms == ("posthoc",)
    assert request.seeds == ("0", "1")
    assert request.nodes == 2
    assert request.set == {"contrastive.epochs": 5, "model.embed_dim": 64}
    assert request.placement == {"compile": True}


def test_a_flag_set_to_the_ordinary_default_wins_over_the_file():
    """Not given and set to the default are told apart."""
    assert merge("recipe: paper\n", {"recipe": "demo"}).recipe == "demo"


@pytest.mark.parametrize("name", FIELDS)
def test_every_parameter_means_the_same_as_text_and_in_a_file(name: str):
    """The examples are of every parameter, so a new one needs an example here."""
    given = merge("", {name: EXAMPLES[name]})
    stored = json.loads(json.dumps(given.stored()))

    assert merge(yaml.safe_dump({name: stored[name]}), {}) == given
    assert given != Request()


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("representation: {probe: [a]}\n", ("representation: probe is not a setting", "did you mean probes?")),
        ("representation: {probes: a}\n", ("representation: probes must be a list", "'a'")),
        ("representation: {probes: [all, a]}\n", ("representation.probes", "names of sets, or all alone")),
        ("representation: {sets: [a, a]}\n", ("representation.sets", "a list without an empty or repeated entry")),
        ("representation: {rdms: [V1.csv]}\n", ("representation.sets", "given if representation.rdms is given")),
        ("representation: {sets: [a], pictures: 3}\n", ("representation.pictures", ">= 4")),
        ("recipee: x\n", ("recipee is not a parameter", "did you mean recipe?")),
        ("nodes: 2\nnodes: 3\n", ("nodes", "twice")),
        ("set: {a.b: 1, a: {b: 2}}\n", ("set: a.b is given twice",)),
        ("nodes: true\n", ("nodes must be a whole number, got True",)),
        ("nodes: two\n", ("nodes must be a whole number, got 'two'",)),
        ("nodes: 100000\n", ("nodes must be between 1 and 1024, got 100000",)),
        ("gpus_per_node: -1\n", ("gpus_per_node must be between 0 and 64",)),
        ("seeds: 1.5\n", ("seeds must be a list",)),
        ("seeds: [[1]]\n", ("seeds must be a list of plain values",)),
        ("arms: []\n", ("arms must be",)),
        ("max_reject_fraction: 2\n", ("max_reject_fraction must be between 0 and 1",)),
        ("root: /etc\n", ("root must be a folder for data",)),
        ("root: /usr/share/x\n", ("root must be a folder for data",)),
        ("root: /\n", ("root must be a folder for data",)),
        ('queue: "a\\nb"\n', ("queue must be one line",)),
        ("queue: -a\n", ("queue must be a name of at most 63",)),
        ("image: 'a b'\n", ("image must be the name of an image",)),
        ("resume: perhaps\n", ("resume must be auto, never or",)),
        ("experiment: Has Capitals\n", ("Has Capitals",)),
        ("nodes: 2\nplacement: {nodes: 3}\n", ("nodes is 2, and placement.nodes is 3", "give only one of them")),
        ("resume: never\nplacement: {resume: auto}\n", ("resume is never", "placement.resume is auto")),
        ("gpus_per_node: 2\nplacement: {processes_per_node: 3}\n", ("one process for each GPU",)),
        ("placement: {attempt: 3}\n", ("placement.attempt is set only by the launcher",)),
        ("placement: {compil: true}\n", ("experiment.yaml: placement: ", "compil", "compile")),
        ("set: {contrastive: {epoch: 3}}\n", ("experiment.yaml: set: ", "contrastive.epoch", "contrastive.epochs")),
        ("recipe: {base: smoke, contrastive: {epoch: 3}}\n", ("experiment.yaml: recipe: ", "contrastive.epochs")),
        ("recipe: {base: smok}\n", ("experiment.yaml: recipe: ", "smoke")),
        ("recipe: smok\n", ("smok", "did you mean smoke?")),
        ("placement: {keep_last: 0}\n", ("keep_last must be >= 1",)),
        ("recipe: paper\nplacement: {trajectory: false}\n", ("placement.trajectory is False", "evaluation.trajectory is True")),
        ("recipe: paper\nplacement: {checkpoint_every_epochs: 0}\n", ("checkpoint_every_epochs is 0", "every_epochs is 4")),
        ("set: {evaluation.trajectory: sometimes}\n", ("evaluation.trajectory", "sometimes")),
        ("set: {contrastive.epoch: 3}\n", ("epoch",)),
        ("pairs: '{{x}}'\n", ("pairs must be one line",)),
        ("nodes: 0\n", ("experiment.yaml: nodes must be between",)),
        ("nodes: '1_0'\n", ("experiment.yaml: nodes must be a whole number, got '1_0'",)),
        ("nodes: '\u0661'\n", ("experiment.yaml: nodes must be a whole number",)),
        (f"nodes: '{'9' * 5000}'\n", ("experiment.yaml: nodes must be a whole number",)),
        ("seeds: [-1]\n", ("experiment.yaml: seeds must be whole numbers",)),
        ("arms: [randm]\n", ("experiment.yaml: arms must be any of",)),
        ("placement: {device: tpu}\n", ("experiment.yaml: placement: device must be one of auto",)),
        ("placement: {profile_steps: '9:3'}\n", ("experiment.yaml: placement: placement.profile_steps must be A:B",)),
        ("placement: compil=true\n", ("experiment.yaml: placement: override", "did you mean compile?")),
        (f"placement: {{watchdog_seconds: 1{'0' * 400}}}\n", ("watchdog_seconds must be a number of at most 64 bits",)),
        ("set: &x {contrastive: *x}\n", ("experiment.yaml: not YAML: found unconstructable recursive node",)),
        (f"set: {'{a: ' * 20}1{'}' * 20}\n", ("experiment.yaml: set: ", "nested too deep")),
        ("image: $(x)\n", ("image must be one line",)),
        ("image: -x\n", ("image must be the name of an image",)),
        ("null: 1\n", ("experiment.yaml: None is not a parameter",)),
        ("root: ~nobody-of-that-name/x\n", ("no such user",)),
        ("root: 's3:/bucket/x'\n", ("a URI is file:///folder or s3://bucket/prefix",)),
        ("root: 's3://'\n", ("a URI is file:///folder or s3://bucket/prefix",)),
        ("recipe: {contrastive: {epochs: 3}}\n", ("experiment must be given if the recipe has no name",)),
        (f"recipe: smoke\npairs: {'x' * 5000}\n", ("the name is too long",)),
        ("format_version: 0\n", ("format_version must be a whole number from 1",)),
        ("format_version: '1'\n", ("format_version must be a whole number from 1",)),
        ("format_version: 2\n", ("written by a newer firstsight",)),
        ("- a\n", ("expected a mapping",)),
        ("[a\n", ("not YAML",)),
    ],
)
def test_a_request_that_cannot_be_meant_is_one_line_and_nothing_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], text: str, words: tuple[str, ...]
):
    """With the file, the key, the rule and the value; exit code 2."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "experiment.yaml").write_text(text)

    assert main(["run", "--request", "experiment.yaml", *([] if "recipe" in text else ["--recipe", "smoke"])]) == 2

    (line,) = capsys.readouterr().err.splitlines()
    assert all(word in line for word in words), line
    assert [path.name for path in tmp_path.iterdir()] == ["experiment.yaml"]


def test_a_key_of_the_file_is_named_with_the_file(tmp_path: Path):
    (tmp_path / "experiment.yaml").write_text("nodes: none\n")

    with pytest.raises(InputError, match=r"experiment\.yaml: nodes must be a whole number, got 'none'"):
        merge(str(tmp_path / "experiment.yaml"), {})


def test_a_request_that_is_missing_is_named():
    with pytest.raises(InputError, match=r"request /no/such\.yaml: no such file"):
        merge("/no/such.yaml", {})


def test_nodes_in_placement_mean_nodes():
    """One setting has one place, whichever way it is spelled."""
    request = merge("placement: {nodes: 2, resume: never, threads: 3}\n", {})

    assert (request.nodes, request.resume, request.placement) == (2, "never", {"threads": 3})


def test_a_stored_request_is_read_back_and_says_where_it_belongs(tmp_path: Path):
    request = resolve(merge(FILE, {"experiment": "mine"}))
    uri = write_request(request, str(tmp_path))

    assert read_request(uri) == request
    assert layout.of_request(uri) == (str(tmp_path), "mine")
    assert read_json(uri)["format_version"] == 2


def test_the_same_command_gives_the_same_request(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """However a path or a default is spelled; another value gives another."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "pictures").mkdir()
    spellings = ("pictures", "./pictures", "pictures/", f"{tmp_path}/x/../pictures", f"file://{tmp_path}/pictures")
    found = [resolve(merge("", {"pairs": pairs, "recipe": "smoke"})) for pairs in spellings]

    assert len({request.id for request in found}) == 1
    assert len({request.experiment for request in found}) == 1
    assert resolve(merge("", {})).id == resolve(merge("", {"recipe": "demo", "seeds": "0"})).id
    assert resolve(merge("", {})).id != resolve(merge("", {"seeds": "1"})).id


def test_a_recipe_file_becomes_part_of_the_request(tmp_path: Path):
    """A cluster sees none of this machine's files, and a file may be edited after the run has begun."""
    path = tmp_path / "mine.yaml"
    path.write_text("contrastive: {epochs: 3}\n")
    request = resolve(merge("", {"recipe": str(path)}), kubeflow=True)
    path.unlink()

    recipe = request.load_recipe()
    assert (recipe.name, recipe.contrastive.epochs) == ("mine", 3)
    assert request.experiment == "mine"


def test_every_place_is_stored_absolute(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """A step runs in another folder, and a user's home is another one elsewhere."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    given = {"root": "r", "pairs": "p/", "triplets": "~/t", "eval_sets": "./e", "arms": "random,from:~/a", "resume": "runs/../c"}
    stored = resolve(merge("", {"recipe": "smoke", **given})).stored()

    assert {name: stored[name] for name in given} == {
        "root": f"{tmp_path}/r",
        "pairs": f"{tmp_path}/p",
        "triplets": f"{tmp_path}/home/t",
        "eval_sets": [f"{tmp_path}/e"],
        "arms": ["random", f"from:{tmp_path}/home/a"],
        "resume": f"{tmp_path}/c",
    }


@pytest.mark.parametrize("arm", ["from:s3://b/x/", "from:s3://b/x", "from:/a/../b", "from:file:///a"])
def test_a_stored_arm_keeps_its_name(arm: str):
    """Finished cells lie in a folder of that name."""
    merged = merge("", {"recipe": "smoke", "arms": arm})

    assert resolve(merged).cells == merged.cells


def test_a_file_of_ones_home_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Where the shell leaves the tilde to the command."""
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "mine.yaml").write_text("base: smoke\n")
    (tmp_path / "experiment.yaml").write_text("recipe: ~/mine.yaml\n")

    assert resolve(merge("~/experiment.yaml", {})).recipe["base"] == "smoke"


@pytest.mark.parametrize("request_file", ["a\0b", "\ud800", "s3:/bucket/x", "file://x"])
def test_a_request_at_an_impossible_place_is_refused(request_file: str):
    with pytest.raises(InputError):
        merge(request_file, {})


def test_a_stored_request_that_was_edited_is_named(tmp_path: Path):
    uri = write_request(resolve(merge(FILE, {"experiment": "mine"})), str(tmp_path))
    write_json(uri, {**read_json(uri), "nodes": 3})

    with pytest.raises(Corrupt, match=f"{uri}: its checksum does not match its content"):
        read_request(uri)


def test_a_stored_request_of_format_1_is_read_and_one_that_was_edited_is_named(tmp_path: Path):
    """It had no checksum; its name is the hash of its content."""
    request = resolve(merge(FILE, {"experiment": "mine"}))
    uri = write_request(request, str(tmp_path))
    write_json(uri, {"format_version": 1, **request.stored()})
    assert read_request(uri) == request

    write_json(uri, {"format_version": 1, **request.stored(), "nodes": 3})
    with pytest.raises(Corrupt, match=f"{uri}: contains request"):
        read_request(uri)


def test_another_request_in_a_request_s_place_is_named(tmp_path: Path):
    """Its checksum is right, but steps would run what nobody asked for."""
    uri = write_request(resolve(merge(FILE, {"experiment": "mine"})), str(tmp_path))
    other = write_request(resolve(merge(FILE, {"experiment": "mine", "nodes": "3"})), str(tmp_path))
    write_json(uri, read_json(other))

    with pytest.raises(Corrupt, match=f"{uri}: contains request"):
        read_request(uri)


@pytest.mark.parametrize(
    ("name", "value"),
    [*((name, "/home/me/x") for name in ("root", "pairs", "triplets", "eval_sets", "resume")), ("arms", "from:/home/me/x")],
)
def test_a_cluster_is_given_no_path_of_this_machine(name: str, value: str):
    with pytest.raises(InputError, match=rf"{name} must be a URI such as s3://bucket/prefix"):
        resolve(merge("", {name: value}), kubeflow=True)


def test_rdms_are_stored_absolute_and_a_cluster_is_given_none_of_this_machine(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    """Like every other place; a request without representation keeps its id."""
    monkeypatch.chdir(tmp_path)
    asked = merge("representation: {sets: [a], rdms: [rdms/V1.csv, s3://bucket/IT.npy]}", {})
    stored = resolve(asked).stored()["representation"]
    assert stored == {"sets": ["a"], "rdms": [f"{tmp_path}/rdms/V1.csv", "s3://bucket/IT.npy"]}
    with pytest.raises(InputError, match=r"representation\.rdms must be a URI such as s3://bucket/prefix"):
        resolve(asked, kubeflow=True)
    assert Request(representation={}).id == Request().id != Request(representation={"probes": ["all"]}).id


def test_a_newer_stored_request_is_refused_by_its_version(tmp_path: Path):
    uri = f"{tmp_path}/experiments/e/requests/1.json"
    write_json(uri, {"format_version": 9, "unheard_of": 1})

    with pytest.raises(InputError, match="format 9 is newer than this firstsight can read"):
        read_request(uri)


def test_a_parameter_that_is_added_later_changes_no_id(monkeypatch: pytest.MonkeyPatch):
    """It is left out of the hash while it has the value that it was introduced with."""
    before = Request().id
    monkeypatch.setitem(INTRODUCED, "queue", "")

    assert Request(queue="").id != before  # queue was hashed before it was marked as added later
    assert Request(queue="a").id != Request(queue="").id
