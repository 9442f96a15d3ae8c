"""Imported once by the server that forks ranks: all that a stage needs, so that a restart costs milliseconds of CPU."""

import open_clip  # noqa: F401
import torch

import trainer.run.loop
import trainer.stages.contrastive  # noqa: F401

torch.set_num_threads(1)
