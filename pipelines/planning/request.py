"""The request of a run: the single definition of every parameter, with its help, default and rule.

The flags of `python -m pipelines`, make's variables, the parameters of the Kubeflow pipeline and the tables in the docs are
all generated from `Request`. An experiment is a file of the same keys:

    recipe: paper
    set: {contrastive.epochs: 16}
    arms: [random, perceptual]
    seeds: [0, 1, 2]
    placement: {local_batch_size: 1024}

A flag, a make variable or a field of Kubeflow's form overrides the file. The first step of a run stores the
merged request under the experiment; every later step is given its URI and reads it from there.
"""

import dataclasses
import difflib
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from pipelines.planning import parameters
from pipelines.planning.arms import ACCEPTED, Arm, parse_arms, parse_seeds
from pipelines.planning.axes import check_axes
from pipelines.planning.parameters import (
    check_root,
    items,
    located,
    number,
    one_line,
    parse,
    require_inert,
    settings,
    text,
)  # fmt: skip
from trainer.config import Placement, Recipe, canonical_hash, require
from trainer.errors import Corrupt, InputError
from trainer.representation import RepresentationConfig
from trainer.storage import layout, read_text
from trainer.storage.base import MissingObject, absolute
from trainer.storage.declarations import listed
from trainer.storage.documents import read_document, write_document

FORMAT_VERSION = 1
"""Format of the file that a user writes."""
STORED_VERSION = 2
"""Format of a stored request; format 1 had no checksum."""
MAX_NODES, MAX_GPUS_PER_NODE, MAX_PARALLEL_CELLS = 1024, 64, 1024
LAUNCHERS_OWN = ("attempt",)
"""Fields of the trainer's placement that only the launcher sets."""
OWN_PARAMETER = {"nodes": "nodes", "processes_per_node": "gpus_per_node", "resume": "resume"}
"""Fields of the trainer's placement that have their own request parameter; in `placement` they set that parameter."""
_ARMS = ", ".join(ACCEPTED)
_IMAGE = r"[A-Za-z0-9][A-Za-z0-9._:/@-]*"
_LABEL_VALUE = r"[A-Za-z0-9]([A-Za-z0-9._-]{0,61}[A-Za-z0-9])?"


