"""What every user model returns, and the places of a history."""

import torch
from torch import Tensor

UserFields = tuple[Tensor, Tensor]
"""Fields (B, F, D), whose sum is the user vector (a factorisation machine also multiplies them with each other), and a penalty per row (B,) for the loss."""


def one_field(user_vectors_BD: Tensor) -> UserFields:
    """A user model of one part and without a penalty."""
    return user_vectors_BD.unsqueeze(1), user_vectors_BD.new_zeros(len(user_vectors_BD))


def recencies(history_mask_BL: Tensor) -> Tensor:
    """Place of each history item counted from the most recent one, which has 0; int64, 0 under padding.

    Histories stand oldest first with padding at the end, so counted from the front the newest item would have another place for each length.
    """
    from_end_BL = history_mask_BL.sum(dim=1, keepdim=True) - 1 - torch.arange(history_mask_BL.shape[1], device=history_mask_BL.device)
    return from_end_BL.clamp(min=0)
