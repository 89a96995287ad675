"""Frozen encoders: an item's vector has the same bits alone, in any micro-batch, in the feature cache and in serving.

The last digits of a matrix product depend on its shape. So a frozen encoder always runs on `ROWS_PER_CALL` rows (zeros fill the last call), and
sequences are padded to a length that the row's own length decides. On a CPU a row's place among the rows changed no bit, with 1 and with
2 threads (tests/encoders/); that the numbers of two processors or two thread counts agree is not promised.
"""

from collections.abc import Callable, Mapping
from typing import Any, Self

import torch
from torch import Tensor, nn

from medley.encoders.lengths import real_lengths

ROWS_PER_CALL = 16
"""Measured on a CPU: a text or picture of 16 costs what one of 64 costs; alone it costs 1.4 to 3 times as much."""

SHORTEST_SEQUENCE = 16
"""Shorter sequences are padded to this length, longer ones to a multiple of 8, from 128 on of 64, or to the encoder's `max_tokens` where that is less.
Powers of two alone had a quarter more tokens of movie plots computed."""

SHAPES = "16 rows; 16 tokens, multiples of 8, from 128 on of 64"
"""The two rules above in words, for the feature cache: vectors of other shapes have other bits."""


def build_frozen(config: Any, assets: Mapping[str, bytes], *, pretrained: bool) -> nn.Module:
    """The frozen encoder of an encoder's configuration, whatever its `train` is: trials of a search read vectors of encoders that the run trains.

    It has plain weights: of an encoder with LoRA those that `lora.merge_lora` makes. Weights that no file gives are drawn from a seed of their own
    and leave the generator as it was: they are the same in every run, so that runs can share their vectors, and the rest of a model starts the same
    whether its encoder was built or not.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        encoder = config.model_copy(update={"train": "frozen"}).build(assets, pretrained=pretrained)
    return freeze(encoder)


def freeze(encoder: nn.Module) -> nn.Module:
    """Make an encoder frozen, in place: no gradients, always in evaluation mode (dropout would blur what is to stay the same), rows apart.

    Its class gets a parent, so that the names of its weights stay and one call of it is one call for ZeRO-3, whatever it does inside.
    """
    encoder.requires_grad_(False)
    own = type(encoder)
    encoder.__class__ = type(f"Frozen{own.__name__}", (_Frozen, own), {})
    return encoder.eval()


class _Frozen(nn.Module):
    """What `freeze` puts before an encoder's class."""

    is_frozen = True

    def train(self, mode: bool = True) -> Self:
        """Stays in evaluation mode."""
        return super().train(False)

    def forward(self, inputs: Mapping[str, Tensor]) -> Tensor:
        """(P, output_dimension), each row as if alone."""
        return encode_apart(super().forward, inputs, getattr(self, "max_tokens", None))


@torch.no_grad()
def encode_apart(forward: Callable[[Mapping[str, Tensor]], Tensor], inputs: Mapping[str, Tensor], max_length: int | None) -> Tensor:
    """`forward` of P rows in calls of one shape per sequence length; (P, D), without gradients. max_length: no sequence is longer."""
    lengths = _padded_lengths(inputs, max_length)
    order = sorted(range(len(lengths)), key=lengths.__getitem__)
    calls: list[list[int]] = []
    for row in order:
        if not calls or len(calls[-1]) == ROWS_PER_CALL or lengths[calls[-1][0]] != lengths[row]:
            calls.append([])
        calls[-1].append(row)
    parts = [forward(_rows(inputs, rows, lengths[rows[0]]))[: len(rows)] for rows in calls]
    vectors_PD = torch.cat(parts)
    return torch.empty_like(vectors_PD).index_copy_(0, torch.tensor(order, device=vectors_PD.device), vectors_PD)


def _is_sequence(values: Tensor) -> bool:
    """Numbers of tokens or tags (P, T), padded with 0 at the end."""
    return values.dim() == 2 and not values.is_floating_point()


def _padded_lengths(inputs: Mapping[str, Tensor], max_length: int | None) -> list[int]:
    """The length that each row's sequences are padded to; 0 for each row where there are none."""
    sequences = {name: values for name, values in inputs.items() if _is_sequence(values)}
    if not sequences:
        return [0] * len(next(iter(inputs.values())))
    lengths = [_padded(num_tokens) for num_tokens in real_lengths(sequences).tolist()]
    return [min(length, max_length) for length in lengths] if max_length else lengths


def _padded(num_tokens: int) -> int:
    step = 8 if num_tokens <= 128 else 64
    return max(SHORTEST_SEQUENCE, -(-num_tokens // step) * step)


def _rows(inputs: Mapping[str, Tensor], rows: list[int], length: int) -> dict[str, Tensor]:
    """These rows and zeros, `ROWS_PER_CALL` in all, in contiguous memory; sequences at this length."""
    chosen = {}
    for name, values in inputs.items():
        taken = values[torch.tensor(rows, device=values.device)]
        shape = (length,) if _is_sequence(values) else values.shape[1:]
        chosen[name] = values.new_zeros(ROWS_PER_CALL, *shape)
        if _is_sequence(values):
            taken = taken[:, :length]
            chosen[name][: len(rows), : taken.shape[1]] = taken
        else:
            chosen[name][: len(rows)] = taken
    return chosen
