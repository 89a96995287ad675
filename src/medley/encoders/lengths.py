"""Texts of like lengths together: a network that is called once for all rows computes every row at the length of the longest.

Of movie plots (half of them 26 to 43 tokens long, some 64) half of the work is then for padding.
"""

from collections.abc import Callable, Mapping

import torch
from torch import Tensor

TOKENS_APART = 8
"""Lengths are rounded up to a multiple of it."""
SMALLEST_GROUP = 16
"""Fewer rows join those of the next length: a call has a price of its own (gradients of all weights, kernels of smaller matrices)."""


def encode_by_length(encoder: Callable[[Mapping[str, Tensor]], Tensor], inputs: Mapping[str, Tensor]) -> Tensor:
    """(P, D), as one call of the encoder gives up to rounding and dropout's draws. inputs: token numbers and the like, each (P, T), 0 at the end."""
    groups = length_groups(real_lengths(inputs).tolist())
    parts = [encode_padded(encoder, {name: values[torch.tensor(rows), :length] for name, values in inputs.items()}) for length, rows in groups]
    order = torch.tensor([row for _, rows in groups for row in rows])
    return torch.cat(parts)[order.argsort()]


def real_lengths(inputs: Mapping[str, Tensor]) -> Tensor:
    """(P,) tokens up to the last that is not 0 in any of the inputs."""
    places = [(values_PT != 0) * torch.arange(1, values_PT.shape[1] + 1, device=values_PT.device) for values_PT in inputs.values()]
    return torch.stack([place_PT.amax(dim=1) for place_PT in places]).amax(dim=0)


def length_groups(lengths: list[int]) -> list[tuple[int, list[int]]]:
    """(length to cut to, rows) of each call, shortest first."""
    groups: list[tuple[int, list[int]]] = []
    for row in sorted(range(len(lengths)), key=lengths.__getitem__):
        length = max(1, -(-lengths[row] // TOKENS_APART)) * TOKENS_APART
        if groups and (groups[-1][0] == length or len(groups[-1][1]) < SMALLEST_GROUP):
            groups[-1] = (length, [*groups[-1][1], row])
        else:
            groups.append((length, [row]))
    return groups


def encode_padded(encoder: Callable[[Mapping[str, Tensor]], Tensor], inputs: Mapping[str, Tensor]) -> Tensor:
    """(P, D) vectors of P rows. The encoder sees up to a sixteenth more rows, of zeros like a dummy's: libraries of kernels prepare one for
    every new shape, and P differs from step to step (measured on a CPU with two small networks: 15 to 20 % of the time)."""
    num_rows = len(next(iter(inputs.values())))
    step = max(1, 2 ** (num_rows.bit_length() - 5))
    num_spare = -num_rows % step
    if num_spare:
        inputs = {name: torch.cat([rows, rows.new_zeros(num_spare, *rows.shape[1:])]) for name, rows in inputs.items()}
    return encoder(inputs)[:num_rows]
