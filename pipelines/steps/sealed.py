"""Find data that were staged before and are intact, without a job; used by the step `stage` and by a run that checks if all is done.

sealed.json, in the folder of the staging jobs, records what was requested, the state of its source, and the resulting data set. If the
request and the source are the same and the data set is intact, there is nothing to stage.
"""

import contextlib
import dataclasses
import os
from collections.abc import Iterator, Mapping
from typing import Any

from pipelines.planning.sources import described_sources
from trainer.config import DataConfig, canonical_hash
from trainer.errors import Corrupt, InputError
from trainer.storage import checked, join, open_store
from trainer.storage.base import MissingObject, exists, local_path, read_json
from trainer.storage.documents import read_document, write_document
from trainer.storage.manifest import Manifest, as_data, require_manifest, staged_sets, where_it_lies
from trainer.storage.plans import is_data, read_plan

NAME = "sealed.json"
FORMAT_VERSION = 1


def find_sealed(folder: str, asked: Any, sources: tuple[str, ...], pinned: DataConfig) -> tuple[str, list[str]]:
    """The data set that an earlier run staged for the same request.

    Args:
        folder: folder of the staging jobs.
        asked: what is to be staged, as a dataclass.
        sources: sources from which it is built.
        pinned: the data set that the experiment's plan names; without a URI it names none.

    Returns:
        Its URI, empty if it has to be staged (again); and the damaged files, one per line.

    Raises:
        InputError: a newer firstsight wrote the data set.
        RunError: the store failed.
    """
    uri = join(folder, NAME)
    try:
        record = read_document(uri, "a record of staging", FORMAT_VERSION)
    except Corrupt as error:
        return "", [f"{error}; reading the source again"]
    looks = _looks(sources)
    if record is None or not looks or str(record.get("asked")) not in _keys(asked, record) or record.get("source") != looks:
        return "", []
    if not is_data(record):
        return "", [f"{uri}: not a firstsight staging record; reading the source again"]
    found = _data({**record, "uri": where_it_lies(folder.rpartition("/staging/")[0], record["uri"])})
    damaged = [line for one in dict.fromkeys((found, pinned)) if one.uri for line in find_damage(one)]
    return ("" if damaged or pinned.uri not in ("", found.uri) else found.uri), damaged


def record_sealed(folder: str, asked: Any, sources: tuple[str, ...], data: str) -> None:
    """Record which data set was staged, unless the state of its sources cannot be determined without reading them."""
    looks = _looks(sources)
    if looks:
        found = as_data(data)
        values = {"asked": _key(asked), "source": looks, **dataclasses.asdict(found)}
        write_document(join(folder, NAME), {"format_version": FORMAT_VERSION, **values})


def find_damage(data: DataConfig) -> list[str]:
    """The files of a data set, and of the evaluation sets staged with it, that differ from the seal, one per line.

    Files that changed since the data set was last hashed are hashed. If it was never hashed (its folder has no record of a check), only
    sizes are compared here, and the bytes when they are read.
    """
    try:
        manifest = require_manifest(data.uri, data.identity, data.manifest_sha256)
        parts = staged_sets(data.uri, manifest, data.evaluation_sha256)
        return [*_files(data.uri, manifest), *(line for part in parts for line in find_damage(part))]
    except (InputError, Corrupt) as error:
        return [str(error)]


def _files(folder: str, manifest: Manifest) -> Iterator[str]:
    files = manifest.all_files
    if exists(join(folder, checked.NAME)):
        damaged = checked.find_damaged(folder, files)
    else:
        damaged = checked.find_missized(folder, files)
    return (f"{join(folder, name)}: {why}" for name, why in damaged.items())


def pinned_data(experiment_uri: str, what: str) -> DataConfig:
    """The data set that the experiment's plan names; without a URI if there is no readable plan."""
    try:
        plan = read_plan(experiment_uri) or {}
    except Corrupt:
        return DataConfig()
    return _data(plan.get(what, {}))


def staged_data(experiment_uri: str, what: str) -> str:
    """The data set of an experiment, from its plan or, if that is unreadable, from its staging jobs; empty: not known."""
    pinned = pinned_data(experiment_uri, what)
    places = [join(experiment_uri, "staging", what, name) for name in (NAME, "seal.json", "result.json")]
    return next((uri for uri in (pinned.uri, *(_named_in(experiment_uri, place) for place in places)) if uri), "")


def _named_in(experiment_uri: str, uri: str) -> str:
    with contextlib.suppress(MissingObject, Corrupt, ValueError):
        value = read_json(uri)
        return where_it_lies(experiment_uri, str(value["uri"])) if is_data(value) else ""
    return ""


def _data(values: Mapping[str, Any]) -> DataConfig:
    texts = {name: values.get(name, "") for name in ("uri", "identity", "manifest_sha256")}
    return DataConfig(**texts, evaluation_sha256=tuple(values.get("evaluation_sha256", ())))


def _key(asked: Any) -> str:
    return canonical_hash(dataclasses.asdict(asked))


def _keys(asked: Any, record: Mapping[str, Any]) -> set[str]:
    """Possible keys of a record of the same request: its key here, and in the root where it was staged, if it was copied from there."""
    root = str(record.get("uri", "")).rsplit("/", 3)[0]
    return {_key(asked), *([_key(dataclasses.replace(asked, root=root))] if hasattr(asked, "root") else [])}


def _has_linked_folders(uri: str) -> bool:
    """Whether links lead out of a source on this machine: their targets are staged, but not listed by the store."""
    path = local_path(uri)
    walked = os.walk(path) if path is not None else ()
    return any(os.path.islink(os.path.join(place, name)) for place, folders, _ in walked for name in folders)


def _looks(sources: tuple[str, ...]) -> str:
    """A value that changes whenever the sources may have changed; empty if this cannot be determined without reading them."""
    parts = []
    for source in sources:
        for uri in described_sources(source):
            if uri[:8].lower().startswith(("http://", "https://")):
                return ""
            store = open_store(uri)
            info = store.head(uri) if "/" in uri.removeprefix("s3://").rstrip("/") else None
            if (info is not None and uri == source and not uri.endswith((".tar", ".zip", ".yaml", ".yml"))) or _has_linked_folders(uri):
                return ""
            found = list(store.list(uri)) if info is None else [info]
            if not found or not all(one.stamp for one in found):
                return ""
            parts += [[one.uri, one.size, one.stamp] for one in found]
    return canonical_hash(parts)
