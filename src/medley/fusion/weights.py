"""How much each modality counts in an item's vector: one measure for every fusion, for explanations and reports."""

from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from medley.fusion.tokens import FusedItems


@torch.no_grad()
def modality_weights(fusion: Callable[..., FusedItems], vectors: Mapping[str, Tensor], present_mask_U: Mapping[str, Tensor]) -> Tensor:
    """The share of each modality in each item's vector, (U, M) in the order of the sorted names, by leaving one out (occlusion).

    weight_m = ‖f − f without m‖ / Σ over the modalities that are there; f without m is what the fusion makes of the item with that modality
    missing. A gate or an attention weight alone would not say how long the gated token is, and a perceptron has neither.
    Rows add up to 1; missing modalities have 0, an item with none, or whose vector no modality moves, has only zeros.
    Put the fusion in eval mode.
    """
    names = sorted(vectors)
    whole_UD = fusion(vectors, present_mask_U)[0]
    changes = []
    for name in names:
        without_UD = fusion(vectors, {**present_mask_U, name: torch.zeros_like(present_mask_U[name])})[0]
        changes.append((whole_UD - without_UD).float().norm(dim=1) * present_mask_U[name])
    changes_UM = torch.stack(changes, dim=1)
    return changes_UM / changes_UM.sum(dim=1, keepdim=True).clamp(min=torch.finfo(torch.float32).tiny)
