"""Write trainer/configs/open_clip.json: the sizes of open_clip's ViTs by name, for rooms without torch. A test compares the two.

python scripts/open_clip_table.py
"""

import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

import open_clip

from trainer.config import ModelConfig
from trainer.errors import InputError
from trainer.model.towers import open_clip_config

TABLE = Path(__file__).parents[1] / "trainer" / "configs" / "open_clip.json"


def table() -> str:
    """The file's text: of each name that the trainer can build, a line of sizes."""
    rows = {}
    for name in sorted(open_clip.list_models()):
        try:
            found = open_clip_config(ModelConfig(open_clip_name=name))
        except InputError:
            continue
        rows[name] = _sizes(found)
    lines = [f"{json.dumps(name)}: {json.dumps(row)}" for name, row in rows.items()]
    return "{\n" + ",\n".join(lines) + "\n}\n"


def _sizes(found: Mapping[str, Any]) -> dict[str, Any]:
    vision, text = found["vision_cfg"], found["text_cfg"]
    return {
        "image_size": vision["image_size"],
        "patch_size": vision["patch_size"],
        "context_length": text.get("context_length", 77),
        "embed_dim": found["embed_dim"],
        "vision": _tower(vision),
        "text": _tower(text),
    }


def _tower(found: Mapping[str, Any]) -> dict[str, Any]:
    width = found["width"]
    return {
        "layers": found["layers"],
        "width": width,
        "mlp_width": int(width * found.get("mlp_ratio", 4.0)),
        "layer_scale": found.get("ls_init_value") is not None,
    }


if __name__ == "__main__":
    TABLE.write_text(table(), encoding="utf-8")
