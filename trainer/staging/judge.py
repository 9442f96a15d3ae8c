"""FLIP, a model of how different two pictures look to a person who flips between them (Andersson et al., 2020).

It replaces people when there are no votes. Every result on such triplets says so.
"""

import os

import numpy as np
from numpy.typing import NDArray


def flip_distance(reference: NDArray[np.uint8], test: NDArray[np.uint8]) -> float:
    """Mean FLIP error of two (H, W, 3) sRGB pictures, 0 (no difference seen) to 1, at FLIP's standard viewing distance."""
    os.environ.setdefault("OMP_NUM_THREADS", "1")  # its threads cost more than they give on small pictures
    import flip_evaluator

    error, _, _ = flip_evaluator.evaluate(
        _unit(reference), _unit(test), "LDR", inputsRGB=True, applyMagma=False, computeMeanError=False, parameters={}
    )
    return float(np.mean(error, dtype=np.float64))  # FLIP's own mean adds in an order that depends on its threads


def _unit(image: NDArray[np.uint8]) -> NDArray[np.float32]:
    return image.astype(np.float32) / np.float32(255)
