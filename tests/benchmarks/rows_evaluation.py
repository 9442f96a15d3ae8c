"""Row U: evaluation against clip-benchmark, and how the fast decoder changes the results."""

import io
import json
import statistics
from pathlib import Path

import numpy as np
import torch
from matplotlib import cbook
from PIL import Image

from tests.benchmarks.harness import Measured, cpu_rate, row
from tests.evaluation import build
from tests.reference import run_reference
from trainer.config import DataConfig, EvaluateConfig, EvaluationConfig, ModelConfig, Placement
from trainer.configs import load_recipe
from trainer.evaluation.jobs import find_jobs, find_models
from trainer.evaluation.measure import load_encoders, measure, measure_set
from trainer.evaluation.results import Outcome
from trainer.storage import join
from trainer.storage.arrays import read_arrays

NUM_IMAGES = 512
ROUNDS = 3
SIZE = (500, 375)
RATE = Path(__file__).with_name("clip_benchmark_rate.py")


def photographs(count: int) -> list[bytes]:
    """Crops of the photograph that matplotlib ships, rotated, scaled and colour-shifted: 500 x 375 JPEGs of quality 92, like YFCC's."""
    with cbook.get_sample_data("grace_hopper.jpg", asfileobj=True) as stream:
        photo = Image.open(stream).convert("RGB")
    generator = np.random.default_rng(0)
    result = []
    for _ in range(count):
        left, top = (int(generator.integers(0, side - 250)) for side in photo.size)
        crop = (
            photo.rotate(float(generator.uniform(-20, 20))).crop((left, top, left + 240, top + 180)).resize(SIZE, Image.Resampling.BICUBIC)
        )
        toned = np.clip(np.asarray(crop) * generator.uniform(0.6, 1.2, 3) + generator.normal(0, 3, (SIZE[1], SIZE[0], 3)), 0, 255)
        buffer = io.BytesIO()
        Image.fromarray(toned.astype(np.uint8)).save(buffer, "JPEG", quality=92)
        result.append(buffer.getvalue())
    return result


def evaluation(root: str, model: ModelConfig, decoder: str, recipe_hash: str, place: DataConfig) -> tuple[EvaluateConfig, list]:
    """The configuration that measures one model on the set, and its job."""
    config = EvaluateConfig(
        experiment="bench",
        arm="random",
        output=join(root, f"evaluation-{decoder}"),
        model=model,
        models=(build.asked("contrastive", f"{root}/contrastive", recipe_hash),),
        sets=(place,),
        evaluation=EvaluationConfig(decoder=decoder),
        placement=Placement(threads=1),
    )
    jobs, errors = find_jobs(config, find_models(config, config.models[0]))
    assert not errors
    return config, jobs


@row("U", what="evaluation of a zero-shot set, fast decoder against clip-benchmark", unit="images / CPU-s", target=2.0)
def zero_shot(folder: Path) -> Measured:
    """The demo's model on 500 x 375 JPEGs, both single-threaded and in float32; the tower's share of the time grows with the model."""
    root = str(folder)
    model = load_recipe("demo").model
    recipe_hash = build.finished(f"{root}/contrastive", seed=0, model_config=model)
    labels = tuple(k % 3 for k in range(NUM_IMAGES))
    uri, manifest = build.classification_set(root, "bench", labels, "jpg", photographs(NUM_IMAGES), shard_samples=256)
    place = DataConfig(uri=uri, identity=manifest.identity)
    config, jobs = evaluation(root, model, "fast", recipe_hash, place)

    encoders = load_encoders(config, [job.model for job in jobs], torch.device("cpu"), [])

    def ours() -> int:
        outcomes = [outcome for _, outcome in measure_set(config, jobs, encoders, 1, lambda count: None)]
        assert isinstance(outcomes[0], Outcome)
        return NUM_IMAGES

    torch.set_num_threads(1)
    rate = cpu_rate(ours)
    rate()
    own: list[float] = []
    peer: list[float] = []
    for _ in range(ROUNDS):  # alternating, although the peer runs in another process
        own.append(rate())
        peer += json.loads(run_reference(RATE, uri, f"{root}/contrastive/final", str(NUM_IMAGES), "1", cwd=folder).splitlines()[-1])
    exact, exact_jobs = evaluation(root, model, "exact", recipe_hash, place)
    for one, its_jobs in ((config, jobs), (exact, exact_jobs)):
        assert not measure(one, its_jobs).errors
    predictions = [read_arrays(job.wanted.items_uri)["prediction"] for job in (jobs[0], exact_jobs[0])]
    agreement = float((predictions[0] == predictions[1]).mean())
    note = (
        f"{NUM_IMAGES} JPEGs of 500 x 375, the demo's model (48 px), one thread and float32 on both sides, excluding start-up "
        f"and loading. The fast decoder's predictions agree with the exact one's on {agreement:.1%} (required: 99.5 %). "
        "The two alternate, each in its own process. A ViT-B/32 on a CPU spends nearly all of its time in the tower, "
        "where both run the same kernels."
    )
    assert agreement >= 0.995, f"the fast decoder changes {1 - agreement:.2%} of the predictions"
    return Measured(reference=statistics.median(peer), ours=statistics.median(own), note=note)
