"""Import open_clip's CLIP from only those files of its package that a plain CLIP needs.

`import open_clip` would import all of its models, and with them timm, torchvision and torch._dynamo: three CPU-seconds in each process.
Here its files are loaded as a package with another name, so that importing open_clip itself still works. The classes come from
the same source, so their weights have the same names.
"""

import importlib
import importlib.util
import json
import sys
import types
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from open_clip import CLIP
    from open_clip.constants import OPENAI_DATASET_MEAN, OPENAI_DATASET_STD

__all__ = ["CLIP", "OPENAI_DATASET_MEAN", "OPENAI_DATASET_STD", "model_config", "simple_tokenizer"]

_PACKAGE = "firstsight_open_clip"
_LEFT_OUT = ("timm", "transformers")
"""Optional dependencies of open_clip; a plain CLIP needs neither."""


def model_config(name: str) -> dict[str, Any] | None:
    """open_clip's own configuration of a model: embed_dim, vision_cfg, text_cfg; None if it has no model of that name."""
    for file in Path(sys.modules[_PACKAGE].__path__[0], "model_configs").glob("*.json"):
        if file.stem == name:
            found: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
            return found if found.keys() >= {"embed_dim", "vision_cfg", "text_cfg"} else None
    return None


def simple_tokenizer(context_length: int) -> Any:
    """open_clip's SimpleTokenizer, which takes half a second to read its merges."""
    with _without_the_rest():
        return importlib.import_module(f"{_PACKAGE}.tokenizer").SimpleTokenizer(context_length=context_length)


@contextmanager
def _without_the_rest() -> Iterator[None]:
    """Within this context, modules that open_clip imports for other models are missing or empty."""
    misc = types.ModuleType("torchvision.ops.misc")
    setattr(misc, "FrozenBatchNorm2d", object)  # noqa: B010  of ResNets, which are refused
    stand_ins: dict[str, Any] = dict.fromkeys(_LEFT_OUT)
    stand_ins |= {
        "torchvision": types.ModuleType("torchvision"),
        "torchvision.ops": types.ModuleType("torchvision.ops"),
        misc.__name__: misc,
    }
    absent = {name: module for name, module in stand_ins.items() if name not in sys.modules}
    sys.modules.update(absent)
    try:
        yield
    finally:
        for name in absent:
            sys.modules.pop(name, None)


def _import() -> None:
    spec = importlib.util.find_spec("open_clip")
    if spec is None or spec.submodule_search_locations is None:
        raise ModuleNotFoundError("open_clip_torch is not installed")
    package = types.ModuleType(_PACKAGE)
    package.__path__ = list(spec.submodule_search_locations)
    sys.modules[_PACKAGE] = package
    with _without_the_rest():
        for module, names in (("model", ("CLIP",)), ("constants", ("OPENAI_DATASET_MEAN", "OPENAI_DATASET_STD"))):
            found = importlib.import_module(f"{_PACKAGE}.{module}")
            globals().update({name: getattr(found, name) for name in names})


_import()
