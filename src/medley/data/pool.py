"""Which items the ranks pool as negatives, and where each stands in what they send: known to every rank from the plan, before anything is sent."""

from collections.abc import Sequence

import numpy as np
import torch

from medley.schema import Pool


def make_pool(drawn: Sequence[np.ndarray], rank: int, items: np.ndarray, item_index_U: np.ndarray, known_rows: np.ndarray, known_items: np.ndarray) -> Pool:
    """The pool as one rank has it.

    drawn: for each rank the sorted items its micro-batch was drawn with, those of histories left out: they are sent. An item that several ranks send
    is taken from the first. items: of this rank's B rows; item_index_U: sorted, all that it encodes; known_rows, known_items: rows and the items
    that their users have in train.
    """
    num_sent = max(1, *(len(own) for own in drawn))
    sent_position_S = np.zeros(num_sent, dtype=np.int64)
    sent_position_S[: len(drawn[rank])] = np.searchsorted(item_index_U, drawn[rank])
    places = np.concatenate([number * num_sent + np.arange(len(own)) for number, own in enumerate(drawn)])
    item_index_W, first = np.unique(np.concatenate(drawn).astype(np.int64), return_index=True)
    received_position_W = places[first]
    if len(item_index_W) == 0:  # padding on every rank: any item does, its row weighs nothing
        item_index_W, received_position_W = item_index_U[:1].astype(np.int64), np.zeros(1, dtype=np.int64)
    last = len(item_index_W) - 1
    known_mask_BW = np.zeros((len(items), last + 1), dtype=bool)
    known_places = np.minimum(np.searchsorted(item_index_W, known_items), last)
    is_here = item_index_W[known_places] == known_items
    known_mask_BW[known_rows[is_here], known_places[is_here]] = True
    return Pool(
        num_ranks=len(drawn),
        sent_position_S=torch.from_numpy(sent_position_S),
        received_position_W=torch.from_numpy(received_position_W.astype(np.int64)),
        item_index_W=torch.from_numpy(item_index_W),
        # Only the item of a padding row, which weighs nothing, may lie behind the last.
        item_position_B=torch.from_numpy(np.minimum(np.searchsorted(item_index_W, items), last)),
        known_positive_mask_BW=torch.from_numpy(known_mask_BW),
    )
