"""Sequences of vectors by recurrent networks: GRU (Cho et al. 2014) or LSTM (Hochreiter and Schmidhuber 1997), in both directions."""

from typing import Literal

import torch
from torch import Tensor, nn

from medley.encoders.pooling import last_real, mean_over

Cell = Literal["gru", "lstm"]
RecurrentPooling = Literal["mean", "last"]
CELLS: dict[Cell, type[nn.GRU] | type[nn.LSTM]] = {"gru": nn.GRU, "lstm": nn.LSTM}


class RecurrentNetwork(nn.Module):
    """Steps: 1. one stack of layers reads from the beginning, another one from the end of each row's real part (as in ELMo, Peters et al. 2018);
    2. the states of each are averaged over the real part, or its last state is taken; 3. both side by side, a layer norm.

    Padding is never read before a real position, so a row's vector does not depend on it, and no lengths have to be known on the host.
    """

    def __init__(self, num_inputs: int, width: int, num_layers: int, cell: Cell, pooling: RecurrentPooling):
        super().__init__()
        self.output_dimension = 2 * width
        self.pooling = pooling
        self.from_beginning = CELLS[cell](num_inputs, width, num_layers, batch_first=True)
        self.from_end = CELLS[cell](num_inputs, width, num_layers, batch_first=True)
        self.norm = nn.LayerNorm(2 * width)

    def forward(self, vectors_PTD: Tensor, real_PT: Tensor) -> Tensor:
        """(P, 2 × width). real_PT: bool, True up to each row's end; a row without any counts its first position."""
        places_T = torch.arange(real_PT.shape[1], device=real_PT.device)
        real_PT = real_PT | (places_T == 0)
        last_P1 = real_PT.sum(dim=1, keepdim=True) - 1
        mirrored_PT1 = (last_P1 - places_T).clamp(min=0).unsqueeze(-1)
        reversed_PTD = vectors_PTD.gather(1, mirrored_PT1.expand_as(vectors_PTD))
        states = (self.from_beginning(vectors_PTD)[0], self.from_end(reversed_PTD)[0])
        pool = mean_over if self.pooling == "mean" else last_real
        return self.norm(torch.cat([pool(states_PTD, real_PT) for states_PTD in states], dim=1))