@dataclass(frozen=True, kw_only=True)
class Request:
    """The request of one run. It makes no difference whether a default value was given explicitly."""

    recipe: str | Mapping[str, Any] = parameters.recipe(
        "demo",
        "smoke, demo, paper, paper-3m, paper-as-coded, the URI of a YAML file or, in a request file, the recipe itself",
        form="study_recipe",
    )
    set: Mapping[str, Any] = settings(Recipe, "settings to override in the recipe, such as contrastive.epochs=16", form="study_set")
    arms: tuple[str, ...] = items(("random", "perceptual"), f"any of {_ARMS}; docs/RECIPES.md explains each", form="study_arms")
    seeds: tuple[str, ...] = items(("0",), "integers; each arm is run once per seed", form="study_seeds")
    vary: Mapping[str, Any] = parameters.mapping(
        "axes along which the recipe varies, such as {triplets: {perceptual.triplet_fraction: [0.1, 1]}}; "
        "every arm and seed runs at every point",
        kind="axes",
    )
    endpoints: tuple[str, ...] = items(
        (), "the report's endpoints, declared beforehand", otherwise="those of docs/EVALUATION.md that have data", introduced=[]
    )
    tests: Mapping[str, Any] = parameters.mapping(
        "tests declared beforehand by name, such as {dose: {axis: triplets}}; docs/EVALUATION.md explains them",
    )
    pairs: str = text("", "captioned pictures: a folder, WebDataset tars, or a list of URLs", otherwise="the demo's", form="data_pairs")
    triplets: str = text(
        "",
        "judged triplets: a folder in the NIGHTS layout, or a list",
        otherwise="generated from the pairs and judged by FLIP",
        form="data_triplets",
    )
    eval_sets: tuple[str, ...] = items((), "URIs of further evaluation sets", otherwise="those staged with the pairs")
    max_reject_fraction: float = number(
        0.01, "staging stops if more than this fraction of the samples is bad", rule="between 0 and 1", ok=lambda value: 0 <= value <= 1
    )
    root: str = text("", "store URI for everything a run keeps: a folder, or s3://bucket/prefix", otherwise="the profile's, else runs")
    experiment: str = text(
        "",
        "runs with the same name share work and are compared",
        otherwise="the recipe's name, or one made from the data",
        form="study_name",
    )
    profile: str = text(
        "",
        "where jobs run: a YAML file or, on Kubeflow, the name of a ConfigMap",
        otherwise="this machine; on Kubeflow, the ConfigMap firstsight",
        form="jobs_profile",
    )
    backend: str = text(
        "",
        "local, or a kind of job on a cluster, such as pytorchjob; docs/ARCHITECTURE.md lists them",
        otherwise="the profile's, else local",
    )
    nodes: int | None = number(
        None,
        "number of machines for the contrastive job",
        otherwise="the profile's, else 1",
        rule=f"between 1 and {MAX_NODES}",
        ok=lambda value: 1 <= value <= MAX_NODES,
        form="jobs_nodes",
    )
    gpus_per_node: int | None = number(
        None,
        "GPUs on each machine, with one process per GPU; 0: CPU",
        otherwise="the profile's",
        rule=f"between 0 and {MAX_GPUS_PER_NODE}",
        ok=lambda value: 0 <= value <= MAX_GPUS_PER_NODE,
    )
    image: str = text(
        "",
        "the trainer's image, with tag or digest",
        otherwise="the profile's",
        rule="the name of an image",
        ok=lambda value: bool(re.fullmatch(_IMAGE, value)),
    )
    queue: str = text(
        "",
        "the queue that admits the jobs, such as a Kueue LocalQueue",
        otherwise="the profile's",
        rule="a name of at most 63 letters, digits, '.', '_' and '-'",
        ok=lambda value: bool(re.fullmatch(_LABEL_VALUE, value)),
    )
    parallel_cells: int | None = number(
        None,
        "cells that run at the same time; 0: all are submitted to the queue, which admits them; with backend local, always one at a time",
        otherwise="the profile's, else 1",
        rule=f"between 0 and {MAX_PARALLEL_CELLS}",
        ok=lambda value: 0 <= value <= MAX_PARALLEL_CELLS,
        form="jobs_parallel_cells",
        introduced=None,
    )
    resume: str = text(
        "auto",
        "auto (from the last checkpoint), never (start over), or the URI of a checkpoint",
        rule="auto, never or a checkpoint's URI",
        ok=lambda value: value in ("auto", "never") or "/" in value,
    )
    placement: Mapping[str, Any] = settings(Placement, "how a stage runs, such as loader_workers=8; see docs/REQUEST.md")
    representation: Mapping[str, Any] = settings(
        RepresentationConfig, "layers, RDMs and probes, such as probes=[all]; see docs/EVALUATION.md", introduced={}
    )

    def __post_init__(self) -> None:
        """Check every rule that needs neither a profile nor a store."""
        for item in FIELDS.values():
            value = getattr(self, item.name)
            if item.metadata["ok"] is not None and value not in (None, ""):
                require(item.name, value, item.metadata["rule"], item.metadata["ok"](value))
        if self.experiment:
            layout.check_name("experiment", self.experiment)
        check_root(self.root)
        if self.profile and "/" in self.profile:
            one_line("profile", self.profile)

    @property
    def all_arms(self) -> tuple[Arm, ...]:
        """Its arms. Raises InputError if one is unknown or repeated."""
        return parse_arms(",".join(self.arms))

    @property
    def all_seeds(self) -> tuple[int, ...]:
        """Its seeds. Raises InputError if one is not a whole number, or repeated."""
        return parse_seeds(",".join(self.seeds))

    @property
    def cells(self) -> list[str]:
        """The names of the requested cells in the order in which they are planned; needs a resolved request if it varies its recipe."""
        if not self.vary:
            return [layout.cell_name(arm.name, seed) for seed in self.all_seeds for arm in self.all_arms]
        from pipelines.planning.points import Points  # here: slow to import

        return [layout.cell_name(one.arm.name, one.seed, one.point) for one in Points(self).cells()]

    def load_recipe(self) -> Recipe:
        """The recipe with the changes of `set` applied.

        Raises:
            InputError: an unknown recipe or key, a wrong type, a broken rule.
        """
        from trainer.storage.recipes import read_recipe  # here: a step that is done has no use for YAML

        return read_recipe(self.recipe, self.set)

    def stored(self) -> dict[str, Any]:
        """Every parameter as in a request file, including defaults, so that a later change of a default does not affect stored requests."""
        values = {name: getattr(self, name) for name in FIELDS}
        plain = {name: list(value) if isinstance(value, tuple) else value for name, value in values.items()}
        return {**plain, "vary": listed(self.vary)}

    @property
    def id(self) -> str:
        """Equal for equal requests: 16 hex digits of a SHA-256 over every parameter.

        A parameter added by a later version is left out while it has the value that its metadata gives as `introduced`.
        """
        said = {name: value for name, value in self.stored().items() if name not in INTRODUCED or value != INTRODUCED[name]}
        return canonical_hash(said)[:16]


