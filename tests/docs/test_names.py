"""Every flag, key, value, parameter, metric, target and file that a document names exists."""

import ast
import functools
import itertools
import re
from collections.abc import Callable, Iterator
from importlib.util import find_spec
from pathlib import Path

import pytest
import yaml

from pipelines.planning.request import merge
from pipelines.steps.staging import RemoteList
from tests.docs import known
from tests.docs.reading import Document, Line
from trainer.config import Recipe
from trainer.configs import load_recipe, parse_config
from trainer.errors import InputError

REPOSITORY = known.REPOSITORY
PAGES = sorted(
    name for name in known.files() if re.match(r"(README|(docs|manifests|charts)/.*)\.md(\.gotmpl)?$|charts/.*/NOTES.txt$", name)
)
MAKEFILES = ("Makefile", "scripts/request.mk")
Fault = tuple[Line, str]

PROGRAMS = ("aws", "docker", "git", "helm", "kind", "kubectl", "mc", "nvidia-smi", "prlimit")
"""Programs of others: what follows one of them on a line are its own flags."""
ITS_FLAGS = {
    "docs/EVALUATION.md": {"--no_amp", "--recall_k"},  # of clip_benchmark
    "docs/OPERATIONS.md": {"--api-versions", "--logs", "--reset-then-reuse-values", "--reuse-values"},  # of helm
}
ITS_VARIABLES = {"docs/DAY_TWO.md": {"BACKUP", "NEW"}}
"""Shell variables that a page sets for its own commands."""
ROOTS = {"kfp", "nn", "torch", "urllib"}
"""Of dotted names that are other packages' modules."""
WORDS = {"amp_bf16", "init_logit_scale", "set_priority"}
"""Names of open_clip's and torch's."""
FORMATS = {"docs/FORMAT.md": {"source.zips"}}
"""Dotted keys of stored files, which no dataclass describes."""
PLACEHOLDERS = {"CELL", "EXPERIMENT", "FLIP", "JOB", "NS", "OUT", "POD", "URL"}
"""Words in capitals that stand for something of the reader's."""
HOSTS = re.compile(r"\w+://\S+|[\w.-]+\.(?:io|org|com|dev)\b[\w./-]*|<[^>]*>")
"""URLs, hosts, label keys of other domains, placeholders."""
FOLDERS = r"(?:trainer|pipelines|tests|docs|charts|images|manifests|scripts|requirements|\.ci)"
SOURCE_ENDINGS = r"py|sh|mk|tpl|toml"
DATA_ENDINGS = r"json|jsonl|yaml|npz|html|css|parquet|txt|md|in|lock"


# ------------------------------------------------------------------------------------------------------------ kinds


def flags(page: Document) -> Iterator[Fault]:
    """A long option belongs to the command before it; one that stands alone to any of ours."""
    for line, code in page.code():
        for flag, command, valid in _flags(code):
            if flag not in valid and flag not in _foreign_flags(page.path):
                yield line, f"{flag}: no option of {command}"


def _flags(code: str) -> Iterator[tuple[str, str, frozenset[str]]]:
    found = re.findall(r"[^\s'\"=,;()|]+", code)
    command, valid = "any command", _all_options()
    for program in known.PARSERS:
        name, parser = known.reached(program, found)
        if parser is not known.PARSERS[program]:
            command, valid = name, known.options(parser)
    for index, word in enumerate(found):
        if word in PROGRAMS:
            return
        if word == "-m" and found[index - 1].startswith("python"):
            module = found[index + 1]
            if module in known.PARSERS:
                command, parser = known.reached(module, found[index + 2 :])
                valid = known.options(parser)
            else:
                command, valid = f"python -m {module}", known.module_options(module)
        elif word == "firstsight" and index == 0:
            command, parser = known.reached(word, found[1:])
            valid = known.options(parser)
        elif word == "make" and index + 1 < len(found):
            command, valid = f"make {found[index + 1]}", known.target_options(found[index + 1])
        elif re.fullmatch(r"--[a-z][\w-]*", word):
            yield word, command, valid


