"""Recipes and configurations in a store: recipes that users wrote, a job's config.yaml, and a stage's own records.

The first line of a config.yaml is a comment with the SHA-256 of everything below it. It is the first line, not the last, so that
a truncated file still has it. A file without it is accepted: users write such files, and so did early versions of firstsight.
"""

import hashlib
from collections.abc import Iterator, Mapping
from typing import Any

from trainer.config import Recipe, StageConfig, canonical_hash, differing_keys, recipe_fields, recipe_hash
from trainer.configs import Overrides, dump_yaml, inline_recipe, load_base, load_recipe, load_yaml, read_stored
from trainer.errors import Corrupt, InputError, RunError
from trainer.storage import layout
from trainer.storage.base import (
    MissingObject,
    absolute,
    decode,
    join,
    local_path,
    open_store,
    read_bytes,
    read_json,
    read_text,
    write_bytes,
)

_SHOWN = 6
_MARK = b"# sha256: "


def read_recipe(recipe: str | Mapping[str, Any], overrides: Overrides = (), *, source: str = "recipe") -> Recipe:
    """`trainer.configs.load_recipe` that reads YAML at URIs, those of `base:` too."""
    return load_recipe(recipe, overrides, read=_read, source=source)


def read_inline(recipe: str | Mapping[str, Any]) -> str | dict[str, Any]:
    """`trainer.configs.inline_recipe` that reads YAML at URIs: a recipe that can be stored without the files it names."""
    return inline_recipe(recipe, read=_read)


def read_base(recipe: str | Mapping[str, Any]) -> Recipe:
    """`trainer.configs.load_base` that reads YAML at URIs: what a plan compares the recipe with."""
    return load_base(recipe, read=_read)


def _read(uri: str) -> str:
    return read_text(absolute(uri))


def read_stage(uri: str, overrides: Overrides = ()) -> StageConfig:
    """A stage's config.yaml. InputError if it is not one; Corrupt if it was damaged; MissingObject if there is none."""
    return read_stored(StageConfig, read_config_values(uri), uri, overrides)


def read_config_values(uri: str) -> dict[str, Any]:
    """The values in the config.yaml of a job.

    Raises:
        InputError: it is not a mapping in YAML.
        Corrupt: its content is not that of the checksum in its first line, or it has no content.
    """
    data = read_bytes(uri)
    first, _, rest = data.partition(b"\n")
    if _MARK.removeprefix(b"# ") in first and first != _checksum_line(rest):
        raise Corrupt(
            f"{uri}: its content does not match the checksum in its first line: it was damaged, or edited by hand (in that case remove "
            "that line)"
        )
    if not rest.strip() and (first.startswith(b"#") or not first.strip()):
        raise Corrupt(f"{uri}: it has no content: it was cut short")
    return load_yaml(decode(uri, data), uri)


def config_bytes(config: Any) -> bytes:
    """A job's configuration as its config.yaml: a checksum, and the values."""
    text = dump_yaml(config).encode()
    return _checksum_line(text) + b"\n" + text


def write_config_file(uri: str, config: Any) -> None:
    """Write a job's config.yaml."""
    write_bytes(uri, config_bytes(config))


def restore_config(folder: str) -> str:
    """Restore the config.yaml of a stage from the copy in its final model or its newest checkpoint.

    Returns:
        The URI of the copy; empty if there is none that is intact, and nothing was written.
    """
    checkpoints = [info.uri for info in open_store(folder).list(join(folder, "checkpoints"))]
    kept = sorted((uri for uri in checkpoints if uri.endswith(f"/{layout.CONFIG}")), reverse=True)
    for uri in (layout.config(layout.final(folder)), *kept):
        try:
            data = read_bytes(uri)
            if data.startswith(_MARK) and is_of_folder(read_stage(uri), folder):
                write_bytes(layout.config(folder), data)
                return uri
        except (InputError, Corrupt):
            continue
    return ""


def is_of_folder(config: StageConfig, folder: str) -> bool:
    """Whether a stage's configuration is the one of this folder, however the folder is written."""
    here, there = local_path(folder), local_path(config.output)
    return folder.rstrip("/") == config.output.rstrip("/") if here is None or there is None else here.resolve() == there.resolve()


def _checksum_line(text: bytes) -> bytes:
    return _MARK + hashlib.sha256(text).hexdigest().encode()


def what_differs(folder: str, theirs: str, ours: StageConfig | str, planned_in: str = "") -> str:
    """The keys in which a stage folder's recipe differs from the requested one, as the end of an error message.

    Args:
        folder: of the stage.
        theirs: the recipe hash that its seal, job or checkpoint carries.
        ours: the configuration that is wanted, or its hash.
        planned_in: the folder that records `ours` where it is a hash; empty: `folder`.

    Returns:
        `: key: theirs -> ours; …`; if one of the two is not recorded anywhere, ` (…)` that says so.
    """
    planned_in = planned_in or folder
    before = find_fields(folder, theirs)
    after = recipe_fields(ours) if isinstance(ours, StageConfig) else find_fields(planned_in, ours)
    if before is not None and after is not None:
        return f": {shown(differing_keys(before, after))}"
    wanted = recipe_hash(ours) if isinstance(ours, StageConfig) else ours
    lost, place = (theirs, folder) if before is None else (wanted, planned_in)
    return (
        f" (recipe hash {theirs[:12] or 'none'} instead of {wanted[:12]}; which keys differ is unknown: no {layout.CONFIG}, "
        f"{layout.LINEAGE} or checkpoint in {place or 'an unnamed folder'} records recipe {lost[:12] or 'none'})"
    )


def shown(differing: Iterator[str] | list[str]) -> str:
    """Differing keys for one line: the first few, and how many more there are."""
    found = list(differing)
    more = f"; and {len(found) - _SHOWN} more" if len(found) > _SHOWN else ""
    return "; ".join(found[:_SHOWN]) + more


def find_fields(folder: str, wanted: str) -> dict[str, Any] | None:
    """The recipe fields with this hash, as the stage's folder records them; None if it does not.

    Fields are accepted only if they have this hash, wherever they were found.
    """
    return next((found for found in recorded_fields(folder) if canonical_hash(found) == wanted), None) if folder and wanted else None


def recorded_fields(folder: str) -> Iterator[dict[str, Any]]:
    """Every record of a recipe: the configuration, the lineage, each checkpoint's state. One that cannot be read is none."""
    try:
        yield recipe_fields(read_stage(layout.config(folder)))
    except (InputError, RunError, MissingObject):
        pass
    states = [info.uri for info in open_store(folder).list(join(folder, "checkpoints")) if info.uri.endswith("/state.json")]
    for uri in (layout.lineage(folder), *sorted(states, reverse=True)):
        try:
            value = read_json(uri)
        except (InputError, RunError, MissingObject):
            continue
        if isinstance(value, dict) and isinstance(value.get("recipe"), dict):
            yield value["recipe"]
