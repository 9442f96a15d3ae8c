"""`python -m tests.benchmarks.breakdown`: where a training step's time goes on a GPU, by kind of kernel, open_clip's and ours.

The table of docs/PERFORMANCE_NOTES.md. Kernels of one step do not overlap, so their times add up to the step.
"""

import sys
import time
from collections import Counter
from collections.abc import Callable

import torch
from torch.profiler import ProfilerActivity, profile

from tests.benchmarks.harness import machine
from tests.benchmarks.rows_steps_gpu import step

STEPS = 3
KINDS = {  # the first whose word is part of a kernel's name
    "attention": ("flash", "fmha", "attention"),
    "optimiser": ("adam", "multi_tensor"),
    "matrix products": ("gemm", "cutlass", "nvjet", "xmma", "splitk", "cublas", "conv", "wgrad"),
    "copies": ("memcpy", "memset"),
    "embedding, sorting, indexing": ("embedding", "sort", "radix", "index", "scatter", "gather", "scan"),
    "fused by the compiler": ("triton",),
    "other element-wise": ("",),
}


def milliseconds_by_kernel(one: Callable[[], None]) -> tuple[float, Counter[str]]:
    """Milliseconds of a step by the clock, and of each kernel in it."""
    one(), one()
    torch.cuda.synchronize()
    began = time.perf_counter()
    for _ in range(STEPS):
        one()
    torch.cuda.synchronize()
    wall = (time.perf_counter() - began) / STEPS * 1e3
    with profile(activities=[ProfilerActivity.CUDA]) as taken:
        for _ in range(STEPS):
            one()
        torch.cuda.synchronize()
    kernels: Counter[str] = Counter()
    for event in taken.key_averages():
        kernels[event.key] += event.self_device_time_total / 1e3 / STEPS
    return wall, kernels


def main() -> int:
    """Print a table for each step, and its longest kernels."""
    print(machine())
    for side in sys.argv[1:] or ("open_clip", "full", "short"):
        wall, kernels = milliseconds_by_kernel(step(side))
        kinds: Counter[str] = Counter()
        for name, taken in kernels.items():
            kinds[next(kind for kind, words in KINDS.items() if any(word in name.lower() for word in words))] += taken
        print(f"\n{side}: {wall:.1f} ms a step, kernels {sum(kinds.values()):.1f} ms", flush=True)
        for kind, taken in kinds.most_common():
            print(f"  {taken:8.2f} ms  {kind}")
        for name, taken in kernels.most_common(25):
            print(f"    {taken:8.2f} ms  {name[:150]}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