@functools.cache
def _all_options() -> frozenset[str]:
    return frozenset().union(*(known.options(parser) for parser in known.PARSERS.values()))


@functools.cache
def _foreign_flags(path: str) -> frozenset[str]:
    """docs/RECIPES.md translates the flags of open_clip's trainer, which are those of its package."""
    spec = find_spec("open_clip_train")
    if path == "docs/RECIPES.md" and spec and spec.origin:
        return frozenset(re.findall(r"[\"'](--[a-z][\w-]*)", Path(spec.origin).with_name("params.py").read_text(encoding="utf-8")))
    return frozenset(ITS_FLAGS.get(path, ()))


def commands(page: Document) -> Iterator[Fault]:
    """A command of ours, a target of make."""
    for line, code in page.code():
        for target in re.findall(r"(?<![\w-])make ([a-z][a-z0-9-]*)", code):
            if target not in known.make_recipes():
                yield line, f"make {target}: no such target"
        for program, word in re.findall(r"python -m (pipelines|trainer) ([a-z]\w*)", code):
            if word not in known.subcommands(known.PARSERS[program]):
                yield line, f"python -m {program} {word}: no such command"
        for word in re.findall(r"^firstsight ([a-z]\w*)", code, re.MULTILINE):
            if word not in known.subcommands(known.PARSERS["firstsight"]):
                yield line, f"firstsight {word}: no such command"
        for module in re.findall(
            r"(?<![\w./])((?:firstsight|trainer|pipelines|tests|scripts)(?:\.[a-z]\w*)+)(?![\w/])", HOSTS.sub(" ", code)
        ):
            if not _is_module(module):
                yield line, f"{module}: no such module"


def _is_module(name: str) -> bool:
    """A module of this repository, or a name that one defines."""
    path, last = name.replace(".", "/"), name.rpartition(".")[2]
    parent = path.rpartition("/")[0]
    if {path, f"{path}.py"} & known.files():
        return True
    texts = [known.REPOSITORY / parent / "__init__.py", known.REPOSITORY / f"{parent}.py"]
    return any(text.exists() and re.search(rf"\b{last}\b", text.read_text(encoding="utf-8")) for text in texts)


def variables(page: Document) -> Iterator[Fault]:
    """A variable of make on its command line, else of make or of the environment; ours also in prose."""
    for line, code in page.code():
        of_make = re.search(r"(?<![\w-])make [a-z]", code)
        for name in set(re.findall(r"(?<![\w$.?&-])([A-Z][A-Z0-9_]*)=", code)) - ITS_VARIABLES.get(page.path, set()):
            if name not in known.make_variables() and (of_make or name not in known.environment()):
                yield line, f"{name}=: no variable of make" + ("" if of_make else " or of the environment")
        whole = re.fullmatch(r"[A-Z][A-Z0-9_]+", code)
        if whole and code not in known.make_variables() | known.environment() | PLACEHOLDERS:
            yield line, f"{code}: no variable of make or of the environment"
    for line, name in page.find(r"\b(?:FIRSTSIGHT|KFP)_[A-Z0-9_]+"):
        if name not in known.environment():
            yield line, f"{name}: no variable that the code reads"


def keys(page: Document) -> Iterator[Fault]:
    """A dotted key, and any other name with an underscore or a capital inside."""
    for line, code in page.inline():
        text = HOSTS.sub(" ", code)
        for name in re.findall(r"(?<![\w./*-])[a-z]\w*(?:\[\])?(?:\.[A-Za-z_]\w*)+(?![\w/(*<-])", text):
            root, ending = name.split(".")[0], name.rpartition(".")[2]
            if re.fullmatch(rf"{SOURCE_ENDINGS}|{DATA_ENDINGS}|csv|png|index|tar|zip|mod", ending) or root in (
                *known.PARSERS,
                "tests",
                "scripts",
            ):
                continue
            if not known.is_key(name) and root not in ROOTS and name not in FORMATS.get(page.path, ()):
                yield line, f"{name}: no key of a recipe, the placement, a profile or the chart's values"
        for name in re.findall(r"(?<![\w./=-])(?:[a-z]+[a-z0-9]*(?:_[a-z0-9]+)+|[a-z]+(?:[A-Z][a-z0-9]+)+)(?![\w(.])", text):
            if name not in known.words() and name not in WORDS:
                yield line, f"{name}: no name in the source"


