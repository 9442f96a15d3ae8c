"""Features of a real model, and what other packages make of them.

real-features.npz holds, of 150 pictures of the demo's categories, the class token after the first block and the image features (40 of the
96 dimensions of each) of the demo's baseline, seed 0, after 12 epochs. What cka-pytorch 1.1.3 and scikit-learn 1.9.1 computed of them
stands under `real` in probe-reference.json.
"""

import json
from pathlib import Path

import numpy as np

_HERE = Path(__file__).parent
REAL = json.loads((_HERE / "probe-reference.json").read_text())["real"]


def real_features() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(150, 40) of the first block, (150, 40) of the output, (150,) labels of nine classes; probes learn from the first 100."""
    with np.load(_HERE / "real-features.npz") as arrays:
        return arrays["block"].astype(np.float32), arrays["output"].astype(np.float32), arrays["labels"].astype(np.int64)
