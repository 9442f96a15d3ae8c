"""The real packages of the field, in an environment of their own: img2dataset writes what we read, open_clip reads what we write."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.reference import reference_python, run_reference
from tests.staging.conftest import photo_folder, picture, samples
from tests.staging.remote.web import web_server
from trainer.storage.manifest import Manifest
from trainer.storage.samples import read_index

pytestmark = pytest.mark.slow

Stage = Callable[..., tuple[str, Manifest]]

OPEN_CLIP_LOADER = """
import json, sys
from argparse import Namespace
from functools import partial
import open_clip
import open_clip_train.data
from open_clip.transform import image_transform
from open_clip_train.data import get_wds_dataset

# open_clip's trainer asks for webdataset <= 0.2.86; newer ones mark the end of each tar by a value that it takes for a file.
open_clip_train.data.tar_file_expander = partial(open_clip_train.data.tar_file_expander, eof_value=None)

shards, num_samples, batch_size = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
args = Namespace(
    train_data=shards, val_data=shards, train_num_samples=num_samples, val_num_samples=num_samples, dataset_resampled=False,
    train_data_upsampling_factors=None, seed=0, workers=1, world_size=1, batch_size=batch_size,
)
tokenizer = open_clip.get_tokenizer("ViT-B-32")
found = {}
for name in ("train", "val"):
    loader = get_wds_dataset(args, image_transform(32, is_train=name == "train"), name == "train", tokenizer=tokenizer).dataloader
    batches = list(loader)
    found[name] = {
        "num_batches": loader.num_batches,
        "shapes": [list(images.shape) for images, _ in batches],
        "tokens": [[token for token in row if token] for _, tokens in batches for row in tokens.tolist()],
    }
print("FOUND" + json.dumps(found))
"""


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


def test_what_open_clips_trainer_reads(tmp_path: Path, stage: Stage) -> None:
    """open_clip's own loader makes full batches of our shards, and of each caption the very tokens that were staged."""
    photos = photo_folder(tmp_path / "photos", 20, "jpg")
    for path in photos.glob("*.txt"):
        path.write_text(path.read_text(encoding="utf-8").splitlines()[0], encoding="utf-8")
    uri, manifest = stage(photos)
    shards = manifest.split("train")
    count = sum(shard.num_samples for shard in shards)
    assert (count, len(shards)) == (16, 1)
    (tmp_path / "read.py").write_text(OPEN_CLIP_LOADER)
    output = run_reference("read.py", f"{uri}/{shards[0].name}", str(count), "4", cwd=tmp_path)
    found = json.loads(next(line for line in output.splitlines() if line.startswith("FOUND")).removeprefix("FOUND"))
    index = read_index(uri, shards[0])
    staged = [index.captions(row)[0].tolist() for row in range(count)]
    assert found["train"]["num_batches"] == 4
    assert found["train"]["shapes"] == found["val"]["shapes"] == [[4, 3, 32, 32]] * 4
    assert found["val"]["tokens"] == staged
    assert sorted(found["train"]["tokens"]) == sorted(staged)