def yaml_blocks(page: Document) -> Iterator[Fault]:
    """A block of YAML is taken by the reader that its keys say: the chart, a list of pictures, a recipe or a request."""
    for line, text in page.blocks("yaml"):
        found = yaml.safe_load(text)
        try:
            if {"kind", "list"} <= set(found):
                parse_config(RemoteList, found, source="list")
            elif set(found) & set(known.chart_values()):
                yield from ((line, f"{key}: no value of the chart") for key in known.unknown_values(found, known.schema()))
            elif set(found) & {"base", *known.fields(Recipe)}:
                load_recipe(text)
            else:
                merge(text, {})
        except InputError as error:
            yield line, str(error)


def metrics(page: Document) -> Iterator[Fault]:
    """A series, an alert, a label of our domain."""
    for line, name in page.find(r"\bfirstsight_[a-z_]+"):
        if name not in known.metrics():
            yield line, f"{name}: no metric"
    for line, name in page.find(r"\bFirstsight[A-Z]\w+"):
        if name not in known.alerts():
            yield line, f"{name}: no alert"
    for line, name in page.find(r"\bfirstsight\.dev/[a-z][\w-]*"):
        if name not in known.labels():
            yield line, f"{name}: no label or annotation"


def paths(page: Document) -> Iterator[Fault]:
    """A file or folder of this repository, with `*`, `{a,b}` and `<name>` for several."""
    for line, name in page.find(rf"(?<![\w/.@<-]){FOLDERS}/[\w./*{{}},<>-]*"):
        if not any(_exists(one) for one in _expanded(name.rstrip(".,/}>"))):
            yield line, f"{name}: no such file"
    for line, name in page.find(r"(?<![\w/.-])[A-Z][A-Z_]+\.md\b"):
        if not {name, f"docs/{name}"} & known.files():
            yield line, f"{name}: no such page"


def _expanded(name: str) -> list[str]:
    parts = [part[1:-1].split(",") if part.startswith("{") else [part] for part in re.split(r"(\{[^}]*,[^}]*\})", name)]
    return [re.sub(r"<[^>]*>?|\{\w*\}?", "*", "".join(combined)) for combined in itertools.product(*parts)]


def _exists(name: str) -> bool:
    return name in known.files() or ("*" in name and any(REPOSITORY.glob(name)))


def file_names(page: Document) -> Iterator[Fault]:
    """A file named alone: one of the repository, or one that the source writes or reads."""
    names = {Path(name).name for name in known.files()}
    for line, code in page.inline():
        for name in re.findall(rf"(?<![\w./<>*=-])[\w-]+\.(?:{SOURCE_ENDINGS})\b(?![/-])", code):
            if name not in names:
                yield line, f"{name}: no such file"
        for name in re.findall(rf"(?<![\w./<>*=-])[\w-]+\.(?:{DATA_ENDINGS})\b(?![/.-])", code):
            if name not in names and not any(name in text for text in known.sources(*known.PRODUCT).values()):
                yield line, f"{name}: no file that the source names"


def links(page: Document) -> Iterator[Fault]:
    """The target of a link within the repository, its heading included."""
    here = (REPOSITORY / page.path).parent
    for line, link in page.find(r"\]\((?!https?:)[^)\s]+\)"):
        name, _, anchor = link[2:-1].partition("#")
        target = here / name if name else REPOSITORY / page.path
        if not target.exists():
            yield line, f"{name}: no such file"
        elif anchor and anchor not in _anchors(target.read_text(encoding="utf-8")):
            yield line, f"{link[2:-1]}: no such heading"


