"""Small sealed data sets and finished models, made in a test's own folder."""

import hashlib
import io
import json
from pathlib import Path

import numpy as np
from PIL import Image
from safetensors.torch import save_file

from trainer import lineage
from trainer.config import EvaluateConfig, ModelConfig, ModelToEvaluate, canonical_hash
from trainer.configs import dump_yaml
from trainer.model import towers
from trainer.staging.plans import Plan
from trainer.staging.writer import COLUMNS, SliceWriter, gather, seal
from trainer.storage import join, write_bytes
from trainer.storage.committed import Committed, write_committed
from trainer.storage.manifest import Manifest

MODEL = ModelConfig(
    image_size=16,
    patch_size=8,
    vision_layers=1,
    vision_width=16,
    vision_head_width=8,
    embed_dim=8,
    text_layers=1,
    text_width=16,
    text_heads=2,
)
CLASSES = ("red", "green", "blue")
TEMPLATES = ("a {c} thing.", "{c}")
LABELS = tuple(k % 3 for k in range(12))


def picture(seed: int, side: int = 20, suffix: str = "png") -> bytes:
    """A small picture of its own."""
    pixels = np.random.default_rng(seed).integers(0, 256, (side, side + 4, 3), np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "JPEG" if suffix == "jpg" else "PNG")
    return buffer.getvalue()


def sealed(folder: str, plan: Plan, samples: list, **seal_arguments) -> Manifest:
    """Write `samples` (split, key, members) as a data set, one slice a split."""
    for index, split in enumerate(plan.splits):
        with SliceWriter(folder, plan, index) as writer:
            for of_split, key, members in samples:
                if of_split == split:
                    writer.add(key, members)
    return seal(folder, plan, gather(folder, plan), **seal_arguments)


def classification_set(
    root: str,
    name: str = "colours",
    labels=LABELS,
    suffix: str = "png",
    pictures: list[bytes] | None = None,
    shard_samples: int = 5,
    train=(),
    **facts,
) -> tuple[str, Manifest]:
    """A set of three classes in CLIP_benchmark's layout, with our manifest; `train`: labels of its training split."""
    splits = ["test", "train"] if train else ["test"]
    content = {"labels": list(labels), "suffix": suffix} | ({"train": list(train)} if train else {})
    plan = _plan("evaluation", name, splits, "zeroshot_classification", content, shard_samples=shard_samples)
    folder = join(root, "datasets", name, plan.plan_id)
    images = pictures or [picture(k, suffix=suffix) for k in range(len(labels))]
    samples = [
        ("test", f"{name}-{k:04d}", {"image": (suffix, image), "cls": ("cls", str(label).encode())})
        for k, (label, image) in enumerate(zip(labels, images, strict=True))
    ]
    samples += [
        ("train", f"{name}-train-{k:04d}", {"image": (suffix, picture(900 + k, suffix=suffix)), "cls": ("cls", str(label).encode())})
        for k, label in enumerate(train)
    ]
    _write_prompts(folder)
    all_facts = {"task": "zeroshot_classification", "classnames": list(CLASSES), "templates": list(TEMPLATES), **facts}
    manifest = sealed(folder, plan, samples, facts=all_facts)
    _number_of_shards(folder, manifest)
    return folder, manifest


def multilabel_set(root: str) -> tuple[str, Manifest]:
    """A set whose images show one to three classes each."""
    plan = _plan("evaluation", "several", ["test"], "zeroshot_multilabel", {"num_items": 60})
    folder = join(root, "datasets", "several", plan.plan_id)
    samples = []
    for k in range(60):
        buffer = io.BytesIO()
        np.save(buffer, np.array([k % 2, k % 3 == 0, (k % 2 == 0) and (k % 3 != 0)], np.int64))
        samples.append(("test", f"several-{k:04d}", {"image": ("png", picture(k)), "npy": ("npy", buffer.getvalue())}))
    write_bytes(join(folder, "dataset_type.txt"), b"multilabel\n")
    _write_prompts(folder)
    facts = {"task": "zeroshot_classification", "classnames": list(CLASSES), "templates": list(TEMPLATES), "multilabel": True}
    manifest = sealed(folder, plan, samples, facts=facts)
    _number_of_shards(folder, manifest)
    return folder, manifest


def retrieval_set(root: str, captions=tuple((f"picture {k}", f"number {k} again") for k in range(11))) -> tuple[str, Manifest]:
    """A retrieval set with several captions an image."""
    plan = _plan("evaluation", "captions", ["test"], "zeroshot_retrieval", {"captions": [list(of) for of in captions]})
    folder = join(root, "datasets", "captions", plan.plan_id)
    members = [{"image": ("png", picture(k)), "txt": ("txt", "\n".join(of).encode())} for k, of in enumerate(captions)]
    samples = [("test", f"captions-{k:04d}", of) for k, of in enumerate(members)]
    write_bytes(join(folder, "dataset_type.txt"), b"retrieval\n")
    manifest = sealed(folder, plan, samples, facts={"task": "zeroshot_retrieval"})
    _number_of_shards(folder, manifest)
    return folder, manifest


