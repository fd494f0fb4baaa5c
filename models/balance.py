"""The balanced softmax, against skewed labels (Ren et al., NeurIPS 2020; on federated devices Zhang et al., ICML 2022).

On a device, logits are raised by the logarithm of each class's share among the device's labels before the
cross-entropy: a class that is rare there then counts as much as a frequent one.
"""

import torch
from torch import Tensor

LEAST = 1e-2
"""Added to a device's number of examples of each class, so that the logarithm for a class without any is finite."""


def raise_of(labels: Tensor, classes: int, strength: float) -> Tensor:
    """Return by how much the logits of each class are raised, float32 `[..., classes]`.

    Args:
        labels: of all of a device's examples, int64 `[..., n]`; those that are no class count for none.
        classes: how many there are.
        strength: 0 for not at all, 1 for the logarithm in full.

    """
    # Counted without `bincount`, so that devices can be trained together.
    found = (labels[..., None] == torch.arange(classes, device=labels.device)).sum(-2).float()
    return strength * ((found + LEAST) / found.sum(-1, keepdim=True)).log()
