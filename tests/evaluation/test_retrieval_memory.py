"""Retrieval of 50,000 by 50,000 must not hold its 10 GB of scores: a smaller one in a process of its own, whose peak is looked at."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

MEASURE = """
import json, torch
from tests.peak import peak_bytes
from trainer.evaluation import retrieval

retrieval.TILE_BYTES = 8 << 20
count = 8000
features = torch.nn.functional.normalize(torch.randn(count, 16, generator=torch.Generator().manual_seed(0)), dim=1)
owner = torch.arange(count)

def ranks(rows):
    retrieval.image_ranks(features, features[:rows], owner[:rows], top=5)
    retrieval.text_ranks(features[:rows], features, owner % rows)

ranks(200)
before = peak_bytes()
ranks(count)
print(json.dumps({"added": peak_bytes() - before, "tile": retrieval.TILE_BYTES, "matrix": 4 * count * count}))
"""


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_memory_is_that_of_a_few_tiles_whatever_the_size():
    """Less than eight tiles come on top (scores, masks, the copy that lists the first five), a quarter of the whole matrix.

    The full size was measured once: 50,000 x 50,000 of 512 dimensions add 300 MiB to the process (matrix: 9.3 GiB).
    """
    exact = {**os.environ, "MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_ARENA_MAX": "1"}  # freed memory goes back at once
    done = subprocess.run(
        [sys.executable, "-c", MEASURE], cwd=Path(__file__).parents[2], env=exact, check=True, capture_output=True, text=True, timeout=500
    )
    measured = json.loads(done.stdout)

    assert measured["added"] < 8 * measured["tile"] <= measured["matrix"] / 3
