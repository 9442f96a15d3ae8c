"""The losses of both stages on plain tensors, for your own training loops.

    distances = firstsight.triplet_distances(features)         # (B, 3, D) -> (B,), (B,)
    loss = firstsight.hinge_loss(*distances, target, margin=0.05).mean()
    loss = firstsight.contrastive_loss(image_features, text_features, scale)

`contrastive_loss` is exact over all ranks of the default process group, if there is one, and keeps only one tile of the logits in
memory at a time.
"""

from trainer.model.losses import contrastive_loss, triplet_distances, two_afc
from trainer.model.losses import hinge as hinge_loss
from trainer.model.losses import logistic as logistic_loss

__all__ = ["contrastive_loss", "hinge_loss", "logistic_loss", "triplet_distances", "two_afc"]
