"""Imported once by the server that forks ranks, so that each rank starts in milliseconds."""

import open_clip  # noqa: F401
import torch

torch.set_num_threads(1)