FIELDS: dict[str, "dataclasses.Field[Any]"] = {item.name: item for item in dataclasses.fields(Request)}
INTRODUCED = {name: item.metadata["introduced"] for name, item in FIELDS.items() if "introduced" in item.metadata}
"""By name, the value of a parameter in stored requests that were written before it was added."""


def merge(source: str, given: Mapping[str, Any]) -> Request:
    """A request file merged with other given parameters, which override it; `set` and `placement` are merged key by key.

    Args:
        source: path or URI of a YAML file, the YAML itself, or empty.
        given: parameters by name, as text or as YAML values; an empty text or None is not given.

    Raises:
        InputError: one line that names file, key, rule and the nearest valid key; nothing was written.
    """
    values = _read_source(source) if source.strip() else {}
    for name, value in given.items():
        if value is None or value == "":
            continue
        parsed = parse(FIELDS[name], value, name)
        values[name] = {**values.get(name, {}), **parsed} if FIELDS[name].metadata["kind"] == "settings" else parsed
    for name, value in values.items():
        require_inert(name, value)
    return _with_own_parameters(values)


def write_request(request: Request, root: str) -> str:
    """Store a resolved request under its experiment. Returns its URI, from which `read_request` derives root and experiment."""
    uri = layout.request(layout.experiment(root, request.experiment), request.id)
    write_document(uri, {"format_version": STORED_VERSION, **request.stored()})
    return uri


def root_given(source: str, root: str) -> str:
    """The root given as a parameter or else in the request; empty if there is none, or if the request cannot be read."""
    if root.strip() or not source.strip():
        return root.strip()
    try:
        return merge(source, {}).root
    except InputError:
        return ""


def read_request(uri: str) -> Request:
    """A stored request.

    Raises:
        InputError: there is none, or a newer firstsight wrote it.
        Corrupt: it was damaged, or replaced by another request.
    """
    values = read_document(uri, "a stored request", STORED_VERSION, checked_from=2)
    if values is None:
        raise InputError(f"request {uri}: not found: start the run again; its first step writes the request")
    del values["format_version"]
    with located(uri):
        earlier = {name: parse(FIELDS[name], value, name) for name, value in INTRODUCED.items() if value is not None}
        request = _with_own_parameters({**earlier, **_parsed(values, uri)})
    if request.parallel_cells == 1 and f"/{request.id}.json" != uri[uri.rfind("/") :]:
        request = dataclasses.replace(request, parallel_cells=None)  # 1 was the default for a while, and meant that it was not given
    if f"/{request.id}.json" != uri[uri.rfind("/") :]:
        raise Corrupt(f"{uri}: contains request {request.id}: it was damaged or changed by hand; start the run again to rewrite it")
    return request