def _anchors(text: str) -> set[str]:
    headings = re.findall(r"^#+ (.*)$", text, re.MULTILINE)
    return {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings}


KINDS: tuple[Callable[[Document], Iterator[Fault]], ...] = (
    *(flags, commands, variables, keys, yaml_blocks, metrics, paths, file_names, links),
)


def read(name: str) -> Document:
    """A document of the repository."""
    text = (REPOSITORY / name).read_text(encoding="utf-8")
    return Document.makefile(name, text) if name in MAKEFILES else Document(name, text)


def faults(page: Document) -> list[str]:
    """What the document names and there is not: document, line, name."""
    found = sorted({fault for kind in KINDS for fault in kind(page)})
    return [f"{page.path}:{line}: {what}" for line, what in found]


# ------------------------------------------------------------------------------------------------------------ tests


@pytest.mark.parametrize("name", [*PAGES, *MAKEFILES])
def test_everything_that_a_document_names_exists(name: str):
    assert faults(read(name)) == []


@pytest.mark.parametrize(
    ("name", "right", "wrong", "reported"),
    [
        ("README.md", "ARGS=--dry-run", "ARGS=--dry-runs", "--dry-runs: no option"),
        ("README.md", "make test ", "make tests ", "make tests: no such target"),
        ("README.md", "KFP_ENDPOINT=https", "KFP_ENDPOINTS=https", "KFP_ENDPOINTS=: no variable of make"),
        ("README.md", "docs/DATA.md)", "docs/DATUM.md)", "docs/DATUM.md: no such file"),
        ("docs/DATA.md", "refetch --plan", "refetch --plans", "--plans: no option of python -m trainer stage refetch"),
        ("docs/DATA.md", "captions: slip", "caption: slip", "caption"),
        ("docs/DATA.md", "`perceptual.min_votes`", "`perceptual.min_vote`", "perceptual.min_vote: no key"),
        ("docs/RECIPES.md", "`--accum-freq`", "`--accumulate`", "--accumulate: no option of any command"),
        ("docs/RECIPES.md", "`placement.keep_last`", "`placement.keep_latest`", "placement.keep_latest: no key"),
        ("docs/RECIPES.md", "epochs: 16", "epoch: 16", "epoch"),
        ("docs/RECIPES.md", "`order_runs`", "`orders_run`", "orders_run: no name in the source"),
        ("docs/REQUEST.md", "seeds: [0", "seed: [0", "seed is not a parameter of a request"),
        ("docs/OPERATIONS.md", "gpusPerNode: 8", "gpuPerNode: 8", "jobs.gpuPerNode: no value of the chart"),
        ("docs/OPERATIONS.md", "loader_workers: 12", "loader_worker: 12", "profileDefaults.placement.loader_worker: no value"),
        ("docs/OPERATIONS.md", "`networkPolicy.enabled`", "`networkPolicies.enabled`", "networkPolicies.enabled: no key"),
        ("docs/OPERATIONS.md", "PERFORMANCE_NOTES.md#the-size", "PERFORMANCE_NOTES.md#size", "no such heading"),
        ("docs/OPERATIONS.md", "python -m pipelines cancel", "python -m pipelines end", "python -m pipelines end: no such command"),
        ("docs/OPERATIONS.md", "tests.chart.panels", "tests.charts.panels", "tests.charts.panels: no such module"),
        ("docs/RUNBOOK.md", "### FirstsightSlow", "### FirstsightSlower", "FirstsightSlower: no alert"),
        ("docs/RUNBOOK.md", "firstsight.dev/cell", "firstsight.dev/cells", "firstsight.dev/cells: no label"),
        ("docs/RUNBOOK.md", "`stallSeconds`", "`stalledSeconds`", "stalledSeconds: no name in the source"),
        ("docs/RUNBOOK.md", "# Runbook", "# Runbook\nfirstsight_train_losses", "firstsight_train_losses: no metric"),
        ("docs/KUBEFLOW.md", "`KFP_CA`", "`KFP_CERTIFICATES`", "KFP_CERTIFICATES: no variable"),
        ("docs/ARCHITECTURE.md", "trainer/storage/layout.py", "trainer/storage/places.py", "trainer/storage/places.py: no such file"),
        ("docs/ARCHITECTURE.md", "(`following.py`)", "(`follower.py`)", "follower.py: no such file"),
        ("docs/LIBRARY.md", "--recipe smoke", "--receipt smoke", "--receipt: no option of firstsight run"),
        ("docs/LIBRARY.md", "firstsight run --", "firstsight start --", "firstsight start: no such command"),
        ("docs/FORMAT.md", "{index,manifest,committed}", "{indices,manifests}", "{indices,manifests}.py: no such file"),
        ("docs/EVALUATION.md", "--root runs --prompts", "--root runs --prompt", "--prompt: no option of python -m trainer stage eval"),
        ("Makefile", "images/build.sh", "images/make.sh", "images/make.sh: no such file"),
    ],
)
def test_a_wrong_name_is_reported(name: str, right: str, wrong: str, reported: str):
    """Each kind of name, made wrong in a document that is right."""
    page = read(name)
    assert right in page.text
    found = faults(Document(name, page.text.replace(right, wrong, 1)))
    assert any(reported in fault for fault in found), found


