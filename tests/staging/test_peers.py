"""The real packages of the field, in an environment of their own: img2dataset writes what we read, open_clip reads what we write."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.reference import reference_python, run_reference
from tests.staging.conftest import photo_folder, picture, samples
from tests.staging.remote.web import web_server
from trainer.config import Recipe
from trainer.configs import load_recipe
from trainer.staging.stage import stage_pairs
from trainer.storage.manifest import Manifest, require_manifest
from trainer.storage.samples import read_index

pytestmark = pytest.mark.slow

Stage = Callable[..., tuple[str, Manifest]]

OPEN_CLIP_LOADER = """
import json, sys
from argparse import Namespace
import open_clip
from open_clip.transform import image_transform
from open_clip_train.data import get_wds_dataset

shards, num_samples = sys.argv[1], int(sys.argv[2])
tokenizer = open_clip.get_tokenizer("ViT-B-32")
found = {}
for batch_size in (8, 10):
    args = Namespace(
        train_data=shards, val_data=shards, train_num_samples=num_samples, val_num_samples=num_samples, dataset_resampled=False,
        train_data_upsampling_factors=None, seed=0, workers=1, world_size=1, batch_size=batch_size,
    )
    for name in ("train", "val"):
        loader = get_wds_dataset(args, image_transform(32, is_train=name == "train"), name == "train", tokenizer=tokenizer).dataloader
        batches = list(loader)
        found[f"{name} by {batch_size}"] = {
            "num_batches": loader.num_batches,
            "shapes": [list(images.shape) for images, _ in batches],
            "tokens": [[token for token in row if token] for _, tokens in batches for row in tokens.tolist()],
        }
print("FOUND" + json.dumps(found))
"""
CAPTIONS = (
    "the one caption of picture {}\n",
    "picture {} &amp; its ‘quotes’, naïve café\nanother caption of {}\na third one of {}\n",
    "picture {} with " + "very " * 100 + "many words\nand a short caption of {}\n",
)
"""Captions of every third picture: one alone, several with what a tokenizer cleans, and one that is cut at 77 tokens."""


def test_what_img2dataset_wrote(tmp_path: Path, stage: Stage) -> None:
    """Every picture that img2dataset fetched becomes a sample with the bytes and the caption it has there; its failures are counted."""
    with web_server() as web:
        web.pages |= {f"/{number}.jpg": picture(number, (60, 45), "JPEG") for number in range(20)}
        web.pages["/3.jpg"] = lambda count: (404, {}, b"")
        web.pages["/7.jpg"] = b"<html>not here</html>"
        lines = "".join(f"{web.url}/{number}.jpg,picture number {number}\n" for number in range(20))
        (tmp_path / "list.csv").write_text(f"url,caption\n{lines}")
        script = reference_python().with_name("img2dataset")
        run_reference(
            script, "--url_list=list.csv", "--input_format=csv", "--url_col=url", "--caption_col=caption", "--output_folder=tars",
            "--output_format=webdataset", "--processes_count=1", "--thread_count=4", "--image_size=32", "--number_sample_per_shard=8",
            "--enable_wandb=False", cwd=tmp_path,
        )  # fmt: skip
    assert len(list((tmp_path / "tars").glob("*.tar"))) == 3
    uri, manifest = stage(tmp_path / "tars")
    assert manifest.rows == {"read": 20, "written": 18, "lost": {"not fetched by its maker": 2}}
    listed = [json.loads(line) for line in (Path(uri) / "rejects" / "plan.jsonl").read_text().splitlines()]
    assert sorted(reject["detail"] for reject in listed)[0] == "HTTP Error 404: Not Found"
    captions = {members[1].decode() for members in samples(uri, manifest).values()}
    assert captions == {f"picture number {number}" for number in range(20) if number not in (3, 7)}


@pytest.fixture(scope="module")
def open_clip_reads(tmp_path_factory: pytest.TempPathFactory, smoke: Recipe) -> tuple[list[list[int]], dict[str, Any]]:
    """Tokens of each training sample's first caption as they were staged, and what open_clip's own loader makes of the shards."""
    place = tmp_path_factory.mktemp("open_clip")
    photos = photo_folder(place / "photos", 60, "jpg")
    photo_folder(photos / "png", 60, "png")
    for number, path in enumerate(sorted(photos.rglob("*.txt"))):
        path.write_text(CAPTIONS[number % 3].replace("{}", str(number)), encoding="utf-8")
    recipe = load_recipe("smoke", ["staging.shard_samples=24"])
    uri, identity = stage_pairs(root=str(place / "root"), source=str(photos), recipe=recipe, max_reject_fraction=0.0)
    shards = require_manifest(uri, identity).split("train")
    assert [shard.num_samples for shard in shards] == [24] * 4
    indexes = [read_index(uri, shard) for shard in shards]
    staged = [index.captions(row)[0].tolist() for index in indexes for row in range(index.num_samples)]
    assert max(map(len, staged)) == 77
    (place / "read.py").write_text(OPEN_CLIP_LOADER)
    output = run_reference("read.py", f"{uri}/{{{','.join(shard.name for shard in shards)}}}", str(len(staged)), cwd=place)
    return staged, json.loads(next(line for line in output.splitlines() if line.startswith("FOUND")).removeprefix("FOUND"))


def test_open_clips_trainer_reads_the_first_captions(open_clip_reads: tuple[list[list[int]], dict[str, Any]]) -> None:
    """Over a full epoch its loader gives every sample once, with the very tokens that were staged of its first caption."""
    staged, found = open_clip_reads
    trained, validated = found["train by 8"], found["val by 8"]
    assert trained["num_batches"] == 12
    assert trained["shapes"] == validated["shapes"] == [[8, 3, 32, 32]] * 12
    assert validated["tokens"] == staged
    assert sorted(trained["tokens"]) == sorted(staged)


def test_open_clips_epoch_is_rounded_up(open_clip_reads: tuple[list[list[int]], dict[str, Any]]) -> None:
    """Where the batch does not divide the samples, its epoch repeats some (docs/RECIPES.md); ours leaves the rest out."""
    staged, found = open_clip_reads
    assert found["train by 10"]["num_batches"] == 10 == -(-len(staged) // 10)
    assert len(found["train by 10"]["tokens"]) == 100
