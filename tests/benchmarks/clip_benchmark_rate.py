"""Runs in the reference environment: images per CPU-second of clip-benchmark's own evaluation, start-up and loading left out.

python clip_benchmark_rate.py <set folder> <final folder> <images> <rounds>
"""

import contextlib
import json
import sys
import time

import torch
from clip_benchmark.datasets.builder import build_dataset
from clip_benchmark.metrics import zeroshot_classification
from clip_benchmark.models import load_clip


def main(folder: str, model_folder: str, num_images: int, rounds: int) -> list[float]:
    """Rates of `rounds` evaluations after one warm-up; in one process and one thread, as ours, without autocast."""
    torch.set_num_threads(1)
    model, transform, tokenizer = load_clip("open_clip", f"local-dir:{model_folder}", "", None, "cpu")
    model.eval()
    rates = []
    for _ in range(rounds + 1):
        dataset = build_dataset("wds/bench", root=folder, transform=transform, split="test", task="zeroshot_classification")
        loader = torch.utils.data.DataLoader(dataset.batched(64), batch_size=None, shuffle=False, num_workers=0)
        start = time.process_time()
        zeroshot_classification.evaluate(model, loader, tokenizer, dataset.classes, dataset.templates, "cpu", amp=False)
        rates.append(num_images / (time.process_time() - start))
    return rates[1:]


if __name__ == "__main__":
    with contextlib.redirect_stdout(sys.stderr):
        result = main(sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4]))
    print(json.dumps(result))