def pairs_with(root: str, sets: list[tuple[str, Manifest]], labels=()) -> tuple[str, Manifest]:
    """A pairs data set that names `sets` as staged with it; `labels` of its training pictures, in words."""
    plan = _plan("pairs", "pairs", ["train"], "pairs", {"sets": [manifest.identity for _, manifest in sets]})
    folder = join(root, "datasets", "pairs", plan.plan_id)
    members = {"image": ("png", picture(1)), "txt": ("txt", b"a"), "json": ("json", b"{}")}
    labelled = [
        {"image": ("png", picture(700 + k)), "txt": ("txt", b"a"), "json": ("json", json.dumps({"label": label}).encode())}
        for k, label in enumerate(labels)
    ]
    labelled_samples = [("train", f"labelled-{k}", of) for k, of in enumerate(labelled)]
    entries = [
        {
            "name": manifest.name,
            "task": manifest.facts["task"],
            "uri": uri.removeprefix(root.rstrip("/") + "/"),
            "identity": manifest.identity,
        }
        for uri, manifest in sets
    ]
    return folder, sealed(folder, plan, [("train", "only", members), *labelled_samples], evaluation=entries)


def triplets_set(root: str, splits=("val", "test")) -> tuple[str, Manifest]:
    """Triplets of two splits; the vote is for image 1 in every other one, and pixel MSE is always for image 1."""
    plan = _plan("triplets", "triplets", list(splits), "triplets", {"num_each": 4}, judge="FLIP")
    folder = join(root, "datasets", "triplets", plan.plan_id)
    samples = []
    for split in splits:
        for k in range(4):
            facts = {
                "id": k,
                "target": float(k % 2),
                "is_imagenet": k < 2,
                "split": split,
                "mse_0": 2.0,
                "mse_1": 1.0,
                "reference": f"r{k // 2}",
            }
            images = {f"{which}.png": (f"{which}.png", picture(100 * k + j, 16)) for j, which in enumerate(("ref", "0", "1"))}
            samples.append((split, f"{split}-{k}", {**images, "json": ("json", json.dumps(facts).encode())}))
    return folder, sealed(folder, plan, samples)


def finished(folder: str, seed: int, tower: bool = False, model_config: ModelConfig = MODEL, step: int = 10) -> str:
    """A sealed final/ in `folder`; its recipe hash is returned."""
    model = towers.build_model(model_config, seed)
    place = Path(folder) / "final"
    place.mkdir(parents=True)
    if tower:
        state = towers.vision_state(model)
        save_file(state, place / "vision.safetensors")
        facts = {"vision_sha256": lineage.weights_sha256({k: v.numpy() for k, v in state.items()})}
    else:
        towers.save_open_clip(place, model, model_config)
        facts = {"weights_sha256": lineage.weights_sha256({k: v.numpy() for k, v in towers.model_state(model).items()})}
    files = {path.name: {"size": path.stat().st_size, "sha256": hashlib.sha256(path.read_bytes()).hexdigest()} for path in place.iterdir()}
    recipe_hash = canonical_hash(["test", seed, tower])
    write_committed(str(place), Committed(recipe_hash=recipe_hash, attempt=0, step=step, files=files, facts=facts))
    return recipe_hash


def checkpoint(folder: str, seed: int, step: int, kept: bool, recipe_hash: str, old: bool = False) -> None:
    """Sealed weights as the loop leaves them: a checkpoint, or kept by epoch; `old`: as firstsight 0.1.0 kept them."""
    place = Path(folder) / ("trajectory" if kept and not old else "checkpoints") / f"step-{step:09d}"
    place.mkdir(parents=True)
    save_file(towers.model_state(towers.build_model(MODEL, seed)), place / "model.safetensors")
    data = (place / "model.safetensors").read_bytes()
    files = {"model.safetensors": {"size": len(data), "sha256": hashlib.sha256(data).hexdigest()}}
    write_committed(str(place), Committed(recipe_hash=recipe_hash, attempt=0, step=step, files=files, facts={"kept": kept} if old else {}))


def config_at(root: str, **fields) -> str:
    """Write an evaluation's configuration; its URI."""
    config = EvaluateConfig(experiment="test", arm="random", output=join(root, "evaluation"), model=MODEL, **fields)
    uri = join(root, "evaluation", "config.yaml")
    write_bytes(uri, dump_yaml(config).encode())
    return uri


def asked(stage: str, uri: str = "", recipe_hash: str = "", checkpoints: str = "") -> ModelToEvaluate:
    """A model to evaluate."""
    return ModelToEvaluate(stage=stage, uri=uri, recipe_hash=recipe_hash, checkpoints=checkpoints)


def one_of_each(root: str) -> tuple[ModelToEvaluate, ...]:
    """A model of each stage, to evaluate."""
    tower, contrastive = finished(f"{root}/tower", seed=1, tower=True), finished(f"{root}/contrastive", seed=2)
    return asked("untrained"), asked("perceptual", f"{root}/tower", tower), asked("contrastive", f"{root}/contrastive", contrastive)


def _plan(kind: str, name: str, splits: list[str], columns: str, content: dict, judge: str = "", shard_samples: int = 5) -> Plan:
    assert columns in COLUMNS
    source = {"uri": "test", "fingerprint": content}
    return Plan(
        kind=kind, name=name, source=source, options={}, shard_samples=shard_samples,
        splits=splits, rows_read=1, columns=columns, judge=judge,
    )  # fmt: skip


def _number_of_shards(folder: str, manifest: Manifest) -> None:
    write_bytes(join(folder, "test", "nshards.txt"), str(len(manifest.split("test"))).encode())


def _write_prompts(folder: str) -> None:
    write_bytes(join(folder, "classnames.txt"), "\n".join(CLASSES).encode() + b"\n")
    write_bytes(join(folder, "zeroshot_classification_templates.txt"), "\n".join(TEMPLATES).encode() + b"\n")
