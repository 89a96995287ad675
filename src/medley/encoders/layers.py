"""The blocks of a deep encoder: finding them, training the last ones alone, computing them again in the backward pass."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from medley.schema import InputError


def find_blocks(network: nn.Module) -> list[nn.Module]:
    """The members of the largest list of layers in a network, by parameters: the blocks of a transformer, whatever its library calls them."""
    lists: list[nn.Module] = [module for module in network.modules() if isinstance(module, nn.ModuleList)]
    assert lists, type(network).__name__
    return list(max(lists, key=_num_elements).children())


def _num_elements(module: nn.Module) -> int:
    # A parameter that ZeRO-3 has sharded looks empty.
    return sum(int(getattr(parameter, "ds_numel", parameter.numel())) for parameter in module.parameters())


def train_last_blocks(encoder: nn.Module, blocks: Sequence[nn.Module], num_blocks: int) -> None:
    """Leave trainable the last blocks and the parameters that the network defines after them (final norm, projection), in place."""
    if num_blocks > len(blocks):
        raise InputError(f"top_layers {num_blocks} of a network with {len(blocks)} blocks", f"at most {len(blocks)}", "lower top_layers, or set train: full")
    first = next((parameter for block in blocks[-num_blocks:] for parameter in block.parameters()), None)
    for parameter in encoder.parameters():
        if parameter is first:
            return
        parameter.requires_grad_(False)


def checkpoint_blocks(blocks: Sequence[nn.Module]) -> None:
    """Have blocks keep only their inputs in training and compute the rest again for the gradient (Chen et al. 2016), in place.

    Their class gets a parent, so that the names of their weights stay and ZeRO-3 gathers these around both computations.
    """
    for block in blocks:
        own = type(block)
        block.__class__ = type(f"Checkpointed{own.__name__}", (_Checkpointed, own), {})


class _Checkpointed(nn.Module):
    """What `checkpoint_blocks` puts before a block's class."""

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """The block's output. Dropout draws the same numbers both times."""
        if self.training and torch.is_grad_enabled():
            return checkpoint(super().__call__, *args, use_reentrant=False, **kwargs)
        return super().__call__(*args, **kwargs)
