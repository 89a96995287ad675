"""One step of all sharded tables of a model, in step with the engine that trains the rest.

The norm that gradient clipping looks at is that of the whole gradient, the engine's parameters and the rows of the tables, and both are scaled by
the same factor. DeepSpeed computes its norm within its step, so `join_norms` adds the tables' share to it there.
"""

import math
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from medley.training.config import OptimizerConfig
from medley.training.sharded_table import ShardedTable

CLIPPING_EPSILON = 1e-6
"""Added to the norm, by torch and DeepSpeed alike."""


class TableUpdates:
    """The sharded tables of a model by name; without any, all of this does nothing. Collective: every rank calls it alike."""

    def __init__(self, model: nn.Module, config: OptimizerConfig):
        self.tables = {name: module for name, module in model.named_modules() if isinstance(module, ShardedTable)}
        self.rank, self.num_ranks = next(((table.owners.rank, table.owners.num_ranks) for table in self.tables.values()), (0, 1))
        self.learning_rate = config.table_learning_rate or config.learning_rate
        self.weight_decay = config.table_weight_decay
        self.gradient_clipping = config.gradient_clipping
        self.num_steps = 0
        """steps taken; set it when training goes on from a checkpoint, which fills the tables themselves (`engine_state.py`)"""
        self.norm = 0.0

    def collect(self, loss_scale: float = 1.0) -> None:
        """After the last backward pass of a step: bring the gradients to their owners, averaged over ranks, and set `norm`, that of all tables together.

        loss_scale: what the loss was multiplied by against underflow.
        """
        if not self.tables:
            return
        squares = torch.stack([table.collect(1 / (loss_scale * self.num_ranks)).double() for table in self.tables.values()]).sum()
        if self.num_ranks > 1:
            dist.all_reduce(squares)
        self.norm = math.sqrt(squares.item())

    def update(self, total_norm: float, learning_rate_factor: float) -> None:
        """Move the rows, clipped by the norm of the whole gradient."""
        self.num_steps += 1
        clip = 1 / max(1.0, (total_norm + CLIPPING_EPSILON) / self.gradient_clipping)
        for table in self.tables.values():
            table.update(clip=clip, learning_rate=self.learning_rate * learning_rate_factor, weight_decay=self.weight_decay, num_steps=self.num_steps)


def join_norms(engine: Any, tables: TableUpdates) -> None:
    """Let a DeepSpeed engine (0.19.8) clip by the norm of its gradient and that of the tables; afterwards `get_global_grad_norm` is that of both.

    Its optimisers compute the norm in one place each: stages 1 and 2 as a whole, stage 3 by groups, to which the tables are added as one more;
    without an optimiser of its own the engine calls torch's clipping.
    """
    optimizer = engine.optimizer
    if hasattr(optimizer, "scaled_global_norm"):
        norm_alone = optimizer.scaled_global_norm

        def scaled_global_norm() -> Tensor:
            norm = norm_alone()
            return torch.hypot(norm, norm.new_tensor(tables.norm * optimizer.loss_scale))

        optimizer.scaled_global_norm = scaled_global_norm
    elif hasattr(optimizer, "_get_norm_groups"):
        groups_alone = optimizer._get_norm_groups
        optimizer._get_norm_groups = lambda: [*groups_alone(), torch.tensor(tables.norm * optimizer.loss_scale, device=engine.device)]
    else:
        assert isinstance(optimizer, torch.optim.AdamW), f"{type(optimizer).__name__} computes its norm in an unknown place"

        def clip_gradients() -> None:
            engine._global_grad_norm = clip_with_tables(engine.module, tables)

        engine.clip_fp32_gradients = clip_gradients


def clip_with_tables(model: nn.Module, tables: TableUpdates) -> float:
    """Clip whole gradients, alike on all ranks, by the norm of the tables and theirs, which is returned."""
    parameters = [parameter for parameter in model.parameters() if parameter.grad is not None]
    norm_alone = nn.utils.get_total_norm([parameter.grad for parameter in parameters if parameter.grad is not None]).item() if parameters else 0.0
    total_norm = math.hypot(norm_alone, tables.norm)
    nn.utils.clip_grads_with_norm_(parameters, tables.gradient_clipping, torch.tensor(total_norm))
    return total_norm
