"""Layouts as the libraries that they belong to write them, staged and trained on; staging reads what those libraries read."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.reference import REQUIREMENTS, run_reference
from tests.run.build import placed
from tests.staging.conftest import facts, samples
from trainer.config import DataConfig, StageConfig
from trainer.configs import load_recipe
from trainer.run.loop import train
from trainer.storage import layout
from trainer.storage.committed import read_committed
from trainer.storage.manifest import Manifest

WRITE = '''
import json, sys
from pathlib import Path
import datasets
from PIL import Image
from pycocotools.coco import COCO

root, found = Path(sys.argv[1]), {}
COUNT = 12
captions = [f'a "picture", number {n}; of a caf\\u00e9\\twith | bars' for n in range(COUNT)]

def paint(place, n):
    place.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (16, 12), (20 * n, 255 - 20 * n, 7 * n)).save(place)
    return place

def read(folder, column):
    """What the library itself reads: file -> caption, label, split."""
    rows = {}
    for split, part in datasets.load_dataset("imagefolder", data_dir=str(folder), cache_dir=str(root / "cache")).items():
        names = part.features["label"].names if "label" in part.features else None
        for row in part.cast_column("image", datasets.Image(decode=False)):
            name = str(Path(row["image"]["path"]).relative_to(folder))
            label = names[row["label"]] if names else ""
            rows[name] = [row[column] if column else label, label, split]
    return rows

for kind in ("csv", "jsonl", "parquet"):
    folder = root / f"imagefolder-{kind}"
    names = [paint(folder / f"{n:03d}.png", n).name for n in range(COUNT)]
    column = "caption" if kind == "parquet" else "text"
    table = datasets.Dataset.from_dict({"file_name": names, column: captions})
    getattr(table, {"csv": "to_csv", "jsonl": "to_json", "parquet": "to_parquet"}[kind])(str(folder / f"metadata.{kind}"))
    found[folder.name] = {name: [caption, "", ""] for name, (caption, _, _) in read(folder, column).items()}

folder = root / "imagefolder-splits"
for split, numbers in (("train", range(8)), ("test", range(8, COUNT))):
    names = [paint(folder / split / f"{n:03d}.png", n).name for n in numbers]
    datasets.Dataset.from_dict({"file_name": names, "text": [captions[n] for n in numbers]}).to_csv(str(folder / split / "metadata.csv"))
found[folder.name] = read(folder, "text")

folder = root / "imagefolder-classes"
for n in range(COUNT):
    paint(folder / ("train" if n < 8 else "test") / ("cat", "dog")[n % 2] / f"{n:03d}.png", n)
found[folder.name] = read(folder, "")

folder = root / "coco"
names = [paint(folder / "train2017" / f"{n:012d}.png", n).name for n in range(COUNT)]
images = [{"id": 7 * n, "file_name": name, "width": 16, "height": 12} for n, name in enumerate(names)]
texts = [{"id": 3 * n + k, "image_id": 7 * n, "caption": f"{captions[n]} {k}"} for k in range(2) for n in range(COUNT)]
place = folder / "annotations" / "captions_train2017.json"
place.parent.mkdir()
place.write_text(json.dumps({"info": {}, "licenses": [], "images": images, "annotations": texts}))
coco = COCO(str(place))
found[folder.name] = {
    f"train2017/{image['file_name']}": ["/".join(one["caption"] for one in coco.imgToAnns[image["id"]]), "", ""]
    for image in coco.imgs.values()
}
print("FOUND" + json.dumps(found))
'''
LAYOUTS = ("imagefolder-csv", "imagefolder-jsonl", "imagefolder-parquet", "imagefolder-splits", "imagefolder-classes", "coco")


@pytest.mark.slow
def test_what_other_libraries_write(tmp_path: Path, stage: Callable[..., tuple[str, Manifest]]) -> None:
    """`datasets` and pycocotools write their own layouts; each staged sample has the captions, label and split that they read back.

    One step of training takes each set as it was staged.
    """
    (tmp_path / "write.py").write_text(WRITE)
    output = run_reference("write.py", tmp_path, cwd=tmp_path, requirements=REQUIREMENTS.with_name("layouts.txt"))
    found = json.loads(next(line for line in output.splitlines() if line.startswith("FOUND")).removeprefix("FOUND"))
    assert found.keys() == set(LAYOUTS)
    for name, expected in found.items():
        uri, manifest = stage(tmp_path / name)
        split_of = {key: split for split in ("train", "test") for key in keys(uri, manifest, split)}
        named = any(split for _, _, split in expected.values())
        staged = {
            said["source"]: ["/".join(said["captions"]), said.get("label", ""), split_of[key] if named else ""]
            for key, members in samples(uri, manifest).items()
            for said in (facts(members),)
        }
        assert staged == {place: [" ".join(text.splitlines()), *rest] for place, (text, *rest) in expected.items()}
        assert manifest.rows == {"read": 12, "written": 12, "lost": {}}
        assert loss_of_a_step(tmp_path / "cells" / name, uri, manifest) > 0


def loss_of_a_step(folder: Path, uri: str, manifest: Manifest) -> float:
    """The loss of one step of the smoke recipe's contrastive stage, on one batch of the data set; its model is sealed."""
    recipe = load_recipe("smoke", ["contrastive.global_batch_size=8", "contrastive.contrast_batch_size=8"])
    config = StageConfig(
        stage="contrastive", experiment="layouts", arm="random", output=str(folder), model=recipe.model, contrastive=recipe.contrastive,
        data=DataConfig(uri=uri, identity=manifest.identity), placement=placed(),
    )  # fmt: skip
    train(config)
    seal = read_committed(layout.final(config.output))
    assert seal is not None
    assert seal.step == 1
    records = [json.loads(line) for line in (folder / "progress.jsonl").read_text().splitlines()]
    (loss,) = [record["loss"] for record in records if "loss" in record]
    return float(loss)


def keys(uri: str, manifest: Manifest, split: str) -> list[str]:
    """Of the samples of one split."""
    from trainer.staging.shards import read_shard

    return [key for shard in manifest.split(split) for key, _ in read_shard(uri, shard)]