def test_the_source_names_files_that_exist():
    """In docstrings, comments and messages too."""
    found = [fault for name, text in known.sources(*known.PRODUCT).items() for fault in _faults_of_paths(name, text)]
    assert found == []
    assert _faults_of_paths("x.py", '"""See trainer/run/loops.py and DESIGN.md."""') != []


def _faults_of_paths(name: str, text: str) -> list[str]:
    found = paths(Document(name, text))
    files = re.compile(rf"(?!docs/catalog/)[^:]*\.(?:{SOURCE_ENDINGS}|md)\b")  # that folder is of TensorFlow Datasets
    return [f"{name}:{line}: {what}" for line, what in found if files.match(what)]


def rooms(package: str) -> set[str]:
    """The folders and modules directly below a package, such as `storage/` and `fields.py`."""
    here = [Path(name) for name in known.files() if Path(name).parent == Path(package)]
    names = {f"{path.name}/" if (REPOSITORY / path / "__init__.py").exists() else path.name for path in here}
    return names - {"__init__.py", "py.typed"}


def test_the_readmes_tree_is_the_tree():
    """Every folder at the top has a line."""
    (tree,) = (text for _, text in read("README.md").blocks("") if "trainer/" in text)
    listed = {line.split()[0] for line in tree.splitlines()}
    there = {f"{name.split('/')[0]}/" for name in known.files() if "/" in name and not name.startswith(".")}
    assert listed == there


@pytest.mark.parametrize("package", ["firstsight", "trainer", "pipelines"])
def test_the_architecture_names_every_room(package: str):
    text = read("docs/ARCHITECTURE.md").text.partition("## Layers")[2].partition("\n## ")[0]
    named = set(re.findall(r"`(?:firstsight/|trainer/|pipelines/)?([\w.]+/|\w+\.py)`", text))
    assert rooms(package) - named == set()


def test_the_markers_are_those_of_the_tests():
    """docs/TESTING.md lists what pyproject.toml defines."""
    (line,) = re.findall(r"^Markers \(`pyproject.toml`\): (.*?)\.(?:\s|$)", read("docs/TESTING.md").text, re.MULTILINE | re.DOTALL)
    text = (REPOSITORY / "pyproject.toml").read_text(encoding="utf-8")
    markers = ast.literal_eval(re.findall(r"^markers = (\[.*?\n\])", text, re.MULTILINE | re.DOTALL)[0])
    assert set(re.findall(r"`(\w+)`", line)) == {marker.partition(":")[0] for marker in markers}