def _read_source(source: str) -> dict[str, Any]:
    from trainer.configs import load_yaml  # here: slow to import

    if is_inline(source):
        return _checked(_parsed(load_yaml(source, "request"), "request"), "request")
    one_line("request", source)
    try:
        body = read_text(absolute(source))
    except MissingObject as error:
        raise InputError(f"request {source}: no such file") from error
    return _checked(_parsed(load_yaml(body, source), source), source)


def is_inline(source: str) -> bool:
    """Whether a request is given as inline YAML rather than as a path or URI."""
    return "\n" in source.strip() or bool(re.match(r"\s*([-\[{]|\w+\s*:(\s|$))", source))


def _checked(values: dict[str, Any], source: str) -> dict[str, Any]:
    """A user's request after checking that its recipe and settings have only known keys; stored requests were checked when written.

    Only the values of `set` are checked later, against the recipe, which may be in another file.
    """
    from trainer.configs import check_keys, parse_config
    from trainer.storage.recipes import read_recipe

    for key, of in (("set", Recipe), ("placement", Placement), ("representation", RepresentationConfig)):
        check_keys(of, values.get(key, {}), f"{source}: {key}")
    if isinstance(values.get("recipe"), dict):
        read_recipe(values["recipe"], source=f"{source}: recipe")
    with located(source):
        alone = _with_own_parameters(values)
        parse_config(Placement, alone.placement, source="placement")
        parse_config(RepresentationConfig, alone.representation, source="representation")
        alone.all_arms, alone.all_seeds  # noqa: B018 (refuses a wrong arm or seed)
        check_axes(alone.vary)
    return values


def _parsed(values: Any, source: str) -> dict[str, Any]:
    """The parsed values of a request file; a stored request begins with `format_version`."""
    require(source, type(values).__name__, "a mapping of parameters", isinstance(values, dict))
    values = dict(values)
    version = values.pop("format_version", FORMAT_VERSION)
    whole = isinstance(version, int) and not isinstance(version, bool) and version >= 1
    require(f"{source}: format_version", version, f"a whole number from 1 to {FORMAT_VERSION}", whole)
    if version > FORMAT_VERSION:
        raise InputError(f"{source}: format_version {version} was written by a newer firstsight; this one reads {FORMAT_VERSION}")
    for unknown in (key for key in values if key not in FIELDS):
        near = difflib.get_close_matches(str(unknown), FIELDS, 1, 0.5)
        hint = f"did you mean {near[0]}?" if near else f"one of {', '.join(FIELDS)}"
        raise InputError(f"{source}: {unknown} is not a parameter of a request: {hint}")
    return {key: parse(FIELDS[key], value, f"{source}: {key}") for key, value in values.items() if value is not None}


def _with_own_parameters(values: dict[str, Any]) -> Request:
    """The request, with nodes, processes and resume moved from `placement` to their own parameters."""
    placement = dict(values.get("placement", {}))
    for key in LAUNCHERS_OWN:
        if key in placement:
            raise InputError(f"placement.{key} is set only by the launcher: remove it")
    for key, name in OWN_PARAMETER.items():
        if key in placement and key != "processes_per_node":
            value = parse(FIELDS[name], placement.pop(key), f"placement.{key}")
            if name in values and values[name] != value:
                raise InputError(
                    f"{name} is {values[name]}, and placement.{key} is {value}: they mean the same thing: give only one of them"
                )
            values = {**values, name: value}
    gpus, processes = values.get("gpus_per_node"), placement.get("processes_per_node")
    if gpus and processes is not None and processes != gpus:
        raise InputError(f"gpus_per_node is {gpus}, and placement.processes_per_node is {processes}: there is one process for each GPU")
    return Request(**(values | {"placement": placement} if "placement" in values else values))
